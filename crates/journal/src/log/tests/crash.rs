//! Crash at every call and at every sync, while the log wraps around its segments several times.

use super::*;

/// What the caller of a journal knows.
#[derive(Default)]
struct Model {
    appended: Records,
    /// So many of them were synced.
    acknowledged: usize,
    released: Position,
}

impl Model {
    /// Compares a replay with what was promised; from then on what was replayed is what there is.
    fn check(&mut self, replayed: &Records, context: &str) {
        let from = match replayed.first() {
            Some(first) => self.appended.iter().position(|record| record == first).expect(context),
            None => self.appended.iter().take_while(|(position, _)| *position < self.released).count(),
        };
        let to = from + replayed.len();
        assert_eq!(self.appended.get(from..to), Some(&replayed[..]), "{context}: a run without gaps");
        let missing = self.appended[..from].iter().filter(|(position, _)| *position >= self.released).count();
        assert_eq!(missing, 0, "{context}: nothing live is missing at the front");
        assert!(to >= self.acknowledged, "{context}: {to} replayed of {} acknowledged", self.acknowledged);
        self.appended.truncate(to);
        self.acknowledged = to;
    }

    /// Works until something fails. Returns whether it got through.
    fn work(&mut self, journal: &mut Journal<MemoryDisk>, prng: &mut Prng, steps: u64) -> Result<(), JournalError> {
        for _ in 0..steps {
            for _ in 0..prng.between(1, 3) {
                let mut bytes = vec![0; prng.below(1500) as usize];
                // Half of all records are alike, so that stale ones can pass for new ones if anything lets them.
                if prng.chance(1, 2) {
                    bytes.truncate(100)
                } else {
                    prng.fill(&mut bytes)
                }
                match journal.append(&[&bytes]) {
                    Ok(position) => self.appended.push((position, bytes)),
                    Err(JournalError::Full(_)) => self.release(journal, prng),
                    Err(error) => return Err(error),
                }
            }
            journal.sync()?;
            self.acknowledged = self.appended.len();
            if prng.chance(1, 2) {
                self.release(journal, prng);
            }
            if prng.chance(1, 5) {
                journal.sync_head()?;
            }
        }
        Ok(())
    }

    /// Releases some of what was acknowledged, as a checkpoint would.
    fn release(&mut self, journal: &mut Journal<MemoryDisk>, prng: &mut Prng) {
        if self.acknowledged > 0 {
            let keep = prng.below(6) as usize;
            let index = self.acknowledged.saturating_sub(keep);
            let position = self.appended.get(index).map_or(journal.end(), |(position, _)| *position);
            if position > self.released {
                self.released = position;
                journal.release_below(position);
            }
        }
    }
}

/// Opens, with crashes during the opening too, and checks.
fn recover(
    mut disk: MemoryDisk,
    model: &mut Model,
    prng: &mut Prng,
    context: &str,
) -> (MemoryDisk, Journal<MemoryDisk>) {
    for attempt in 0.. {
        disk = disk.restart(if prng.chance(1, 4) { Loss::Process } else { Loss::Power });
        if attempt < 4 && prng.chance(1, 3) {
            disk.crash_at_operation(prng.between(1, 12));
        }
        match open(&disk) {
            Ok((journal, replayed)) if !disk.crashed() => {
                model.check(&replayed, context);
                disk.crash_at_operation(u64::MAX);
                return (disk, journal);
            }
            Ok(_) => {}
            Err(error) => assert!(disk.crashed(), "{context}: recovery says {error}: {error:?}"),
        }
    }
    unreachable!("the last attempts do not crash")
}

/// One world: work, crash at the given point, recover, work, crash anywhere, recover.
/// Returns whether the crash point was reached.
fn world(seed: u64, arm: impl Fn(&MemoryDisk)) -> bool {
    let context = format!("seed {seed}");
    let mut prng = Prng::new(seed);
    let mut model = Model::default();
    let disk = MemoryDisk::new(seed);
    arm(&disk);
    if let Ok((mut journal, _)) = open(&disk) {
        let result = model.work(&mut journal, &mut prng, 25);
        assert_eq!(result.is_err(), disk.crashed(), "{context}: {result:?}");
    }
    let reached = disk.crashed();
    let mut disk = disk;
    for _ in 0..3 {
        let (next, mut journal) = recover(disk, &mut model, &mut prng, &context);
        disk = next;
        disk.crash_at_operation(prng.between(1, 40));
        let result = model.work(&mut journal, &mut prng, 10);
        assert_eq!(result.is_err(), disk.crashed(), "{context}: {result:?}");
    }
    recover(disk, &mut model, &mut prng, &context);
    reached
}

#[test]
fn a_crash_at_any_call_loses_nothing_that_was_synced() {
    let mut points = 0;
    for seed in 0..10 {
        let mut nth = 1;
        while world(seed * 1000 + nth, |disk| disk.crash_at_operation(nth)) {
            nth += 1;
        }
        assert!(nth > 50, "only {nth} calls");
        points += nth;
    }
    assert!(points > 500, "only {points} crash points");
}

#[test]
fn a_crash_at_any_sync_loses_nothing_that_was_synced() {
    for seed in 0..20 {
        let mut nth = 1;
        while world(seed * 1000 + nth, |disk| disk.crash_at_sync(nth)) {
            nth += 1;
        }
        assert!(nth > 25, "only {nth} syncs");
    }
}

#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let lost = (0..50)
        .filter(|seed| {
            let disk = MemoryDisk::new(*seed);
            let (mut journal, _) = open(&disk).unwrap();
            journal.append(&[b"before"]).unwrap();
            journal.sync().unwrap();
            disk.set_lying(true);
            journal.append(&[b"after"]).unwrap();
            journal.sync().unwrap();
            open(&disk.restart(Loss::Power)).map_or(true, |(_, records)| records.len() < 2)
        })
        .count();
    assert!(lost > 10, "the simulated power loss took only {lost} of 50");
}

#[test]
fn what_an_earlier_life_left_beyond_its_torn_tail_never_comes_back() {
    let mut torn = 0;
    for seed in 0..300 {
        let disk = MemoryDisk::new(seed);
        let (mut journal, _) = open(&disk).unwrap();
        journal.append(&[b"kept"]).unwrap();
        journal.sync().unwrap();
        // Unsynced: each may be lost by itself. They fill a page each, so that they are lost page by page.
        for n in 0..3u8 {
            journal.append(&[&[n; 600]]).unwrap();
        }
        disk.crash_at_sync(1);
        assert!(journal.sync().is_err());
        let disk = disk.restart(Loss::Power);
        let (mut journal, before) = open(&disk).unwrap();
        torn += usize::from(before.len() < 4);
        if before.len() == 1 {
            // The same record at the same place as in the life before: its sum is the same, but for the life.
            journal.append(&[&[0; 600]]).unwrap();
            journal.sync().unwrap();
            let (_, after) = open(&disk.restart(Loss::Power)).unwrap();
            assert_eq!(after.len(), 2, "seed {seed}: a ghost came back");
        }
    }
    assert!(torn > 50, "only {torn} of 300 were torn");
}
