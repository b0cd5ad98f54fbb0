//! Certificates: asked of the CA only for executions that still earn the workload.

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bonafide_proto::endpoint;
use bonafide_proto::fingerprint::{Execution, Fingerprint};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::issuance_server::{Issuance, IssuanceServer};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::node::{Node, PATIENCE, own_exe};

/// The far side of the CA's socket: it notes what it is asked and hands out bytes.
#[derive(Clone)]
pub(crate) struct Notary {
    asked: Arc<Mutex<Vec<wire::IssueLeafRequest>>>,
    /// The digests in quarantine.
    pub(crate) quarantine: watch::Sender<Vec<Vec<u8>>>,
    /// The signed policy; empty: none.
    pub(crate) policy: watch::Sender<Vec<u8>>,
    /// What the daemon says that it has in force.
    pub(crate) in_force: watch::Sender<wire::PolicyInForce>,
    /// The root certificates.
    pub(crate) roots: Vec<Vec<u8>>,
}

impl Default for Notary {
    fn default() -> Self {
        Self {
            asked: Arc::default(),
            quarantine: watch::Sender::new(Vec::new()),
            policy: watch::Sender::default(),
            in_force: watch::Sender::default(),
            roots: vec![b"root".to_vec()],
        }
    }
}

type Bundles = Pin<Box<dyn Stream<Item = Result<wire::Bundle, Status>> + Send>>;

fn bundle(roots: Vec<Vec<u8>>, quarantine: Vec<Vec<u8>>) -> wire::Bundle {
    let trust_domain = "example.org".into();
    wire::Bundle { trust_domain, roots, node: "a".into(), sequence: 7, quarantine, revoked: None, jwt_keys: Vec::new() }
}

#[tonic::async_trait]
impl Issuance for Notary {
    type WatchBundleStream = Bundles;

    async fn issue_leaf(
        &self,
        request: Request<wire::IssueLeafRequest>,
    ) -> Result<Response<wire::IssueLeafResponse>, Status> {
        self.asked.lock().unwrap().push(request.into_inner());
        let svid = wire::Svid { chain: vec![b"leaf".to_vec()], not_before: 1, not_after: 2 };
        Ok(Response::new(wire::IssueLeafResponse { of: Some(wire::issue_leaf_response::Of::Svid(svid)) }))
    }

    async fn watch_bundle(&self, _: Request<wire::WatchBundleRequest>) -> Result<Response<Bundles>, Status> {
        let quarantines = WatchStream::new(self.quarantine.subscribe());
        let roots = self.roots.clone();
        Ok(Response::new(Box::pin(quarantines.map(move |quarantine| Ok(bundle(roots.clone(), quarantine))))))
    }

    type FollowPolicyStream = Pin<Box<dyn Stream<Item = Result<wire::PolicyTold, Status>> + Send>>;

    async fn follow_policy(
        &self,
        request: Request<Streaming<wire::PolicyInForce>>,
    ) -> Result<Response<Self::FollowPolicyStream>, Status> {
        let (mut says, heard) = (request.into_inner(), self.in_force.clone());
        tokio::spawn(async move {
            while let Ok(Some(said)) = says.message().await {
                heard.send_replace(said);
            }
        });
        let told = WatchStream::new(self.policy.subscribe()).filter(|signed| !signed.is_empty());
        Ok(Response::new(Box::pin(told.map(|signed| Ok(wire::PolicyTold { signed })))))
    }

    type ShareFlowsStream = Pin<Box<dyn Stream<Item = Result<wire::FlowHalf, Status>> + Send>>;

    async fn share_flows(
        &self,
        _: Request<Streaming<wire::FlowHalf>>,
    ) -> Result<Response<Self::ShareFlowsStream>, Status> {
        Err(Status::unavailable("there are no other nodes"))
    }

    async fn show_audit(&self, _: Request<wire::ShowAuditRequest>) -> Result<Response<wire::AuditPage>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    async fn issue_jwt(&self, _: Request<wire::IssueJwtRequest>) -> Result<Response<wire::IssueJwtResponse>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::IssuanceStatus>, Status> {
        Err(Status::unimplemented("not asked"))
    }
}

pub(crate) fn serve(notary: &Notary, socket: &Path) -> JoinHandle<()> {
    let listener = endpoint::bind(socket).unwrap();
    let server = tonic::transport::Server::builder().add_service(IssuanceServer::new(notary.clone()));
    tokio::spawn(async move { server.serve_with_incoming(endpoint::admit(listener, vec![0])).await.unwrap() })
}

async fn node() -> Node {
    let policy = format!("mode = \"enforce\"\n[[workload]]\nname = \"test/own\"\nexe = \"{}\"\n", own_exe());
    Node::start(&policy).await
}

async fn fetch(node: &Node, executions: Vec<Execution>, workload: &str) -> Result<wire::Svid, AttestRefusal> {
    let executions = executions.into_iter().map(Into::into).collect();
    let request = wire::FetchSvidRequest { executions, workload: workload.into(), csr: b"csr".to_vec() };
    match node.client.clone().fetch_svid(request).await.unwrap().into_inner().of.unwrap() {
        wire::fetch_svid_response::Of::Svid(svid) => Ok(svid),
        wire::fetch_svid_response::Of::Refused(refused) => Err(refused.into()),
    }
}

#[tokio::test]
async fn a_certificate_is_for_the_workload_that_is_earned_now() {
    let node = node().await;
    let notary = Notary::default();
    let _serving = serve(&notary, &node.path("ca.sock"));
    let attested = node.process(std::process::id()).await.unwrap();
    let own = attested.executions.clone();

    assert_eq!(fetch(&node, own.clone(), "test/own").await.unwrap().chain, [b"leaf"]);
    let asked = notary.asked.lock().unwrap().pop().unwrap();
    assert_eq!((asked.workload.as_str(), asked.csr.as_slice()), ("test/own", b"csr".as_slice()));
    assert_eq!(Fingerprint::try_from(asked.fingerprint).unwrap(), attested.fingerprint);

    let reason = |r: Result<wire::Svid, AttestRefusal>| r.unwrap_err().reason;
    assert_eq!(reason(fetch(&node, own.clone(), "test/other").await), AttestReason::NotEntitled);
    let later = Execution { start_ticks: own[0].start_ticks + 1, ..own[0] };
    assert_eq!(reason(fetch(&node, vec![later], "test/own").await), AttestReason::ProcessGone);
    let parent = node.process(std::os::unix::process::parent_id()).await.unwrap().executions;
    let mixed = [own, parent].concat();
    assert_eq!(reason(fetch(&node, mixed, "test/own").await), AttestReason::TwoPrograms);
    assert!(notary.asked.lock().unwrap().is_empty(), "the CA was not even asked");
}

#[tokio::test]
async fn a_ca_that_is_away_is_unavailable_and_found_again() {
    let node = node().await;
    let own = node.process(std::process::id()).await.unwrap().executions;
    let refusal = fetch(&node, own.clone(), "test/own").await.unwrap_err();
    assert_eq!(refusal.reason, AttestReason::Unavailable);
    assert!(refusal.detail.contains("ca.sock"), "{refusal}");

    let mut bundles = node.client.clone().watch_bundle(wire::WatchBundleRequest {}).await.unwrap().into_inner();
    let _serving = serve(&Notary::default(), &node.path("ca.sock"));
    let bundle = tokio::time::timeout(PATIENCE, bundles.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((bundle.trust_domain.as_str(), bundle.sequence), ("example.org", 7));
    assert!(node.status().await.ca_connected);
    fetch(&node, own, "test/own").await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_too_large_is_not_passed_on() {
    let node = node().await;
    let executions = vec![wire::Execution { pid: 1, start_ticks: 0, image: 0 }];
    for (size, reason) in [(0, "bad-request"), (4097, "bad-request")] {
        let request =
            wire::FetchSvidRequest { executions: executions.clone(), workload: "test/own".into(), csr: vec![0; size] };
        let answer = node.client.clone().fetch_svid(request).await.unwrap().into_inner();
        match answer.of {
            Some(wire::fetch_svid_response::Of::Refused(refused)) => assert_eq!(refused.reason, reason),
            other => panic!("{other:?}"),
        }
    }
}
