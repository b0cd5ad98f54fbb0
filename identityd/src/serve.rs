//! The service `Attestation`: wire messages in, wire messages out, the story in between is [`Attestor`]'s.

use std::pin::Pin;
use std::sync::Arc;

use bonafide_proto::convert::Malformed;
use bonafide_proto::fingerprint::Execution;
use bonafide_proto::flow::FlowKey;
use bonafide_proto::kernel::ConnectRecord;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::attestation_server::Attestation;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::attest::{Attestor, Who};
use crate::bundle::Authority;
use crate::in_force::{InForce, Loaded, State};
use crate::lapse::Lapses;
use crate::observe::{Observatory, Sight, Wish};
use crate::refuse::refuse;
use crate::source::{HOLDERS_MAX, Known, SocketSource};

/// The most sockets that are asked about at once.
const SOCKETS_MAX: usize = 512;
/// The largest certificate request, in bytes.
const CSR_MAX: usize = 4 << 10;

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers the enforcer and root.
#[derive(Debug)]
pub(crate) struct Service<S> {
    attestor: Arc<Attestor<S>>,
    policy: InForce,
    authority: Authority,
    lapses: Lapses,
    flows: Result<Observatory, String>,
}

impl<S: SocketSource> Service<S> {
    /// A service of these parts; instead of an observatory, why there is none.
    pub(crate) fn new(
        attestor: Arc<Attestor<S>>,
        policy: InForce,
        authority: Authority,
        lapses: Lapses,
        flows: Result<Observatory, String>,
    ) -> Self {
        Self { attestor, policy, authority, lapses, flows }
    }

    /// The workload that a question names, if it names one.
    fn named(&self, name: &str) -> Result<Option<WorkloadName>, Status> {
        if name.is_empty() {
            return Ok(None);
        }
        let name: WorkloadName = name.parse().map_err(|e| Malformed(format!("workload name {e}")))?;
        match self.policy.state().loaded {
            Some(loaded) if !loaded.policy.knows(&name) => {
                let policy = self.policy.name();
                Err(Status::not_found(format!("the policy {policy} has no workload {name}")))
            }
            // Without a policy the answer is a refusal of that name.
            _ => Ok(Some(name)),
        }
    }

    async fn svid(&self, order: Order) -> Result<wire::Svid, AttestRefusal> {
        let fingerprint = self.attestor.entitled(&order.executions, &order.workload).await?;
        self.authority.issue(&order.workload, &fingerprint, order.csr).await
    }
}

/// A certificate as it is ordered.
struct Order {
    executions: Vec<Execution>,
    workload: WorkloadName,
    csr: Vec<u8>,
}

impl Order {
    fn read(request: wire::FetchSvidRequest) -> Result<Result<Self, AttestRefusal>, Malformed> {
        if request.csr.is_empty() || request.csr.len() > CSR_MAX {
            let detail = format!("the certificate request has {} bytes; 1 to {CSR_MAX} are read", request.csr.len());
            return Ok(refuse(AttestReason::BadRequest, detail));
        }
        let executions = executions(request.executions)?;
        let workload = request.workload.parse().map_err(|e| Malformed(format!("workload name {e}")))?;
        Ok(Ok(Self { executions, workload, csr: request.csr }))
    }
}

/// Exactly one of what can be asked about.
fn who(request: wire::AttestProcessRequest) -> Result<Who, Malformed> {
    match (request.pid, request.socket, request.container.as_str()) {
        (pid, None, "") => Ok(Who::Process(pid)),
        (0, Some(socket), "") => Ok(Who::Socket(socket.try_into()?)),
        (0, None, _) => Ok(Who::Container(request.container)),
        _ => Err(Malformed("name one of process, socket and container".to_owned())),
    }
}

fn record(wire: &[u8]) -> Result<Option<ConnectRecord>, Malformed> {
    if wire.is_empty() {
        return Ok(None);
    }
    ConnectRecord::parse(wire).map(Some).map_err(|e| Malformed(e.to_string()))
}

fn sockets(wire: Vec<wire::AttestFlowRequest>) -> Result<Vec<Known>, Malformed> {
    if wire.len() > SOCKETS_MAX {
        return Err(Malformed(format!("{} sockets; at most {SOCKETS_MAX} are read", wire.len())));
    }
    wire.into_iter().map(|known| Ok(Known { record: record(&known.kernel)?, key: known.try_into()? })).collect()
}

fn executions(wire: Vec<wire::Execution>) -> Result<Vec<Execution>, Malformed> {
    if wire.is_empty() || wire.len() > HOLDERS_MAX {
        return Err(Malformed(format!("{} executions; 1 to {HOLDERS_MAX} are read", wire.len())));
    }
    wire.into_iter().map(TryInto::try_into).collect()
}

#[tonic::async_trait]
impl<S: SocketSource> Attestation for Service<S> {
    type WatchPolicyStream = Updates<wire::PolicyUpdate>;
    type WatchBundleStream = Updates<wire::Bundle>;
    type WatchLapsesStream = Updates<wire::Lapse>;
    type WatchFlowsStream = Updates<wire::ObservedFlow>;

    async fn attest_flow(
        &self,
        request: Request<wire::AttestFlowRequest>,
    ) -> Result<Response<wire::AttestResponse>, Status> {
        let request = request.into_inner();
        let record = record(&request.kernel)?;
        let key = FlowKey::try_from(request)?;
        let answer = self.attestor.flow(key, record).await;
        if let Err(refusal) = &answer {
            tracing::debug!(local = %key.local, remote = %key.remote, %refusal, "not attested");
        }
        Ok(Response::new((&answer).into()))
    }

    async fn attest_process(
        &self,
        request: Request<wire::AttestProcessRequest>,
    ) -> Result<Response<wire::AttestResponse>, Status> {
        let request = request.into_inner();
        let named = self.named(&request.workload)?;
        let answer = self.attestor.asked(&who(request)?, named.as_ref()).await;
        Ok(Response::new((&answer).into()))
    }

    async fn fetch_svid(
        &self,
        request: Request<wire::FetchSvidRequest>,
    ) -> Result<Response<wire::FetchSvidResponse>, Status> {
        use wire::fetch_svid_response::Of;
        let answer = match Order::read(request.into_inner())? {
            Ok(order) => self.svid(order).await,
            Err(refusal) => Err(refusal),
        };
        let of = match &answer {
            Ok(svid) => Of::Svid(svid.clone()),
            Err(refusal) => Of::Refused(refusal.into()),
        };
        Ok(Response::new(wire::FetchSvidResponse { of: Some(of) }))
    }

    async fn watch_policy(
        &self,
        _: Request<wire::WatchPolicyRequest>,
    ) -> Result<Response<Self::WatchPolicyStream>, Status> {
        let file = self.policy.name().to_owned();
        let mut sent = None;
        let updates = WatchStream::new(self.policy.watch()).filter_map(move |state| {
            let new = newer(&sent, state)?;
            sent = Some(Arc::clone(&new));
            let sha256 = new.policy.digest().0.to_vec();
            Some(Ok(wire::PolicyUpdate { file: file.clone(), text: new.text.clone(), sha256 }))
        });
        Ok(Response::new(Box::pin(updates)))
    }

    async fn watch_bundle(
        &self,
        _: Request<wire::WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        let updates = WatchStream::new(self.authority.bundle()).filter_map(|bundle| bundle.map(Ok));
        Ok(Response::new(Box::pin(updates)))
    }

    async fn watch_lapses(
        &self,
        _: Request<wire::WatchLapsesRequest>,
    ) -> Result<Response<Self::WatchLapsesStream>, Status> {
        Ok(Response::new(Box::pin(self.lapses.listen().map(Ok))))
    }

    async fn reattest(
        &self,
        request: Request<wire::ReattestRequest>,
    ) -> Result<Response<wire::AttestResponse>, Status> {
        let wire::ReattestRequest { executions: named, sockets: known } = request.into_inner();
        let (executions, sockets) = (executions(named)?, sockets(known)?);
        let answer = match sockets.is_empty() {
            true => self.attestor.again(&executions).await,
            false => self.attestor.holders_again(&sockets).await,
        };
        Ok(Response::new((&answer).into()))
    }

    async fn watch_flows(
        &self,
        request: Request<wire::WatchFlowsRequest>,
    ) -> Result<Response<Self::WatchFlowsStream>, Status> {
        let flows =
            self.flows.as_ref().map_err(|why| Status::failed_precondition(format!("no flow is seen: {why}")))?;
        let wire::WatchFlowsRequest { connections, quiet } = request.into_inner();
        let told = flows.listen(Wish { connections, quiet }).await;
        let told = told.map_err(|why| Status::failed_precondition(format!("no flow is seen: {why}")))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(told).map(Ok))))
    }

    async fn list_pending(
        &self,
        _: Request<wire::ListPendingRequest>,
    ) -> Result<Response<wire::PendingDigests>, Status> {
        let loaded = self.policy.state().loaded;
        let pending = loaded.map(|loaded| self.attestor.newcomers().told(&loaded.policy)).unwrap_or_default();
        Ok(Response::new(wire::PendingDigests { pending }))
    }

    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::AttestationStatus>, Status> {
        let state = self.policy.state();
        Ok(Response::new(wire::AttestationStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: self.attestor.source().to_owned(),
            policy_file: self.policy.name().to_owned(),
            policy_version: state.loaded.as_ref().map_or(0, |loaded| loaded.version),
            policy_sha256: state.loaded.map(|l| l.policy.digest().0.to_vec()).unwrap_or_default(),
            policy_error: state.error.unwrap_or_default(),
            host: Some(self.attestor.witness().host().into()),
            ca_connected: self.authority.connected(),
            source_reason: self.attestor.source_reason().to_owned(),
            not_observed: self.flows.as_ref().map(|flows| not_observed(flows.sight())).unwrap_or_default(),
            attempts_only_counted: self.flows.as_ref().map(Observatory::attempts_only_counted).unwrap_or_default(),
        }))
    }
}

/// In words, what the kernel does not tell of.
fn not_observed(sight: Sight) -> Vec<String> {
    let kinds = [(sight.refused, "attempts that are refused here"), (sight.half_open, "half-open attempts")];
    kinds.into_iter().filter(|(seen, _)| !seen).map(|(_, kind)| kind.to_owned()).collect()
}

/// The policy, if it is another one than was sent last.
fn newer(sent: &Option<Arc<Loaded>>, state: State) -> Option<Arc<Loaded>> {
    let loaded = state.loaded?;
    match sent {
        Some(sent) if Arc::ptr_eq(sent, &loaded) => None,
        _ => Some(loaded),
    }
}
