//! Operations on names: lookup, creation, removal, renaming.

use super::{FileSystem, TIMEOUT_MAX, Volume, name_of, unexpected};
use crate::device::{Answer, Caller, Reply};
use crate::errno;
use bytes::Bytes;
use holdfast_client::{Call, ClientError, Reply as Answered};
use holdfast_types::InodeId;
use holdfast_wire::namespace::{NamespaceError, NewNode, RenameMode};
use rustix::io::Errno;
use std::sync::Arc;

impl<V: Volume> FileSystem<V> {
    pub(super) fn lookup(self: &Arc<Self>, reply: Reply, parent: InodeId, name: &[u8]) {
        let Some((name, reply)) = name_of(name, reply) else { return };
        let call = Call::Lookup { parent, name: name.clone() };
        self.ask_all(reply, call, move |fs, reply, result| match result {
            Ok(Answered::Attributes(attributes)) => fs.answer_entry(reply, parent, &name, attributes),
            Ok(_) => unexpected(reply),
            Err(ClientError::Namespace(NamespaceError::NotFound)) => {
                let pass = fs.pass();
                // Absent names are cached too: compilers and shells look for the same ones again and again.
                if !pass.valid.is_zero() && fs.known.told_name(parent, name.as_bytes(), pass.valid) {
                    reply.finish(Ok(Answer::Absent(pass.valid)));
                } else {
                    reply.error(Errno::NOENT);
                }
            }
            Err(error) => reply.error(errno::of_client(&error)),
        });
    }

    fn make(
        self: &Arc<Self>,
        reply: Reply,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        (mode, umask): (u32, u32),
        node: NewNode,
    ) {
        let Some((name, reply)) = name_of(name, reply) else { return };
        let call = Call::Create {
            parent,
            name: name.clone(),
            node,
            mode: permissions(mode),
            umask: permissions(umask),
            uid: caller.uid,
            gid: caller.gid,
            exclusive: true,
            open: None,
        };
        self.ask(reply, call, move |fs, reply, answered| match answered {
            Answered::Created { attributes, .. } => fs.answer_entry(reply, parent, &name, attributes),
            _ => unexpected(reply),
        });
    }

    pub(super) fn symlink(self: &Arc<Self>, reply: Reply, caller: Caller, parent: InodeId, name: &[u8], target: &[u8]) {
        let node = NewNode::Symlink(Bytes::copy_from_slice(target));
        self.make(reply, caller, parent, name, (0o777, 0), node);
    }

    pub(super) fn make_directory(
        self: &Arc<Self>,
        reply: Reply,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        mode: (u32, u32),
    ) {
        self.make(reply, caller, parent, name, mode, NewNode::Directory);
    }

    pub(super) fn make_node(
        self: &Arc<Self>,
        reply: Reply,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        mode: (u32, u32),
        rdev: u32,
    ) {
        let node = match mode.0 & libc::S_IFMT {
            0 | libc::S_IFREG => NewNode::File,
            libc::S_IFIFO => NewNode::Fifo,
            libc::S_IFSOCK => NewNode::Socket,
            libc::S_IFCHR => NewNode::CharDevice(rdev),
            libc::S_IFBLK => NewNode::BlockDevice(rdev),
            _ => return reply.error(Errno::INVAL),
        };
        self.make(reply, caller, parent, name, mode, node);
    }

    pub(super) fn link(self: &Arc<Self>, reply: Reply, inode: InodeId, parent: InodeId, name: &[u8]) {
        let Some((name, reply)) = name_of(name, reply) else { return };
        let call = Call::Link { inode, parent, name: name.clone() };
        self.ask(reply, call, move |fs, reply, answered| match answered {
            Answered::Attributes(attributes) => fs.answer_entry(reply, parent, &name, attributes),
            _ => unexpected(reply),
        });
    }

    pub(super) fn unlink(self: &Arc<Self>, reply: Reply, parent: InodeId, name: &[u8]) {
        let Some((name, reply)) = name_of(name, reply) else { return };
        self.remove(reply, Call::Unlink { parent, name });
    }

    pub(super) fn remove_directory(self: &Arc<Self>, reply: Reply, parent: InodeId, name: &[u8]) {
        let Some((name, reply)) = name_of(name, reply) else { return };
        self.remove(reply, Call::RemoveDirectory { parent, name });
    }

    fn remove(self: &Arc<Self>, reply: Reply, call: Call) {
        self.ask(reply, call, |fs, reply, answered| {
            fs.removed(answered);
            reply.done();
        });
    }

    /// What is gone with its last name can still be asked for by whoever has it open, or is in it.
    fn removed(&self, answered: Answered) {
        if let Answered::Removed(Some(gone)) = answered {
            self.known.gone(gone);
        }
    }

    pub(super) fn rename(self: &Arc<Self>, reply: Reply, from: (InodeId, &[u8]), to: (InodeId, &[u8]), flags: u32) {
        let Some((from_name, reply)) = name_of(from.1, reply) else { return };
        let Some((to_name, reply)) = name_of(to.1, reply) else { return };
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            // Whiteouts are for the upper layer of an overlay; no file system has to have them.
            _ => return reply.error(Errno::INVAL),
        };
        // The kernel's entries move with their timeouts: what it believed of the old name it now believes of the new one.
        let mut believed = vec![(to.0, to_name.clone())];
        if mode == RenameMode::Exchange {
            believed.push((from.0, from_name.clone()));
        }
        let call = Call::Rename { from_parent: from.0, from_name, to_parent: to.0, to_name, mode };
        self.ask(reply, call, move |fs, reply, answered| {
            fs.removed(answered);
            let pass = fs.pass();
            if !pass.valid.is_zero() {
                for (parent, name) in believed {
                    fs.known.told_name(parent, name.as_bytes(), TIMEOUT_MAX);
                }
            }
            reply.done();
        });
    }

    pub(super) fn read_link(self: &Arc<Self>, reply: Reply, inode: InodeId) {
        self.ask(reply, Call::ReadLink { inode }, |_, reply, answered| match answered {
            Answered::Bytes(target) => reply.finish(Ok(Answer::Data(vec![target]))),
            _ => unexpected(reply),
        });
    }
}

/// Permission bits of a mode.
pub(super) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}
