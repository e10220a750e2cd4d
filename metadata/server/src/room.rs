//! Room on the file system of the data directory: the core is told when it crosses the mark, and a server that has halted because there was
//! none starts again when there is.

use crate::metrics::Metrics;
use crate::node::{Arrival, Inlet};
use holdfast_metadata_core::Input;
use std::path::PathBuf;
use std::time::Duration;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// Less than this part of the file system free is little; by design section 4.
const PART: u64 = 10;
/// So much is enough on a large one. By eye: a hundred times what log and tables write before they are persisted.
const ENOUGH: u64 = 4 << 30;

/// Whether so much of a file system is little. What was little has to become a quarter more to be enough again.
fn is_little(available: u64, total: u64, was: bool) -> bool {
    let mark = (total / PART).min(ENOUGH);
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
    fn a_tenth_is_little_on_a_small_disk_and_4_gib_are_enough_on_a_large_one() {
        const MIB: u64 = 1 << 20;
        assert!(is_little(51 * MIB, 512 * MIB, false) && !is_little(52 * MIB, 512 * MIB, false));
        assert!(is_little(60 * MIB, 512 * MIB, true) && !is_little(65 * MIB, 512 * MIB, true));
        assert!(is_little(ENOUGH - 1, 1 << 42, false) && !is_little(ENOUGH, 1 << 42, false));
    }
}
