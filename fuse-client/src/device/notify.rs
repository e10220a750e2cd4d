//! What we tell the kernel unasked: forget attributes, pages and names.
//!
//! Most of these calls may wait inside the kernel for a directory's lock or for a page that is being read, both of which may be waiting for
//! an answer of ours: they are made only by threads that serve no request (see `invalidate`).

use super::Channel;
use super::abi::{self, NOTIFY_INC_EPOCH, NOTIFY_INVAL_ENTRY, NOTIFY_INVAL_INODE};
use super::encode;
use super::session::Negotiated;
use super::transport::Transport;
use holdfast_types::InodeId;
use rustix::io::Errno;
use std::sync::Arc;

/// What the kernel keeps of ours.
pub trait KernelCache: Send + Sync + 'static {
    /// Forgets the attributes and pages of an inode; dirty mapped pages are written first. May wait.
    fn forget_inode(&self, inode: InodeId);
    /// Forgets the attributes of an inode. Does not wait, so any thread may call it.
    fn forget_attributes(&self, inode: InodeId);
    /// Lets a name be looked up again before its next use. May wait.
    fn forget_name(&self, parent: InodeId, name: &[u8]);
    /// Forgets all names without waiting; false if this kernel cannot.
    fn forget_all_names(&self) -> bool;
}

/// The kernel behind a mount.
#[derive(Debug)]
pub struct Notifier<T = Channel> {
    channel: Arc<T>,
    negotiated: Negotiated,
}

// Not derived: it does not copy the transport.
impl<T> Clone for Notifier<T> {
    fn clone(&self) -> Self {
        Self { channel: self.channel.clone(), negotiated: self.negotiated }
    }
}

impl<T: Transport> Notifier<T> {
    /// For the mount behind `channel`.
    pub fn new(channel: Arc<T>, negotiated: Negotiated) -> Self {
        Self { channel, negotiated }
    }

    fn notify(&self, code: i32, body: &[u8]) -> Result<(), Errno> {
        match self.channel.send_message(0, code, body, &[]) {
            // The kernel does not know it any more, or is gone.
            Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED | Errno::NOTCONN) => Ok(()),
            result => result,
        }
    }
}

impl<T: Transport> KernelCache for Notifier<T> {
    fn forget_inode(&self, inode: InodeId) {
        if let Err(errno) = self.notify(NOTIFY_INVAL_INODE, &encode::inval_inode(inode.0, 0)) {
            tracing::warn!(%inode, %errno, "kernel did not invalidate an inode");
        }
    }

    fn forget_attributes(&self, inode: InodeId) {
        if let Err(errno) = self.notify(NOTIFY_INVAL_INODE, &encode::inval_inode(inode.0, -1)) {
            tracing::warn!(%inode, %errno, "kernel did not invalidate attributes");
        }
    }

    fn forget_name(&self, parent: InodeId, name: &[u8]) {
        // Expiring leaves the name in place, so working directories and mounts below it survive; before Linux 6.2 it is dropped.
        let body = encode::inval_entry(parent.0, name, self.negotiated.has(abi::init::HAS_EXPIRE_ONLY));
        if let Err(errno) = self.notify(NOTIFY_INVAL_ENTRY, &body) {
            tracing::warn!(%parent, name = %name.escape_ascii(), %errno, "kernel did not invalidate a name");
        }
    }

    fn forget_all_names(&self) -> bool {
        self.negotiated.minor >= abi::MINOR_EPOCH && self.notify(NOTIFY_INC_EPOCH, &[]).is_ok()
    }
}
