//! The storage node's disks and sockets: what `storage-node/core` decides is made so here.

pub mod chunk_store;
