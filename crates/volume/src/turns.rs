//! One at a time for each volume, within this process. Between processes the compare-and-set of labels decides.

use crate::error::VolumeError;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;

/// How long a call waits for those before it. Less than an orchestrator's patience with one call, so that it hears why.
const PATIENCE: Duration = Duration::from_secs(45);

/// Who does something with what.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>>);

/// The right to do something with a volume, until dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    name: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for those who came before.
    pub(crate) async fn take(&self, name: &str) -> Result<Turn, VolumeError> {
        let lock = self.locked().entry(name.to_owned()).or_default().clone();
        let waited = tokio::time::timeout(PATIENCE, lock.lock_owned()).await;
        // Also when it was waited for in vain, what nobody needs any more is forgotten.
        let mut turn = Turn { turns: self.clone(), name: name.to_owned(), guard: None };
        let pending = |_| VolumeError::Pending { what: format!("another operation on {name:?}") };
        turn.guard = Some(waited.map_err(pending)?);
        Ok(turn)
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard.take();
        let mut locks = self.turns.locked();
        // Nobody else waits for it: who wants to clones it under the outer lock.
        if locks.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn only_one_has_the_turn_and_nothing_is_kept_of_it() {
        let turns = Turns::default();
        let inside = Arc::new(AtomicU32::new(0));
        let many: Vec<_> = (0..50)
            .map(|_| {
                let (turns, inside) = (turns.clone(), inside.clone());
                tokio::spawn(async move {
                    let _turn = turns.take("a").await.expect("its turn");
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        let other = turns.take("b").await.expect("another name waits for nobody");
        for one in many {
            one.await.expect("no panic");
        }
        drop(other);
        assert!(turns.locked().is_empty());
    }
}
