//! `mount.holdfast`: what mount(8) calls for `mount -t holdfast`, for lines of `/etc/fstab` and for `mount -o remount`.
//!
//! It is this program under another name: a link `/sbin/mount.holdfast` (and `/sbin/mount.fuse.holdfast`, which mount(8) looks for
//! when it remounts what the kernel calls `fuse.holdfast`). Without the second link `mount.fuse3` of Debian's fuse3 is called, which in
//! turn calls `holdfast holdfast:VOLUME DIRECTORY -o OPTIONS`; that is understood, too.
//!
//! A volume's source is written `holdfast:VOLUME`, as the table of mounts shows it, so that `mount -a` knows what is mounted
//! already; `VOLUME` alone will do for `mount`.

use crate::{cli, mount};
use anyhow::{Context, Result, bail};
use clap::Parser;
use holdfast_fuse_client::Options;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where the cluster's description is looked for when neither `-o cluster=` nor `$HOLDFAST_CLUSTER` names it.
const CLUSTER_DEFAULT: &str = "/etc/holdfast/cluster.toml";
/// What a source begins with.
const PREFIX: &str = "holdfast:";

/// The command line that mount(8) uses for helpers.
#[derive(Debug, Parser)]
#[command(name = "mount.holdfast", version, about = "Mounts a Holdfast volume; called by mount(8).")]
struct Helper {
    /// The volume: `holdfast:NAME` or NAME.
    source: String,
    /// Directory to mount on.
    directory: PathBuf,
    /// Options, separated by commas; `cluster=FILE` names the cluster.
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Unknown options are ignored.
    #[arg(short = 's')]
    sloppy: bool,
    /// Check everything, mount nothing.
    #[arg(short = 'f')]
    fake: bool,
    /// Nothing is written to /etc/mtab; nothing ever is.
    #[arg(short = 'n')]
    no_table: bool,
    /// Say more.
    #[arg(short = 'v')]
    verbose: bool,
    /// The type that mount(8) was given.
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
    /// Another namespace of mounts.
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<String>,
}

/// What the options say, sorted by whom they are for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sorted {
    remount: bool,
    cluster: Option<PathBuf>,
    /// Those of the file system.
    options: Vec<String>,
}

/// Whether this program was called as a helper of mount(8).
pub fn is_called(arguments: &[OsString]) -> bool {
    let name = arguments.first().and_then(|program| Path::new(program).file_name());
    let as_helper = name.is_some_and(|name| name == OsStr::new("mount.holdfast") || name == "mount.fuse.holdfast");
    as_helper || arguments.get(1).is_some_and(|source| source.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
}

/// Does what mount(8) asks for.
pub fn run(arguments: Vec<OsString>) -> Result<ExitCode> {
    let helper = Helper::parse_from(arguments);
    if let Some(namespace) = &helper.namespace {
        bail!("-N {namespace} is not supported; run mount within that namespace (nsenter --mount)");
    }
    let sorted = sort_out(&helper.options, helper.sloppy);
    // Before anything is done: an option at fault is named at once.
    Options::parse(&sorted.options)?;
    let volume = helper.source.strip_prefix(PREFIX).unwrap_or(&helper.source);
    if helper.fake {
        return Ok(ExitCode::SUCCESS);
    }
    if sorted.remount {
        holdfast_fuse_client::mount::remount(&helper.directory, &sorted.options)?;
        return Ok(ExitCode::SUCCESS);
    }
    let named = sorted.cluster.or_else(|| std::env::var_os("HOLDFAST_CLUSTER").map(PathBuf::from));
    let cluster = named.unwrap_or_else(|| CLUSTER_DEFAULT.into());
    if !cluster.is_file() {
        bail!("no cluster description at {}; name it by the mount option cluster=FILE", cluster.display());
    }
    let mount = cli::Mount {
        cluster,
        volume: volume.to_owned(),
        directory: helper.directory.clone(),
        options: sorted.options,
        background: true,
    };
    mount::background(&mount, helper.verbose).with_context(|| format!("cannot mount {volume:?}"))
}

fn sort_out(texts: &[String], sloppy: bool) -> Sorted {
    let mut sorted = Sorted::default();
    for given in texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|given| !given.is_empty()) {
        match given.split_once('=').map_or((given, None), |(name, value)| (name, Some(value))) {
            ("remount", None) => sorted.remount = true,
            ("cluster", Some(file)) => sorted.cluster = Some(file.into()),
            // The kernel's own, which a remount repeats from the table of mounts.
            ("fd" | "rootmode" | "user_id" | "group_id" | "max_read" | "blksize" | "fsname" | "subtype", Some(_)) => {}
            _ if sloppy && Options::parse(&[given.to_owned()]).is_err() => {}
            _ => sorted.options.push(given.to_owned()),
        }
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(words: &[&str]) -> bool {
        is_called(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn a_helper_is_known_by_its_name_or_by_a_source_where_a_subcommand_would_stand() {
        assert!(called(&["/sbin/mount.holdfast", "main", "/mnt"]));
        assert!(called(&["mount.fuse.holdfast", "holdfast:main", "/mnt"]));
        assert!(called(&["holdfast", "holdfast:main", "/mnt", "-o", "remount,ro"]));
        assert!(!called(&["holdfast", "mount", "holdfast:main", "/mnt"]));
        assert!(!called(&["holdfast"]) && !called(&[]));
    }

    #[test]
    fn options_are_sorted_by_whom_they_are_for() {
        let texts = ["rw,remount,ro,user_id=0".to_owned(), "cluster=/c.toml,sotf=3,cache=1M".to_owned()];
        let options = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let cluster = Some("/c.toml".into());
        let strict = options(&["rw", "ro", "sotf=3", "cache=1M"]);
        assert_eq!(sort_out(&texts, false), Sorted { remount: true, cluster: cluster.clone(), options: strict });
        let sloppy = options(&["rw", "ro", "cache=1M"]);
        assert_eq!(sort_out(&texts, true), Sorted { remount: true, cluster, options: sloppy });
    }

    #[test]
    fn the_command_line_is_the_one_of_mount_helpers() {
        let words = ["mount.holdfast", "holdfast:main", "/mnt", "-sn", "-o", "rw,ro", "-t", "fuse.holdfast", "-v"];
        let helper = Helper::try_parse_from(words).expect("parses");
        assert!(helper.sloppy && helper.no_table && helper.verbose && !helper.fake);
        assert_eq!((helper.source.as_str(), helper.kind.as_deref()), ("holdfast:main", Some("fuse.holdfast")));
        let first = ["mount.holdfast", "-o", "rw", "main", "/mnt"];
        assert_eq!(Helper::try_parse_from(first).expect("parses").options, ["rw"]);
    }
}
