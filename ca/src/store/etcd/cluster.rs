//! The members of a cluster: one is asked, and when it does not answer in time, the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use super::dial::{Dial, Trouble};
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
pub(super) const PATIENCE: Duration = Duration::from_secs(8);
/// The pause before the next member is asked.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a silent connection is asked whether it is still there, and how long it may take to say so.
const ALIVE: Duration = Duration::from_secs(1);
/// The largest answer that is read, in bytes: a page of records.
const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// The largest change that is read, in bytes: one value, which etcd limits to 1.5 MiB.
const CHANGE_MAX: usize = 2 * 1024 * 1024;
/// With this a member that is cut off from the others says so at once; otherwise it would stay silent.
const HAS_LEADER: &str = "hasleader";

/// The members, and which of them answered last.
#[derive(Debug)]
pub(super) struct Cluster {
    members: Vec<Member>,
    current: AtomicUsize,
}

#[derive(Debug)]
struct Member {
    address: String,
    channel: Channel,
    /// Why it could not be talked to the last time.
    trouble: Trouble,
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
        if let Some(tls) = place.tls() {
            // What is wrong with these files is told at once; they are read again for each connection.
            tls.config(clock)?;
        }
        let member = |address: &String| {
            let trouble = Trouble::default();
            let dial = Dial::new(address.clone(), place.tls().cloned(), clock.clone(), trouble.clone());
            let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| e.to_string())?;
            let endpoint = endpoint
                .connect_timeout(CONNECT)
                .http2_keep_alive_interval(ALIVE)
                .keep_alive_timeout(ALIVE)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true);
            let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| dial.clone().connect()));
            Ok(Member { address: address.clone(), channel, trouble })
        };
        let members = place.members().iter().map(member).collect::<Result<_, String>>()?;
        Ok(Self { members, current: AtomicUsize::new(0) })
    }

    /// Asked for so long at the most.
    pub(super) async fn range(
        &self,
        request: wire::RangeRequest,
        patience: Duration,
    ) -> Result<wire::RangeResponse, Status> {
        let ask = |channel| {
            let request = with_leader(request.clone());
            async move { kv(channel).range(request).await }
        };
        self.ask(ask, patience).await.map(|(answer, _)| answer)
    }

    pub(super) async fn commit(&self, request: wire::TxnRequest) -> Result<Done, Status> {
        let ask = |channel| {
            let request = with_leader(request.clone());
            async move { kv(channel).txn(request).await }
        };
        self.ask(ask, PATIENCE).await.map(|(answer, tries)| Done { won: answer.succeeded, in_doubt: tries > 1 })
    }

    /// The first answer of any member, and how many were asked.
    async fn ask<T, F, A>(&self, ask: F, patience: Duration) -> Result<(T, usize), Status>
    where
        F: Fn(Channel) -> A,
        A: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + patience;
        // At least two of them, however little time there is.
        let one = ANSWER.min(patience * 2 / 5);
        let mut tries = 0;
        loop {
            let current = self.current.load(Ordering::Relaxed);
            let member = self.member(current)?;
            tries += 1;
            let why = match tokio::time::timeout(one, ask(member.channel.clone())).await {
                Ok(Ok(answer)) => {
                    member.trouble.over();
                    return Ok((answer.into_inner(), tries));
                }
                Ok(Err(status)) if is_final(&status) => return Err(status),
                Ok(Err(status)) => status.message().to_owned(),
                Err(_) => "no answer in time".to_owned(),
            };
            if Instant::now() >= until {
                return Err(Status::unavailable(self.said(current, &why)));
            }
            self.turn_from(current);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What is wrong with each member, as far as it is known.
    fn said(&self, last: usize, why: &str) -> String {
        let said = self.members.iter().enumerate().filter_map(|(number, member)| {
            let why = member.trouble.now().or_else(|| (number == last).then(|| why.to_owned()))?;
            Some(format!("{}: {why}", member.address))
        });
        said.collect::<Vec<_>>().join("; ")
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
        let request = with_leader(tokio_stream::once(create).chain(tokio_stream::pending()));
        let mut client = WatchClient::new(self.member(member)?.channel.clone()).max_decoding_message_size(CHANGE_MAX);
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

    fn member(&self, number: usize) -> Result<&Member, Status> {
        self.members.get(number).ok_or_else(|| Status::unavailable("there are no members"))
    }

    /// The next member, unless another task has turned away from this one already.
    fn turn_from(&self, member: usize) {
        let next = (member + 1) % self.members.len().max(1);
        let _ = self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn with_leader<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(HAS_LEADER, MetadataValue::from_static("true"));
    request
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
