//! Calls about names, attributes and extended attributes: answered from memory while caching, else asked.

use crate::call::{Call, CallId, Reply};
use crate::control::{Operation, Purpose};
use crate::core::ClientCore;
use crate::error::ClientError;
use crate::file::{File, Sync, Waiter};
use crate::names::{Found, ParentChange};
use bytes::Bytes;
use holdfast_types::{FileName, InodeId, LogIndex, ShardId};
use holdfast_wire::acl::{self, Acl};
use holdfast_wire::metadata::Request;
use holdfast_wire::namespace::{
    Attributes, DirectoryEntry, FileKind, Mutation, NamespaceError, NewNode, Outcome, Query, RenameMode,
};
use holdfast_wire::open::XATTR_PREFIX;
use std::collections::VecDeque;

/// Entries asked for at once while caching: what is listed now is looked up next.
const LIST_ENTRIES: u32 = 512;
/// Most that the service gives at once.
const LIST_ENTRIES_MAX: u32 = 10_000;

impl ClientCore {
    fn ask(&mut self, query: Query, purpose: Purpose) {
        self.control_start(ShardId::VOLUMES, Request::Query(query), purpose, None);
    }

    pub(crate) fn name_call(&mut self, id: CallId, call: Call) {
        if self.may_serve_cache()
            && let Some(result) = self.answer_from_memory(&call)
        {
            return self.complete(id, result);
        }
        match call {
            Call::Lookup { parent, name } => self.ask(Query::Lookup { parent, name }, Purpose::Call(id)),
            Call::GetAttributes { inode } => self.ask(Query::GetAttributes { inode }, Purpose::Call(id)),
            Call::ReadLink { inode } => self.ask(Query::ReadLink { inode }, Purpose::Call(id)),
            Call::GetXattr { inode, name } => self.ask(Query::GetXattr { inode, name }, Purpose::Call(id)),
            Call::ListXattrs { inode } => self.ask(Query::ListXattrs { inode }, Purpose::Call(id)),
            Call::StatVolume => self.ask(Query::StatVolume, Purpose::Call(id)),
            Call::ReadDirectory { inode, after, limit, plus } => {
                let after = if after < 3 { 0 } else { after };
                let caching = self.caching();
                let limit = if caching { limit.max(LIST_ENTRIES) } else { limit }.clamp(1, LIST_ENTRIES_MAX);
                self.ask(Query::ReadDirectory { inode, after, limit, plus: plus || caching }, Purpose::Call(id));
            }
            Call::Create { .. } => self.create(id, call),
            Call::CreateUnnamed { .. } => self.create_unnamed(id, call),
            Call::SetAcl { inode, .. } if self.files.get(&inode).is_some_and(|file| file.clear_set_ids) => {
                let file = self.files.get_mut(&inode).expect("just seen");
                let target = file.number_next - 1;
                file.syncs.push(Sync { target, data_only: false, waiter: Waiter::Acl(id, Box::new(call)) });
                self.touched.insert(inode);
            }
            Call::SetAcl { inode, default, value, clear_set_group_id } => {
                let mutation = Mutation::SetAcl { inode, default, value, clear_set_group_id };
                self.mutate(mutation, Purpose::Quiet(id));
            }
            Call::Link { .. } => {
                if let Some(Call::Link { inode, parent, name }) = self.hold_names(id, call) {
                    self.mutate(Mutation::Link { inode, parent, name }, Purpose::Call(id));
                }
            }
            Call::SetXattr { inode, name, value, mode } => {
                self.mutate(Mutation::SetXattr { inode, name, value, mode }, Purpose::Call(id));
            }
            Call::RemoveXattr { inode, name } => {
                self.mutate(Mutation::RemoveXattr { inode, name }, Purpose::Call(id));
            }
            Call::Unlink { .. } | Call::RemoveDirectory { .. } | Call::Rename { .. } => self.remove_or_rename(id, call),
            other => unreachable!("{other:?} is handled elsewhere"),
        }
    }

    /// The answer, if it is known.
    fn answer_from_memory(&mut self, call: &Call) -> Option<Result<Reply, ClientError>> {
        match call {
            Call::Lookup { parent, name } => match self.names.entry(*parent, name) {
                Found::Unknown => None,
                Found::Absent => Some(Err(NamespaceError::NotFound.into())),
                Found::Present(inode) => self.attributes_from_memory(inode).map(|a| Ok(Reply::Attributes(a))),
            },
            Call::GetAttributes { inode } => self.attributes_from_memory(*inode).map(|a| Ok(Reply::Attributes(a))),
            Call::ReadLink { inode } => self.names.target(*inode).map(|target| Ok(Reply::Bytes(target))),
            // They can change without anybody's touching the inode.
            Call::GetXattr { name, .. } if name.starts_with(XATTR_PREFIX) => None,
            Call::GetXattr { inode, name } => self
                .names
                .xattr(*inode, name)
                .map(|value| value.map(Reply::Bytes).ok_or_else(|| NamespaceError::NoAttribute.into())),
            Call::ListXattrs { inode } => self.names.xattr_names(*inode).map(|names| Ok(Reply::Names(names))),
            Call::ReadDirectory { inode, after, limit, plus } => {
                let parent = self.names.attributes(*inode)?.parent;
                let after = if *after < 3 { 0 } else { *after };
                let (mut entries, end) = self.names.list(*inode, after, (*limit).max(1) as usize, *plus)?;
                self.show_entries(&mut entries);
                Some(Ok(Reply::Directory { entries, end, parent }))
            }
            _ => None,
        }
    }

    fn attributes_from_memory(&mut self, inode: InodeId) -> Option<Attributes> {
        let mut attributes = self.names.attributes(inode)?.clone();
        self.show(&mut attributes);
        Some(attributes)
    }

    /// Attributes as callers see them: with what was written here and is not published.
    pub(crate) fn show(&self, attributes: &mut Attributes) {
        self.accesses.show(attributes);
        if let Some(file) = self.files.get(&attributes.inode).filter(|f| !f.gone) {
            file.show(attributes);
        }
    }

    fn show_entries(&self, entries: &mut [DirectoryEntry]) {
        for attributes in entries.iter_mut().filter_map(|e| e.attributes.as_mut()) {
            self.show(attributes);
        }
    }

    // ---- what answers teach ----

    /// Takes up what an answer says, whoever waits for it.
    pub(crate) fn learn(&mut self, operation: &Operation, at: LogIndex, result: &Result<Outcome, ClientError>) {
        let keep = self.caching() && operation.span == self.session.span;
        if !keep && self.caching() && matches!(operation.request, Request::Mutate(_)) {
            // Asked before caching began, and made who knows when: what is cached may be from before it was made.
            self.names.clear_to(at);
        }
        match result {
            Ok(outcome) => {
                for attributes in attributes_of(outcome) {
                    self.learn_file(attributes, at);
                    // What is written here after a change is not older than the change.
                    self.session.stamped = self.session.stamped.max(attributes.ctime);
                }
                if keep {
                    match &operation.request {
                        Request::Query(query) => self.learn_query(query, outcome, at),
                        Request::Mutate(mutation) => self.learn_mutation(mutation, outcome, at),
                        _ => {}
                    }
                }
            }
            Err(ClientError::Namespace(error)) if keep => self.learn_refusal(&operation.request, *error, at),
            Err(_) => {}
        }
    }

    /// What the service says of a file that is in use here.
    fn learn_file(&mut self, attributes: &Attributes, at: LogIndex) {
        let Some(file) = self.files.get_mut(&attributes.inode) else { return };
        if at < file.base_at {
            return;
        }
        file.base_at = at;
        let other = attributes.generation != file.base.generation;
        file.base = attributes.clone();
        if other {
            // Another content: what was stored of the old one is history.
            file.unpublished_end = 0;
            self.pages.remove_file(attributes.inode);
            self.reads.overwritten(attributes.inode, 0, u64::MAX);
        } else if !file.counts(file.base.generation, file.unpublished_end) {
            // Another session's truncation has taken the bound, and the bytes with it.
            file.unpublished_end = 0;
        }
        self.touched.insert(attributes.inode);
    }

    fn learn_query(&mut self, query: &Query, outcome: &Outcome, at: LogIndex) {
        match (query, outcome) {
            (Query::Lookup { parent, name }, Outcome::Entry { attributes, .. }) => {
                self.names.put_attributes(attributes, at);
                self.names.put_entry(*parent, name, Some((attributes.inode, attributes.kind)), at);
            }
            (Query::ReadDirectory { inode, after, .. }, Outcome::Directory { entries, end, .. }) => {
                self.names.put_listing(*inode, *after, entries, *end, at);
            }
            (Query::ReadLink { inode }, Outcome::Bytes(target)) => self.names.put_target(*inode, target),
            (Query::GetXattr { inode, name }, Outcome::Bytes(value)) if !name.starts_with(XATTR_PREFIX) => {
                self.names.put_xattr(*inode, name, Some(value.clone()), at);
            }
            (_, Outcome::Attributes { attributes, .. }) => self.names.put_attributes(attributes, at),
            _ => {}
        }
    }

    fn learn_mutation(&mut self, mutation: &Mutation, outcome: &Outcome, at: LogIndex) {
        match (mutation, outcome) {
            (Mutation::Create { parent, name, node, .. }, Outcome::Created { attributes, new, inherited, .. }) => {
                let target = match node {
                    NewNode::Symlink(target) => Some(target),
                    _ => None,
                };
                self.names.put_entry(*parent, name, Some((attributes.inode, attributes.kind)), at);
                if *new {
                    self.names.put_new(attributes, target, !inherited, at);
                    self.names.change_parent(*parent, entry_change(1, attributes), at);
                } else {
                    self.names.put_attributes(attributes, at);
                }
            }
            (Mutation::CreateUnnamed { .. }, Outcome::Created { attributes, inherited, .. }) => {
                self.names.put_new(attributes, None, !inherited, at);
            }
            (Mutation::SetAcl { inode, default, value, .. }, Outcome::Attributes { attributes, .. }) => {
                let kept =
                    value.as_ref().filter(|value| *default || !Acl::parse(value).is_some_and(|a| a.is_minimal()));
                let name = Bytes::from_static(acl::attribute(*default));
                self.names.put_xattr(*inode, &name, kept.cloned(), at);
                self.names.put_attributes(attributes, at);
            }
            (Mutation::SetAttributes { inode, set }, Outcome::Attributes { attributes, .. }) => {
                if let Some(mode) = set.mode {
                    self.names.follow_mode(*inode, mode, at);
                }
                self.names.put_attributes(attributes, at);
            }
            (Mutation::Link { parent, name, .. }, Outcome::Attributes { attributes, .. }) => {
                self.names.put_attributes(attributes, at);
                self.names.put_entry(*parent, name, Some((attributes.inode, attributes.kind)), at);
                self.names.change_parent(*parent, entry_change(1, attributes), at);
            }
            (
                Mutation::Unlink { parent, name, .. } | Mutation::RemoveDirectory { parent, name },
                Outcome::Removed { attributes, orphan },
            ) => {
                self.names.put_entry(*parent, name, None, at);
                self.names.change_parent(*parent, entry_change(-1, attributes), at);
                self.learn_removed(attributes, *orphan, at);
            }
            (Mutation::Rename { .. }, Outcome::Renamed { .. }) => self.learn_rename(mutation, outcome, at),
            (Mutation::SetAccessTimes { times }, Outcome::Done) => {
                times.iter().for_each(|time| self.names.accessed(time, at));
            }
            (Mutation::SetXattr { inode, name, .. } | Mutation::RemoveXattr { inode, name }, Outcome::Done)
                if name.starts_with(XATTR_PREFIX) =>
            {
                self.names.forget_attributes(*inode, at);
            }
            (Mutation::SetXattr { inode, name, value, .. }, Outcome::Done) => {
                self.names.put_xattr(*inode, name, Some(value.clone()), at);
                self.names.forget_attributes(*inode, at);
            }
            (Mutation::RemoveXattr { inode, name }, Outcome::Done) => {
                self.names.put_xattr(*inode, name, None, at);
                self.names.forget_attributes(*inode, at);
            }
            (_, Outcome::Attributes { attributes, .. }) => self.names.put_attributes(attributes, at),
            _ => {}
        }
    }

    fn learn_removed(&mut self, attributes: &Attributes, orphan: bool, at: LogIndex) {
        if attributes.kind != FileKind::Directory && (attributes.links > 0 || orphan) {
            self.names.put_attributes(attributes, at);
        } else {
            self.names.remove(attributes.inode);
        }
    }

    fn learn_rename(&mut self, mutation: &Mutation, outcome: &Outcome, at: LogIndex) {
        let Mutation::Rename { from_parent, from_name, to_parent, to_name, mode, .. } = mutation else { return };
        let Outcome::Renamed { moved, replaced, orphan } = outcome else { return };
        self.names.put_attributes(moved, at);
        if (from_parent, from_name) == (to_parent, to_name) {
            return;
        }
        if replaced.is_none() && moved.links > 1 && moved.kind != FileKind::Directory {
            // Two names of one inode: nothing happens and both stay (rename(2)); the answer looks as if the target was free.
            match self.names.entry(*to_parent, to_name) {
                Found::Present(inode) if inode == moved.inode => return,
                Found::Absent => {}
                Found::Present(_) | Found::Unknown => {
                    self.names.remove(*from_parent);
                    self.names.remove(*to_parent);
                    return;
                }
            }
        }
        let there = |attributes: &Attributes| Some((attributes.inode, attributes.kind));
        self.names.put_entry(*to_parent, to_name, there(moved), at);
        let mut arrive = entry_change(1, moved);
        let mut leave = entry_change(-1, moved);
        match (mode, replaced) {
            (RenameMode::Exchange, Some(other)) => {
                self.names.put_attributes(other, at);
                self.names.put_entry(*from_parent, from_name, there(other), at);
                let back = entry_change(1, other);
                arrive.entries -= back.entries;
                arrive.directories -= back.directories;
                leave.entries += back.entries;
                leave.directories += back.directories;
            }
            (_, replaced) => {
                self.names.put_entry(*from_parent, from_name, None, at);
                if let Some(replaced) = replaced {
                    let gone = entry_change(1, replaced);
                    arrive.entries -= gone.entries;
                    arrive.directories -= gone.directories;
                    self.learn_removed(replaced, *orphan, at);
                }
            }
        }
        if from_parent == to_parent {
            arrive.entries += leave.entries;
            arrive.directories += leave.directories;
        } else {
            self.names.change_parent(*from_parent, leave, at);
        }
        self.names.change_parent(*to_parent, arrive, at);
    }

    fn learn_refusal(&mut self, request: &Request, error: NamespaceError, at: LogIndex) {
        match (request, error) {
            (Request::Query(Query::Lookup { parent, name }), NamespaceError::NotFound) => {
                self.names.put_entry(*parent, name, None, at);
            }
            (Request::Query(Query::GetXattr { inode, name }), NamespaceError::NoAttribute)
                if !name.starts_with(XATTR_PREFIX) =>
            {
                self.names.put_xattr(*inode, name, None, at);
            }
            _ => {}
        }
    }

    // ---- answers of calls ----

    /// A call whose reply is the outcome itself.
    pub(crate) fn call_answered(&mut self, id: CallId, result: Result<Outcome, ClientError>) {
        let reply = result.and_then(|outcome| {
            Ok(match outcome {
                Outcome::Done => Reply::Done,
                Outcome::Removed { attributes, orphan } => Reply::Removed(gone(attributes, orphan)),
                Outcome::Renamed { replaced, orphan, .. } => {
                    Reply::Removed(replaced.and_then(|replaced| gone(replaced, orphan)))
                }
                Outcome::Entry { mut attributes, .. } | Outcome::Attributes { mut attributes, .. } => {
                    self.show(&mut attributes);
                    Reply::Attributes(attributes)
                }
                Outcome::Created { mut attributes, new, .. } => {
                    self.show(&mut attributes);
                    Reply::Created { attributes, new, handle: None }
                }
                Outcome::Directory { mut entries, end, parent, .. } => {
                    self.show_entries(&mut entries);
                    Reply::Directory { entries, end, parent }
                }
                Outcome::Bytes(bytes) => Reply::Bytes(bytes),
                Outcome::Names(names) => Reply::Names(names),
                Outcome::Usage(usage) => Reply::Usage(usage),
                Outcome::Locked { in_the_way, .. } => Reply::Locked { granted: in_the_way.is_none() },
                Outcome::Conflict(conflict) => Reply::Conflict(conflict),
                // Calls that open have answers of their own.
                Outcome::OpenElsewhere { .. } => return Err(NamespaceError::Busy.into()),
            })
        });
        self.complete(id, reply);
        self.let_names_go(id);
    }

    /// What a call needed to know is known: it goes on.
    pub(crate) fn resume(&mut self, id: CallId, call: Call, result: Result<Outcome, ClientError>) {
        match (call, result) {
            (call @ (Call::Unlink { .. } | Call::Rename { .. } | Call::RemoveDirectory { .. }), result) => {
                let inode = match result {
                    Ok(Outcome::Entry { attributes, .. }) => Some(attributes.inode),
                    _ => None,
                };
                if self.waits(id) {
                    self.remove_known(id, call, inode);
                } else {
                    self.let_names_go(id);
                }
            }
            (_, Err(error)) => self.complete(id, Err(error)),
            (Call::SetAttributes { inode, set }, Ok(Outcome::Attributes { attributes, .. })) if self.waits(id) => {
                if attributes.kind == FileKind::File {
                    self.ensure_file(&attributes, self.control.answered_at);
                }
                self.set_attributes_known(id, inode, set);
            }
            (call @ (Call::SetLock { .. } | Call::TestLock { .. }), Ok(Outcome::Attributes { attributes, .. })) => {
                self.lock_resumed(id, call, attributes.kind);
            }
            (_, Ok(_)) => {}
        }
    }

    /// The file of an inode, made if it is not in use yet.
    pub(crate) fn ensure_file(&mut self, attributes: &Attributes, at: LogIndex) -> &mut File {
        let (request_bytes, now) = (self.config.request_bytes, self.now);
        self.touched.insert(attributes.inode);
        self.files.entry(attributes.inode).or_insert_with(|| File::new(attributes.clone(), at, request_bytes, now))
    }

    // ---- removing ----

    /// What takes the place of a file must be there when that one is gone: its bytes go first.
    fn remove_or_rename(&mut self, id: CallId, call: Call) {
        if let Call::Rename { from_parent, from_name, to_parent, to_name, .. } = &call
            && self.caching()
            && !matches!(self.names.entry(*to_parent, to_name), Found::Absent)
            && let Found::Present(inode) = self.names.entry(*from_parent, from_name)
            && let Some(file) = self.files.get_mut(&inode)
            && (!file.is_clean() || file.needs_publish(true))
        {
            let target = file.number_next - 1;
            file.syncs.push(Sync { target, data_only: true, waiter: Waiter::Rename(id, Box::new(call)) });
            self.touched.insert(inode);
            return;
        }
        self.remove_name(id, call);
    }

    /// Takes the names that a call changes for itself, if nobody has them; else the call begins anew when they are free.
    pub(crate) fn hold_names(&mut self, id: CallId, call: Call) -> Option<Call> {
        let names = names_changed(&call);
        for name in &names {
            if let Some(waiting) = self.changing_names.get_mut(name) {
                waiting.push_back((id, call));
                return None;
            }
        }
        self.changing_names.extend(names.iter().map(|name| (name.clone(), VecDeque::new())));
        self.names_held.insert(id, names);
        Some(call)
    }

    /// A call has changed its names, or never will.
    pub(crate) fn let_names_go(&mut self, id: CallId) {
        for name in self.names_held.remove(&id).unwrap_or_default() {
            for (id, call) in self.changing_names.remove(&name).unwrap_or_default() {
                self.start(id, call);
            }
        }
    }

    pub(crate) fn remove_name(&mut self, id: CallId, call: Call) {
        let Some(call) = self.hold_names(id, call) else { return };
        let (parent, name) = match &call {
            Call::Unlink { parent, name } | Call::RemoveDirectory { parent, name } => (*parent, name.clone()),
            Call::Rename { to_parent, to_name, .. } => (*to_parent, to_name.clone()),
            _ => return,
        };
        let found = if self.caching() { self.names.entry(parent, &name) } else { Found::Unknown };
        match found {
            Found::Present(inode) => self.remove_known(id, call, Some(inode)),
            Found::Absent => self.remove_known(id, call, None),
            // An inode that is open here, or is opened meanwhile, must be named, or it would be purged: the service may forget on the way
            // that it is on record as open.
            Found::Unknown if self.caching() || self.files.values().any(|f| f.is_open()) => {
                self.ask(Query::Lookup { parent, name }, Purpose::Resume(id, Box::new(call)));
            }
            Found::Unknown => self.remove_known(id, call, None),
        }
    }

    /// `inode`: what the name that goes away is believed to name.
    fn remove_known(&mut self, id: CallId, call: Call, inode: Option<InodeId>) {
        // An open under way may be answered before the removal is made.
        let is_open =
            |inode: &InodeId| self.files.get(inode).is_some_and(File::is_open) || self.opening.contains_key(inode);
        let open = inode.filter(is_open);
        let guarded = inode.filter(|i| !is_open(i) && !matches!(call, Call::RemoveDirectory { .. }));
        let mutation = match call {
            Call::Unlink { parent, name } => Mutation::Unlink { parent, name, open },
            Call::RemoveDirectory { parent, name } => Mutation::RemoveDirectory { parent, name },
            Call::Rename { from_parent, from_name, to_parent, to_name, mode } => {
                Mutation::Rename { from_parent, from_name, to_parent, to_name, mode, open }
            }
            _ => return,
        };
        if let Some(inode) = guarded {
            self.removing.entry(inode).or_default();
        }
        self.mutate(mutation, Purpose::Remove(id, guarded));
    }

    pub(crate) fn removed(&mut self, id: CallId, guarded: Option<InodeId>, mut result: Result<Outcome, ClientError>) {
        if let Ok(
            Outcome::Removed { attributes, orphan } | Outcome::Renamed { replaced: Some(attributes), orphan, .. },
        ) = &mut result
        {
            // What is buffered belongs to how it was last, before it is dropped.
            self.show(attributes);
            self.lost_name(attributes, *orphan);
        }
        self.call_answered(id, result);
        let parked = guarded.and_then(|inode| self.removing.remove(&inode));
        for (id, call) in parked.into_iter().flatten() {
            self.start(id, call);
        }
    }

    /// An inode has a name less.
    fn lost_name(&mut self, attributes: &Attributes, orphan: bool) {
        if attributes.links > 0 || attributes.kind == FileKind::Directory {
            return;
        }
        match self.files.get_mut(&attributes.inode) {
            Some(file) if orphan => {
                (file.opener, file.recorded) = (true, true);
                self.touched.insert(attributes.inode);
            }
            Some(_) => self.vanished(attributes.inode),
            None if orphan && self.opening.contains_key(&attributes.inode) => {
                // Whether it may be open here is for the open to say that is under way.
                self.ensure_file(attributes, self.control.answered_at).opener = true;
            }
            None if orphan => {
                // Closed while the removal was under way: nobody here needs it.
                self.mutate(
                    Mutation::Close { inode: attributes.inode, keep_reading: false },
                    Purpose::Close(attributes.inode),
                );
            }
            None => self.pages.remove_file(attributes.inode),
        }
    }
}

/// What lost a name, if it is gone with that.
fn gone(attributes: Attributes, orphan: bool) -> Option<Box<Attributes>> {
    (attributes.links == 0 && !orphan).then(|| Box::new(attributes))
}

/// The names that a call changes.
fn names_changed(call: &Call) -> Vec<(InodeId, FileName)> {
    match call {
        Call::Create { parent, name, .. }
        | Call::Link { parent, name, .. }
        | Call::Unlink { parent, name }
        | Call::RemoveDirectory { parent, name } => vec![(*parent, name.clone())],
        Call::Rename { from_parent, from_name, to_parent, to_name, .. } => {
            let mut names = vec![(*from_parent, from_name.clone()), (*to_parent, to_name.clone())];
            names.dedup();
            names
        }
        _ => Vec::new(),
    }
}

/// How the coming (or going) of an entry changes its directory; the inode's own ctime tells when.
fn entry_change(entries: i64, attributes: &Attributes) -> ParentChange {
    let directories = if attributes.kind == FileKind::Directory { entries } else { 0 };
    ParentChange { entries, directories, stamp: attributes.ctime }
}

fn attributes_of(outcome: &Outcome) -> Vec<&Attributes> {
    match outcome {
        Outcome::Entry { attributes, .. }
        | Outcome::Attributes { attributes, .. }
        | Outcome::Created { attributes, .. }
        | Outcome::Removed { attributes, .. } => vec![attributes],
        Outcome::Renamed { moved, replaced, .. } => std::iter::once(moved).chain(replaced).collect(),
        Outcome::Directory { entries, .. } => entries.iter().filter_map(|e| e.attributes.as_ref()).collect(),
        Outcome::Done
        | Outcome::Bytes(_)
        | Outcome::Names(_)
        | Outcome::Usage(_)
        | Outcome::Locked { .. }
        | Outcome::OpenElsewhere { .. }
        | Outcome::Conflict(_) => Vec::new(),
    }
}
