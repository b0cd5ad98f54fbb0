//! TLS peers that are not what they should be: every one speaks the mesh's TLS and ALPN, and breaks one rule.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bonafide_proto::clock::{Clock as _, SystemClock};
use bonafide_proto::grant::MANDATE_OID;
use bonafide_proto::svid::FINGERPRINT_OID;
use bonafide_proto::tls::{ALPN_TUNNEL, provider};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, ServerConnection, SignatureScheme};
use time::OffsetDateTime;

use crate::netns::Netns;
use crate::node::TRUST_DOMAIN;
use crate::process::PATIENCE;

/// The rule that a stranger breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// A certificate of another trust domain.
    OtherDomain,
    /// Our trust domain's name, under somebody else's root.
    OtherRoot,
    /// Two URI SANs.
    TwoUris,
    /// Expired an hour ago.
    Expired,
    /// Valid from an hour hence.
    NotYetValid,
    /// No certificate at all (clients only).
    NoCertificate,
}

impl Oddity {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::OtherDomain, Self::OtherRoot, Self::TwoUris, Self::Expired, Self::NotYetValid, Self::NoCertificate];

    /// Words that a record's detail must contain to name it.
    #[must_use]
    pub fn named(self) -> &'static str {
        match self {
            Self::OtherDomain => "trust domain",
            Self::OtherRoot => "does not lead to a root",
            Self::TwoUris => "2 URI SANs",
            Self::Expired => "expired",
            Self::NotYetValid => "valid",
            Self::NoCertificate => "certificate",
        }
    }

    fn uris(self) -> Vec<String> {
        let id = |domain: &str, name: &str| format!("spiffe://{domain}/{name}");
        match self {
            Self::OtherDomain => vec![id("other.test", "test/client")],
            Self::TwoUris => vec![id(TRUST_DOMAIN, "test/client"), id(TRUST_DOMAIN, "test/server")],
            _ => vec![id(TRUST_DOMAIN, "test/client")],
        }
    }

    /// Hours from now between which it is valid.
    fn validity(self) -> (i64, i64) {
        match self {
            Self::Expired => (-2, -1),
            Self::NotYetValid => (1, 2),
            _ => (-1, 1),
        }
    }
}

fn hours_from_now(hours: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(SystemClock.unix() + hours * 3600).expect("a time of our days")
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // SEQUENCE { INTEGER 1, SEQUENCE { "*" } }, as `bonafide_proto::grant` documents it.
    let everything = vec![0x30, 8, 2, 1, 1, 0x30, 3, 0x0c, 1, b'*'];
    params.custom_extensions = vec![CustomExtension::from_oid_content(&MANDATE_OID, everything)];
    params.not_before = hours_from_now(-3);
    params.not_after = hours_from_now(3);
    params
}

/// A chain, leaf first, and the leaf's key.
pub type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A leaf and its intermediate, right in everything but the oddity.
fn chain(oddity: Oddity) -> Shown {
    let key = || KeyPair::generate().expect("a key can be made");
    let root = Issuer::new(ca("stranger's root"), key());
    let (node, node_key) = (ca("a"), key());
    let intermediate = node.signed_by(&node_key, &root).expect("it can be signed");

    let mut leaf = leaf_params(oddity.uris());
    let (from, until) = oddity.validity();
    (leaf.not_before, leaf.not_after) = (hours_from_now(from), hours_from_now(until));
    let leaf_key = key();
    let leaf = leaf.signed_by(&leaf_key, &Issuer::new(node, node_key)).expect("it can be signed");
    let private = PrivateKeyDer::Pkcs8(leaf_key.serialize_der().into());
    (vec![leaf.der().clone(), intermediate.der().clone()], private)
}

/// A leaf that is right in everything, but for its times.
fn leaf_params(uris: Vec<String>) -> CertificateParams {
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = DistinguishedName::new();
    let uri = |uri: String| SanType::URI(uri.try_into().expect("ASCII"));
    leaf.subject_alt_names = uris.into_iter().map(uri).collect();
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf.custom_extensions = vec![CustomExtension::from_oid_content(&FINGERPRINT_OID, fingerprint())];
    leaf
}

/// DER: SEQUENCE { OCTET STRING (32), UTF8String, INTEGER, SEQUENCE {} }, as `bonafide_proto::program` documents it.
fn fingerprint() -> Vec<u8> {
    let mut content = vec![0x04, 32];
    content.extend([7; 32]);
    content.extend([0x0c, 4]);
    content.extend(b"/bin");
    content.extend([0x02, 1, 0, 0x30, 0]);
    let mut der = vec![0x30, u8::try_from(content.len()).expect("short")];
    der.extend(content);
    der
}

/// What a member that is no honest one shows: a leaf for whatever workload it likes, by its own real signing key.
///
/// # Panics
/// If that is no member's file (`state/ca/node/membership.json`).
#[must_use]
pub fn forge(membership: &Path, node: &str, workload: &str) -> Shown {
    let file = std::fs::read(membership).expect("it is a member");
    let kept: serde_json::Value = serde_json::from_slice(&file).expect("it is JSON");
    let bytes = |field: &str| STANDARD.decode(kept[field].as_str().expect("text")).expect("base64");
    let mut of = CertificateParams::default();
    of.distinguished_name = DistinguishedName::new();
    of.distinguished_name.push(DnType::CommonName, node);
    of.distinguished_name.push(DnType::OrganizationName, "Bonafide node");
    let signing = KeyPair::try_from(bytes("signing_key").as_slice()).expect("a key");
    let mut leaf = leaf_params(vec![format!("spiffe://{TRUST_DOMAIN}/{workload}")]);
    let minutes = |minutes: i64| OffsetDateTime::from_unix_timestamp(SystemClock.unix() + minutes * 60);
    leaf.not_before = minutes(-1).expect("a time of our days");
    leaf.not_after = minutes(30).expect("a time of our days");
    let key = KeyPair::generate().expect("a key can be made");
    let leaf = leaf.signed_by(&key, &Issuer::new(of, signing)).expect("it can be signed");
    let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    (vec![leaf.der().clone(), bytes("intermediate").into()], private)
}

/// Connects as this stranger and asks for a page. Says what became of it.
///
/// # Errors
/// How the other side ended it: the expected outcome.
pub fn knock(netns: &Netns, to: SocketAddr, oddity: Oddity) -> io::Result<Vec<u8>> {
    knock_with(netns, to, (oddity != Oddity::NoCertificate).then(|| chain(oddity)))
}

/// The same with this chain and key, or none.
///
/// # Errors
/// How the other side ended it: the expected outcome.
pub fn knock_with(netns: &Netns, to: SocketAddr, shown: Option<Shown>) -> io::Result<Vec<u8>> {
    #[allow(clippy::disallowed_methods, reason = "a stranger goes by the machine's clock")]
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("chain and key fit"),
    };
    config.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    let name = ServerName::IpAddress(to.ip().into());
    let mut tls = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut stream = connect(netns, to)?;
    let mut tls = rustls::Stream::new(&mut tls, &mut stream);
    tls.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Connects and sends raw bytes; returns what came back until the other side ended it.
///
/// # Errors
/// The connection failed, was reset, or was still open after [`PATIENCE`] (`WouldBlock`).
pub fn knock_raw(netns: &Netns, to: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = connect(netns, to)?;
    stream.write_all(bytes)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// A TCP connection from this namespace.
///
/// # Errors
/// It cannot be made.
pub fn connect(netns: &Netns, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = netns.within(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Serves one connection as this stranger. The thread returns what the client did after the handshake.
///
/// # Panics
/// If the address is taken.
#[must_use]
pub fn serve_once(netns: &Netns, at: SocketAddr, oddity: Oddity) -> JoinHandle<io::Result<Vec<u8>>> {
    serve_once_with(netns, at, chain(oddity))
}

/// The same with this chain and key.
///
/// # Panics
/// If the address is taken.
#[must_use]
pub fn serve_once_with(netns: &Netns, at: SocketAddr, (chain, key): Shown) -> JoinHandle<io::Result<Vec<u8>>> {
    let listener = netns.within(|| TcpListener::bind(at)).expect("the address is free");
    #[allow(clippy::disallowed_methods, reason = "a stranger goes by the machine's clock")]
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider speaks TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("chain and key fit");
    config.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut tls = ServerConnection::new(Arc::new(config)).map_err(io::Error::other)?;
        let mut received = Vec::new();
        rustls::Stream::new(&mut tls, &mut stream).read_to_end(&mut received)?;
        Ok(received)
    })
}

/// Strangers trust everybody.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
