//! Requests that wait for the cluster, so that a signal can end the wait.
//!
//! The kernel tells of a signal once, by `INTERRUPT`, whatever the signal; a process that is being killed stays until its request is
//! answered. So the thread that waits is looked at (`/proc`): one with SIGKILL pending is let go at once (a signal that nobody
//! handles and that ends the process, Ctrl-C too, is turned into SIGKILL for each of its threads), any other after a while.

use crate::sync::lock;
use holdfast_client::CallId;
use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a call goes on after a signal that does not kill its caller; then it fails with `EINTR`.
pub const INTERRUPT_PATIENCE: Duration = Duration::from_secs(10);
/// Interrupts remembered that came before their request was read (by another thread); more are forgotten.
const EARLY_MAX: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Request {
    pid: u32,
    call: Option<CallId>,
    interrupted: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    requests: HashMap<u64, Request>,
    early: HashSet<u64>,
    interrupted: usize,
}

/// The requests that wait.
#[derive(Debug, Default)]
pub struct Waiting(Mutex<State>);

impl Waiting {
    /// A request is about to wait. True: it was interrupted already by a signal that kills.
    pub fn begin(&self, unique: u64, pid: u32) -> bool {
        let mut state = lock(&self.0);
        let early = !state.early.is_empty() && state.early.remove(&unique);
        let interrupted = early.then(Instant::now);
        state.interrupted += usize::from(early);
        state.requests.insert(unique, Request { pid, call: None, interrupted });
        early && is_being_killed(pid)
    }

    /// It waits for this call. Calls of one request follow each other, so the greatest id is the present one.
    pub fn started(&self, unique: u64, call: CallId) {
        if let Some(request) = lock(&self.0).requests.get_mut(&unique) {
            request.call = request.call.max(Some(call));
        }
    }

    /// It does not wait any more.
    pub fn end(&self, unique: u64) {
        let mut state = lock(&self.0);
        if state.requests.remove(&unique).is_some_and(|request| request.interrupted.is_some()) {
            state.interrupted -= 1;
        }
    }

    /// A signal arrived. The call to give up at once, if there is one.
    pub fn interrupted(&self, unique: u64) -> Option<CallId> {
        let mut state = lock(&self.0);
        let Some(request) = state.requests.get_mut(&unique) else {
            // Answered meanwhile, or not yet begun by the thread that read it.
            if state.early.len() >= EARLY_MAX {
                state.early.clear();
            }
            state.early.insert(unique);
            return None;
        };
        let first = request.interrupted.is_none();
        request.interrupted.get_or_insert_with(Instant::now);
        let (pid, call) = (request.pid, request.call);
        state.interrupted += usize::from(first);
        drop(state);
        call.filter(|_| is_being_killed(pid))
    }

    /// Calls that have waited long enough after a signal, or whose callers are being killed.
    pub fn overdue(&self) -> Vec<CallId> {
        let interrupted: Vec<Request> = {
            let state = lock(&self.0);
            if state.interrupted == 0 {
                return Vec::new();
            }
            state.requests.values().filter(|request| request.interrupted.is_some()).copied().collect()
        };
        interrupted
            .into_iter()
            .filter(|r| r.interrupted.is_some_and(|at| at.elapsed() >= INTERRUPT_PATIENCE) || is_being_killed(r.pid))
            .filter_map(|r| r.call)
            .collect()
    }
}

/// Whether SIGKILL is pending for a thread, or the thread is gone.
fn is_being_killed(pid: u32) -> bool {
    if pid == 0 {
        return false;
    }
    match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => has_kill_pending(&status),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn has_kill_pending(status: &str) -> bool {
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")))
        .filter_map(|set| u64::from_str_radix(set.trim(), 16).ok())
        .any(|set| set & KILL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_kill_is_read_from_proc() {
        assert!(has_kill_pending("Name:\tdd\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(has_kill_pending("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n"));
        assert!(!has_kill_pending("SigPnd:\t0000000000000002\nShdPnd:\t0000000000004000\nSigCgt:\t0000000000000100\n"));
        assert!(!is_being_killed(std::process::id()));
    }

    #[test]
    fn only_a_caller_that_is_gone_is_let_go_at_once() {
        let waiting = Waiting::default();
        let gone = u32::MAX - 7;
        assert!(!waiting.begin(1, std::process::id()));
        assert!(!waiting.begin(2, gone), "not interrupted");
        waiting.started(1, CallId(10));
        waiting.started(2, CallId(11));
        assert_eq!(waiting.interrupted(1), None);
        assert_eq!(waiting.interrupted(2), Some(CallId(11)));
        assert_eq!(waiting.overdue(), [CallId(11)]);
        waiting.end(2);
        assert!(waiting.overdue().is_empty());
        assert_eq!(waiting.interrupted(3), None, "not yet begun");
        assert!(waiting.begin(3, gone), "and remembered");
    }

    #[test]
    fn the_present_call_of_a_request_is_the_one_given_up() {
        let waiting = Waiting::default();
        waiting.begin(1, 0);
        waiting.end(1);
        waiting.begin(1, 0);
        waiting.started(1, CallId(6));
        waiting.started(1, CallId(5)); // the outer call's id becomes known after the inner one's
        assert_eq!(lock(&waiting.0).requests[&1].call, Some(CallId(6)));
    }
}
