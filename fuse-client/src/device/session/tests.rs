//! A session over a socket instead of `/dev/fuse`: the test is the kernel.

use super::*;
use crate::device::protocol::Answer;
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use std::io::IoSlice;
use std::time::Duration;

/// Our end: a socket that keeps messages apart.
#[derive(Debug)]
struct Socket(OwnedFd);

impl Transport for Socket {
    fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
        rustix::io::read(&self.0, buffer).map(|length| (length > 0).then_some(length))
    }

    fn send(&self, pieces: &[IoSlice<'_>]) -> Result<(), Errno> {
        rustix::io::writev(&self.0, pieces).map(drop)
    }

    fn duplicate(&self) -> Result<Self, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.0, 0).map(Self)
    }
}

/// The kernel's end.
struct Kernel(OwnedFd);

fn connected() -> (Socket, Kernel) {
    let (ours, kernels) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("sockets");
    // A test that fails ends.
    let patience = Some(Duration::from_secs(30));
    sockopt::set_socket_timeout(&kernels, sockopt::Timeout::Recv, patience).expect("a timeout");
    (Socket(ours), Kernel(kernels))
}

fn request(opcode: u32, unique: u64, body: &[u8]) -> Vec<u8> {
    let length = (abi::IN_HEADER_BYTES + body.len()) as u32;
    let mut bytes = [length.to_ne_bytes(), opcode.to_ne_bytes()].concat();
    bytes.extend([unique, 1].iter().flat_map(|number| number.to_ne_bytes()));
    bytes.extend([0u32, 0, 0, 0].iter().flat_map(|number| number.to_ne_bytes()));
    bytes.extend(body);
    bytes
}

fn hello(major: u32, minor: u32, flags: u32) -> Vec<u8> {
    let body: Vec<u8> = [major, minor, 1 << 17, flags].iter().flat_map(|number| number.to_ne_bytes()).collect();
    request(abi::op::INIT, 2, &[&body[..], &[0; 48]].concat())
}

impl Kernel {
    fn ask(&self, bytes: &[u8]) {
        rustix::io::write(&self.0, bytes).expect("it reads");
    }

    /// The next answer: the request's number, the error, the body.
    fn answer(&self) -> (u64, i32, Vec<u8>) {
        let mut bytes = [0; 4096];
        let length = rustix::io::read(&self.0, &mut bytes).expect("an answer in time");
        let (header, body) = bytes[..length].split_at(abi::OUT_HEADER_BYTES);
        let number = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four"));
        assert_eq!(number(0) as usize, length);
        let unique = u64::from_ne_bytes(header[8..].try_into().expect("eight"));
        (unique, number(4).cast_signed(), body.to_vec())
    }

    fn lookup(&self, unique: u64, name: &str) {
        self.ask(&request(abi::op::LOOKUP, unique, format!("{name}\0").as_bytes()));
    }
}

/// Panics over some names, each at another moment; answers others.
struct Odd;

impl Service for Odd {
    fn serve(&self, request: Request<'_>, reply: Reply) {
        match request.operation {
            Operation::Lookup { name: b"now" } => panic!("a panic on purpose, before it is answered"),
            Operation::Lookup { name: b"later" } => drop(std::thread::spawn(move || {
                let _owed = reply;
                panic!("a panic on purpose, on another thread");
            })),
            Operation::Lookup { name: b"after" } => {
                reply.done();
                panic!("a panic on purpose, after it is answered");
            }
            Operation::Write { data, .. } => reply.finish(Ok(Answer::Written(data.len() as u32))),
            Operation::Lookup { .. } => reply.error(Errno::NOENT),
            _ => reply.done(),
        }
    }
}

fn keep() -> Keep {
    Arc::new(|data| {
        assert_ne!(data, b"panic", "a panic on purpose, where data are copied");
        Bytes::copy_from_slice(data)
    })
}

fn write(unique: u64, data: &[u8]) -> Vec<u8> {
    let mut body = vec![0; 40];
    body[16..20].copy_from_slice(&(data.len() as u32).to_ne_bytes());
    body.extend(data);
    request(abi::op::WRITE, unique, &body)
}

#[test]
fn a_request_that_panics_is_answered_eio_and_costs_no_other() {
    let (ours, kernel) = connected();
    kernel.ask(&hello(7, 45, 0));
    let mut session = Session::negotiate(ours).expect("agreement");
    let (unique, error, body) = kernel.answer();
    assert_eq!((unique, error, body.len()), (2, 0, 64));
    let (ended, ends) = std::sync::mpsc::channel();
    session.serve(Arc::new(Odd), keep(), move || ended.send(()).expect("received")).expect("threads");
    // Often enough that a thread lost by each would be noticed.
    for round in 0..2 * THREADS as u64 {
        let unique = 100 + 10 * round;
        for (name, after) in [("now", 0), ("later", 2)] {
            kernel.lookup(unique + after, name);
            assert_eq!(kernel.answer(), (unique + after, -libc::EIO, Vec::new()), "{name}");
        }
        kernel.lookup(unique + 4, "after");
        assert_eq!(kernel.answer(), (unique + 4, 0, Vec::new()), "answered once");
        kernel.ask(&write(unique + 6, b"panic"));
        assert_eq!(kernel.answer(), (unique + 6, -libc::EIO, Vec::new()));
        kernel.ask(&write(unique + 8, b"data"));
        assert_eq!(
            kernel.answer(),
            (unique + 8, 0, [4u32, 0].map(u32::to_ne_bytes).concat()),
            "the next one is served"
        );
    }
    kernel.lookup(1000, "other");
    assert_eq!(kernel.answer(), (1000, -libc::ENOENT, Vec::new()));
    assert!(ends.try_recv().is_err(), "a serving thread ended");
    drop(kernel);
    session.join();
    assert_eq!(ends.iter().count(), THREADS, "each thread says that it ended");
}

#[test]
fn what_is_not_offered_or_malformed_is_answered_and_serving_goes_on() {
    let (ours, kernel) = connected();
    kernel.ask(&hello(7, 31, 0));
    let mut session = Session::negotiate(ours).expect("agreement");
    kernel.answer();
    session.serve(Arc::new(Odd), keep(), || {}).expect("threads");
    // What we do not do, and what nobody knows yet.
    for opcode in abi::op::UNSERVED.into_iter().chain([abi::op::GREATEST + 1, 4242]) {
        kernel.ask(&request(opcode, 1, &[0; 100]));
        assert_eq!(kernel.answer(), (1, -libc::ENOSYS, Vec::new()), "operation {opcode}");
    }
    // A name without its end, and bytes that are not even a header.
    kernel.ask(&request(abi::op::LOOKUP, 3, b"endless"));
    assert_eq!(kernel.answer(), (3, -libc::EIO, Vec::new()));
    kernel.ask(b"short");
    kernel.lookup(5, "other");
    assert_eq!(kernel.answer(), (5, -libc::ENOENT, Vec::new()));
    drop(kernel);
    session.join();
}

#[test]
fn a_kernel_that_speaks_another_protocol_is_told_so() {
    for (major, minor) in [(8, 0), (7, 30), (6, 99)] {
        let (ours, kernel) = connected();
        kernel.ask(&hello(major, minor, 0));
        let refused = Session::negotiate(ours).expect_err("refused");
        assert!(refused.to_string().contains(&format!("FUSE {major}.{minor}")), "{refused}");
        assert_eq!(kernel.answer(), (2, -libc::EPROTO, Vec::new()));
    }
    let (ours, kernel) = connected();
    kernel.lookup(1, "x");
    assert!(matches!(Session::negotiate(ours), Err(SessionError::NoInit)));
}

#[test]
fn only_what_both_sides_want_is_agreed_upon() {
    let (ours, kernel) = connected();
    let offered = (init::FLOCK_LOCKS | 1 << 3 | init::SETXATTR_EXT) as u32;
    kernel.ask(&hello(7, 45, offered));
    let session = Session::negotiate(ours).expect("agreement");
    let (_, _, body) = kernel.answer();
    assert_eq!(
        u32::from_ne_bytes(body[12..16].try_into().expect("four")),
        (init::FLOCK_LOCKS | init::SETXATTR_EXT) as u32
    );
    assert_eq!(session.negotiated(), Negotiated { minor: 45, flags: init::FLOCK_LOCKS | init::SETXATTR_EXT });
}
