//! Ranges that are made zeros: `fallocate(2)` with its flags that punch holes and zero ranges.

use crate::call::{Call, CallId, Reply, ZeroMode};
use crate::core::ClientCore;
use crate::data::{DataPurpose, chunk_key};
use crate::error::ClientError;
use crate::file::{Change, Lane, Sync, Waiter};
use crate::read::Content;
use holdfast_types::InodeId;
use holdfast_types::limits::FILE_BYTES_MAX;
use holdfast_types::size::pieces;
use holdfast_wire::chunk::ChunkOp;
use holdfast_wire::namespace::{NamespaceError, SetAttributes, SetTime};

impl ClientCore {
    /// Takes such a call; it waits for its turn in the file's lane.
    pub(crate) fn zero(&mut self, id: CallId, call: Call) {
        let Call::Zero { handle, offset, length, mode } = call else { return };
        let Some(open) = self.handles.get(&handle) else { return self.complete(id, Err(ClientError::BadHandle)) };
        let inode = open.inode;
        if self.config.read_only {
            return self.complete(id, Err(NamespaceError::ReadOnly.into()));
        }
        if offset.checked_add(length).is_none_or(|end| end > FILE_BYTES_MAX) {
            return self.complete(id, Err(NamespaceError::TooLarge.into()));
        }
        let through = self.write_through();
        let file = self.files.get_mut(&inode).expect("a handle keeps its file");
        if through {
            file.wants_fresh = file.number_next;
            file.number_next += 1;
        }
        file.changes.push_back(Change::Zero { id, offset, length, extend: mode == ZeroMode::Extend });
        self.touched.insert(inode);
    }

    pub(crate) fn run_zero(&mut self, id: CallId, inode: InodeId, offset: u64, length: u64, extend: bool) {
        let volume = self.session.volume().clone();
        let stamp = self.stamp();
        let now = self.now;
        let Some(file) = self.files.get_mut(&inode) else { return };
        let end = if extend { offset + length } else { (offset + length).min(file.size()) };
        let grows = extend && end > file.size();
        let nothing = offset >= end;
        if grows || nothing {
            // What the inode alone can say is said afterwards: the new size, or the time where no byte was to be changed.
            let (size, mtime) = (grows.then_some(end), nothing.then_some(SetTime::Now));
            let set = SetAttributes { size, mtime, ..SetAttributes::default() };
            file.changes.push_front(Change::Set { id, set, quiet: true });
        }
        if nothing {
            self.touched.insert(inode);
            return;
        }
        // A buffered end of the file must stay its end: only the size of what is cut may vanish with it.
        let size = file.size();
        let replaced = file.dirty.cut(offset, end);
        file.cut_unconfirmed(offset, end);
        if file.size() < size {
            let last = bytes::Bytes::from_static(&[0]);
            let fresh = (file.number_next, now);
            file.number_next += 1;
            // Who waits for a write that made the file so long waits for this byte in its place.
            let (number, since) = replaced.unwrap_or(fresh);
            file.dirty.insert(size - 1, last, number, since);
        }
        file.mtime = Some(stamp);
        file.sparse = !file.base.sparse;
        file.written_at = now;
        let target = file.number_next;
        file.number_next += 1;
        let stored = end.min(file.stored_end()).min(file.base.trim_from.unwrap_or(u64::MAX));
        let parts: Vec<_> = pieces(offset, stored.saturating_sub(offset)).collect();
        file.lane = (!parts.is_empty()).then_some(Lane::Change { left: parts.len() });
        if !grows {
            // Zeros are durable when storage has answered; their time is published at once only if nothing is buffered.
            let data_only = !self.write_through();
            let file = self.files.get_mut(&inode).expect("seen above");
            file.syncs.push(Sync { target, data_only, waiter: Waiter::Call(id, Reply::Done) });
        }
        let keys: Vec<_> = parts.iter().map(|p| chunk_key(&volume, &self.files[&inode].base, p.index)).collect();
        self.pages.remove(inode, offset, end);
        if self.shares() {
            self.reads.overwritten(inode, offset, end);
        } else {
            self.reads.replaced(inode, offset, end, &Content::Zeros, self.write_through().then_some(target));
        }
        self.recount(inode);
        for (part, chunk) in parts.into_iter().zip(keys) {
            let op = ChunkOp::Zero { chunk, offset: part.offset, length: part.length };
            self.data_start(part.index, inode, op, Vec::new(), DataPurpose::Zero { inode });
        }
        self.touched.insert(inode);
    }

    /// One part of a range reads as zeros, or never will.
    pub(crate) fn zeroed(&mut self, inode: InodeId, result: Result<(), ClientError>) {
        self.touched.insert(inode);
        let Some(file) = self.files.get_mut(&inode) else { return };
        if let Some(Lane::Change { left }) = &mut file.lane {
            *left -= 1;
            if *left == 0 {
                file.lane = None;
            }
        }
        if let Err(error) = result {
            self.lost(inode, 0, error);
        }
    }
}
