//! The authority's TCP door: TLS 1.3 first, then gRPC, with the peer's verified SVID attached to every request.
//!
//! Bounded against strangers: so many connections at once (`places`), so long for a handshake, so long for
//! a connection, and less for one that shows no certificate and asks nothing.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bonafide_proto::clock::TlsTime;
use bonafide_proto::svid::{Expect, PeerSvid};
use bonafide_proto::tls::{PeerVerifier, provider};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

use crate::attestor::{SESSION_LABEL, Session};
use crate::authority::Authority;
use crate::places::{Greeted, Place, Places};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a connection may live; nodes make one per request.
const LIFETIME: Duration = Duration::from_secs(30);
/// How long the connection of a node that follows may live; then it shows its certificate again.
pub(crate) const FOLLOWING: Duration = Duration::from_secs(600);
/// How long one without a certificate may live, but for the time in which a request of it is answered.
const ANONYMOUS: Duration = Duration::from_secs(5);
/// Connections that may wait to be accepted, as far as the system lets them (`net.core.somaxconn`).
const BACKLOG: u32 = 8192;
/// HTTP/2 (RFC 9113 §3.2): gRPC's transport.
pub(crate) const ALPN: &[u8] = b"h2";

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// What its certificate proved; `None` if it showed none.
    pub svid: Option<PeerSvid>,
    /// Its address, for the log only.
    pub address: SocketAddr,
    /// What this connection is told from all others by.
    pub session: Session,
    /// How many requests of it are being answered; keeps its connection open.
    requests: Arc<AtomicUsize>,
    /// Whether it follows; keeps its connection open for longer.
    follows: Arc<AtomicBool>,
}

impl Peer {
    /// A request of this peer is being answered, until what this returns is dropped.
    #[must_use]
    pub fn answering(&self) -> Answering {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Answering(self.requests.clone())
    }

    /// This peer follows what every member is told, until what this returns is dropped.
    #[must_use]
    pub fn following(&self) -> Answering {
        self.follows.store(true, Ordering::Relaxed);
        self.answering()
    }

    fn lifetime(&self) -> Duration {
        if self.follows.load(Ordering::Relaxed) { FOLLOWING } else { LIFETIME }
    }
}

/// See [`Peer::answering`].
#[derive(Debug)]
pub struct Answering(Arc<AtomicUsize>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
#[error("TLS cannot be set up: {0}")]
pub struct TlsSetupError(#[from] rustls::Error);

/// A listener on this address, at which a whole mesh may come at once.
///
/// # Errors
/// As of the system.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts from these listeners until the stream is dropped.
///
/// # Errors
/// [`TlsSetupError`] if the library refuses our own configuration.
pub fn incoming(
    listeners: Vec<TcpListener>,
    authority: &Arc<Authority>,
) -> Result<ReceiverStream<io::Result<Connection>>, TlsSetupError> {
    let (out, connections) = mpsc::channel(16);
    let door = Arc::new(Door {
        acceptor: TlsAcceptor::from(Arc::new(server_config(authority)?)),
        authority: authority.clone(),
        places: Places::new(),
        out,
    });
    for listener in listeners {
        tokio::spawn(door.clone().accept(listener));
    }
    Ok(ReceiverStream::new(connections))
}

fn verifier(authority: &Authority) -> PeerVerifier {
    PeerVerifier::new(authority.trust_bundle(), Expect::Node).client_may_be_anonymous()
}

/// Members, by the roots of this moment.
#[derive(Debug)]
struct Members(Arc<Authority>);

impl ClientCertVerifier for Members {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        verifier(&self.0).verify_client_cert(leaf, rest, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ClientCertVerifier::verify_tls12_signature(&verifier(&self.0), message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ClientCertVerifier::verify_tls13_signature(&verifier(&self.0), message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ClientCertVerifier::supported_verify_schemes(&verifier(&self.0))
    }
}

fn server_config(authority: &Arc<Authority>) -> Result<ServerConfig, rustls::Error> {
    let time = Arc::new(TlsTime(authority.clock().clone()));
    let mut config = ServerConfig::builder_with_details(provider().clone(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Members(authority.clone())))
        .with_cert_resolver(Arc::new(OwnSvid(authority.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Every connection is a full handshake, checked in full.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Shows the authority's own SVID, always the current one.
#[derive(Debug)]
struct OwnSvid(Arc<Authority>);

impl ResolvesServerCert for OwnSvid {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.own_svid().map_err(|e| tracing::error!(error = %e, "no SVID to show")).ok()
    }
}

struct Door {
    acceptor: TlsAcceptor,
    authority: Arc<Authority>,
    places: Places,
    out: mpsc::Sender<io::Result<Connection>>,
}

impl Door {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        while let Ok(handshake) = self.places.for_handshake().await {
            tokio::select! {
                () = self.out.closed() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => match self.places.greet(address.ip(), handshake) {
                        Some(greeted) => drop(tokio::spawn(self.clone().greet(stream, address, greeted))),
                        // No more than this line of it, and not by default: strangers could fill the log.
                        None => tracing::debug!(%address, "closed: its address has as many connections as it gets"),
                    },
                    Err(e) => {
                        // Out of descriptors, most likely: wait for some to come back.
                        tracing::warn!(error = %e, "accept failed");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
    }

    async fn greet(self: Arc<Self>, stream: TcpStream, address: SocketAddr, greeted: Greeted) {
        let tls = match tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(e)) => return tracing::info!(%address, error = %e, "handshake failed"),
            Err(_) => return tracing::info!(%address, "handshake took too long"),
        };
        let svid = match self.peer_of(&tls) {
            Ok(svid) => svid,
            Err(e) => return tracing::warn!(%address, error = %e, "peer refused"),
        };
        let node = svid.as_ref().and_then(|svid| svid.id().node_name());
        let Some(place) = self.places.seat(greeted, node).await else {
            return tracing::info!(%address, member = svid.is_some(), "closed: all places of its kind are taken");
        };
        let session = match tls.get_ref().1.export_keying_material(Session::default(), SESSION_LABEL, None) {
            Ok(session) => session,
            Err(e) => return tracing::warn!(%address, error = %e, "a connection without an exporter"),
        };
        let (requests, follows) = (Arc::default(), Arc::default());
        let connection = Connection::new(tls, Peer { svid, address, session, requests, follows }, place);
        // The receiver is gone only when the daemon stops.
        let _ = self.out.send(Ok(connection)).await;
    }

    fn peer_of(&self, tls: &TlsStream<TcpStream>) -> Result<Option<PeerSvid>, bonafide_proto::svid::SvidError> {
        let now = UnixTime::since_unix_epoch(self.authority.clock().now());
        match tls.get_ref().1.peer_certificates() {
            None => Ok(None),
            shown => verifier(&self.authority).peer(shown, now).map(Some),
        }
    }
}

/// A connection after its handshake. Holds its place among the permitted ones until dropped.
#[derive(Debug)]
pub struct Connection {
    tls: TlsStream<TcpStream>,
    peer: Peer,
    /// When to look whether it must end.
    deadline: Pin<Box<Sleep>>,
    began: Instant,
    _place: Place,
}

impl Connection {
    fn new(tls: TlsStream<TcpStream>, peer: Peer, place: Place) -> Self {
        let now = Instant::now();
        let first = if peer.svid.is_some() { LIFETIME } else { ANONYMOUS };
        let deadline = Box::pin(tokio::time::sleep_until(now + first));
        Self { tls, peer, deadline, began: now, _place: place }
    }

    fn must_end(&mut self, cx: &mut Context<'_>) -> bool {
        while self.deadline.as_mut().poll(cx).is_ready() {
            let (now, end) = (Instant::now(), self.began + self.peer.lifetime());
            if now >= end || self.peer.requests.load(Ordering::Relaxed) == 0 {
                return true;
            }
            self.deadline.as_mut().reset(end.min(now + ANONYMOUS));
        }
        false
    }
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.must_end(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
