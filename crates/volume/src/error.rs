//! Why something that an orchestrator wants of a volume cannot be done.

use std::path::PathBuf;

/// Why not. A plugin translates each to its protocol's word in one place, by exhaustive match.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// There is no such volume.
    #[error("there is no volume {name:?}")]
    NoVolume {
        /// Its name.
        name: String,
    },
    /// There is one of that name which is not as asked for.
    #[error("volume {name:?} exists, and {difference}")]
    Different {
        /// Its name.
        name: String,
        /// In what.
        difference: String,
    },
    /// What was asked for makes no sense.
    #[error("{reason}")]
    Invalid {
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A size that cannot be.
    #[error("{reason}")]
    OutOfRange {
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// It is in use.
    #[error("volume {name:?} is in use: {by}")]
    InUse {
        /// Its name.
        name: String,
        /// By whom, and what to do about it.
        by: String,
    },
    /// It is attached to another node, and may not be to both.
    #[error("volume {name:?} is attached to node {node:?} ({access}); detach it there first")]
    AttachedElsewhere {
        /// Its name.
        name: String,
        /// Where.
        node: String,
        /// How.
        access: String,
    },
    /// It is attached to this node in another way.
    #[error("volume {name:?} is attached to node {node:?} already, but {difference}; detach it first")]
    AttachedOtherwise {
        /// Its name.
        name: String,
        /// Where.
        node: String,
        /// In what it differs.
        difference: String,
    },
    /// It is not attached to this node, or not any more.
    #[error("volume {name:?} is not attached to node {node:?}{more}")]
    NotAttached {
        /// Its name.
        name: String,
        /// Where.
        node: String,
        /// What is known beyond that.
        more: String,
    },
    /// There is no such node.
    #[error("there is no node {node:?}: no node plugin of this cluster has said that it is there")]
    NoNode {
        /// Its id.
        node: String,
    },
    /// It is attached to as many nodes as can be.
    #[error("volume {name:?} is attached to {nodes} nodes, and to more it cannot be")]
    TooMany {
        /// Its name.
        name: String,
        /// To how many.
        nodes: usize,
    },
    /// Something else is being done with it, and takes long.
    #[error("{what} is under way; ask again")]
    Pending {
        /// What.
        what: String,
    },
    /// Something else is mounted there.
    #[error("{point} is in use: {what}")]
    Occupied {
        /// Where.
        point: PathBuf,
        /// What is there.
        what: String,
    },
    /// Nothing of this volume is mounted there.
    #[error("volume {name:?} is not mounted on {point}")]
    NotMounted {
        /// Its name.
        name: String,
        /// Where.
        point: PathBuf,
    },
    /// It could not be mounted, or unmounted.
    #[error("{point}: {reason}")]
    Mount {
        /// Where.
        point: PathBuf,
        /// Why.
        reason: String,
    },
    /// The cluster does not answer. What was asked may or may not be done.
    #[error("the cluster does not answer: {reason}; is it up? `holdfast admin status` says")]
    Unavailable {
        /// What came of it.
        reason: String,
    },
    /// The cluster or the volume's record is not as it can be.
    #[error("{reason}")]
    Broken {
        /// What was found.
        reason: String,
    },
}
