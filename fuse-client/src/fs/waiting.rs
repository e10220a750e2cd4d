//! Requests that wait for the cluster, so that a signal can end the wait.
//!
//! The kernel tells of a signal once, by `INTERRUPT`, whatever the signal; a process that is being killed stays until its request is
//! answered. So the thread that waits is looked at (`/proc`): one with SIGKILL pending is let go at once (a signal that nobody
//! handles and that ends the process, Ctrl-C too, is turned into SIGKILL for each of its threads); one that handles a signal by which it
//! is asked to end, soon; any other after a while.
//!
//! A request may take several calls, one after the other. It is one request: what is known of it is kept until the last has ended.

use crate::sync::lock;
use holdfast_client::CallId;
use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a call goes on after a signal that does not ask its caller to end; then it fails with `EINTR`.
pub const INTERRUPT_PATIENCE: Duration = Duration::from_secs(10);
/// The same after SIGINT, SIGTERM or SIGQUIT that the caller handles: programs that are asked to end while the cluster works do not
/// notice, and when it does not they end within a second.
const END_PATIENCE: Duration = Duration::from_millis(300);
/// How long a call may take whose caller should not wait for a cluster that is out of reach.
const SHORT: Duration = Duration::from_millis(300);
/// Interrupts remembered that came before their request was read (by another thread); more are forgotten.
const EARLY_MAX: usize = 256;

/// How soon a call is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// When its caller is being killed or asked to end, or some time after another signal.
    Long,
    /// With the first signal: it waits for something that may never come.
    None,
    /// Soon, signal or no signal.
    Short,
    /// As `Long`, but a caller that unmounts does not wait: `umount(8)` asks about the mount point, and does without an answer.
    LongUnlessUnmounting,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    pid: u32,
    /// Calls that have begun and not ended. More than one only while one begins the next.
    calls: u32,
    call: Option<CallId>,
    patience: Patience,
    /// When its present call began.
    begun: Instant,
    interrupted: Option<Instant>,
}

impl Request {
    /// Whether it must be looked at from time to time.
    fn is_watched(&self) -> bool {
        self.interrupted.is_some() || matches!(self.patience, Patience::Short | Patience::LongUnlessUnmounting)
    }

    /// Whether to give it up now.
    fn is_over(&self) -> bool {
        match self.patience {
            Patience::Short if self.begun.elapsed() >= SHORT => return true,
            Patience::LongUnlessUnmounting if self.begun.elapsed() >= SHORT && unmounts(self.pid) => return true,
            _ => {}
        }
        let Some(since) = self.interrupted.map(|at| at.elapsed()) else { return false };
        if self.patience == Patience::None || since >= INTERRUPT_PATIENCE {
            return true;
        }
        match pending(self.pid) {
            Pending::Kill => true,
            Pending::End => since >= END_PATIENCE,
            Pending::Other => false,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    requests: HashMap<u64, Request>,
    early: HashSet<u64>,
    watched: usize,
}

impl State {
    /// Changes a request, and keeps count of those that are watched.
    fn change(&mut self, unique: u64, change: impl FnOnce(&mut Request)) -> Option<Request> {
        let request = self.requests.get_mut(&unique)?;
        let before = usize::from(request.is_watched());
        change(request);
        self.watched = self.watched + usize::from(request.is_watched()) - before;
        Some(*request)
    }
}

/// The requests that wait.
#[derive(Debug, Default)]
pub struct Waiting(Mutex<State>);

impl Waiting {
    /// A request is about to wait for a call, perhaps not its first. True: a signal has come that ends the wait at once.
    pub fn begin(&self, unique: u64, pid: u32, patience: Patience) -> bool {
        let mut state = lock(&self.0);
        let early = !state.early.is_empty() && state.early.remove(&unique);
        let begun = Instant::now();
        let fresh = Request { pid, calls: 0, call: None, patience: Patience::Long, begun, interrupted: None };
        state.requests.entry(unique).or_insert(fresh);
        let request = state.change(unique, |request| {
            request.calls += 1;
            (request.patience, request.begun) = (patience, begun);
            if early {
                request.interrupted = Some(begun);
            }
        });
        drop(state);
        request.is_some_and(|request| request.interrupted.is_some() && request.is_over())
    }

    /// It waits for this call. Calls of one request follow each other, so the greatest id is the present one.
    pub fn started(&self, unique: u64, call: CallId) {
        lock(&self.0).change(unique, |request| request.call = request.call.max(Some(call)));
    }

    /// A call of it has ended, and what came of it is done: it is answered, or waits for the next call.
    pub fn end(&self, unique: u64) {
        let mut state = lock(&self.0);
        let request = state.change(unique, |request| request.calls -= 1);
        if request.is_some_and(|request| request.calls == 0)
            && let Some(request) = state.requests.remove(&unique)
        {
            state.watched -= usize::from(request.is_watched());
        }
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        lock(&self.0).requests.len()
    }

    /// A signal arrived. The call to give up at once, if there is one.
    pub fn interrupted(&self, unique: u64) -> Option<CallId> {
        let mut state = lock(&self.0);
        let request = state.change(unique, |request| {
            request.interrupted.get_or_insert_with(Instant::now);
        });
        let Some(request) = request else {
            // Answered meanwhile, or not yet begun by the thread that read it.
            if state.early.len() >= EARLY_MAX {
                state.early.clear();
            }
            state.early.insert(unique);
            return None;
        };
        drop(state);
        request.call.filter(|_| request.is_over())
    }

    /// Calls that have waited long enough, or whose callers are being killed.
    pub fn overdue(&self) -> Vec<CallId> {
        let watched: Vec<Request> = {
            let state = lock(&self.0);
            if state.watched == 0 {
                return Vec::new();
            }
            state.requests.values().filter(|request| request.is_watched()).copied().collect()
        };
        watched.into_iter().filter(Request::is_over).filter_map(|request| request.call).collect()
    }
}

/// What signals wait for a thread until its request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    /// It is being killed, or gone.
    Kill,
    /// It is asked to end, and handles that.
    End,
    /// Something else, or nothing.
    Other,
}

fn pending(pid: u32) -> Pending {
    if pid == 0 {
        return Pending::Other;
    }
    match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => pending_in(&status),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Pending::Kill,
        Err(_) => Pending::Other,
    }
}

/// Whether a process is `umount(8)`.
fn unmounts(pid: u32) -> bool {
    pid != 0 && std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name == b"umount\n")
}

fn pending_in(status: &str) -> Pending {
    let bit = |signal: i32| 1u64 << (signal - 1);
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
    };
    let blocked = set("SigBlk:");
    let all = set("SigPnd:") | set("ShdPnd:");
    if all & bit(libc::SIGKILL) != 0 {
        Pending::Kill
    } else if all & !blocked & (bit(libc::SIGINT) | bit(libc::SIGTERM) | bit(libc::SIGQUIT)) != 0 {
        Pending::End
    } else {
        Pending::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GONE: u32 = u32::MAX - 7;

    #[test]
    fn pending_signals_are_read_from_proc() {
        let read = |own: &str, shared: &str, blocked: &str| {
            pending_in(&format!(
                "Name:\tdd\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t{blocked}\nSigCgt:\t0000000000000100\n"
            ))
        };
        assert_eq!(read("0000000000000100", "0000000000000000", "0000000000000000"), Pending::Kill);
        assert_eq!(read("0000000000000000", "0000000000000100", "0000000000000000"), Pending::Kill);
        assert_eq!(read("0000000000000000", "0000000000004000", "0000000000000000"), Pending::End);
        assert_eq!(read("0000000000000002", "0000000000000000", "0000000000000000"), Pending::End);
        assert_eq!(read("0000000000000002", "0000000000000000", "0000000000000002"), Pending::Other, "it is blocked");
        assert_eq!(read("0000000000002000", "0000000000000000", "0000000000000000"), Pending::Other, "a timer");
        assert_eq!(pending(std::process::id()), Pending::Other);
    }

    #[test]
    fn only_a_caller_that_is_gone_is_let_go_at_once() {
        let waiting = Waiting::default();
        assert!(!waiting.begin(1, std::process::id(), Patience::Long));
        assert!(!waiting.begin(2, GONE, Patience::Long), "not interrupted");
        waiting.started(1, CallId(10));
        waiting.started(2, CallId(11));
        assert_eq!(waiting.interrupted(1), None);
        assert_eq!(waiting.interrupted(2), Some(CallId(11)));
        assert_eq!(waiting.overdue(), [CallId(11)]);
        waiting.end(2);
        assert!(waiting.overdue().is_empty());
        assert_eq!(waiting.interrupted(3), None, "not yet begun");
        assert!(waiting.begin(3, GONE, Patience::Long), "and remembered");
    }

    #[test]
    fn a_signal_between_two_calls_of_one_request_is_not_forgotten() {
        let waiting = Waiting::default();
        assert!(!waiting.begin(1, GONE, Patience::Long));
        waiting.started(1, CallId(5));
        assert_eq!(waiting.interrupted(1), Some(CallId(5)));
        assert!(waiting.begin(1, GONE, Patience::Long), "the next call is given up when it begins");
        waiting.end(1);
        waiting.started(1, CallId(6));
        assert_eq!(waiting.overdue(), [CallId(6)]);
        waiting.end(1);
        let state = lock(&waiting.0);
        assert_eq!((state.requests.len(), state.watched), (0, 0));
    }

    #[test]
    fn a_wait_for_a_lock_ends_with_any_signal() {
        let waiting = Waiting::default();
        assert!(!waiting.begin(1, std::process::id(), Patience::None));
        waiting.started(1, CallId(5));
        assert!(waiting.overdue().is_empty());
        assert_eq!(waiting.interrupted(1), Some(CallId(5)));
    }

    #[test]
    fn a_call_with_little_patience_is_given_up_soon_without_a_signal() {
        let waiting = Waiting::default();
        assert!(!waiting.begin(1, 0, Patience::Short));
        waiting.started(1, CallId(5));
        assert!(waiting.overdue().is_empty());
        lock(&waiting.0).change(1, |request| request.begun -= SHORT);
        assert_eq!(waiting.overdue(), [CallId(5)]);
        assert!(!waiting.begin(1, 0, Patience::Long), "what follows has time");
        waiting.end(1);
        waiting.started(1, CallId(6));
        assert!(waiting.overdue().is_empty());
    }

    #[test]
    fn the_present_call_of_a_request_is_the_one_given_up() {
        let waiting = Waiting::default();
        waiting.begin(1, 0, Patience::Long);
        waiting.begin(1, 0, Patience::Long);
        waiting.end(1);
        waiting.started(1, CallId(6));
        waiting.started(1, CallId(5)); // the outer call's id becomes known after the inner one's
        assert_eq!(lock(&waiting.0).requests[&1].call, Some(CallId(6)));
    }
}
