//! TLS 1.3 both ways with the cluster's own authority, for TCP and for QUIC.

use crate::error::IdentityError;
use ::aws_lc_rs::hmac;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;

/// Names the protocol inside TLS, so that a connection to somebody else's port fails in the handshake.
const ALPN: &[u8] = b"holdfast/1";
/// The same for a handshake after which both ends go on in the clear.
const ALPN_LOCAL: &[u8] = b"holdfast/1/local";

/// Ready configurations, made once from an identity.
pub(crate) struct Configs {
    pub client: Arc<ClientConfig>,
    pub server: Arc<ServerConfig>,
    /// For sockets on this host: another protocol, so that neither can be taken for the other.
    pub local_client: Arc<ClientConfig>,
    pub local_server: Arc<ServerConfig>,
    pub quic_client: Arc<QuicClientConfig>,
    pub quic_server: Arc<QuicServerConfig>,
    secret: hmac::Key,
}

impl Configs {
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority)?;
        }
        let secret = hmac::Key::new(hmac::HMAC_SHA256, key.secret_der());
        let (roots, provider) = (Arc::new(roots), Arc::new(provider()));
        let versions = &[&rustls::version::TLS13];

        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        client.alpn_protocols = vec![ALPN.to_vec()];

        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| IdentityError::Pem { what: "authority", reason: error.to_string() })?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        server.alpn_protocols = vec![ALPN.to_vec()];

        let (mut local_client, mut local_server) = (client.clone(), server.clone());
        local_client.alpn_protocols = vec![ALPN_LOCAL.to_vec()];
        local_server.alpn_protocols = vec![ALPN_LOCAL.to_vec()];
        // What follows the handshake is not TLS, so nothing of TLS may come late.
        local_server.send_tls13_tickets = 0;

        // Both fail only when the suite for initial packets is missing, which `provider` has.
        let suite = |_| IdentityError::Tls(rustls::Error::General("no cipher suite for QUIC".into()));
        let quic_client = Arc::new(QuicClientConfig::try_from(client.clone()).map_err(suite)?);
        let quic_server = Arc::new(QuicServerConfig::try_from(server.clone()).map_err(suite)?);
        let (client, server) = (Arc::new(client), Arc::new(server));
        let (local_client, local_server) = (Arc::new(local_client), Arc::new(local_server));
        Ok(Self { client, server, local_client, local_server, quic_client, quic_server, secret })
    }

    /// What a QUIC server is known by to those who still talk to the process before it.
    ///
    /// The reset key follows from the identity's key, so that a restarted server can reset connections that died with its
    /// predecessor; with a new key it could not, and the other end would wait for its idle timeout.
    pub fn quic_endpoint(&self) -> quinn::EndpointConfig {
        let reset = hmac::sign(&self.secret, b"holdfast quic reset");
        let mut config = quinn::EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset.as_ref())));
        config.cid_generator(|| Box::new(RandomIds));
        config
    }
}

/// Whether the others accept a certificate now, as far as it goes by the authorities that we share with them.
pub fn check(
    chain: &[CertificateDer<'static>],
    authorities: Vec<CertificateDer<'static>>,
) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider()))
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let (own, between) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
    verifier.verify_client_cert(own, between, UnixTime::now()).map(drop)
}

/// Ids of QUIC connections. quinn's own carry a mark of the process that drew them, and packets without it get no reset.
struct RandomIds;

/// Bytes of an id: enough that two of one server never meet.
const ID_BYTES: usize = 8;

impl quinn::ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        let mut bytes = [0; ID_BYTES];
        ::aws_lc_rs::rand::fill(&mut bytes).expect("the system has randomness");
        quinn::ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// aws-lc-rs with AES-128 first: half the rounds of its default, and strong enough for a key that lives for one connection.
fn provider() -> CryptoProvider {
    use aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256],
        ..aws_lc_rs::default_provider()
    }
}
