//! Open files: the kernel's handle numbers and the client's handles behind them.
//!
//! A handle number given to the kernel is the number of the client's handle made by `open`. A second client handle with the other
//! sense of `O_APPEND` is made on demand: `fcntl` can change the flag later, and the kernel writes back mapped pages through any
//! handle of the file, also one that appends, at positions of its own.

use crate::sync::lock;
use holdfast_client::{HandleId, OpenMode};
use holdfast_types::InodeId;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Mutex;

#[derive(Clone, Copy, Debug)]
struct OpenFile {
    inode: InodeId,
    mode: OpenMode,
    other: Option<HandleId>,
    may_map: bool,
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
pub struct Handles(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    files: HashMap<u64, OpenFile>,
    /// How many open files of an inode may have pages mapped shared that are written to.
    mappable: HashMap<InodeId, usize>,
}

impl Handles {
    /// A file was opened; returns the kernel's number for it. `may_map`: for reading and writing, which shared writable mappings need.
    pub fn opened(&self, handle: HandleId, inode: InodeId, mode: OpenMode, may_map: bool) -> u64 {
        let mut table = lock(&self.0);
        table.files.insert(handle.0, OpenFile { inode, mode, other: None, may_map });
        if may_map {
            *table.mappable.entry(inode).or_default() += 1;
        }
        handle.0
    }

    /// Whether the kernel may hold pages of a file that were written to through a mapping, and that we have not seen. A mapping keeps
    /// its open file, so this is true until the last one is gone.
    pub fn may_be_mapped(&self, inode: InodeId) -> bool {
        lock(&self.0).mappable.contains_key(&inode)
    }

    /// The client's handle for a write that appends or not.
    pub fn for_write(&self, number: u64, append: bool) -> ForWrite {
        match lock(&self.0).files.get(&number) {
            None => ForWrite::Unknown,
            Some(file) if file.mode.append == append => ForWrite::Ready(HandleId(number)),
            Some(OpenFile { other: Some(other), .. }) => ForWrite::Ready(*other),
            Some(file) => ForWrite::Open(file.inode, OpenMode { append, ..file.mode }),
        }
    }

    /// The second handle was made; returns the one to use, and one to release if another was made meanwhile or the file was closed.
    pub fn set_other(&self, number: u64, made: HandleId) -> (Option<HandleId>, Option<HandleId>) {
        match lock(&self.0).files.get_mut(&number) {
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
        let mut table = lock(&self.0);
        let Some(file) = table.files.remove(&number) else { return Vec::new() };
        if file.may_map
            && let Entry::Occupied(mut count) = table.mappable.entry(file.inode)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        [Some(HandleId(number)), file.other].into_iter().flatten().collect()
    }

    /// Open files, for metrics.
    pub fn count(&self) -> usize {
        lock(&self.0).files.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_goes_through_a_handle_of_its_own_kind() {
        let handles = Handles::default();
        let append = OpenMode { append: true, ..OpenMode::default() };
        let number = handles.opened(HandleId(3), InodeId(9), append, false);
        assert_eq!(handles.for_write(number, true), ForWrite::Ready(HandleId(3)));
        assert_eq!(handles.for_write(number, false), ForWrite::Open(InodeId(9), OpenMode::default()));
        assert_eq!(handles.set_other(number, HandleId(4)), (Some(HandleId(4)), None));
        assert_eq!(handles.set_other(number, HandleId(5)), (Some(HandleId(4)), Some(HandleId(5))));
        assert_eq!(handles.for_write(number, false), ForWrite::Ready(HandleId(4)));
        assert_eq!(handles.closed(number), [HandleId(3), HandleId(4)]);
        assert_eq!(handles.set_other(number, HandleId(6)), (None, Some(HandleId(6))), "closed meanwhile");
        assert_eq!(handles.for_write(number, true), ForWrite::Unknown);
    }

    #[test]
    fn a_file_may_be_mapped_until_the_last_of_those_who_may_is_closed() {
        let handles = Handles::default();
        let open = |handle, may_map| handles.opened(HandleId(handle), InodeId(9), OpenMode::default(), may_map);
        let (read, first, second) = (open(1, false), open(2, true), open(3, true));
        for number in [first, read] {
            handles.closed(number);
            assert!(handles.may_be_mapped(InodeId(9)));
        }
        handles.closed(second);
        assert!(!handles.may_be_mapped(InodeId(9)));
        assert_eq!(handles.count(), 0);
    }
}
