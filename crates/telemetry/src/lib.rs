//! What a process tells of itself: logs to standard error, set up once per process; metrics and health over HTTP ([`http`], [`metrics`]);
//! which operations were slow ([`slow`]).
//!
//! `HOLDFAST_LOG` chooses what is logged, in the syntax of `tracing-subscriber`'s filters (`info,holdfast_rpc=debug`);
//! `HOLDFAST_LOG_FORMAT=json` writes one JSON object per line instead of text.

pub mod http;
pub mod metrics;
pub mod slow;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Names the variable that chooses what is logged.
pub const FILTER_VARIABLE: &str = "HOLDFAST_LOG";
/// Names the variable that chooses how.
pub const FORMAT_VARIABLE: &str = "HOLDFAST_LOG_FORMAT";

/// What is logged when nobody says otherwise: our own events, and of others only what somebody should know.
const FILTER_DEFAULT: &str =
    "info,quinn=warn,quinn_proto=warn,quinn_udp=warn,rustls=warn,raft=warn,fjall=warn,lsm_tree=warn,slog=warn";

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("{FILTER_VARIABLE}={text:?} is not a log filter: {source}")]
    Filter {
        /// What was given.
        text: String,
        /// Why.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The format is not one.
    #[error("{FORMAT_VARIABLE}={0:?} is neither \"text\" nor \"json\"")]
    Format(String),
    /// The process has set up its logging already.
    #[error("logging was set up before: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// What the environment asks for.
#[derive(Debug)]
struct Settings {
    filter: EnvFilter,
    json: bool,
}

impl Settings {
    fn new(filter: Option<&str>, format: Option<&str>) -> Result<Self, TelemetryError> {
        let text = filter.filter(|text| !text.is_empty()).unwrap_or(FILTER_DEFAULT);
        let filter =
            EnvFilter::builder().parse(text).map_err(|source| TelemetryError::Filter { text: text.into(), source })?;
        let json = match format {
            None | Some("" | "text") => false,
            Some("json") => true,
            Some(other) => return Err(TelemetryError::Format(other.into())),
        };
        Ok(Self { filter, json })
    }
}

/// Sends this process's logs to standard error. `role` is written once, so that merged logs can be told apart.
///
/// # Errors
/// [`TelemetryError`] when the environment asks for something unknown, or on a second call.
pub fn init(role: &str) -> Result<(), TelemetryError> {
    let variable = |name| std::env::var(name).ok();
    let settings = Settings::new(variable(FILTER_VARIABLE).as_deref(), variable(FORMAT_VARIABLE).as_deref())?;
    let registry = tracing_subscriber::registry().with(settings.filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if settings.json {
        registry.with(lines.json()).try_init()?;
    } else {
        registry.with(lines.with_ansi(false)).try_init()?;
    }
    tracing::info!(role, version = env!("CARGO_PKG_VERSION"), process = std::process::id(), "starting");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_in_the_environment_are_named() {
        assert!(!Settings::new(None, None).expect("defaults").json);
        assert!(Settings::new(Some("debug,holdfast_rpc=trace"), Some("json")).expect("good").json);
        let error = Settings::new(Some("info,=,="), None).expect_err("no filter");
        assert!(error.to_string().contains("HOLDFAST_LOG=\"info,=,=\""), "{error}");
        let error = Settings::new(None, Some("yaml")).expect_err("no format");
        assert!(error.to_string().contains("\"yaml\""), "{error}");
    }

    #[test]
    fn logging_is_set_up_once() {
        init("test").expect("the first time");
        assert!(matches!(init("test"), Err(TelemetryError::Twice(_))));
    }
}
