//! Listing directories.
//!
//! A position is the cookie of the entry before it: 1 is after `.`, 2 after `..`, above that what the service gave. Positions stay
//! valid while entries come and go, so no state is kept between two requests, and nothing listed is older than its request.

use super::{FileSystem, Volume, unexpected};
use crate::device::{Answer, DirectoryBuffer, Listed, OpenHints, Reply};
use holdfast_client::{Call, Reply as Answered};
use holdfast_types::InodeId;
use holdfast_wire::namespace::{DirectoryEntry, FileKind};
use std::sync::Arc;

/// Position after `.`.
const AFTER_SELF: u64 = 1;
/// Position after `..`.
const AFTER_PARENT: u64 = 2;
/// Entries asked for at once, at the most.
const ENTRIES_MAX: u32 = 10_000;

impl<V: Volume> FileSystem<V> {
    pub(super) fn open_directory(&self, reply: Reply) {
        reply.finish(Ok(Answer::Opened(0, OpenHints::default())));
    }

    pub(super) fn read_directory(self: &Arc<Self>, reply: Reply, inode: InodeId, offset: u64, size: u32, plus: bool) {
        let buffer = DirectoryBuffer::new(size, plus);
        let after = if offset <= AFTER_PARENT { 0 } else { offset };
        let limit = buffer.capacity().min(ENTRIES_MAX);
        let call = Call::ReadDirectory { inode, after, limit, plus };
        self.ask(reply, call, move |fs, reply, answered| match answered {
            Answered::Directory { entries, parent, .. } => {
                fs.answer_directory(reply, buffer, (inode, parent), offset, entries);
            }
            _ => unexpected(reply),
        });
    }

    fn answer_directory(
        &self,
        reply: Reply,
        mut buffer: DirectoryBuffer,
        (inode, parent): (InodeId, InodeId),
        offset: u64,
        entries: Vec<DirectoryEntry>,
    ) {
        let dots = [(&b"."[..], inode, AFTER_SELF), (&b".."[..], parent, AFTER_PARENT)];
        for (name, inode, cookie) in dots.into_iter().filter(|(_, _, cookie)| *cookie > offset) {
            if !buffer.add(&Listed { name, inode, kind: FileKind::Directory, cookie, entry: None }) {
                return reply.finish(Ok(Answer::Directory(buffer)));
            }
        }
        let pass = self.pass();
        for entry in entries {
            let name = entry.name.as_bytes();
            let attributes = if buffer.is_plus() { entry.attributes } else { None };
            let looked_up = attributes.map(|attributes| self.entry(&pass, inode, name, attributes));
            let listed =
                Listed { name, inode: entry.inode, kind: entry.kind, cookie: entry.cookie, entry: looked_up.as_ref() };
            if !buffer.add(&listed) {
                if looked_up.is_some() {
                    self.known.forgotten(entry.inode, 1);
                }
                break;
            }
        }
        reply.finish(Ok(Answer::Directory(buffer)));
    }
}
