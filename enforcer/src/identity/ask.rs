//! Questions to identityd, each answered or refused in bounded time.

use std::time::Duration;

use bonafide_policy::POLICY_MAX;
use bonafide_proto::convert::{Attestation, Malformed};
use bonafide_proto::fingerprint::Execution;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::wire::node as wire;
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};
use wire::attestation_client::AttestationClient;

use super::About;

/// The longest an attestation may take.
pub(super) const ATTEST_PATIENCE: Duration = Duration::from_secs(5);
/// The longest a certificate may take: attestation again, and the CA.
pub(super) const ORDER_PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer that is read, in bytes: one carries the policy.
const ANSWER_MAX: usize = POLICY_MAX + (1 << 20);

type Client = AttestationClient<Channel>;

/// identityd, as the enforcer talks to it.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    client: Client,
}

/// What became of a question.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    /// The answer.
    pub(crate) result: Result<T, AttestRefusal>,
    /// Whether identityd was there: it answered, even if only that it cannot say, or it took too long to.
    pub(crate) reached: bool,
}

impl<T> Answer<T> {
    /// The same, of something else.
    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Answer<U> {
        Answer { result: self.result.map(change), reached: self.reached }
    }
}

/// Nobody can say.
pub(super) fn unavailable(detail: impl Into<String>) -> AttestRefusal {
    AttestRefusal::new(AttestReason::Unavailable, detail)
}

impl Daemon {
    pub(super) fn new(channel: Channel) -> Self {
        Self { client: AttestationClient::new(channel).max_decoding_message_size(ANSWER_MAX) }
    }

    /// Whose socket is it? With what the kernel wrote down when it connected, if it did.
    pub(super) async fn attest(&self, about: &About) -> Answer<Attestation> {
        let request = about.wire();
        let answer = twice(&self.client, move |mut daemon| {
            let request = request.clone();
            async move { daemon.attest_flow(request).await }
        });
        attested(within(ATTEST_PATIENCE, answer).await)
    }

    /// Who are these executions now, or whoever holds these sockets?
    pub(super) async fn reattest(&self, executions: &[Execution], sockets: &[About]) -> Answer<Attestation> {
        let executions = executions.iter().map(|e| (*e).into()).collect();
        let request = wire::ReattestRequest { executions, sockets: sockets.iter().map(About::wire).collect() };
        let answer = twice(&self.client, move |mut daemon| {
            let request = request.clone();
            async move { daemon.reattest(request).await }
        });
        attested(within(ATTEST_PATIENCE, answer).await)
    }

    /// A certificate chain, leaf first, as it came: nothing of it was checked.
    pub(super) async fn svid(
        &self,
        executions: &[Execution],
        workload: &WorkloadName,
        csr: Vec<u8>,
    ) -> Result<Vec<CertificateDer<'static>>, AttestRefusal> {
        use wire::fetch_svid_response::Of;
        let executions = executions.iter().map(|e| (*e).into()).collect();
        let request = wire::FetchSvidRequest { executions, workload: workload.to_string(), csr };
        let answer = twice(&self.client, move |mut daemon| {
            let request = request.clone();
            async move { daemon.fetch_svid(request).await }
        });
        match within(ORDER_PATIENCE, answer).await.result?.of {
            Some(Of::Svid(svid)) => Ok(svid.chain.into_iter().map(CertificateDer::from).collect()),
            Some(Of::Refused(refused)) => Err(refused.into()),
            None => Err(unavailable("identityd answered nothing")),
        }
    }

    pub(super) async fn watch_policy(mut self) -> Result<Streaming<wire::PolicyUpdate>, Status> {
        let request = wire::WatchPolicyRequest {};
        self.client.watch_policy(request).await.map(Response::into_inner)
    }

    pub(super) async fn watch_lapses(mut self) -> Result<Streaming<wire::Lapse>, Status> {
        let request = wire::WatchLapsesRequest {};
        self.client.watch_lapses(request).await.map(Response::into_inner)
    }

    pub(super) async fn watch_flows(
        mut self,
        connections: bool,
        quiet: bool,
    ) -> Result<Streaming<wire::ObservedFlow>, Status> {
        let request = wire::WatchFlowsRequest { connections, quiet };
        self.client.watch_flows(request).await.map(Response::into_inner)
    }

    pub(super) async fn watch_bundle(mut self) -> Result<Streaming<wire::Bundle>, Status> {
        let request = wire::WatchBundleRequest {};
        self.client.watch_bundle(request).await.map(Response::into_inner)
    }
}

fn attested(Answer { result, reached }: Answer<wire::AttestResponse>) -> Answer<Attestation> {
    let result = result
        .and_then(|answer| Result::try_from(answer).unwrap_or_else(|e: Malformed| Err(unavailable(e.to_string()))));
    Answer { result, reached }
}

/// Asks again where the connection broke: a restarted identityd is met with a connection to the one before.
async fn twice<T, F>(client: &Client, ask: impl Fn(Client) -> F) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let answer = match ask(client.clone()).await {
        Err(e) if matches!(e.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => ask(client.clone()).await,
        answer => answer,
    };
    answer.map(Response::into_inner)
}

async fn within<T>(patience: Duration, answer: impl Future<Output = Result<T, Status>>) -> Answer<T> {
    let (result, reached) = match timeout(patience, answer).await {
        Ok(Ok(answer)) => (Ok(answer), true),
        Ok(Err(e)) => (Err(unavailable(format!("identityd cannot be asked: {}", e.message()))), false),
        Err(_) => (Err(unavailable(format!("identityd did not answer within {} s", patience.as_secs()))), true),
    };
    Answer { result, reached }
}
