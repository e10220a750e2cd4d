//! Which engine asked for something: one that was killed never takes back what it asked for, and another one after it does not know of
//! it.

use serde::{Deserialize, Serialize};

/// One life of an engine: its process, told from a later one of the same number by when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    pid: i32,
    /// In ticks of the kernel since the machine started.
    started: u64,
}

impl Engine {
    /// The process of that number, at this moment. `None` if it cannot be seen from here: within a container of our own.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name, which may hold anything, the state is field 3 and the start field 22 (proc(5)).
        let (_, rest) = stat.rsplit_once(") ")?;
        let started = rest.split(' ').nth(22 - 3)?.parse().ok()?;
        Some(Self { pid, started })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// One that has ended.
    #[cfg(test)]
    pub(crate) fn dead() -> Self {
        let itself = Self::of(std::process::id().cast_signed()).expect("this process");
        Self { started: itself.started + 1, ..itself }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_lives_until_another_has_its_number() {
        let itself = Engine::of(std::process::id().cast_signed()).expect("this process");
        assert!(itself.is_alive() && !Engine::dead().is_alive());
        assert_eq!(Engine::of(0), None);
    }
}
