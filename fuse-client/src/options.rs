//! Mount options: the text after `-o`.
//!
//! Unknown options are errors that name the nearest known one: a misspelt `soft` must not become a hard mount. Generic options that
//! other file systems take and that change nothing here (`defaults`, `nofail`, `_netdev`, ...) are accepted, so that `fstab` lines
//! and container runtimes need no special case.

use crate::lost::OnLost;
use holdfast_types::InstanceGeneration;
use std::path::PathBuf;
use std::time::Duration;

const INSTANCE_BYTES_MAX: usize = 253;

/// How a volume is to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Nothing can be changed.
    pub read_only: bool,
    /// Other users than the one who mounts may use it. `None`: as root yes, else no.
    pub allow_other: Option<bool>,
    /// Calls fail with `EIO` when the cluster has not answered for so long. `None`: they wait (`hard`).
    pub soft: Option<Duration>,
    /// Bytes of file data kept for reading. `None`: the client's default.
    pub cache_bytes: Option<u64>,
    /// Bytes of un-flushed writes at the most. `None`: the client's default.
    pub write_buffer_bytes: Option<u64>,
    /// How long a written byte may wait before it is sent. `None`: the client's default, 1 s.
    pub writeback_delay: Option<Duration>,
    /// `HOST:PORT` of `/healthz`, `/readyz` and `/metrics`, or `off`. `None`: a free port of loopback.
    pub telemetry: Option<String>,
    /// Calls that take so long are logged. `None`: 1 s.
    pub slow_operation: Option<Duration>,
    /// Set-id bits of programs are honoured.
    pub set_id: bool,
    /// Device files work.
    pub devices: bool,
    /// Programs can be run.
    pub execute: bool,
    /// Reading a file sets its access time as `relatime` has it; else it never does.
    pub relatime: bool,
    /// Name that an orchestrator gives to what uses the mount. A mount of the same volume and instance with a greater generation ends this one.
    pub instance: Option<String>,
    /// Generation of that instance; counts for nothing without one.
    pub generation: InstanceGeneration,
    /// What callers see once others have ended the mount's session.
    pub on_lost: OnLost,
    /// Where bytes are kept that can no longer be sent.
    pub quarantine: Quarantine,
}

/// Where bytes are kept that can no longer be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Quarantine {
    /// `/var/lib/holdfast/quarantine`; for others than root a folder of their own.
    #[default]
    Usual,
    /// A folder.
    At(PathBuf),
    /// Nowhere: they are lost.
    Off,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_other: None,
            soft: None,
            cache_bytes: None,
            write_buffer_bytes: None,
            writeback_delay: None,
            telemetry: None,
            slow_operation: None,
            set_id: false,
            devices: false,
            execute: true,
            relatime: true,
            instance: None,
            generation: InstanceGeneration(0),
            on_lost: OnLost::default(),
            quarantine: Quarantine::default(),
        }
    }
}

/// Why options cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// There is no such option.
    #[error("unknown mount option {given:?}; did you mean {nearest:?}?")]
    Unknown {
        /// What was given.
        given: String,
        /// The known option most like it.
        nearest: &'static str,
    },
    /// The value is missing or wrong.
    #[error("mount option {name}: {value:?} is not {wanted}")]
    Value {
        /// Which option.
        name: String,
        /// What was given.
        value: String,
        /// What it takes.
        wanted: &'static str,
    },
}

/// Options that change something, as they are written.
const KNOWN: &[&str] = &[
    "ro",
    "rw",
    "allow_other",
    "noallow_other",
    "hard",
    "soft=SECONDS",
    "cache=SIZE",
    "write_buffer=SIZE",
    "writeback_delay=DURATION",
    "telemetry=HOST:PORT",
    "slow_operation=DURATION",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "relatime",
    "noatime",
    "instance=NAME",
    "generation=N",
    "on_lost=eio|block|kill",
    "quarantine=DIRECTORY|off",
];

/// Options that are accepted and change nothing: either they are always so, or they are for others to read.
const IGNORED: &[&str] = &[
    "defaults",
    "lazytime",
    "nodiratime",
    "diratime",
    "async",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nofail",
    "_netdev",
    "default_permissions",
    "iversion",
    "noiversion",
];

impl Options {
    /// Reads the texts of all `-o`, each of options separated by commas; later ones win.
    ///
    /// # Errors
    /// [`OptionError`] naming the option at fault.
    pub fn parse(texts: &[String]) -> Result<Self, OptionError> {
        let mut options = Self::default();
        for given in texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|given| !given.is_empty()) {
            options.apply(given)?;
        }
        if options.instance.is_none() && options.generation.0 > 0 {
            return Err(OptionError::Value {
                name: "generation".into(),
                value: options.generation.to_string(),
                wanted: "of use without instance=NAME, which it is the generation of",
            });
        }
        Ok(options)
    }

    fn apply(&mut self, given: &str) -> Result<(), OptionError> {
        let (name, value) = given.split_once('=').map_or((given, None), |(name, value)| (name, Some(value)));
        let is_for_others = IGNORED.contains(&name) || name.starts_with("x-") || name == "comment";
        match (name, value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("allow_other", None) => self.allow_other = Some(true),
            ("noallow_other", None) => self.allow_other = Some(false),
            ("hard", None) => self.soft = None,
            ("suid", None) => self.set_id = true,
            ("nosuid", None) => self.set_id = false,
            ("dev", None) => self.devices = true,
            ("nodev", None) => self.devices = false,
            ("exec", None) => self.execute = true,
            ("noexec", None) => self.execute = false,
            ("noatime", None) => self.relatime = false,
            // To set it with every read would be a change that is replicated for each: nobody asks for that and means it.
            ("relatime" | "atime" | "strictatime", None) => self.relatime = true,
            ("soft", value) => self.soft = Some(duration(name, value.unwrap_or(""))?),
            ("writeback_delay", value) => self.writeback_delay = Some(duration(name, value.unwrap_or(""))?),
            ("slow_operation", value) => self.slow_operation = Some(duration(name, value.unwrap_or(""))?),
            ("telemetry", Some(value)) => self.telemetry = Some(telemetry(value)?),
            ("instance", value) => self.instance = Some(instance(value.unwrap_or(""))?),
            ("on_lost", value) => self.on_lost = on_lost(value.unwrap_or(""))?,
            ("quarantine", value) => self.quarantine = quarantine(value.unwrap_or(""))?,
            ("generation", value) => self.generation = generation(value.unwrap_or(""))?,
            ("cache", value) => self.cache_bytes = Some(size(name, value.unwrap_or(""))?),
            ("write_buffer", value) => self.write_buffer_bytes = Some(size(name, value.unwrap_or(""))?),
            _ if is_for_others => {}
            _ => return Err(OptionError::Unknown { given: given.into(), nearest: nearest(name) }),
        }
        Ok(())
    }
}

/// Seconds, or a number with `ms`, `s`, `min`; more than zero.
fn duration(name: &str, value: &str) -> Result<Duration, OptionError> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &value[digits.len()..] {
        "" | "s" => 1_000,
        "ms" => 1,
        "min" | "m" => 60_000,
        _ => 0,
    };
    let millis = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|millis| *millis > 0);
    millis.map(Duration::from_millis).ok_or_else(|| OptionError::Value {
        name: name.into(),
        value: value.into(),
        wanted: "a number of seconds above 0 (units ms, s, min)",
    })
}

/// A name of up to 253 bytes, as long as those of hosts and pods may be.
fn instance(value: &str) -> Result<String, OptionError> {
    let is_name = !value.is_empty() && value.len() <= INSTANCE_BYTES_MAX && !value.contains(char::is_control);
    is_name.then(|| value.to_owned()).ok_or_else(|| OptionError::Value {
        name: "instance".into(),
        value: value.into(),
        wanted: "a name of 1 to 253 bytes",
    })
}

fn on_lost(value: &str) -> Result<OnLost, OptionError> {
    match value {
        "eio" => Ok(OnLost::Error),
        "block" => Ok(OnLost::Block),
        "kill" => Ok(OnLost::Kill),
        _ => {
            let wanted = "eio (calls fail), block (calls wait) or kill (processes with open files are killed)";
            Err(OptionError::Value { name: "on_lost".into(), value: value.into(), wanted })
        }
    }
}

/// `off`, or an absolute path: the mount's process may run in another directory than whoever starts it.
fn quarantine(value: &str) -> Result<Quarantine, OptionError> {
    match value {
        "off" => Ok(Quarantine::Off),
        _ if value.starts_with('/') => Ok(Quarantine::At(value.into())),
        _ => {
            let wanted = "a directory (an absolute path) or off";
            Err(OptionError::Value { name: "quarantine".into(), value: value.into(), wanted })
        }
    }
}

/// A number.
fn generation(value: &str) -> Result<InstanceGeneration, OptionError> {
    value.parse().map(InstanceGeneration).map_err(|_| OptionError::Value {
        name: "generation".into(),
        value: value.into(),
        wanted: "a number, greater for whoever is to take over",
    })
}

/// `off`, or `HOST:PORT`.
fn telemetry(value: &str) -> Result<String, OptionError> {
    if holdfast_client::port(value).is_some() || value == holdfast_telemetry::http::OFF {
        return Ok(value.into());
    }
    let wanted = "HOST:PORT or off";
    Err(OptionError::Value { name: "telemetry".into(), value: value.into(), wanted })
}

/// Bytes, or a number with `K`, `M`, `G` (1024); more than zero.
fn size(name: &str, value: &str) -> Result<u64, OptionError> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &value[digits.len()..] {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        _ => 0,
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| OptionError::Value {
        name: name.into(),
        value: value.into(),
        wanted: "a size above 0 (units K, M, G)",
    })
}

/// The known option that begins like this, else the one that takes the fewest changes of a letter to reach.
fn nearest(given: &str) -> &'static str {
    let name = |option: &'static str| option.split('=').next().unwrap_or(option);
    let meant = holdfast_client::nearest(given, KNOWN.iter().copied().map(name));
    KNOWN.iter().copied().find(|option| meant == Some(name(option))).expect("the table is not empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, OptionError> {
        Options::parse(&[text.into()])
    }

    #[test]
    fn options_are_read_with_their_units_and_later_ones_win() {
        let options = parse("ro,soft=30,cache=64M, writeback_delay=250ms,rw,noatime,_netdev,x-systemd.automount,suid");
        let expected = Options {
            soft: Some(Duration::from_secs(30)),
            cache_bytes: Some(64 << 20),
            writeback_delay: Some(Duration::from_millis(250)),
            set_id: true,
            relatime: false,
            ..Options::default()
        };
        assert_eq!(options, Ok(expected));
        let named = parse("generation=7,instance=db-0").map(|options| (options.instance, options.generation));
        assert_eq!(named, Ok((Some("db-0".into()), InstanceGeneration(7))));
        let lost = parse("on_lost=kill,quarantine=/q").map(|options| (options.on_lost, options.quarantine));
        assert_eq!(lost, Ok((OnLost::Kill, Quarantine::At("/q".into()))));
        assert_eq!(Options::parse(&[]), Ok(Options::default()));
    }

    #[test]
    fn a_misspelt_option_is_an_error_that_names_the_nearest() {
        let nearest = |text| match parse(text) {
            Err(OptionError::Unknown { nearest, .. }) => nearest,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(nearest("sotf=3"), "soft=SECONDS");
        assert_eq!(nearest("alow_other"), "allow_other");
        assert_eq!(nearest("writeback=1"), "writeback_delay=DURATION");
    }

    #[test]
    fn a_value_out_of_its_bounds_is_an_error() {
        for text in [
            "instance=",
            "generation=x",
            "generation=3",
            "soft",
            "soft=",
            "soft=0",
            "soft=-1",
            "soft=1h",
            "cache=1T",
            "cache=99999999999G",
            "telemetry=9000",
            "on_lost=panic",
            "quarantine=here",
            "quarantine",
        ] {
            assert!(matches!(parse(text), Err(OptionError::Value { .. })), "{text}");
        }
    }
}
