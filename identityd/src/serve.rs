//! The service `Attestation`: wire messages in, wire messages out, the story in between is [`Attestor`]'s.

use std::pin::Pin;
use std::sync::Arc;

use bonafide_proto::convert::Malformed;
use bonafide_proto::fingerprint::Execution;
use bonafide_proto::flow::FlowKey;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::attestation_server::Attestation;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::attest::Attestor;
use crate::bundle::Authority;
use crate::policy_file::{InForce, Loaded, State};
use crate::refuse::refuse;
use crate::source::{HOLDERS_MAX, SocketSource};

/// The largest certificate request, in bytes.
const CSR_MAX: usize = 4 << 10;

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers the enforcer and root.
#[derive(Debug)]
pub(crate) struct Service<S> {
    attestor: Attestor<S>,
    policy: InForce,
    authority: Authority,
}

impl<S: SocketSource> Service<S> {
    /// A service of these parts.
    pub(crate) fn new(attestor: Attestor<S>, policy: InForce, authority: Authority) -> Self {
        Self { attestor, policy, authority }
    }

    /// The workload that a question names, if it names one.
    fn named(&self, name: &str) -> Result<Option<WorkloadName>, Status> {
        if name.is_empty() {
            return Ok(None);
        }
        let name: WorkloadName = name.parse().map_err(|e| Malformed(format!("workload name {e}")))?;
        match self.policy.state().loaded {
            Some(loaded) if !loaded.policy.knows(&name) => {
                let file = self.policy.file().display();
                Err(Status::not_found(format!("the policy {file} has no workload {name}")))
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
        if request.executions.is_empty() || request.executions.len() > HOLDERS_MAX {
            return Err(Malformed(format!("{} executions; 1 to {HOLDERS_MAX} are read", request.executions.len())));
        }
        let executions = request.executions.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        let workload = request.workload.parse().map_err(|e| Malformed(format!("workload name {e}")))?;
        Ok(Ok(Self { executions, workload, csr: request.csr }))
    }
}

#[tonic::async_trait]
impl<S: SocketSource> Attestation for Service<S> {
    type WatchPolicyStream = Updates<wire::PolicyUpdate>;
    type WatchBundleStream = Updates<wire::Bundle>;

    async fn attest_flow(
        &self,
        request: Request<wire::AttestFlowRequest>,
    ) -> Result<Response<wire::AttestResponse>, Status> {
        let key = FlowKey::try_from(request.into_inner())?;
        let answer = self.attestor.flow(key).await;
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
        let answer = self.attestor.process(request.pid, named.as_ref()).await;
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
        let file = self.policy.file().display().to_string();
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

    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::AttestationStatus>, Status> {
        let state = self.policy.state();
        Ok(Response::new(wire::AttestationStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: self.attestor.source().to_owned(),
            policy_file: self.policy.file().display().to_string(),
            policy_sha256: state.loaded.map(|l| l.policy.digest().0.to_vec()).unwrap_or_default(),
            policy_error: state.error.unwrap_or_default(),
            host: Some(self.attestor.witness().host().into()),
            ca_connected: self.authority.connected(),
        }))
    }
}

/// The policy, if it is another one than was sent last.
fn newer(sent: &Option<Arc<Loaded>>, state: State) -> Option<Arc<Loaded>> {
    let loaded = state.loaded?;
    match sent {
        Some(sent) if Arc::ptr_eq(sent, &loaded) => None,
        _ => Some(loaded),
    }
}
