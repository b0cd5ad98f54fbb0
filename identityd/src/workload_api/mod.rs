//! What programs ask for themselves: the SPIFFE Workload API and Envoy's SDS on a unix socket that is open to all.
//!
//! Nobody shows anything there; who asks is who can read the answer. Each connection is its caller's (`caller`, `door`):
//! every process that has the other end, found by the kernel's walk, and the execution that connected among them. It is
//! attested like any process and watched, and again for every message that is sent (`subscription`). What it is given is
//! made and certified once for all programs that are the same (`svids`).
//!
//! Reading order: [`serve`] wires; `service` is the Workload API itself, `x509` what its messages say; `sds` is the same for
//! Envoy.

mod authority;
mod caller;
mod door;
mod jwt;
mod sds;
mod service;
mod subscription;
mod svids;
mod trust;
mod x509;

use std::pin::Pin;
use std::sync::Arc;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::{Execution, Fingerprint};
use bonafide_proto::name::WorkloadName;
use bonafide_proto::refusal::AttestRefusal;
use bonafide_proto::wire::workload_endpoint::DESCRIPTORS;
use tokio::net::UnixListener;

pub(crate) use self::caller::Caller;
use self::jwt::Tokens;
use self::sds::Sds;
use self::service::WorkloadApi;
use self::subscription::Subscriptions;
use self::svids::Svids;
use crate::bundle::Authority;
use crate::execs::Execs;
use crate::in_force::InForce;
use crate::lapse::Lapses;

/// Requests of one connection that are under way at once: Envoy has one for each secret that it follows.
const STREAMS_MAX: u32 = 1024;

/// What a caller has earned, and who it is.
#[derive(Debug, Clone)]
pub(crate) struct Entitled {
    /// Its name.
    pub(crate) workload: WorkloadName,
    /// What earned it.
    pub(crate) fingerprint: Fingerprint,
    /// Every process that can read the answer.
    pub(crate) executions: Vec<Execution>,
}

/// What a caller is entitled to, sooner or later.
pub(crate) type Entitlement<'c> = Pin<Box<dyn Future<Output = Result<Entitled, AttestRefusal>> + Send + 'c>>;

/// Attests callers.
pub(crate) trait Entitles: std::fmt::Debug + Send + Sync {
    /// As it is now.
    ///
    /// # Errors
    /// `not-entitled`, or any doubt, by name.
    fn entitled<'c>(&'c self, caller: &'c Caller) -> Entitlement<'c>;
}

/// What it takes to answer.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Who attests callers.
    pub(crate) attests: Arc<dyn Entitles>,
    /// Who knows what was executed.
    pub(crate) execs: Arc<dyn Execs>,
    /// Who certifies.
    pub(crate) authority: Authority,
    /// A new policy may entitle to something else.
    pub(crate) policy: InForce,
    /// Who attests tells here what is no longer so.
    pub(crate) lapses: Lapses,
    /// The time by which certificates are judged and renewed.
    pub(crate) clock: SharedClock,
}

/// Answers at this socket until the server fails.
///
/// # Errors
/// It failed.
pub(crate) async fn serve(listener: UnixListener, parts: Parts) -> Result<(), tonic::transport::Error> {
    let Parts { attests, execs, authority, policy, lapses, clock } = parts;
    let svids = Svids::new(authority.clone(), Arc::clone(&clock));
    let tokens = Tokens::new(authority.clone(), Arc::clone(&clock));
    let subscriptions = Subscriptions::new(attests, authority, policy, lapses, svids, clock.clone());
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("SpiffeWorkloadAPI", tonic_health::ServingStatus::Serving).await;
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mut server = tonic::transport::Server::builder().max_concurrent_streams(STREAMS_MAX);
    server
        .add_service(WorkloadApi::server(subscriptions.clone(), tokens, clock))
        .add_service(Sds::server(subscriptions))
        .add_service(health_service)
        .add_optional_service(described().build_v1().ok())
        .add_optional_service(described().build_v1alpha().ok())
        .serve_with_incoming(door::admit(listener, execs))
        .await
}
