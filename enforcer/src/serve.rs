//! What the enforcer answers to the operator: `Enforcement.Status`, on a unix socket, for root alone.

use std::sync::Arc;

use bonafide_policy::{Mode, Policy};
use bonafide_proto::wire::node::enforcement_server::Enforcement;
use bonafide_proto::wire::node::{EnforcementStatus, HistoryPage, HistoryRequest, StatusRequest};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::capture::Backend;
use crate::flow::Node;
use crate::history::{History, Span};
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

/// The most edges of one page.
const PAGE: usize = 256;
/// Pages on their way.
const PAGES: usize = 4;

/// Reads the history page by page, as fast as they are taken.
fn pages(history: &History, span: Span, to: &mpsc::Sender<Result<HistoryPage, Status>>) {
    let mut page = HistoryPage::default();
    let read = history.read(span, |count| {
        page.edges.extend(serde_json::to_vec(&count).ok());
        page.edges.len() < PAGE || to.blocking_send(Ok(std::mem::take(&mut page))).is_ok()
    });
    let last = read.map_err(|e| Status::internal(e.to_string())).map(|kept| HistoryPage {
        left_out: kept.left_out,
        damaged: u32::try_from(kept.damaged).unwrap_or(u32::MAX),
        ..page
    });
    // Whoever asked may be gone.
    let _ = to.blocking_send(last);
}

#[tonic::async_trait]
impl Enforcement for Operator {
    type HistoryStream = ReceiverStream<Result<HistoryPage, Status>>;

    async fn history(&self, request: Request<HistoryRequest>) -> Result<Response<Self::HistoryStream>, Status> {
        let HistoryRequest { since, until, by_hour } = request.into_inner();
        let until = if until == 0 { i64::MAX } else { until };
        let history = self.node.records.history().cloned();
        let history = history.ok_or_else(|| Status::unavailable("there is no history; the enforcer's log says why"))?;
        let (to, answer) = mpsc::channel(PAGES);
        tokio::task::spawn_blocking(move || pages(&history, Span { since, until, by_hour }, &to));
        Ok(Response::new(ReceiverStream::new(answer)))
    }

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
            trust_domain: self.node.trust_domain().map(|domain| domain.to_string()).unwrap_or_default(),
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
