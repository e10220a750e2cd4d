//! Handles: creating, opening, closing.
//!
//! While the session caches it is alone, so opening needs no message; the openers are named when that ends, or when the inode loses
//! its last name. Otherwise the service records each opener, and forgets it when the last handle here is closed.

use crate::call::{Call, CallId, OpenMode, Reply};
use crate::control::Purpose;
use crate::core::ClientCore;
use crate::error::ClientError;
use crate::file::{File, Handle};
use crate::lock::WAIT_HOLD;
use crate::read::Stream;
use crate::{HandleId, session::State};
use holdfast_types::{InodeId, Instant, LogIndex, ShardId};
use holdfast_wire::metadata::Request;
use holdfast_wire::namespace::{Attributes, FileKind, Mutation, NamespaceError, Outcome, Query};
use holdfast_wire::open::Access;

/// A call waits until a file is not open elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenWait {
    /// Since when, however often it was asked.
    since: Instant,
    /// The request that waits at the service.
    number: Option<u64>,
}

impl ClientCore {
    pub(crate) fn create(&mut self, id: CallId, call: Call) {
        if self.session.telling() && matches!(call, Call::Create { open: Some(_), .. }) {
            // It might overtake the list of what is open, on which its file is not: the service would record it on neither account.
            return self.session.after_telling.push((id, call));
        }
        let Some(call) = self.hold_names(id, call) else { return };
        let Call::Create { parent, ref name, ref node, mode, umask, uid, gid, exclusive, open } = call else { return };
        let mutation = Mutation::Create {
            parent,
            name: name.clone(),
            node: node.clone(),
            mode,
            umask,
            uid,
            gid,
            exclusive,
            open: open.map(|mode| mode.access()),
        };
        let purpose = if open.is_some() { Purpose::Create(id, call) } else { Purpose::Call(id) };
        self.mutate(mutation, purpose);
    }

    pub(crate) fn create_unnamed(&mut self, id: CallId, call: Call) {
        let Call::CreateUnnamed { parent, mode, umask, uid, gid, .. } = call else { return };
        self.mutate(Mutation::CreateUnnamed { parent, mode, umask, uid, gid }, Purpose::Create(id, call));
    }

    /// `span`: the stretch of caching in which it was asked for.
    pub(crate) fn created(&mut self, id: CallId, call: Call, span: u64, result: Result<Outcome, ClientError>) {
        self.create_answered(id, call, span, result);
        self.let_names_go(id);
    }

    fn create_answered(&mut self, id: CallId, call: Call, span: u64, result: Result<Outcome, ClientError>) {
        let (mode, unnamed) = match call {
            Call::Create { open: Some(mode), .. } => (mode, false),
            Call::CreateUnnamed { open, .. } => (open, true),
            _ => return,
        };
        let (attributes, new) = match result {
            Ok(Outcome::Created { attributes, new, .. }) => (attributes, new),
            Ok(Outcome::OpenElsewhere { inode, .. }) => return self.await_open(id, call, (inode, mode.access())),
            Ok(_) => return self.complete(id, Err(ClientError::Protocol { detail: "create answered something else" })),
            Err(error) => return self.complete(id, Err(error)),
        };
        if attributes.kind != FileKind::File {
            return self.complete(id, Ok(Reply::Created { attributes, new, handle: None }));
        }
        let (caching, now) = (self.caching(), self.session.span);
        let at = self.control.answered_at;
        let file = self.ensure_file(&attributes, at);
        if file.closing {
            // It was there before, and our closing it is under way: found again after that, it is recorded as open.
            return file.parked.push((id, call));
        }
        file.bound_held |= attributes.size_bound > 0;
        // An orphan's openers are recorded in any case; and what was asked for in another stretch may be: to close once too often is no harm.
        file.opener |= !caching || unnamed || span != now;
        file.recorded |= !caching || unnamed;
        file.recorded_writes |= (!caching && mode.write) || unnamed;
        if !self.waits(id) {
            // Nobody will close it: the file retires by itself.
            return;
        }
        if caching && new {
            self.names.open(attributes.inode);
        }
        let mut shown = attributes;
        let handle = self.add_handle(&mut shown, at, mode);
        self.complete(id, Ok(Reply::Created { attributes: shown, new, handle: Some(handle) }));
    }

    pub(crate) fn open(&mut self, id: CallId, inode: InodeId, mode: OpenMode) {
        if let Some(parked) = self.removing.get_mut(&inode) {
            return parked.push((id, Call::Open { inode, mode }));
        }
        if let Some(file) = self.files.get_mut(&inode)
            && file.closing
        {
            return file.parked.push((id, Call::Open { inode, mode }));
        }
        if self.may_serve_cache()
            && let Some((attributes, at)) = self.names.attributes_at(inode)
        {
            return self.opened(id, attributes, at, mode);
        }
        *self.opening.entry(inode).or_insert(0) += 1;
        if self.caching() || self.is_recorded(inode, mode) {
            self.query(Some(inode), Purpose::Open(id, inode, mode));
        } else {
            self.mutate(Mutation::Open { inode, access: mode.access() }, Purpose::Open(id, inode, mode));
        }
    }

    pub(crate) fn open_answered(
        &mut self,
        id: CallId,
        inode: InodeId,
        mode: OpenMode,
        request: &Request,
        result: Result<Outcome, ClientError>,
    ) {
        if let Some(count) = self.opening.get_mut(&inode) {
            *count -= 1;
            if *count == 0 {
                self.opening.remove(&inode);
            }
        }
        self.touched.insert(inode);
        let attributes = match result {
            Ok(Outcome::Attributes { attributes, .. }) => attributes,
            Ok(Outcome::OpenElsewhere { .. }) => {
                return self.await_open(id, Call::Open { inode, mode }, (inode, mode.access()));
            }
            Ok(_) => return self.complete(id, Err(ClientError::Protocol { detail: "open answered something else" })),
            Err(error) => return self.complete(id, Err(error)),
        };
        if matches!(request, Request::Mutate(_)) && attributes.kind == FileKind::File {
            let file = self.ensure_file(&attributes, self.control.answered_at);
            (file.opener, file.recorded) = (true, true);
            file.recorded_writes |= mode.write;
        } else if !self.caching() && !self.is_recorded(inode, mode) && self.waits(id) {
            // Asked while caching, answered after it ended: the opening must be recorded.
            return self.open(id, inode, mode);
        }
        if self.waits(id) {
            self.opened(id, attributes, self.control.answered_at, mode);
        }
    }

    /// Whether the service has it on record that a file is open here, and for that.
    fn is_recorded(&self, inode: InodeId, mode: OpenMode) -> bool {
        self.files.get(&inode).is_some_and(|file| file.recorded && (file.recorded_writes || !mode.write))
    }

    fn opened(&mut self, id: CallId, mut attributes: Attributes, at: LogIndex, mode: OpenMode) {
        match attributes.kind {
            FileKind::File => {}
            FileKind::Directory => return self.complete(id, Err(NamespaceError::IsDirectory.into())),
            _ => return self.complete(id, Err(NamespaceError::Invalid.into())),
        }
        // Pages from before caching started may be older than what others wrote then.
        let keep_cache = self.caching() && self.names.open(attributes.inode);
        let handle = self.add_handle(&mut attributes, at, mode);
        self.complete(id, Ok(Reply::Opened { handle, attributes, keep_cache }));
    }

    /// One more handle; `attributes` are then as callers see them.
    fn add_handle(&mut self, attributes: &mut Attributes, at: LogIndex, mode: OpenMode) -> HandleId {
        let handle = self.handle();
        let file = self.ensure_file(attributes, at);
        file.handles += 1;
        file.writers += u32::from(mode.write);
        file.show(attributes);
        self.handles.insert(handle, Handle { inode: attributes.inode, mode, stream: Stream::default() });
        handle
    }

    pub(crate) fn release(&mut self, id: CallId, handle: HandleId) {
        let Some(open) = self.handles.remove(&handle) else {
            return self.complete(id, Err(ClientError::BadHandle));
        };
        let file = self.files.get_mut(&open.inode).expect("a handle keeps its file");
        file.handles -= 1;
        file.writers -= u32::from(open.mode.write);
        file.closed_at = self.now;
        self.touched.insert(open.inode);
        self.complete(id, Ok(Reply::Done));
    }

    pub(crate) fn flush(&mut self, id: CallId, handle: HandleId) {
        let error = match self.handles.get(&handle) {
            Some(open) => self.files.get_mut(&open.inode).and_then(|file| file.error.take()),
            None => Some(ClientError::BadHandle),
        };
        self.complete(id, error.map_or(Ok(Reply::Done), Err));
    }

    /// Forgets a file that nobody uses and that has nothing left to say.
    pub(crate) fn retire(&mut self, inode: InodeId) {
        let (telling, opening) = (self.session.telling(), self.opening.contains_key(&inode));
        let Some(file) = self.files.get_mut(&inode) else { return };
        let live = matches!(self.session.state, State::Live);
        let done_writing = file.recorded && file.recorded_writes && file.is_open() && file.writers == 0;
        if done_writing && file.is_settled() && !opening && !telling && live {
            // Another host may be waiting to write. Whoever opens it here meanwhile waits for the answer.
            (file.closing, file.recorded_writes) = (true, false);
            return self.mutate(Mutation::Close { inode, keep_reading: true }, Purpose::Close(inode));
        }
        let idle = !file.is_open() && file.is_settled() && file.parked.is_empty() && file.syncs.is_empty();
        // A read that is under way keeps what it reads, even if its handle is closed already.
        if !idle || opening || self.reads.any_of(inode) {
            return;
        }
        if !file.opener {
            self.files.remove(&inode);
            self.buffer.forget(inode);
        } else if !telling && live {
            // While the service is being told who is open, a closing might overtake the list that names it.
            file.closing = true;
            (file.opener, file.recorded, file.recorded_writes) = (false, false, false);
            self.mutate(Mutation::Close { inode, keep_reading: false }, Purpose::Close(inode));
        }
    }

    pub(crate) fn closed(&mut self, inode: InodeId) {
        if let Some(file) = self.files.get_mut(&inode) {
            file.closing = false;
        }
        let open = self.files.get(&inode).is_some_and(File::is_open);
        if !open && self.names.attributes(inode).is_some_and(|attributes| attributes.links == 0) {
            // Nobody here holds on to it any more, and it has no name.
            self.names.remove(inode);
        }
        self.touched.insert(inode);
    }

    /// The service knows what is open, or is to be told anew: whoever waited for that goes on.
    pub(crate) fn told(&mut self) {
        for (id, call) in std::mem::take(&mut self.session.after_telling) {
            self.start(id, call);
        }
    }

    // ---- open elsewhere ----

    /// Another session has a file open, and may not at the same time: the call begins anew when it has not.
    fn await_open(&mut self, id: CallId, call: Call, (inode, access): (InodeId, Access)) {
        if !self.waits(id) {
            return;
        }
        let since = self.open_waits.get(&id).map_or(self.now, |wait| wait.since);
        let waited_ms = u32::try_from(self.now.since(since).as_millis()).unwrap_or(u32::MAX);
        let request = Request::Query(Query::AwaitOpen { inode, access, waited_ms });
        let purpose = Purpose::AwaitOpen(id, Box::new(call));
        let number = self.control_start(ShardId::VOLUMES, request, purpose, Some(WAIT_HOLD));
        self.open_waits.insert(id, OpenWait { since, number: Some(number) });
    }

    pub(crate) fn open_awaited(&mut self, id: CallId, call: Call, result: Result<Outcome, ClientError>) {
        if let Some(wait) = self.open_waits.get_mut(&id) {
            wait.number = None;
        }
        match result {
            Ok(_) => self.start(id, call),
            Err(error) => self.complete(id, Err(error)),
        }
    }

    /// Nobody waits for a call any more, nor does it.
    pub(crate) fn forget_open_wait(&mut self, id: CallId) {
        if let Some(number) = self.open_waits.remove(&id).and_then(|wait| wait.number) {
            self.control_drop(number);
        }
    }
}
