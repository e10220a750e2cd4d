//! The group that is to have a volume's files, so that processes of that group can use them whoever they are.
//!
//! What is done once is not done again: the root directory is changed last, and says that all below it is as it should be.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, chownat, fstat, open, openat};
use rustix::process::Gid;
use std::ffi::CStr;
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// New files in a directory get its group.
const SET_GROUP: u32 = 0o2000;
/// What the group may do with a directory.
const OF_DIRECTORY: u32 = SET_GROUP | 0o070;
/// And with a file.
const OF_FILE: u32 = 0o060;

/// Gives all that is in a volume to a group. Blocks for as long as there are files.
///
/// Others may change names below at the same time, and put a link to a file of the host where a file was: so nothing is reached by its path,
/// no link is followed, and nothing of another file system is touched.
///
/// # Errors
/// When a file cannot be changed; the next try goes on.
pub(crate) fn give(root: &Path, group: u32) -> io::Result<()> {
    let root = open(root, directory(), Mode::empty())?;
    let known = fstat(&root)?;
    if is_given(&known, group) {
        return Ok(());
    }
    give_below(&root, &known, group)
}

fn directory() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn is_given(directory: &Stat, group: u32) -> bool {
    directory.st_gid == group && directory.st_mode & OF_DIRECTORY == OF_DIRECTORY
}

fn give_below(directory: &OwnedFd, known: &Stat, group: u32) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            give_entry(directory, entry.file_name(), known, group)?;
        }
    }
    give_one(directory.as_fd(), known, group, OF_DIRECTORY)
}

/// What a name leads to just now, whatever that is: its descriptor stays with it.
fn give_entry(parent: &OwnedFd, name: &CStr, of: &Stat, group: u32) -> io::Result<()> {
    let there = match openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(there) => there,
        // Removed meanwhile.
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let known = fstat(&there)?;
    if known.st_dev != of.st_dev {
        return Ok(());
    }
    if FileType::from_raw_mode(known.st_mode) != FileType::Directory {
        return give_one(there.as_fd(), &known, group, OF_FILE);
    }
    let below = openat(&there, c".", directory(), Mode::empty())?;
    give_below(&below, &known, group)
}

fn give_one(file: BorrowedFd<'_>, known: &Stat, group: u32, mode: u32) -> io::Result<()> {
    if known.st_gid != group {
        chownat(file, c"", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
    }
    let wanted = (known.st_mode | mode) & 0o7777;
    let is_link = FileType::from_raw_mode(known.st_mode) == FileType::Symlink;
    // A link has no mode of its own; and a changed group may have taken set-id bits away.
    if !is_link && (wanted != known.st_mode & 0o7777 || known.st_gid != group) {
        // A descriptor that only names a file takes no fchmod(2); what the kernel calls it leads to that very file (proc(5)).
        let named = format!("/proc/self/fd/{}", file.as_raw_fd());
        std::fs::set_permissions(named, Permissions::from_mode(wanted))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn everything_below_gets_the_group_and_the_root_says_so_last() {
        let root = tempfile::tempdir().expect("a folder");
        let (folder, file) = (root.path().join("d"), root.path().join("d/f"));
        std::fs::create_dir(&folder).expect("made");
        std::fs::write(&file, "x").expect("written");
        std::os::unix::fs::symlink("/nowhere", root.path().join("l")).expect("linked");
        // What links lead to is not ours, files and directories alike.
        let other = tempfile::tempdir().expect("another folder");
        let outside = other.path().join("f");
        std::fs::write(&outside, "x").expect("written");
        for (at, name) in [(outside.as_path(), "to-file"), (other.path(), "d/to-folder")] {
            std::os::unix::fs::symlink(at, root.path().join(name)).expect("linked");
        }
        for at in [outside.as_path(), other.path()] {
            std::fs::set_permissions(at, Permissions::from_mode(0o700)).expect("changed");
        }
        // Our own group can be given by anybody.
        let group = root.path().metadata().expect("there").gid();
        give(root.path(), group).expect("given");
        let mode_of = |path: &Path| path.symlink_metadata().expect("there").mode() & 0o7777;
        assert_eq!((mode_of(&outside), mode_of(other.path())), (0o700, 0o700), "a link was followed");
        let mode = |path: &Path| path.metadata().expect("there").mode() & 0o7777;
        assert_eq!(mode(&folder) & OF_DIRECTORY, OF_DIRECTORY);
        assert_eq!((mode(&file) & OF_FILE, mode(&file) & 0o111), (OF_FILE, 0));
        let is_all_given = || is_given(&rustix::fs::stat(root.path()).expect("there"), group);
        assert!(is_all_given());
        // Given already: nothing below is looked at again.
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("changed");
        give(root.path(), group).expect("given");
        assert_eq!(mode(&file), 0o600);
    }
}
