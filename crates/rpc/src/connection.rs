//! The life of one connection: hello, then frames both ways until somebody ends it. One task reads, writes and keeps time.

use crate::dial::quic_refused;
use crate::error::{ConnectError, Refusal};
use crate::handler::{Handler, Hold, Incoming, Link, Responder, Response};
use crate::identity::{Expect, PeerIdentity, Role};
use crate::reader::{ReadError, Reader};
use crate::shared::Shared;
use crate::stream::Stream;
use crate::table::{End, Out, units};
use crate::writer::Writer;
use bytes::Bytes;
use holdfast_wire::frame::{FrameError, FrameKind, Header};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};

/// How long an end that has said everything waits for the other to close.
const LINGER: Duration = Duration::from_millis(500);
/// Stands in for a request without a deadline.
const DEADLINE_NONE: Duration = Duration::from_secs(3600);

/// Which end of a connection we are.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    /// We called, and expect somebody.
    Dialled(Expect),
    /// We were called.
    Answered,
}

/// A connection after the hello, ready to run.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    peer: PeerIdentity,
    reader: Reader<Box<dyn AsyncRead + Send + Unpin>>,
    writer: Writer<Box<dyn AsyncWrite + Send + Unpin>>,
    quic: Option<quinn::Connection>,
    remote: String,
}

impl Connection {
    /// Says hello and hears one. Afterwards both ends know, and where certificates exist have proved, who the other is.
    ///
    /// The end that dialled speaks first; the other's hello says that it is let in, or shows in what the two do not agree.
    ///
    /// # Errors
    /// [`ConnectError`] when the other end is not of our cluster, not whom we expect, or does not speak our language.
    pub async fn introduce(stream: Stream, shared: Arc<Shared>, side: Side) -> Result<Self, ConnectError> {
        let Stream { read, write, proven, covered, remote, quic, direct } = stream;
        #[cfg(feature = "faults")]
        let read: Box<dyn tokio::io::AsyncRead + Send + Unpin> = Box::new(holdfast_faults::late(read));
        let (mut reader, mut writer) = (Reader::new(read), Writer::new(write, covered));
        let hello = Out { header: shared.hello(), deadline: None, message: Bytes::new(), payload: Bytes::new() };
        writer.encode(hello).map_err(|source| ConnectError::Io { address: remote.clone(), source })?;
        let peer = match side {
            Side::Dialled(expected) => {
                let sent = writer.write(|| ()).await;
                // What the other end said before it closed explains more than the failure to write.
                let header = hear(&mut reader, &remote, sent.err()).await?;
                let peer = check_hello(&header, &shared, proven)?;
                if !expected.accepts(peer) {
                    return Err(ConnectError::Stranger { address: remote, expected, found: peer });
                }
                peer
            }
            Side::Answered => {
                let heard = hear(&mut reader, &remote, None).await;
                let checked = heard.and_then(|header| check_hello(&header, &shared, proven));
                let may_know = matches!(
                    checked,
                    Ok(_) | Err(ConnectError::Cluster { .. } | ConnectError::Frame(FrameError::Version { .. }))
                );
                if may_know {
                    writer.write(|| ()).await.map_err(|error| refused(&remote, error))?;
                }
                checked?
            }
        };
        shared.up(peer, direct, covered);
        Ok(Self { shared, peer, reader, writer, quic, remote })
    }

    /// Runs until either end is done. `ended` is told why and closes `shared`; after that the handler is told.
    pub async fn run(self, handler: Option<&dyn Handler>, ended: impl FnOnce(End)) {
        let Self { shared, peer, mut reader, mut writer, quic, remote } = self;
        let link = Link { shared: shared.clone() };
        tracing::debug!(peer = %peer, %remote, connection = shared.id(), "connected");
        if let Some(handler) = handler {
            handler.connected(&peer, &link);
        }
        let _goodbye = Goodbye { handler, peer, link };
        let reason = {
            let read = read_frames(&mut reader, &shared, peer, handler);
            tokio::pin!(read);
            tokio::select! {
                reason = &mut read => reason,
                reason = shared.run_timers() => reason,
                () = shared.until_stopped() => "closed here".into(),
                result = writer.run(&shared) => match result {
                    Err(error) => format!("cannot write: {}", whole(&error)).into(),
                    // All is said. Reading on until the other end closes keeps the last answers from being cut off.
                    Ok(()) => tokio::time::timeout(LINGER, read).await.unwrap_or_else(|_| "closed here".into()),
                },
            }
        };
        if let Some(quic) = quic {
            quic.close(0u32.into(), b"");
        }
        tracing::debug!(peer = %peer, %remote, connection = shared.id(), %reason, "disconnected");
        ended(End::Closed(reason));
    }
}

/// Tells the handler, also when the task is cancelled or the handler itself panicked.
struct Goodbye<'a> {
    handler: Option<&'a dyn Handler>,
    peer: PeerIdentity,
    link: Link,
}

impl Drop for Goodbye<'_> {
    fn drop(&mut self) {
        // Does nothing where the connection came to its regular end.
        self.link.shared.close(&End::Closed("the connection was dropped".into()));
        let Some(handler) = self.handler else { return };
        // A second panic while the first unwinds would end the process.
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            handler.disconnected(&self.peer, &self.link);
        }));
        if told.is_err() {
            tracing::error!(peer = %self.peer, "a handler panicked when told of a lost connection");
        }
    }
}

/// The other end's first header; `earlier` is what went wrong before.
async fn hear<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    remote: &str,
    earlier: Option<io::Error>,
) -> Result<Header, ConnectError> {
    reader.header(|| ()).await.map_err(|error| match error {
        ReadError::Frame(error) => error.into(),
        ReadError::Io(error) => refused(remote, error),
        ReadError::End => refused(remote, earlier.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())),
    })
}

fn check_hello(header: &Header, shared: &Shared, proven: Option<PeerIdentity>) -> Result<PeerIdentity, ConnectError> {
    if header.kind != FrameKind::Hello || header.message_length != 0 || header.payload_length != 0 {
        return Err(ConnectError::Hello("something else comes first"));
    }
    if header.cluster != shared.identity().cluster() {
        return Err(ConnectError::Cluster { theirs: header.cluster, ours: shared.identity().cluster() });
    }
    let role = Role::from_u16(header.method).ok_or(ConnectError::Hello("unknown role"))?;
    let claimed = PeerIdentity { role, id: header.sender };
    match proven {
        Some(proven) if proven != claimed => Err(ConnectError::Hello("it claims to be another than it proves")),
        _ => Ok(claimed),
    }
}

/// TLS 1.3 lets a client send before the server has judged its certificate, so the verdict arrives as a failed read.
fn refused(remote: &str, error: io::Error) -> ConnectError {
    let address = remote.into();
    let Some(inner) = error.get_ref() else { return ConnectError::Io { address, source: error } };
    if inner.is::<rustls::Error>() {
        return ConnectError::Tls { address, reason: inner.to_string() };
    }
    match (inner.downcast_ref::<quinn::ReadError>(), inner.downcast_ref::<quinn::WriteError>()) {
        (Some(quinn::ReadError::ConnectionLost(lost)), _) | (_, Some(quinn::WriteError::ConnectionLost(lost))) => {
            quic_refused(address, lost)
        }
        _ => ConnectError::Io { address, source: error },
    }
}

/// An error with its causes: QUIC hides there what happened.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}

async fn read_frames<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    shared: &Arc<Shared>,
    peer: PeerIdentity,
    handler: Option<&dyn Handler>,
) -> Arc<str> {
    loop {
        let result = read_frame(reader, shared, peer, handler).await;
        match result {
            Ok(()) => shared.until_room().await,
            Err(Broken::Read(ReadError::End)) => return "closed by the other side".into(),
            Err(error) => {
                if !matches!(&error, Broken::Read(ReadError::Io(_))) {
                    tracing::warn!(peer = %peer, %error, "unusable bytes; closing the connection");
                }
                return whole(&error).into();
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{0}")]
    Rule(&'static str),
}

async fn read_frame<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    shared: &Arc<Shared>,
    peer: PeerIdentity,
    handler: Option<&dyn Handler>,
) -> Result<(), Broken> {
    let progress = || shared.touch_read();
    let header = reader.header(progress).await?;
    if header.cluster != shared.identity().cluster() || header.sender != peer.id {
        return Err(Broken::Rule("a frame names another cluster or sender than the hello"));
    }
    let (message, payload) = reader.bodies(&header, progress).await?;
    match header.kind {
        FrameKind::Hello => return Err(Broken::Rule("a second hello")),
        FrameKind::Alive => {}
        FrameKind::Cancel => shared.cancelled(header.request),
        FrameKind::Response => shared.answered(header.request, Ok(Response { message, payload })),
        FrameKind::Failure => shared.answered(header.request, Err(Refusal::from_u16(header.method))),
        FrameKind::Request => serve(shared, peer, handler, &header, message, payload).map_err(Broken::Rule)?,
        FrameKind::OneWay => {
            if let Some(handler) = handler {
                let units = units(message.len() as u64 + payload.len() as u64);
                handler.one_way(&peer, incoming(shared, &header, message, payload, units));
            }
        }
    }
    Ok(())
}

fn serve(
    shared: &Arc<Shared>,
    peer: PeerIdentity,
    handler: Option<&dyn Handler>,
    header: &Header,
    message: Bytes,
    payload: Bytes,
) -> Result<(), &'static str> {
    let Some(handler) = handler else {
        shared.refuse_unseen(header.request, Refusal::Unhandled);
        return Ok(());
    };
    if !shared.begin(header.request)? {
        shared.refuse_unseen(header.request, Refusal::Closing);
        return Ok(());
    }
    let units = units(message.len() as u64 + payload.len() as u64);
    let respond = Responder::new(shared.clone(), header.request, header.method, units);
    // Its bytes are counted by the responder.
    handler.handle(&peer, incoming(shared, header, message, payload, 0), respond);
    Ok(())
}

fn incoming(shared: &Arc<Shared>, header: &Header, message: Bytes, payload: Bytes, units: u64) -> Incoming {
    let left = match header.deadline_us {
        0 => DEADLINE_NONE,
        us => Duration::from_micros(us).min(DEADLINE_NONE),
    };
    Incoming {
        kind: header.method,
        message,
        payload,
        deadline: Instant::now() + left,
        trace: header.trace,
        link: Link { shared: shared.clone() },
        _hold: Hold::new(shared.clone(), units),
    }
}
