//! The client of identityd: who is behind a socket, the certificate that program has earned, the policy and the trust.
//!
//! Nothing here decides who anybody is. What identityd cannot answer in time is a refusal; the policy and the trust
//! it sent last stay in force while it is away, and leaves already issued are good until they expire.

mod ask;
mod leaves;
mod order;
#[cfg(test)]
mod tests;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;

use bonafide_policy::Policy;
use bonafide_proto::clock::SharedClock;
use bonafide_proto::convert::Attestation;
use bonafide_proto::endpoint;
use bonafide_proto::flow::FlowKey;
use bonafide_proto::name::NodeName;
use bonafide_proto::refusal::AttestRefusal;
use tokio::sync::watch::{Receiver, channel};
use tokio::task::JoinSet;

use crate::tunnel::{Leaf, Trust};
use ask::Daemon;
use leaves::Leaves;
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

#[derive(Debug)]
struct Shared {
    daemon: Daemon,
    leaves: Leaves,
    policy: PolicyInForce,
    trust: TrustInForce,
    /// Ended with the last clone.
    _watching: JoinSet<()>,
}

impl Identity {
    /// A client of the identityd behind `socket`, which need not be there yet. Must be called inside a tokio runtime.
    #[must_use]
    pub fn connect(socket: PathBuf, clock: SharedClock) -> Self {
        let daemon = Daemon::new(endpoint::channel(socket));
        let (policy_in, policy) = channel(None);
        let (trust_in, trust) = channel(None);
        let mut watching = JoinSet::new();
        watching.spawn(watch::policy(daemon.clone(), policy_in));
        watching.spawn(watch::trust(daemon.clone(), Arc::clone(&clock), trust_in));
        let leaves = Leaves::new(daemon.clone(), trust.clone(), clock);
        Self { shared: Arc::new(Shared { daemon, leaves, policy, trust, _watching: watching }) }
    }

    /// Asks who is behind a socket. Answers within 2 s.
    ///
    /// # Errors
    /// identityd's refusal; [`AttestReason::Unavailable`](bonafide_proto::refusal::AttestReason) if there is no answer.
    pub async fn attest(&self, key: FlowKey) -> Result<Attestation, AttestRefusal> {
        self.shared.daemon.attest(key).await
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
