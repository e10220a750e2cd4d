//! Why a call fails. The table from these to errno is in `fuse-client/src/errno.rs`.

use holdfast_wire::namespace::NamespaceError;

/// Why a call fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The namespace refuses: a final answer.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The caller gave up (EINTR). What was sent may take effect.
    #[error("interrupted")]
    Interrupted,
    /// A soft mount waited long enough (EIO or ETIMEDOUT). What was sent may take effect.
    #[error("the cluster did not answer in time")]
    TimedOut,
    /// The session is over: fenced, unmounted, or refused (EIO).
    #[error("session is over: {reason}")]
    SessionOver {
        /// Why.
        reason: String,
    },
    /// The storage nodes' disks are full (ENOSPC).
    #[error("no space left on the storage nodes")]
    NoSpace,
    /// Every copy that could be asked is damaged (EIO).
    #[error("stored data is damaged")]
    Damaged,
    /// The file was changed or removed under this handle (ESTALE).
    #[error("stale file")]
    Stale,
    /// No such handle (EBADF).
    #[error("no such open file")]
    BadHandle,
    /// The volume does not exist, or may not be mounted by this client.
    #[error("cannot mount: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// A peer broke the protocol (EIO).
    #[error("protocol error: {detail}")]
    Protocol {
        /// What it did.
        detail: &'static str,
    },
    /// A fault of this client: a panic, which its log tells of (EIO). What was sent may take effect.
    #[error("a fault in this client; its log says which")]
    Internal,
}

impl ClientError {
    /// Whether the same call may succeed later without anybody's help.
    pub fn may_retry(&self) -> bool {
        match self {
            Self::Interrupted | Self::TimedOut | Self::NoSpace => true,
            Self::Namespace(_)
            | Self::SessionOver { .. }
            | Self::Damaged
            | Self::Stale
            | Self::BadHandle
            | Self::Refused { .. }
            | Self::Protocol { .. }
            | Self::Internal => false,
        }
    }
}
