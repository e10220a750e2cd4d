//! Open files: the kernel's handle numbers and the client's handles behind them.
//!
//! A handle number given to the kernel is the number of the client's handle made by `open`. A second client handle with the other
//! sense of `O_APPEND` is made on demand: `fcntl` can change the flag later, and the kernel writes back mapped pages through any
//! handle of the file, also one that appends, at positions of its own.

use crate::sync::lock;
use holdfast_client::{HandleId, OpenMode};
use holdfast_types::InodeId;
use std::collections::HashMap;
use std::sync::Mutex;

#[derive(Clone, Copy, Debug)]
struct OpenFile {
    inode: InodeId,
    mode: OpenMode,
    other: Option<HandleId>,
}

/// What to write through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForWrite {
    /// This.
    Ready(HandleId),
    /// A handle that must be opened first, then [`Handles::set_other`].
    Open(InodeId, OpenMode),
    /// No such handle.
    Unknown,
}

/// The table.
#[derive(Debug, Default)]
pub struct Handles(Mutex<HashMap<u64, OpenFile>>);

impl Handles {
    /// A file was opened; returns the kernel's number for it.
    pub fn opened(&self, handle: HandleId, inode: InodeId, mode: OpenMode) -> u64 {
        lock(&self.0).insert(handle.0, OpenFile { inode, mode, other: None });
        handle.0
    }

    /// The client's handle for a write that appends or not.
    pub fn for_write(&self, number: u64, append: bool) -> ForWrite {
        match lock(&self.0).get(&number) {
            None => ForWrite::Unknown,
            Some(file) if file.mode.append == append => ForWrite::Ready(HandleId(number)),
            Some(OpenFile { other: Some(other), .. }) => ForWrite::Ready(*other),
            Some(file) => ForWrite::Open(file.inode, OpenMode { append, ..file.mode }),
        }
    }

    /// The second handle was made; returns the one to use, and one to release if another was made meanwhile or the file was closed.
    pub fn set_other(&self, number: u64, made: HandleId) -> (Option<HandleId>, Option<HandleId>) {
        match lock(&self.0).get_mut(&number) {
            None => (None, Some(made)),
            Some(OpenFile { other: Some(other), .. }) => (Some(*other), Some(made)),
            Some(file) => {
                file.other = Some(made);
                (Some(made), None)
            }
        }
    }

    /// The last descriptor is closed: the client's handles to release.
    pub fn closed(&self, number: u64) -> Vec<HandleId> {
        lock(&self.0)
            .remove(&number)
            .map(|file| [Some(HandleId(number)), file.other].into_iter().flatten().collect())
            .unwrap_or_default()
    }

    /// Open files, for metrics.
    pub fn count(&self) -> usize {
        lock(&self.0).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_goes_through_a_handle_of_its_own_kind() {
        let handles = Handles::default();
        let append = OpenMode { append: true, ..OpenMode::default() };
        let number = handles.opened(HandleId(3), InodeId(9), append);
        assert_eq!(handles.for_write(number, true), ForWrite::Ready(HandleId(3)));
        assert_eq!(handles.for_write(number, false), ForWrite::Open(InodeId(9), OpenMode::default()));
        assert_eq!(handles.set_other(number, HandleId(4)), (Some(HandleId(4)), None));
        assert_eq!(handles.set_other(number, HandleId(5)), (Some(HandleId(4)), Some(HandleId(5))));
        assert_eq!(handles.for_write(number, false), ForWrite::Ready(HandleId(4)));
        assert_eq!(handles.closed(number), [HandleId(3), HandleId(4)]);
        assert_eq!(handles.set_other(number, HandleId(6)), (None, Some(HandleId(6))), "closed meanwhile");
        assert_eq!(handles.for_write(number, true), ForWrite::Unknown);
    }
}
