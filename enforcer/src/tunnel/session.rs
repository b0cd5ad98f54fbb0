//! The TLS 1.3 session under a tunnel: how both ends configure it, and what a finished handshake proves.

use std::sync::Arc;

use bonafide_proto::clock::TlsTime;
use bonafide_proto::record::TlsFacts;
use bonafide_proto::svid::{Expect, PeerSvid};
use bonafide_proto::tls::{ALPN_TUNNEL, PeerVerifier, provider};
use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, CommonState, ServerConfig, version};
use tokio::io::BufReader;
use tokio_rustls::TlsStream;

use super::error::TunnelError;
use super::frame::{HEADER, MAX_PAYLOAD};
use super::leaf::{Leaf, Trust};
use super::renewal::{Binding, LABEL};

/// rustls reads 4 KiB at a time; this many bytes are fetched from the socket at once instead.
const READ_AHEAD: usize = 32 * 1024;
/// Sealed bytes that may wait for the socket: one full frame and the overhead of its records.
const WRITE_LIMIT: usize = MAX_PAYLOAD + HEADER + 1024;

/// TLS over a byte stream.
pub(super) type Session<S> = TlsStream<BufReader<S>>;

pub(super) fn buffered<S: tokio::io::AsyncRead>(stream: S) -> BufReader<S> {
    BufReader::with_capacity(READ_AHEAD, stream)
}

pub(super) fn verifier(trust: &Trust) -> Arc<PeerVerifier> {
    Arc::new(PeerVerifier::new(trust.bundle.clone(), Expect::Workload))
}

pub(super) fn client_config(
    leaf: &Leaf,
    trust: &Trust,
    verifier: Arc<PeerVerifier>,
) -> Result<ClientConfig, TunnelError> {
    let time = Arc::new(TlsTime(trust.clock.clone()));
    let mut config = ClientConfig::builder_with_details(provider().clone(), time)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|e| TunnelError::Handshake(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.certified())));
    config.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

pub(super) fn server_config(
    leaf: &Leaf,
    trust: &Trust,
    verifier: Arc<PeerVerifier>,
) -> Result<ServerConfig, TunnelError> {
    let time = Arc::new(TlsTime(trust.clock.clone()));
    let mut config = ServerConfig::builder_with_details(provider().clone(), time)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|e| TunnelError::Handshake(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.certified())));
    config.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What a finished handshake proved: who the peer is, and how the session is protected.
pub(super) fn proven<S>(session: &mut Session<S>, trust: &Trust) -> Result<(PeerSvid, TlsFacts), TunnelError> {
    let (_, state) = session.get_ref();
    if state.alpn_protocol() != Some(ALPN_TUNNEL) {
        return Err(TunnelError::NotBonafide("it did not agree on the protocol bonafide/1".into()));
    }
    let peer = PeerVerifier::new(trust.bundle.clone(), Expect::Workload)
        .peer(state.peer_certificates(), trust.now())
        .map_err(TunnelError::PeerCertificate)?;
    let facts = facts(state, &peer);
    match session {
        TlsStream::Client(s) => s.get_mut().1.set_buffer_limit(Some(WRITE_LIMIT)),
        TlsStream::Server(s) => s.get_mut().1.set_buffer_limit(Some(WRITE_LIMIT)),
    }
    Ok((peer, facts))
}

/// What renewals in this session are bound to: those that this end shows, and those of the other.
pub(super) fn bindings<S>(session: &Session<S>) -> Result<[Binding; 2], TunnelError> {
    let client = exported(session, b"client")?;
    let server = exported(session, b"server")?;
    Ok(match session {
        TlsStream::Client(_) => [client, server],
        TlsStream::Server(_) => [server, client],
    })
}

fn exported<S>(session: &Session<S>, end: &[u8]) -> Result<Binding, TunnelError> {
    let bytes = match session {
        TlsStream::Client(s) => s.get_ref().1.export_keying_material([0; 32], LABEL, Some(end)),
        TlsStream::Server(s) => s.get_ref().1.export_keying_material([0; 32], LABEL, Some(end)),
    };
    bytes.map(Binding).map_err(|e| TunnelError::Handshake(format!("the session exports nothing: {e}")))
}

fn facts(state: &CommonState, peer: &PeerSvid) -> TlsFacts {
    let unknown = || "unknown".to_owned();
    TlsFacts {
        version: match state.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3".to_owned(),
            other => format!("{other:?}"),
        },
        suite: state.negotiated_cipher_suite().map_or_else(unknown, |s| format!("{:?}", s.suite())),
        group: state.negotiated_key_exchange_group().map_or_else(unknown, |g| format!("{:?}", g.name())),
        peer_serial: peer.serial().to_owned(),
    }
}
