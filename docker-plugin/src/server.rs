//! The Unix socket that the engine connects to.
//!
//! * The file is taken over from a plugin that has ended, never from one that serves. It stays when we end: an engine that finds it tries
//!   again for half a minute, so that a restart of ours fails no container's start.
//! * What was begun is finished, even if the engine does not wait for it; it is told to the call, which decides.

use crate::api::{self, Answer, MEDIA_TYPE};
use crate::engine::Engine;
use crate::handlers::{Caller, Plugin};
use crate::volumes::Volumes;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;

/// Connections at a time; further ones wait. The engine keeps two idle and opens one for each call under way. By eye.
const CONNECTIONS_MAX: usize = 256;
/// Calls at a time, those whose caller has gone included. By eye.
const CALLS_MAX: u32 = 256;
/// Largest request. A name, an id and a handful of options.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// How long calls under way may take when we end: a little less than systemd waits.
const FINISH_PATIENCE: Duration = Duration::from_secs(60);

/// Why it cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody does.
    #[error("another docker-plugin serves {0}; end it, or choose another --socket")]
    Served(PathBuf),
    /// The system refuses.
    #[error("cannot listen on {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Listens at a path, for root alone. A socket that nobody serves is replaced, in one step.
///
/// # Errors
/// [`ListenError`]
pub async fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Io { path: path.into(), source };
    if UnixStream::connect(path).await.is_ok() {
        return Err(ListenError::Served(path.into()));
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    // Hidden from the engine, which looks for `*.sock`, until nobody else may connect.
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(failed)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)?;
    Ok(listener)
}

/// Serves until told to stop, then finishes what was begun.
pub async fn serve<V: Volumes>(listener: UnixListener, plugin: Arc<Plugin<V>>, mut stop: watch::Receiver<bool>) {
    let calls = Arc::new(Semaphore::new(CALLS_MAX as usize));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        tokio::select! {
            () = told(&mut stop) => break,
            _ = connections.join_next(), if connections.len() >= CONNECTIONS_MAX => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&plugin), Arc::clone(&calls), stop.clone()));
                }
                Err(error) => {
                    // No descriptors left, for instance: others need the time more than we do.
                    tracing::warn!(%error, "connection of the engine not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    let finished = async {
        while connections.join_next().await.is_some() {}
        // Those whose caller has gone, too.
        let _ = calls.acquire_many(CALLS_MAX).await;
    };
    if tokio::time::timeout(FINISH_PATIENCE, finished).await.is_err() {
        tracing::warn!("calls under way were not finished; the engine will ask again");
    }
}

/// Waits until told to stop. Nobody left who could tell is the same.
async fn told(stop: &mut watch::Receiver<bool>) {
    // What it gives may not be taken to another thread, and nobody wants it.
    drop(stop.wait_for(|stop| *stop).await);
}

async fn connection<V: Volumes>(
    stream: UnixStream,
    plugin: Arc<Plugin<V>>,
    calls: Arc<Semaphore>,
    mut stop: watch::Receiver<bool>,
) {
    // None for one in another namespace of processes, which has no number here.
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
    let engine = pid.and_then(Engine::of);
    let service = service_fn(move |request| call(Arc::clone(&plugin), Arc::clone(&calls), engine, request));
    let mut server = pin!(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut server => Some(ended),
        () = told(&mut stop) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            server.as_mut().graceful_shutdown();
            server.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection of the engine ended");
    }
}

/// Whoever waits for an answer.
struct Waiting {
    sender: oneshot::Sender<Answer>,
    engine: Option<Engine>,
}

impl Caller for Waiting {
    fn has_gone(&self) -> bool {
        self.sender.is_closed()
    }

    fn engine(&self) -> Option<Engine> {
        self.engine
    }
}

async fn call<V: Volumes>(
    plugin: Arc<Plugin<V>>,
    calls: Arc<Semaphore>,
    engine: Option<Engine>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        return Ok(response(Answer::refusal(StatusCode::METHOD_NOT_ALLOWED, "POST only")));
    }
    let body = match Limited::new(body, REQUEST_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            let reason = format!("the request could not be read (at most {REQUEST_BYTES_MAX} bytes): {error}");
            return Ok(response(Answer::refusal(StatusCode::BAD_REQUEST, &reason)));
        }
    };
    let (sender, receiver) = oneshot::channel();
    // Not in this future, which ends with the connection: a mount that was begun is finished or undone.
    tokio::spawn(async move {
        // Never closed.
        let Ok(_permit) = calls.acquire_owned().await else { return };
        let caller = Waiting { sender, engine };
        let answer = api::answer(&plugin, head.uri.path(), &body, &caller).await;
        // Nobody waiting for it any more was the call's to see.
        let _ = caller.sender.send(answer);
    });
    let failed = || Answer::refusal(StatusCode::INTERNAL_SERVER_ERROR, "the plugin failed; its log says where");
    Ok(response(receiver.await.unwrap_or_else(|_| failed())))
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body.to_string())));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response
}

#[cfg(test)]
mod tests;
