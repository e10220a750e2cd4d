//! The pass over all tables that are ordered by volume and inode: one inode after the other, with everything that belongs to it.

use super::names::Names;
use super::{At, Check, Cursor, get};
use crate::error::Applied;
use crate::tables::entry::{self, CookieRow, EntryRow};
use crate::tables::inode::{self, InodeRow};
use crate::tables::purge::{self, TrimRow};
use crate::tables::session::{self, Phase, SessionRow};
use crate::tables::{mark, number_at};
use holdfast_store::KeyRange;
use holdfast_types::prng::mix;
use holdfast_types::{InodeId, SessionId, VolumeId};
use holdfast_wire::namespace::FileKind;
use std::collections::{BTreeMap, BTreeSet};

/// Directories that are known to hang on the root are remembered up to this many, about 16 MiB.
const KNOWN_MAX: usize = 1 << 18;

/// One cursor for each table.
struct Cursors {
    inodes: Cursor,
    entries: Cursor,
    cookies: Cursor,
    xattrs: Cursor,
    symlinks: Cursor,
    openers: Cursor,
    orphans: Cursor,
    purges: Cursor,
    trims: Cursor,
}

impl Cursors {
    fn new(check: &Check<'_>) -> Applied<Self> {
        let cursor = |table| Cursor::new(check.view, table);
        Ok(Self {
            inodes: cursor(inode::INODE)?,
            entries: cursor(entry::ENTRY)?,
            cookies: cursor(entry::COOKIE)?,
            xattrs: cursor(mark::XATTR)?,
            symlinks: cursor(mark::SYMLINK)?,
            openers: cursor(mark::OPENER)?,
            orphans: cursor(mark::ORPHAN)?,
            purges: cursor(purge::PURGE)?,
            trims: cursor(purge::TRIM)?,
        })
    }

    fn all(&mut self) -> [&mut Cursor; 9] {
        let Self { inodes, entries, cookies, xattrs, symlinks, openers, orphans, purges, trims } = self;
        [inodes, entries, cookies, xattrs, symlinks, openers, orphans, purges, trims]
    }
}

/// What the pass adds up.
struct Pass {
    names: Names,
    /// Bytes, bytes granted and inodes found, by volume.
    totals: BTreeMap<VolumeId, (u128, u128, u64)>,
    /// Directories that hang on the root.
    known: BTreeSet<At>,
}

/// Looks at every inode with all that belongs to it. `None`: the check was ended.
pub(super) fn run(check: &mut Check<'_>) -> Applied<Option<Names>> {
    let mut cursors = Cursors::new(check)?;
    let mut pass = Pass { names: Names::new(), totals: BTreeMap::new(), known: BTreeSet::new() };
    while let Some(at) = cursors.all().into_iter().filter_map(|cursor| cursor.at()).min() {
        if check.dropped.contains(&at.0) {
            for cursor in cursors.all() {
                while cursor.take(at)?.is_some() {}
            }
        } else {
            look_at(check, &mut cursors, &mut pass, at)?;
        }
        if !check.goes_on(1, 0) {
            return Ok(None);
        }
    }
    let volumes: Vec<_> =
        check.volumes.iter().map(|(id, row)| (*id, (row.bytes_used, row.bytes_granted, row.inodes_used))).collect();
    for (id, totals) in volumes {
        let found = pass.totals.get(&id).copied().unwrap_or_default();
        if found != totals {
            check.found(format!("{id}: bytes, bytes granted and inodes are counted as {totals:?}, found {found:?}"));
        }
    }
    for id in pass.totals.keys() {
        if !check.volumes.contains_key(id) {
            check.found(format!("{id}: inodes of a volume that does not exist"));
        }
    }
    Ok(Some(pass.names))
}

fn look_at(check: &mut Check<'_>, cursors: &mut Cursors, pass: &mut Pass, at: At) -> Applied<()> {
    let row = match cursors.inodes.take(at)? {
        Some((key, value)) => check.row::<InodeRow>(&key, &value),
        None => None,
    };
    let listing = listing(check, cursors, pass, at)?;
    let (volume, number) = at;
    let Some(row) = row else {
        if listing != (0, 0) {
            check.found(format!("{volume}/{number}: {} entries in a directory that does not exist", listing.0));
        }
        return leftovers(check, cursors, at);
    };
    pass.names.exists(at, &row);
    let total = pass.totals.entry(volume).or_default();
    let charges = row.charges();
    *total = (total.0 + u128::from(charges.bytes), total.1 + u128::from(charges.granted), total.2 + 1);
    if check.volumes.get(&volume).is_some_and(|volume| number >= volume.inode_next) {
        check.found(format!("{volume}/{number}: an inode at or above the next one"));
    }
    if row.kind == FileKind::Directory {
        let links = if row.links == 0 { listing.1 } else { 2 + listing.1 };
        if u64::from(row.links) != links || row.size != listing.0 {
            check.found(format!(
                "{volume}/{number}: {} links and {} entries, should be {links} and {}",
                row.links, row.size, listing.0
            ));
        }
        hangs_on_root(check, pass, at, &row)?;
    } else if listing != (0, 0) {
        check.found(format!("{volume}/{number}: {} entries, but it is no directory", listing.0));
    }
    belongings(check, cursors, at, &row)
}

/// Entries of a directory by name and by position are the same. Returns how many there are, and how many are directories.
fn listing(check: &mut Check<'_>, cursors: &mut Cursors, pass: &mut Pass, at: At) -> Applied<(u64, u64)> {
    let (mut entries, mut directories, mut by_name, mut by_position) = (0, 0, 0u64, 0u64);
    while let Some((key, value)) = cursors.entries.take(at)? {
        entries += 1;
        if let Some(row) = check.row::<EntryRow>(&key, &value) {
            directories += u64::from(row.kind == FileKind::Directory);
            by_name = by_name.wrapping_add(place(entry::name_in_key(&key), row.inode, row.kind, row.cookie));
            pass.names.named(at.0, at.1, &row);
        }
        if !check.goes_on(0, 1) {
            break;
        }
    }
    while let Some((key, value)) = cursors.cookies.take(at)? {
        if let Some(row) = check.row::<CookieRow>(&key, &value) {
            let place = place(row.name.as_bytes(), row.inode, row.kind, number_at(&key, 2));
            by_position = by_position.wrapping_add(place);
        }
        if !check.goes_on(0, 0) {
            break;
        }
    }
    if by_name != by_position && !check.stopped {
        compare_listings(check, at)?;
    }
    Ok((entries, directories))
}

/// A number made of an entry.
fn place(name: &[u8], inode: InodeId, kind: FileKind, cookie: u64) -> u64 {
    let mut sum = mix(mix(mix(cookie) ^ inode.0) ^ kind as u64 ^ (name.len() as u64) << 8);
    for piece in name.chunks(8) {
        let mut word = [0; 8];
        word[..piece.len()].copy_from_slice(piece);
        sum = mix(sum ^ u64::from_le_bytes(word));
    }
    sum
}

/// Names what differs between a directory's two listings.
fn compare_listings(check: &mut Check<'_>, (volume, parent): At) -> Applied<()> {
    let view = check.view;
    let prefix = |table| KeyRange::prefix(crate::tables::Key::of(table).number(volume.0).number(parent.0).done());
    for pair in view.range(prefix(entry::ENTRY)) {
        let (key, value) = pair?;
        let Ok(row) = crate::txn::decode::<EntryRow>(&key, &value) else { continue };
        let name = entry::name_in_key(&key);
        let other: Option<CookieRow> = get(view, &entry::cookie_key(volume, parent, row.cookie)).unwrap_or_default();
        let same = other
            .is_some_and(|other| other.name.as_bytes() == name && (other.inode, other.kind) == (row.inode, row.kind));
        if !same {
            check.found(format!("{volume}/{parent}: \"{}\" has no like at {}", name.escape_ascii(), row.cookie));
        }
    }
    for pair in view.range(prefix(entry::COOKIE)) {
        let (key, value) = pair?;
        let Ok(row) = crate::txn::decode::<CookieRow>(&key, &value) else { continue };
        let position = number_at(&key, 2);
        let other: Option<EntryRow> = get(view, &entry::key(volume, parent, &row.name)).unwrap_or_default();
        if other.is_none_or(|other| other.cookie != position) {
            check.found(format!("{volume}/{parent}: position {position} has no name"));
        }
    }
    Ok(())
}

/// A directory with a name hangs on the root by its parents.
fn hangs_on_root(check: &mut Check<'_>, pass: &mut Pass, at: At, row: &InodeRow) -> Applied<()> {
    let (volume, number) = at;
    if row.links == 0 || number == InodeId::ROOT {
        return Ok(());
    }
    let mut path = BTreeSet::from([at]);
    let mut next = row.parent;
    while next != InodeId::ROOT && !pass.known.contains(&(volume, next)) {
        let parent: Option<InodeRow> = get(check.view, &inode::key(volume, next)).unwrap_or_default();
        // A parent that is missing is found by its own name.
        let Some(parent) = parent else { return Ok(()) };
        if !path.insert((volume, next)) {
            check.found(format!("{volume}/{number}: does not hang on the root"));
            return Ok(());
        }
        next = parent.parent;
    }
    if pass.known.len() + path.len() > KNOWN_MAX {
        pass.known.clear();
    }
    pass.known.append(&mut path);
    Ok(())
}

/// What lies beside an inode that does not exist. Chunks may still be queued for removal; nothing else may.
fn leftovers(check: &mut Check<'_>, cursors: &mut Cursors, at: At) -> Applied<()> {
    let (volume, number) = at;
    while cursors.purges.take(at)?.is_some() {}
    let Cursors { xattrs, symlinks, openers, orphans, trims, .. } = cursors;
    let what = [
        (xattrs, "an extended attribute"),
        (symlinks, "a symlink's target"),
        (openers, "an opener"),
        (orphans, "an orphan's mark"),
        (trims, "a trim"),
    ];
    for (cursor, what) in what {
        while cursor.take(at)?.is_some() {
            check.found(format!("{volume}/{number}: {what} of an inode that does not exist"));
        }
    }
    Ok(())
}

/// What lies beside an inode that exists.
fn belongings(check: &mut Check<'_>, cursors: &mut Cursors, at: At, row: &InodeRow) -> Applied<()> {
    let (volume, number) = at;
    while cursors.xattrs.take(at)?.is_some() {}
    let target = cursors.symlinks.take(at)?.map(|(_, target)| target.len() as u64);
    if (row.kind == FileKind::Symlink).then_some(row.size) != target {
        check.found(format!("{volume}/{number}: {:?} of size {}, target of {target:?}", row.kind, row.size));
    }
    let mut opened = false;
    while let Some((key, _)) = cursors.openers.take(at)? {
        opened = true;
        let session = SessionId(number_at(&key, 2));
        if check.view.get(&session::key(session))?.is_none() {
            check.found(format!("{volume}/{number}: open on {session}, which is over"));
        }
        if check.view.get(&mark::opened(session, volume, number))?.is_none() {
            check.found(format!("{volume}/{number}: open on {session}, which does not know"));
        }
    }
    let orphan = cursors.orphans.take(at)?.is_some();
    if orphan != (row.links == 0) || (orphan && !opened) {
        check.found(format!("{volume}/{number}: links {}, orphan {orphan}, open {opened}", row.links));
    }
    while let Some((key, _)) = cursors.purges.take(at)? {
        if purge::purge_of(&key).2 >= row.generation {
            check.found(format!("{volume}/{number}: its present content is queued for removal"));
        }
    }
    let mut trim = None;
    if let Some((key, value)) = cursors.trims.take(at)? {
        trim = check.row::<TrimRow>(&key, &value).map(|trim| (trim.generation, trim.from, trim.to));
    }
    if trim != row.trim.map(|(from, to)| (row.generation, from, to)) {
        check.found(format!("{volume}/{number}: trim {:?}, queued {trim:?}", row.trim));
    }
    for session in row.bound_sessions() {
        if check.view.get(&mark::bound(session, volume, number))?.is_none() {
            check.found(format!("{volume}/{number}: the bound of {session} is not known by session"));
        }
    }
    if row.stale_bound > 0 && row.bounds.is_empty() {
        check.found(format!("{volume}/{number}: a stale bound that nobody sees to"));
    }
    Ok(())
}

/// Tables ordered by session say nothing that inodes do not; at most one session of a volume caches.
pub(super) fn by_session(check: &mut Check<'_>) -> Applied<()> {
    let view = check.view;
    for pair in view.range(KeyRange::prefix(vec![mark::BOUND])) {
        let (key, _) = pair?;
        let (session, (volume, number)) = (SessionId(number_at(&key, 0)), mark::volume_and_inode(&key));
        if check.dropped.contains(&volume) {
            continue;
        }
        let row: Option<InodeRow> = get(view, &inode::key(volume, number)).unwrap_or_default();
        if row.is_none_or(|row| !row.bound_sessions().contains(&session)) {
            check.found(format!("{volume}/{number}: {session} holds a bound the inode does not know"));
        }
    }
    for pair in view.range(KeyRange::prefix(vec![mark::OPENER_BY_SESSION])) {
        let (key, _) = pair?;
        let (session, (volume, number)) = (SessionId(number_at(&key, 0)), mark::volume_and_inode(&key));
        if !check.dropped.contains(&volume) && view.get(&mark::opener(volume, number, session))?.is_none() {
            check.found(format!("{volume}/{number}: {session} has it open, which it does not know"));
        }
    }
    let mut caching: BTreeMap<VolumeId, u32> = BTreeMap::new();
    for pair in view.range(KeyRange::prefix(vec![session::SESSION])) {
        let (key, value) = pair?;
        if let Some(row) = check.row::<SessionRow>(&key, &value)
            && row.caching
            && row.phase == Phase::Attached
        {
            *caching.entry(row.volume).or_default() += 1;
        }
    }
    for (volume, _) in caching.into_iter().filter(|(_, sessions)| *sessions > 1) {
        check.found(format!("{volume}: more than one session caches"));
    }
    Ok(())
}
