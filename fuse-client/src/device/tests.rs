//! Requests recorded from a kernel, and the sizes of answers as the kernel's header has them.

use super::encode::{self, InitAnswer};
use super::*;
use bytes::Bytes;
use holdfast_types::{Generation, InodeId, Timestamp};
use holdfast_wire::namespace::{Attributes, FileKind, VolumeUsage};
use std::time::Duration;

const RECORDED: &str = include_str!("testdata/requests.txt");

fn bytes_of(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect()
}

/// Bytes, what they say, and whether the longer form of SETXATTR was negotiated.
fn all_recorded() -> Vec<(Vec<u8>, &'static str, bool)> {
    let lines: Vec<&str> = RECORDED.lines().filter(|line| !line.starts_with('#')).collect();
    let pairs = lines.chunks_exact(2);
    pairs
        .map(|pair| match pair[1].strip_prefix("long ") {
            Some(text) => (bytes_of(pair[0]), text, true),
            None => (bytes_of(pair[0]), pair[1], false),
        })
        .collect()
}

/// Those that are read in one way whatever was negotiated.
fn recorded() -> Vec<(Vec<u8>, &'static str)> {
    all_recorded().into_iter().filter(|(.., long)| !long).map(|(bytes, text, _)| (bytes, text)).collect()
}

fn decode(bytes: &[u8]) -> Result<String, decode::Malformed> {
    decode_as(bytes, false)
}

fn decode_as(bytes: &[u8], long: bool) -> Result<String, decode::Malformed> {
    if let Some(init) = decode::header(bytes).filter(|header| header.opcode == abi::op::INIT) {
        let malformed = decode::Malformed { unique: init.unique, opcode: init.opcode, length: bytes.len() };
        return decode::init(bytes).map(|init| format!("{init:?}")).ok_or(malformed);
    }
    decode::request(bytes, long, &mut |data| Bytes::copy_from_slice(data)).map(|request| format!("{request:?}"))
}

#[test]
fn recorded_requests_say_what_they_said() {
    let recorded = all_recorded();
    assert!(recorded.len() > 50);
    for (bytes, expected, long) in &recorded {
        assert_eq!(decode_as(bytes, *long).as_deref(), Ok(*expected));
    }
}

#[test]
fn every_operation_is_served_or_listed_as_not_and_recorded_where_it_is_sent() {
    // Never used.
    const GAPS: [u32; 2] = [7, 19];
    // With `default_permissions`, and on a mount that is neither virtiofs nor a block device's, the kernel sends none of these; DESTROY too
    // only for the latter.
    const NEVER_SENT: [u32; 3] = [abi::op::ACCESS, abi::op::SYNCFS, abi::op::DESTROY];
    let recorded: Vec<u32> =
        all_recorded().iter().map(|(bytes, ..)| decode::header(bytes).expect("whole").opcode).collect();
    let asked = (1..=abi::op::GREATEST).chain([abi::op::CUSE_INIT]).filter(|opcode| !GAPS.contains(opcode));
    for opcode in asked {
        let mut bytes = vec![0; 512];
        bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        let request = decode::request(&bytes, false, &mut |data| Bytes::copy_from_slice(data)).expect("long enough");
        let unknown = matches!(request.operation, Operation::Unknown(_)) && opcode != abi::op::INIT;
        assert_eq!(unknown, abi::op::UNSERVED.contains(&opcode), "operation {opcode}: {request:?}");
        assert!(unknown || NEVER_SENT.contains(&opcode) || recorded.contains(&opcode), "no request of {opcode}");
    }
}

#[test]
fn a_request_that_is_cut_off_is_never_read_as_another() {
    for (bytes, expected, long) in all_recorded() {
        for length in 0..bytes.len() {
            // Some fields are of no interest to us, so a request may be complete without its last bytes.
            if let Ok(read) = decode_as(&bytes[..length], long) {
                assert_eq!(read, expected);
            }
        }
    }
}

#[test]
fn a_write_of_mapped_pages_is_told_from_a_write() {
    let (mut bytes, _) = recorded().into_iter().find(|(_, text)| text.contains("Write {")).expect("recorded");
    const FLAGS_AT: usize = abi::IN_HEADER_BYTES + 20;
    bytes[FLAGS_AT..FLAGS_AT + 4].copy_from_slice(&abi::WRITE_FROM_CACHE.to_ne_bytes());
    assert!(decode(&bytes).expect("whole").contains("from_cache: true"));
}

#[test]
fn each_time_of_a_change_is_its_own() {
    let (mut bytes, _) = recorded().into_iter().find(|(_, text)| text.contains("-631152000")).expect("recorded");
    const MTIME_AT: usize = abi::IN_HEADER_BYTES + 40;
    const MTIME_NANOS_AT: usize = abi::IN_HEADER_BYTES + 60;
    bytes[MTIME_AT..MTIME_AT + 8].copy_from_slice(&7u64.to_ne_bytes());
    bytes[MTIME_NANOS_AT..MTIME_NANOS_AT + 4].copy_from_slice(&8u32.to_ne_bytes());
    let text = decode(&bytes).expect("whole");
    assert!(text.contains("atime: Some(At(Timestamp { seconds: -631152000, nanos: 500000000 }))"), "{text}");
    assert!(text.contains("mtime: Some(At(Timestamp { seconds: 7, nanos: 8 }))"), "{text}");
}

fn attributes() -> Attributes {
    let time = |seconds| Timestamp { seconds, nanos: 7 };
    Attributes {
        inode: InodeId(0x1122),
        kind: FileKind::File,
        mode: 0o4755,
        links: 3,
        uid: 4,
        gid: 5,
        rdev: 6,
        size: 1025,
        atime: time(-1),
        mtime: time(2),
        ctime: time(3),
        btime: time(4),
        generation: Generation(9),
        cuts: 0,
        sparse: false,
        trim_from: None,
        size_bound: 0,
        parent: InodeId(0),
    }
}

fn entry() -> Entry {
    Entry {
        attributes: attributes(),
        name_valid: Duration::from_millis(1500),
        attributes_valid: Duration::from_secs(2),
    }
}

#[test]
fn answers_have_the_sizes_of_the_kernels_structures() {
    let size = |answer| encode::answer(answer).body.len();
    assert_eq!(size(Answer::Done), 0);
    assert_eq!(size(Answer::Entry(entry())), 128);
    assert_eq!(size(Answer::Absent(Duration::ZERO)), 128);
    assert_eq!(size(Answer::Attributes(attributes(), Duration::ZERO)), 104);
    assert_eq!(size(Answer::Opened(1, OpenHints::default())), 16);
    assert_eq!(size(Answer::Created(entry(), 1, OpenHints::default())), 144);
    assert_eq!(size(Answer::Written(1)), 8);
    assert_eq!(size(Answer::Usage(VolumeUsage::default())), 80);
    assert_eq!(size(Answer::Offset(1)), 8);
    let init = InitAnswer { flags: u64::MAX, readahead: 1, write: 1 << 20, background: 64 };
    let init = encode::init(&init);
    assert_eq!(init.len(), 64);
    assert_eq!(u16::from_ne_bytes([init[28], init[29]]), 256, "pages of the largest write");
}

#[test]
fn attributes_lie_where_the_kernel_looks_for_them() {
    let body = encode::answer(Answer::Attributes(attributes(), Duration::from_millis(2500))).body;
    let u64_at = |at: usize| u64::from_ne_bytes(body[at..at + 8].try_into().expect("eight"));
    let u32_at = |at: usize| u32::from_ne_bytes(body[at..at + 4].try_into().expect("four"));
    assert_eq!((u64_at(0), u32_at(8)), (2, 500_000_000));
    assert_eq!((u64_at(16), u64_at(24), u64_at(32)), (0x1122, 1025, 3));
    assert_eq!((u64_at(40) as i64, u64_at(48), u64_at(56), u32_at(64)), (-1, 2, 3, 7));
    assert_eq!((u32_at(76), u32_at(80), u32_at(84), u32_at(88), u32_at(92)), (libc::S_IFREG | 0o4755, 3, 4, 5, 6));
    assert_eq!(u32_at(96), crate::attrs::BLOCK_SIZE_SHOWN);
}

#[test]
fn directory_entries_fill_the_room_and_no_more() {
    for plus in [false, true] {
        let each = if plus { 128 + 32 } else { 32 };
        let mut buffer = DirectoryBuffer::new(each * 3 + each - 1, plus);
        assert_eq!(buffer.capacity(), 3);
        let entry = entry();
        let mut add = |name: &[u8]| {
            let inode = InodeId(5);
            buffer.add(&Listed { name, inode, kind: FileKind::Directory, cookie: 9, entry: Some(&entry) })
        };
        assert!(add(b"12345678") && add(b"1") && add(b"1234567"));
        assert!(!add(b"x"));
        assert_eq!(encode::answer(Answer::Directory(buffer)).body.len(), each as usize * 3);
    }
}

#[test]
fn a_dropped_reply_is_an_error_and_an_unneeded_one_is_nothing() {
    struct Kept(std::sync::Mutex<Vec<(u64, Option<i32>)>>);
    impl Sink for Kept {
        fn send(&self, unique: u64, result: Result<Answer, rustix::io::Errno>) {
            self.0.lock().expect("no panic").push((unique, result.err().map(rustix::io::Errno::raw_os_error)));
        }
    }
    let kept = std::sync::Arc::new(Kept(std::sync::Mutex::default()));
    drop(Reply::new(1, 0, kept.clone()));
    Reply::new(2, 0, kept.clone()).unneeded();
    Reply::new(3, 0, kept.clone()).done();
    assert_eq!(*kept.0.lock().expect("no panic"), [(1, Some(libc::EIO)), (3, None)]);
}
