//! The way from a node to its authority: over the network, or inside one process. Both run the same code behind it.

use std::pin::Pin;
use std::sync::Arc;

use bonafide_proto::jwt::JwtKey;
use bonafide_proto::svid::{Expect, PeerSvid, SvidError};
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_stream::{Stream, StreamExt as _};

use crate::attestor::Prover;
use crate::authority::{Application, Authority, Membership};
use crate::followers::{Follower, Place};
use crate::jwt::JwtOrder;
use crate::machine::Machine;
use crate::member::Member;
use crate::mesh::{Held, MeshState};
use crate::policies::{PolicyFollower, PolicyHeld};
use crate::roots::Roots;
use crate::sharing::Half;
use bonafide_proto::token::JoinToken;

/// Why the authority gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// It does not answer; asking again later may help.
    #[error("the authority at {address} does not answer: {why}")]
    Unreachable {
        /// Where it was sought.
        address: String,
        /// What happened.
        why: String,
    },
    /// It answers, but one side does not accept the other's certificate.
    #[error(
        "no mutual trust with {address}: {why} (if the root was replaced while this node was away, it must join with a new token)"
    )]
    Distrust {
        /// Where.
        address: String,
        /// What was refused.
        why: String,
    },
    /// It said no, by name.
    #[error("the authority refused ({reason}): {message}")]
    Refused {
        /// The name, as in `MembershipRefusal::as_str`.
        reason: String,
        /// For a person.
        message: String,
    },
    /// This node has nothing to show.
    #[error("this node cannot prove who it is: {0}")]
    Proof(String),
    /// It broke the protocol.
    #[error("the authority's answer is malformed: {0}")]
    Malformed(String),
}

/// Asks the authority.
#[tonic::async_trait]
pub trait AuthorityLink: Send + Sync + std::fmt::Debug {
    /// Becomes a member by a token.
    async fn join(&self, token: &JoinToken, application: &Application) -> Result<Membership, LinkError>;
    /// Admits a node by a proof of another kind than a token; `root` is how it knows the authority.
    async fn enrol(
        &self,
        _root: &CertificateDer<'static>,
        _prover: &dyn Prover,
        _application: &Application,
    ) -> Result<Membership, LinkError> {
        Err(LinkError::Malformed("only an authority on the network takes such a proof".into()))
    }
    /// Renews a membership, authenticated by its node SVID.
    async fn renew(
        &self,
        member: &Member,
        machine: &Machine,
        signing_csr: Vec<u8>,
        authentication_csr: Vec<u8>,
    ) -> Result<Membership, LinkError>;
    /// The state of the mesh: now, and after every change, until the authority goes away. It is told what `held` says.
    async fn follow(
        &self,
        member: &Member,
        machine: &Machine,
        held: watch::Receiver<Held>,
    ) -> Result<MeshStates, LinkError>;
    /// The policy that was published last, as it travels, and each later one; not one that `held` says is kept already.
    async fn follow_policy(
        &self,
        member: &Member,
        held: watch::Receiver<PolicyHeld>,
    ) -> Result<SignedPolicies, LinkError>;
    /// Shares halves of flows (each as an `ObservedFlow` travels), and is given the other halves of them, until either
    /// side goes away.
    async fn share_flows(&self, member: &Member, flows: mpsc::Receiver<Vec<u8>>) -> Result<Halves, LinkError>;
    /// A token for a workload that the node may issue.
    async fn sign_jwt(&self, member: &Member, order: &JwtOrder) -> Result<String, LinkError>;
    /// The keys by which tokens are checked.
    async fn jwt_keys(&self, member: &Member) -> Result<Vec<JwtKey>, LinkError>;
}

/// Halves of flows, one after the other.
pub type Halves = Pin<Box<dyn Stream<Item = Result<Half, LinkError>> + Send>>;

/// Signed policies, one after the other.
pub type SignedPolicies = Pin<Box<dyn Stream<Item = Result<Vec<u8>, LinkError>> + Send>>;

/// What every member is told, one after the other.
pub type MeshStates = Pin<Box<dyn Stream<Item = Result<Told, LinkError>> + Send>>;

/// What every member is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// What it must know of the mesh.
    pub mesh: MeshState,
    /// The roots; `None`: the authority is of an earlier version, which has but one.
    pub roots: Option<Roots>,
}

/// The authority in this very process.
#[derive(Debug, Clone)]
pub struct Embedded(pub Arc<Authority>);

#[tonic::async_trait]
impl AuthorityLink for Embedded {
    async fn join(&self, token: &JoinToken, application: &Application) -> Result<Membership, LinkError> {
        let (authority, token, application) = (self.0.clone(), token.clone(), application.clone());
        blocking(move || authority.join(token.secret(), &application).map_err(refused)).await
    }

    async fn renew(
        &self,
        member: &Member,
        machine: &Machine,
        signing_csr: Vec<u8>,
        authentication_csr: Vec<u8>,
    ) -> Result<Membership, LinkError> {
        let (authority, peer, machine) = (self.0.clone(), self.peer(member)?, machine.clone());
        blocking(move || authority.renew(&peer, &machine, &signing_csr, &authentication_csr).map_err(refused)).await
    }

    async fn follow(
        &self,
        member: &Member,
        machine: &Machine,
        held: watch::Receiver<Held>,
    ) -> Result<MeshStates, LinkError> {
        let (authority, peer, machine) = (self.0.clone(), self.peer(member)?, machine.clone());
        let first = *held.borrow();
        let Follower { states, roots, place, .. } =
            blocking(move || authority.follow(&peer, &machine, first).map_err(refused)).await?;
        tokio::spawn(pass_on(held, place));
        let changes = WatchStream::new(states.clone()).map(drop).merge(WatchStream::new(roots.clone()).map(drop));
        Ok(Box::pin(changes.map(move |()| {
            let (mesh, roots) = (MeshState::clone(&states.borrow()), Roots::clone(&roots.borrow()));
            Ok(Told { mesh, roots: Some(roots) })
        })))
    }

    async fn follow_policy(
        &self,
        member: &Member,
        held: watch::Receiver<PolicyHeld>,
    ) -> Result<SignedPolicies, LinkError> {
        let (authority, peer) = (self.0.clone(), self.peer(member)?);
        let (PolicyFollower { published, place }, _) =
            blocking(move || authority.follow_policy(&peer).map_err(refused)).await?;
        let first = held.borrow().clone();
        place.holds(first.clone());
        tokio::spawn(pass_on(held, place));
        let fresh = WatchStream::new(published).filter_map(move |published| {
            let published = published.filter(|published| Some(published.record.signed) != first.kept_signed)?;
            Some(Ok(published.signed.clone()))
        });
        Ok(Box::pin(fresh))
    }

    async fn share_flows(&self, member: &Member, mut flows: mpsc::Receiver<Vec<u8>>) -> Result<Halves, LinkError> {
        let (authority, peer) = (self.0.clone(), self.peer(member)?);
        let (mut seat, _) = blocking(move || authority.share_flows(&peer).map_err(refused)).await?;
        let (to, given) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(flow) = flows.recv() => seat.offer(flow),
                    Some(half) = seat.given.recv() => if to.send(Ok(half)).await.is_err() { return },
                    () = to.closed() => return,
                    else => return,
                }
            }
        });
        Ok(Box::pin(ReceiverStream::new(given)))
    }

    async fn sign_jwt(&self, member: &Member, order: &JwtOrder) -> Result<String, LinkError> {
        let (authority, peer, order) = (self.0.clone(), self.peer(member)?, order.clone());
        blocking(move || authority.sign_jwt(&peer, &order).map_err(refused)).await
    }

    async fn jwt_keys(&self, member: &Member) -> Result<Vec<JwtKey>, LinkError> {
        let (authority, peer) = (self.0.clone(), self.peer(member)?);
        blocking(move || authority.jwt_keys(&peer).map_err(refused)).await
    }
}

impl Embedded {
    /// The node, proven as it would be over the network.
    fn peer(&self, member: &Member) -> Result<PeerSvid, LinkError> {
        let now = UnixTime::since_unix_epoch(self.0.clock().now());
        self.0.trust_bundle().verify(&member.shown(), now, Expect::Node).map_err(distrust)
    }
}

/// Until the node follows no longer.
async fn pass_on<H: Clone>(mut held: watch::Receiver<H>, place: Place<H>) {
    while held.changed().await.is_ok() {
        place.holds(held.borrow_and_update().clone());
    }
}

fn distrust(e: SvidError) -> LinkError {
    LinkError::Distrust { address: "this process".into(), why: e.to_string() }
}

fn refused(refusal: crate::refusal::MembershipRefusal) -> LinkError {
    if let crate::refusal::MembershipRefusal::Internal(e) = &refusal {
        tracing::error!(error = %e, "the authority failed");
    }
    LinkError::Refused { reason: refusal.as_str().to_owned(), message: refusal.to_string() }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LinkError> + Send + 'static,
) -> Result<T, LinkError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(e) => Err(LinkError::Unreachable { address: "this process".into(), why: e.to_string() }),
    }
}
