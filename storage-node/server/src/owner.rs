//! The one owner of the core.
//!
//! Whoever brings an input while nobody is at work becomes the worker until the queue is empty; everybody else just
//! queues and leaves. So there is one loop, as if it had a thread of its own, without the two hand-overs that such a
//! thread would cost each write.
//!
//! * Inputs are taken in the order in which they were queued, and effects are started in the order the core gives them.
//! * A worker that has done its share hands the rest to a task: a disk's thread must get back to its disk, and a
//!   connection's task to its socket.
//! * Nothing here waits: effects are queued for threads, sockets and tasks. So any thread may bring inputs, those of the
//!   runtime included, and an effect may bring the next input at once without a lock being held twice.
//! * A panic while at work is a bug that leaves the core in doubt: the owner is dead from then on, and the node stops.

use crate::clock::now;
use crate::shell::Shell;
use holdfast_storage_core::{Effect, Input, StorageCore};
use holdfast_wire::admin::HeldByNode;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::watch;

/// Inputs that one caller works through at the most, approximately. By eye: less than a sync takes.
const SHARE: usize = 64;

/// The core, its effects' ways out, and what waits for it.
pub(crate) struct Owner {
    inbox: Mutex<Inbox>,
    machine: Mutex<Machine>,
    dead: watch::Sender<bool>,
    me: Weak<Owner>,
    runtime: tokio::runtime::Handle,
}

#[derive(Default)]
struct Inbox {
    inputs: VecDeque<Input>,
    /// Somebody is at work, and will take what is queued.
    busy: bool,
    closed: bool,
}

struct Machine {
    core: StorageCore,
    shell: Shell,
    effects: Vec<Effect>,
}

/// Declares the owner dead unless the work ended as it should.
struct Work<'a> {
    owner: &'a Owner,
    done: bool,
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.owner.inbox().closed = true;
            self.owner.dead.send_replace(true);
        }
    }
}

impl Owner {
    /// `me` is the owner that is being made. Must be called within a tokio runtime.
    pub fn new(core: StorageCore, shell: Shell, me: &Weak<Self>) -> Self {
        let machine = Machine { core, shell, effects: Vec::new() };
        Self {
            inbox: Mutex::default(),
            machine: Mutex::new(machine),
            dead: watch::channel(false).0,
            me: Weak::clone(me),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues inputs in this order, and works on the queue unless somebody does already.
    pub fn submit(&self, inputs: impl IntoIterator<Item = Input>) {
        {
            let mut inbox = self.inbox();
            if inbox.closed {
                return;
            }
            inbox.inputs.extend(inputs);
            if inbox.busy || inbox.inputs.is_empty() {
                return;
            }
            inbox.busy = true;
        }
        self.work();
    }

    /// Works until the queue is empty, or the share is done and a task takes over.
    fn work(&self) {
        let mut work = Work { owner: self, done: false };
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut batch, mut done) = (VecDeque::new(), 0);
        loop {
            {
                let mut inbox = self.inbox();
                std::mem::swap(&mut batch, &mut inbox.inputs);
                if batch.is_empty() {
                    inbox.busy = false;
                    break;
                }
                if done >= SHARE
                    && let Some(owner) = self.me.upgrade()
                {
                    // Still busy: nobody else begins, and the order is kept.
                    inbox.inputs = batch;
                    self.runtime.spawn(async move { owner.work() });
                    break;
                }
            }
            done += batch.len();
            machine.run(&mut batch);
        }
        work.done = true;
    }

    /// Looks at the core, between two inputs.
    pub fn look<T>(&self, at: impl FnOnce(&StorageCore) -> T) -> T {
        at(&self.machine.lock().unwrap_or_else(PoisonError::into_inner).core)
    }

    /// What the core knows and holds, for an administrator.
    pub fn held(&self) -> HeldByNode {
        self.look(StorageCore::held)
    }

    /// Becomes true when a panic has ended the core's life.
    pub fn dead(&self) -> watch::Receiver<bool> {
        self.dead.subscribe()
    }

    /// Takes no more inputs, and gives back what the shell holds, so that it can be ended.
    pub fn close(&self) {
        self.inbox().closed = true;
        self.machine.lock().unwrap_or_else(PoisonError::into_inner).shell.close();
    }
}

impl Machine {
    fn run(&mut self, inputs: &mut VecDeque<Input>) {
        for input in inputs.drain(..) {
            self.shell.journeys.steps(&input);
            self.core.step(now(), input, &mut self.effects);
            for effect in self.effects.drain(..) {
                self.shell.start(effect);
            }
            if self.shell.map_version() != self.core.map_version() {
                self.shell.map_changed(self.core.map());
            }
        }
        self.shell.journeys.copied(self.core.copied());
        self.shell.journeys.counted(&self.core.counters());
    }
}
