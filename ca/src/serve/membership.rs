//! `Membership`: nodes join and renew, over TLS.

use std::sync::Arc;

use bonafide_proto::wire::authority as wire;
use tonic::{Request, Response, Status};

use crate::authority::{Application, Authority, Membership};
use crate::listener::Peer;
use crate::refusal::MembershipRefusal;
use crate::serve::{MESSAGE_MAX, blocking};
use bonafide_proto::token::Secret;

/// The service.
#[derive(Debug, Clone)]
pub struct MembershipService(Arc<Authority>);

impl MembershipService {
    /// The service as tonic routes it.
    #[must_use]
    pub fn server(authority: Arc<Authority>) -> wire::membership_server::MembershipServer<Self> {
        wire::membership_server::MembershipServer::new(Self(authority)).max_decoding_message_size(MESSAGE_MAX)
    }
}

#[tonic::async_trait]
impl wire::membership_server::Membership for MembershipService {
    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::Membered>, Status> {
        let peer = peer(&request)?;
        let (from, _answering) = (peer.address.to_string(), peer.answering());
        let wire::JoinRequest { token_secret, node, signing_csr, authentication_csr, bios_uuid, machine_id } =
            request.into_inner();
        let token_secret = zeroize::Zeroizing::new(token_secret);
        let secret = Secret::try_from(token_secret.as_slice()).map_err(|_| MembershipRefusal::TokenUnknown)?;
        let node = node.parse().map_err(|e| MembershipRefusal::BadRequest(format!("the node name {e}")))?;
        let application = Application { node, signing_csr, authentication_csr, bios_uuid, machine_id };
        let authority = self.0.clone();
        blocking(move || {
            let outcome = authority.join(&secret, &application);
            answer("join", application.node.as_str(), &from, outcome)
        })
        .await
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Result<Response<wire::Membered>, Status> {
        let peer = peer(&request)?.clone();
        let _answering = peer.answering();
        let wire::RenewRequest { signing_csr, authentication_csr } = request.into_inner();
        let address = peer.address;
        let svid = peer.svid.ok_or(MembershipRefusal::NoSvid)?;
        let authority = self.0.clone();
        blocking(move || {
            let outcome = authority.renew(&svid, &signing_csr, &authentication_csr);
            answer("renew", svid.id().path(), &address.to_string(), outcome)
        })
        .await
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

fn membered(issued: &Membership) -> wire::Membered {
    wire::Membered {
        trust_domain: issued.trust_domain.to_string(),
        intermediate: issued.intermediate.to_vec(),
        node_svid: issued.node_svid.to_vec(),
        roots: issued.roots.iter().map(|r| r.to_vec()).collect(),
    }
}
