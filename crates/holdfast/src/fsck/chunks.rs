//! The chunks of one group: what its members in sync hold, side by side, and what the inodes they belong to say.

use super::ends::Ends;
use super::{SERVER_PATIENCE, address, map};
use holdfast_client::Cluster;
use holdfast_types::limits::{BLOCK_BYTES, CHUNK_BYTES};
use holdfast_types::{ChunkIndex, ChunkKey, Epoch, GroupId, InodeId, MemberId, ShardId, SnapshotNumber, VolumeId};
use holdfast_wire::admin::{AdminAnswer, AdminRequest, ChunkFacts, InodeFacts, WholeFile};
use holdfast_wire::group::KeyRange;
use holdfast_wire::metadata::{Request, Response};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Chunks asked for at once; verified, a question makes a node read 64 MiB at the most.
const LIST: u32 = 256;
const LIST_VERIFIED: u32 = 16;
/// How long a node may take for it.
const LIST_PATIENCE: Duration = Duration::from_secs(60);
/// A group that changes its view meanwhile is begun anew this often.
const TRIES: u32 = 10;
/// And after such a pause.
const PAUSE: Duration = Duration::from_secs(1);

/// A group to look at.
#[derive(Clone)]
pub(super) struct Chunks {
    pub cluster: Cluster,
    pub group: GroupId,
    pub groups: u32,
}

/// What a first look at a group has found.
#[derive(Default)]
pub(super) struct Looked {
    pub chunks: u64,
    pub bytes: u64,
    pub suspects: Vec<Suspect>,
    /// Files whose last chunk is here, and long enough.
    pub ends: Ends,
}

/// All that is seen of a chunk at one look. Two looks that see the same compare equal.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sight {
    epoch: Epoch,
    /// By member in sync; `None`: it does not hold the chunk.
    members: BTreeMap<MemberId, Option<ChunkFacts>>,
    inode: InodeFacts,
}

/// A chunk that looks wrong.
pub(super) struct Suspect {
    chunks: Chunks,
    chunk: ChunkKey,
    sight: Sight,
    verify: bool,
    /// Looks in a row that saw the same.
    pub stood_still: u32,
}

impl Chunks {
    /// Looks at all chunks of the group once.
    pub async fn suspects(&self, verify: bool) -> Result<Looked, String> {
        let mut reason = String::new();
        for try_number in 0..TRIES {
            if try_number > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            match self.first_look(verify).await {
                Ok(looked) => return Ok(looked),
                Err(error) => reason = error,
            }
        }
        Err(reason)
    }

    async fn first_look(&self, verify: bool) -> Result<Looked, String> {
        let mut looked = Looked::default();
        let (epoch, members) = self.members().await?;
        let mut range = Some(KeyRange::ALL);
        let limit = if verify { LIST_VERIFIED } else { LIST };
        while let Some(keys) = range {
            let (lists, through) = self.lists(&members, keys, limit, verify).await?;
            let chunks: BTreeSet<ChunkKey> = lists.values().flat_map(|list| list.keys().copied()).collect();
            let inodes: BTreeSet<_> = chunks.iter().map(|chunk| (chunk.volume, chunk.inode)).collect();
            let inodes = self.inodes(inodes.into_iter().collect()).await?;
            for chunk in chunks {
                let members: BTreeMap<_, _> = lists.iter().map(|(id, list)| (*id, list.get(&chunk).copied())).collect();
                looked.chunks += 1;
                looked.bytes += members.values().flatten().map(|facts| u64::from(facts.length)).sum::<u64>();
                let Some(inode) = inodes.get(&(chunk.volume, chunk.inode)).cloned() else { continue };
                let sight = Sight { epoch, members, inode };
                if is_end(chunk, &sight) {
                    looked.ends.turn(chunk.volume, chunk.inode, chunk.generation);
                }
                if !findings((self.group, self.groups), chunk, &sight).is_empty() {
                    looked.suspects.push(Suspect { chunks: self.clone(), chunk, sight, verify, stood_still: 0 });
                }
            }
            range = through.and_then(|through| keys.after(through));
        }
        Ok(looked)
    }

    /// The group's epoch, and the members that must hold the same.
    async fn members(&self) -> Result<(Epoch, BTreeMap<MemberId, String>), String> {
        let map = map(&self.cluster).await.map_err(|error| error.to_string())?;
        let view = map.view(self.group).ok_or("the group has no view")?;
        let at = |member: &MemberId| {
            let address = address(&map, member.node).ok_or(format!("the map has no address of {}", member.node))?;
            Ok((*member, address.to_owned()))
        };
        Ok((view.epoch, view.in_sync.iter().map(at).collect::<Result<_, String>>()?))
    }

    /// What each member holds of a range, and up to where all have told; `None`: up to its end.
    async fn lists(
        &self,
        members: &BTreeMap<MemberId, String>,
        range: KeyRange,
        limit: u32,
        verify: bool,
    ) -> Result<(BTreeMap<MemberId, BTreeMap<ChunkKey, ChunkFacts>>, Option<ChunkKey>), String> {
        let mut lists = BTreeMap::new();
        let mut through: Option<ChunkKey> = None;
        for (member, address) in members {
            let request = AdminRequest::ListChunks { member: *member, group: self.group, range, limit, verify };
            let list = match self.cluster.ask_storage(member.node, address, request, LIST_PATIENCE).await {
                Some(AdminAnswer::Chunks(list)) => list,
                Some(AdminAnswer::Refused(reason)) => return Err(reason),
                Some(other) => return Err(format!("{member} answered something else: {other:?}")),
                None => return Err(format!("{member} at {address} does not answer")),
            };
            if list.len() >= limit as usize
                && let Some(last) = list.last()
            {
                through = Some(through.map_or(last.chunk, |least| least.min(last.chunk)));
            }
            lists.insert(*member, list.into_iter().map(|facts| (facts.chunk, facts)).collect::<BTreeMap<_, _>>());
        }
        if let Some(through) = through {
            lists.values_mut().for_each(|list| list.retain(|chunk, _| *chunk <= through));
        }
        Ok((lists, through))
    }

    async fn inodes(
        &self,
        wanted: Vec<(VolumeId, InodeId)>,
    ) -> Result<BTreeMap<(VolumeId, InodeId), InodeFacts>, String> {
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        let request = Request::InspectInodes { inodes: wanted.clone() };
        match self.cluster.request(ShardId::VOLUMES, request, 3 * SERVER_PATIENCE).await {
            Ok(Response::Inodes(facts)) => Ok(wanted.into_iter().zip(facts).collect()),
            Ok(other) => Err(format!("the leader answered something else: {other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Suspect {
    /// The last chunk of a file that was not seen: of that it must be found out whether it is there.
    pub fn of_end(cluster: &Cluster, groups: u32, file: &WholeFile) -> Self {
        let WholeFile { volume, inode, generation, size } = *file;
        let index = ChunkIndex((size - 1) / CHUNK_BYTES);
        let chunk = ChunkKey { volume, inode, generation, index, born: SnapshotNumber(0) };
        let group = GroupId::of(volume, inode, index, groups);
        let inode = InodeFacts { content: None, purging: Vec::new(), volume_gone: false, whole: 0 };
        let sight = Sight { epoch: Epoch(0), members: BTreeMap::new(), inode };
        let chunks = Chunks { cluster: cluster.clone(), group, groups };
        Self { chunks, chunk, sight, verify: false, stood_still: 0 }
    }

    /// Looks again. Returns whether something is still wrong.
    pub async fn look_again(&mut self) -> Result<bool, String> {
        let (epoch, members) = self.chunks.members().await?;
        let at = (self.chunk.volume, self.chunk.inode);
        let before = self.chunks.inodes(vec![at]).await?;
        let (lists, _) = self.chunks.lists(&members, KeyRange::chunk(self.chunk), 1, self.verify).await?;
        let after = self.chunks.inodes(vec![at]).await?;
        // Of an inode that changed meanwhile nothing is known: the next look will tell.
        let Some(inode) = after.get(&at).filter(|_| before == after).cloned() else {
            self.stood_still = 0;
            return Ok(true);
        };
        let members = lists.iter().map(|(id, list)| (*id, list.get(&self.chunk).copied())).collect();
        let sight = Sight { epoch, members, inode };
        self.stood_still = if sight == self.sight { self.stood_still + 1 } else { 0 };
        self.sight = sight;
        Ok(!self.findings().is_empty())
    }

    /// Kind and text of what is wrong.
    pub fn findings(&self) -> Vec<(&'static str, String)> {
        findings((self.chunks.group, self.chunks.groups), self.chunk, &self.sight)
    }

    /// Where it is, for the report.
    pub fn place(&self) -> String {
        format!("group {} chunk {}", self.chunks.group.0, self.chunk)
    }
}

/// Bytes of a chunk that must be there, if it is the last one of a file without holes.
fn needed(chunk: ChunkKey, sight: &Sight) -> Option<u64> {
    let InodeFacts { content, whole, .. } = &sight.inode;
    let is_present = content.is_some_and(|(generation, _)| generation == chunk.generation);
    let last = whole.checked_sub(1).filter(|_| is_present)?;
    (last / CHUNK_BYTES == chunk.index.0).then_some(last % CHUNK_BYTES + 1)
}

fn longest(sight: &Sight) -> u64 {
    sight.members.values().flatten().map(|facts| u64::from(facts.length)).max().unwrap_or(0)
}

/// Whether it is the end of a file without holes, and there. What a file is longer by within a block was never written.
fn is_end(chunk: ChunkKey, sight: &Sight) -> bool {
    needed(chunk, sight).is_some_and(|needed| longest(sight).next_multiple_of(BLOCK_BYTES) >= needed)
}

/// Whether it is the end of a file without holes, and not there.
fn is_missing(chunk: ChunkKey, sight: &Sight) -> bool {
    needed(chunk, sight).is_some() && !is_end(chunk, sight)
}

/// What is wrong with a chunk, if it stays so.
fn findings((group, groups): (GroupId, u32), chunk: ChunkKey, sight: &Sight) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let held: Vec<(&MemberId, &ChunkFacts)> =
        sight.members.iter().filter_map(|(member, facts)| Some((member, facts.as_ref()?))).collect();
    if is_missing(chunk, sight) {
        let whole = sight.inode.whole;
        found.push(("lost", format!("the end of the file's {whole} bytes is not there: it reads as zeros")));
    }
    if held.is_empty() {
        return found;
    }
    let right = GroupId::of(chunk.volume, chunk.inode, chunk.index, groups);
    if right != group {
        found.push(("placement", format!("belongs to group {}", right.0)));
    }
    for (member, _) in held.iter().filter(|(_, facts)| facts.damaged) {
        found.push(("checksum", format!("a block on {member} does not have its checksum")));
    }
    let contents: BTreeSet<_> =
        sight.members.values().map(|facts| facts.map(|facts| (facts.length, facts.digest))).collect();
    if contents.len() > 1 {
        let each = sight.members.iter().map(|(member, facts)| match facts {
            Some(facts) => format!("{member} has {} bytes, digest {:08x}", facts.length, facts.digest),
            None => format!("{member} has nothing"),
        });
        found.push(("replicas", format!("members differ: {}", each.collect::<Vec<_>>().join("; "))));
    }
    let gone = sight.inode.volume_gone || sight.inode.purging.contains(&chunk.generation);
    match sight.inode.content {
        _ if gone => {}
        Some((generation, end)) if generation == chunk.generation => {
            // What is written is written in whole blocks at the most.
            let reaches = chunk.index.0.saturating_mul(CHUNK_BYTES).saturating_add(longest(sight));
            if reaches > end.next_multiple_of(BLOCK_BYTES) {
                found.push(("length", format!("reaches byte {reaches}, the file may have {end} at the most")));
            }
        }
        Some((generation, _)) => {
            found.push(("orphan-chunk", format!("of a content that is gone; the file's is {generation}")));
        }
        None => found.push(("orphan-chunk", "of a file that does not exist".into())),
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::{DiskId, Generation, Incarnation, NodeId};

    const GROUPS: u32 = 8;

    fn chunk() -> ChunkKey {
        let (volume, inode) = (VolumeId(1), InodeId(9));
        ChunkKey { volume, inode, generation: Generation(2), index: ChunkIndex(1), born: SnapshotNumber(0) }
    }

    fn member(node: u64) -> MemberId {
        MemberId { node: NodeId(node), disk: DiskId(0), incarnation: Incarnation(1) }
    }

    fn sight() -> Sight {
        let facts = Some(ChunkFacts { chunk: chunk(), length: 5000, digest: 7, damaged: false });
        let content = Some((Generation(2), CHUNK_BYTES + 5000));
        let inode = InodeFacts { content, purging: Vec::new(), volume_gone: false, whole: CHUNK_BYTES + 5000 };
        Sight { epoch: Epoch(1), members: (1..=3).map(|node| (member(node), facts)).collect(), inode }
    }

    fn kinds(change: impl FnOnce(&mut Sight)) -> Vec<&'static str> {
        let mut sight = sight();
        change(&mut sight);
        let group = GroupId::of(chunk().volume, chunk().inode, chunk().index, GROUPS);
        findings((group, GROUPS), chunk(), &sight).into_iter().map(|(kind, _)| kind).collect()
    }

    #[test]
    fn what_is_wrong_with_a_chunk_is_told_by_its_kind() {
        let facts = |sight: &mut Sight, change: fn(&mut ChunkFacts)| {
            change(sight.members.get_mut(&member(2)).expect("a member").as_mut().expect("held"));
        };
        assert_eq!(kinds(|_| {}), Vec::<&str>::new());
        assert_eq!(kinds(|sight| facts(sight, |facts| facts.digest = 8)), ["replicas"]);
        assert_eq!(kinds(|sight| facts(sight, |facts| facts.length = 4999)), ["replicas"]);
        assert_eq!(kinds(|sight| *sight.members.get_mut(&member(3)).expect("a member") = None), ["replicas"]);
        assert_eq!(kinds(|sight| facts(sight, |facts| facts.damaged = true)), ["checksum"]);
        assert_eq!(kinds(|sight| sight.inode.content = None), ["orphan-chunk"]);
        assert_eq!(kinds(|sight| sight.inode.content = Some((Generation(3), u64::MAX >> 1))), ["orphan-chunk"]);
        assert_eq!(kinds(|sight| sight.inode.content = Some((Generation(2), CHUNK_BYTES))), ["length"]);
        // Being removed, or gone everywhere from a file that may have holes: nothing is wrong.
        let purged = |sight: &mut Sight| (sight.inode.content, sight.inode.purging) = (None, vec![Generation(2)]);
        assert_eq!(kinds(purged), Vec::<&str>::new());
        let gone = |sight: &mut Sight| sight.members.values_mut().for_each(|facts| *facts = None);
        let holes = |sight: &mut Sight| sight.inode.whole = 0;
        assert_eq!(kinds(|sight| (gone(sight), holes(sight)).1), Vec::<&str>::new());
        // Of one without holes the end must be there, to the block.
        assert_eq!(kinds(gone), ["lost"]);
        let shorten = |sight: &mut Sight, length| {
            sight.members.values_mut().flatten().for_each(|facts| facts.length = length);
        };
        assert_eq!(kinds(|sight| shorten(sight, 4096)), ["lost"]);
        assert_eq!(kinds(|sight| shorten(sight, 4097)), Vec::<&str>::new());
        assert_eq!(kinds(|sight| (shorten(sight, 1), holes(sight)).1), Vec::<&str>::new());
        let elsewhere = findings((GroupId(GROUPS), GROUPS), chunk(), &sight());
        assert_eq!(elsewhere.first().map(|(kind, _)| *kind), Some("placement"));
    }
}
