//! The way from a node to its authority: over the network, or inside one process. Both run the same code behind it.

use std::sync::Arc;

use bonafide_proto::svid::{Expect, SvidError};
use rustls::pki_types::UnixTime;

use crate::authority::{Application, Authority, Membership};
use crate::member::Member;
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
    #[error("no mutual trust with {address}: {why}")]
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
    /// It broke the protocol.
    #[error("the authority's answer is malformed: {0}")]
    Malformed(String),
}

/// Asks the authority.
#[tonic::async_trait]
pub trait AuthorityLink: Send + Sync + std::fmt::Debug {
    /// Becomes a member by a token.
    async fn join(&self, token: &JoinToken, application: &Application) -> Result<Membership, LinkError>;
    /// Renews a membership, authenticated by its node SVID.
    async fn renew(
        &self,
        member: &Member,
        signing_csr: Vec<u8>,
        authentication_csr: Vec<u8>,
    ) -> Result<Membership, LinkError>;
    /// Is it there, and is it still our authority? Asks for nothing.
    async fn probe(&self, member: &Member) -> Result<(), LinkError>;
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
        signing_csr: Vec<u8>,
        authentication_csr: Vec<u8>,
    ) -> Result<Membership, LinkError> {
        let authority = self.0.clone();
        let now = UnixTime::since_unix_epoch(authority.clock().now());
        let shown = [member.node_svid().clone()];
        let peer = authority.trust_bundle().verify(&shown, now, Expect::Node).map_err(distrust)?;
        blocking(move || authority.renew(&peer, &signing_csr, &authentication_csr).map_err(refused)).await
    }

    async fn probe(&self, _member: &Member) -> Result<(), LinkError> {
        Ok(())
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
