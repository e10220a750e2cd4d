//! Whether what files say they hold is there: the last chunk of every file without holes. In memory that does not grow with the files.
//!
//! ```text
//! chunks of all groups ── files whose end is there ──┐
//! files of a metadata server's table ── all of them ─┴▶ 65,536 sums, which must all be 0 ── else its files are looked at one by one
//! ```
//!
//! A file is turned into its sum once by each side, so a sum is 0 when both know the same files. While clients write they do not: then some
//! more are looked at, and found in order.

use super::chunks::Suspect;
use super::{Progress, SERVER_PATIENCE};
use holdfast_client::Cluster;
use holdfast_types::{Generation, InodeId, ServerId, VolumeId, prng};
use holdfast_wire::admin::{AdminAnswer, AdminRequest, WholeFile};
use std::collections::BTreeMap;

/// Files asked for at once.
const FILES: u32 = 10_000;
/// Files that are looked at one by one. So many odd sums say that much is missing, or that much is written just now.
const UNSEEN_MAX: usize = 10_000;
/// Tries of a page.
const TRIES: u32 = 4;

/// Sums of files, by a part of their hash; those that are 0 are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends(BTreeMap<u16, u64>);

fn hash(volume: VolumeId, inode: InodeId, generation: Generation) -> u64 {
    prng::mix(prng::mix(prng::mix(volume.0) ^ inode.0) ^ generation.0)
}

impl Ends {
    /// Adds a file, or takes it out.
    pub fn turn(&mut self, volume: VolumeId, inode: InodeId, generation: Generation) {
        let hash = hash(volume, inode, generation);
        self.add(hash as u16, hash);
    }

    fn add(&mut self, part: u16, hash: u64) {
        let sum = self.0.entry(part).or_default();
        *sum ^= hash;
        if *sum == 0 {
            self.0.remove(&part);
        }
    }

    /// Adds what others have seen.
    pub fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(part, sum)| self.add(*part, *sum));
    }

    fn is_suspect(&self, file: &WholeFile) -> bool {
        self.0.contains_key(&(hash(file.volume, file.inode, file.generation) as u16))
    }
}

/// Files to be looked at one by one, and how many more there would be.
#[derive(Default)]
struct Unseen {
    files: Vec<WholeFile>,
    more: u64,
}

impl Unseen {
    fn add(&mut self, file: WholeFile) {
        if self.files.len() < UNSEEN_MAX {
            self.files.push(file);
        } else {
            self.more += 1;
        }
    }
}

/// Ends of files that were not seen, after a first look of their own, and how many files were too many to look at.
pub(super) async fn missing(
    cluster: &Cluster,
    servers: &[ServerId],
    groups: u32,
    mut seen: Ends,
) -> Result<(Vec<Suspect>, u64), String> {
    let (mut refusal, mut source) = ("no metadata server answers".to_owned(), None);
    for server in servers {
        match page(cluster, *server, (VolumeId(0), InodeId(0)), 1).await {
            Ok(_) => {
                source = Some(*server);
                break;
            }
            Err(reason) => refusal = format!("metadata server {}: {reason}", server.0),
        }
    }
    let Some(server) = source else { return Err(refusal) };
    let each = async |what: &mut dyn FnMut(WholeFile)| {
        let mut at = (VolumeId(0), InodeId(0));
        loop {
            let (files, next) = page(cluster, server, at, FILES).await?;
            files.into_iter().for_each(&mut *what);
            match next {
                Some(next) => at = next,
                None => return Ok::<_, String>(()),
            }
        }
    };
    each(&mut |file| seen.turn(file.volume, file.inode, file.generation)).await?;
    if seen == Ends::default() {
        return Ok((Vec::new(), 0));
    }
    let mut unseen = Unseen::default();
    let mut look = |file: WholeFile| {
        if seen.is_suspect(&file) {
            unseen.add(file);
        }
    };
    each(&mut look).await?;
    let Unseen { files: unseen, more } = unseen;
    let progress = Progress::new("ends of files");
    let mut missing = Vec::new();
    for (number, file) in unseen.iter().enumerate() {
        let mut suspect = Suspect::of_end(cluster, groups, file);
        // Whoever cannot be asked just now is asked again later.
        if suspect.look_again().await.unwrap_or(true) {
            missing.push(suspect);
        }
        progress.at(0, number as u64 + 1, unseen.len() as u64);
    }
    progress.end();
    Ok((missing, more))
}

async fn page(
    cluster: &Cluster,
    server: ServerId,
    after: (VolumeId, InodeId),
    limit: u32,
) -> Result<(Vec<WholeFile>, Option<(VolumeId, InodeId)>), String> {
    for _ in 0..TRIES {
        match cluster.ask_server(server, AdminRequest::ListFiles { after, limit }, SERVER_PATIENCE).await {
            Some(AdminAnswer::Files { files, next }) => return Ok((files, next)),
            Some(AdminAnswer::Refused(reason)) => return Err(reason),
            Some(other) => return Err(format!("it answered something else: {other:?}")),
            None => {}
        }
    }
    Err("it does not answer".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64) -> WholeFile {
        WholeFile { volume: VolumeId(1), inode: InodeId(inode), generation: Generation(1), size: 9 }
    }

    #[test]
    fn what_is_looked_at_one_by_one_is_bounded_and_the_rest_counted() {
        let mut unseen = Unseen::default();
        (0..UNSEEN_MAX as u64 + 3).for_each(|inode| unseen.add(file(inode)));
        assert_eq!((unseen.files.len(), unseen.more), (UNSEEN_MAX, 3));
    }

    #[test]
    fn what_one_side_alone_knows_stands_out() {
        let turn = |ends: &mut Ends, inode| ends.turn(VolumeId(1), InodeId(inode), Generation(1));
        let (mut here, mut there) = (Ends::default(), Ends::default());
        for inode in 1..20_000 {
            turn(if inode % 2 == 0 { &mut here } else { &mut there }, inode);
        }
        here.merge(&there);
        (1..20_000).filter(|inode| *inode != 777).for_each(|inode| turn(&mut here, inode));
        let suspects: Vec<u64> = (1..20_000).filter(|inode| here.is_suspect(&file(*inode))).collect();
        assert!(suspects.contains(&777) && suspects.len() < 10, "{suspects:?}");
        turn(&mut here, 777);
        assert_eq!(here, Ends::default());
    }
}
