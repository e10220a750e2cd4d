//! What a client is told at its start.

use holdfast_types::ServerId;
use holdfast_types::limits::WRITEBACK_DELAY;
use holdfast_types::size::{KIB, MIB};
use holdfast_wire::metadata::ClientRecord;
use std::time::Duration;

/// Settings of one mount.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the volume.
    pub volume: String,
    /// Who mounts.
    pub client: ClientRecord,
    /// Nothing will be changed.
    pub read_only: bool,
    /// Drawn at random for this mount, so that a repeated `OpenSession` finds the first one.
    pub nonce: u128,
    /// Metadata servers; at least one.
    pub servers: Vec<ServerId>,
    /// `None`: calls wait for the cluster for ever (`hard`). Else they fail with `TimedOut` after so long (`soft`).
    pub soft: Option<Duration>,
    /// Bytes of un-flushed writes at the most; beyond, writers wait.
    pub write_buffer_bytes: u64,
    /// Bytes of file data kept for reading, at the most.
    pub read_cache_bytes: u64,
    /// Inodes, names and attributes kept, at the most.
    pub metadata_cache_entries: usize,
    /// Bytes of data changes under way at the most.
    pub flush_bytes_in_flight: u64,
    /// Data changes under way at the most.
    pub flush_requests_in_flight: usize,
    /// Metadata mutations under way at the most.
    pub mutations_in_flight: usize,
    /// How far a stream is read ahead, at the most.
    pub read_ahead_bytes: u64,
    /// Bytes of one data request at the most; a stream is cut at multiples of it. A power of two, at most a chunk.
    pub request_bytes: u64,
    /// How long a written byte may wait before it is sent.
    pub writeback_delay: Duration,
    /// When the session is over calls wait until they are cancelled, and do not fail: for programs that take an error worse than a halt.
    pub block_when_over: bool,
    /// Reading a file sets its `atime` as mount(8) says for `relatime`. Else it never does (`noatime`).
    pub relatime: bool,
}

impl Config {
    /// The usual settings.
    pub fn new(volume: impl Into<String>, client: ClientRecord, servers: Vec<ServerId>, nonce: u128) -> Self {
        Self {
            volume: volume.into(),
            client,
            read_only: false,
            nonce,
            servers,
            soft: None,
            write_buffer_bytes: 256 * MIB,
            read_cache_bytes: 64 * MIB,
            metadata_cache_entries: 100_000,
            flush_bytes_in_flight: 16 * MIB,
            flush_requests_in_flight: 256,
            mutations_in_flight: 256,
            read_ahead_bytes: 8 * MIB,
            request_bytes: 1024 * KIB,
            writeback_delay: WRITEBACK_DELAY,
            block_when_over: false,
            relatime: true,
        }
    }
}
