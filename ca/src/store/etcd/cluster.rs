//! The members of a cluster: one is asked, and when it does not answer in time, the next one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::StreamExt as _;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use super::place::EtcdPlace;
use super::wire;
use wire::kv_client::KvClient;
use wire::watch_client::WatchClient;
use wire::watch_request::RequestUnion;

/// How long a member may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(1);
/// How long a member may take to answer: longer than the cluster takes to elect another leader.
const ANSWER: Duration = Duration::from_secs(2);
/// How long members are asked, one after the other.
const PATIENCE: Duration = Duration::from_secs(8);
/// The pause before the next member is asked.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a silent connection is asked whether it is still there, and how long it may take to say so.
const ALIVE: Duration = Duration::from_secs(1);
/// The largest answer that is read, in bytes: a page of records.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// The members, and which of them answered last.
#[derive(Debug)]
pub(super) struct Cluster {
    members: Vec<Channel>,
    current: AtomicUsize,
}

/// How a commit went.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) won: bool,
    /// An earlier try got no answer, and may have been what won.
    pub(super) in_doubt: bool,
}

impl Cluster {
    pub(super) fn new(place: &EtcdPlace, clock: &SharedClock) -> Result<Self, String> {
        let tls = place.tls().map(|tls| tls.config(clock)).transpose()?.map(Arc::new);
        let member = |address: &String| {
            let dial = Dial { address: address.clone(), tls: tls.clone().map(TlsConnector::from) };
            let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| e.to_string())?;
            let endpoint = endpoint
                .connect_timeout(CONNECT)
                .http2_keep_alive_interval(ALIVE)
                .keep_alive_timeout(ALIVE)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true);
            Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| dial.clone().connect())))
        };
        let members = place.members().iter().map(member).collect::<Result<_, String>>()?;
        Ok(Self { members, current: AtomicUsize::new(0) })
    }

    pub(super) async fn range(&self, request: wire::RangeRequest) -> Result<wire::RangeResponse, Status> {
        let ask = |channel| {
            let request = request.clone();
            async move { kv(channel).range(request).await }
        };
        self.ask(ask).await.map(|(answer, _)| answer)
    }

    pub(super) async fn commit(&self, request: wire::TxnRequest) -> Result<Done, Status> {
        let ask = |channel| {
            let request = request.clone();
            async move { kv(channel).txn(request).await }
        };
        self.ask(ask).await.map(|(answer, tries)| Done { won: answer.succeeded, in_doubt: tries > 1 })
    }

    /// The first answer of any member, and how many were asked.
    async fn ask<T, F, A>(&self, ask: F) -> Result<(T, usize), Status>
    where
        F: Fn(Channel) -> A,
        A: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + PATIENCE;
        let mut tries = 0;
        loop {
            let current = self.current.load(Ordering::Relaxed);
            tries += 1;
            let status = match tokio::time::timeout(ANSWER, ask(self.member(current)?)).await {
                Ok(Ok(answer)) => return Ok((answer.into_inner(), tries)),
                Ok(Err(status)) if is_final(&status) => return Err(status),
                Ok(Err(status)) => Status::unavailable(status.message()),
                Err(_) => Status::unavailable("no answer in time"),
            };
            if Instant::now() >= until {
                return Err(status);
            }
            self.turn_from(current);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Counts up after every change of this key, and whenever one may have been missed; until nobody watches.
    pub(super) async fn watch(self: Arc<Self>, key: Vec<u8>, changes: watch::Sender<u64>) {
        loop {
            let current = self.current.load(Ordering::Relaxed);
            tokio::select! {
                ended = self.watch_at(current, &key, &changes) => {
                    if let Err(status) = ended {
                        tracing::debug!(error = %status, "a watch ended");
                    }
                }
                () = changes.closed() => return,
            }
            self.turn_from(current);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn watch_at(&self, member: usize, key: &[u8], changes: &watch::Sender<u64>) -> Result<(), Status> {
        let create = wire::WatchCreateRequest { key: key.to_vec() };
        let create = wire::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let mut request = Request::new(tokio_stream::once(create).chain(tokio_stream::pending()));
        // A member that is cut off from the others would otherwise stay silent, not say so.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let mut client = WatchClient::new(self.member(member)?).max_decoding_message_size(ANSWER_MAX);
        let opened = tokio::time::timeout(ANSWER, client.watch(request)).await;
        let mut told = opened.map_err(|_| Status::unavailable("no answer in time"))??.into_inner();
        // The first thing told is that it watches; what changed before that has to be looked for.
        while let Some(response) = told.message().await? {
            if response.canceled {
                return Ok(());
            }
            changes.send_modify(|changes| *changes = changes.wrapping_add(1));
        }
        Ok(())
    }

    fn member(&self, number: usize) -> Result<Channel, Status> {
        self.members.get(number).cloned().ok_or_else(|| Status::unavailable("there are no members"))
    }

    /// The next member, unless another task has turned away from this one already.
    fn turn_from(&self, member: usize) {
        let next = (member + 1) % self.members.len().max(1);
        let _ = self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(ANSWER_MAX)
}

/// The quota is used up: every member would say so.
pub(super) fn is_full(status: &Status) -> bool {
    status.message().contains("database space exceeded")
}

/// Whether every member would say this.
fn is_final(status: &Status) -> bool {
    match status.code() {
        Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => true,
        Code::FailedPrecondition | Code::OutOfRange => true,
        Code::ResourceExhausted => is_full(status),
        _ => false,
    }
}

/// Dials one member.
#[derive(Clone)]
struct Dial {
    address: String,
    tls: Option<TlsConnector>,
}

impl Dial {
    async fn connect(self) -> io::Result<TokioIo<Stream>> {
        let tcp = TcpStream::connect(&self.address).await?;
        tcp.set_nodelay(true)?;
        let Some(tls) = self.tls else { return Ok(TokioIo::new(Stream::Plain(tcp))) };
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let stream = tls.connect(name, tcp).await.inspect_err(|e| {
            tracing::warn!(member = self.address, error = %e, "no TLS with a member of the store");
        })?;
        Ok(TokioIo::new(Stream::Tls(Box::new(stream))))
    }
}

/// A connection to a member.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
