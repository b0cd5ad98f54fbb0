//! The node's CA: leaves are asked of it, and its trust bundle is passed on.

use std::path::PathBuf;
use std::time::Duration;

use bonafide_proto::endpoint;
use bonafide_proto::fingerprint::Fingerprint;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::issuance_client::IssuanceClient;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::refuse::refuse;

/// How long a leaf may take.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits between attempts to reach the CA: doubled each time, so that its restart is noticed soon.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// The node's CA as this daemon sees it.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    issuance: IssuanceClient<Channel>,
    socket: PathBuf,
    bundle: watch::Receiver<Option<wire::Bundle>>,
    connected: watch::Receiver<bool>,
}

impl Authority {
    /// Starts to follow the CA behind this socket, which may be away.
    pub(crate) fn follow(socket: PathBuf) -> Self {
        let issuance = IssuanceClient::new(endpoint::channel(socket.clone()));
        let (bundle_to, bundle) = watch::channel(None);
        let (connected_to, connected) = watch::channel(false);
        tokio::spawn(follow(issuance.clone(), bundle_to, connected_to));
        Self { issuance, socket, bundle, connected }
    }

    /// The last bundle it gave, and every later one.
    pub(crate) fn bundle(&self) -> watch::Receiver<Option<wire::Bundle>> {
        self.bundle.clone()
    }

    /// Whether it answers now.
    pub(crate) fn connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// A certificate for a program that earned a workload.
    ///
    /// # Errors
    /// The CA's own refusal, or `unavailable`.
    pub(crate) async fn issue(
        &self,
        workload: &WorkloadName,
        fingerprint: &Fingerprint,
        csr: Vec<u8>,
    ) -> Result<wire::Svid, AttestRefusal> {
        use wire::issue_leaf_response::Of;
        let request =
            wire::IssueLeafRequest { workload: workload.to_string(), fingerprint: Some(fingerprint.into()), csr };
        let away = |why: String| format!("the CA at {} does not answer: {why}", self.socket.display());
        let answer = tokio::time::timeout(ISSUE_TIMEOUT, self.issuance.clone().issue_leaf(request)).await;
        match answer.map(|r| r.map(|r| r.into_inner().of)) {
            Ok(Ok(Some(Of::Svid(svid)))) => Ok(svid),
            Ok(Ok(Some(Of::Refused(refused)))) => Err(refused.into()),
            Ok(Ok(None)) => refuse(AttestReason::Unavailable, away("its answer is empty".to_owned())),
            Ok(Err(status)) => refuse(AttestReason::Unavailable, away(status.message().to_owned())),
            Err(_) => refuse(AttestReason::Unavailable, away(format!("not within {ISSUE_TIMEOUT:?}"))),
        }
    }
}

async fn follow(
    mut issuance: IssuanceClient<Channel>,
    bundle: watch::Sender<Option<wire::Bundle>>,
    connected: watch::Sender<bool>,
) {
    let mut wait = BACK_OFF.0;
    loop {
        match issuance.watch_bundle(wire::WatchBundleRequest {}).await {
            Ok(stream) => {
                tracing::info!("the CA answers");
                wait = BACK_OFF.0;
                connected.send_replace(true);
                let ended = relay(stream.into_inner(), &bundle).await;
                connected.send_replace(false);
                tracing::warn!(why = ended, "the CA went away; its last bundle stays in use");
            }
            Err(status) => tracing::debug!(%status, "the CA does not answer"),
        }
        if bundle.is_closed() && connected.is_closed() {
            return;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(BACK_OFF.1);
    }
}

/// Passes bundles on until the CA goes away; why it did.
async fn relay(mut stream: tonic::Streaming<wire::Bundle>, to: &watch::Sender<Option<wire::Bundle>>) -> String {
    loop {
        match stream.message().await {
            Ok(Some(bundle)) => {
                to.send_replace(Some(bundle));
            }
            Ok(None) => return "it closed the stream".to_owned(),
            Err(status) => return status.message().to_owned(),
        }
    }
}
