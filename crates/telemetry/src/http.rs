//! `/healthz`, `/readyz` and `/metrics` over HTTP, for whoever watches a process.
//!
//! * `/healthz` says whether the process works at all (restart it if not), `/readyz` whether it can serve now (send it nothing if not);
//!   both answer 200, or 503 with the reason.
//! * Nothing here changes anything, and nothing secret is shown. It is in the clear: it listens on loopback unless somebody says else.
//! * A slow or silent reader costs one of a few connections for a bounded time.

use crate::metrics::{Registry, text};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Where it listens when nobody says else: a free port of loopback.
pub const ADDRESS_DEFAULT: &str = "127.0.0.1:0";
/// Instead of an address: do not listen.
pub const OFF: &str = "off";
/// Connections at a time; further ones wait. By eye.
const CONNECTIONS_MAX: usize = 16;
/// A connection ends after so long, whatever it does.
const CONNECTION_LIFE: Duration = Duration::from_secs(30);
/// What scrapers expect of an exposition with units and `# EOF`.
const EXPOSITION: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Says how a process is.
pub trait Health: Send + Sync + 'static {
    /// It works.
    ///
    /// # Errors
    /// Why not: it should be started again.
    fn alive(&self) -> Result<(), String>;

    /// It can serve now.
    ///
    /// # Errors
    /// What it waits for.
    fn ready(&self) -> Result<(), String>;
}

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Endpoint {
    /// Where it listens, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why it cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for telemetry on {address}: {source}; choose another `telemetry-address`, or \"off\"")]
pub struct ListenError {
    address: String,
    source: std::io::Error,
}

struct Served {
    registry: Registry,
    health: Arc<dyn Health>,
}

/// Listens on `HOST:PORT` (port 0: a free one). `"off"`: does not, and returns `None`.
///
/// # Errors
/// [`ListenError`]
pub async fn serve(
    address: &str,
    registry: Registry,
    health: Arc<dyn Health>,
) -> Result<Option<Endpoint>, ListenError> {
    if address == OFF {
        return Ok(None);
    }
    let failed = |source| ListenError { address: address.into(), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    if !bound.ip().is_loopback() {
        tracing::warn!(address = %bound, "telemetry is readable in the clear from other hosts");
    }
    let served = Arc::new(Served { registry, health });
    let task = tokio::spawn(accept(listener, served));
    Ok(Some(Endpoint { address: bound, task }))
}

async fn accept(listener: TcpListener, served: Arc<Served>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = Arc::clone(&served);
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(CONNECTION_LIFE, connection(stream, served)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // No descriptors left, for instance: others need the time more than we do.
                tracing::debug!(%error, "telemetry connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, served: Arc<Served>) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let response = served.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let server = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = server.await {
        tracing::debug!(%error, "telemetry connection ended");
    }
}

impl Served {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".into());
        }
        let state = |state: Result<(), String>| match state {
            Ok(()) => plain(StatusCode::OK, "ok\n".into()),
            Err(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        };
        match path {
            "/healthz" => state(self.health.alive()),
            "/readyz" => state(self.health.alive().and_then(|()| self.health.ready())),
            "/metrics" => {
                let mut response = plain(StatusCode::OK, text(&self.registry));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(EXPOSITION));
                response
            }
            _ => plain(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n".into()),
        }
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Counter;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Switch(AtomicBool, AtomicBool);

    impl Health for Switch {
        fn alive(&self) -> Result<(), String> {
            if self.0.load(Ordering::Relaxed) { Ok(()) } else { Err("the loop ended".into()) }
        }

        fn ready(&self) -> Result<(), String> {
            if self.1.load(Ordering::Relaxed) { Ok(()) } else { Err("nobody leads".into()) }
        }
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }

    #[tokio::test]
    async fn each_page_says_what_it_should() {
        let mut registry = Registry::default();
        let counter = Counter::<u64>::default();
        registry.register("holdfast_test_things", "Things that were counted", counter.clone());
        counter.inc_by(7);
        let health = Arc::new(Switch(AtomicBool::new(true), AtomicBool::new(false)));
        let endpoint = serve(ADDRESS_DEFAULT, registry, health.clone()).await.expect("listens").expect("not off");
        let at = endpoint.address();
        assert!(at.ip().is_loopback() && at.port() != 0, "{at}");
        assert!(get(at, "/healthz").await.starts_with("HTTP/1.1 200"));
        let waiting = get(at, "/readyz").await;
        assert!(waiting.starts_with("HTTP/1.1 503") && waiting.ends_with("nobody leads\n"), "{waiting}");
        health.1.store(true, Ordering::Relaxed);
        assert!(get(at, "/readyz").await.starts_with("HTTP/1.1 200"));
        let metrics = get(at, "/metrics").await;
        assert!(metrics.contains("holdfast_test_things_total 7\n") && metrics.ends_with("# EOF\n"), "{metrics}");
        assert!(get(at, "/other").await.starts_with("HTTP/1.1 404"));
        assert!(
            ask(at, "POST /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.starts_with("HTTP/1.1 405")
        );
        health.0.store(false, Ordering::Relaxed);
        assert!(get(at, "/healthz").await.starts_with("HTTP/1.1 503"));
        // Garbage gets an error, or nothing; the next request an answer.
        let _ = ask(at, "\u{0}\u{1}\u{2}garbage\r\n\r\n").await;
        assert!(get(at, "/metrics").await.starts_with("HTTP/1.1 200"));
        drop(endpoint);
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_named_and_off_is_off() {
        let health = || Arc::new(Switch(AtomicBool::new(true), AtomicBool::new(true)));
        let first = serve(ADDRESS_DEFAULT, Registry::default(), health()).await.expect("listens").expect("not off");
        let taken = first.address().to_string();
        let error = serve(&taken, Registry::default(), health()).await.expect_err("taken").to_string();
        assert!(error.contains(&taken) && error.contains("telemetry-address"), "{error}");
        assert!(serve(OFF, Registry::default(), health()).await.expect("no error").is_none());
    }
}
