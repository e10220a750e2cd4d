//! What is remembered about a volume, as it stands in its labels.
//!
//! | label | value |
//! | --- | --- |
//! | `holdfast.io/driver` | who manages the volume |
//! | `holdfast.io/name` | its name for whoever wanted it |
//! | `holdfast.io/parameters` | what it was asked for, as a JSON object |
//! | `holdfast.io/ephemeral` | the node on which it goes with what it was made for |
//! | `holdfast.io/deleting` | there: it is being deleted |
//! | `holdfast.io/generation` | the greatest generation that was given to an attachment, or to the end of one |
//! | `holdfast.io/node.DIGEST` | an [`Attachment`] as a JSON object; DIGEST is of the node's id |
//!
//! Labels of others are kept as they are.

use crate::attach::Attachment;
use crate::error::VolumeError;
use crate::spec::VolumeSpec;
use holdfast_wire::namespace::{Labels, VolumeFacts};
use std::collections::BTreeMap;

const DRIVER: &str = "holdfast.io/driver";
const NAME: &str = "holdfast.io/name";
const PARAMETERS: &str = "holdfast.io/parameters";
const EPHEMERAL: &str = "holdfast.io/ephemeral";
const DELETING: &str = "holdfast.io/deleting";
const GENERATION: &str = "holdfast.io/generation";
const NODE: &str = "holdfast.io/node.";
/// Hexadecimal digits of a digest: enough that no two nodes of any cluster have the same.
const DIGEST_DIGITS: usize = 24;
/// Bytes of labels that attachments leave free: the end of one takes some, too.
const RESERVE_BYTES: usize = 512;

/// A digest of a text that may be too long, or too odd, for a label's name.
pub(crate) fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..DIGEST_DIGITS].to_owned()
}

/// The labels of a volume, to read and to change.
#[derive(Clone, Debug)]
pub(crate) struct Book {
    name: String,
    labels: Labels,
}

impl Book {
    pub(crate) fn of(facts: &VolumeFacts) -> Self {
        Self { name: facts.record.name.clone(), labels: facts.labels.clone() }
    }

    /// Of a new volume.
    pub(crate) fn new(name: &str, spec: &VolumeSpec) -> Self {
        let mut labels = Labels::new();
        labels.insert(DRIVER.into(), spec.driver.clone());
        labels.insert(NAME.into(), spec.name.clone());
        labels.insert(PARAMETERS.into(), parameters_text(&spec.parameters));
        if let Some(node) = &spec.ephemeral_on {
            labels.insert(EPHEMERAL.into(), node.clone());
        }
        Self { name: name.into(), labels }
    }

    pub(crate) fn into_labels(self) -> Labels {
        self.labels
    }

    fn word(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    pub(crate) fn driver(&self) -> Option<&str> {
        self.word(DRIVER)
    }

    /// Its name for whoever wanted it; for one that nobody manages, the one it has.
    pub(crate) fn asked(&self) -> &str {
        self.word(NAME).unwrap_or(&self.name)
    }

    pub(crate) fn ephemeral_on(&self) -> Option<&str> {
        self.word(EPHEMERAL)
    }

    pub(crate) fn is_deleting(&self) -> bool {
        self.labels.contains_key(DELETING)
    }

    pub(crate) fn set_deleting(&mut self, deleting: bool) {
        if deleting {
            self.labels.insert(DELETING.into(), String::new());
        } else {
            self.labels.remove(DELETING);
        }
    }

    pub(crate) fn parameters(&self) -> Result<BTreeMap<String, String>, VolumeError> {
        self.word(PARAMETERS).map_or_else(|| Ok(BTreeMap::new()), |text| self.read(PARAMETERS, text))
    }

    fn generation(&self) -> Result<u64, VolumeError> {
        self.word(GENERATION).map_or(Ok(0), |text| self.read(GENERATION, text))
    }

    /// A generation that nobody has had.
    pub(crate) fn next_generation(&mut self) -> Result<u64, VolumeError> {
        let next = self.generation()? + 1;
        self.labels.insert(GENERATION.into(), next.to_string());
        Ok(next)
    }

    pub(crate) fn attachments(&self) -> Result<Vec<Attachment>, VolumeError> {
        let rows = self.labels.iter().filter(|(key, _)| key.starts_with(NODE));
        rows.map(|(key, text)| self.read(key, text)).collect()
    }

    pub(crate) fn put(&mut self, attachment: &Attachment) {
        let text = serde_json::to_string(attachment).expect("a plain structure");
        self.labels.insert(format!("{NODE}{}", digest(&attachment.node)), text);
    }

    pub(crate) fn remove(&mut self, node: &str) {
        self.labels.remove(&format!("{NODE}{}", digest(node)));
    }

    /// Whether there is room for all that.
    pub(crate) fn fits(&self) -> bool {
        let bytes: usize = self.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        bytes + RESERVE_BYTES <= holdfast_wire::namespace::LABELS_BYTES_MAX
    }

    fn read<T: serde::de::DeserializeOwned>(&self, key: &str, text: &str) -> Result<T, VolumeError> {
        serde_json::from_str(text).map_err(|error| VolumeError::Broken {
            reason: format!("label {key} of volume {:?} is {text:?}, which cannot be read: {error}", self.name),
        })
    }
}

fn parameters_text(parameters: &BTreeMap<String, String>) -> String {
    serde_json::to_string(parameters).expect("a map of texts")
}
