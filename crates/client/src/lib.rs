//! The cluster as one object: the client core with sockets and a clock.
//!
//! * [`Client`] mounts a volume: file-system calls answered on the spot from memory, or later by callback or future.
//! * [`Cluster`] is a plain connection for requests outside of a session (`holdfast admin`).
//! * [`ClusterFile`] is `cluster.toml`: where the metadata servers are, and the certificate to show them.

mod cluster;
mod cluster_file;
mod metered;
mod metrics;
mod mount;
mod operations;
mod transport;

pub use cluster::{Cluster, RequestError};
pub use cluster_file::{ClusterFile, ClusterFileError, MetadataAddress, TlsFiles};
pub use holdfast_client_core::{
    Call, CallId, ClientError, Config, Data, Durability, HandleId, LostFile, Notice, OpenMode, Reply, Seek, ZeroMode,
};
pub use holdfast_config::{nearest, port};
pub use metrics::Metrics;
pub use mount::{Client, MountError, MountOptions, Notices, Pending};
pub use operations::Opened;
