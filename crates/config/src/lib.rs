//! Configuration files: TOML with typed keys, and errors that say where and what instead.
//!
//! * An unknown key is an error that names the nearest known one, and the line.
//! * Sizes and durations carry their units (`"64 MiB"`, `"250 ms"`); a bare number is an error.
//! * Relative paths are relative to the directory of the file: whoever reads a file makes them so.

mod nearest;
mod units;

pub use nearest::nearest;
pub use units::{Size, Span, UnitError};

use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML, has an unknown key, lacks one, or a value is of the wrong kind.
    #[error("{path}:{line}: {reason}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A value makes no sense, by itself or with others.
    #[error("{path}:{line}: {key}: {reason}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1; 1 when the key is not there.
        line: usize,
        /// Which key.
        key: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
}

/// What makes no sense: the key, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonsense {
    /// Which key.
    pub key: &'static str,
    /// What is wrong and what would be right.
    pub reason: String,
}

/// A key's value makes no sense.
///
/// # Errors
/// Always: what is wrong.
pub fn nonsense<T>(key: &'static str, reason: impl Into<String>) -> Result<T, Nonsense> {
    Err(Nonsense { key, reason: reason.into() })
}

/// The port of `HOST:PORT`; none if it is not of that form.
pub fn port(address: &str) -> Option<u16> {
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok())
}

/// A configuration that can be checked.
pub trait Checked: DeserializeOwned {
    /// Checks values and their relations.
    ///
    /// # Errors
    /// [`Nonsense`], for the first key that makes none.
    fn validate(&self) -> Result<(), Nonsense>;
}

/// Reads and checks a file.
///
/// # Errors
/// [`ConfigError`], naming file, line, key and reason.
pub fn read<T: Checked>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    parse(&text, path)
}

/// Takes the text of a file that lies at `path`.
///
/// # Errors
/// As [`read`].
pub fn parse<T: Checked>(text: &str, path: &Path) -> Result<T, ConfigError> {
    let config: T = parse_unchecked(text, path)?;
    config.validate().map_err(|Nonsense { key, reason }| {
        let line = line_of_key(text, key);
        ConfigError::Invalid { path: path.into(), line, key, reason }
    })?;
    Ok(config)
}

/// The same for a type whose relations are checked elsewhere.
///
/// # Errors
/// [`ConfigError::Parse`]
pub fn parse_unchecked<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = 1 + text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
        ConfigError::Parse { path: path.into(), line, reason: reason(error.message()) }
    })
}

/// The parser's message in a user's words: of the known keys only the nearest is named.
fn reason(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    match (message.starts_with("unknown field"), quoted.next()) {
        (true, Some(given)) => match nearest(given, quoted) {
            Some(known) => format!("unknown key {given:?}; did you mean {known:?}?"),
            None => format!("unknown key {given:?}; this table has none"),
        },
        (false, Some(key)) if message.starts_with("missing field") => format!("the key {key:?} is missing"),
        _ => message.trim().replace('\n', "; "),
    }
}

/// The first line that sets a key, or begins its table.
fn line_of_key(text: &str, key: &str) -> usize {
    let sets = |line: &&str| {
        let line = line.trim_start().trim_start_matches('[');
        line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', ']', '.']))
    };
    1 + text.lines().position(|line| sets(&line)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
