//! The metadata servers as the last map named them, kept beside the data: all that the configuration names may have been replaced since.
//!
//! Best effort: a node that cannot write it, or finds nonsense in it, goes by its configuration, as on its first day.

use crate::config::MetadataServer;
use crate::kept;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The dot keeps it out of the disk's own list of files.
const NAME: &str = ".metadata-servers.toml";

/// The file's content.
#[derive(Serialize, Deserialize)]
struct Kept {
    metadata: Vec<MetadataServer>,
}

/// Where it is, in each of a node's disk directories.
pub(crate) struct ServersFile {
    directories: Vec<PathBuf>,
}

impl ServersFile {
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self { directories }
    }

    /// Whom to ask at a start: those of the configuration, and those that the last map named and the configuration does not.
    pub fn with(&self, configured: &[MetadataServer]) -> Vec<MetadataServer> {
        let mut all = configured.to_vec();
        let kept = self.directories.iter().find_map(|directory| read(&directory.join(NAME)));
        for server in kept.unwrap_or_default() {
            if all.iter().all(|known| known.id != server.id) && holdfast_config::port(&server.address).is_some() {
                all.push(server);
            }
        }
        all
    }

    /// Writes down who they are. It is whole or as before after a crash.
    pub fn keep(&self, servers: Vec<MetadataServer>) {
        let text = match toml::to_string(&Kept { metadata: servers }) {
            Ok(text) => text,
            Err(error) => return tracing::warn!(%error, "the metadata servers cannot be written down"),
        };
        for directory in &self.directories {
            if let Err(error) = kept::replace(directory, NAME, text.as_bytes()) {
                tracing::warn!(directory = %directory.display(), %error, "the metadata servers are not kept here");
            }
        }
    }
}

fn read(path: &Path) -> Option<Vec<MetadataServer>> {
    let text = std::fs::read_to_string(path).ok()?;
    match toml::from_str::<Kept>(&text) {
        Ok(kept) => Some(kept.metadata),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "not a list of metadata servers: left alone");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(id: u64, port: u16) -> MetadataServer {
        MetadataServer { id, address: format!("127.0.0.1:{port}") }
    }

    #[test]
    fn whom_the_last_map_named_is_asked_besides_those_of_the_configuration() {
        let directories = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
        let file = ServersFile::new(directories.iter().map(|directory| directory.path().into()).collect());
        let configured = [server(1, 10), server(2, 20)];
        assert_eq!(file.with(&configured), configured);
        file.keep(vec![server(2, 21), server(4, 40)]);
        file.keep(vec![server(2, 21), server(5, 50)]);
        let all = [server(1, 10), server(2, 20), server(5, 50)];
        assert_eq!(file.with(&configured), all, "the newest list; of those configured the configured address");
        std::fs::write(directories[0].path().join(NAME), "metadata = 7").expect("written");
        assert_eq!(file.with(&configured), all, "another disk has it");
        std::fs::remove_file(directories[1].path().join(NAME)).expect("removed");
        assert_eq!(file.with(&configured), configured);
    }
}
