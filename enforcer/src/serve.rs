//! What the enforcer answers to the operator: `Enforcement.Status`, on a unix socket, for root alone.

use std::sync::Arc;

use bonafide_policy::{Mode, Policy};
use bonafide_proto::wire::node::enforcement_server::Enforcement;
use bonafide_proto::wire::node::{EnforcementStatus, StatusRequest};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::capture::Backend;
use crate::flow::Node;
use crate::observe::observes;

/// Answers from the node's own counters.
#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) node: Arc<Node>,
    pub(crate) backend: Backend,
    /// The mode of the capture rules that are in place.
    pub(crate) captures: watch::Receiver<Option<Mode>>,
}

/// The policy, once the capture rules that are in place are those of its mode: before, connections pass it by.
fn in_force(policy: Option<Arc<Policy>>, captures: Option<Mode>) -> Option<Arc<Policy>> {
    policy.filter(|policy| captures == Some(policy.mode()))
}

#[tonic::async_trait]
impl Enforcement for Operator {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<EnforcementStatus>, Status> {
        let captures = *self.captures.borrow();
        let policy = in_force(self.node.policy().ok(), captures);
        let observing = self.node.identity.sees_flows(captures.is_some_and(observes));
        let (flows, refused) = self.node.records.totals();
        Ok(Response::new(EnforcementStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: captures.map_or("none", Mode::as_str).to_owned(),
            backend: self.backend.as_str().to_owned(),
            policy_sha256: policy.map(|p| p.digest().0.to_vec()).unwrap_or_default(),
            live_flows: self.node.live.len() as u64,
            flows,
            refused,
            records: self.node.records.path().display().to_string(),
            observing,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_in_force_once_the_rules_of_its_mode_are_in_place() {
        let policy = Arc::new(Policy::parse("p.toml", "mode = 'enforce'").unwrap());
        let said = |captures| in_force(Some(Arc::clone(&policy)), captures).is_some();
        assert!(!said(None) && !said(Some(Mode::Shadow)) && said(Some(Mode::Enforce)));
        assert!(in_force(None, Some(Mode::Enforce)).is_none());
    }
}
