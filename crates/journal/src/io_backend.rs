//! How a directory's files are read and written: through io_uring, or by plain calls of the threads that want it. Chosen by probing.
//!
//! Containers mostly forbid io_uring (Docker's and containerd's seccomp profiles, gVisor), so neither choice is an error by itself; whoever
//! asks for io_uring by name and cannot have it is told what would help.

use crate::uring::Ring;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;

/// What a configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IoChoice {
    /// io_uring where it works, threads elsewhere.
    #[default]
    Auto,
    /// io_uring or no start.
    IoUring,
    /// Threads, without a try.
    Threads,
}

impl IoChoice {
    /// Nothing special was asked for.
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// What a directory uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoBackend {
    /// Batches go through an io_uring.
    IoUring,
    /// Plain calls.
    Threads,
}

impl IoBackend {
    /// All there are, for a metric with a row for each.
    pub const ALL: [Self; 2] = [Self::IoUring, Self::Threads];

    /// As the configuration and the metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Threads => "threads",
        }
    }
}

/// Why io_uring cannot be used. Says what would enable it.
#[derive(Debug)]
pub enum Refusal {
    /// One of its system calls failed.
    Setup(io::Error),
    /// The kernel does not know an operation.
    Missing(&'static str),
}

/// io_uring was asked for by name and cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("io = \"io_uring\" cannot be had: {0}; or set io = \"auto\", which then uses threads")]
pub struct IoUnavailable(Refusal);

/// What a choice came to.
#[derive(Debug)]
pub struct Chosen {
    /// To be used.
    pub backend: IoBackend,
    /// Why it is not io_uring, if that was tried.
    pub refusal: Option<Refusal>,
}

/// Tries what the configuration asks for.
///
/// # Errors
/// [`IoUnavailable`] when it asks for io_uring by name.
pub fn choose(choice: IoChoice) -> Result<Chosen, IoUnavailable> {
    choose_by(choice, Ring::probe)
}

fn choose_by(choice: IoChoice, probe: impl FnOnce() -> Result<(), Refusal>) -> Result<Chosen, IoUnavailable> {
    if choice == IoChoice::Threads {
        return Ok(Chosen { backend: IoBackend::Threads, refusal: None });
    }
    match (probe(), choice) {
        (Ok(()), _) => Ok(Chosen { backend: IoBackend::IoUring, refusal: None }),
        (Err(refusal), IoChoice::IoUring) => Err(IoUnavailable(refusal)),
        (Err(refusal), _) => Ok(Chosen { backend: IoBackend::Threads, refusal: Some(refusal) }),
    }
}

/// What the kernel's switch says, if it has one (6.6 and later): 0 all may, 1 a group may, 2 nobody may.
fn switch() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setup(error) => explain(f, error, switch()),
            Self::Missing(operation) => {
                write!(f, "this kernel's io_uring does not know {operation}: it takes Linux 5.6 or later")
            }
        }
    }
}

fn explain(f: &mut impl fmt::Write, error: &io::Error, switch: Option<u8>) -> fmt::Result {
    match (error.kind(), switch) {
        (io::ErrorKind::PermissionDenied, Some(state @ (1 | 2))) => write!(
            f,
            "kernel.io_uring_disabled is {state} on this host; allow it with: sysctl -w kernel.io_uring_disabled=0"
        ),
        (io::ErrorKind::PermissionDenied, _) => write!(
            f,
            "a seccomp profile forbids it, as Docker's and containerd's own do; run the container with a profile that allows \
             io_uring_setup, io_uring_enter and io_uring_register (docker run --security-opt seccomp=PROFILE.json; in Kubernetes \
             securityContext.seccompProfile)"
        ),
        (io::ErrorKind::Unsupported, _) => write!(
            f,
            "there is no io_uring here: the kernel is older than 5.1 or built without it, or a sandbox such as gVisor stands in for it; \
             run on Linux 5.6 or later under runc"
        ),
        (io::ErrorKind::OutOfMemory, _) => {
            write!(f, "no memory may be locked for it; raise the limit (LimitMEMLOCK= of a unit, ulimit -l)")
        }
        _ => write!(f, "io_uring_setup: {error}"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::contract;
    use rustix::io::Errno;
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    use std::collections::BTreeMap;

    fn refused(errno: Errno) -> Refusal {
        Refusal::Setup(errno.into())
    }

    fn explained(errno: Errno, switch: Option<u8>) -> String {
        let mut text = String::new();
        explain(&mut text, &errno.into(), switch).expect("a string takes everything");
        text
    }

    #[test]
    fn auto_falls_back_and_io_uring_by_name_does_not() {
        let chosen = choose_by(IoChoice::Auto, || Ok(())).expect("works");
        assert_eq!((chosen.backend, chosen.refusal.is_none()), (IoBackend::IoUring, true));
        for errno in [Errno::PERM, Errno::NOSYS, Errno::NOMEM, Errno::INVAL] {
            let chosen = choose_by(IoChoice::Auto, || Err(refused(errno))).expect("falls back");
            assert_eq!((chosen.backend, chosen.refusal.is_some()), (IoBackend::Threads, true));
            assert!(choose_by(IoChoice::IoUring, || Err(refused(errno))).is_err());
        }
        let chosen = choose_by(IoChoice::Threads, || panic!("not tried")).expect("threads");
        assert_eq!((chosen.backend, chosen.refusal.is_none()), (IoBackend::Threads, true));
    }

    #[test]
    fn each_refusal_names_its_remedy() {
        for (errno, switch, remedy) in [
            (Errno::PERM, Some(2), "sysctl -w kernel.io_uring_disabled=0"),
            (Errno::PERM, Some(1), "sysctl -w kernel.io_uring_disabled=0"),
            (Errno::PERM, Some(0), "--security-opt seccomp=PROFILE.json"),
            (Errno::ACCESS, None, "securityContext.seccompProfile"),
            (Errno::NOSYS, Some(0), "gVisor"),
            (Errno::NOMEM, None, "LimitMEMLOCK="),
        ] {
            let text = explained(errno, switch);
            assert!(text.contains(remedy), "{errno}: {text}");
        }
        assert!(Refusal::Missing("READ").to_string().contains("Linux 5.6"));
        let error = choose_by(IoChoice::IoUring, || Err(refused(Errno::NOSYS))).expect_err("asked for by name");
        assert!(error.to_string().contains("gVisor") && error.to_string().contains("set io = \"auto\""), "{error}");
    }

    /// A thread of its own under a filter that answers these calls as a container's does.
    pub(crate) fn under_a_filter<T: Send>(calls: &[libc::c_long], errno: Errno, work: impl FnOnce() -> T + Send) -> T {
        let rules: BTreeMap<i64, Vec<_>> = calls.iter().map(|&call| (call, Vec::new())).collect();
        let action = SeccompAction::Errno(errno.raw_os_error() as u32);
        let arch = std::env::consts::ARCH.try_into().expect("a known machine");
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).expect("a filter");
        let program: BpfProgram = filter.try_into().expect("compiles");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                seccompiler::apply_filter(&program).expect("a thread may forbid itself calls");
                work()
            });
            thread.join().expect("no panic")
        })
    }

    #[test]
    fn where_a_container_forbids_io_uring_the_store_works_with_threads_and_the_error_names_the_remedy() {
        let every = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
        // Docker's profile; one that forgets a call of the three; gVisor's answer.
        for (calls, errno, remedy) in [
            (&every[..], Errno::PERM, "seccomp"),
            (&every[1..2], Errno::PERM, "seccomp"),
            (&every[2..], Errno::PERM, "seccomp"),
            (&every[..], Errno::NOSYS, "gVisor"),
        ] {
            under_a_filter(calls, errno, || {
                let chosen = choose(IoChoice::Auto).expect("auto never fails");
                assert_eq!(chosen.backend, IoBackend::Threads);
                let refusal = chosen.refusal.expect("tried").to_string();
                assert!(refusal.contains(remedy), "{refusal}");
                let error = choose(IoChoice::IoUring).expect_err("asked for by name").to_string();
                assert!(error.contains(remedy), "{error}");
                contract::directory(chosen.backend);
                // Even where the probe went well, earlier or elsewhere: what the ring refuses is done by plain calls.
                contract::directory(IoBackend::IoUring);
            });
        }
    }
}
