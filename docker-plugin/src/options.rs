//! What `docker volume create -o NAME=VALUE` may say.
//!
//! An option that is not known is an error that names the nearest known one: a misspelt `acess=single-writer` must not become a volume
//! that two hosts write to.

use holdfast_config::{Size, nearest};
use holdfast_wire::open::OpenRule;
use std::collections::BTreeMap;
use std::fmt;

/// Options in the order of the documentation.
const KNOWN: [&str; 5] = ["size", "replicas", "access", "read-only", "open"];

/// Who may have a volume mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Any number of hosts at once.
    #[default]
    Shared,
    /// One host at a time: a mount on another one ends what the former had, wherever it is.
    SingleWriter,
}

impl Access {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Access::Shared => "shared",
            Access::SingleWriter => "single-writer",
        }
    }

    /// The access that is written so.
    pub fn parse(text: &str) -> Option<Self> {
        [Access::Shared, Access::SingleWriter].into_iter().find(|access| access.as_str() == text)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was asked for. What was not said is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Bytes it may hold at the most.
    pub size_bytes: Option<u64>,
    /// Copies of each chunk.
    pub replicas: Option<u32>,
    /// Who may have it mounted.
    pub access: Option<Access>,
    /// Containers only read it.
    pub read_only: Option<bool>,
    /// Who may have a file open at the same time.
    pub open: Option<OpenRule>,
}

/// Why options are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// There is no such option.
    #[error(
        "unknown option {given:?}; did you mean {nearest:?}? Options are size, replicas, access, read-only and open"
    )]
    Unknown {
        /// What was given.
        given: String,
        /// The known option most like it.
        nearest: &'static str,
    },
    /// The value is not one that it takes.
    #[error("option {name}: {value:?} is not {wanted}")]
    Value {
        /// Which option.
        name: &'static str,
        /// What was given.
        value: String,
        /// What it takes.
        wanted: &'static str,
    },
}

impl Wanted {
    /// Takes what `docker volume create` was given.
    ///
    /// # Errors
    /// [`OptionError`], for the first option in the order of their names that is wrong.
    pub fn parse(options: &BTreeMap<String, String>) -> Result<Self, OptionError> {
        let mut wanted = Self::default();
        for (name, value) in options {
            let wrong = |name, wanted| OptionError::Value { name, value: value.clone(), wanted };
            match name.as_str() {
                "size" => wanted.size_bytes = Some(size(value).ok_or_else(|| wrong("size", SIZE))?),
                "replicas" => {
                    let copies = value.parse().ok().filter(|copies| *copies > 0);
                    wanted.replicas = Some(copies.ok_or_else(|| wrong("replicas", "a whole number from 1"))?);
                }
                "access" => {
                    let access = Access::parse(value).ok_or_else(|| wrong("access", "\"shared\" or \"single-writer\""));
                    wanted.access = Some(access?);
                }
                "read-only" => {
                    let flag = match value.as_str() {
                        // `-o read-only` comes without a value.
                        "" | "true" => true,
                        "false" => false,
                        _ => return Err(wrong("read-only", "\"true\" or \"false\"")),
                    };
                    wanted.read_only = Some(flag);
                }
                "open" => wanted.open = Some(value.parse().map_err(|_| wrong("open", OPEN))?),
                _ => {
                    let nearest = nearest(name, KNOWN.into_iter())
                        .and_then(|word| KNOWN.into_iter().find(|known| *known == word));
                    return Err(OptionError::Unknown { given: name.clone(), nearest: nearest.unwrap_or(KNOWN[0]) });
                }
            }
        }
        Ok(wanted)
    }
}

/// In a user's words.
const OPEN: &str = "\"shared\", \"single-writer\" or \"exclusive\"";
/// In a user's words.
const SIZE: &str = "a size greater than 0: a whole number and its unit (B, KiB, MiB, GiB, TiB), for instance \"20GiB\"";

fn size(text: &str) -> Option<u64> {
    text.parse::<Size>().ok().map(|Size(bytes)| bytes).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Wanted, OptionError> {
        Wanted::parse(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    fn said(pairs: &[(&str, &str)]) -> String {
        parse(pairs).expect_err("refused").to_string()
    }

    #[test]
    fn all_options_are_read_and_none_is_needed() {
        assert_eq!(parse(&[]), Ok(Wanted::default()));
        let all = parse(&[
            ("size", "20GiB"),
            ("replicas", "3"),
            ("access", "single-writer"),
            ("read-only", "true"),
            ("open", "exclusive"),
        ]);
        let wanted = Wanted {
            size_bytes: Some(20 << 30),
            replicas: Some(3),
            access: Some(Access::SingleWriter),
            read_only: Some(true),
            open: Some(OpenRule::Exclusive),
        };
        assert_eq!(all, Ok(wanted));
        assert_eq!(parse(&[("read-only", "")]).expect("a flag").read_only, Some(true));
        assert_eq!(parse(&[("access", "shared"), ("read-only", "false")]).expect("said").access, Some(Access::Shared));
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_nearest_known_one() {
        assert!(said(&[("acess", "single-writer")]).contains("did you mean \"access\""));
        assert!(said(&[("readonly", "true")]).contains("did you mean \"read-only\""));
        assert!(said(&[("replica", "3")]).contains("did you mean \"replicas\""));
    }

    #[test]
    fn a_wrong_value_is_refused_with_what_would_be_right() {
        for wrong in ["20G", "0 B", "-1", "", "twenty GiB"] {
            let said = said(&[("size", wrong)]);
            assert!(said.contains(&format!("{wrong:?}")) && said.contains("GiB"), "{said}");
        }
        assert!(said(&[("replicas", "0")]).contains("whole number"));
        assert!(said(&[("access", "exclusive")]).contains("single-writer"));
        assert!(said(&[("open", "alone")]).contains("single-writer"));
        assert!(said(&[("read-only", "yes")]).contains("\"true\" or \"false\""));
    }
}
