//! Bytes of files, judged: each slot of each file is a register.
//!
//! * A write that was acknowledged happened, unless its mount ended badly before the bytes were flushed; then it may have, and its own
//!   mount may have seen it.
//! * What a mount that is over had not flushed never shows up after its fence had settled and somebody saw that it was not there.

use super::Sim;
use super::blocks::{SLOT_BYTES, SLOTS, first_slot_from, slots_of, slots_of_hole, value_in};
use super::record::CallRecord;
use holdfast_client_core::{Call, Reply};
use holdfast_sim::check::{Register, RegisterInput, RegisterOutput, Verdict, linearizable_by_key};
use holdfast_sim::{History, WorldTime};
use holdfast_types::InodeId;
use std::collections::{BTreeMap, BTreeSet};

type Key = (InodeId, u64);

/// Something that touched one slot.
#[derive(Clone, Copy, Debug)]
struct Touch {
    client: u32,
    mount: usize,
    invoked: u64,
    invoked_at: WorldTime,
    /// `None`: it may have happened at any time since, or not at all.
    returned: Option<u64>,
    write: bool,
    value: u64,
}

#[derive(Debug)]
struct Named {
    key: Key,
    input: RegisterInput<u64>,
}

impl Sim {
    pub(super) fn check_data(&mut self) -> Result<(), String> {
        let mut touches = self.touches()?;
        let flushed = self.flushes();
        for (key, all) in &mut touches {
            self.weaken(*key, all, &flushed);
            self.check_zombies(*key, all)?;
        }
        self.check_registers(touches)
    }

    fn touch(&self, record: &CallRecord, write: bool, value: u64) -> Touch {
        let returned = record.returned.as_ref().filter(|returned| returned.result.is_ok());
        Touch {
            client: record.client as u32,
            mount: record.mount,
            invoked: record.invoked,
            invoked_at: record.invoked_at,
            returned: returned.map(|returned| returned.order),
            write,
            value,
        }
    }

    /// Every read and write, slot by slot.
    fn touches(&mut self) -> Result<BTreeMap<Key, Vec<Touch>>, String> {
        let mut touches: BTreeMap<Key, Vec<Touch>> = BTreeMap::new();
        let mut values = 0;
        for (number, record) in self.record.calls.iter().enumerate() {
            let inode = |handle| self.record.handles.get(&(record.mount, handle)).copied();
            match &record.call {
                Call::Write { handle, offset, data, .. } => {
                    let Some(inode) = inode(*handle) else { continue };
                    for slot in slots_of(*offset, data.len() as u64) {
                        touches.entry((inode, slot)).or_default().push(self.touch(record, true, number as u64 + 1));
                    }
                }
                Call::Zero { handle, offset, length, .. } => {
                    let Some(inode) = inode(*handle) else { continue };
                    for slot in slots_of(*offset, *length) {
                        touches.entry((inode, slot)).or_default().push(self.touch(record, true, 0));
                    }
                }
                Call::SetAttributes { inode, set } => {
                    let Some(size) = set.size else { continue };
                    for slot in first_slot_from(size)..SLOTS {
                        touches.entry((*inode, slot)).or_default().push(self.touch(record, true, 0));
                    }
                }
                Call::Read { handle, offset, length } => {
                    let Some(inode) = inode(*handle) else { continue };
                    let Some(Ok(Reply::Data(data))) = record.returned.as_ref().map(|returned| &returned.result) else {
                        continue;
                    };
                    let bytes = data.clone().into_bytes();
                    for (at, slot) in slots_of(*offset, u64::from(*length)).enumerate() {
                        let from = (at as u64 * SLOT_BYTES).min(bytes.len() as u64) as usize;
                        let to = (from + SLOT_BYTES as usize).min(bytes.len());
                        let value = value_in(slot, &bytes[from..to]).map_err(|what| {
                            let story = self.story_of(inode, slot);
                            format!(
                                "client {} reads {inode} at {}: {what}\n  {story}",
                                record.client, record.invoked_at
                            )
                        })?;
                        touches.entry((inode, slot)).or_default().push(self.touch(record, false, value));
                        values += 1;
                    }
                }
                // What is called a hole was read, as zeros.
                Call::Seek { handle, offset, seek } => {
                    let Some(inode) = inode(*handle) else { continue };
                    let Some(Ok(Reply::Position(at))) = record.returned.as_ref().map(|returned| &returned.result)
                    else {
                        continue;
                    };
                    for slot in slots_of_hole(*offset, *seek, *at) {
                        touches.entry((inode, slot)).or_default().push(self.touch(record, false, 0));
                        values += 1;
                    }
                }
                _ => {}
            }
        }
        self.stats.values += values;
        Ok(touches)
    }

    /// For each mount and file (none: all files): invocations of flushes that succeeded.
    fn flushes(&self) -> BTreeMap<(usize, Option<InodeId>), Vec<u64>> {
        let mut flushes: BTreeMap<_, Vec<u64>> = BTreeMap::new();
        for record in &self.record.calls {
            let file = match &record.call {
                Call::Fsync { inode, .. } => Some(*inode),
                Call::SyncAll => None,
                _ => continue,
            };
            if record.returned.as_ref().is_some_and(|returned| returned.result.is_ok()) {
                flushes.entry((record.mount, file)).or_default().push(record.invoked);
            }
        }
        flushes
    }

    /// Writes that a mount which ended badly had not flushed may have happened; what it saw of them proves nothing.
    fn weaken(&self, (inode, _): Key, all: &mut Vec<Touch>, flushes: &BTreeMap<(usize, Option<InodeId>), Vec<u64>>) {
        let mut weak: BTreeSet<(usize, u64)> = BTreeSet::new();
        for touch in all.iter_mut().filter(|touch| touch.write) {
            let Some(returned) = touch.returned else { continue };
            let mount = &self.record.mounts[touch.mount];
            let flushed = [Some(inode), None].iter().any(|file| {
                flushes.get(&(touch.mount, *file)).is_some_and(|all| all.iter().any(|invoked| *invoked > returned))
            });
            if mount.over && !mount.clean && !flushed {
                touch.returned = None;
                weak.insert((touch.mount, touch.value));
            }
        }
        // Its unanswered writes may have been seen by itself, too.
        let unanswered = all.iter().filter(|touch| touch.write && touch.returned.is_none());
        let of_the_dead = unanswered.filter(|touch| {
            let mount = &self.record.mounts[touch.mount];
            mount.over && !mount.clean
        });
        weak.extend(of_the_dead.map(|touch| (touch.mount, touch.value)).collect::<Vec<_>>());
        all.retain(|touch| touch.write || !weak.contains(&(touch.mount, touch.value)));
    }

    /// A value of a session that is over does not come back after it was seen not to be there.
    fn check_zombies(&self, key: Key, all: &[Touch]) -> Result<(), String> {
        for ghost in all.iter().filter(|touch| touch.write && touch.returned.is_none() && touch.value != 0) {
            let session = self.record.mounts[ghost.mount].session;
            let Some(settled) = session.and_then(|session| self.truth[1].fence_settled(session)) else { continue };
            let later = |touch: &&Touch| touch.invoked_at > settled && touch.mount != ghost.mount;
            let without = all.iter().filter(later).filter(|touch| touch.value != ghost.value);
            let Some(first) = without.filter_map(|touch| touch.returned).min() else { continue };
            let seen = all
                .iter()
                .filter(later)
                .find(|touch| !touch.write && touch.value == ghost.value && touch.invoked > first);
            if let Some(seen) = seen {
                return Err(format!(
                    "{} slot {}: write {} of {session:?}, fenced by {settled}, shows up at {} after it was seen not to be there",
                    key.0, key.1, ghost.value, seen.invoked_at
                ));
            }
        }
        Ok(())
    }

    /// Every slot is a linearizable register.
    fn check_registers(&self, touches: BTreeMap<Key, Vec<Touch>>) -> Result<(), String> {
        let mut history: History<Named, RegisterOutput<u64>> = History::new();
        let mut moments: Vec<(u64, bool, Key, Touch)> = Vec::new();
        for (key, all) in touches {
            let read = all.iter().filter(|touch| !touch.write).map(|touch| touch.value).collect::<BTreeSet<_>>();
            if read.is_empty() {
                continue;
            }
            for touch in all {
                // A write that may have happened, and that nobody saw, changes nothing for anybody.
                if touch.returned.is_none() && !read.contains(&touch.value) {
                    continue;
                }
                moments.push((touch.invoked, false, key, touch));
                if let Some(returned) = touch.returned {
                    moments.push((returned, true, key, touch));
                }
            }
        }
        moments.sort_by_key(|(order, end, key, _)| (*order, *end, *key));
        let mut open = BTreeMap::new();
        for (order, end, key, touch) in moments {
            if end {
                let call = open.remove(&(key, touch.invoked)).expect("it was invoked before");
                let output = if touch.write { RegisterOutput::Done } else { RegisterOutput::Value(Some(touch.value)) };
                history.returned(WorldTime(order), call, output);
            } else {
                let input = if touch.write { RegisterInput::Write(touch.value) } else { RegisterInput::Read };
                let call = history.invoke(touch.invoked_at, touch.client, Named { key, input });
                open.insert((key, touch.invoked), call);
            }
        }
        match linearizable_by_key(&Slots(Register { initial: Some(0) }), &history, |named| named.key) {
            Verdict::Linearizable => Ok(()),
            Verdict::Violation(text) => {
                let key = history
                    .calls()
                    .iter()
                    .map(|call| call.input.key)
                    .find(|key| text.starts_with(&format!("{key:?}:")));
                let story = key.map(|(inode, slot)| self.story_of(inode, slot)).unwrap_or_default();
                Err(format!("bytes: {text}\n  {story}"))
            }
            Verdict::Undecided { steps } => Err(format!("bytes: undecided after {steps} steps")),
        }
    }
}

/// The model of one slot, for inputs that name their slot.
struct Slots(Register<u64>);

impl holdfast_sim::check::Model for Slots {
    type Input = Named;
    type Output = RegisterOutput<u64>;
    type State = Option<u64>;

    fn initial(&self) -> Self::State {
        self.0.initial()
    }

    fn step(&self, state: &Self::State, input: &Named, output: Option<&Self::Output>) -> Option<Self::State> {
        self.0.step(state, &input.input, output)
    }
}
