//! A daemon under test, that asks these runtimes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_identityd::config::Config;
use bonafide_identityd::daemon::run;
use bonafide_proto::clock::SystemClock;
use bonafide_proto::container::Container;
use bonafide_proto::convert::Attestation;
use bonafide_proto::endpoint;
use bonafide_proto::fingerprint::{Evidence, Execution};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::attestation_client::AttestationClient;
use tokio::task::JoinHandle;
use tonic::Streaming;
use tonic::transport::Channel;

/// Long enough for a busy machine; nothing waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const POLICY: &str = "mode = \"observe\"\n[[workload]]\nname = \"nobody\"\nexe = \"/nowhere\"\n";

pub(crate) struct Node {
    _dir: tempfile::TempDir,
    client: AttestationClient<Channel>,
    running: JoinHandle<()>,
}

impl Node {
    /// Without the kernel programs: containers are the same either way, and the start is quicker.
    pub(crate) async fn start(runtimes: &str) -> Self {
        Self::start_as("proc", runtimes).await
    }

    pub(crate) async fn start_as(source: &str, runtimes: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        std::fs::write(dir.path().join("policy.toml"), POLICY).unwrap();
        let config = format!(
            "node = \"a\"\nsocket = \"{at}/i.sock\"\nca_socket = \"{at}/ca.sock\"\npolicy = \"{at}/policy.toml\"\n\
             callers = []\nsource = \"{source}\"\n{runtimes}"
        );
        let config = Config::parse(Path::new("test"), &config).unwrap();
        let running = tokio::spawn(async {
            run(config, Arc::new(SystemClock), std::future::pending()).await.unwrap();
        });
        let socket = dir.path().join("i.sock");
        until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
        Self { client: AttestationClient::new(endpoint::channel(socket)), _dir: dir, running }
    }

    pub(crate) async fn process(&self, pid: u32) -> Result<Attestation, AttestRefusal> {
        let request = wire::AttestProcessRequest { pid, ..Default::default() };
        self.client.clone().attest_process(request).await.unwrap().into_inner().try_into().unwrap()
    }

    /// Attests executions that were attested before: from then on they are watched.
    pub(crate) async fn again(&self, executions: &[Execution]) -> Result<Attestation, AttestRefusal> {
        let executions = executions.iter().map(|execution| (*execution).into()).collect();
        let request = wire::ReattestRequest { executions, ..Default::default() };
        self.client.clone().reattest(request).await.unwrap().into_inner().try_into().unwrap()
    }

    /// What lapses from now on.
    pub(crate) async fn lapses(&self) -> Streaming<wire::Lapse> {
        let mut lapses = self.client.clone().watch_lapses(wire::WatchLapsesRequest {}).await.unwrap().into_inner();
        assert_eq!(lapses.message().await.unwrap().unwrap().of, Some(wire::lapse::Of::Ready(true)));
        lapses
    }

    /// As [`Node::process`], of the first process of a container that is called so.
    pub(crate) async fn called(&self, container: &str) -> Result<Attestation, AttestRefusal> {
        let request = wire::AttestProcessRequest { container: container.to_owned(), ..Default::default() };
        let begun = Instant::now();
        loop {
            let answer = self.client.clone().attest_process(request.clone()).await.unwrap().into_inner();
            match answer.try_into().unwrap() {
                // On a busy machine a runtime may take longer than identityd waits.
                Err(AttestRefusal { reason: AttestReason::EvidenceUnavailable, .. }) if begun.elapsed() < PATIENCE => {}
                answer => return answer,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks again while the process only begins to run what it was started for: `runc` does so from memory.
    pub(crate) async fn container(&self, pid: u32) -> Evidence<Container> {
        let begun = Instant::now();
        loop {
            match self.process(pid).await {
                Ok(attestation) => return attestation.fingerprint.container,
                Err(refusal) => assert!(begun.elapsed() < PATIENCE, "{refusal}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The container, as soon as its runtime answers: on a busy machine that can take longer than identityd waits.
    pub(crate) async fn known(&self, pid: u32) -> Container {
        self.wait(pid, |evidence| evidence.known().cloned()).await
    }

    /// Why there is none.
    pub(crate) async fn absent(&self, pid: u32) -> String {
        let absent = |evidence: &Evidence<Container>| match evidence {
            Evidence::Absent(why) => Some(why.clone()),
            _ => None,
        };
        self.wait(pid, absent).await
    }

    /// Why nobody says.
    pub(crate) async fn unavailable(&self, pid: u32) -> String {
        let unavailable = |evidence: &Evidence<Container>| match evidence {
            Evidence::Unavailable(why) => Some(why.clone()),
            _ => None,
        };
        self.wait(pid, unavailable).await
    }

    async fn wait<T>(&self, pid: u32, wanted: impl Fn(&Evidence<Container>) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            let evidence = self.container(pid).await;
            match wanted(&evidence) {
                Some(found) => return found,
                None => assert!(begun.elapsed() < PATIENCE, "it stays {evidence:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.running.abort();
    }
}

pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it never came true");
}
