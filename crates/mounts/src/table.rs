//! The kernel's table of mounts, `/proc/self/mountinfo`: the one way to learn what is mounted without asking it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mount, as far as we care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Its device number, `MAJOR:MINOR`.
    pub device: String,
    /// Where.
    pub point: PathBuf,
    /// Type of the file system.
    pub kind: String,
    /// What is mounted, in the file system's own words.
    pub source: String,
    /// Options of the mount and of the file system, separated by commas.
    pub options: String,
}

/// What is mounted on exactly this (absolute) path; of several, the topmost.
pub fn mounted_at(point: &Path) -> Option<Mounted> {
    mounted().into_iter().rfind(|mounted| mounted.point == point)
}

/// Everything that is mounted, what was mounted later after what was mounted before.
pub fn mounted() -> Vec<Mounted> {
    parse(&std::fs::read("/proc/self/mountinfo").unwrap_or_default()).collect()
}

impl Mounted {
    /// Whether nothing can be changed through it.
    pub fn is_read_only(&self) -> bool {
        self.options.split(',').any(|word| word == "ro")
    }
}

/// The number of the device that is mounted on exactly this path, `MAJOR:MINOR`.
pub fn device_of(point: &Path) -> Option<String> {
    mounted_at(point).map(|mounted| mounted.device)
}

/// Lines are `id parent device root point options [tags] - type source options`.
fn parse(table: &[u8]) -> impl Iterator<Item = Mounted> + '_ {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
        let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
        let of_mount = String::from_utf8_lossy(fields.next()?).into_owned();
        fields.find(|field| *field == b"-")?;
        let kind = String::from_utf8(fields.next()?.to_vec()).ok()?;
        let source = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
        let of_file_system = String::from_utf8_lossy(fields.next()?).into_owned();
        Some(Mounted { device, point, kind, source, options: format!("{of_mount},{of_file_system}") })
    })
}

/// Blanks, tabs, newlines and backslashes stand as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\').then(|| tail.get(..3)).flatten().and_then(|digits| {
            digits.iter().try_fold(0u16, |n, digit| digit.is_ascii_digit().then(|| n * 8 + u16::from(digit - b'0')))
        });
        match octal.and_then(|n| u8::try_from(n).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_with_its_escapes_and_optional_fields() {
        let table = b"36 35 98:0 /mnt1 /mnt/a\\040b\\134c rw,noatime master:1 shared:2 - ext4 /dev/root rw\n\
            40 35 0:51 / /mnt rw - fuse.holdfast holdfast:main rw,user_id=0\nbroken\n";
        let mounts: Vec<_> = parse(table).collect();
        let expected = [
            Mounted {
                device: "98:0".into(),
                point: "/mnt/a b\\c".into(),
                kind: "ext4".into(),
                source: "/dev/root".into(),
                options: "rw,noatime,rw".into(),
            },
            Mounted {
                device: "0:51".into(),
                point: "/mnt".into(),
                kind: "fuse.holdfast".into(),
                source: "holdfast:main".into(),
                options: "rw,rw,user_id=0".into(),
            },
        ];
        assert_eq!(mounts, expected);
        assert_eq!(mounted_at(Path::new("/proc")).map(|mounted| mounted.kind), Some("proc".into()));
    }
}
