use super::*;
use holdfast_types::prng::Prng;

fn sample() -> (Header, &'static [u8], &'static [u8]) {
    let mut header = Header::new(FrameKind::Request, ClusterId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10), 7);
    header.method = 2;
    header.request = 0x1122_3344_5566_7788;
    header.deadline_us = 2_000_000;
    header.trace = TraceContext { trace: 0xa0a1_a2a3_a4a5_a6a7_a8a9_aaab_acad_aeaf, span: 0xb0b1_b2b3_b4b5_b6b7 };
    let (message, payload) = (&b"message"[..], &b"payload bytes"[..]);
    header.describe(message, payload, false).expect("short");
    (header, message, payload)
}

#[test]
fn bytes_of_version_1_are_frozen() {
    let (header, ..) = sample();
    let hex: String = header.encode().chunks(8).map(|row| hex(row) + "\n").collect();
    assert_eq!(hex, include_str!("golden-v1.txt"));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn unknown_versions_are_refused_by_name() {
    let (header, ..) = sample();
    let mut bytes = header.encode();
    bytes[4] = 9;
    let error = Header::decode(&bytes).expect_err("another version");
    assert_eq!(error, FrameError::Version { theirs: 9 });
    assert_eq!(error.to_string(), "protocol version 9 is unknown here; this build speaks version 1");
    bytes[0] = b'G';
    assert!(matches!(Header::decode(&bytes), Err(FrameError::Magic(_))));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (header, message, payload) = sample();
    let good = header.encode();
    assert_eq!(Header::decode(&good), Ok(header));
    for bit in 0..HEADER_BYTES * 8 {
        let mut bad = good;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Header::decode(&bad).is_err(), "bit {bit}");
    }
    header.check(message, payload).expect("whole");
    assert_eq!(header.check(b"messagE", payload), Err(FrameError::MessageSum));
    assert_eq!(header.check(message, b"payload byteS"), Err(FrameError::PayloadSum));
    assert_eq!(header.check(message, b"payload"), Err(FrameError::PayloadSum));
}

#[test]
fn a_covered_payload_is_not_summed_again() {
    let (mut header, message, payload) = sample();
    header.describe(message, payload, true).expect("short");
    assert!(header.flags.has(Flags::PAYLOAD_UNSUMMED));
    header.check(message, b"payload byteS").expect("its cover is somebody else's");
    assert_eq!(header.check(message, b"short"), Err(FrameError::PayloadSum));
    assert_eq!(header.check(b"other", payload), Err(FrameError::MessageSum));
}

/// Sums a header anew after a change, so that only the checks behind the sum are left.
fn resummed(mut bytes: [u8; HEADER_BYTES]) -> [u8; HEADER_BYTES] {
    let sum = crc32(&bytes[..SUMMED_BYTES]);
    bytes[SUMMED_BYTES..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn lengths_kinds_and_flags_out_of_bounds_are_refused() {
    let good = sample().0.encode();
    let with = |at: usize, value: &[u8]| {
        let mut bytes = good;
        bytes[at..at + value.len()].copy_from_slice(value);
        Header::decode(&resummed(bytes))
    };
    let message = limits::MESSAGE_BYTES_MAX as u32 + 1;
    let payload = limits::PAYLOAD_BYTES_MAX as u32 + 1;
    assert_eq!(with(12, &message.to_le_bytes()), Err(FrameError::MessageTooLong(message.into())));
    assert_eq!(with(80, &payload.to_le_bytes()), Err(FrameError::PayloadTooLong(payload.into())));
    assert_eq!(with(6, &[99, 0]), Err(FrameError::Kind(99)));
    assert_eq!(with(10, &[0, 0x80]), Err(FrameError::Flags(0x8000)));
    assert!(with(12, &(message - 1).to_le_bytes()).is_ok());
    assert!(with(80, &(payload - 1).to_le_bytes()).is_ok());
}

#[test]
fn any_header_survives_the_wire() {
    let mut prng = Prng::new(11);
    let kinds = [
        FrameKind::Hello,
        FrameKind::Request,
        FrameKind::Response,
        FrameKind::Failure,
        FrameKind::OneWay,
        FrameKind::Cancel,
        FrameKind::Alive,
    ];
    for _ in 0..10_000 {
        let wide = |p: &mut Prng| u128::from(p.next_u64()) << 64 | u128::from(p.next_u64());
        let mut header = Header::new(*prng.pick(&kinds), ClusterId(wide(&mut prng)), prng.next_u64());
        header.method = prng.next_u64() as u16;
        header.request = prng.next_u64();
        header.deadline_us = prng.next_u64();
        header.trace = TraceContext { trace: wide(&mut prng), span: prng.next_u64() };
        header.message_length = prng.below(limits::MESSAGE_BYTES_MAX + 1) as u32;
        header.payload_length = prng.below(limits::PAYLOAD_BYTES_MAX + 1) as u32;
        header.message_sum = prng.next_u64() as u32;
        header.payload_sum = prng.next_u64() as u32;
        header.flags = *prng.pick(&[Flags::NONE, Flags::PAYLOAD_UNSUMMED]);
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
}

#[test]
fn random_bytes_are_refused_or_within_the_limits() {
    let mut prng = Prng::new(12);
    let mut accepted = 0;
    for round in 0..50_000 {
        let mut bytes = [0; HEADER_BYTES];
        prng.fill(&mut bytes);
        if round % 2 == 0 {
            // Halfway plausible: right beginning, right sum.
            bytes[..8].copy_from_slice(&[b'H', b'F', b'R', b'M', 1, 0, prng.below(9) as u8, 0]);
            bytes[10] = prng.below(2) as u8;
            bytes[11] = 0;
            bytes[15] = prng.below(3) as u8;
            bytes[83] = 0;
            bytes = resummed(bytes);
        }
        if let Ok(header) = Header::decode(&bytes) {
            accepted += 1;
            assert!(u64::from(header.message_length) <= limits::MESSAGE_BYTES_MAX);
            assert!(u64::from(header.payload_length) <= limits::PAYLOAD_BYTES_MAX);
        }
    }
    assert!(accepted > 100, "the halfway plausible headers reach the last checks: {accepted}");
}
