//! Room on the file system of the data directory: the core is told when it crosses the mark, and a server that has halted because there was
//! none starts again when there is.

use crate::metrics::Metrics;
use crate::node::{Arrival, Inlet};
use holdfast_metadata_core::Input;
use std::path::PathBuf;
use std::time::Duration;

/// How often it is looked at.
const EVERY: Duration = Duration::from_millis(100);
/// Less than this part of the file system free is little; by design section 4.
const PART: u64 = 10;
/// So much is enough on a large one. By eye: a hundred times what log and tables write before they are persisted.
const ENOUGH: u64 = 4 << 30;
/// So little is little on a small one, up to this part of it: a log's segment, a table's journal and what is flushed of it at one moment.
const LEAST: u64 = 128 << 20;
const LEAST_PART: u64 = 4;

/// Whether so much of a file system is little. What was little has to become a quarter more to be enough again.
fn is_little(available: u64, total: u64, was: bool) -> bool {
    let mark = (total / PART).min(ENOUGH).max(LEAST.min(total / LEAST_PART));
    available < if was { mark + mark / 4 } else { mark }
}

/// Watches until this server has halted for want of room and has some again.
pub(crate) async fn watch(data: PathBuf, inlet: Inlet, metrics: &Metrics) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut low, mut starved) = (false, false);
    loop {
        ticks.tick().await;
        // What cannot be asked is found out by who writes there.
        let Ok(stat) = rustix::fs::statvfs(&data) else { continue };
        let (available, total) =
            (stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize));
        let now = is_little(available, total, low);
        if now != low {
            low = now;
            let (directory, mib) = (data.display(), available >> 20);
            if low {
                let what = "little room: if a majority of the metadata servers has as little, nothing new is made until there is more";
                tracing::warn!(%directory, available_mib = mib, "{what}");
            } else {
                tracing::info!(%directory, available_mib = mib, "room again");
            }
            inlet.send(Arrival::Input(Input::Room { low }));
        }
        // Errors of a full disk have many names: what counts is that it was full when the server had halted.
        starved |= low && metrics.halted_for().is_some();
        if starved && !low {
            tracing::warn!("there is room again: this server, which had halted for want of it, starts anew");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_is_little_but_not_less_than_a_small_disk_fills_in_a_moment() {
        const MIB: u64 = 1 << 20;
        assert!(is_little(199 * MIB, 2000 * MIB, false) && !is_little(200 * MIB, 2000 * MIB, false));
        assert!(is_little(240 * MIB, 2000 * MIB, true) && !is_little(250 * MIB, 2000 * MIB, true));
        assert!(is_little(ENOUGH - 1, 1 << 42, false) && !is_little(ENOUGH, 1 << 42, false));
        assert!(is_little(127 * MIB, 512 * MIB, false) && !is_little(128 * MIB, 512 * MIB, false));
        assert!(is_little(24 * MIB, 100 * MIB, false) && !is_little(25 * MIB, 100 * MIB, false));
    }
}
