//! What the kernel knows of ours: inodes with their lookup counts, names with their timeouts.
//!
//! Invariants:
//! * An inode is known from the answer that named it first until the kernel has forgotten as many lookups as it was answered.
//! * Every name, and every inode's attributes or pages, that the kernel may still believe without asking is in these tables: an
//!   answer is recorded before it is sent. So [`Known::take_cached`] misses nothing.
//! * Names are bounded: when the table is full, a name is answered with timeout 0 and need not be recorded.

use crate::sync::lock;
use holdfast_types::InodeId;
use holdfast_wire::namespace::{Attributes, FileKind};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Names recorded at the most; each costs about 150 bytes. Names run out with their timeout (10 s), so it takes 100,000 new names
/// a second to get there.
const NAMES_MAX: usize = 1 << 20;
/// The table of names is swept of those that have run out when it has doubled, but not below this size.
const NAMES_SWEPT_MIN: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Inode {
    lookups: u64,
    kind: FileKind,
    /// The kernel may believe its attributes until then.
    attributes_until: Option<Instant>,
    /// Which stretch of caching its pages were cached in; `None`: it has none.
    pages_of: Option<u64>,
    /// The kernel may believe that it has set-id bits.
    set_ids: bool,
}

/// A name within a directory.
pub type Name = (InodeId, Box<[u8]>);

#[derive(Debug)]
struct Names {
    until: HashMap<Name, Instant>,
    sweep_at: usize,
}

/// The tables.
#[derive(Debug)]
pub struct Known {
    inodes: Mutex<HashMap<InodeId, Inode>>,
    names: Mutex<Names>,
    /// The last attributes of what is gone and not forgotten yet, because something on this host still holds it.
    gone: Mutex<HashMap<InodeId, Box<Attributes>>>,
}

impl Default for Known {
    fn default() -> Self {
        // The kernel knows the root without having looked it up, and never forgets it.
        let root =
            Inode { lookups: 1, kind: FileKind::Directory, attributes_until: None, pages_of: None, set_ids: false };
        Self {
            inodes: Mutex::new(HashMap::from([(InodeId::ROOT, root)])),
            names: Mutex::new(Names { until: HashMap::new(), sweep_at: NAMES_SWEPT_MIN }),
            gone: Mutex::default(),
        }
    }
}

impl Known {
    /// An answer is about to name this inode: one more lookup that the kernel will forget some day.
    pub fn looked_up(&self, attributes: &Attributes, valid: Duration) {
        let kind = attributes.kind;
        let mut inodes = lock(&self.inodes);
        let known = inodes.entry(attributes.inode).or_insert(Inode {
            lookups: 0,
            kind,
            attributes_until: None,
            pages_of: None,
            set_ids: false,
        });
        known.lookups += 1;
        known.kind = kind;
        known.told(attributes, valid);
    }

    /// An answer is about to tell attributes.
    pub fn told_attributes(&self, attributes: &Attributes, valid: Duration) {
        if let Some(known) = lock(&self.inodes).get_mut(&attributes.inode) {
            known.told(attributes, valid);
        }
    }

    /// Set-id bits were cleared by a write, whose answer does not tell the mode. True if the kernel may believe otherwise.
    pub fn set_ids_cleared(&self, inode: InodeId) -> bool {
        lock(&self.inodes).get_mut(&inode).is_some_and(|known| std::mem::take(&mut known.set_ids))
    }

    /// The kernel forgot lookups.
    pub fn forgotten(&self, inode: InodeId, count: u64) {
        if inode == InodeId::ROOT {
            return;
        }
        let mut inodes = lock(&self.inodes);
        if let Some(known) = inodes.get_mut(&inode) {
            debug_assert!(known.lookups >= count, "{inode} was answered {} times and forgotten {count}", known.lookups);
            known.lookups = known.lookups.saturating_sub(count);
            if known.lookups == 0 {
                inodes.remove(&inode);
                lock(&self.gone).remove(&inode);
            }
        }
    }

    /// An inode lost its last name and nobody keeps it: it is as it was last until the kernel forgets it.
    pub fn gone(&self, last: Box<Attributes>) {
        let inodes = lock(&self.inodes);
        if inodes.contains_key(&last.inode) {
            lock(&self.gone).insert(last.inode, last);
        }
    }

    /// How an inode that is gone was last.
    pub fn last_of(&self, inode: InodeId) -> Option<Attributes> {
        lock(&self.gone).get(&inode).map(|last| (**last).clone())
    }

    /// What an inode is; `None` if the kernel should not know it.
    pub fn kind(&self, inode: InodeId) -> Option<FileKind> {
        lock(&self.inodes).get(&inode).map(|known| known.kind)
    }

    /// An open through the page cache is about to be answered, in stretch of caching `stretch`: from now on the kernel may have
    /// pages. True if all it has were cached in the same stretch.
    pub fn opened_cached(&self, inode: InodeId, stretch: u64) -> bool {
        let mut inodes = lock(&self.inodes);
        let Some(known) = inodes.get_mut(&inode) else { return false };
        known.pages_of.replace(stretch) == Some(stretch)
    }

    /// A name, present or absent, is about to be answered with this timeout. False: the table is full, answer with timeout 0.
    pub fn told_name(&self, parent: InodeId, name: &[u8], valid: Duration) -> bool {
        if valid.is_zero() {
            return true;
        }
        let now = Instant::now();
        let mut names = lock(&self.names);
        if names.until.len() >= names.sweep_at {
            names.until.retain(|_, until| *until > now);
            names.sweep_at = (names.until.len() * 2).clamp(NAMES_SWEPT_MIN, NAMES_MAX);
        }
        if names.until.len() >= NAMES_MAX {
            return false;
        }
        names.until.insert((parent, name.into()), now + valid);
        true
    }

    /// What the kernel may believe without asking, and from now on, by our invalidating it, does not: inodes and names.
    pub fn take_cached(&self) -> (Vec<InodeId>, Vec<Name>) {
        let now = Instant::now();
        let names = std::mem::take(&mut lock(&self.names).until);
        let names = names.into_iter().filter(|(_, until)| *until > now).map(|(name, _)| name).collect();
        let mut inodes = Vec::new();
        for (inode, known) in lock(&self.inodes).iter_mut() {
            let attributes = known.attributes_until.take().is_some_and(|until| until > now);
            // Files opened before and still open go on through the page cache, so `pages_of` stays set.
            if attributes || known.pages_of.is_some() {
                inodes.push(*inode);
            }
        }
        inodes.sort_unstable();
        (inodes, names)
    }

    /// Inodes known, for metrics.
    pub fn inode_count(&self) -> usize {
        lock(&self.inodes).len()
    }
}

impl Inode {
    fn told(&mut self, attributes: &Attributes, valid: Duration) {
        self.set_ids = attributes.mode & 0o6000 != 0;
        if !valid.is_zero() {
            self.attributes_until = self.attributes_until.max(Some(Instant::now() + valid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(1000);
    const A: InodeId = InodeId(7);

    fn file(inode: InodeId, mode: u16) -> Attributes {
        let zero = holdfast_types::Timestamp::default();
        Attributes {
            inode,
            kind: FileKind::File,
            mode,
            links: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            atime: zero,
            mtime: zero,
            ctime: zero,
            btime: zero,
            generation: holdfast_types::Generation(1),
            cuts: 0,
            sparse: false,
            trim_from: None,
            size_bound: 0,
            parent: InodeId(0),
        }
    }

    #[test]
    fn the_kernel_is_told_once_that_set_id_bits_are_gone() {
        let known = Known::default();
        known.looked_up(&file(A, 0o755), TTL);
        assert!(!known.set_ids_cleared(A));
        known.told_attributes(&file(A, 0o4755), TTL);
        assert!(known.set_ids_cleared(A));
        assert!(!known.set_ids_cleared(A));
    }

    #[test]
    fn an_inode_is_known_until_every_lookup_is_forgotten() {
        let known = Known::default();
        known.looked_up(&file(A, 0o644), Duration::ZERO);
        known.looked_up(&file(A, 0o644), Duration::ZERO);
        known.forgotten(A, 1);
        assert_eq!(known.kind(A), Some(FileKind::File));
        known.forgotten(A, 1);
        assert_eq!(known.kind(A), None);
        known.forgotten(InodeId::ROOT, 1);
        assert_eq!(known.kind(InodeId::ROOT), Some(FileKind::Directory), "the root is never forgotten");
    }

    #[test]
    fn what_the_kernel_may_believe_is_found_again_once_and_nothing_else() {
        let known = Known::default();
        known.looked_up(&file(A, 0o644), TTL);
        known.looked_up(&file(InodeId(8), 0o644), Duration::ZERO);
        known.looked_up(&file(InodeId(9), 0o644), Duration::ZERO);
        known.opened_cached(InodeId(9), 1);
        assert!(known.told_name(InodeId::ROOT, b"a", TTL));
        assert!(known.told_name(InodeId::ROOT, b"b", Duration::ZERO));
        let (inodes, names) = known.take_cached();
        assert_eq!(inodes, [A, InodeId(9)]);
        assert_eq!(names, [(InodeId::ROOT, (*b"a").into())]);
        let (inodes, names) = known.take_cached();
        assert_eq!((inodes, names.len()), (vec![InodeId(9)], 0), "pages may come back through handles opened before");
    }

    #[test]
    fn pages_are_kept_only_within_one_stretch_of_caching() {
        let known = Known::default();
        known.looked_up(&file(A, 0o644), TTL);
        assert!(!known.opened_cached(A, 1));
        assert!(known.opened_cached(A, 1));
        assert!(!known.opened_cached(A, 2), "pages of an earlier stretch may be stale");
    }
}
