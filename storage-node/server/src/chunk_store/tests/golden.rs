//! The bytes of the first release, which every later one must read.

use super::*;
use crate::chunk_store::identity::IdentityFile;
use crate::chunk_store::keys::Keys;
use crate::chunk_store::record::{Placed, Record, decode_checkpoint, encode_checkpoint};
use crate::chunk_store::rows::{self, ChunkRow, Extent, GroupRow, SumsRow};
use holdfast_storage_core::local::Contenders;
use holdfast_types::Incarnation;
use holdfast_wire::group::Contender;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect()
}

const IDENTITY: &str = "686f6c646661737401000100010000004d00000000000000000000000000000001000000000000000000000000000000030000000000000069574af2";
const CHUNK: &str = "01409c00000100000000000000050000000000000001000200030000000000000009000000000000000800000000000000000002000100000007000000090001000000000003000000";
const SUMS: &str = "0101000000000000800403020108070605";
const GROUP: &str = "01010000000000000009000000000000000100000000000000080000000000000000";
const TOUCHED: &str = "010101020101000102010100";
const POSITION: &str = "010201000000000000";
const RECORD: &str =
    "010200000001000000010000000100050000006b76616c75650400ffffffff676f6e65010001006162010000000200000001000000";
const CHECKPOINT: &str = "020201000000000000";

fn record() -> Record {
    Record {
        rows: vec![(Bytes::from_static(b"k"), Some(Bytes::from_static(b"value"))), (Bytes::from_static(b"gone"), None)],
        ranges: vec![Keys { start: Bytes::from_static(b"a"), end: Bytes::from_static(b"b") }],
        places: vec![Placed { file: 1, start: 2, bytes: vec![7; 4096].into() }],
    }
}

#[test]
fn bytes_of_the_first_release_are_written_and_read() {
    let identity = IdentityFile { identity: OWNER, incarnation: Incarnation(3), ready: true };
    assert_eq!(hex(&identity.encode()), IDENTITY);
    assert_eq!(IdentityFile::decode(&bytes(IDENTITY)).expect("decodes"), identity);

    let extents = vec![Extent { at: 0, blocks: 2, file: 1, start: 7 }, Extent { at: 9, blocks: 1, file: 0, start: 3 }];
    let contender = Contender { session: SessionId(3), last: Sequence(9), cut: Sequence(8) };
    let contenders = Contenders::from_list(vec![contender]).expect("one session");
    let chunk_row = ChunkRow { length: 40_000, number: number(5), extents, contenders };
    assert_eq!(hex(&chunk_row.encode()), CHUNK);
    assert_eq!(ChunkRow::decode(b"c", &bytes(CHUNK)).expect("decodes"), chunk_row);

    let mut sums = SumsRow::default();
    sums.set(0, 0x0102_0304);
    sums.set(63, 0x0506_0708);
    assert_eq!(hex(&sums.encode()), SUMS);
    assert_eq!(SumsRow::decode(b"s", &bytes(SUMS)).expect("decodes"), sums);

    let group = GroupRow { last: number(9), settled: number(8) };
    assert_eq!(hex(&group.encode()), GROUP);
    assert_eq!(GroupRow::decode(b"g", &bytes(GROUP)).expect("decodes"), group);

    let touched = vec![KeyRange::chunk(chunk(2, 1))];
    assert_eq!(hex(&rows::encode_touched(&touched)), TOUCHED);
    assert_eq!(rows::decode_touched(b"h", &bytes(TOUCHED)).expect("decodes"), touched);

    assert_eq!(hex(&rows::encode_position(258)), POSITION);
    assert_eq!(rows::decode_position(b"a", &bytes(POSITION)).expect("decodes"), 258);

    let head = record().encode_head();
    assert_eq!(hex(&head), RECORD);
    let whole = Bytes::from([bytes(RECORD), vec![7; 4096]].concat());
    assert_eq!(Record::decode(&whole), Some(record()));

    assert_eq!(hex(&encode_checkpoint(258)), CHECKPOINT);
    assert_eq!(decode_checkpoint(&bytes(CHECKPOINT)), Some(258));
}
