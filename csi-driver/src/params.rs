//! What requests say, checked.

use crate::proto::volume_capability::AccessType;
use crate::proto::volume_capability::access_mode::Mode;
use crate::proto::{CapacityRange, Topology, TopologyRequirement, VolumeCapability};
use holdfast_volume::{Access, Capacity, VolumeError};
use holdfast_volume::{OPEN_WAIT_MAX, OpenPolicy, OpenRule};
use std::collections::{BTreeMap, HashMap};
use tonic::Status;

/// The one segment of our topology: a volume is reached from every node of the same cluster.
pub(crate) const TOPOLOGY: &str = "topology.holdfast.io/cluster";
/// Parameters that the orchestrator adds, for whoever may want to know.
const FROM_KUBERNETES: &str = "csi.storage.k8s.io/";
/// In the context of a volume: it lives as long as the pod.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// Bytes of a name, at the most: as the specification has it for all text.
const NAME_BYTES_MAX: usize = 128;

fn invalid<T>(reason: impl Into<String>) -> Result<T, Status> {
    Err(Status::invalid_argument(reason))
}

/// A field that must be there.
pub(crate) fn required<'a>(field: &str, value: &'a str) -> Result<&'a str, Status> {
    if value.is_empty() { invalid(format!("{field} is missing")) } else { Ok(value) }
}

/// A path that must be there, and absolute.
pub(crate) fn path<'a>(field: &str, value: &'a str) -> Result<&'a std::path::Path, Status> {
    let path = std::path::Path::new(required(field, value)?);
    if path.is_absolute() { Ok(path) } else { invalid(format!("{field} {value:?} is not an absolute path")) }
}

/// The name of a volume that is wanted.
pub(crate) fn name(name: &str) -> Result<&str, Status> {
    required("name", name)?;
    let banned = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    if name.len() > NAME_BYTES_MAX || name.contains(banned) {
        return invalid(format!("name has at most {NAME_BYTES_MAX} bytes and no control characters"));
    }
    Ok(name)
}

/// A size that is wanted.
pub(crate) fn capacity(range: Option<&CapacityRange>) -> Result<Capacity, VolumeError> {
    range.map_or(Ok(Capacity::default()), |range| Capacity::new(range.required_bytes, range.limit_bytes))
}

/// How a volume is to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) access: Access,
    /// Mount options.
    pub(crate) options: Vec<String>,
    /// The group that is to have the files.
    pub(crate) group: Option<u32>,
}

/// Why a capability is none of ours, for who asks whether it is; else it is an argument that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unsupported(pub(crate) String);

/// Reads a capability.
pub(crate) fn capability(capability: &VolumeCapability) -> Result<Result<Wanted, Unsupported>, Status> {
    let Some(mode) = &capability.access_mode else { return invalid("volume_capability: access_mode is missing") };
    let unsupported = |reason: String| Ok(Err(Unsupported(reason)));
    let mount = match &capability.access_type {
        None => return invalid("volume_capability: access_type is missing"),
        Some(AccessType::Block(_)) => {
            return unsupported("Holdfast is a file system: it has no block volumes, ask for a mount".into());
        }
        Some(AccessType::Mount(mount)) => mount,
    };
    let access = match Mode::try_from(mode.mode) {
        Ok(Mode::Unknown) => return invalid("volume_capability: access_mode is UNKNOWN"),
        Err(_) => return unsupported(format!("access mode {} is not known", mode.mode)),
        Ok(Mode::SingleNodeWriter) => Access::SingleNodeWriter,
        Ok(Mode::SingleNodeReaderOnly) => Access::SingleNodeReader,
        Ok(Mode::SingleNodeSingleWriter) => Access::SingleNodeSingleWriter,
        Ok(Mode::SingleNodeMultiWriter) => Access::SingleNodeMultiWriter,
        Ok(Mode::MultiNodeReaderOnly) => Access::MultiNodeReader,
        Ok(Mode::MultiNodeSingleWriter) => Access::MultiNodeSingleWriter,
        Ok(Mode::MultiNodeMultiWriter) => Access::MultiNodeMultiWriter,
    };
    let group = match mount.volume_mount_group.as_str() {
        "" => None,
        text => match text.parse() {
            Ok(group) => Some(group),
            Err(_) => return invalid(format!("volume_mount_group {text:?} is not the number of a group")),
        },
    };
    Ok(Ok(Wanted { access, options: mount.mount_flags.clone(), group }))
}

/// The one capability of a request, which must be one of ours.
pub(crate) fn wanted(given: Option<&VolumeCapability>) -> Result<Wanted, Status> {
    let Some(given) = given else { return invalid("volume_capability is missing") };
    capability(given)?.or_else(|Unsupported(reason)| invalid(reason))
}

/// The capabilities of a request: at least one. The first that is none of ours.
pub(crate) fn capabilities(given: &[VolumeCapability]) -> Result<Result<(), Unsupported>, Status> {
    if given.is_empty() {
        return invalid("volume_capabilities are missing");
    }
    // All are looked at before one is refused: one that makes no sense is worse than one that we do not have.
    let read: Vec<_> = given.iter().map(capability).collect::<Result<_, _>>()?;
    Ok(read.into_iter().find_map(Result::err).map_or(Ok(()), Err))
}

/// A storage class's parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// Inodes at the most, if anything is said of them.
    pub(crate) inodes: Option<Option<u64>>,
    /// Who may have a file open at the same time.
    pub(crate) open: Option<OpenRule>,
    /// Seconds that an open(2) waits for a node that lives.
    pub(crate) open_wait: Option<u16>,
    /// As they were written, without those that the orchestrator adds.
    pub(crate) written: BTreeMap<String, String>,
}

/// Reads parameters. An unknown one is an error: a misspelt limit must not become none.
pub(crate) fn parameters(given: &HashMap<String, String>) -> Result<Parameters, Status> {
    let mut read = Parameters::default();
    for (key, value) in given.iter().filter(|(key, _)| !key.starts_with(FROM_KUBERNETES)) {
        match (key.as_str(), value.as_str(), value.parse()) {
            ("inodes", "none", _) => read.inodes = Some(None),
            ("inodes", _, Ok(inodes)) if inodes > 0 => read.inodes = Some(Some(inodes)),
            ("inodes", ..) => return invalid(format!("parameter inodes: {value:?} is no number above 0, nor none")),
            ("open", text, _) => match text.parse() {
                Ok(rule) => read.open = Some(rule),
                Err(reason) => return invalid(format!("parameter open: {reason}")),
            },
            ("openWait", text, _) => match text.parse().ok().filter(|wait| *wait <= OPEN_WAIT_MAX) {
                Some(wait) => read.open_wait = Some(wait),
                None => return invalid(format!("parameter openWait: {text:?} is not 0 to {OPEN_WAIT_MAX} seconds")),
            },
            _ => return invalid(format!("unknown parameter {key:?}; there are: inodes, open, openWait")),
        }
        read.written.insert(key.clone(), value.clone());
    }
    Ok(read)
}

impl Parameters {
    /// How files are opened, where something is said of it.
    pub(crate) fn opened(&self, before: OpenPolicy) -> OpenPolicy {
        OpenPolicy { rule: self.open.unwrap_or(before.rule), wait: self.open_wait.unwrap_or(before.wait) }
    }
}

/// The size of a volume that lives as long as its pod, if the context says that it is one: with `size` (`1 GiB`, `1Gi`).
pub(crate) fn ephemeral(context: &HashMap<String, String>) -> Result<Option<Capacity>, Status> {
    if context.get(EPHEMERAL).is_none_or(|word| word != "true") {
        return Ok(None);
    }
    let Some(size) = context.get("size") else { return Ok(Some(Capacity::default())) };
    // Kubernetes writes `Gi` for what everybody else calls `GiB`.
    let text = if size.ends_with('i') { format!("{size}B") } else { size.clone() };
    match text.parse::<holdfast_config::Size>() {
        Ok(holdfast_config::Size(bytes)) => Ok(Some(Capacity { required: bytes, limit: 0 })),
        Err(_) => invalid(format!("attribute size: {size:?} is no size, such as 1Gi")),
    }
}

/// Our topology.
pub(crate) fn topology(cluster: &str) -> Topology {
    Topology { segments: [(TOPOLOGY.to_owned(), cluster.to_owned())].into() }
}

fn is_within(topology: &Topology, cluster: &str) -> bool {
    topology.segments.get(TOPOLOGY).is_none_or(|value| value == cluster)
}

/// Whether a volume is reached from where it is wanted.
pub(crate) fn reaches(wanted: Option<&TopologyRequirement>, cluster: &str) -> bool {
    wanted.is_none_or(|wanted| {
        wanted.requisite.is_empty() || wanted.requisite.iter().any(|topology| is_within(topology, cluster))
    })
}

/// Whether a place is one from where volumes are reached.
pub(crate) fn reaches_from(place: Option<&Topology>, cluster: &str) -> bool {
    place.is_none_or(|place| is_within(place, cluster))
}

#[cfg(test)]
mod tests;
