//! A volume in memory: the contract of the client's calls, in the simplest way that keeps it.
//!
//! Answers come at once, or (with `Pace::Later`) from another thread, or not before they are released (`Pace::Held`).

mod locks;
mod tree;

use holdfast_client::{Call, CallId, ClientError, Reply};
use holdfast_fuse_client::fs::{Done, Volume};
use holdfast_types::SessionId;
use holdfast_wire::lock::Lock;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tree::Tree;

/// Whether this machine can mount; otherwise test `name` is skipped, in the words that `cargo xtask test` counts.
#[allow(dead_code)]
pub fn can_mount(name: &str) -> bool {
    let can = rustix::process::geteuid().is_root() && std::path::Path::new("/dev/fuse").exists();
    if !can {
        // Not `println!`, which the test runner keeps to itself when a test passes.
        let _ = writeln!(std::io::stdout(), "SKIP {name}: needs root and /dev/fuse");
    }
    can
}

/// When answers come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)]
pub enum Pace {
    /// Before `call` returns.
    AtOnce,
    /// From another thread.
    Later,
    /// Never, until [`Memory::release`] or a cancellation; calls that only open and close come at once.
    Held,
    /// As `Held`, but names and attributes are found at once, so that a path can be walked to what is then held.
    HeldButNames,
}

struct State {
    tree: Tree,
    pace: Pace,
    ttl: Duration,
    next: u64,
    held: BTreeMap<CallId, (Call, Done)>,
    calls: Vec<&'static str>,
    invalidated: Vec<u64>,
}

/// The volume. Clones share it.
#[derive(Clone)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    later: mpsc::Sender<(Done, Result<Reply, ClientError>)>,
}

#[allow(dead_code)]
impl Memory {
    pub fn new(pace: Pace, ttl: Duration) -> Self {
        let (later, answers) = mpsc::channel::<(Done, Result<Reply, ClientError>)>();
        std::thread::spawn(move || {
            for (done, result) in answers {
                done(result);
            }
        });
        let state = State {
            tree: Tree::new(),
            pace,
            ttl,
            next: 1,
            held: BTreeMap::new(),
            calls: Vec::new(),
            invalidated: Vec::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), later }
    }

    pub fn set_pace(&self, pace: Pace) {
        self.state.lock().unwrap().pace = pace;
    }

    pub fn set_ttl(&self, ttl: Duration) {
        self.state.lock().unwrap().ttl = ttl;
    }

    /// Answers what is held.
    pub fn release(&self) {
        let held = std::mem::take(&mut self.state.lock().unwrap().held);
        for (call, done) in held.into_values() {
            let result = self.state.lock().unwrap().tree.serve(call);
            done(result);
        }
    }

    pub fn held(&self) -> usize {
        self.state.lock().unwrap().held.len()
    }

    /// Names of the calls since the last time.
    pub fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state.lock().unwrap().calls)
    }

    pub fn invalidated(&self) -> Vec<u64> {
        self.state.lock().unwrap().invalidated.clone()
    }

    /// Serves a call as another host would make it.
    pub fn elsewhere(&self, call: Call) -> Result<Reply, ClientError> {
        self.state.lock().unwrap().tree.serve(call)
    }

    /// Locks that are held.
    pub fn locks(&self) -> usize {
        self.state.lock().unwrap().tree.locks().count()
    }

    /// Handles that are open.
    pub fn open_handles(&self) -> usize {
        self.state.lock().unwrap().tree.open_handles()
    }
}

impl Volume for Memory {
    fn call(&self, call: Call, done: Done) -> CallId {
        let mut state = self.state.lock().unwrap();
        let id = CallId(state.next);
        state.next += 1;
        state.calls.push(name(&call));
        let opens = matches!(call, Call::Open { .. } | Call::Release { .. } | Call::Flush { .. });
        let waits = matches!(&call, Call::SetLock { inode, lock, wait: true }
            if state.tree.locks().conflict(*inode, lock).is_some());
        let finds = matches!(&call, Call::Lookup { .. } | Call::GetAttributes { .. });
        let holds = match state.pace {
            Pace::Held => !opens,
            Pace::HeldButNames => !opens && !finds,
            Pace::AtOnce | Pace::Later => false,
        };
        if waits || holds {
            state.held.insert(id, (call, done));
            return id;
        }
        let unlocks = matches!(&call, Call::SetLock { lock: Lock { kind: None, .. }, .. });
        let result = state.tree.serve(call);
        let pace = state.pace;
        if unlocks {
            // Those that waited for it try again, from a thread of their own.
            for (call, waiting) in std::mem::take(&mut state.held).into_values() {
                let volume = self.clone();
                std::thread::spawn(move || volume.call(call, waiting));
            }
        }
        drop(state);
        match pace {
            Pace::Later => self.later.send((done, result)).expect("the thread lives"),
            Pace::AtOnce | Pace::Held | Pace::HeldButNames => done(result),
        }
        id
    }

    fn cancel(&self, id: CallId) {
        let held = self.state.lock().unwrap().held.remove(&id);
        if let Some((_, done)) = held {
            done(Err(ClientError::Interrupted));
        }
    }

    fn session(&self) -> Option<SessionId> {
        Some(locks::SESSION)
    }

    fn cache_ttl(&self) -> Duration {
        self.state.lock().unwrap().ttl
    }

    fn invalidated(&self, event: u64) {
        self.state.lock().unwrap().invalidated.push(event);
    }
}

fn name(call: &Call) -> &'static str {
    match call {
        Call::Mount => "mount",
        Call::Lookup { .. } => "lookup",
        Call::GetAttributes { .. } => "get-attributes",
        Call::SetAttributes { .. } => "set-attributes",
        Call::Create { .. } => "create",
        Call::CreateUnnamed { .. } => "create-unnamed",
        Call::SetAcl { .. } => "set-acl",
        Call::Link { .. } => "link",
        Call::Unlink { .. } => "unlink",
        Call::RemoveDirectory { .. } => "remove-directory",
        Call::Rename { .. } => "rename",
        Call::ReadLink { .. } => "read-link",
        Call::Open { .. } => "open",
        Call::Release { .. } => "release",
        Call::Flush { .. } => "flush",
        Call::Read { .. } => "read",
        Call::Write { .. } => "write",
        Call::Fsync { .. } => "fsync",
        Call::SyncAll => "sync-all",
        Call::Zero { .. } => "zero",
        Call::Seek { .. } => "seek",
        Call::ReadDirectory { .. } => "read-directory",
        Call::GetXattr { .. } => "get-xattr",
        Call::ListXattrs { .. } => "list-xattrs",
        Call::SetXattr { .. } => "set-xattr",
        Call::RemoveXattr { .. } => "remove-xattr",
        Call::SetLock { .. } => "set-lock",
        Call::TestLock { .. } => "test-lock",
        Call::StatVolume => "stat-volume",
        Call::Unmount => "unmount",
    }
}
