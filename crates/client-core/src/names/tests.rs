use super::*;
use holdfast_types::Generation;

fn attributes(inode: u64, kind: FileKind, size: u64) -> Attributes {
    let t = Timestamp::default();
    Attributes {
        inode: InodeId(inode),
        kind,
        mode: 0o644,
        links: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size,
        atime: t,
        mtime: t,
        ctime: t,
        btime: t,
        generation: Generation(1),
        cuts: 0,
        sparse: false,
        trim_from: None,
        size_bound: 0,
        parent: InodeId(0),
    }
}

fn name(text: &str) -> FileName {
    FileName::new(text.as_bytes()).expect("a name")
}

#[test]
fn an_older_answer_never_replaces_a_newer_one() {
    let mut names = Names::new(100);
    let dir = InodeId(1);
    names.put_entry(dir, &name("a"), None, LogIndex(12));
    names.put_entry(dir, &name("a"), Some((InodeId(5), FileKind::File)), LogIndex(10));
    assert_eq!(names.entry(dir, &name("a")), Found::Absent);
    names.put_entry(dir, &name("a"), Some((InodeId(6), FileKind::File)), LogIndex(13));
    assert_eq!(names.entry(dir, &name("a")), Found::Present(InodeId(6)));
}

#[test]
fn changes_of_a_directory_add_up_in_whatever_order_they_are_answered() {
    let change = |seconds| ParentChange { entries: 1, directories: 0, stamp: Timestamp { seconds, nanos: 0 } };
    let mut names = Names::new(100);
    names.put_attributes(&attributes(1, FileKind::Directory, 0), LogIndex(10));
    names.change_parent(InodeId(1), change(12), LogIndex(12));
    // A listing seen at 11 knows the first change and not the second: it must not bring back the past.
    names.put_attributes(&attributes(1, FileKind::Directory, 1), LogIndex(10));
    names.change_parent(InodeId(1), change(11), LogIndex(11));
    assert_eq!(names.attributes(InodeId(1)).map(|a| (a.size, a.mtime.seconds)), Some((2, 12)));
    names.change_parent(InodeId(1), change(9), LogIndex(9));
    assert_eq!(names.attributes(InodeId(1)).map(|a| a.size), Some(2), "the whole value had that one");
    names.put_attributes(&attributes(1, FileKind::Directory, 7), LogIndex(20));
    assert_eq!(names.attributes(InodeId(1)).map(|a| a.size), Some(7));
}

#[test]
fn a_whole_value_between_two_changes_is_not_believed() {
    let mut names = Names::new(100);
    names.put_attributes(&attributes(1, FileKind::Directory, 0), LogIndex(10));
    let change = ParentChange { entries: 1, directories: 0, stamp: Timestamp::default() };
    names.change_parent(InodeId(1), change, LogIndex(12));
    names.put_attributes(&attributes(1, FileKind::Directory, 1), LogIndex(11));
    assert_eq!(names.attributes(InodeId(1)), None);
    names.put_attributes(&attributes(1, FileKind::Directory, 1), LogIndex(11));
    assert_eq!(names.attributes(InodeId(1)), None, "still older than what is known to have happened");
    names.put_attributes(&attributes(1, FileKind::Directory, 2), LogIndex(12));
    assert_eq!(names.attributes(InodeId(1)).map(|a| a.size), Some(2));
}

#[test]
fn a_complete_listing_answers_for_absent_names_and_is_served_again() {
    let mut names = Names::new(100);
    let entry = |n: &str, inode, cookie| DirectoryEntry {
        name: name(n),
        inode: InodeId(inode),
        kind: FileKind::File,
        cookie,
        attributes: Some(attributes(inode, FileKind::File, 0)),
    };
    names.put_listing(InodeId(1), 0, &[entry("a", 5, 3), entry("b", 6, 4)], false, LogIndex(10));
    assert_eq!(names.entry(InodeId(1), &name("z")), Found::Unknown);
    names.put_listing(InodeId(1), 4, &[entry("c", 7, 5)], true, LogIndex(11));
    assert_eq!(names.entry(InodeId(1), &name("z")), Found::Absent);
    let (entries, end) = names.list(InodeId(1), 3, 1, true).expect("all is known");
    assert_eq!((entries[0].inode, entries.len(), end), (InodeId(6), 1, false));
    // A name of our own has no position yet: names are known, the listing is asked for again.
    names.put_entry(InodeId(1), &name("d"), Some((InodeId(8), FileKind::File)), LogIndex(12));
    assert_eq!(names.entry(InodeId(1), &name("y")), Found::Absent);
    assert!(names.list(InodeId(1), 0, 10, false).is_none());
    names.put_entry(InodeId(1), &name("d"), None, LogIndex(13));
    assert_eq!(names.list(InodeId(1), 0, 10, false).map(|(e, end)| (e.len(), end)), Some((3, true)));
}

#[test]
fn memory_is_bounded_and_what_was_dropped_does_not_come_back_older() {
    let mut names = Names::new(20);
    for i in 0..100 {
        names.put_attributes(&attributes(i, FileKind::File, i), LogIndex(100 + i));
        assert!(names.weight <= 20);
    }
    assert_eq!(names.weight, names.nodes.values().map(Node::weight).sum::<usize>());
    assert_eq!(names.by_use.len(), names.nodes.len());
    names.put_attributes(&attributes(0, FileKind::File, 0), LogIndex(99));
    assert_eq!(names.attributes(InodeId(0)), None);
}

#[test]
fn what_is_here_takes_up_its_own_changes_whatever_else_was_dropped() {
    let mut names = Names::new(100);
    names.put_attributes(&attributes(1, FileKind::Directory, 0), LogIndex(10));
    names.put_entry(InodeId(1), &name("a"), Some((InodeId(2), FileKind::File)), LogIndex(10));
    names.put_xattr(InodeId(1), &"x".into(), Some("old".into()), LogIndex(10));
    // Something else that was seen later goes.
    names.put_attributes(&attributes(7, FileKind::File, 0), LogIndex(50));
    names.remove(InodeId(7));
    // Changes of our own from between, answered late.
    names.put_attributes(&attributes(1, FileKind::Directory, 5), LogIndex(20));
    names.put_entry(InodeId(1), &name("a"), None, LogIndex(20));
    names.put_xattr(InodeId(1), &"x".into(), None, LogIndex(20));
    assert_eq!(names.attributes(InodeId(1)).map(|a| a.size), Some(5));
    assert_eq!(names.entry(InodeId(1), &name("a")), Found::Absent);
    assert_eq!(names.xattr(InodeId(1), &"x".into()), Some(None));
    // What went stays away.
    names.put_attributes(&attributes(7, FileKind::File, 0), LogIndex(49));
    assert_eq!(names.attributes(InodeId(7)), None);
}
