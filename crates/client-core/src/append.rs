//! Appending while others may append, too.
//!
//! A session that caches is alone on its volume and knows where a file ends. Otherwise appends of a file wait here for their turn:
//! ```text
//! reserve room beyond the end ──answer: the size, and nobody else moves it now──▶ write there, publish, give the room back
//! ```
//! The service lets one session at a time have room beyond the end, so the turn is over when everything is published and given back.

use crate::call::{Call, CallId};
use crate::control::Purpose;
use crate::core::ClientCore;
use crate::error::ClientError;
use crate::file::{File, Lane};
use crate::lane::TRIM_HOLD;
use holdfast_types::{InodeId, ShardId};
use holdfast_wire::metadata::Request;
use holdfast_wire::namespace::{Mutation, NamespaceError, Outcome};

fn length(call: &Call) -> u64 {
    match call {
        Call::Write { data, .. } => data.len() as u64,
        _ => 0,
    }
}

/// The end of a file if everything that waits were appended.
fn wanted_end(file: &File) -> u64 {
    file.appends.iter().fold(file.size(), |end, (_, call)| end.saturating_add(length(call)))
}

impl ClientCore {
    /// Begins a turn at the end of a file; its lane is free and it holds no room there.
    pub(crate) fn begin_appends(&mut self, inode: InodeId) {
        if self.caching() {
            return self.append_what_fits(inode, u64::MAX);
        }
        let Some(file) = self.files.get_mut(&inode) else { return };
        let bound = wanted_end(file);
        file.lane = Some(Lane::Reserve);
        file.asked_bound = bound;
        let mutation = Mutation::Reserve { inode, generation: file.base.generation, bound, least: bound };
        let purpose = Purpose::ReserveEnd(inode);
        self.control_start(ShardId::VOLUMES, Request::Mutate(mutation), purpose, Some(TRIM_HOLD));
    }

    pub(crate) fn end_reserved(&mut self, inode: InodeId, result: Result<Outcome, ClientError>) {
        self.touched.insert(inode);
        let Some(file) = self.files.get_mut(&inode) else { return };
        file.lane = None;
        match result {
            Ok(_) => {
                file.hold_bound();
                // A truncation that waits comes first; the turn is given back, and another one follows.
                if !file.is_changing() {
                    self.take_turn(inode);
                }
            }
            Err(ClientError::Namespace(NamespaceError::NotFound)) => self.vanished(inode),
            Err(ClientError::Namespace(NamespaceError::Stale)) => file.refresh = true,
            Err(error) => self.fail_appends(inode, &error),
        }
    }

    /// Nobody else moves the end now.
    fn take_turn(&mut self, inode: InodeId) {
        let Some(file) = self.files.get(&inode) else { return };
        let limit = file.base.size_bound;
        let first = file.appends.first().map_or(0, |(_, call)| length(call));
        if file.size().saturating_add(first) <= limit {
            self.append_what_fits(inode, limit);
        } else if file.asked_bound < wanted_end(file) {
            // Somebody has appended before us: the end is known now, and stays where it is while we ask for more.
            self.begin_appends(inode);
        } else {
            self.fail_appends(inode, &ClientError::Protocol { detail: "less room was given than asked for" });
        }
    }

    fn append_what_fits(&mut self, inode: InodeId, limit: u64) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        let mut waiting = std::mem::take(&mut file.appends).into_iter();
        while let Some((id, call)) = waiting.next() {
            let Some(file) = self.files.get_mut(&inode) else { return };
            if file.size().saturating_add(length(&call)) > limit {
                file.appends.push((id, call));
                file.appends.extend(waiting);
                return;
            }
            // A call that nobody waits for any more was interrupted before it began.
            if self.waits(id) {
                self.write_now(id, call);
            }
        }
    }

    /// What waits for its turn will not have one.
    pub(crate) fn fail_appends(&mut self, inode: InodeId, error: &ClientError) {
        let waiting = self.files.get_mut(&inode).map(|file| std::mem::take(&mut file.appends));
        let waiting: Vec<(CallId, Call)> = waiting.unwrap_or_default();
        for (id, _) in waiting {
            self.complete(id, Err(error.clone()));
        }
    }
}
