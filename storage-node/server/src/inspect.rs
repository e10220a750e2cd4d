//! What `holdfast admin` asks of a node: chunks as one of its disks holds them, read and verified on request, for `fsck`; and which map and
//! groups it has, for whoever restores the metadata service.
//!
//! Beside the core, on threads of its own: nothing here changes anything or is waited for by a client, and one question at a time is
//! worked on, so that a check takes one reader's share of the disks and no more.

use crate::chunk_store::Reader;
use crate::clock::now;
use crate::disk::Disk;
use crate::map_file::MapFile;
use crate::medium::Medium;
use crate::owner::Owner;
use holdfast_rpc::{PeerIdentity, Responder, Role};
use holdfast_storage_core::Input;
use holdfast_storage_core::local::{LocalCommand, LocalError, LocalOutcome};
use holdfast_types::{DiskId, Incarnation, NodeId};
use holdfast_wire::admin::{AdminAnswer, AdminRequest, ChunkFacts};
use holdfast_wire::codec;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// Chunks listed in one answer at the most.
const CHUNKS_MAX: u32 = 1000;

/// Answers questions about this node's chunks.
pub(crate) struct Inspector {
    node: NodeId,
    disks: Vec<(DiskId, Incarnation, Reader<Medium>)>,
    turn: Mutex<()>,
    owner: Arc<OnceLock<Weak<Owner>>>,
    map_file: Arc<MapFile>,
    runtime: tokio::runtime::Handle,
}

impl Inspector {
    /// Must be called within a tokio runtime. The owner may come later.
    pub fn new(node: NodeId, disks: &[Disk], owner: Arc<OnceLock<Weak<Owner>>>, map_file: Arc<MapFile>) -> Self {
        Self {
            node,
            disks: disks.iter().map(|disk| (disk.id, disk.incarnation, disk.reader())).collect(),
            turn: Mutex::new(()),
            owner,
            map_file,
            runtime: tokio::runtime::Handle::current(),
        }
    }

    fn scrubs(&self, begin: bool) -> AdminAnswer {
        let Some(owner) = self.owner.get().and_then(Weak::upgrade) else {
            return AdminAnswer::Refused("the node is starting or stopping".into());
        };
        if begin {
            owner.submit([Input::ScrubNow]);
        }
        AdminAnswer::Scrubs(owner.look(|core| core.scrubs(now())))
    }

    /// Answers later, from a thread that may wait. Administrators only.
    pub fn handle(self: &Arc<Self>, from: &PeerIdentity, message: &[u8], respond: Responder) {
        let send = |answer: &AdminAnswer, respond: Responder| respond.send(codec::encode(answer), bytes::Bytes::new());
        if from.role != Role::Admin {
            let answer = AdminAnswer::Refused("this needs the administrator's certificate (admin/cert.pem)".into());
            return send(&answer, respond);
        }
        match codec::decode::<AdminRequest>(message) {
            Err(error) => send(&AdminAnswer::Refused(error.to_string()), respond),
            Ok(request) => {
                let inspector = Arc::clone(self);
                self.runtime.spawn_blocking(move || {
                    let _turn = inspector.turn.lock().unwrap_or_else(PoisonError::into_inner);
                    if !respond.cancelled() {
                        send(&inspector.answer(&request), respond);
                    }
                });
            }
        }
    }

    fn answer(&self, request: &AdminRequest) -> AdminAnswer {
        match *request {
            AdminRequest::ListChunks { member, group, range, limit, verify } => {
                let found = self.disks.iter().find(|(id, life, _)| (*id, *life) == (member.disk, member.incarnation));
                let Some((.., reader)) = found.filter(|_| member.node == self.node) else {
                    return AdminAnswer::Refused(format!("{member} is not in service here"));
                };
                let limit = limit.clamp(1, CHUNKS_MAX);
                match list(reader, &LocalCommand::List { group, range, limit }, verify) {
                    Ok(chunks) => AdminAnswer::Chunks(chunks),
                    Err(error) => AdminAnswer::Refused(format!("{member}: {error}")),
                }
            }
            AdminRequest::ScrubNow => self.scrubs(true),
            AdminRequest::ScrubStatus => self.scrubs(false),
            AdminRequest::HeldMap => match self.owner.get().and_then(Weak::upgrade) {
                Some(owner) => {
                    let mut held = owner.held();
                    // Since it was started there may have been nobody who had one.
                    let kept = self.map_file.read();
                    if kept.version > held.map.version {
                        held.map = kept;
                    }
                    AdminAnswer::Node(Box::new(held))
                }
                None => AdminAnswer::Refused("the node is just starting, or stopping; ask again".into()),
            },
            AdminRequest::ServerStatus
            | AdminRequest::CheckBegin
            | AdminRequest::CheckPoll { .. }
            | AdminRequest::BackupBegin { .. }
            | AdminRequest::BackupJoin { .. }
            | AdminRequest::BackupRows { .. }
            | AdminRequest::BackupEnd { .. }
            | AdminRequest::ListFiles { .. } => AdminAnswer::Refused("a metadata server answers this".into()),
        }
    }
}

fn list(reader: &Reader<Medium>, command: &LocalCommand, verify: bool) -> Result<Vec<ChunkFacts>, LocalError> {
    let LocalOutcome::Chunks { chunks } = reader.serve(command)? else { unreachable!("a listing lists") };
    let LocalCommand::List { group, .. } = *command else { unreachable!("called with a listing") };
    let mut facts = Vec::with_capacity(chunks.len());
    for summary in chunks {
        let (chunk, length) = (summary.chunk, summary.length);
        let damaged = match verify.then(|| reader.serve(&LocalCommand::Read { group, chunk, offset: 0, length })) {
            None | Some(Ok(_)) => false,
            Some(Err(LocalError::BadBlock)) => true,
            Some(Err(error)) => return Err(error),
        };
        facts.push(ChunkFacts { chunk, length, digest: summary.digest, damaged });
    }
    Ok(facts)
}
