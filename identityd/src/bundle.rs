//! The node's CA: leaves are asked of it, and its trust bundle is passed on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::endpoint;
use bonafide_proto::fingerprint::Fingerprint;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::revoked::Barred;
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::issuance_client::IssuanceClient;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::refuse::refuse;

/// How long a leaf may take.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits between attempts to reach the CA: doubled each time, so that its restart is noticed soon.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// What is in quarantine, or revoked.
pub(crate) type QuarantineInForce = watch::Receiver<Arc<Barred>>;

/// The node's CA as this daemon sees it.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    issuance: IssuanceClient<Channel>,
    socket: PathBuf,
    bundle: watch::Receiver<Option<wire::Bundle>>,
    quarantine: QuarantineInForce,
    connected: watch::Receiver<bool>,
}

impl Authority {
    /// Starts to follow the CA behind this socket, which may be away.
    pub(crate) fn follow(socket: PathBuf) -> Self {
        let issuance = IssuanceClient::new(endpoint::channel(socket.clone()));
        let (bundle_to, bundle) = watch::channel(None);
        let (quarantine_to, quarantine) = watch::channel(Arc::default());
        let (connected_to, connected) = watch::channel(false);
        let told = Told { bundle: bundle_to, quarantine: quarantine_to };
        tokio::spawn(follow(issuance.clone(), told, connected_to));
        Self { issuance, socket, bundle, quarantine, connected }
    }

    /// The last bundle it gave, and every later one.
    pub(crate) fn bundle(&self) -> watch::Receiver<Option<wire::Bundle>> {
        self.bundle.clone()
    }

    /// The digests in quarantine, and every change of them. None as long as the CA has told nothing.
    pub(crate) fn quarantine(&self) -> QuarantineInForce {
        self.quarantine.clone()
    }

    /// The way to it.
    pub(crate) fn issuance(&self) -> IssuanceClient<Channel> {
        self.issuance.clone()
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

impl Authority {
    /// A token for a program that earned a workload.
    ///
    /// # Errors
    /// The CA's own refusal, or `unavailable`, also while the authority is away.
    pub(crate) async fn issue_jwt(
        &self,
        workload: &WorkloadName,
        fingerprint: &Fingerprint,
        audiences: Vec<String>,
    ) -> Result<String, AttestRefusal> {
        use wire::issue_jwt_response::Of;
        let (workload, fingerprint) = (workload.to_string(), Some(fingerprint.into()));
        let request = wire::IssueJwtRequest { workload, fingerprint, audiences };
        let answer = tokio::time::timeout(ISSUE_TIMEOUT, self.issuance.clone().issue_jwt(request)).await;
        let away = |why: String| {
            refuse(AttestReason::Unavailable, format!("the CA at {} does not answer: {why}", self.socket.display()))
        };
        match answer.map(|r| r.map(|r| r.into_inner().of)) {
            Ok(Ok(Some(Of::Token(token)))) => Ok(token),
            Ok(Ok(Some(Of::Refused(refused)))) => Err(refused.into()),
            Ok(Ok(None)) => away("its answer is empty".to_owned()),
            Ok(Err(status)) => away(status.message().to_owned()),
            Err(_) => away(format!("not within {ISSUE_TIMEOUT:?}")),
        }
    }
}

/// Where the parts of a bundle go: a change of one is no change of the other.
struct Told {
    bundle: watch::Sender<Option<wire::Bundle>>,
    quarantine: watch::Sender<Arc<Barred>>,
}

impl Told {
    /// A bundle counts as a whole or not at all.
    fn take(&self, bundle: wire::Bundle) {
        let quarantine = wire::Quarantine { sha256: bundle.quarantine.clone(), revoked: bundle.revoked.clone() };
        match Barred::try_from(quarantine) {
            Ok(barred) => {
                self.quarantine.send_if_modified(|now| {
                    let differs = **now != barred;
                    if differs {
                        *now = Arc::new(barred);
                    }
                    differs
                });
                self.bundle.send_replace(Some(bundle));
            }
            Err(e) => tracing::error!(error = %e, "the CA told what is no quarantine; its last bundle stays in use"),
        }
    }
}

async fn follow(mut issuance: IssuanceClient<Channel>, told: Told, connected: watch::Sender<bool>) {
    let mut wait = BACK_OFF.0;
    loop {
        match issuance.watch_bundle(wire::WatchBundleRequest {}).await {
            Ok(stream) => {
                tracing::info!("the CA answers");
                wait = BACK_OFF.0;
                connected.send_replace(true);
                let ended = relay(stream.into_inner(), &told).await;
                connected.send_replace(false);
                tracing::warn!(why = ended, "the CA went away; its last bundle stays in use");
            }
            Err(status) => tracing::debug!(%status, "the CA does not answer"),
        }
        if told.bundle.is_closed() && connected.is_closed() {
            return;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(BACK_OFF.1);
    }
}

/// Passes bundles on until the CA goes away; why it did.
async fn relay(mut stream: tonic::Streaming<wire::Bundle>, told: &Told) -> String {
    loop {
        match stream.message().await {
            Ok(Some(bundle)) => told.take(bundle),
            Ok(None) => return "it closed the stream".to_owned(),
            Err(status) => return status.message().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bonafide_proto::fingerprint::Digest;

    use super::*;

    #[test]
    fn quarantine_and_trust_change_apart_and_a_malformed_bundle_changes_neither() {
        let (bundle, mut trust) = watch::channel(None);
        let (quarantine, mut digests) = watch::channel(Arc::default());
        let told = Told { bundle, quarantine };
        let of = |sequence, quarantine: &[Vec<u8>]| wire::Bundle {
            sequence,
            quarantine: quarantine.to_vec(),
            ..wire::Bundle::default()
        };
        told.take(of(1, &[vec![1; 32]]));
        assert!(trust.has_changed().unwrap() && digests.has_changed().unwrap());
        assert_eq!(**digests.borrow_and_update(), Barred::from([Digest([1; 32])]));
        trust.mark_unchanged();

        told.take(of(2, &[vec![1; 32]]));
        assert!(!digests.has_changed().unwrap());
        assert_eq!(trust.borrow_and_update().as_ref().unwrap().sequence, 2);

        told.take(of(3, &[vec![2; 31]]));
        assert!(!trust.has_changed().unwrap() && !digests.has_changed().unwrap());
    }
}
