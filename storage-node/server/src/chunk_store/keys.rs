//! Keys of the index: a kind's letter and big-endian fields, so that neighbours in meaning are neighbours in order.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use holdfast_types::{
    ChunkIndex, ChunkKey, Epoch, Generation, GroupId, InodeId, OpCount, OpNumber, SnapshotNumber, VolumeId,
};

/// Bytes of a chunk's key after its kind.
const CHUNK_KEY_BYTES: usize = 4 + 5 * 8;

/// A range of keys, `start` included, `end` excluded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keys {
    pub start: Bytes,
    pub end: Bytes,
}

fn of_chunk(kind: u8, group: GroupId, chunk: &ChunkKey, room: usize) -> BytesMut {
    let mut key = BytesMut::with_capacity(1 + CHUNK_KEY_BYTES + room);
    key.put_u8(kind);
    key.put_u32(group.0);
    key.put_u64(chunk.volume.0);
    key.put_u64(chunk.inode.0);
    key.put_u64(chunk.generation.0);
    key.put_u64(chunk.index.0);
    key.put_u64(chunk.born.0);
    key
}

/// Key of a chunk's row.
pub(crate) fn chunk(group: GroupId, chunk: &ChunkKey) -> Bytes {
    of_chunk(b'c', group, chunk, 0).freeze()
}

/// Key of a row of sums.
pub(crate) fn sums(group: GroupId, chunk: &ChunkKey, row: u32) -> Bytes {
    let mut key = of_chunk(b's', group, chunk, 1);
    key.put_u8(row as u8);
    key.freeze()
}

/// Key of a group's row.
pub(crate) fn group(group: GroupId) -> Bytes {
    let mut key = BytesMut::with_capacity(5);
    key.put_u8(b'g');
    key.put_u32(group.0);
    key.freeze()
}

/// Key of the row that says what one operation touched.
pub(crate) fn touched(group: GroupId, number: OpNumber) -> Bytes {
    let mut key = BytesMut::with_capacity(21);
    key.put_u8(b'h');
    key.put_u32(group.0);
    key.put_u64(number.epoch.0);
    key.put_u64(number.count.0);
    key.freeze()
}

/// The chunk that a row of kind `c` or `s` is about; none when it is no such key.
pub(crate) fn parse_chunk(key: &[u8]) -> Option<(GroupId, ChunkKey)> {
    let (kind, mut rest) = key.split_first()?;
    let wanted = match kind {
        b'c' => CHUNK_KEY_BYTES,
        b's' => CHUNK_KEY_BYTES + 1,
        _ => return None,
    };
    if rest.len() != wanted {
        return None;
    }
    let group = GroupId(rest.get_u32());
    let chunk = ChunkKey {
        volume: VolumeId(rest.get_u64()),
        inode: InodeId(rest.get_u64()),
        generation: Generation(rest.get_u64()),
        index: ChunkIndex(rest.get_u64()),
        born: SnapshotNumber(rest.get_u64()),
    };
    Some((group, chunk))
}

/// The group that a row of kind `g` is about.
pub(crate) fn parse_group(key: &[u8]) -> Option<GroupId> {
    match key {
        [b'g', id @ ..] => Some(GroupId(u32::from_be_bytes(id.try_into().ok()?))),
        _ => None,
    }
}

/// The group and number that a row of kind `h` is about.
pub(crate) fn parse_touched(key: &[u8]) -> Option<(GroupId, OpNumber)> {
    let (b'h', mut rest) = (*key.first()?, &key[1..]) else { return None };
    if rest.len() != 20 {
        return None;
    }
    let group = GroupId(rest.get_u32());
    Some((group, OpNumber { epoch: Epoch(rest.get_u64()), count: OpCount(rest.get_u64()) }))
}

/// The least key above every key that begins with `prefix`, which does not consist of 0xff alone (it begins with a
/// letter).
fn after(prefix: &[u8]) -> Bytes {
    let keep = prefix.iter().rposition(|byte| *byte != 0xff).expect("keys begin with a letter");
    let mut end = prefix[..=keep].to_vec();
    end[keep] += 1;
    end.into()
}

fn with_prefix(prefix: BytesMut) -> Keys {
    Keys { end: after(&prefix), start: prefix.freeze() }
}

/// All rows of one kind.
pub(crate) fn all(kind: u8) -> Keys {
    with_prefix(BytesMut::from(&[kind][..]))
}

/// All rows of a group, of one kind.
pub(crate) fn of_group(kind: u8, group: GroupId) -> Keys {
    let mut prefix = BytesMut::with_capacity(5);
    prefix.put_u8(kind);
    prefix.put_u32(group.0);
    with_prefix(prefix)
}

/// All rows of a volume within a group, of kind `c` or `s`.
pub(crate) fn of_volume(kind: u8, group: GroupId, volume: VolumeId) -> Keys {
    let mut prefix = BytesMut::with_capacity(13);
    prefix.put_u8(kind);
    prefix.put_u32(group.0);
    prefix.put_u64(volume.0);
    with_prefix(prefix)
}

/// All rows of chunks of one content of an inode within a group, at or above an index, of kind `c` or `s`.
pub(crate) fn of_content(
    kind: u8,
    group: GroupId,
    (volume, inode, generation): (VolumeId, InodeId, Generation),
    from: ChunkIndex,
) -> Keys {
    let mut prefix = BytesMut::with_capacity(1 + CHUNK_KEY_BYTES);
    prefix.put_u8(kind);
    prefix.put_u32(group.0);
    prefix.put_u64(volume.0);
    prefix.put_u64(inode.0);
    prefix.put_u64(generation.0);
    let end = after(&prefix);
    prefix.put_u64(from.0);
    Keys { start: prefix.freeze(), end }
}

/// All rows of one chunk, of kind `c` or `s`.
pub(crate) fn of_chunk_rows(kind: u8, group: GroupId, chunk: &ChunkKey) -> Keys {
    with_prefix(of_chunk(kind, group, chunk, 0))
}

/// What a group's operations up to and including `number` touched.
pub(crate) fn touched_up_to(group: GroupId, number: OpNumber) -> Keys {
    Keys { start: of_group(b'h', group).start, end: after(&touched(group, number)) }
}

/// What a group's operations above `number` touched.
pub(crate) fn touched_above(group: GroupId, number: OpNumber) -> Keys {
    Keys { start: after(&touched(group, number)), end: of_group(b'h', group).end }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(inode: u64, index: u64) -> ChunkKey {
        ChunkKey {
            volume: VolumeId(1),
            inode: InodeId(inode),
            generation: Generation(u64::MAX),
            index: ChunkIndex(index),
            born: SnapshotNumber(0),
        }
    }

    #[test]
    fn the_order_of_keys_is_the_order_of_chunks() {
        let group = GroupId(3);
        let mut chunks = [key(1, 255), key(1, 256), key(2, 0), key(1, 0)];
        chunks.sort();
        let keys: Vec<Bytes> = chunks.iter().map(|c| chunk(group, c)).collect();
        assert!(keys.is_sorted());
        assert_eq!(parse_chunk(&keys[1]), Some((group, chunks[1])));
        assert_eq!(parse_chunk(&sums(group, &chunks[2], 15)), Some((group, chunks[2])));
    }

    #[test]
    fn a_content_ends_before_the_next_inode() {
        let group = GroupId(3);
        let run = of_content(b'c', group, (VolumeId(1), InodeId(1), Generation(u64::MAX)), ChunkIndex(255));
        let within = |c: &ChunkKey| (&run.start..&run.end).contains(&&chunk(group, c));
        assert!(within(&key(1, 255)) && within(&key(1, u64::MAX)));
        assert!(!within(&key(1, 254)) && !within(&key(2, 255)));
    }

    #[test]
    fn touched_rows_are_parted_by_their_number() {
        let group = GroupId(u32::MAX);
        let number = |epoch, count| OpNumber { epoch: Epoch(epoch), count: OpCount(count) };
        let (low, high) = (touched_up_to(group, number(1, u64::MAX)), touched_above(group, number(1, u64::MAX)));
        assert_eq!(low.end, high.start);
        assert!(touched(group, number(1, u64::MAX)) < low.end);
        assert!(touched(group, number(2, 0)) >= high.start && touched(group, number(2, 0)) < high.end);
        assert_eq!(parse_touched(&touched(group, number(2, 7))), Some((group, number(2, 7))));
    }
}
