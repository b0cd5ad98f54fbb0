//! `Membership`: nodes join and renew, over TLS.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::NodeName;
use bonafide_proto::svid::PeerSvid;
use bonafide_proto::wire::authority as wire;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::attestor::{Answer, Claim, Evidence, Proof, ROUNDS_MAX, Step};
use crate::authority::{Application, Authority, Membership};
use crate::daemon::ended;
use crate::followers::{CameBy, Follower, Place};
use crate::jwt::JwtOrder;
use crate::listener::{FOLLOWING, Peer};
use crate::machine::Machine;
use crate::mesh::{Held, MeshState};
use crate::refusal::MembershipRefusal;
use crate::roots::Roots;
use crate::serve::{MESSAGE_MAX, blocking, policies};
use crate::sharing::{Half, Seat};
use crate::store::By;
use bonafide_proto::token::Secret;

/// A follower is let go in order so long before its connection would end.
const MARGIN: Duration = Duration::from_secs(30);

/// How long a node that was sent away may still listen.
const LAST_WORD: Duration = Duration::from_millis(500);

/// How long a follower may take to say which machine it is.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// The service.
#[derive(Debug, Clone)]
pub struct MembershipService(Arc<Authority>, watch::Receiver<()>);

impl MembershipService {
    /// The service as tonic routes it. Followers are let go once `stopped` has no sender any more.
    #[must_use]
    pub fn server(
        authority: Arc<Authority>,
        stopped: watch::Receiver<()>,
    ) -> wire::membership_server::MembershipServer<Self> {
        wire::membership_server::MembershipServer::new(Self(authority, stopped)).max_decoding_message_size(MESSAGE_MAX)
    }
}

#[tonic::async_trait]
impl wire::membership_server::Membership for MembershipService {
    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::Membered>, Status> {
        let peer = peer(&request)?;
        let (address, _answering) = (peer.address, peer.answering());
        let from = address.to_string();
        let wire::JoinRequest { token_secret, node, signing_csr, authentication_csr, bios_uuid, machine_id } =
            request.into_inner();
        let token_secret = zeroize::Zeroizing::new(token_secret);
        let secret = Secret::try_from(token_secret.as_slice()).map_err(|_| MembershipRefusal::TokenUnknown)?;
        let node = node.parse().map_err(|e| MembershipRefusal::BadRequest(format!("the node name {e}")))?;
        let application = Application { node, signing_csr, authentication_csr, bios_uuid, machine_id };
        let authority = self.0.clone();
        let joining = blocking(move || {
            let outcome = authority.join(&secret, &application).inspect_err(|refusal| {
                authority.note_refused("admission-refused", &By::Stranger(address), application.node.as_str(), refusal);
            });
            answer("join", application.node.as_str(), &from, outcome)
        });
        while_able(&self.0, joining).await
    }

    type EnrolStream = Pin<Box<dyn Stream<Item = Result<wire::EnrolResponse, Status>> + Send>>;

    async fn enrol(
        &self,
        request: Request<Streaming<wire::EnrolRequest>>,
    ) -> Result<Response<Self::EnrolStream>, Status> {
        let peer = peer(&request)?.clone();
        let answering = peer.answering();
        let (to, told) = mpsc::channel(1);
        let mut enrolment = Enrolment { authority: self.0.clone(), peer, says: request.into_inner() };
        tokio::spawn(async move {
            let _answering = answering;
            let last = enrolment.rounds(&to).await;
            let membered = |of| wire::EnrolResponse { of: Some(wire::enrol_response::Of::Membered(of)) };
            // The node may be gone by now.
            let _ = to.send(last.map(membered)).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Result<Response<wire::Membered>, Status> {
        let peer = peer(&request)?.clone();
        let _answering = peer.answering();
        let wire::RenewRequest { signing_csr, authentication_csr, bios_uuid, machine_id } = request.into_inner();
        let machine = Machine { bios_uuid, machine_id };
        let address = peer.address;
        let svid = peer.svid.ok_or(MembershipRefusal::NoSvid)?;
        let authority = self.0.clone();
        let renewing = blocking(move || {
            let node = svid.id().node_name();
            let outcome = authority.renew(&svid, &machine, &signing_csr, &authentication_csr).inspect_err(|refusal| {
                let by = node.clone().map_or(By::Stranger(address), By::Node);
                authority.note_refused("renewal-refused", &by, svid.id().path(), refusal);
            });
            answer("renew", svid.id().path(), &address.to_string(), outcome)
        });
        while_able(&self.0, renewing).await
    }

    type FollowStream = Pin<Box<dyn Stream<Item = Result<wire::MeshState, Status>> + Send>>;

    async fn follow(&self, request: Request<Streaming<wire::Held>>) -> Result<Response<Self::FollowStream>, Status> {
        let peer = peer(&request)?.clone();
        let following = peer.following();
        let svid = peer.svid.ok_or(MembershipRefusal::NoSvid)?;
        let (authority, stopped) = (self.0.clone(), self.1.clone());
        let left = svid.not_after().saturating_sub(authority.clock().unix());
        let (expelling, following_at) = (authority.clone(), authority.clone());
        let mut says = request.into_inner();
        let (machine, held) = first_word(&mut says).await?;
        let address = peer.address.to_string();
        let followed = blocking(move || {
            let followed = following_at.follow(&svid, &machine, held);
            followed
                .inspect_err(|refusal| {
                    let (who, reason) = (svid.id().path(), refusal.as_str());
                    tracing::warn!(node = who, from = address, reason, "refused to follow");
                    refused(&following_at, "follow-refused", &svid, refusal);
                })
                .map_err(Status::from)
        });
        let Follower { states, roots, place, node, came_by } = while_able(&self.0, followed).await?;
        let (to, told) = mpsc::channel(1);
        tokio::spawn(async move {
            let _following = following;
            tokio::select! {
                () = tell(states, roots, &to) => {}
                () = hear(says, place) => {}
                () = to.closed() => {}
                () = sent_away(&expelling, node, came_by) => {}
                () = over(left, stopped) => {}
                () = authority.unable() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(told).map(Ok))))
    }

    async fn sign_jwt(
        &self,
        request: Request<wire::SignJwtRequest>,
    ) -> Result<Response<wire::SignJwtResponse>, Status> {
        let peer = peer(&request)?.clone();
        let _answering = peer.answering();
        let wire::SignJwtRequest { workload, audiences, sha256 } = request.into_inner();
        let bad = |why: String| MembershipRefusal::BadRequest(why);
        let workload = workload.parse().map_err(|e| bad(format!("the workload name {e}")))?;
        let digests = sha256.iter().map(|bytes| Digest::try_from(bytes.as_slice())).collect::<Result<_, _>>();
        let digests = digests.map_err(|_| bad("a digest is not 32 bytes".to_owned()))?;
        let svid = peer.svid.ok_or(MembershipRefusal::NoSvid)?;
        let (authority, order) = (self.0.clone(), JwtOrder { workload, audiences, digests });
        blocking(move || {
            let token = authority.sign_jwt(&svid, &order).inspect_err(|refusal| {
                tracing::warn!(node = svid.id().path(), workload = %order.workload, reason = refusal.as_str(), "no token");
                let by = svid.id().node_name().map_or(By::Daemon, By::Node);
                authority.note_refused("jwt-refused", &by, svid.id().path(), refusal);
            })?;
            Ok(Response::new(wire::SignJwtResponse { token }))
        })
        .await
    }

    async fn list_jwt_keys(
        &self,
        request: Request<wire::ListJwtKeysRequest>,
    ) -> Result<Response<wire::ListJwtKeysResponse>, Status> {
        let peer = peer(&request)?.clone();
        let _answering = peer.answering();
        let svid = peer.svid.ok_or(MembershipRefusal::NoSvid)?;
        let authority = self.0.clone();
        blocking(move || {
            let keys = authority
                .jwt_keys(&svid)
                .inspect_err(|refusal| refused(&authority, "jwt-keys-refused", &svid, refusal))?;
            let points = keys.iter().map(|key| key.point().to_vec()).collect();
            Ok(Response::new(wire::ListJwtKeysResponse { points }))
        })
        .await
    }

    type FollowPolicyStream = Pin<Box<dyn Stream<Item = Result<wire::PolicyTold, Status>> + Send>>;

    async fn follow_policy(
        &self,
        request: Request<Streaming<wire::PolicyHeld>>,
    ) -> Result<Response<Self::FollowPolicyStream>, Status> {
        let peer = peer(&request)?.clone();
        let following = peer.following();
        let svid = peer.svid.ok_or(MembershipRefusal::NoSvid)?;
        let (authority, stopped) = (self.0.clone(), self.1.clone());
        let left = svid.not_after().saturating_sub(authority.clock().unix());
        let (expelling, followed) = (authority.clone(), authority.clone());
        let node = svid.id().node_name().ok_or(MembershipRefusal::NoSvid)?;
        let (follower, came_by) = blocking(move || {
            let outcome = followed.follow_policy(&svid);
            Ok(outcome.inspect_err(|refusal| refused(&followed, "follow-refused", &svid, refusal))?)
        })
        .await?;
        let (to, told) = mpsc::channel(1);
        let says = request.into_inner();
        tokio::spawn(async move {
            let _following = following;
            tokio::select! {
                () = policies::follow(follower, says, &to) => {}
                () = to.closed() => {}
                () = expelling.out(node, came_by) => {}
                () = over(left, stopped) => {}
                () = authority.unable() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(told).map(Ok))))
    }

    type ShareFlowsStream = Pin<Box<dyn Stream<Item = Result<wire::FlowHalf, Status>> + Send>>;

    async fn share_flows(
        &self,
        request: Request<Streaming<wire::FlowHalf>>,
    ) -> Result<Response<Self::ShareFlowsStream>, Status> {
        let peer = peer(&request)?.clone();
        let following = peer.following();
        let svid = peer.svid.ok_or(MembershipRefusal::NoSvid)?;
        let (authority, stopped) = (self.0.clone(), self.1.clone());
        let left = svid.not_after().saturating_sub(authority.clock().unix());
        let (expelling, seated_at) = (authority.clone(), authority.clone());
        let node = svid.id().node_name().ok_or(MembershipRefusal::NoSvid)?;
        let (seat, came_by) = blocking(move || {
            let outcome = seated_at.share_flows(&svid);
            Ok(outcome.inspect_err(|refusal| refused(&seated_at, "share-refused", &svid, refusal))?)
        })
        .await?;
        let (to, given) = mpsc::channel(1);
        let mut offered = request.into_inner();
        tokio::spawn(async move {
            let _following = following;
            tokio::select! {
                ended = exchange(seat, &mut offered, &to) => {
                    if let Err(status) = ended {
                        let _ = to.send(Err(status)).await;
                    }
                }
                () = to.closed() => {}
                () = expelling.out(node, came_by) => {}
                () = over(left, stopped) => {}
                () = authority.unable() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(given))))
    }
}

/// A node that wants to be admitted by a proof in rounds.
struct Enrolment {
    authority: Arc<Authority>,
    peer: Peer,
    says: Streaming<wire::EnrolRequest>,
}

impl Enrolment {
    async fn rounds(
        &mut self,
        to: &mpsc::Sender<Result<wire::EnrolResponse, Status>>,
    ) -> Result<wire::Membered, Status> {
        let Some(wire::enrol_request::Of::Application(application)) = self.next().await? else {
            return Err(bad_request("an application comes first"));
        };
        let wire::EnrolApplication { node, signing_csr, authentication_csr, bios_uuid, machine_id, evidence } =
            application;
        let node = node.parse().map_err(|e| MembershipRefusal::BadRequest(format!("the node name {e}")))?;
        let application = Application { node, signing_csr, authentication_csr, bios_uuid, machine_id };
        let evidence = evidence.ok_or_else(|| bad_request("there is no evidence"))?;
        let evidence = Evidence::try_from(evidence).map_err(|e| bad_request(&e.to_string()))?;
        let claim = Claim::new(&application, &self.peer.session, self.authority.clock().unix());
        let outcome = self.attest(&claim, evidence, to).await;
        let (authority, address) = (self.authority.clone(), self.peer.address);
        blocking(move || {
            let node = application.node.as_str();
            let outcome = outcome.and_then(|proof| authority.enrol(&application, proof)).inspect_err(|refusal| {
                authority.note_refused("admission-refused", &By::Stranger(address), node, refusal);
            });
            answer("enrol", node, &address.to_string(), outcome).map(Response::into_inner)
        })
        .await
    }

    async fn attest(
        &mut self,
        claim: &Claim,
        evidence: Evidence,
        to: &mpsc::Sender<Result<wire::EnrolResponse, Status>>,
    ) -> Result<Proof, MembershipRefusal> {
        let malformed = |why: &str| MembershipRefusal::BadRequest(why.to_owned());
        let (authority, its) = (self.authority.clone(), claim.clone());
        let mut step = step(move || authority.attest(&its, evidence)).await?;
        for _ in 0..ROUNDS_MAX {
            let (challenge, round) = match step {
                Step::Proven(proof) => return Ok(proof),
                Step::Challenged(challenge, round) => (challenge, round),
            };
            let asked = wire::EnrolResponse { of: Some(wire::enrol_response::Of::Challenge((&challenge).into())) };
            to.send(Ok(asked)).await.map_err(|_| malformed("the node went away"))?;
            let said = self.next().await.map_err(|e| malformed(e.message()))?;
            let Some(wire::enrol_request::Of::Answer(answer)) = said else {
                return Err(malformed("an answer follows a challenge"));
            };
            let (answer, its) = (Answer::try_from(answer).map_err(|e| malformed(&e.to_string()))?, claim.clone());
            step = self::step(move || round.answer(&its, answer)).await?;
        }
        match step {
            Step::Proven(proof) => Ok(proof),
            Step::Challenged(..) => Err(malformed("it takes too many rounds")),
        }
    }

    async fn next(&mut self) -> Result<Option<wire::enrol_request::Of>, Status> {
        match tokio::time::timeout(FIRST_WORD, self.says.message()).await {
            Ok(said) => Ok(said?.and_then(|said| said.of)),
            Err(_) => Err(bad_request("it took too long to say anything")),
        }
    }
}

/// The answer; or, as soon as the authority cannot say what is so, that another one has to be asked.
async fn while_able<T>(authority: &Authority, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let unable = async {
        authority.unable().await;
        authority.check_able().map_err(MembershipRefusal::from)
    };
    tokio::select! {
        answer = answer => answer,
        Err(e) = unable => Err(e.into()),
    }
}

async fn step(
    judge: impl FnOnce() -> Result<Step, MembershipRefusal> + Send + 'static,
) -> Result<Step, MembershipRefusal> {
    match tokio::task::spawn_blocking(judge).await {
        Ok(step) => step,
        Err(_) => Err(MembershipRefusal::BadRequest("the request could not be completed".into())),
    }
}

fn bad_request(why: &str) -> Status {
    MembershipRefusal::BadRequest(why.to_owned()).into()
}

/// Takes what is offered and gives what is due, until either side ends.
async fn exchange(
    mut seat: Seat,
    offered: &mut Streaming<wire::FlowHalf>,
    to: &mpsc::Sender<Result<wire::FlowHalf, Status>>,
) -> Result<(), Status> {
    loop {
        tokio::select! {
            half = offered.message() => match half? {
                Some(half) => seat.offer(half.flow),
                None => return Ok(()),
            },
            given = seat.given.recv() => match given {
                Some(Half { node, flow }) => {
                    let half = wire::FlowHalf { node: node.to_string(), flow };
                    if to.send(Ok(half)).await.is_err() {
                        return Ok(());
                    }
                }
                // The node has come by another connection.
                None => return Ok(()),
            },
        }
    }
}

/// Which machine it says it is, and what it has in force.
async fn first_word(says: &mut Streaming<wire::Held>) -> Result<(Machine, Held), Status> {
    match tokio::time::timeout(FIRST_WORD, says.message()).await {
        Ok(Ok(Some(wire::Held { told, holds, roots, bios_uuid, machine_id }))) => {
            Ok((Machine { bios_uuid, machine_id }, Held { told, holds, roots }))
        }
        Ok(Err(status)) => Err(status),
        Ok(Ok(None)) | Err(_) => {
            Err(MembershipRefusal::BadRequest("a follower says at once which machine it is".into()).into())
        }
    }
}

/// What the node has in force, until it goes away.
async fn hear(mut says: Streaming<wire::Held>, place: Place) {
    while let Ok(Some(wire::Held { told, holds, roots, .. })) = says.message().await {
        place.holds(Held { told, holds, roots });
    }
}

/// Every state, whole, until nobody listens.
async fn tell(
    mut states: watch::Receiver<Arc<MeshState>>,
    mut roots: watch::Receiver<Arc<Roots>>,
    to: &mpsc::Sender<wire::MeshState>,
) {
    loop {
        let trusted = wire::Roots::from(roots.borrow_and_update().as_ref());
        let state = wire::MeshState::from(states.borrow_and_update().as_ref());
        if to.send(wire::MeshState { roots: Some(trusted), ..state }).await.is_err() {
            return;
        }
        let changed = tokio::select! { changed = states.changed() => changed, changed = roots.changed() => changed };
        if changed.is_err() {
            return;
        }
    }
}

/// Done when the node is no member any more, and had a moment to be told so: an honest one ends its own flows by it.
async fn sent_away(authority: &Authority, node: NodeName, came_by: CameBy) {
    authority.out(node, came_by).await;
    tokio::time::sleep(LAST_WORD).await;
}

/// Done when the follower must show its certificate again, or the daemon stops.
async fn over(left: i64, stopped: watch::Receiver<()>) {
    let left = Duration::from_secs(u64::try_from(left).unwrap_or(0)).min(FOLLOWING - MARGIN);
    tokio::select! {
        () = tokio::time::sleep(left) => {}
        () = ended(stopped) => {}
    }
}

fn peer<T>(request: &Request<T>) -> Result<&Peer, Status> {
    request.extensions().get().ok_or_else(|| Status::internal("a connection without a peer"))
}

/// The answer, and a line in the log about it.
fn answer(
    what: &str,
    node: &str,
    from: &str,
    outcome: Result<Membership, MembershipRefusal>,
) -> Result<Response<wire::Membered>, Status> {
    match outcome {
        Ok(issued) => {
            tracing::info!(what, node, from, "member");
            Ok(Response::new(membered(&issued)))
        }
        Err(MembershipRefusal::Internal(e)) => {
            tracing::error!(what, node, from, error = %e, "failed");
            Err(MembershipRefusal::Internal(e).into())
        }
        Err(refusal) => {
            tracing::warn!(what, node, from, reason = refusal.as_str(), "refused");
            Err(refusal.into())
        }
    }
}

/// Writes down what somebody was refused who showed this certificate.
fn refused(authority: &Authority, act: &'static str, svid: &PeerSvid, refusal: &MembershipRefusal) {
    let by = svid.id().node_name().map_or(By::Daemon, By::Node);
    authority.note_refused(act, &by, svid.id().path(), refusal);
}

fn membered(issued: &Membership) -> wire::Membered {
    wire::Membered {
        trust_domain: issued.trust_domain.to_string(),
        intermediate: issued.intermediate.to_vec(),
        node_svid: issued.node_svid.to_vec(),
        roots: issued.roots.iter().map(|r| r.to_vec()).collect(),
        roots_sequence: issued.sequence,
        mesh: Some((&issued.mesh).into()),
        issuing: issued.issuing.as_ref().map(|issuing| issuing.to_vec()).unwrap_or_default(),
    }
}
