//! The life cycle of a volume that an orchestrator manages, written once for all plugins.
//!
//! * [`Volumes`] creates, finds, expands and deletes volumes, and attaches them to nodes: [`Volumes::attach`] gives a node the right to
//!   mount, [`Volumes::detach`] takes it away and *fences* what is left of it.
//! * [`Mounts`] mounts on this host: a process of its own for each mount, which outlives whoever started it.
//! * [`Cluster`] is what both need of the cluster: [`holdfast_client::Cluster`] in earnest, [`fake::FakeCluster`] in tests.
//!
//! Whatever must be remembered is in the labels of the volume itself, which the metadata service keeps and changes by compare-and-set:
//! there is no state of a plugin that could be lost or disagree.
//!
//! Invariants:
//! * Every call may be repeated, by anybody, also after it was cut off at any point: it takes up where the other ended.
//! * When [`Volumes::attach`] or [`Volumes::detach`] has returned, no earlier attachment that it took the place of changes a byte.
//! * An attachment is on record before anybody may mount by it, and off the record only when nobody can any more.
//! * A volume on record as one that is being deleted is attached to no node.

mod attach;
mod book;
mod cluster;
mod error;
pub mod fake;
mod lifecycle;
mod mount;
mod nodes;
mod spec;
mod turns;

pub use attach::{Access, Attachment};
pub use cluster::{Cluster, Refusal};
pub use error::VolumeError;
pub use holdfast_wire::namespace::{Limits, VolumeFacts};
pub use holdfast_wire::open::{OPEN_WAIT_MAX, OpenPolicy, OpenRule};
pub use lifecycle::{Condition, Managed, Volumes};
pub use mount::{MountHow, Mounts, PathUsage};
pub use spec::{BYTES_MAX, Capacity, VolumeSpec, volume_name};
pub use turns::Turn;
