//! Two hosts change one directory crosswise: what one makes the other removes, at the same moment, and just when the first is told that it
//! is not alone any more. Nobody may wait for what the other waits for; nothing else goes wrong.

use super::{Failure, Outcome, Sim, judged};
use crate::world::Local;
use crate::world::script::State;
use crate::world::setup::{Flavour, Setup};
use holdfast_client_core::{Call, Reply};
use holdfast_types::{FileName, InodeId};
use holdfast_wire::namespace::NewNode;
use std::time::Duration;

/// Times that the second host comes and goes.
const ROUNDS: u32 = 12;
/// All of it is over by then.
const OVER_BY: Duration = Duration::from_secs(60);
/// No call takes longer. By eye: several times what asking a session to stop caching may take, and far less than any of its timers.
const ANSWERED_WITHIN: Duration = Duration::from_millis(1_500);
/// The two hosts.
const HOSTS: [usize; 2] = [0, 1];

fn name(letter: char, round: u32) -> FileName {
    FileName::new(format!("{letter}{round}").as_bytes()).expect("a good name")
}

fn make(parent: InodeId, name: FileName, node: NewNode) -> Call {
    Call::Create { parent, name, node, mode: 0o755, umask: 0, uid: 0, gid: 0, exclusive: true, open: None }
}

impl Sim {
    /// A host mounts; not waited for.
    fn come(&mut self, host: usize) {
        // A script mounts only while it has something to call. These two call what they are told to.
        self.calls_left = 1;
        self.mount_now(host);
        self.calls_left = 0;
    }

    fn until_state(&mut self, host: usize, state: State) -> Result<(), String> {
        let end = self.world.now() + Duration::from_secs(20);
        while self.clients[host].script.state != state {
            if self.world.now() > end {
                return Err(format!("host {host} is still {:?}, not {state:?}", self.clients[host].script.state));
            }
            self.advance(Duration::from_millis(1))?;
        }
        Ok(())
    }

    /// Makes calls at the same moment, in this order. All must succeed, in time.
    fn together(&mut self, calls: Vec<(usize, Call)>) -> Result<Vec<Reply>, String> {
        let (first, begun) = (self.record.calls.len(), self.world.now());
        let count = calls.len();
        for (slot, (host, call)) in calls.into_iter().enumerate() {
            self.call(host, slot, call);
        }
        let mut replies = Vec::new();
        for record in first..first + count {
            while self.record.calls[record].returned.is_none() {
                if self.world.now().since(begun) > ANSWERED_WITHIN {
                    let waiting: Vec<_> =
                        self.record.calls[first..first + count].iter().filter(|call| call.returned.is_none()).collect();
                    return Err(format!("no answer after {ANSWERED_WITHIN:?}: {waiting:?}"));
                }
                self.advance(Duration::from_millis(1))?;
            }
            let asked = &self.record.calls[record];
            match asked.returned.as_ref().map(|returned| &returned.result) {
                Some(Ok(reply)) => replies.push(reply.clone()),
                other => return Err(format!("host {}: {:?} came to {other:?}", asked.client, asked.call)),
            }
        }
        Ok(replies)
    }

    /// One visit of the second host.
    fn cross(&mut self, directory: InodeId, round: u32) -> Result<(), String> {
        let [one, other] = HOSTS;
        let (dir, file) = (|| NewNode::Directory, || NewNode::File);
        let in_turn = |mut calls: Vec<(usize, Call)>| {
            let first = round as usize % calls.len();
            calls.rotate_left(first);
            calls
        };
        self.together(vec![(one, make(directory, name('a', round), file()))])?;
        self.come(other);
        // Before, while and after the first host is asked to stop caching.
        self.advance(Duration::from_micros(u64::from(round) * 400))?;
        self.together(vec![
            (one, make(directory, name('x', round), dir())),
            (one, Call::Unlink { parent: directory, name: name('a', round) }),
        ])?;
        self.until_state(other, State::Live)?;
        self.together(vec![(other, make(directory, name('b', round), file()))])?;
        self.together(in_turn(vec![
            (one, make(directory, name('y', round), dir())),
            (other, Call::RemoveDirectory { parent: directory, name: name('x', round) }),
            (one, Call::Unlink { parent: directory, name: name('b', round) }),
            (other, make(directory, name('c', round), file())),
        ]))?;
        self.together(in_turn(vec![
            (one, Call::Unlink { parent: directory, name: name('c', round) }),
            (other, Call::RemoveDirectory { parent: directory, name: name('y', round) }),
        ]))?;
        self.unmount(other);
        self.until_state(other, State::Away)
    }
}

/// Runs it to the end; an audit by another client and all checks follow.
///
/// # Errors
/// [`Failure`]: a call failed or took too long, or something that must not be was so.
pub fn run_crossing(seed: u64) -> Result<Outcome, Failure> {
    // No ambushes: those are other flavours'.
    let flavour = Flavour::Slow;
    let (calls, leave_one_in) = (0, u64::from(u32::MAX));
    let setup = Setup { flavour, hostile: OVER_BY, calls, leave_one_in, nodes: 4, ..Setup::of(seed, None) };
    judged(Sim::new(seed, setup, 0), |sim| {
        sim.calm();
        (0..sim.servers.len()).for_each(|at| sim.start_server(at));
        (0..sim.nodes.len()).for_each(|at| sim.start_node(at));
        sim.world.after(sim.director, OVER_BY, Local::Heal);
        sim.advance(Duration::from_secs(5))?;
        sim.come(HOSTS[0]);
        sim.until_state(HOSTS[0], State::Live)?;
        let made = sim.together(vec![(HOSTS[0], make(InodeId::ROOT, name('d', 0), NewNode::Directory))])?;
        let Some(Reply::Created { attributes, .. }) = made.first() else {
            return Err(format!("no directory: {made:?}"));
        };
        let directory = attributes.inode;
        for round in 0..ROUNDS {
            sim.cross(directory, round)?;
        }
        // It is empty.
        sim.together(vec![(HOSTS[0], Call::RemoveDirectory { parent: InodeId::ROOT, name: name('d', 0) })])?;
        sim.run_to_the_end()
    })
}
