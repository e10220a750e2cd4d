//! The group that is to have a volume's files, so that processes of that group can use them whoever they are.
//!
//! What is done once is not done again: the root directory is changed last, and says that all below it is as it should be.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

/// New files in a directory get its group.
const SET_GROUP: u32 = 0o2000;
/// What the group may do with a directory.
const OF_DIRECTORY: u32 = SET_GROUP | 0o070;
/// And with a file.
const OF_FILE: u32 = 0o060;

/// Gives all that is in a volume to a group. Blocks for as long as there are files.
///
/// # Errors
/// When a file cannot be changed; the next try goes on.
pub(crate) fn give(root: &Path, group: u32) -> io::Result<()> {
    if is_given(&root.symlink_metadata()?, group) {
        return Ok(());
    }
    give_below(root, group)
}

fn is_given(directory: &Metadata, group: u32) -> bool {
    directory.gid() == group && directory.mode() & OF_DIRECTORY == OF_DIRECTORY
}

fn give_below(directory: &Path, group: u32) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            give_below(&entry.path(), group)?;
        } else {
            give_one(&entry.path(), group, OF_FILE)?;
        }
    }
    give_one(directory, group, OF_DIRECTORY)
}

fn give_one(path: &Path, group: u32, mode: u32) -> io::Result<()> {
    let before = path.symlink_metadata()?;
    if before.gid() != group {
        lchown(path, None, Some(group))?;
    }
    let wanted = before.mode() | mode;
    // A link has no mode of its own; and a changed group may have taken set-id bits away.
    if !before.is_symlink() && (wanted != before.mode() || before.gid() != group) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(wanted & 0o7777))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_below_gets_the_group_and_the_root_says_so_last() {
        let root = tempfile::tempdir().expect("a folder");
        let (folder, file) = (root.path().join("d"), root.path().join("d/f"));
        std::fs::create_dir(&folder).expect("made");
        std::fs::write(&file, "x").expect("written");
        std::os::unix::fs::symlink("/nowhere", root.path().join("l")).expect("linked");
        // Our own group can be given by anybody.
        let group = root.path().metadata().expect("there").gid();
        give(root.path(), group).expect("given");
        let mode = |path: &Path| path.metadata().expect("there").mode() & 0o7777;
        assert_eq!(mode(&folder) & OF_DIRECTORY, OF_DIRECTORY);
        assert_eq!((mode(&file) & OF_FILE, mode(&file) & 0o111), (OF_FILE, 0));
        assert!(is_given(&root.path().metadata().expect("there"), group));
        // Given already: nothing below is looked at again.
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("changed");
        give(root.path(), group).expect("given");
        assert_eq!(mode(&file), 0o600);
    }
}
