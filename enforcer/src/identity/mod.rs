//! The client of identityd: who is behind a socket, the certificate that program has earned, the policy and the trust.
//!
//! Nothing here decides who anybody is. What identityd cannot answer in time is a refusal; the policy and the trust
//! it sent last stay in force while it is away, and leaves already issued are good until they expire. What it answered
//! about a program is remembered only as long as it tells what lapses.

mod ask;
mod flows;
mod kernel_map;
mod lapse;
mod lapses;
mod leaves;
mod memory;
mod order;
#[cfg(test)]
mod tests;
mod watch;

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use bonafide_policy::Policy;
use bonafide_proto::clock::SharedClock;
use bonafide_proto::convert::Attestation;
use bonafide_proto::endpoint;
use bonafide_proto::fingerprint::Execution;
use bonafide_proto::flow::FlowKey;
use bonafide_proto::kernel::ConnectRecord;
use bonafide_proto::name::NodeName;
use bonafide_proto::observed::ObservedFlow;
use bonafide_proto::refusal::AttestRefusal;
use bonafide_proto::wire::node as wire;
use tokio::sync::watch::{Receiver, channel};
use tokio::task::JoinSet;

use crate::tunnel::{Leaf, Trust};
pub(crate) use ask::Answer;
use ask::Daemon;
use kernel_map::KernelMap;
pub(crate) use lapse::{Lapse, Lapsed, Process, Quarantine, Socket};
use lapses::Heard;
use leaves::Leaves;
pub(crate) use memory::{AsOf, Memory};
use order::Order;

/// The trust this node was given, and its name in it.
#[derive(Debug, Clone)]
pub struct NodeTrust {
    /// Whom to trust.
    pub trust: Trust,
    /// The name under which this node was admitted.
    pub node: NodeName,
}

/// The newest policy; `None` until the first has come.
pub type PolicyInForce = Receiver<Option<Arc<Policy>>>;
/// The newest trust; `None` until the first has come.
pub type TrustInForce = Receiver<Option<Arc<NodeTrust>>>;

/// A connection to identityd that mends itself. Clones share it, and what was learned through it.
#[derive(Debug, Clone)]
pub struct Identity {
    shared: Arc<Shared>,
}

/// Who is behind a socket, as identityd answered.
#[derive(Debug, Clone)]
pub struct Attested {
    /// The evidence, and what it earned.
    pub attestation: Arc<Attestation>,
    /// When it was asked: what lapsed since then may concern it.
    pub(crate) as_of: AsOf,
    /// What was asked.
    pub(crate) about: About,
}

/// The most sockets that may be asked about at once.
pub(crate) const SOCKETS_MAX: usize = 512;
/// Executions that can be asked about at once.
pub(crate) const HOLDERS_MAX: usize = 512;

/// A socket that was asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct About {
    /// The program's socket, or for a listener the one that it will accept.
    pub(crate) key: FlowKey,
    /// What the kernel wrote down when it connected.
    pub(crate) record: Option<ConnectRecord>,
}

impl About {
    /// The question, as it is put.
    fn wire(&self) -> wire::AttestFlowRequest {
        let kernel = self.record.map(|record| record.to_bytes().to_vec()).unwrap_or_default();
        wire::AttestFlowRequest { kernel, ..self.key.into() }
    }

    /// A socket without a record.
    pub(crate) fn key(key: FlowKey) -> Self {
        Self { key, record: None }
    }
}

#[derive(Debug)]
struct Shared {
    daemon: Daemon,
    kernel: KernelMap,
    memory: Arc<Memory>,
    quarantine: Receiver<Arc<Quarantine>>,
    leaves: Leaves,
    seen: flows::Seen,
    policy: PolicyInForce,
    trust: TrustInForce,
    /// Ended with the last clone.
    _watching: JoinSet<()>,
}

impl Identity {
    /// A client of the identityd behind `socket`, which need not be there yet. Must be called inside a tokio runtime.
    #[must_use]
    pub fn connect(socket: PathBuf, clock: SharedClock) -> Self {
        let (kernel, fetching) = kernel_map::beside(&socket);
        let daemon = Daemon::new(endpoint::channel(socket));
        let memory = Arc::new(Memory::default());
        let (policy_in, policy) = channel(None);
        let (trust_in, trust) = channel(None);
        let (heard, quarantine) = Heard::channel();
        let mut watching = JoinSet::new();
        watching.spawn(fetching.run());
        watching.spawn(lapses::lapses(daemon.clone(), Arc::clone(&memory), Arc::clone(&heard)));
        watching.spawn(watch::policy(daemon.clone(), Arc::clone(&memory), Arc::clone(&clock), policy_in));
        watching.spawn(watch::trust(daemon.clone(), Arc::clone(&clock), heard, trust_in));
        let leaves = Leaves::new(daemon.clone(), trust.clone(), quarantine.clone(), clock);
        let seen = flows::Seen::default();
        let shared = Shared { daemon, kernel, memory, quarantine, leaves, seen, policy, trust, _watching: watching };
        Self { shared: Arc::new(shared) }
    }

    /// Who connected this accepted socket? A program that was attested before is known by the kernel's record of it.
    ///
    /// # Errors
    /// As [`Identity::attest`].
    pub async fn attest_accepted(&self, accepted: &impl AsRawFd, key: FlowKey) -> Result<Attested, AttestRefusal> {
        let record = self.shared.kernel.record(accepted).await;
        self.attest_recorded(About { key, record }).await
    }

    async fn attest_recorded(&self, about: About) -> Result<Attested, AttestRefusal> {
        let (as_of, remembered) = self.shared.memory.recall(about.record.as_ref());
        match remembered {
            Some(attestation) => Ok(Attested { attestation, as_of, about }),
            None => self.ask(about).await,
        }
    }

    /// Asks who is behind a socket. Answers in bounded time.
    ///
    /// # Errors
    /// identityd's refusal; [`AttestReason::Unavailable`](bonafide_proto::refusal::AttestReason) if there is no answer.
    pub async fn attest(&self, key: FlowKey) -> Result<Attested, AttestRefusal> {
        self.ask(About::key(key)).await
    }

    /// Asks whose socket that is now.
    ///
    /// # Errors
    /// As [`Identity::attest`].
    pub(crate) async fn ask(&self, about: About) -> Result<Attested, AttestRefusal> {
        self.asked(about).await.result
    }

    /// The same, and whether identityd was there.
    pub(crate) async fn asked(&self, about: About) -> Answer<Attested> {
        let Shared { daemon, memory, .. } = &*self.shared;
        let (as_of, record) = (memory.as_of(), about.record.as_ref());
        let answer = daemon.attest(&about).await.map(Arc::new);
        if let Ok(attestation) = &answer.result {
            memory.remember(as_of, record, attestation);
        }
        answer.map(|attestation| Attested { attestation, as_of, about })
    }

    /// Who are these executions now, that were attested before? Those that ended are left out. With sockets: who holds
    /// those by now? At most [`SOCKETS_MAX`] of them.
    ///
    /// # Errors
    /// As [`Identity::attest`]; `process-gone` if nobody is left.
    pub(crate) async fn reattest(&self, executions: &[Execution], sockets: &[About]) -> Answer<Arc<Attestation>> {
        self.shared.daemon.reattest(executions, sockets).await.map(Arc::new)
    }

    /// Takes every flow that nobody stands in, when it is over; for ever.
    pub(crate) async fn watch_flows(self, take: impl Fn(ObservedFlow)) {
        flows::follow(self.shared.daemon.clone(), &self.shared.seen, take).await;
    }

    /// Has connections among those flows as long as the wish is true; for ever.
    pub(crate) async fn wish_for_connections(self, wishes: Receiver<bool>) {
        flows::wish(self.shared.daemon.clone(), &self.shared.seen, wishes).await;
    }

    /// Whether flows that are not captured are seen; with connections, if those are not captured either.
    pub(crate) fn sees_flows(&self, connections: bool) -> bool {
        self.shared.seen.all(connections)
    }

    /// What is known of lapses.
    pub(crate) fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.shared.memory)
    }

    /// What is in quarantine, or revoked, now.
    pub(crate) fn quarantined(&self) -> Arc<Quarantine> {
        Arc::clone(&self.shared.quarantine.borrow())
    }

    /// What is in quarantine, or revoked, as it changes.
    pub(crate) fn quarantine(&self) -> Receiver<Arc<Quarantine>> {
        self.shared.quarantine.clone()
    }

    /// The certificate of an attested program: from the cache, or ordered for a key made for it.
    ///
    /// # Errors
    /// The program has earned no workload; the refusal of identityd or the CA; or what came back is not fit to be shown.
    pub async fn leaf(&self, of: &Attestation) -> Result<Arc<Leaf>, AttestRefusal> {
        self.shared.leaves.leaf(Order::new(of)?).await
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> PolicyInForce {
        self.shared.policy.clone()
    }

    /// The trust in force.
    #[must_use]
    pub fn trust(&self) -> TrustInForce {
        self.shared.trust.clone()
    }
}
