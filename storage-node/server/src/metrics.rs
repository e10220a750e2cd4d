//! What a storage node counts. Each is a total since its start.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Counters of one node.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $($(#[doc = $doc])+ pub $name: AtomicU64,)+
        }

        impl Metrics {
            /// Name, meaning and value of each.
            pub fn read(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((
                    concat!("holdfast_storage_", stringify!($name)),
                    concat!($($doc),+),
                    self.$name.load(Ordering::Relaxed),
                ),)+]
            }
        }
    };
}

counters! {
    /// Changes made durable.
    changes_total,
    /// Batches of changes: each cost one sync of the journal.
    batches_total,
    /// Bytes of writes made durable.
    write_bytes_total,
    /// Reads of any kind that the stores served.
    reads_total,
    /// Changes and reads that failed.
    failures_total,
    /// Checkpoints ended.
    checkpoints_total,
    /// Requests of clients.
    requests_total,
    /// Messages from other nodes.
    messages_total,
}

pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_values_are_those_counted() {
        let metrics = Metrics::default();
        add(&metrics.batches_total, 3);
        let mut names: Vec<_> = metrics.read().into_iter().map(|(name, ..)| name).collect();
        assert!(metrics.read().contains(&(
            "holdfast_storage_batches_total",
            " Batches of changes: each cost one sync of the journal.",
            3
        )));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), metrics.read().len());
    }
}
