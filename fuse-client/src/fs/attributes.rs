//! Attributes, extended attributes, totals.

use super::names::permissions;
use super::waiting::Patience;
use super::{FileSystem, Volume, is_empty, unexpected};
use crate::device::{Answer, Caller, NewAttributes, Reply};
use crate::errno;
use bytes::{BufMut, Bytes, BytesMut};
use holdfast_client::{Call, ClientError, Reply as Answered};
use holdfast_types::InodeId;
use holdfast_types::limits::{FILE_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use holdfast_wire::namespace::{FileKind, NamespaceError, SetAttributes, XattrMode, without_set_ids};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Duration;

impl<V: Volume> FileSystem<V> {
    pub(super) fn get_attributes(self: &Arc<Self>, reply: Reply, inode: InodeId) {
        if let Some(last) = self.known.last_of(inode) {
            return self.answer_attributes(reply, last);
        }
        let patience = if inode == InodeId::ROOT { Patience::LongUnlessUnmounting } else { Patience::Long };
        self.ask_within(reply, Call::GetAttributes { inode }, patience, |fs, reply, answered| match answered {
            Answered::Attributes(attributes) => fs.answer_attributes(reply, attributes),
            _ => unexpected(reply),
        });
    }

    /// With the time of birth, which `stat(2)` does not show.
    pub(super) fn get_all_attributes(self: &Arc<Self>, reply: Reply, inode: InodeId) {
        if let Some(last) = self.known.last_of(inode) {
            return reply.finish(Ok(Answer::AllAttributes(last, Duration::ZERO)));
        }
        self.ask(reply, Call::GetAttributes { inode }, |fs, reply, answered| match answered {
            Answered::Attributes(attributes) => {
                let pass = fs.pass();
                fs.known.told_attributes(&attributes, pass.valid);
                reply.finish(Ok(Answer::AllAttributes(attributes, pass.valid)));
            }
            _ => unexpected(reply),
        });
    }

    pub(super) fn set_attributes(self: &Arc<Self>, reply: Reply, caller: Caller, inode: InodeId, new: &NewAttributes) {
        if is_empty(new) {
            return self.change_no_owner(reply, caller, inode);
        }
        if new.size.is_some_and(|size| size > FILE_BYTES_MAX) {
            return reply.error(Errno::FBIG);
        }
        // As Linux does it: a change of owner takes set-id bits from everything but directories, whoever makes it; a change of
        // size takes them when the caller lacks the privilege, which the kernel tells. (It does not touch the mode itself,
        // because HANDLE_KILLPRIV_V2 is negotiated.)
        let owner_changes = new.uid.is_some() || new.gid.is_some();
        let clear_owner = owner_changes && self.known.kind(inode) != Some(FileKind::Directory);
        let set = SetAttributes {
            mode: new.mode.map(permissions),
            uid: new.uid,
            gid: new.gid,
            size: new.size,
            atime: new.atime,
            mtime: new.mtime,
            clear_set_ids: new.mode.is_none() && (clear_owner || (new.size.is_some() && new.kill_set_ids)),
        };
        self.set(reply, inode, set);
    }

    /// `chown(2)` to nobody else, or a `fallocate(2)` that takes set-id bits (the kernel asks for both alike, and the second takes them
    /// itself). Linux moves the time of change and takes set-id bits, which is a change of mode: not for everybody to make. Linux refuses
    /// it with `EPERM`; here that would refuse the second as well.
    fn change_no_owner(self: &Arc<Self>, reply: Reply, caller: Caller, inode: InodeId) {
        self.ask(reply, Call::GetAttributes { inode }, move |fs, reply, answered| match answered {
            Answered::Attributes(attributes) => {
                if caller.uid != 0 && caller.uid != attributes.uid {
                    return fs.answer_attributes(reply, attributes);
                }
                let clear_set_ids =
                    attributes.kind != FileKind::Directory && without_set_ids(attributes.mode) != attributes.mode;
                fs.set(reply, inode, SetAttributes { clear_set_ids, ..SetAttributes::default() });
            }
            _ => unexpected(reply),
        });
    }

    fn set(self: &Arc<Self>, reply: Reply, inode: InodeId, set: SetAttributes) {
        self.ask(reply, Call::SetAttributes { inode, set }, |fs, reply, answered| match answered {
            Answered::Attributes(attributes) => fs.answer_attributes(reply, attributes),
            _ => unexpected(reply),
        });
    }

    pub(super) fn stat_volume(self: &Arc<Self>, reply: Reply) {
        self.ask_within(reply, Call::StatVolume, Patience::LongUnlessUnmounting, |_, reply, answered| match answered {
            Answered::Usage(usage) => reply.finish(Ok(Answer::Usage(usage))),
            _ => unexpected(reply),
        });
    }

    pub(super) fn set_xattr(self: &Arc<Self>, reply: Reply, inode: InodeId, name: &[u8], value: &[u8], flags: u32) {
        let Some(reply) = xattr_name_allowed(name, reply) else { return };
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return reply.error(Errno::TOOBIG);
        }
        let mode = match i32::try_from(flags) {
            Ok(0) => XattrMode::Set,
            Ok(libc::XATTR_CREATE) => XattrMode::Create,
            Ok(libc::XATTR_REPLACE) => XattrMode::Replace,
            _ => return reply.error(Errno::INVAL),
        };
        let (name, value) = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
        self.ask_done(reply, Call::SetXattr { inode, name, value, mode });
    }

    /// Access lists; the kernel has checked that the caller may, and what it gives is well-formed.
    pub(super) fn set_acl(
        self: &Arc<Self>,
        reply: Reply,
        inode: InodeId,
        default: bool,
        value: Option<&[u8]>,
        clear_set_group_id: bool,
    ) {
        let value = value.map(Bytes::copy_from_slice);
        let removes = value.is_none();
        let call = Call::SetAcl { inode, default, value, clear_set_group_id };
        self.ask_all(reply, call, move |_, reply, result| match result {
            Ok(_) => reply.done(),
            // One that was not there is gone.
            Err(ClientError::Namespace(NamespaceError::NoAttribute)) if removes => reply.done(),
            Err(error) => reply.error(errno::of_client(&error)),
        });
    }

    pub(super) fn get_xattr(self: &Arc<Self>, reply: Reply, inode: InodeId, name: &[u8], size: u32) {
        let Some(reply) = xattr_name_allowed(name, reply) else { return };
        let call = Call::GetXattr { inode, name: Bytes::copy_from_slice(name) };
        self.ask(reply, call, move |_, reply, answered| match answered {
            Answered::Bytes(value) => reply.finish(sized(value, size)),
            _ => unexpected(reply),
        });
    }

    pub(super) fn list_xattrs(self: &Arc<Self>, reply: Reply, inode: InodeId, size: u32) {
        self.ask(reply, Call::ListXattrs { inode }, move |_, reply, answered| match answered {
            Answered::Names(names) => {
                let mut list = BytesMut::with_capacity(names.iter().map(|name| name.len() + 1).sum());
                for name in names {
                    list.put(name);
                    list.put_u8(0);
                }
                reply.finish(sized(list.freeze(), size));
            }
            _ => unexpected(reply),
        });
    }

    pub(super) fn remove_xattr(self: &Arc<Self>, reply: Reply, inode: InodeId, name: &[u8]) {
        let Some(reply) = xattr_name_allowed(name, reply) else { return };
        self.ask_done(reply, Call::RemoveXattr { inode, name: Bytes::copy_from_slice(name) });
    }
}

/// A value as `getxattr(2)` wants it: asked with size 0, its size; else the value if it fits.
fn sized(value: Bytes, size: u32) -> Result<Answer, Errno> {
    let length = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
    if size == 0 {
        Ok(Answer::XattrSize(length))
    } else if length > size {
        Err(Errno::RANGE)
    } else {
        Ok(Answer::Data(vec![value]))
    }
}

/// Answers `EOPNOTSUPP` for `system.*` but access lists: what is stored but not obeyed would be a lie.
fn xattr_name_allowed(name: &[u8], reply: Reply) -> Option<Reply> {
    if name.starts_with(b"system.") && super::acl_of(name).is_none() {
        reply.error(Errno::OPNOTSUPP);
        return None;
    }
    if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
        reply.error(Errno::RANGE);
        return None;
    }
    Some(reply)
}
