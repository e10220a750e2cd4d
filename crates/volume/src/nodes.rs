//! Which nodes there are: a node plugin writes down its node's id when it starts, and who attaches a volume to a node looks whether it is
//! there. So a misspelt node is told from one that is down, and nothing has to be heard from again and again.
//!
//! The ids are labels of volumes with names of their own, which hold no data: `.nodes-1`, and as each has room for about two hundred,
//! `.nodes-2` ... as they are needed. A node that is gone stays written down; that harms nobody.

use crate::book::digest;
use crate::cluster::{Cluster, Refusal};
use crate::error::VolumeError;
use crate::lifecycle::Volumes;
use holdfast_wire::namespace::{LABELS_BYTES_MAX, Labels, Limits, VolumeFacts};
use holdfast_wire::open::OpenPolicy;

const PREFIX: &str = ".nodes-";
/// Volumes of ids at the most: twice as many nodes as Kubernetes has at the most.
const VOLUMES_MAX: u32 = 50;
/// Bytes of a node's id, at the most: as of Kubernetes.
const ID_BYTES_MAX: usize = 192;

/// Whether a volume is one of ours and nobody else's business.
pub(crate) fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

fn has(facts: &VolumeFacts, node: &str) -> bool {
    facts.labels.get(&digest(node)).is_some_and(|known| known == node)
}

fn has_room(labels: &Labels) -> bool {
    labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() <= LABELS_BYTES_MAX
}

impl<C: Cluster> Volumes<C> {
    /// Writes down that there is a node.
    ///
    /// # Errors
    /// [`VolumeError::Invalid`] for an id that cannot be one.
    pub async fn register_node(&self, node: &str) -> Result<(), VolumeError> {
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b',';
        if node.is_empty() || node.len() > ID_BYTES_MAX || !node.bytes().all(plain) {
            let reason =
                format!("a node's id has 1 to {ID_BYTES_MAX} printable ASCII characters, no blank and no comma");
            return Err(VolumeError::Invalid { reason });
        }
        for number in 1..=VOLUMES_MAX {
            let name = format!("{PREFIX}{number}");
            // Until it is in this one, or this one is full.
            loop {
                let Some(facts) = self.find(&name).await? else {
                    // It holds no data, and is never mounted.
                    let limits = Limits { bytes: Some(0), inodes: Some(1) };
                    match self.cluster().create(&name, limits, OpenPolicy::default(), Labels::new()).await {
                        Ok(()) | Err(Refusal::Exists) => continue,
                        Err(refusal) => return Err(refusal.about(&name)),
                    }
                };
                if has(&facts, node) {
                    return Ok(());
                }
                let mut labels = facts.labels.clone();
                labels.insert(digest(node), node.into());
                if !has_room(&labels) {
                    break;
                }
                let done = self.cluster().label(&name, facts.labels_version, labels).await;
                done.map_err(|refusal| refusal.about(&name))?;
            }
        }
        Err(VolumeError::Invalid { reason: "there are more nodes than can be written down".into() })
    }

    /// Whether a node was written down.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn is_node(&self, node: &str) -> Result<bool, VolumeError> {
        for number in 1..=VOLUMES_MAX {
            match self.find(&format!("{PREFIX}{number}")).await? {
                None => return Ok(false),
                Some(facts) if has(&facts, node) => return Ok(true),
                Some(_) => {}
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeCluster;

    #[tokio::test]
    async fn nodes_are_known_once_they_have_said_so_and_there_may_be_thousands() {
        let volumes = Volumes::new(FakeCluster::default());
        assert!(!volumes.is_node("a").await.expect("asked"));
        let id = |n: u32| format!("node-{n:04}.{}", "x".repeat(100));
        for n in 0..1000 {
            volumes.register_node(&id(n)).await.expect("written down");
        }
        volumes.register_node(&id(7)).await.expect("the same again");
        assert!(volumes.is_node(&id(0)).await.expect("asked") && volumes.is_node(&id(999)).await.expect("asked"));
        assert!(!volumes.is_node(&id(1000)).await.expect("asked"));
        let (listed, _) = volumes.list("", 0).await.expect("listed");
        assert!(listed.is_empty(), "they are nobody's volumes: {listed:?}");
        for bad in ["", "a b", "a,b", "\u{e4}", &"x".repeat(193)] {
            let refused = volumes.register_node(bad).await;
            assert!(matches!(refused, Err(VolumeError::Invalid { .. })), "{bad}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_that_register_at_once_are_all_known() {
        let cluster = FakeCluster::default();
        let many: Vec<_> = (0..40)
            .map(|n| {
                let volumes = Volumes::new(cluster.clone());
                tokio::spawn(async move { volumes.register_node(&format!("n{n}")).await })
            })
            .collect();
        for one in many {
            one.await.expect("no panic").expect("written down");
        }
        let volumes = Volumes::new(cluster);
        for n in 0..40 {
            assert!(volumes.is_node(&format!("n{n}")).await.expect("asked"), "n{n}");
        }
    }
}
