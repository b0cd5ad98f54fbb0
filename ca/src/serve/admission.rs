//! `Admission`: what the operator asks of the authority, over its unix socket.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::grant::Grant;
use bonafide_proto::name::NodeName;
use bonafide_proto::wire::authority as wire;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use crate::authority::{Authority, GrantNodeError, TokenCreationError, TokenTerms};
use crate::quarantine::QuarantineError;
use crate::serve::{MESSAGE_MAX, audit_page, blocking};
use crate::store::{By, NodeRecord, Quarantined};

/// How long nodes may take to say that a change is in force: one whose connection is just being made again, too.
const PATIENCE: Duration = Duration::from_secs(2);
/// Nodes that are named in one answer.
const NAMED_MAX: usize = 64;

/// Whether another node could ever reach this authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It listens on the network.
    Network,
    /// It is embedded in one node, and has no network.
    OneNode,
}

/// The service.
#[derive(Debug, Clone)]
pub struct AdmissionService(Arc<Authority>, Reach);

impl AdmissionService {
    /// The service as tonic routes it.
    #[must_use]
    pub fn server(authority: Arc<Authority>, reach: Reach) -> wire::admission_server::AdmissionServer<Self> {
        wire::admission_server::AdmissionServer::new(Self(authority, reach)).max_decoding_message_size(MESSAGE_MAX)
    }
}

#[tonic::async_trait]
impl wire::admission_server::Admission for AdmissionService {
    async fn create_token(
        &self,
        request: Request<wire::CreateTokenRequest>,
    ) -> Result<Response<wire::CreateTokenResponse>, Status> {
        if self.1 == Reach::OneNode {
            return Err(Status::failed_precondition(ONE_NODE));
        }
        let by = caller(&request)?;
        let wire::CreateTokenRequest { node, ttl_seconds: ttl, grant } = request.into_inner();
        let grant = grant.map(granted).transpose()?;
        let node: Option<NodeName> = match node.as_str() {
            "" => None,
            name => Some(named(name)?),
        };
        let authority = self.0.clone();
        let granted = grant.as_ref().map(ToString::to_string);
        let terms = TokenTerms { node: node.clone(), ttl, grant, by };
        let (token, expires) = blocking(move || authority.create_token(terms).map_err(token_status)).await?;
        tracing::info!(node = node.as_ref().map_or("any", |n| n.as_str()), granted, expires, "join token made");
        Ok(Response::new(wire::CreateTokenResponse { token: token.reveal().to_string(), expires }))
    }

    async fn list_nodes(
        &self,
        _request: Request<wire::ListNodesRequest>,
    ) -> Result<Response<wire::ListNodesResponse>, Status> {
        let authority = self.0.clone();
        let following = authority.followers().present();
        let nodes = blocking(move || authority.nodes().map_err(|e| Status::internal(e.to_string()))).await?;
        let nodes = nodes.into_iter().map(|(name, record)| node(&name, record, following.contains(&name))).collect();
        Ok(Response::new(wire::ListNodesResponse { nodes }))
    }

    async fn grant_node(
        &self,
        request: Request<wire::GrantNodeRequest>,
    ) -> Result<Response<wire::GrantNodeResponse>, Status> {
        let by = caller(&request)?;
        let wire::GrantNodeRequest { node, grant } = request.into_inner();
        let node = named(&node)?;
        let grant = granted(grant.unwrap_or_default())?;
        let authority = self.0.clone();
        let changed = blocking(move || authority.grant(&by, &node, &grant).map_err(grant_status)).await?;
        Ok(Response::new(wire::GrantNodeResponse { changed }))
    }

    async fn quarantine(
        &self,
        request: Request<wire::QuarantineRequest>,
    ) -> Result<Response<wire::QuarantineResponse>, Status> {
        let by = caller(&request)?;
        let wire::QuarantineRequest { sha256, lift, reason } = request.into_inner();
        let digest = Digest::try_from(sha256.as_slice()).map_err(|e| Status::invalid_argument(format!("it {e}")))?;
        let authority = self.0.clone();
        let (changed, sequence, members) = blocking(move || {
            let list = authority.quarantine();
            let changed = if lift { list.lift(&by, digest) } else { list.add(&by, digest, &reason) };
            let changed = changed.map_err(quarantine_status)?;
            tracing::info!(%digest, lift, changed, reason, "quarantine");
            Ok((changed, list.now().sequence, members(&authority)?))
        })
        .await?;
        let without = self.0.followers().without(&members, PATIENCE, |held| held.has(sequence, !lift)).await;
        let [told, nodes] = [members.len().saturating_sub(without.len()), members.len()]
            .map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        let untold = without.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        Ok(Response::new(wire::QuarantineResponse { changed, told, nodes, untold }))
    }

    async fn show_audit(&self, request: Request<wire::ShowAuditRequest>) -> Result<Response<wire::AuditPage>, Status> {
        let (store, from) = (self.0.store().clone(), request.into_inner().from);
        let (head, entries) = blocking(move || audit_page(&store, from)).await?;
        Ok(Response::new(wire::AuditPage { head, entries }))
    }

    async fn list_quarantine(
        &self,
        _request: Request<wire::ListQuarantineRequest>,
    ) -> Result<Response<wire::ListQuarantineResponse>, Status> {
        let authority = self.0.clone();
        let listed =
            blocking(move || authority.quarantine().list().map_err(|e| Status::internal(e.to_string()))).await?;
        let quarantined = listed.into_iter().map(|(digest, Quarantined { since, reason })| wire::Quarantined {
            sha256: digest.0.to_vec(),
            since,
            reason,
        });
        Ok(Response::new(wire::ListQuarantineResponse { quarantined: quarantined.collect() }))
    }
}

/// Who asks, by the kernel's word.
fn caller<T>(request: &Request<T>) -> Result<By, Status> {
    let connection = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    connection.map(|cred| By::Uid(cred.uid())).ok_or_else(|| Status::internal("a connection without credentials"))
}

/// Those that can have a certificate at all.
fn members(authority: &Authority) -> Result<BTreeSet<NodeName>, Status> {
    let now = authority.clock().unix();
    let nodes = authority.nodes().map_err(|e| Status::internal(e.to_string()))?;
    Ok(nodes.into_iter().filter(|(_, record)| record.not_after >= now).map(|(name, _)| name).collect())
}

/// The refusal of an embedded authority.
const ONE_NODE: &str = "this authority is embedded in its node and has no network listener, so it can admit no other \
                        node; run one for several hosts by `bonafide-ca`, see deploy/authority.toml.example, and start \
                        each node with --authority";

fn quarantine_status(e: QuarantineError) -> Status {
    match e {
        QuarantineError::Full => Status::resource_exhausted(e.to_string()),
        QuarantineError::Reason => Status::invalid_argument(e.to_string()),
        QuarantineError::Store(_) => Status::internal(e.to_string()),
    }
}

fn named(node: &str) -> Result<NodeName, Status> {
    node.parse().map_err(|e| Status::invalid_argument(format!("the node name {e}")))
}

fn granted(grant: wire::Grant) -> Result<Grant, Status> {
    Grant::of(grant.workloads.iter().map(String::as_str)).map_err(|e| Status::invalid_argument(e.to_string()))
}

fn grant_status(e: GrantNodeError) -> Status {
    match e {
        GrantNodeError::Unknown(_) => Status::not_found(e.to_string()),
        GrantNodeError::Store(_) => Status::internal(e.to_string()),
    }
}

fn token_status(e: TokenCreationError) -> Status {
    match e {
        TokenCreationError::Ttl(_) => Status::invalid_argument(e.to_string()),
        TokenCreationError::Token(_) | TokenCreationError::Store(_) => Status::internal(e.to_string()),
    }
}

fn node(name: &NodeName, record: NodeRecord, following: bool) -> wire::Node {
    wire::Node {
        name: name.to_string(),
        bios_uuid: record.bios_uuid,
        machine_id: record.machine_id,
        joined: record.joined,
        last_renewed: record.last_renewed,
        not_after: record.not_after,
        following,
        grant: Some(wire::Grant { workloads: record.grant.patterns().map(ToOwned::to_owned).collect() }),
    }
}
