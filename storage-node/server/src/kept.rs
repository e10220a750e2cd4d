//! Small files that a node keeps in its disk directories, beside the data.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Puts a file into a directory, in the place of the one of that name. Durable on return; after a crash it is whole, or as it was before.
///
/// # Errors
/// What the file system reports.
pub(crate) fn replace(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let (path, partial) = (directory.join(name), directory.join(format!("{name}.new")));
    let mut file = File::create(&partial)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&partial, &path)?;
    File::open(directory)?.sync_all()
}
