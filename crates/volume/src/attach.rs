//! Which node may mount a volume, and that those which may not any more cannot.
//!
//! ```text
//!          record it        raise the generation
//!  none ───────────▶ attached ───────────▶ attached, and nobody of before changes a byte
//!                        │ record that it ends, with a generation that nobody has
//!                        ▼
//!  none ◀─────────── ending ───────────▶ ending, and nobody of it changes a byte
//!        strike it             raise the generation to that
//! ```
//!
//! Each step is one request that may be repeated. Who finds an attachment that ends, and in the way, ends it.

use crate::book::Book;
use crate::cluster::Cluster;
use crate::error::VolumeError;
use crate::lifecycle::Volumes;
use holdfast_wire::namespace::VolumeFacts;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a volume is to be used. The names are those of the Container Storage Interface, which draws the same distinctions as we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// On one node, at one place: what those say who do not know of the two below.
    SingleNodeWriter,
    /// On one node, at one place, read only.
    SingleNodeReader,
    /// On one node, at one place.
    SingleNodeSingleWriter,
    /// On one node, at several places.
    SingleNodeMultiWriter,
    /// On many nodes, read only.
    MultiNodeReader,
    /// On many nodes, of which one may write.
    MultiNodeSingleWriter,
    /// On many nodes.
    MultiNodeMultiWriter,
}

impl Access {
    /// At most one node may have it.
    pub fn is_single_node(self) -> bool {
        match self {
            Self::SingleNodeWriter
            | Self::SingleNodeReader
            | Self::SingleNodeSingleWriter
            | Self::SingleNodeMultiWriter => true,
            Self::MultiNodeReader | Self::MultiNodeSingleWriter | Self::MultiNodeMultiWriter => false,
        }
    }

    /// At one place of a node only.
    pub fn is_single_place(self) -> bool {
        matches!(self, Self::SingleNodeWriter | Self::SingleNodeReader | Self::SingleNodeSingleWriter)
    }

    /// Whether who has this may be asked for the other on a node: the same, or less of it. Kubernetes attaches a claim of several modes by the widest
    /// and mounts it by the first.
    pub fn covers(self, wanted: Self) -> bool {
        let narrower = !self.is_single_node() && wanted.is_single_node();
        self == wanted || (narrower && (wanted.is_read_only() || !self.is_read_only()))
    }

    /// Nobody may write.
    pub fn is_read_only(self) -> bool {
        matches!(self, Self::SingleNodeReader | Self::MultiNodeReader)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SingleNodeWriter => "single-node-writer",
            Self::SingleNodeReader => "single-node-reader",
            Self::SingleNodeSingleWriter => "single-node-single-writer",
            Self::SingleNodeMultiWriter => "single-node-multi-writer",
            Self::MultiNodeReader => "multi-node-reader",
            Self::MultiNodeSingleWriter => "multi-node-single-writer",
            Self::MultiNodeMultiWriter => "multi-node-multi-writer",
        })
    }
}

/// The right of a node to mount a volume. Mounts under it carry its instance and generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Which node.
    pub node: String,
    /// How.
    pub access: Access,
    /// Nothing may be changed through it.
    pub read_only: bool,
    /// The instance that mounts under it say they are. The same for all single-node attachments of a volume, so that a later one ends all
    /// of an earlier; else one of the node's own.
    pub instance: String,
    /// Their generation. Rises with every attachment of the volume.
    pub generation: u64,
    /// It ends: those of its instance below this generation are being fenced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<u64>,
}

/// Instance of all single-node attachments.
const SINGLE: &str = "single-node";

impl Attachment {
    fn new(node: &str, access: Access, read_only: bool, generation: u64) -> Self {
        let instance = if access.is_single_node() { SINGLE.to_owned() } else { format!("node/{node}") };
        Self { node: node.into(), access, read_only, instance, generation, ends_at: None }
    }

    fn writes(&self) -> bool {
        !self.read_only
    }

    /// Whether both may not be at once, on two nodes.
    fn excludes(&self, other: &Self) -> bool {
        let one_writer = [self, other].iter().any(|a| a.access == Access::MultiNodeSingleWriter);
        self.access.is_single_node() || other.access.is_single_node() || (one_writer && self.writes() && other.writes())
    }

    /// In what it is not what is asked for.
    fn difference(&self, wanted: &Self) -> Option<String> {
        if self.access != wanted.access {
            return Some(format!("as {}, not {}", self.access, wanted.access));
        }
        let how = |read_only| if read_only { "read only" } else { "to write" };
        (self.read_only != wanted.read_only).then(|| format!("{}, not {}", how(self.read_only), how(wanted.read_only)))
    }
}

/// What is in the way of an attachment.
enum InTheWay {
    /// Nothing.
    Nothing,
    /// It is there already.
    Same(Attachment),
    /// One that ends.
    Ending(Attachment),
}

fn look(name: &str, mut present: Vec<Attachment>, wanted: &Attachment) -> Result<InTheWay, VolumeError> {
    // What is to be said of this node is said first.
    present.sort_by_key(|other| other.node != wanted.node);
    for other in present {
        let here = other.node == wanted.node;
        match (here, &other.ends_at) {
            (true, None) => {
                let Some(difference) = other.difference(wanted) else { return Ok(InTheWay::Same(other)) };
                let (name, node) = (name.into(), other.node);
                return Err(VolumeError::AttachedOtherwise { name, node, difference });
            }
            (false, None) if other.excludes(wanted) => {
                let (name, access) = (name.into(), other.access.to_string());
                return Err(VolumeError::AttachedElsewhere { name, node: other.node, access });
            }
            (_, Some(_)) if here || other.excludes(wanted) => return Ok(InTheWay::Ending(other)),
            (false, _) | (true, Some(_)) => {}
        }
    }
    Ok(InTheWay::Nothing)
}

impl<C: Cluster> Volumes<C> {
    /// Gives a node the right to mount a volume. When this returns, nobody who had a right that excludes this one changes a byte any more.
    ///
    /// The same again returns the same attachment, as often as it is asked for.
    ///
    /// # Errors
    /// [`VolumeError::NoVolume`], [`VolumeError::NoNode`] if no such node has been [registered](Volumes::register_node),
    /// [`VolumeError::AttachedElsewhere`], [`VolumeError::AttachedOtherwise`], [`VolumeError::TooMany`].
    pub async fn attach(
        &self,
        name: &str,
        node: &str,
        access: Access,
        read_only: bool,
    ) -> Result<Attachment, VolumeError> {
        let _turn = self.turn(name).await?;
        let facts = self.get(name).await?;
        if !self.is_node(node).await? {
            return Err(VolumeError::NoNode { node: node.into() });
        }
        self.attach_at(facts, node, access, read_only || access.is_read_only()).await
    }

    async fn attach_at(
        &self,
        mut facts: VolumeFacts,
        node: &str,
        access: Access,
        read_only: bool,
    ) -> Result<Attachment, VolumeError> {
        let name = facts.record.name.clone();
        loop {
            let mut book = Book::of(&facts);
            let wanted = Attachment::new(node, access, read_only, book.next_generation()?);
            let present = book.attachments()?;
            let count = present.len();
            match look(&name, present, &wanted)? {
                InTheWay::Ending(ending) => self.end(&facts, ending).await?,
                InTheWay::Same(attachment) => {
                    // Whoever recorded it may have been cut off before it did this.
                    self.fence_before(&facts, &attachment, attachment.generation).await?;
                    return Ok(attachment);
                }
                InTheWay::Nothing => {
                    book.put(&wanted);
                    if !book.fits() {
                        return Err(VolumeError::TooMany { name, nodes: count });
                    }
                    if self.relabel(&facts, book).await? {
                        self.fence_before(&facts, &wanted, wanted.generation).await?;
                        return Ok(wanted);
                    }
                }
            }
            facts = self.get(&name).await?;
        }
    }

    /// Takes the right to mount a volume from a node (from all, if none is named), and fences what is still mounted under it. A volume that
    /// is not there, or not attached to that node, is as it should be.
    ///
    /// # Errors
    /// When the cluster does not answer, or cannot fence yet: ask again.
    pub async fn detach(&self, name: &str, node: Option<&str>) -> Result<(), VolumeError> {
        let _turn = self.turn(name).await?;
        self.detach_all(name, |attachment| node.is_none_or(|node| node == attachment.node)).await
    }

    pub(crate) async fn detach_all(&self, name: &str, which: impl Fn(&Attachment) -> bool) -> Result<(), VolumeError> {
        while let Some(facts) = self.find(name).await? {
            let mut book = Book::of(&facts);
            let Some(mut attachment) = book.attachments()?.into_iter().find(&which) else { return Ok(()) };
            if attachment.ends_at.is_none() {
                attachment.ends_at = Some(book.next_generation()?);
                book.put(&attachment);
                if !self.relabel(&facts, book).await? {
                    continue;
                }
            }
            self.end(&facts, attachment).await?;
        }
        Ok(())
    }

    /// Fences what is left of an attachment that ends, and strikes it.
    async fn end(&self, facts: &VolumeFacts, ending: Attachment) -> Result<(), VolumeError> {
        let at = ending.ends_at.expect("on record as one that ends");
        self.fence_before(facts, &ending, at).await?;
        while let Some(facts) = self.find(&facts.record.name).await? {
            let mut book = Book::of(&facts);
            if !book.attachments()?.contains(&ending) {
                break;
            }
            book.remove(&ending.node);
            if self.relabel(&facts, book).await? {
                tracing::info!(volume = facts.record.name, node = ending.node, "detached, and what was left is fenced");
                break;
            }
        }
        Ok(())
    }

    async fn fence_before(&self, facts: &VolumeFacts, of: &Attachment, generation: u64) -> Result<(), VolumeError> {
        let raised = self.cluster().raise_generation(facts.record.id, &of.instance, generation).await;
        raised.map_err(|refusal| refusal.about(&facts.record.name))
    }

    /// The attachment of a volume to a node: what it may mount, and as whom.
    ///
    /// # Errors
    /// [`VolumeError::NoVolume`], [`VolumeError::NotAttached`].
    pub async fn attachment(&self, name: &str, node: &str) -> Result<Attachment, VolumeError> {
        let present = self.attachments(&self.get(name).await?)?;
        present.into_iter().find(|attachment| attachment.node == node).ok_or_else(|| VolumeError::NotAttached {
            name: name.into(),
            node: node.into(),
            more: String::new(),
        })
    }

    /// The attachments of a volume, without those that end.
    ///
    /// # Errors
    /// [`VolumeError::Broken`] when its labels cannot be read.
    pub fn attachments(&self, facts: &VolumeFacts) -> Result<Vec<Attachment>, VolumeError> {
        let mut present = Book::of(facts).attachments()?;
        present.retain(|attachment| attachment.ends_at.is_none());
        Ok(present)
    }
}

#[cfg(test)]
mod tests;
