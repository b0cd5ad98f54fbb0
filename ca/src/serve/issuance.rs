//! `Issuance`: the node role on its unix socket. Whoever may connect may ask for any workload, so only identityd may.

use std::pin::Pin;
use std::sync::Arc;

use bonafide_proto::fingerprint::Fingerprint;
use bonafide_proto::jwt::JwtKey;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::wire::node as wire;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::link::AuthorityLink;
use crate::member::Member;
use crate::mesh::MeshState;
use crate::node::{Contact, InForce, NodeCa};
use crate::policies::brief;
use crate::serve::{MESSAGE_MAX, audit_page, blocking};
use crate::sharing::Half;

/// Halves of flows that may be on their way to the authority.
const ON_THE_WAY: usize = 1024;

/// The service.
#[derive(Debug, Clone)]
pub struct IssuanceService(Arc<NodeCa>, Arc<dyn AuthorityLink>);

impl IssuanceService {
    /// The service as tonic routes it; `link` is the way to the authority.
    #[must_use]
    pub fn server(node: Arc<NodeCa>, link: Arc<dyn AuthorityLink>) -> wire::issuance_server::IssuanceServer<Self> {
        wire::issuance_server::IssuanceServer::new(Self(node, link)).max_decoding_message_size(MESSAGE_MAX)
    }
}

#[tonic::async_trait]
impl wire::issuance_server::Issuance for IssuanceService {
    async fn issue_leaf(
        &self,
        request: Request<wire::IssueLeafRequest>,
    ) -> Result<Response<wire::IssueLeafResponse>, Status> {
        use wire::issue_leaf_response::Of;
        let wire::IssueLeafRequest { workload, fingerprint, csr } = request.into_inner();
        let workload: WorkloadName =
            workload.parse().map_err(|e| Status::invalid_argument(format!("the workload name {e}")))?;
        let fingerprint: Fingerprint = fingerprint.try_into()?;
        let node = self.0.clone();
        let outcome = blocking(move || Ok(node.issue_leaf(&workload, &fingerprint, &csr))).await?;
        let of = match outcome {
            Ok(leaf) => Of::Svid(wire::Svid {
                chain: leaf.chain.iter().map(|c| c.to_vec()).collect(),
                not_before: leaf.not_before,
                not_after: leaf.not_after,
            }),
            Err(refusal) => Of::Refused((&refusal).into()),
        };
        Ok(Response::new(wire::IssueLeafResponse { of: Some(of) }))
    }

    async fn issue_jwt(
        &self,
        request: Request<wire::IssueJwtRequest>,
    ) -> Result<Response<wire::IssueJwtResponse>, Status> {
        use wire::issue_jwt_response::Of;
        let wire::IssueJwtRequest { workload, fingerprint, audiences } = request.into_inner();
        let workload: WorkloadName =
            workload.parse().map_err(|e| Status::invalid_argument(format!("the workload name {e}")))?;
        let fingerprint: Fingerprint = fingerprint.try_into()?;
        let of = match self.0.issue_jwt(self.1.as_ref(), &workload, &fingerprint, audiences).await {
            Ok(token) => Of::Token(token),
            Err(refusal) => Of::Refused((&refusal).into()),
        };
        Ok(Response::new(wire::IssueJwtResponse { of: Some(of) }))
    }

    type WatchBundleStream = Pin<Box<dyn Stream<Item = Result<wire::Bundle, Status>> + Send>>;

    /// Says nothing until the node is a member.
    async fn watch_bundle(
        &self,
        _request: Request<wire::WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        let mut told = None;
        let node = self.0.clone();
        let changes = WatchStream::new(node.watch()).map(drop).merge(WatchStream::new(node.mesh()).map(drop));
        let changes = changes.merge(WatchStream::new(node.jwt_keys()).map(drop));
        let stream = changes.filter_map(move |()| {
            let bundle = bundle(node.member()?.as_ref(), &node.mesh().borrow(), &node.jwt_keys().borrow());
            if told.as_ref() == Some(&bundle) {
                return None;
            }
            told = Some(bundle.clone());
            Some(Ok(bundle))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    type FollowPolicyStream = Pin<Box<dyn Stream<Item = Result<wire::PolicyTold, Status>> + Send>>;

    async fn follow_policy(
        &self,
        request: Request<Streaming<wire::PolicyInForce>>,
    ) -> Result<Response<Self::FollowPolicyStream>, Status> {
        let (node, mut says) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(wire::PolicyInForce { version, refused })) = says.message().await {
                node.policy_in_force(InForce { version, refused: (!refused.is_empty()).then(|| brief(refused)) });
            }
            // Whoever judges by it says so itself.
            node.policy_in_force(InForce::default());
        });
        let kept = WatchStream::new(self.0.policy()).filter_map(|kept| kept);
        Ok(Response::new(Box::pin(kept.map(|kept| Ok(wire::PolicyTold { signed: kept.signed.clone() })))))
    }

    type ShareFlowsStream = Pin<Box<dyn Stream<Item = Result<wire::FlowHalf, Status>> + Send>>;

    async fn share_flows(
        &self,
        request: Request<Streaming<wire::FlowHalf>>,
    ) -> Result<Response<Self::ShareFlowsStream>, Status> {
        let member = self.0.member().ok_or_else(|| Status::unavailable("the node is no member yet"))?;
        let (to_authority, flows) = mpsc::channel(ON_THE_WAY);
        let theirs = self.1.share_flows(&member, flows).await;
        let theirs = theirs.map_err(|e| Status::unavailable(e.to_string()))?;
        let mut ours = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(half)) = ours.message().await {
                // Only a record depends on it: what finds no room is dropped.
                if let Err(TrySendError::Closed(_)) = to_authority.try_send(half.flow) {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(theirs.map(|half| match half {
            Ok(Half { node, flow }) => Ok(wire::FlowHalf { node: node.to_string(), flow }),
            Err(e) => Err(Status::unavailable(e.to_string())),
        }))))
    }

    async fn show_audit(&self, request: Request<wire::ShowAuditRequest>) -> Result<Response<wire::AuditPage>, Status> {
        let (store, from) = (self.0.store().clone(), request.into_inner().from);
        let (head, entries) = blocking(move || audit_page(&store, from)).await?;
        Ok(Response::new(wire::AuditPage { head, entries }))
    }

    async fn status(&self, _request: Request<wire::StatusRequest>) -> Result<Response<wire::IssuanceStatus>, Status> {
        let member = self.0.member();
        let contact = self.0.contact();
        Ok(Response::new(wire::IssuanceStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: member.as_ref().map(|m| m.bundle().trust_domain().to_string()).unwrap_or_default(),
            node: self.0.name().to_string(),
            intermediate_not_after: member.map_or(0, |m| m.not_after()),
            authority_reachable: contact == Contact::Reached,
            authority_error: match contact {
                Contact::Failed(why) => why,
                Contact::Reached => String::new(),
                Contact::None => "not asked yet".to_owned(),
            },
            issued: self.0.issued(),
            policy_version: self.0.policy_held().kept,
            policy_refused: self.0.policy_refused().unwrap_or_default(),
        }))
    }
}

fn bundle(member: &Member, mesh: &MeshState, jwt_keys: &[JwtKey]) -> wire::Bundle {
    wire::Bundle {
        trust_domain: member.bundle().trust_domain().to_string(),
        roots: member.bundle().roots().iter().map(|r| r.to_vec()).collect(),
        node: member.name().to_string(),
        sequence: member.sequence(),
        quarantine: mesh.quarantine.iter().map(|digest| digest.0.to_vec()).collect(),
        revoked: Some((&mesh.revoked).into()),
        jwt_keys: jwt_keys.iter().map(|key| key.point().to_vec()).collect(),
    }
}
