//! The file of a backup: both shards' rows as they were, and nothing else.
//!
//! ```text
//!  0        8        10       12
//! "HFBACKUP" format   0        records …                          all numbers little-endian
//!
//! a record:  0       1      4         8          12        16
//!           │ kind  │ 0    │ number  │ length   │ crc     │ payload │     number: 0, 1, 2 … in the file
//!           1 head   cluster, date, release, format of the rows, server, whether confirmed, place of each shard   (codec)
//!           2 rows   shard u8 | count u32 | count times: key length u16 | value length u32 | key | value
//!           3 end    rows of each shard, BLAKE3 of every byte before this record                                  (codec)
//! ```
//! * One head, then rows of shard 0, then rows of shard 1, each in the order of their keys; then the end, and nothing after it. A file
//!   that was cut off anywhere has no end.
//! * The crc of a record is of its first twelve bytes and its payload: what is damaged is found where it is, before anything is believed.
//!   The digest at the end says that the records are those that were written, all of them and in their order.
//! * A reader that has not seen the end has seen nothing: whoever acts on rows before must be able to take it back.

#[cfg(test)]
mod tests;

use bytes::Bytes;
use holdfast_types::limits::MESSAGE_BYTES_MAX;
use holdfast_types::{ClusterId, LogIndex, ServerId, ShardId, Term, Timestamp};
use holdfast_wire::codec;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// What a file begins with.
const MAGIC: &[u8; 8] = b"HFBACKUP";
/// Format of the file: rises when it is drawn anew.
pub const FORMAT: u16 = 1;
/// Bytes of a record before its payload.
const HEADER_BYTES: usize = 16;
/// Bytes of rows in one record, unless one row alone has more.
const RECORD_BYTES: usize = 1 << 20;
/// No record is longer: what a metadata server tells of its rows comes in messages.
const RECORD_BYTES_MAX: u64 = 2 * MESSAGE_BYTES_MAX;

const KIND_HEAD: u8 = 1;
const KIND_ROWS: u8 = 2;
const KIND_END: u8 = 3;

/// Key and value.
pub type Row = (Bytes, Bytes);

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Which cluster.
    pub cluster: ClusterId,
    /// When it was begun, by the clock of the host that wrote it.
    pub created: Timestamp,
    /// The release that wrote it.
    pub release: String,
    /// Format of the rows, as in a server's IDENTITY.
    pub rows_format: u32,
    /// Whose tables they are.
    pub server: ServerId,
    /// Leaders confirmed that it holds everything that was acknowledged before it was begun.
    pub confirmed: bool,
    /// The last entry that the rows of each shard hold.
    pub at: [(LogIndex, Term); 2],
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Rows of each shard.
    pub rows: [u64; 2],
    /// Bytes of the file.
    pub bytes: u64,
}

/// What the last record says.
#[derive(Serialize, Deserialize)]
struct End {
    rows: [u64; 2],
    digest: [u8; 32],
}

/// Why a file is not taken for a backup. What was read of it by then counts for nothing.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("this is no backup of a metadata service")]
    NoBackup,
    /// A newer release wrote it.
    #[error(
        "the backup has format {0}, which this release does not know: use the release that wrote it, or a newer one"
    )]
    Format(u16),
    /// It is not all there.
    #[error("the backup ends at byte {at}, in the middle: it was cut off. Take another one")]
    CutOff {
        /// Where it ends.
        at: u64,
    },
    /// Bytes are not what was written.
    #[error("the backup is damaged in the record at byte {at}: {what}. Take another one")]
    Damaged {
        /// Where the record begins.
        at: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Writes a backup. What was written is one only after [`Writer::finish`].
pub struct Writer<W: Write> {
    out: W,
    digest: blake3::Hasher,
    number: u32,
    totals: Totals,
}

impl<W: Write> Writer<W> {
    /// Begins one.
    ///
    /// # Errors
    /// What the system says.
    pub fn begin(out: W, head: &Head) -> io::Result<Self> {
        let mut writer = Self { out, digest: blake3::Hasher::new(), number: 0, totals: Totals::default() };
        let mut first = [0; 12];
        first[..8].copy_from_slice(MAGIC);
        first[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        writer.put(&first)?;
        writer.record(KIND_HEAD, &codec::encode(head))?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.totals.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn record(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let mut header = [0; HEADER_BYTES];
        header[0] = kind;
        header[4..8].copy_from_slice(&self.number.to_le_bytes());
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        header[8..12].copy_from_slice(&length.to_le_bytes());
        let sum = crc(&header, payload);
        header[12..].copy_from_slice(&sum.to_le_bytes());
        self.number += 1;
        self.put(&header)?;
        self.put(payload)
    }

    /// Adds rows of a shard, in the order of their keys.
    ///
    /// # Errors
    /// What the system says.
    ///
    /// # Panics
    /// When a key is longer than tables allow.
    pub fn rows(&mut self, shard: ShardId, rows: &[Row]) -> io::Result<()> {
        let mut rest = rows;
        while !rest.is_empty() {
            let mut payload = vec![0; 5];
            let mut count = 0;
            for (key, value) in rest {
                if count > 0 && payload.len() + key.len() + value.len() > RECORD_BYTES {
                    break;
                }
                let length = u16::try_from(key.len()).expect("a table's key is short enough");
                payload.extend_from_slice(&length.to_le_bytes());
                payload.extend_from_slice(&u32::try_from(value.len()).map_err(io::Error::other)?.to_le_bytes());
                payload.extend_from_slice(key);
                payload.extend_from_slice(value);
                count += 1;
            }
            payload[0] = shard.0 as u8;
            payload[1..5].copy_from_slice(&(count as u32).to_le_bytes());
            self.record(KIND_ROWS, &payload)?;
            self.totals.rows[shard.0 as usize] += count as u64;
            rest = &rest[count..];
        }
        Ok(())
    }

    /// Ends it. Not durable yet: that is up to whoever knows what it was written to.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish(mut self) -> io::Result<(W, Totals)> {
        let end = End { rows: self.totals.rows, digest: *self.digest.finalize().as_bytes() };
        self.record(KIND_END, &codec::encode(&end))?;
        self.out.flush()?;
        Ok((self.out, self.totals))
    }
}

fn crc(header: &[u8; HEADER_BYTES], payload: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&header[..12]);
    sum.update(payload);
    sum.finalize()
}

/// Reads a backup, and refuses what is none.
pub struct Reader<R: Read> {
    input: R,
    digest: blake3::Hasher,
    number: u32,
    at: u64,
    /// Shard and key of the last row.
    last: Option<(u8, Bytes)>,
    totals: Totals,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// [`BackupError`]
    pub fn open(input: R) -> Result<(Self, Head), BackupError> {
        let totals = Totals::default();
        let mut reader =
            Self { input, digest: blake3::Hasher::new(), number: 0, at: 0, last: None, totals, ended: false };
        let mut first = [0; 12];
        let got = reader.fill(&mut first)?;
        if got < 8 || first[..8] != *MAGIC {
            return Err(BackupError::NoBackup);
        }
        if got < first.len() {
            return Err(BackupError::CutOff { at: reader.at });
        }
        let format = u16::from_le_bytes([first[8], first[9]]);
        if format != FORMAT || first[10..] != [0, 0] {
            return Err(BackupError::Format(format));
        }
        reader.digest.update(&first);
        let (at, kind, payload) = reader.record()?;
        if kind != KIND_HEAD {
            return Err(BackupError::Damaged { at, what: "it is not the first that a backup has" });
        }
        let head = codec::decode(&payload);
        let head = head.map_err(|_| BackupError::Damaged { at, what: "it does not say what the backup is of" })?;
        Ok((reader, head))
    }

    /// The next rows of a shard; `None` at the end, which was verified then.
    ///
    /// # Errors
    /// [`BackupError`]
    pub fn next_rows(&mut self) -> Result<Option<(ShardId, Vec<Row>)>, BackupError> {
        if self.ended {
            return Ok(None);
        }
        let before = self.digest.clone();
        let (at, kind, payload) = self.record()?;
        let damaged = |what| BackupError::Damaged { at, what };
        match kind {
            KIND_ROWS => {
                let (shard, rows) = decode_rows(&payload).ok_or_else(|| damaged("its rows are none"))?;
                for (key, _) in &rows {
                    let place = (shard, key.clone());
                    if shard > 1 || key.is_empty() || self.last.as_ref().is_some_and(|last| *last >= place) {
                        return Err(damaged("its rows are not in order"));
                    }
                    self.last = Some(place);
                }
                self.totals.rows[usize::from(shard)] += rows.len() as u64;
                Ok(Some((ShardId(shard.into()), rows)))
            }
            KIND_END => {
                let end: End = codec::decode(&payload).map_err(|_| damaged("it does not say how the backup ends"))?;
                if end.digest != *before.finalize().as_bytes() || end.rows != self.totals.rows {
                    return Err(damaged("what comes before it is not what was written"));
                }
                if self.fill(&mut [0])? > 0 {
                    return Err(damaged("something follows the end"));
                }
                self.ended = true;
                Ok(None)
            }
            _ => Err(damaged("it is of an unknown kind")),
        }
    }

    /// How much was read.
    pub fn totals(&self) -> Totals {
        Totals { bytes: self.at, ..self.totals }
    }

    /// Reads as much as there is. Returns how much that was.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut got = 0;
        while got < buffer.len() {
            match self.input.read(&mut buffer[got..]) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.at += got as u64;
        Ok(got)
    }

    /// Where the next record begins, its kind and its payload.
    fn record(&mut self) -> Result<(u64, u8, Vec<u8>), BackupError> {
        let at = self.at;
        let damaged = |what| BackupError::Damaged { at, what };
        let mut header = [0; HEADER_BYTES];
        if self.fill(&mut header)? < HEADER_BYTES {
            return Err(BackupError::CutOff { at: self.at });
        }
        let word =
            |from: usize| u32::from_le_bytes([header[from], header[from + 1], header[from + 2], header[from + 3]]);
        let (number, length, sum) = (word(4), word(8), word(12));
        if u64::from(length) > RECORD_BYTES_MAX {
            return Err(damaged("it is longer than any"));
        }
        // A length that is not true takes no more memory than there are bytes.
        let mut payload = Vec::new();
        let got = self.input.by_ref().take(length.into()).read_to_end(&mut payload)?;
        self.at += got as u64;
        if got < length as usize {
            return Err(BackupError::CutOff { at: self.at });
        }
        if crc(&header, &payload) != sum {
            return Err(damaged("it does not have its checksum"));
        }
        if number != self.number || header[1..4] != [0; 3] {
            return Err(damaged("it is not the one that belongs there"));
        }
        self.number += 1;
        self.digest.update(&header);
        self.digest.update(&payload);
        Ok((at, header[0], payload))
    }
}

fn decode_rows(payload: &[u8]) -> Option<(u8, Vec<Row>)> {
    let (&shard, rest) = payload.split_first()?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let mut rows = Vec::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let (key, after) = rest.split_first_chunk::<2>()?;
        let (value, after) = after.split_first_chunk::<4>()?;
        let (key, value) = (usize::from(u16::from_le_bytes(*key)), u32::from_le_bytes(*value) as usize);
        if after.len() < key.checked_add(value)? {
            return None;
        }
        let (row, after) = after.split_at(key + value);
        rows.push((Bytes::copy_from_slice(&row[..key]), Bytes::copy_from_slice(&row[key..])));
        rest = after;
    }
    (rest.is_empty() && !rows.is_empty()).then_some((shard, rows))
}
