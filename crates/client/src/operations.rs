//! One `async` method per file-system operation, for callers that are not a kernel: tests, tools, drivers.

use crate::Client;
use bytes::Bytes;
use holdfast_client_core::{Call, ClientError, HandleId, OpenMode, Reply};
use holdfast_types::{FileName, InodeId};
use holdfast_wire::lock::{HeldLock, Lock};
use holdfast_wire::namespace::{
    Attributes, DirectoryEntry, NewNode, RenameMode, SetAttributes, VolumeUsage, XattrMode,
};

/// An open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The handle.
    pub handle: HandleId,
    /// Attributes when it was opened.
    pub attributes: Attributes,
    /// It did not exist before.
    pub new: bool,
}

fn odd<T>(_: Reply) -> Result<T, ClientError> {
    Err(ClientError::Protocol { detail: "a reply of another kind than the call" })
}

macro_rules! expect {
    ($self:ident, $call:expr, $pattern:pat => $value:expr) => {
        match $self.ask($call).await? {
            $pattern => Ok($value),
            other => odd(other),
        }
    };
}

/// Errors are those of the cluster and the namespace, see [`ClientError`]; what each operation does is said at [`Call`].
#[allow(clippy::missing_errors_doc)]
impl Client {
    /// [`Call::Lookup`]
    pub async fn lookup(&self, parent: InodeId, name: FileName) -> Result<Attributes, ClientError> {
        expect!(self, Call::Lookup { parent, name }, Reply::Attributes(a) => a)
    }

    /// [`Call::GetAttributes`]
    pub async fn attributes(&self, inode: InodeId) -> Result<Attributes, ClientError> {
        expect!(self, Call::GetAttributes { inode }, Reply::Attributes(a) => a)
    }

    /// [`Call::SetAttributes`]
    pub async fn set_attributes(&self, inode: InodeId, set: SetAttributes) -> Result<Attributes, ClientError> {
        expect!(self, Call::SetAttributes { inode, set }, Reply::Attributes(a) => a)
    }

    /// [`Call::Create`] of anything, exclusively, by root, without opening it.
    pub async fn make(
        &self,
        parent: InodeId,
        name: FileName,
        node: NewNode,
        mode: u16,
    ) -> Result<Attributes, ClientError> {
        let call = Call::Create { parent, name, node, mode, umask: 0, uid: 0, gid: 0, exclusive: true, open: None };
        expect!(self, call, Reply::Created { attributes, .. } => attributes)
    }

    /// [`Call::Create`] of a file by root, as `open(O_CREAT)` does.
    pub async fn create(
        &self,
        parent: InodeId,
        name: FileName,
        mode: u16,
        open: OpenMode,
    ) -> Result<Opened, ClientError> {
        let node = NewNode::File;
        let call =
            Call::Create { parent, name, node, mode, umask: 0, uid: 0, gid: 0, exclusive: false, open: Some(open) };
        expect!(self, call, Reply::Created { attributes, new, handle: Some(handle) } => Opened { handle, attributes, new })
    }

    /// [`Call::Link`]
    pub async fn link(&self, inode: InodeId, parent: InodeId, name: FileName) -> Result<Attributes, ClientError> {
        expect!(self, Call::Link { inode, parent, name }, Reply::Attributes(a) => a)
    }

    /// [`Call::Unlink`]
    pub async fn unlink(&self, parent: InodeId, name: FileName) -> Result<(), ClientError> {
        expect!(self, Call::Unlink { parent, name }, Reply::Removed(_) => ())
    }

    /// [`Call::RemoveDirectory`]
    pub async fn remove_directory(&self, parent: InodeId, name: FileName) -> Result<(), ClientError> {
        expect!(self, Call::RemoveDirectory { parent, name }, Reply::Removed(_) => ())
    }

    /// [`Call::Rename`]
    pub async fn rename(
        &self,
        from: (InodeId, FileName),
        to: (InodeId, FileName),
        mode: RenameMode,
    ) -> Result<(), ClientError> {
        let ((from_parent, from_name), (to_parent, to_name)) = (from, to);
        expect!(self, Call::Rename { from_parent, from_name, to_parent, to_name, mode }, Reply::Removed(_) => ())
    }

    /// [`Call::ReadLink`]
    pub async fn read_link(&self, inode: InodeId) -> Result<Bytes, ClientError> {
        expect!(self, Call::ReadLink { inode }, Reply::Bytes(b) => b)
    }

    /// [`Call::Open`]
    pub async fn open(&self, inode: InodeId, mode: OpenMode) -> Result<Opened, ClientError> {
        expect!(self, Call::Open { inode, mode }, Reply::Opened { handle, attributes, .. } => Opened { handle, attributes, new: false })
    }

    /// [`Call::Release`]
    pub async fn release(&self, handle: HandleId) -> Result<(), ClientError> {
        expect!(self, Call::Release { handle }, Reply::Done => ())
    }

    /// [`Call::Flush`]
    pub async fn flush(&self, handle: HandleId) -> Result<(), ClientError> {
        expect!(self, Call::Flush { handle }, Reply::Done => ())
    }

    /// [`Call::Read`], in one run of bytes.
    pub async fn read(&self, handle: HandleId, offset: u64, length: u32) -> Result<Bytes, ClientError> {
        expect!(self, Call::Read { handle, offset, length }, Reply::Data(data) => data.into_bytes())
    }

    /// [`Call::Write`]
    pub async fn write(&self, handle: HandleId, offset: u64, data: Bytes) -> Result<u32, ClientError> {
        let call = Call::Write { handle, offset, data, clear_set_ids: false };
        expect!(self, call, Reply::Written { length, .. } => length)
    }

    /// [`Call::Fsync`]
    pub async fn fsync(&self, inode: InodeId, data_only: bool) -> Result<(), ClientError> {
        expect!(self, Call::Fsync { inode, data_only }, Reply::Done => ())
    }

    /// [`Call::SyncAll`]
    pub async fn sync_all(&self) -> Result<(), ClientError> {
        expect!(self, Call::SyncAll, Reply::Done => ())
    }

    /// [`Call::ReadDirectory`]: entries, and whether they are the last.
    pub async fn read_directory(
        &self,
        inode: InodeId,
        after: u64,
        limit: u32,
    ) -> Result<(Vec<DirectoryEntry>, bool), ClientError> {
        let call = Call::ReadDirectory { inode, after, limit, plus: true };
        expect!(self, call, Reply::Directory { entries, end, .. } => (entries, end))
    }

    /// [`Call::GetXattr`]
    pub async fn xattr(&self, inode: InodeId, name: Bytes) -> Result<Bytes, ClientError> {
        expect!(self, Call::GetXattr { inode, name }, Reply::Bytes(b) => b)
    }

    /// [`Call::ListXattrs`]
    pub async fn xattrs(&self, inode: InodeId) -> Result<Vec<Bytes>, ClientError> {
        expect!(self, Call::ListXattrs { inode }, Reply::Names(names) => names)
    }

    /// [`Call::SetXattr`]
    pub async fn set_xattr(
        &self,
        inode: InodeId,
        name: Bytes,
        value: Bytes,
        mode: XattrMode,
    ) -> Result<(), ClientError> {
        expect!(self, Call::SetXattr { inode, name, value, mode }, Reply::Done => ())
    }

    /// [`Call::RemoveXattr`]
    pub async fn remove_xattr(&self, inode: InodeId, name: Bytes) -> Result<(), ClientError> {
        expect!(self, Call::RemoveXattr { inode, name }, Reply::Done => ())
    }

    /// [`Call::SetLock`]: whether it was granted.
    pub async fn set_lock(&self, inode: InodeId, lock: Lock, wait: bool) -> Result<bool, ClientError> {
        expect!(self, Call::SetLock { inode, lock, wait }, Reply::Locked { granted } => granted)
    }

    /// [`Call::TestLock`]
    pub async fn test_lock(&self, inode: InodeId, lock: Lock) -> Result<Option<HeldLock>, ClientError> {
        expect!(self, Call::TestLock { inode, lock }, Reply::Conflict(conflict) => conflict)
    }

    /// [`Call::StatVolume`]
    pub async fn usage(&self) -> Result<VolumeUsage, ClientError> {
        expect!(self, Call::StatVolume, Reply::Usage(u) => u)
    }

    /// [`Call::Unmount`]
    pub async fn unmount(&self) -> Result<(), ClientError> {
        expect!(self, Call::Unmount, Reply::Done => ())
    }
}
