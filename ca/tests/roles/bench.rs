//! What the tests stand on: a clock that travels, an authority in a directory, and one behind a TCP port.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bonafide_ca::authority::TokenTerms;
use bonafide_ca::config::{Config, Role, RootConfig, RootX509Pop};
use bonafide_ca::daemon::Daemon;
use bonafide_ca::remote::Remote;
use bonafide_ca::{Authority, AuthorityLink, Charter, Embedded, JoinToken, NodeCa, NodeSetup, upkeep};
use bonafide_proto::clock::{Clock, SharedClock};
use bonafide_proto::endpoint;
use bonafide_proto::fingerprint::{Digest, Evidence, Fingerprint, HashedFile, Host, Script};
use bonafide_proto::grant::Grant;
use bonafide_proto::name::TrustDomain;
use bonafide_proto::wire::authority as wire;
use bonafide_proto::wire::authority::admission_client::AdmissionClient;
use rustls::pki_types::UnixTime;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

pub(crate) const START: i64 = 1_800_000_000;
pub(crate) const INTERMEDIATE_TTL: u32 = 1200;
pub(crate) const LEAF_TTL: u32 = 300;

#[derive(Debug)]
pub(crate) struct Travel(AtomicI64);

impl Travel {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(START)))
    }
    pub(crate) fn forward(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for Travel {
    fn now(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.0.load(Ordering::SeqCst)).unwrap())
    }
}

pub(crate) fn instant(clock: &Travel) -> UnixTime {
    UnixTime::since_unix_epoch(clock.now())
}

pub(crate) fn trust_domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

pub(crate) fn fingerprint() -> Fingerprint {
    let absent = || Evidence::Absent("not looked for".into());
    let exe = HashedFile { path: "/usr/bin/python3".into(), digest: Digest([1; 32]) };
    let script = HashedFile { path: "/srv/app.py".into(), digest: Digest([2; 32]) };
    let host = Host { bios_uuid: absent(), machine_id: absent(), node: None };
    Fingerprint { script: Evidence::Known(Script::File(script)), ..Fingerprint::of(exe, (33, 33), host) }
}

/// A request for a fresh key, with these names inside, which nobody asked for.
pub(crate) fn csr(uris: &[&str]) -> Vec<u8> {
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = uris.iter().map(|u| rcgen::SanType::URI((*u).to_owned().try_into().unwrap())).collect();
    params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

pub(crate) fn setup(state: &Path, name: &str) -> NodeSetup {
    let state = state.join(format!("node-{name}"));
    NodeSetup { state, name: name.parse().unwrap(), leaf_ttl: LEAF_TTL, bios_uuid: None }
}

pub(crate) fn charter(state: &Path) -> Charter {
    Charter {
        state: state.join("authority"),
        trust_domain: trust_domain(),
        intermediate_ttl: INTERMEDIATE_TTL,
        shared: None,
        passphrase: None,
    }
}

/// An authority and its nodes in one process.
pub(crate) struct Domain {
    pub(crate) dir: TempDir,
    pub(crate) clock: Arc<Travel>,
    pub(crate) authority: Arc<Authority>,
}

impl Domain {
    pub(crate) fn new() -> Self {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Travel::new());
        let authority = Arc::new(Authority::open(&charter(dir.path()), clock.clone()).unwrap());
        Self { dir, clock, authority }
    }

    pub(crate) fn link(&self) -> Embedded {
        Embedded(self.authority.clone())
    }

    pub(crate) fn token(&self, node: Option<&str>) -> JoinToken {
        self.token_for(node, Some(Grant::everything()))
    }

    pub(crate) fn token_for(&self, node: Option<&str>, grant: Option<Grant>) -> JoinToken {
        let terms = TokenTerms { node: node.map(|n| n.parse().unwrap()), ttl: 600, grant, ..TokenTerms::default() };
        self.authority.create_token(terms).unwrap().0
    }

    pub(crate) fn stranger(&self, name: &str) -> NodeCa {
        NodeCa::open(setup(self.dir.path(), name), self.clock.clone()).unwrap()
    }

    pub(crate) async fn member(&self, name: &str) -> NodeCa {
        let node = self.stranger(name);
        node.join(&self.link(), &self.token(None)).await.unwrap();
        node
    }
}

/// An authority as it runs: its TCP port, its admin socket.
pub(crate) struct Served {
    pub(crate) dir: TempDir,
    pub(crate) clock: Arc<Travel>,
    pub(crate) address: SocketAddr,
    x509pop: Option<RootX509Pop>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl Served {
    pub(crate) async fn on(ip: &str) -> Self {
        Self::accepting(ip, None).await
    }

    /// One that takes certificates of an existing PKI, too.
    pub(crate) async fn accepting(ip: &str, x509pop: Option<RootX509Pop>) -> Self {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Travel::new());
        let address = SocketAddr::new(ip.parse().unwrap(), 0);
        let mut served = Self { dir, clock, address, x509pop, stop: None, task: None };
        served.start().await;
        served
    }

    /// One whose trust domain was founded so.
    pub(crate) async fn founded<E: std::fmt::Debug>(ip: &str, found: impl FnOnce(&Charter) -> Result<(), E>) -> Self {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Travel::new());
        found(&charter(dir.path())).unwrap();
        let address = SocketAddr::new(ip.parse().unwrap(), 0);
        let mut served = Self { dir, clock, address, x509pop: None, stop: None, task: None };
        served.start().await;
        served
    }

    pub(crate) async fn start(&mut self) {
        let root = RootConfig {
            charter: charter(self.dir.path()),
            listen: vec![self.address],
            admin_socket: self.admin_socket(),
            x509pop: self.x509pop.clone(),
        };
        let state = self.dir.path().join("ca");
        let config = Config { log: "info".into(), state, role: Role::Root(root) };
        let daemon = Daemon::bind(&config, self.clock.clone()).await.unwrap();
        self.address = daemon.addresses()[0];
        let (stop, stopped) = oneshot::channel::<()>();
        self.stop = Some(stop);
        self.task = Some(tokio::spawn(async move {
            Box::pin(daemon.run(async {
                let _ = stopped.await;
            }))
            .await
            .unwrap();
        }));
    }

    /// The authority goes away, cleanly: its port is closed and its socket file gone.
    pub(crate) async fn stop(&mut self) {
        drop(self.stop.take());
        self.task.take().unwrap().await.unwrap();
        assert!(!self.admin_socket().exists());
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.dir.path().join("authority.sock")
    }

    pub(crate) fn admin(&self) -> AdmissionClient<Channel> {
        AdmissionClient::new(endpoint::channel(self.admin_socket()))
    }

    pub(crate) async fn token(&self, node: &str) -> JoinToken {
        let grant = Some(wire::Grant { workloads: vec!["*".into()] });
        let request = wire::CreateTokenRequest { node: node.into(), ttl_seconds: 600, grant, bios_uuid: String::new() };
        self.admin().create_token(request).await.unwrap().into_inner().token.parse().unwrap()
    }

    pub(crate) fn link(&self) -> Remote {
        let clock: SharedClock = self.clock.clone();
        Remote::new(self.address.to_string(), clock)
    }

    pub(crate) fn stranger(&self, name: &str) -> NodeCa {
        NodeCa::open(setup(self.dir.path(), name), self.clock.clone()).unwrap()
    }

    /// A machine of the same name with a state of its own.
    pub(crate) fn stranger_elsewhere(&self, name: &str) -> NodeCa {
        let state = self.dir.path().join("elsewhere");
        NodeCa::open(NodeSetup { state, ..setup(self.dir.path(), name) }, self.clock.clone()).unwrap()
    }

    pub(crate) async fn member(&self, name: &str) -> NodeCa {
        let node = self.stranger(name);
        node.join(&self.link(), &self.token("").await).await.unwrap();
        node
    }
}

/// The node listens to what every member is told, until the task is aborted.
pub(crate) fn follow(node: &Arc<NodeCa>, link: impl AuthorityLink + 'static) -> JoinHandle<()> {
    let node = node.clone();
    tokio::spawn(async move { match upkeep::follow(&node, &link).await {} })
}

/// Waits until it is so.
pub(crate) async fn until(mut so: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came to be");
}

pub(crate) const LOOPBACKS: [&str; 2] = ["127.0.0.1", "::1"];

/// The refusal's name inside a failed join or renewal.
pub(crate) fn refusal(e: &bonafide_ca::node::MembershipError) -> &str {
    match e {
        bonafide_ca::node::MembershipError::Link(bonafide_ca::LinkError::Refused { reason, .. }) => reason,
        other => panic!("not refused by name: {other}"),
    }
}
