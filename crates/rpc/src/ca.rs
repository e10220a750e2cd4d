//! The cluster's certificate authority: made once by `init`, kept where only operators reach, signs every process's certificate.
//!
//! The authority's certificate follows from the cluster id and the key alone, so nothing but these two has to be kept to sign.

use crate::error::IdentityError;
use crate::identity::{Identity, PeerIdentity};
use holdfast_types::ClusterId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A cluster's authority, with its key.
pub struct Authority {
    cluster: ClusterId,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate chain and its key, as PEM text.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// The authority that signed it.
    pub authority: String,
}

impl Authority {
    /// Makes a new authority with a new key.
    ///
    /// # Errors
    /// [`IdentityError::Issue`] when the system has no randomness.
    pub fn create(cluster: ClusterId) -> Result<Self, IdentityError> {
        let key = KeyPair::generate()?;
        let params = authority_params(cluster);
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { cluster, certificate, issuer: Issuer::new(params, key) })
    }

    /// Takes up an authority that [`Self::create`] made: its certificate and key, as PEM text.
    ///
    /// # Errors
    /// [`IdentityError`] when the key is damaged.
    pub fn open(cluster: ClusterId, certificate: String, key: &str) -> Result<Self, IdentityError> {
        let key = KeyPair::from_pem(key)?;
        Ok(Self { cluster, certificate, issuer: Issuer::new(authority_params(cluster), key) })
    }

    /// The authority's certificate, PEM: what every process trusts.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The authority's private key, PEM: who has it is the cluster.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Signs a certificate for one process, with a new key.
    ///
    /// # Errors
    /// [`IdentityError::Issue`].
    pub fn issue(&self, who: PeerIdentity) -> Result<Issued, IdentityError> {
        self.sign(who, CertificateParams::new(who.names(self.cluster))?)
    }

    /// A certificate that is over.
    #[cfg(test)]
    pub(crate) fn issue_expired(&self, who: PeerIdentity) -> Result<Issued, IdentityError> {
        let mut params = CertificateParams::new(who.names(self.cluster))?;
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
        self.sign(who, params)
    }

    fn sign(&self, who: PeerIdentity, mut params: CertificateParams) -> Result<Issued, IdentityError> {
        params.distinguished_name = name(&who.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Every process dials some and may be dialled by others; the role in the name decides what it may ask for.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem(), authority: self.certificate.clone() })
    }
}

impl Issued {
    /// Ready for use.
    ///
    /// # Errors
    /// [`IdentityError`] when the parts do not fit together.
    pub fn identity(&self) -> Result<Identity, IdentityError> {
        Identity::from_pem(&self.certificate, &self.key, &self.authority)
    }

    /// Writes `cert.pem`, `key.pem` (readable by the owner alone) and `ca.pem` into a directory that exists, durably.
    ///
    /// # Errors
    /// [`IdentityError::File`].
    pub fn write(&self, directory: &Path) -> Result<(), IdentityError> {
        write_durably(&directory.join("key.pem"), &self.key, 0o600)?;
        write_durably(&directory.join("ca.pem"), &self.authority, 0o644)?;
        write_durably(&directory.join("cert.pem"), &self.certificate, 0o644)?;
        sync_directory(directory)
    }

    /// Reads what [`Self::write`] wrote and takes it into use.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load(directory: &Path) -> Result<Identity, IdentityError> {
        Identity::load(&directory.join("cert.pem"), &directory.join("key.pem"), &directory.join("ca.pem"))
    }
}

fn write_durably(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| IdentityError::File { path: path.into(), source })
}

fn sync_directory(path: &Path) -> Result<(), IdentityError> {
    std::fs::File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| IdentityError::File { path: path.into(), source })
}

fn authority_params(cluster: ClusterId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&format!("Holdfast cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}
