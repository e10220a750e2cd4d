//! Renaming: as `renameat2(2)` does it, in one step.
//!
//! * A name that is replaced keeps its position, so a listing that runs meanwhile shows it once.
//! * A directory never becomes its own ancestor.

use super::{InodeRow, Op, link_possible};
use crate::error::{Applied, Fail, ensure};
use crate::tables::entry::EntryRow;
use holdfast_types::{FileName, InodeId};
use holdfast_wire::namespace::{FileKind, NamespaceError, Outcome, RenameMode};

/// Deepest directory that we climb out of; deeper ones cannot be named (PATH_MAX) but can be made.
const DEPTH_MAX: u32 = 1 << 20;

/// Both ends of a renaming. `to_directory` is meaningless if both directories are one: see `Op::put_directories`.
struct Ends<'m> {
    from: (InodeId, &'m FileName),
    to: (InodeId, &'m FileName),
    from_directory: InodeRow,
    to_directory: Option<InodeRow>,
}

impl Ends<'_> {
    /// The directory of the new name.
    fn target(&mut self) -> &mut InodeRow {
        self.to_directory.as_mut().unwrap_or(&mut self.from_directory)
    }
}

impl Op<'_, '_> {
    pub(super) fn rename(
        &mut self,
        from: (InodeId, &FileName),
        to: (InodeId, &FileName),
        mode: RenameMode,
        open: Option<InodeId>,
    ) -> Applied<Outcome> {
        let from_directory = self.directory(from.0)?;
        let to_directory = if from.0 == to.0 { None } else { Some(self.directory(to.0)?) };
        let moving = self.entry(from.0, from.1)?.ok_or(NamespaceError::NotFound)?;
        let target = self.entry(to.0, to.1)?;
        let moved = self.inode_of(from.0, &moving)?;
        if moving.kind == FileKind::Directory {
            self.refuse_cycle(moving.inode, to.0)?;
        }
        let ends = Ends { from, to, from_directory, to_directory };
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => Err(NamespaceError::Exists.into()),
            (RenameMode::Exchange, None) => Err(NamespaceError::NotFound.into()),
            // Two names of one inode: nothing happens, and both stay.
            (_, Some(target)) if target.inode == moving.inode => {
                Ok(Outcome::Renamed { moved: self.attributes(moving.inode, &moved), replaced: None, orphan: false })
            }
            (RenameMode::Exchange, Some(target)) => self.exchange(ends, (moving, moved), target),
            (RenameMode::Replace, Some(target)) => self.replace(ends, (moving, moved), target, open),
            (RenameMode::Replace | RenameMode::NoReplace, None) => self.shift(ends, (moving, moved)),
        }
    }

    /// To a name that is free.
    fn shift(&mut self, mut ends: Ends<'_>, (moving, mut moved): (EntryRow, InodeRow)) -> Applied<Outcome> {
        let across = ends.to_directory.is_some();
        if moving.kind == FileKind::Directory && across {
            link_possible(ends.target())?;
            ends.from_directory.links -= 1;
            ends.target().links += 1;
            moved.parent = ends.to.0;
        }
        self.drop_entry(ends.from.0, &mut ends.from_directory, ends.from.1, &moving)?;
        self.add_entry(
            ends.to.0,
            ends.to_directory.as_mut().unwrap_or(&mut ends.from_directory),
            ends.to.1,
            (moving.inode, moving.kind),
        );
        moved.changed(self.stamp);
        self.put_inode(moving.inode, &moved);
        self.put_directories(&ends);
        Ok(Outcome::Renamed { moved: self.attributes(moving.inode, &moved), replaced: None, orphan: false })
    }

    /// Over another inode.
    fn replace(
        &mut self,
        mut ends: Ends<'_>,
        (moving, mut moved): (EntryRow, InodeRow),
        target: EntryRow,
        open: Option<InodeId>,
    ) -> Applied<Outcome> {
        let mut replaced = self.inode_of(ends.to.0, &target)?;
        match (moving.kind == FileKind::Directory, target.kind == FileKind::Directory) {
            (true, false) => return Err(NamespaceError::NotDirectory.into()),
            (false, true) => return Err(NamespaceError::IsDirectory.into()),
            (true, true) if replaced.size > 0 => return Err(NamespaceError::NotEmpty.into()),
            (true, true) | (false, false) => {}
        }
        if moving.kind == FileKind::Directory {
            // One sub-directory moves in, one goes; without a move across directories only one goes.
            ensure!(
                ends.from_directory.links > 2,
                "{}: {} counts no sub-directory but has one",
                self.volume,
                ends.from.0
            );
            ends.from_directory.links -= 1;
            moved.parent = ends.to.0;
        }
        self.drop_entry(ends.from.0, &mut ends.from_directory, ends.from.1, &moving)?;
        self.put_entry(
            ends.to.0,
            ends.to.1,
            EntryRow { inode: moving.inode, kind: moving.kind, cookie: target.cookie },
        );
        let stamp = self.stamp;
        let directory = ends.target();
        directory.mtime = stamp;
        directory.changed(stamp);
        moved.changed(self.stamp);
        self.put_inode(moving.inode, &moved);
        self.put_directories(&ends);
        let orphan = if target.kind == FileKind::Directory {
            replaced.changed(self.stamp);
            self.unname(target.inode, &mut replaced, false)?
        } else {
            self.lose_link(target.inode, &mut replaced, open == Some(target.inode))?
        };
        let moved = self.attributes(moving.inode, &moved);
        Ok(Outcome::Renamed { moved, replaced: Some(self.attributes(target.inode, &replaced)), orphan })
    }

    /// Two names change what they name.
    fn exchange(
        &mut self,
        mut ends: Ends<'_>,
        (moving, mut moved): (EntryRow, InodeRow),
        target: EntryRow,
    ) -> Applied<Outcome> {
        let mut other = self.inode_of(ends.to.0, &target)?;
        if target.kind == FileKind::Directory {
            self.refuse_cycle(target.inode, ends.from.0)?;
        }
        let (in_directory, out_directory) = (moving.kind == FileKind::Directory, target.kind == FileKind::Directory);
        if let Some(to_directory) = &mut ends.to_directory {
            if in_directory && !out_directory {
                link_possible(to_directory)?;
                to_directory.links += 1;
                ends.from_directory.links -= 1;
            }
            if out_directory && !in_directory {
                link_possible(&ends.from_directory)?;
                to_directory.links -= 1;
                ends.from_directory.links += 1;
            }
        }
        if in_directory {
            moved.parent = ends.to.0;
        }
        if out_directory {
            other.parent = ends.from.0;
        }
        self.put_entry(
            ends.to.0,
            ends.to.1,
            EntryRow { inode: moving.inode, kind: moving.kind, cookie: target.cookie },
        );
        self.put_entry(
            ends.from.0,
            ends.from.1,
            EntryRow { inode: target.inode, kind: target.kind, cookie: moving.cookie },
        );
        self.touch_directory(&mut ends.from_directory);
        if let Some(to_directory) = &mut ends.to_directory {
            self.touch_directory(to_directory);
        }
        moved.changed(self.stamp);
        other.changed(self.stamp);
        self.put_inode(moving.inode, &moved);
        self.put_inode(target.inode, &other);
        self.put_directories(&ends);
        let moved = self.attributes(moving.inode, &moved);
        Ok(Outcome::Renamed { moved, replaced: Some(self.attributes(target.inode, &other)), orphan: false })
    }

    fn put_directories(&mut self, ends: &Ends<'_>) {
        self.put_inode(ends.from.0, &ends.from_directory);
        if let Some(directory) = &ends.to_directory {
            self.put_inode(ends.to.0, directory);
        }
    }

    /// Refuses to put a directory into itself or below.
    fn refuse_cycle(&self, directory: InodeId, into: InodeId) -> Applied<()> {
        let mut at = into;
        for _ in 0..DEPTH_MAX {
            if at == directory {
                return Err(NamespaceError::Invalid.into());
            }
            if at == InodeId::ROOT {
                return Ok(());
            }
            at = self.inode(at)?.parent;
        }
        Err(Fail::Broken(format!("{}: {into} has no way to the root", self.volume)))
    }
}
