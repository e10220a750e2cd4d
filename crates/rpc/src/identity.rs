//! Who a process is, and whom it expects at the other end.
//!
//! A certificate proves role and id by its names: `metadata-1.<cluster>.holdfast` says which one, `metadata.<cluster>.holdfast`
//! which role, `peer.<cluster>.holdfast` only the cluster. A caller checks the most precise name it knows, so no check of ours
//! replaces TLS's own.

use crate::error::IdentityError;
use crate::tls;
use holdfast_types::ClusterId;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// What a process is in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Role {
    /// A metadata server.
    Metadata = 1,
    /// A storage node.
    Storage = 2,
    /// A mount or a plugin.
    Client = 3,
    /// An operator's tool.
    Admin = 4,
}

impl Role {
    const ALL: [Self; 4] = [Self::Metadata, Self::Storage, Self::Client, Self::Admin];

    /// The word for it, as it stands in names.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Storage => "storage",
            Self::Client => "client",
            Self::Admin => "admin",
        }
    }

    pub(crate) fn from_u16(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|role| *role as u16 == number)
    }
}

/// One process of a cluster: what its certificate proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIdentity {
    /// What it is.
    pub role: Role,
    /// Which one: a server's, node's or client's number.
    pub id: u64,
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.role.name(), self.id)
    }
}

impl PeerIdentity {
    /// The names of its certificate, the most precise first.
    pub(crate) fn names(self, cluster: ClusterId) -> [String; 3] {
        [Expect::Exactly(self), Expect::Role(self.role), Expect::Anyone].map(|expect| expect.name(cluster))
    }

    /// Reads the most precise name of a certificate.
    fn from_name(name: &str) -> Option<(Self, ClusterId)> {
        let (who, cluster) = name.strip_suffix(".holdfast")?.split_once('.')?;
        let (role, id) = who.split_once('-')?;
        let role = Role::ALL.into_iter().find(|known| known.name() == role)?;
        if cluster.len() != 32 {
            return None;
        }
        Some((Self { role, id: id.parse().ok()? }, ClusterId(u128::from_str_radix(cluster, 16).ok()?)))
    }

    /// What a certificate says; whether the cluster's authority signed it is for TLS to check.
    pub(crate) fn from_certificate(certificate: &CertificateDer<'_>) -> Option<(Self, ClusterId)> {
        let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
        parsed.valid_dns_names().find_map(Self::from_name)
    }
}

/// Whom a caller accepts at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Any process of the cluster.
    Anyone,
    /// Any process of that role.
    Role(Role),
    /// That one and no other.
    Exactly(PeerIdentity),
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("peer"),
            Self::Role(role) => f.write_str(role.name()),
            Self::Exactly(peer) => peer.fmt(f),
        }
    }
}

impl From<Option<PeerIdentity>> for Expect {
    fn from(peer: Option<PeerIdentity>) -> Self {
        peer.map_or(Self::Anyone, Self::Exactly)
    }
}

impl Expect {
    fn name(self, cluster: ClusterId) -> String {
        format!("{self}.{cluster}.holdfast")
    }

    /// The name that the other end's certificate must have.
    pub(crate) fn server_name(self, cluster: ClusterId) -> ServerName<'static> {
        ServerName::try_from(self.name(cluster)).expect("role, number and hexadecimal digits are a DNS name")
    }

    /// Whether `peer` will do.
    pub fn accepts(self, peer: PeerIdentity) -> bool {
        match self {
            Self::Anyone => true,
            Self::Role(role) => peer.role == role,
            Self::Exactly(one) => peer == one,
        }
    }
}

/// What this process is and how it proves it. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: ClusterId,
    me: PeerIdentity,
    tls: Option<Arc<tls::Configs>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} of {})", self.me(), self.cluster())
    }
}

impl Identity {
    /// Reads `certificate`, `key` and the cluster's `authority`, all PEM files. Cluster, role and id come from the certificate.
    ///
    /// # Errors
    /// [`IdentityError`] when a file is missing, damaged, of another kind, or does not fit the others; and when the certificate has expired or
    /// is not the authority's: nobody would talk to who has it, and say so only in a log of its own.
    pub fn load(certificate: &Path, key: &Path, authority: &Path) -> Result<Self, IdentityError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| IdentityError::File { path: path.into(), source })
        };
        let (certificate_text, authority_text) = (read(certificate)?, read(authority)?);
        let identity = Self::from_pem(&certificate_text, &read(key)?, &authority_text)?;
        let roots = certificates("authority", &authority_text)?;
        tls::check(&certificates("certificate", &certificate_text)?, roots).map_err(|error| {
            let reason = match error {
                // TLS speaks of a peer's, but this one is ours.
                rustls::Error::InvalidCertificate(reason) => reason.to_string(),
                other => other.to_string(),
            };
            IdentityError::Refused { path: certificate.into(), authority: authority.into(), reason }
        })?;
        Ok(identity)
    }

    /// Like [`Self::load`], from the files' contents.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn from_pem(certificate: &str, key: &str, authority: &str) -> Result<Self, IdentityError> {
        let chain = certificates("certificate", certificate)?;
        let roots = certificates("authority", authority)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| IdentityError::Pem { what: "key", reason: error.to_string() })?;
        let (me, cluster) = PeerIdentity::from_certificate(&chain[0]).ok_or(IdentityError::Nameless)?;
        let tls = tls::Configs::new(chain, key, roots)?;
        Ok(Self { inner: Arc::new(Inner { cluster, me, tls: Some(Arc::new(tls)) }) })
    }

    /// An identity that proves nothing: enough for [`crate::Transport::Plain`], refused by every other.
    pub fn unproven(cluster: ClusterId, me: PeerIdentity) -> Self {
        Self { inner: Arc::new(Inner { cluster, me, tls: None }) }
    }

    /// A liar: proves one thing and says another.
    #[cfg(test)]
    pub(crate) fn claiming(&self, me: PeerIdentity) -> Self {
        Self { inner: Arc::new(Inner { cluster: self.inner.cluster, me, tls: self.inner.tls.clone() }) }
    }

    /// The cluster it belongs to.
    pub fn cluster(&self) -> ClusterId {
        self.inner.cluster
    }

    /// Its own role and id.
    pub fn me(&self) -> PeerIdentity {
        self.inner.me
    }

    pub(crate) fn tls(&self) -> Result<&tls::Configs, IdentityError> {
        self.inner.tls.as_deref().ok_or(IdentityError::Nameless)
    }
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let bad = |reason: String| IdentityError::Pem { what, reason };
    let list: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|e| bad(e.to_string()))?;
    if list.is_empty() {
        return Err(bad("it holds no certificate".into()));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Authority;

    #[test]
    fn a_certificate_that_nobody_would_accept_is_refused_by_its_file() {
        let (cluster, me) = (ClusterId(0xfeed), PeerIdentity { role: Role::Metadata, id: 1 });
        let folder = tempfile::tempdir().expect("a folder");
        let ours = Authority::create(cluster).expect("made");
        let load = |issued: &crate::ca::Issued| {
            issued.write(folder.path()).expect("written");
            crate::ca::Issued::load(folder.path())
        };
        assert_eq!(load(&ours.issue(me).expect("issued")).expect("good").me(), me);
        let expired = load(&ours.issue_expired(me).expect("issued")).expect_err("over").to_string();
        assert!(expired.contains("cert.pem") && expired.contains("expired") && !expired.contains("peer"), "{expired}");
        let other = Authority::create(cluster).expect("made");
        let mixed = crate::ca::Issued { authority: other.certificate().to_owned(), ..ours.issue(me).expect("issued") };
        let foreign = load(&mixed).expect_err("another authority's").to_string();
        assert!(foreign.contains("cert.pem") && foreign.contains("ca.pem"), "{foreign}");
    }

    #[test]
    fn names_lead_back_to_who_they_name() {
        let cluster = ClusterId(0xfeed);
        for role in Role::ALL {
            let peer = PeerIdentity { role, id: 18_446_744_073_709_551_615 };
            let [exact, ..] = peer.names(cluster);
            assert_eq!(PeerIdentity::from_name(&exact), Some((peer, cluster)));
            assert!(exact.split('.').all(|label| label.len() <= 63));
        }
        for bad in ["metadata-1.feed.holdfast", "metadata-x.0.holdfast", "peer", "metadata-1", "boss-1.0.holdfast"] {
            assert_eq!(PeerIdentity::from_name(bad), None, "{bad}");
        }
    }
}
