//! `Admission`: what the operator asks of the authority, over its unix socket.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::grant::Grant;
use bonafide_proto::name::{NodeName, WorkloadName};
use bonafide_proto::revoked::Serial;
use bonafide_proto::signed_policy::TEXT_MAX;
use bonafide_proto::wire::authority as wire;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use crate::authority::{Authority, EvictError, Granted, TokenCreationError, TokenTerms};
use crate::quarantine::QuarantineError;
use crate::serve::{MESSAGE_MAX, audit_page, blocking, policies, roots};
use crate::store::{By, NodeRecord, QuarantineRecord, Quarantined};

/// How long nodes may take to say that a change is in force: one whose connection is just being made again, too.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
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
        let largest = MESSAGE_MAX + TEXT_MAX;
        wire::admission_server::AdmissionServer::new(Self(authority, reach)).max_decoding_message_size(largest)
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
        let wire::CreateTokenRequest { node, ttl_seconds: ttl, grant, bios_uuid } = request.into_inner();
        let bios_uuid = Some(bios_uuid).filter(|uuid| !uuid.is_empty());
        let grant = grant.map(granted).transpose()?;
        let node: Option<NodeName> = match node.as_str() {
            "" => None,
            name => Some(named(name)?),
        };
        let authority = self.0.clone();
        let granted = grant.as_ref().map(ToString::to_string);
        let terms = TokenTerms { node: node.clone(), ttl, grant, by, bios_uuid };
        let (token, expires) = blocking(move || authority.create_token(terms).map_err(token_status)).await?;
        tracing::info!(node = node.as_ref().map_or("any", |n| n.as_str()), granted, expires, "join token made");
        Ok(Response::new(wire::CreateTokenResponse { token: token.reveal().to_string(), expires }))
    }

    async fn trust_root(
        &self,
        _request: Request<wire::TrustRootRequest>,
    ) -> Result<Response<wire::TrustRootResponse>, Status> {
        Ok(Response::new(wire::TrustRootResponse { root: self.0.root().to_vec() }))
    }

    async fn list_nodes(
        &self,
        _request: Request<wire::ListNodesRequest>,
    ) -> Result<Response<wire::ListNodesResponse>, Status> {
        let authority = self.0.clone();
        let following = authority.followers().present();
        let now = authority.clock().unix();
        let (nodes, list) = blocking(move || {
            let both = authority.nodes().and_then(|nodes| Ok((nodes, authority.quarantine().revoked()?)));
            both.map_err(|e| Status::internal(e.to_string()))
        })
        .await?;
        let state = |name: &NodeName, record: &NodeRecord| match record.evicted {
            _ if list.banned.contains_key(name) => "banned",
            Some(_) => "evicted",
            None if record.not_after < now => "expired",
            None => "member",
        };
        let node = |(name, record): (NodeName, NodeRecord)| {
            let state = state(&name, &record).to_owned();
            wire::Node { state, ..node(&name, record, following.contains(&name)) }
        };
        let nodes = nodes.into_iter().map(node).collect();
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
        let (granted, sequence, members) = blocking(move || {
            let granted = authority.grant(&by, &node, &grant).map_err(evict_status)?;
            Ok((granted, authority.quarantine().now().sequence, members(&authority)?))
        })
        .await?;
        let revoked = match granted {
            Granted::Already | Granted::AtRenewal => None,
            Granted::AtOnce => Some(self.in_force(true, sequence, true, &members).await),
        };
        Ok(Response::new(wire::GrantNodeResponse { changed: granted != Granted::Already, revoked }))
    }

    async fn revoke(
        &self,
        request: Request<wire::RevokeRequest>,
    ) -> Result<Response<wire::QuarantineResponse>, Status> {
        use wire::revoke_request::What;
        let by = caller(&request)?;
        let wire::RevokeRequest { what, lift, reason } = request.into_inner();
        let what = what.ok_or_else(|| Status::invalid_argument("it says nothing that could be revoked"))?;
        self.change(lift, move |authority| {
            let list = authority.quarantine();
            match (what, lift) {
                (What::Node(node), false) => authority.evict(&by, &named(&node)?, &reason).map_err(evict_status),
                (What::Node(node), true) => authority.readmit(&by, &named(&node)?).map_err(evict_status),
                (What::Workload(name), false) => {
                    list.revoke_workload(&by, &workload(&name)?, &reason).map_err(quarantine_status)
                }
                (What::Workload(name), true) => list.lift_workload(&by, &workload(&name)?).map_err(quarantine_status),
                (What::Serial(bytes), false) => {
                    authority.revoke_serial(&by, &serial(&bytes)?, &reason).map_err(evict_status)
                }
                (What::Serial(bytes), true) => list.lift_serial(&by, &serial(&bytes)?).map_err(quarantine_status),
            }
        })
        .await
    }

    async fn ban(&self, request: Request<wire::BanRequest>) -> Result<Response<wire::QuarantineResponse>, Status> {
        let by = caller(&request)?;
        let wire::BanRequest { node, lift, reason } = request.into_inner();
        let node = named(&node)?;
        self.change(lift, move |authority| match lift {
            false => authority.ban(&by, &node, &reason).map_err(evict_status),
            true => authority.unban(&by, &node).map_err(evict_status),
        })
        .await
    }

    async fn clear_suspicion(
        &self,
        request: Request<wire::ClearSuspicionRequest>,
    ) -> Result<Response<wire::ClearSuspicionResponse>, Status> {
        let by = caller(&request)?;
        let wire::ClearSuspicionRequest { node, reason } = request.into_inner();
        let (node, authority) = (named(&node)?, self.0.clone());
        let was = blocking(move || authority.clear_suspicion(&by, &node, &reason).map_err(evict_status)).await?;
        Ok(Response::new(wire::ClearSuspicionResponse { was: was.unwrap_or_default() }))
    }

    async fn list_revoked(
        &self,
        _request: Request<wire::ListRevokedRequest>,
    ) -> Result<Response<wire::ListRevokedResponse>, Status> {
        let authority = self.0.clone();
        let record = blocking(move || authority.quarantine().revoked().map_err(|e| Status::internal(e.to_string())));
        Ok(Response::new(wire::ListRevokedResponse { revoked: revoked(record.await?) }))
    }

    async fn quarantine(
        &self,
        request: Request<wire::QuarantineRequest>,
    ) -> Result<Response<wire::QuarantineResponse>, Status> {
        let by = caller(&request)?;
        let wire::QuarantineRequest { sha256, lift, reason } = request.into_inner();
        let digest = Digest::try_from(sha256.as_slice()).map_err(|e| Status::invalid_argument(format!("it {e}")))?;
        self.change(lift, move |authority| {
            let list = authority.quarantine();
            let changed = if lift { list.lift(&by, digest) } else { list.add(&by, digest, &reason) };
            let changed = changed.map_err(quarantine_status)?;
            tracing::info!(%digest, lift, changed, reason, "quarantine");
            Ok(changed)
        })
        .await
    }

    async fn settle(
        &self,
        request: Request<wire::SettleRequest>,
    ) -> Result<Response<wire::QuarantineResponse>, Status> {
        let (by, authority) = (caller(&request)?, self.0.clone());
        let (changed, sequence, members) = blocking(move || {
            let changed = authority.settle(&by).map_err(evict_status)?;
            tracing::warn!(changed, "settled: nodes go by this authority alone again");
            Ok((changed, authority.quarantine().now().sequence, members(&authority)?))
        })
        .await?;
        Ok(Response::new(self.in_force(changed, sequence, false, &members).await))
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

    async fn publish_policy(
        &self,
        request: Request<wire::PublishPolicyRequest>,
    ) -> Result<Response<wire::PublishPolicyResponse>, Status> {
        let by = caller(&request)?;
        policies::publish(&self.0, by, request.into_inner()).await.map(Response::new)
    }

    async fn published_policy(
        &self,
        request: Request<wire::PublishedPolicyRequest>,
    ) -> Result<Response<wire::PublishedPolicyResponse>, Status> {
        policies::published(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn confirm_policy(
        &self,
        request: Request<wire::ConfirmPolicyRequest>,
    ) -> Result<Response<wire::PolicyPublished>, Status> {
        let by = caller(&request)?;
        policies::confirm(&self.0, by, request.into_inner()).await.map(Response::new)
    }

    async fn roll_back_policy(
        &self,
        request: Request<wire::RollBackPolicyRequest>,
    ) -> Result<Response<wire::PublishPolicyResponse>, Status> {
        let by = caller(&request)?;
        policies::roll_back(&self.0, by, request.into_inner()).await.map(Response::new)
    }

    async fn policy_history(
        &self,
        request: Request<wire::PolicyHistoryRequest>,
    ) -> Result<Response<wire::PolicyHistoryResponse>, Status> {
        policies::history(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn rotate_root(
        &self,
        request: Request<wire::RotateRootRequest>,
    ) -> Result<Response<wire::RootsShown>, Status> {
        let by = caller(&request)?;
        roots::rotate(&self.0, by, request.into_inner()).await.map(Response::new)
    }

    async fn prepare_root(
        &self,
        request: Request<wire::PrepareRootRequest>,
    ) -> Result<Response<wire::RootsShown>, Status> {
        let by = caller(&request)?;
        roots::prepare(&self.0, by, request.into_inner()).await.map(Response::new)
    }

    async fn install_issuing(
        &self,
        request: Request<wire::InstallIssuingRequest>,
    ) -> Result<Response<wire::RootsShown>, Status> {
        let by = caller(&request)?;
        roots::install(&self.0, by, request.into_inner()).await.map(Response::new)
    }

    async fn show_roots(
        &self,
        _request: Request<wire::ShowRootsRequest>,
    ) -> Result<Response<wire::RootsShown>, Status> {
        let authority = self.0.clone();
        blocking(move || roots::shown(&authority, false)).await.map(Response::new)
    }
}

/// Who asks, by the kernel's word.
fn caller<T>(request: &Request<T>) -> Result<By, Status> {
    let connection = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    connection.map(|cred| By::Uid(cred.uid())).ok_or_else(|| Status::internal("a connection without credentials"))
}

impl AdmissionService {
    /// Does it, and says who has it in force.
    async fn change(
        &self,
        lift: bool,
        change: impl FnOnce(&Authority) -> Result<bool, Status> + Send + 'static,
    ) -> Result<Response<wire::QuarantineResponse>, Status> {
        let authority = self.0.clone();
        if lift && authority.quarantine().now().restored {
            return Err(Status::failed_precondition(LIFTS_NOTHING));
        }
        let (changed, sequence, members) = blocking(move || {
            let changed = change(&authority)?;
            Ok((changed, authority.quarantine().now().sequence, members(&authority)?))
        })
        .await?;
        Ok(Response::new(self.in_force(changed, sequence, !lift, &members).await))
    }

    async fn in_force(
        &self,
        changed: bool,
        sequence: u64,
        added: bool,
        members: &BTreeSet<NodeName>,
    ) -> wire::QuarantineResponse {
        let without = self.0.followers().without(members, PATIENCE, |held| held.has(sequence, added)).await;
        let [told, nodes] = [members.len().saturating_sub(without.len()), members.len()]
            .map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        let untold = without.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        wire::QuarantineResponse { changed, told, nodes, untold }
    }
}

fn revoked(record: QuarantineRecord) -> Vec<wire::RevokedOne> {
    let one = |kind: &str, what: String, since, until, reason| wire::RevokedOne {
        kind: kind.to_owned(),
        what,
        through: 0,
        since,
        until,
        reason,
    };
    let nodes = record.nodes.into_iter().map(|(node, revoked)| wire::RevokedOne {
        through: revoked.through,
        ..one("node", node.to_string(), revoked.since, revoked.until, revoked.reason)
    });
    let workloads = record
        .workloads
        .into_iter()
        .map(|(name, Quarantined { since, reason })| one("workload", name.to_string(), since, 0, reason));
    let serials = record
        .serials
        .into_iter()
        .map(|(serial, revoked)| one("serial", serial.to_string(), revoked.since, revoked.until, revoked.reason));
    let banned =
        record.banned.into_iter().map(|(node, ban)| one("banned node", node.to_string(), ban.since, 0, ban.reason));
    nodes.chain(workloads).chain(serials).chain(banned).collect()
}

/// Those that can have a certificate at all.
pub(super) fn members(authority: &Authority) -> Result<BTreeSet<NodeName>, Status> {
    let now = authority.clock().unix();
    let nodes = authority.nodes().map_err(|e| Status::internal(e.to_string()))?;
    Ok(nodes
        .into_iter()
        .filter(|(_, record)| record.not_after >= now && record.evicted.is_none())
        .map(|(name, _)| name)
        .collect())
}

/// The refusal of an embedded authority.
const ONE_NODE: &str = "this authority is embedded in its node and has no network listener, so it can admit no other \
                        node; run one for several hosts by `bonafide-ca`, see deploy/authority.toml.example, and start \
                        each node with --authority";

const LIFTS_NOTHING: &str = "this authority was restored from a backup, and nodes lift nothing on its word before \
                             `bonafide-ca settle`";

fn quarantine_status(e: QuarantineError) -> Status {
    match e {
        QuarantineError::Full | QuarantineError::FullOf(..) => Status::resource_exhausted(e.to_string()),
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

fn workload(name: &str) -> Result<WorkloadName, Status> {
    name.parse().map_err(|e| Status::invalid_argument(format!("the workload {e}")))
}

fn serial(bytes: &[u8]) -> Result<Serial, Status> {
    Serial::try_from(bytes).map_err(|e| Status::invalid_argument(format!("it {e}")))
}

fn evict_status(e: EvictError) -> Status {
    match e {
        EvictError::Unknown(_) => Status::not_found(e.to_string()),
        EvictError::Banned(_) => Status::failed_precondition(e.to_string()),
        EvictError::List(e) => quarantine_status(e),
        EvictError::Store(_) => Status::internal(e.to_string()),
    }
}

fn token_status(e: TokenCreationError) -> Status {
    match e {
        TokenCreationError::Ttl(_) => Status::invalid_argument(e.to_string()),
        TokenCreationError::Token(_) | TokenCreationError::Root(_) | TokenCreationError::Store(_) => {
            Status::internal(e.to_string())
        }
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
        state: String::new(),
        last_seen: record.last_seen,
        suspect: record.suspect.unwrap_or_default(),
        grant: Some(wire::Grant { workloads: record.grant.patterns().map(ToOwned::to_owned).collect() }),
    }
}
