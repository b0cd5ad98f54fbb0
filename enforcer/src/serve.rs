//! What the enforcer answers to the operator: `Enforcement.Status`, on a unix socket, for root alone.

use std::sync::Arc;

use bonafide_proto::wire::node::enforcement_server::Enforcement;
use bonafide_proto::wire::node::{EnforcementStatus, StatusRequest};
use tonic::{Request, Response, Status};

use crate::capture::Backend;
use crate::flow::Node;
use crate::observe::observes;

/// Answers from the node's own counters.
#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) node: Arc<Node>,
    pub(crate) backend: Backend,
}

#[tonic::async_trait]
impl Enforcement for Operator {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<EnforcementStatus>, Status> {
        let policy = self.node.policy().ok();
        let observing = self.node.identity.sees_flows(policy.as_ref().is_some_and(|p| observes(p.mode())));
        let (flows, refused) = self.node.records.totals();
        Ok(Response::new(EnforcementStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: policy.as_ref().map_or("none", |p| p.mode().as_str()).to_owned(),
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
