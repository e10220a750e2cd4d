//! The engine's volume plugin protocol: a path for each call, JSON both ways, what failed in `Err`.
//!
//! A call that is refused is answered with status 200: the engine then shows `Err` as it is. Other statuses are for requests that are
//! not of this protocol.

use crate::handlers::{CallError, Caller, Placed, Plugin};
use crate::volumes::Volumes;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The media type of requests and answers.
pub const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// An answer of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status of HTTP.
    pub status: StatusCode,
    /// JSON.
    pub body: Value,
}

impl Answer {
    fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, body }
    }

    /// It cannot be done.
    pub fn refusal(status: StatusCode, reason: &str) -> Self {
        Self { status, body: json!({ "Err": reason }) }
    }
}

/// All that a request of the engine may hold; each call has its part of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Asked {
    name: String,
    #[serde(rename = "ID")]
    id: String,
    opts: Option<BTreeMap<String, String>>,
}

/// Serves one request.
pub async fn answer<V: Volumes>(plugin: &Plugin<V>, path: &str, body: &[u8], caller: &impl Caller) -> Answer {
    // Some calls come without a body.
    let asked =
        if body.iter().all(u8::is_ascii_whitespace) { Ok(Asked::default()) } else { serde_json::from_slice(body) };
    let Asked { name, id, opts } = match asked {
        Ok(asked) => asked,
        Err(error) => {
            return Answer::refusal(
                StatusCode::BAD_REQUEST,
                &format!("{path}: the request is not JSON of this protocol: {error}"),
            );
        }
    };
    let begun = Instant::now();
    let call = path.strip_prefix("/VolumeDriver.").unwrap_or(path);
    let done = |()| json!({ "Err": "" });
    let result = match call {
        "/Plugin.Activate" => Ok(json!({ "Implements": ["VolumeDriver"] })),
        "Capabilities" => Ok(json!({ "Capabilities": { "Scope": "global" }, "Err": "" })),
        "Create" => plugin.create(&name, &opts.unwrap_or_default()).await.map(done),
        "Remove" => plugin.remove(&name).await.map(done),
        "Mount" => plugin.mount(&name, &id, caller).await.map(|at| json!({ "Mountpoint": text(Some(at)), "Err": "" })),
        "Path" => Ok(json!({ "Mountpoint": text(plugin.path(&name)), "Err": "" })),
        "Unmount" => plugin.unmount(&name, &id).await.map(done),
        "Get" => plugin.get(&name).await.map(|(Placed { volume, mount_point }, status)| {
            let volume = json!({ "Name": volume.name, "Mountpoint": text(mount_point), "Status": status });
            json!({ "Volume": volume, "Err": "" })
        }),
        "List" => plugin.list().await.map(|volumes| {
            let shown = |placed: Placed| json!({ "Name": placed.volume.name, "Mountpoint": text(placed.mount_point) });
            json!({ "Volumes": volumes.into_iter().map(shown).collect::<Vec<_>>(), "Err": "" })
        }),
        _ => {
            let reason = format!("{path} is not a call of Docker's volume plugin protocol");
            return Answer::refusal(StatusCode::NOT_FOUND, &reason);
        }
    };
    plugin.metrics().call(call, begun.elapsed(), result.is_err());
    match result {
        Ok(body) => Answer::ok(body),
        Err(error) => {
            let reason = error.to_string();
            // Asking for a volume that may not be there is how the engine finds out.
            if !matches!(error, CallError::NoVolume(_)) {
                tracing::warn!(call, volume = name, request = id, reason, "refused");
            }
            Answer::refusal(StatusCode::OK, &reason)
        }
    }
}

/// A path as the engine takes it: empty for none.
fn text(path: Option<PathBuf>) -> String {
    path.as_deref().map(Path::to_string_lossy).unwrap_or_default().into_owned()
}
