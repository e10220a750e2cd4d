//! What clients do: mount, call at random, unmount or die, mount again; at the end one of them reads everything.

use super::blocks::{REGION, SLOTS, fill, offset_of};
use super::locks::Holds;
use super::{Local, Phase, Sim};
use bytes::Bytes;
use holdfast_client_core::{Call, CallId, ClientError, HandleId, Input, OpenMode, Reply, Seek, ZeroMode};
use holdfast_types::prng::Prng;
use holdfast_types::{FileName, InodeId};
use holdfast_wire::namespace::{Attributes, FileKind, NamespaceError, NewNode, RenameMode, SetAttributes, XattrMode};
use holdfast_wire::open::{OPEN_XATTR, OpenRule};
use std::collections::VecDeque;
use std::time::Duration;

/// The slot of calls that begin and end a mount.
pub(super) const LIFE: usize = usize::MAX;
/// Names in a directory that scripts use.
const NAMES: u64 = 6;
const DIRECTORIES_MAX: usize = 5;
const FILES_MAX: usize = 10;
const HANDLES_MAX: usize = 6;
const READERS_MAX: usize = 2;
const XATTRS: [&str; 3] = ["user.a", "user.b", "user.c"];

/// A client's habits and what it knows.
pub(super) struct Script {
    prng: Prng,
    pub(super) state: State,
    directories: Vec<InodeId>,
    files: Vec<InodeId>,
    symlinks: Vec<InodeId>,
    /// Open for writing.
    handles: Vec<(HandleId, InodeId)>,
    /// Open for reading: they are closed after a while.
    readers: VecDeque<HandleId>,
    holds: Holds,
    /// What an auditor still has to do.
    audit: VecDeque<Call>,
    auditor: bool,
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not mounted.
    Away,
    /// Waits for the mount.
    Mounting,
    /// Calls.
    Live,
    /// Waits for the unmount.
    Leaving,
}

impl Script {
    pub(super) fn new(prng: Prng, auditor: bool) -> Self {
        Self {
            prng,
            state: State::Away,
            directories: vec![InodeId::ROOT],
            files: Vec::new(),
            symlinks: Vec::new(),
            handles: Vec::new(),
            readers: VecDeque::new(),
            holds: Holds::default(),
            audit: VecDeque::new(),
            auditor,
        }
    }

    fn name(&mut self) -> FileName {
        FileName::new(format!("n{}", self.prng.below(NAMES)).as_bytes()).expect("a good name")
    }

    fn directory(&mut self) -> InodeId {
        if self.prng.chance(1, 2) { InodeId::ROOT } else { *self.prng.pick(&self.directories) }
    }

    fn file(&mut self) -> Option<InodeId> {
        (!self.files.is_empty()).then(|| *self.prng.pick(&self.files))
    }

    fn anything(&mut self) -> InodeId {
        match self.prng.below(3) {
            0 => self.directory(),
            _ => self.file().unwrap_or(InodeId::ROOT),
        }
    }

    fn learn(&mut self, inode: InodeId, kind: FileKind) {
        let (known, most) = match kind {
            FileKind::Directory => (&mut self.directories, DIRECTORIES_MAX),
            FileKind::File => (&mut self.files, FILES_MAX),
            FileKind::Symlink => (&mut self.symlinks, 2),
            FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => return,
        };
        if !known.contains(&inode) {
            if known.len() >= most {
                let at = self.prng.below(known.len() as u64) as usize;
                if known[at] != InodeId::ROOT {
                    known.swap_remove(at);
                }
            }
            known.push(inode);
        }
    }

    fn forget(&mut self, inode: InodeId) {
        self.files.retain(|known| *known != inode);
        self.symlinks.retain(|known| *known != inode);
        self.directories.retain(|known| *known != inode || inode == InodeId::ROOT);
    }

    /// A run of slots: usually short, sometimes longer than what a journal record carries.
    fn run(&mut self) -> std::ops::Range<u64> {
        let length = if self.prng.chance(1, 12) { self.prng.between(22, 30) } else { self.prng.between(1, 4) };
        let first = self.prng.below(REGION - length + 1);
        let first = if self.prng.chance(1, 3) { first + REGION } else { first };
        first..first + length
    }

    /// The next call of a slot. `number` names the record that it will have.
    fn draw(&mut self, number: u64, slot: usize) -> Option<Call> {
        // Whoever holds one lock often wants another one: that is how circles come about.
        if self.holds.any(slot) && self.prng.chance(1, 3) {
            return self.draw_lock(slot);
        }
        Some(match self.prng.below(110) {
            0..10 => Call::Lookup { parent: self.directory(), name: self.name() },
            10..16 => Call::GetAttributes { inode: self.anything() },
            16..19 => Call::ReadDirectory { inode: self.directory(), after: 0, limit: 3, plus: self.prng.chance(1, 2) },
            19..32 => self.draw_create(number),
            32..37 => Call::Unlink { parent: self.directory(), name: self.name() },
            37..39 => Call::RemoveDirectory { parent: self.directory(), name: self.name() },
            39..45 => Call::Rename {
                from_parent: self.directory(),
                from_name: self.name(),
                to_parent: self.directory(),
                to_name: self.name(),
                mode: *self.prng.pick(&[
                    RenameMode::Replace,
                    RenameMode::Replace,
                    RenameMode::NoReplace,
                    RenameMode::Exchange,
                ]),
            },
            45..47 => Call::Link { inode: self.file()?, parent: self.directory(), name: self.name() },
            47..51 => Call::SetAttributes { inode: self.anything(), set: self.draw_attributes(number) },
            51..54 => Call::SetAttributes { inode: self.file()?, set: self.draw_truncation() },
            54..58 => self.draw_xattr(number),
            58..59 => Call::ReadLink { inode: *self.symlinks.last()? },
            59..60 => Call::StatVolume,
            60..66 => Call::Open {
                inode: self.file()?,
                mode: OpenMode { write: self.prng.chance(3, 4), ..OpenMode::default() },
            },
            66..83 => self.draw_write(number)?,
            83..95 => self.draw_read()?,
            95..98 => Call::Fsync { inode: self.file()?, data_only: self.prng.chance(1, 2) },
            98 => Call::SyncAll,
            99 => self.draw_zero()?,
            _ => self.draw_lock(slot)?,
        })
    }

    fn draw_create(&mut self, number: u64) -> Call {
        let node = match self.prng.below(10) {
            0..7 => NewNode::File,
            7 | 8 => NewNode::Directory,
            _ => NewNode::Symlink(Bytes::from(format!("target-{number}"))),
        };
        let open =
            (node == NewNode::File && self.prng.chance(1, 2)).then(|| OpenMode { write: true, ..OpenMode::default() });
        Call::Create {
            parent: self.directory(),
            name: self.name(),
            exclusive: node != NewNode::File || self.prng.chance(1, 2),
            node,
            mode: 0o644,
            umask: 0,
            uid: number as u32,
            gid: 0,
            open,
        }
    }

    fn draw_attributes(&mut self, number: u64) -> SetAttributes {
        let mode = self.prng.chance(1, 2).then(|| self.prng.below(0o1000) as u16);
        SetAttributes { mode, gid: Some(number as u32), ..SetAttributes::default() }
    }

    fn draw_truncation(&mut self) -> SetAttributes {
        let slot = if self.prng.chance(1, 3) { 0 } else { self.prng.below(SLOTS) };
        SetAttributes { size: Some(offset_of(slot)), ..SetAttributes::default() }
    }

    fn draw_xattr(&mut self, number: u64) -> Call {
        let inode = self.anything();
        let name = Bytes::from(*self.prng.pick(&XATTRS));
        let mode = *self.prng.pick(&[XattrMode::Set, XattrMode::Create, XattrMode::Replace]);
        match self.prng.below(7) {
            6 => {
                let rule = *self.prng.pick(&OpenRule::NAMES);
                let name = Bytes::from_static(OPEN_XATTR);
                // What is made in the root is anybody's, or most of it would be somebody's alone.
                match inode {
                    InodeId::ROOT => Call::GetXattr { inode, name },
                    _ => Call::SetXattr { inode, name, value: Bytes::from_static(rule.as_bytes()), mode },
                }
            }
            0..2 => Call::SetXattr { inode, name, value: Bytes::from(format!("value-{number}")), mode },
            2 => Call::RemoveXattr { inode, name },
            3 => Call::ListXattrs { inode },
            _ => Call::GetXattr { inode, name },
        }
    }

    fn handle(&mut self) -> Option<HandleId> {
        (!self.handles.is_empty()).then(|| self.prng.pick(&self.handles).0)
    }

    fn draw_write(&mut self, number: u64) -> Option<Call> {
        let (handle, run) = (self.handle()?, self.run());
        let data = Bytes::from(fill(number + 1, run.clone()));
        Some(Call::Write { handle, offset: offset_of(run.start), data, clear_set_ids: false })
    }

    fn draw_read(&mut self) -> Option<Call> {
        let (handle, run) = (self.handle()?, self.run());
        if self.prng.chance(1, 6) {
            let seek = if self.prng.chance(1, 2) { Seek::Data } else { Seek::Hole };
            return Some(Call::Seek { handle, offset: offset_of(run.start), seek });
        }
        let length = (run.end - run.start) * super::blocks::SLOT_BYTES;
        Some(Call::Read { handle, offset: offset_of(run.start), length: length as u32 })
    }

    fn draw_lock(&mut self, slot: usize) -> Option<Call> {
        // One file for most of them, or clients would hardly meet.
        let meeting = self.files.iter().min().copied().filter(|_| self.prng.chance(2, 3));
        let inode = meeting.or_else(|| self.file())?;
        Some(self.holds.draw(&mut self.prng, slot, inode))
    }

    fn draw_zero(&mut self) -> Option<Call> {
        let (handle, run) = (self.handle()?, self.run());
        let length = (run.end - run.start) * super::blocks::SLOT_BYTES;
        Some(Call::Zero { handle, offset: offset_of(run.start), length, mode: ZeroMode::KeepSize })
    }
}

impl Sim {
    /// A slot of a client is free: it calls, or its client leaves.
    pub(super) fn begin(&mut self, at: usize, slot: usize, number: usize) {
        let mounted = self.clients[at].mount.as_ref().is_some_and(|mount| mount.number == number);
        if !mounted || self.clients[at].script.state != State::Live {
            return;
        }
        if self.clients[at].script.auditor {
            let script = &mut self.clients[at].script;
            return match script.audit.pop_front() {
                Some(call) => self.call(at, slot, call),
                None => self.unmount(at),
            };
        }
        let release = self.clients[at].script.holds.release(slot);
        if let Some(release) = release.filter(|_| self.calls_left == 0 || self.prng.chance(1, 4)) {
            return self.call(at, slot, release);
        }
        if self.calls_left == 0 {
            return;
        }
        if let Some(again) = self.clients[at].script.holds.again(slot) {
            return self.call(at, slot, again);
        }
        if self.phase == Phase::Hostile && self.prng.chance(1, self.setup.leave_one_in) {
            return self.depart(at);
        }
        let record = self.record.calls.len() as u64;
        let script = &mut self.clients[at].script;
        if script.handles.len() > HANDLES_MAX {
            let (handle, _) = script.handles.swap_remove(0);
            return self.call(at, slot, Call::Release { handle });
        }
        if script.readers.len() > READERS_MAX
            && let Some(handle) = script.readers.pop_front()
        {
            return self.call(at, slot, Call::Release { handle });
        }
        let call = script.draw(record, slot).unwrap_or(Call::Lookup { parent: InodeId::ROOT, name: script.name() });
        self.calls_left -= 1;
        let (one_in, latest_us) = match &call {
            // Early, while it is on its way; or late, while it waits.
            Call::SetLock { wait, .. } => (4, *script.prng.pick(&[5_000, if *wait { 5_000_000 } else { 5_000 }])),
            _ => (60, 300_000),
        };
        let cancel = script.prng.chance(1, one_in).then(|| Duration::from_micros(script.prng.between(100, latest_us)));
        let next = self.clients[at].mount.as_ref().map(|mount| CallId(mount.next_call()));
        self.call(at, slot, call);
        if let (Some(delay), Some(id)) = (cancel, next) {
            self.world.after(self.clients[at].actor, delay, Local::GiveUp { id, number });
        }
    }

    /// A caller gives up, if it still waits.
    pub(super) fn give_up(&mut self, at: usize, id: CallId, number: usize) {
        let waits = self.clients[at].mount.as_ref().is_some_and(|m| m.number == number && m.calls.contains_key(&id));
        if waits {
            self.client_input(at, Input::Cancel { id });
        }
    }

    pub(super) fn unmount(&mut self, at: usize) {
        self.clients[at].script.state = State::Leaving;
        self.call(at, LIFE, Call::Unmount);
    }

    /// A client unmounts, or dies.
    fn depart(&mut self, at: usize) {
        if self.prng.chance(2, 3) {
            return self.unmount(at);
        }
        self.stats.clients_died += 1;
        let actor = self.clients[at].actor;
        self.crash_actor(actor, holdfast_journal::memory::Loss::Process);
        let pause = Duration::from_millis(self.prng.between(1, 5_000));
        self.world.schedule_fault(self.world.now() + pause, holdfast_sim::Fault::Restart(actor));
    }

    /// A mount is over: another one follows after a while.
    pub(super) fn mount_over(&mut self, at: usize, number: usize) {
        if self.clients[at].mount.as_ref().is_none_or(|mount| mount.number != number) {
            return;
        }
        self.clients[at].mount = None;
        self.clients[at].script.state = State::Away;
        self.mount_later(at);
    }

    pub(super) fn mount_later(&mut self, at: usize) {
        let pause = Duration::from_millis(self.prng.between(10, self.setup.away_ms_max));
        self.world.after(self.clients[at].actor, pause, Local::MountNow);
    }

    /// The pause is over.
    pub(super) fn mount_now(&mut self, at: usize) {
        let script = &mut self.clients[at].script;
        if script.state == State::Away && (script.auditor || self.calls_left > 0) {
            script.state = State::Mounting;
            script.handles.clear();
            script.readers.clear();
            script.holds.clear();
            self.mount(at);
        }
    }

    /// A call has ended.
    pub(super) fn completed(&mut self, at: usize, number: usize, record: usize, slot: usize) {
        let call = self.record.calls[record].call.clone();
        let result = self.record.calls[record].returned.as_ref().map(|returned| returned.result.clone());
        let Some(result) = result else { return };
        let actor = self.clients[at].actor;
        match (&call, &result) {
            (Call::Mount, Ok(_)) => {
                self.stats.mounts += 1;
                self.clients[at].script.state = State::Live;
                let slots = if self.clients[at].script.auditor {
                    self.clients[at].script.audit.push_back(directory(InodeId::ROOT, 0));
                    1
                } else {
                    self.setup.slots
                };
                for slot in 0..slots {
                    self.world.after(actor, Duration::from_millis(1), Local::Begin { slot, number });
                }
                return;
            }
            (Call::Unmount, Ok(_)) => {
                self.record.mounts[number].clean = true;
                return;
            }
            (_, Err(ClientError::SessionOver { .. } | ClientError::Refused { .. })) => return,
            (_, Err(ClientError::Damaged | ClientError::Protocol { .. } | ClientError::NoSpace)) => {
                return self.fail(format!("client {at}: {call:?} failed: {result:?}"));
            }
            (_, Ok(reply)) => {
                self.clients[at].script.holds.learn(slot, &call, reply);
                self.learn(at, number, &call, reply);
            }
            (_, Err(ClientError::Namespace(NamespaceError::Stale | NamespaceError::NotFound) | ClientError::Stale)) => {
                if let Call::SetLock { inode, .. } = &call {
                    self.clients[at].script.holds.forget(*inode);
                }
                self.unlearn(at, &call);
            }
            (_, Err(ClientError::Interrupted)) => self.clients[at].script.holds.gave_up(slot, &call),
            (_, Err(_)) => {}
        }
        let think = if self.clients[at].script.auditor || self.prng.chance(1, 3) {
            Duration::from_micros(self.prng.below(2_000))
        } else {
            Duration::from_millis(self.prng.below(2 * self.setup.think_ms))
        };
        self.world.after(actor, think, Local::Begin { slot, number });
    }

    fn learn(&mut self, at: usize, number: usize, call: &Call, reply: &Reply) {
        let script = &mut self.clients[at].script;
        match (call, reply) {
            (Call::Lookup { .. }, Reply::Attributes(attributes)) => script.learn(attributes.inode, attributes.kind),
            (_, Reply::Created { attributes, handle, .. }) => {
                script.learn(attributes.inode, attributes.kind);
                if let Some(handle) = handle {
                    script.handles.push((*handle, attributes.inode));
                    self.record.handles.insert((number, *handle), attributes.inode);
                }
            }
            (_, Reply::Opened { handle, attributes, .. }) => {
                self.record.handles.insert((number, *handle), attributes.inode);
                if script.auditor {
                    script.read_all(*handle);
                } else if matches!(call, Call::Open { mode, .. } if mode.write) {
                    script.handles.push((*handle, attributes.inode));
                } else {
                    script.readers.push_back(*handle);
                }
            }
            (Call::ReadDirectory { inode, .. }, Reply::Directory { entries, end, .. }) => {
                for entry in entries {
                    script.learn(entry.inode, entry.kind);
                    if script.auditor
                        && let Some(attributes) = &entry.attributes
                    {
                        script.look_at(attributes);
                    }
                }
                if script.auditor
                    && !end
                    && let Some(last) = entries.last()
                {
                    script.audit.push_back(directory(*inode, last.cookie));
                }
            }
            (Call::ListXattrs { inode }, Reply::Names(names)) if script.auditor => {
                script.audit.extend(names.iter().map(|name| Call::GetXattr { inode: *inode, name: name.clone() }));
            }
            _ => {}
        }
    }

    fn unlearn(&mut self, at: usize, call: &Call) {
        let gone = match call {
            Call::GetAttributes { inode }
            | Call::SetAttributes { inode, .. }
            | Call::Open { inode, .. }
            | Call::Link { inode, .. }
            | Call::Fsync { inode, .. }
            | Call::SetLock { inode, .. }
            | Call::TestLock { inode, .. }
            | Call::ReadLink { inode }
            | Call::ListXattrs { inode }
            | Call::SetXattr { inode, .. }
            | Call::ReadDirectory { inode, .. } => *inode,
            Call::Create { parent, .. } | Call::Lookup { parent, .. } => *parent,
            _ => return,
        };
        // A name that is not there says nothing of its directory, most of the time.
        if !matches!(call, Call::Lookup { .. }) || self.prng.chance(1, 8) {
            self.clients[at].script.forget(gone);
        }
    }
}

impl Script {
    /// An auditor has found something.
    fn look_at(&mut self, attributes: &Attributes) {
        let inode = attributes.inode;
        match attributes.kind {
            FileKind::Directory => self.audit.push_back(directory(inode, 0)),
            FileKind::File => self.audit.push_back(Call::Open { inode, mode: OpenMode::default() }),
            FileKind::Symlink => self.audit.push_back(Call::ReadLink { inode }),
            FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => {}
        }
        self.audit.push_back(Call::ListXattrs { inode });
    }

    fn read_all(&mut self, handle: HandleId) {
        let length = (REGION * super::blocks::SLOT_BYTES) as u32;
        // In this order, and before anything else of the list.
        self.audit.push_front(Call::Release { handle });
        self.audit.push_front(Call::Read { handle, offset: offset_of(REGION), length });
        self.audit.push_front(Call::Read { handle, offset: 0, length });
    }
}

fn directory(inode: InodeId, after: u64) -> Call {
    Call::ReadDirectory { inode, after, limit: 4, plus: true }
}
