//! An identityd that has a CA of its own and no opinion.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bonafide_proto::clock::Clock as _;
use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::wire::node::{self as wire, attestation_server};
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

use super::super::super::tunnel::testing::{LEAF_TTL, Mesh, at, leaf_params};

/// How certificates are issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Issues {
    Well,
    InAnothersName,
    FromAnotherRoot,
    ForAnotherKey,
    Nothing,
    Refusal,
}

/// How questions are answered.
#[derive(Debug, Clone)]
pub(super) enum Answers {
    With(Box<Result<Attestation, AttestRefusal>>),
    Nonsense,
    Never,
}

pub(super) struct Script {
    pub(super) mesh: Mesh,
    pub(super) issues: Mutex<Issues>,
    pub(super) answers: Mutex<Answers>,
    /// How questions about executions are answered that were attested before.
    pub(super) again: Mutex<Result<Attestation, AttestReason>>,
    /// How those are answered that name sockets, if not as all are.
    pub(super) by_sockets: Mutex<Option<Result<Attestation, AttestReason>>>,
    /// Questions about flows, and about executions.
    pub(super) asked: Mutex<Vec<wire::AttestFlowRequest>>,
    pub(super) asked_again: Mutex<Vec<wire::ReattestRequest>>,
    /// Answers about flows wait here for a permit, after they were made.
    pub(super) answer_gate: Semaphore,
    /// Answers about executions wait here for a permit.
    pub(super) again_gate: Semaphore,
    pub(super) lapses: broadcast::Sender<wire::Lapse>,
    /// Orders wait here for a permit while it is closed to them.
    pub(super) gate: Semaphore,
    pub(super) orders: AtomicUsize,
    pub(super) policy: watch::Sender<Option<wire::PolicyUpdate>>,
    pub(super) bundle: watch::Sender<Option<wire::Bundle>>,
}

/// A running identityd. It can be stopped, and started again behind the same socket.
pub(super) struct Fake {
    pub(super) socket: PathBuf,
    pub(super) script: Arc<Script>,
    runtime: Option<Runtime>,
    _dir: tempfile::TempDir,
}

impl std::ops::Deref for Fake {
    type Target = Script;
    fn deref(&self) -> &Script {
        &self.script
    }
}

impl Fake {
    pub(super) fn start() -> Self {
        let mut fake = Self::stopped();
        fake.resume();
        fake
    }

    pub(super) fn stopped() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mesh = Mesh::new("example.org");
        let bundle = bundle(&mesh);
        let script = Script {
            mesh,
            issues: Mutex::new(Issues::Well),
            answers: Mutex::new(Answers::With(Box::new(Ok(super::attestation(Some("shop/web")))))),
            again: Mutex::new(Ok(super::attestation(Some("shop/web")))),
            by_sockets: Mutex::default(),
            asked: Mutex::default(),
            asked_again: Mutex::default(),
            answer_gate: Semaphore::new(1_000_000),
            again_gate: Semaphore::new(1_000_000),
            lapses: broadcast::channel(64).0,
            gate: Semaphore::new(1_000_000),
            orders: AtomicUsize::new(0),
            policy: watch::channel(None).0,
            bundle: watch::channel(Some(bundle)).0,
        };
        Self { socket: dir.path().join("identityd.sock"), script: Arc::new(script), runtime: None, _dir: dir }
    }

    pub(super) fn resume(&mut self) {
        // A runtime of its own: stopping it drops every connection, as a kill would.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _inside = runtime.enter();
            bonafide_proto::endpoint::bind(&self.socket).unwrap()
        };
        let service = attestation_server::AttestationServer::new(Service(Arc::clone(&self.script)));
        let server = tonic::transport::Server::builder().add_service(service);
        runtime.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        self.runtime = Some(runtime);
    }

    pub(super) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // On a thread of its own, because it waits until every connection is gone.
            std::thread::spawn(move || runtime.shutdown_timeout(std::time::Duration::from_secs(5))).join().unwrap();
        }
    }

    pub(super) fn orders(&self) -> usize {
        self.script.orders.load(Ordering::SeqCst)
    }

    pub(super) fn asked(&self) -> usize {
        self.script.asked.lock().unwrap().len()
    }

    pub(super) fn asked_again(&self) -> usize {
        self.script.asked_again.lock().unwrap().len()
    }

    pub(super) fn again(&self, answer: Result<Attestation, AttestReason>) {
        *self.script.again.lock().unwrap() = answer;
    }

    /// Tells everybody who listens.
    pub(super) fn by_sockets(&self, answer: Option<Result<Attestation, AttestReason>>) {
        *self.by_sockets.lock().unwrap() = answer;
    }

    pub(super) fn lapse(&self, of: wire::lapse::Of) {
        let lapse = wire::Lapse { of: Some(of), reason: "generation-gone".into(), detail: "it ran another".into() };
        self.script.lapses.send(lapse).unwrap();
    }

    pub(super) fn issue(&self, how: Issues) {
        *self.script.issues.lock().unwrap() = how;
    }

    pub(super) fn answer(&self, how: Answers) {
        *self.script.answers.lock().unwrap() = how;
    }

    pub(super) fn set_policy(&self, text: &str) {
        let sha256 = Digest::of(text.as_bytes()).0.to_vec();
        let update = wire::PolicyUpdate { file: "policy.toml".to_owned(), text: text.to_owned(), sha256 };
        self.script.policy.send_replace(Some(update));
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(super) fn bundle(mesh: &Mesh) -> wire::Bundle {
    wire::Bundle {
        trust_domain: mesh.domain.clone(),
        roots: vec![mesh.root.to_vec()],
        node: "node-a".to_owned(),
        sequence: 1,
        quarantine: Vec::new(),
        revoked: None,
        jwt_keys: Vec::new(),
    }
}

struct Requested(Vec<u8>);

impl PublicKeyData for Requested {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl Script {
    fn issue(&self, request: &wire::FetchSvidRequest) -> wire::fetch_svid_response::Of {
        let how = *self.issues.lock().unwrap();
        if how == Issues::Refusal {
            let refusal = AttestRefusal::new(AttestReason::NotEntitled, "it earned another workload meanwhile");
            return wire::fetch_svid_response::Of::Refused((&refusal).into());
        }
        let (_, csr) = X509CertificationRequest::from_der(&request.csr).unwrap();
        csr.verify_signature().unwrap();
        let asked = Requested(csr.certification_request_info.subject_pki.subject_public_key.data.to_vec());
        let name = if how == Issues::InAnothersName { "shop/db" } else { request.workload.as_str() };
        let mut params = leaf_params(&self.mesh.domain, name);
        let now = self.mesh.hand.unix();
        (params.not_before, params.not_after) = (at(now - 60), at(now + LEAF_TTL));
        let chain = match how {
            Issues::FromAnotherRoot => Mesh::new(&self.mesh.domain).certify(&params, &asked),
            Issues::ForAnotherKey => self.mesh.shown(&params).chain,
            _ => self.mesh.certify(&params, &asked),
        };
        let chain = chain.iter().map(|c| c.to_vec()).collect();
        wire::fetch_svid_response::Of::Svid(wire::Svid { chain, not_before: now - 60, not_after: now + LEAF_TTL })
    }
}

struct Service(Arc<Script>);

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn updates<T: Clone + Send + Sync + 'static>(of: &watch::Sender<Option<T>>) -> Response<Updates<T>> {
    Response::new(Box::pin(WatchStream::new(of.subscribe()).filter_map(|update| update.map(Ok))))
}

#[tonic::async_trait]
impl attestation_server::Attestation for Service {
    type WatchPolicyStream = Updates<wire::PolicyUpdate>;
    type WatchBundleStream = Updates<wire::Bundle>;
    type WatchLapsesStream = Updates<wire::Lapse>;
    type WatchFlowsStream = Updates<wire::ObservedFlow>;

    async fn watch_lapses(
        &self,
        _: Request<wire::WatchLapsesRequest>,
    ) -> Result<Response<Self::WatchLapsesStream>, Status> {
        let ready = wire::Lapse { of: Some(wire::lapse::Of::Ready(true)), ..Default::default() };
        let lapses = BroadcastStream::new(self.0.lapses.subscribe()).map(|lapse| Ok(lapse.unwrap()));
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(ready)).chain(lapses))))
    }

    async fn watch_flows(
        &self,
        _: Request<wire::WatchFlowsRequest>,
    ) -> Result<Response<Self::WatchFlowsStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }

    async fn reattest(
        &self,
        request: Request<wire::ReattestRequest>,
    ) -> Result<Response<wire::AttestResponse>, Status> {
        let executions = request.get_ref().executions.clone();
        let names_sockets = !request.get_ref().sockets.is_empty();
        self.0.asked_again.lock().unwrap().push(request.into_inner());
        self.0.again_gate.acquire().await.unwrap().forget();
        let of_sockets = self.0.by_sockets.lock().unwrap().clone().filter(|_| names_sockets);
        let unchanged = of_sockets.is_none();
        let again = of_sockets.unwrap_or_else(|| self.0.again.lock().unwrap().clone());
        let again = again.map_err(|reason| AttestRefusal::new(reason, "as said"));
        let again = again.map(|now| {
            let asked = executions.into_iter().map(|e| e.try_into().unwrap()).collect();
            Attestation { executions: if unchanged { asked } else { now.executions.clone() }, ..now }
        });
        Ok(Response::new((&again).into()))
    }

    async fn attest_flow(
        &self,
        request: Request<wire::AttestFlowRequest>,
    ) -> Result<Response<wire::AttestResponse>, Status> {
        let answers = self.0.answers.lock().unwrap().clone();
        self.0.asked.lock().unwrap().push(request.into_inner());
        self.0.answer_gate.acquire().await.unwrap().forget();
        match answers {
            Answers::With(answer) => Ok(Response::new(answer.as_ref().into())),
            Answers::Nonsense => Ok(Response::new(wire::AttestResponse { of: None })),
            Answers::Never => std::future::pending().await,
        }
    }

    async fn list_pending(
        &self,
        _: Request<wire::ListPendingRequest>,
    ) -> Result<Response<wire::PendingDigests>, Status> {
        Ok(Response::new(wire::PendingDigests::default()))
    }

    async fn fetch_svid(
        &self,
        request: Request<wire::FetchSvidRequest>,
    ) -> Result<Response<wire::FetchSvidResponse>, Status> {
        self.0.orders.fetch_add(1, Ordering::SeqCst);
        self.0.gate.acquire().await.unwrap().forget();
        let empty = *self.0.issues.lock().unwrap() == Issues::Nothing;
        let of = (!empty).then(|| self.0.issue(request.get_ref()));
        Ok(Response::new(wire::FetchSvidResponse { of }))
    }

    async fn watch_policy(
        &self,
        _: Request<wire::WatchPolicyRequest>,
    ) -> Result<Response<Self::WatchPolicyStream>, Status> {
        Ok(updates(&self.0.policy))
    }

    async fn watch_bundle(
        &self,
        _: Request<wire::WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        Ok(updates(&self.0.bundle))
    }

    async fn attest_process(
        &self,
        _: Request<wire::AttestProcessRequest>,
    ) -> Result<Response<wire::AttestResponse>, Status> {
        Err(Status::unimplemented("not asked by the enforcer"))
    }

    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::AttestationStatus>, Status> {
        Err(Status::unimplemented("not asked by the enforcer"))
    }
}
