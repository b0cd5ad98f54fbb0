//! `Issuance`: the node role on its unix socket. Whoever may connect may ask for any workload, so only identityd may.

use std::pin::Pin;
use std::sync::Arc;

use bonafide_proto::fingerprint::Fingerprint;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::wire::node as wire;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::member::Member;
use crate::node::{Contact, NodeCa};
use crate::serve::{MESSAGE_MAX, blocking};

/// The service.
#[derive(Debug, Clone)]
pub struct IssuanceService(Arc<NodeCa>);

impl IssuanceService {
    /// The service as tonic routes it.
    #[must_use]
    pub fn server(node: Arc<NodeCa>) -> wire::issuance_server::IssuanceServer<Self> {
        wire::issuance_server::IssuanceServer::new(Self(node)).max_decoding_message_size(MESSAGE_MAX)
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

    type WatchBundleStream = Pin<Box<dyn Stream<Item = Result<wire::Bundle, Status>> + Send>>;

    /// Says nothing until the node is a member.
    async fn watch_bundle(
        &self,
        _request: Request<wire::WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        let mut told = 0;
        let stream = WatchStream::new(self.0.watch()).filter_map(move |member| {
            let member = member?;
            if member.sequence() == told {
                return None;
            }
            told = member.sequence();
            Some(Ok(bundle(&member)))
        });
        Ok(Response::new(Box::pin(stream)))
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
        }))
    }
}

fn bundle(member: &Member) -> wire::Bundle {
    wire::Bundle {
        trust_domain: member.bundle().trust_domain().to_string(),
        roots: member.bundle().roots().iter().map(|r| r.to_vec()).collect(),
        node: member.name().to_string(),
        sequence: member.sequence(),
    }
}
