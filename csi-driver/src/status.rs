//! Errors in the interface's words: the one table.

use crate::metrics::Metrics;
use holdfast_volume::VolumeError;
use std::future::Future;
use tonic::{Code, Response, Status};

/// The code of an error, as the interface's specification has it.
pub(crate) fn code(error: &VolumeError) -> Code {
    match error {
        VolumeError::NoVolume { .. } | VolumeError::NoNode { .. } => Code::NotFound,
        VolumeError::Different { .. } | VolumeError::AttachedOtherwise { .. } | VolumeError::Occupied { .. } => {
            Code::AlreadyExists
        }
        VolumeError::Invalid { .. } => Code::InvalidArgument,
        VolumeError::OutOfRange { .. } => Code::OutOfRange,
        VolumeError::InUse { .. }
        | VolumeError::AttachedElsewhere { .. }
        | VolumeError::NotAttached { .. }
        | VolumeError::NotMounted { .. } => Code::FailedPrecondition,
        VolumeError::TooMany { .. } => Code::ResourceExhausted,
        VolumeError::Pending { .. } => Code::Aborted,
        VolumeError::Unavailable { .. } => Code::Unavailable,
        VolumeError::Mount { .. } | VolumeError::Broken { .. } => Code::Internal,
    }
}

/// An error as an answer.
pub(crate) fn status(error: VolumeError) -> Status {
    Status::new(code(&error), error.to_string())
}

/// The same where a mount that is asked about is not there.
pub(crate) fn status_of_path(error: VolumeError) -> Status {
    match error {
        VolumeError::NotMounted { .. } => Status::not_found(error.to_string()),
        other => status(other),
    }
}

/// Does what was asked for to its end, whether or not the caller waits for it, and says how it ended.
pub(crate) async fn finish<T: Send + 'static>(
    metrics: &Metrics,
    call: &'static str,
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<Response<T>, Status> {
    let begun = std::time::Instant::now();
    let metrics = metrics.clone();
    let done = tokio::spawn(async move {
        let done = work.await;
        let took = begun.elapsed();
        metrics.done(call, took, done.is_err());
        let milliseconds = took.as_millis();
        match &done {
            Ok(_) => tracing::debug!(call, milliseconds, "done"),
            Err(status) => {
                tracing::warn!(call, milliseconds, code = ?status.code(), error = status.message(), "refused");
            }
        }
        done
    });
    done.await.unwrap_or_else(|error| Err(Status::internal(format!("{call}: {error}")))).map(Response::new)
}
