//! Authorities as processes of their own that share a store: any of them may die, and any member of the store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bonafide_ca::remote::Remote;
use bonafide_ca::store::{EtcdPlace, Store};
use bonafide_ca::{JoinToken, NodeCa, NodeSetup, upkeep};
use bonafide_proto::audit::{Chain, Entry};
use bonafide_proto::clock::{SharedClock, SystemClock};
use bonafide_proto::endpoint;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::wire::authority as wire;
use bonafide_proto::wire::authority::admission_client::AdmissionClient;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::cluster::{Cluster, free_port};

pub(crate) fn clock() -> SharedClock {
    Arc::new(SystemClock)
}

/// Authorities on one store; they end with it.
pub(crate) struct Authorities {
    dir: TempDir,
    addresses: Vec<String>,
    processes: Vec<Option<Child>>,
}

impl Authorities {
    /// So many, of which the first founds the trust domain; the others are given its root key.
    pub(crate) async fn on(place: &EtcdPlace, count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let addresses: Vec<String> = (0..count).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let mut all = Self { dir, addresses, processes: (0..count).map(|_| None).collect() };
        for n in 0..count {
            all.configure(n, place);
            if n > 0 {
                let state = all.state(n).join("authority");
                make_private(&all.state(n));
                make_private(&state);
                std::fs::copy(all.state(0).join("authority/root.key"), state.join("root.key")).unwrap();
            }
            all.start(n);
            all.serves(n).await;
        }
        all
    }

    fn configure(&self, n: usize, place: &EtcdPlace) {
        let text = format!(
            "role = \"root\"\nstate = {:?}\n[root]\ntrust_domain = \"example.org\"\nlisten = [{:?}]\n\
             admin_socket = {:?}\nstore = \"{place}\"\n",
            self.state(n),
            self.addresses[n],
            self.socket(n)
        );
        std::fs::write(self.config(n), text).unwrap();
    }

    fn config(&self, n: usize) -> PathBuf {
        self.dir.path().join(format!("ca-{n}.toml"))
    }

    fn state(&self, n: usize) -> PathBuf {
        self.dir.path().join(format!("state-{n}"))
    }

    pub(crate) fn socket(&self, n: usize) -> PathBuf {
        self.dir.path().join(format!("admin-{n}.sock"))
    }

    fn start(&mut self, n: usize) {
        let log = self.dir.path().join(format!("log-{n}"));
        let log = std::fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
        let mut ca = Command::new(env!("CARGO_BIN_EXE_bonafide-ca"));
        let process = ca.arg("--config").arg(self.config(n)).stdout(Stdio::null()).stderr(log).spawn();
        self.processes[n] = Some(process.unwrap());
    }

    /// `kill -9`.
    fn kill(&mut self, n: usize) {
        let mut process = self.processes[n].take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    fn admin(&self, n: usize) -> AdmissionClient<Channel> {
        AdmissionClient::new(endpoint::channel(self.socket(n)))
    }

    /// Waits until this one answers for its store.
    async fn serves(&mut self, n: usize) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.admin(n).list_nodes(wire::ListNodesRequest {}).await.is_err() {
            if self.processes[n].as_mut().unwrap().try_wait().unwrap().is_some() {
                self.start(n);
            }
            let log = || std::fs::read_to_string(self.dir.path().join(format!("log-{n}"))).unwrap();
            assert!(Instant::now() < until, "authority {n} does not serve: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn link(&self) -> Remote {
        Remote::among(&self.addresses, &clock())
    }
}

impl Drop for Authorities {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().filter_map(Option::as_mut) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn make_private(dir: &Path) {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().mode(0o700).recursive(true).create(dir).unwrap();
}

pub(crate) fn node(dir: &Path, name: &str) -> NodeCa {
    let setup = NodeSetup { state: dir.join(name), name: name.parse().unwrap(), leaf_ttl: 300, bios_uuid: None };
    NodeCa::open(setup, clock()).unwrap()
}

/// A token from whichever authority gives one.
async fn token(sockets: &[PathBuf], name: &str) -> JoinToken {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        for socket in sockets {
            let request = wire::CreateTokenRequest { node: name.into(), ttl_seconds: 600, ..Default::default() };
            let mut admin = AdmissionClient::new(endpoint::channel(socket));
            let asked = tokio::time::timeout(Duration::from_secs(10), admin.create_token(request)).await;
            if let Ok(Ok(made)) = asked {
                return made.into_inner().token.parse().unwrap();
            }
        }
        assert!(Instant::now() < until, "no authority gives a token");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn chain(store: &Store) -> Vec<Entry> {
    let head = store.audit_head().unwrap();
    let (mut chain, mut entries) = (Chain::of(&head), Vec::new());
    loop {
        let page = store.audit_entries(chain.reached() + 1, 100).unwrap();
        if page.is_empty() {
            chain.end(&head).unwrap();
            return entries;
        }
        entries.extend(page.iter().map(|bytes| chain.take(bytes).unwrap()));
    }
}

/// No token admitted twice, no serial number was issued twice, and whoever was told that it is a member is one.
pub(crate) fn check(store: &Store, members: &BTreeSet<String>) {
    let entries = chain(store);
    let mut used = BTreeSet::new();
    for entry in entries.iter().filter(|entry| entry.act == "admitted") {
        assert!(used.insert(entry.about["token"].clone()), "a token admitted twice: {entry:?}");
    }
    let mut serials = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.act == "issued") {
        let serial = &entry.about["serial"];
        assert!(serials.insert(serial.clone(), entry.sequence).is_none(), "issued twice: {entry:?}");
        assert!(store.entry(serial).unwrap().is_some(), "not in the ledger: {entry:?}");
    }
    let listed: BTreeSet<String> = store.nodes().unwrap().into_iter().map(|(name, _)| name.to_string()).collect();
    assert!(members.is_subset(&listed), "lost: {:?}", members.difference(&listed).collect::<Vec<_>>());
}

/// Joins until it is a member; a token whose one answer was lost for good is replaced by its operator.
pub(crate) async fn join(node: &NodeCa, link: &Remote, sockets: &[PathBuf]) {
    let until = Instant::now() + Duration::from_secs(120);
    while node.member().is_none() {
        assert!(Instant::now() < until, "{} never joined", node.name());
        let token = token(sockets, node.name().as_str()).await;
        for _ in 0..3 {
            if node.join(link, &token).await.is_ok() {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_the_store_and_authorities_die_and_nothing_is_lost() {
    let mut cluster = Cluster::of(3);
    let place = cluster.place("replicas");
    let mut authorities = Authorities::on(&place, 3).await;
    let (dir, done) = (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
    let sockets: Vec<PathBuf> = (0..3).map(|n| authorities.socket(n)).collect();

    let mut joining = Vec::new();
    for worker in 0..4 {
        let (path, sockets, done) = (dir.path().to_owned(), sockets.clone(), done.clone());
        let link = authorities.link();
        joining.push(tokio::spawn(async move {
            let mut joined = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let node = node(&path, &format!("n{worker}-{}", joined.len()));
                join(&node, &link, &sockets).await;
                joined.push(node.name().to_string());
            }
            joined
        }));
    }
    // One after the other, and never so long that nobody is left: a member dies, an authority dies, both come back.
    for n in 0..3 {
        cluster.kill(n);
        authorities.kill((n + 1) % 3);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        cluster.start(n);
        authorities.start((n + 1) % 3);
        authorities.serves((n + 1) % 3).await;
    }
    done.store(true, Ordering::Relaxed);
    let mut members = BTreeSet::new();
    for joining in joining {
        members.extend(joining.await.unwrap());
    }
    assert!(members.len() >= 8, "only {} nodes joined in all that time", members.len());
    let store = Store::open(cluster.engine("replicas"), &dir.path().join("mark"), clock()).unwrap();
    check(&store, &members);
}

/// Until a node knows of this digest.
pub(crate) async fn knows(node: &NodeCa, digest: Digest) -> Duration {
    let began = Instant::now();
    let mut mesh = node.mesh();
    let known = mesh.wait_for(|mesh| mesh.quarantine.contains(&digest));
    tokio::time::timeout(Duration::from_secs(60), known).await.unwrap().unwrap();
    began.elapsed()
}

pub(crate) async fn quarantine(authorities: &Authorities, at: usize, digest: Digest) {
    let request = wire::QuarantineRequest { sha256: digest.0.to_vec(), lift: false, reason: "tested".into() };
    assert!(authorities.admin(at).quarantine(request).await.unwrap().into_inner().changed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_at_one_authority_reaches_who_follows_another_and_nodes_fail_over() {
    let cluster = Cluster::of(1);
    let mut authorities = Authorities::on(&cluster.place("told"), 2).await;
    let dir = tempfile::tempdir().unwrap();
    let sockets = [authorities.socket(0), authorities.socket(1)];
    let (node, link) = (Arc::new(node(dir.path(), "a")), authorities.link());
    join(&node, &link, &sockets).await;
    let following = node.clone();
    let following = tokio::spawn(async move { match upkeep::follow(&following, &link).await {} });

    // It follows the first, and is told of what the second was asked.
    quarantine(&authorities, 0, Digest([1; 32])).await;
    knows(&node, Digest([1; 32])).await;
    let asked = tokio::spawn(AdmissionClient::new(endpoint::channel(&sockets[1])).quarantine_of(Digest([2; 32])));
    let took = knows(&node, Digest([2; 32])).await;
    asked.await.unwrap();
    assert!(took < Duration::from_secs(5), "{took:?}");

    authorities.kill(0);
    quarantine(&authorities, 1, Digest([3; 32])).await;
    knows(&node, Digest([3; 32])).await;
    node.renew(&authorities.link()).await.unwrap();
    following.abort();
}

/// The same question as a task of its own.
trait QuarantineOf {
    fn quarantine_of(self, digest: Digest) -> impl Future<Output = ()> + Send + 'static;
}

impl QuarantineOf for AdmissionClient<Channel> {
    async fn quarantine_of(mut self, digest: Digest) {
        let request = wire::QuarantineRequest { sha256: digest.0.to_vec(), lift: false, reason: String::new() };
        self.quarantine(request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_with_another_key_or_none_does_not_start() {
    let cluster = Cluster::of(1);
    let place = cluster.place("keys");
    let founder = Authorities::on(&place, 1).await;
    let said = |authorities: &Authorities| {
        let mut ca = Command::new(env!("CARGO_BIN_EXE_bonafide-ca"));
        let output = ca.arg("--config").arg(authorities.config(0)).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let fresh = || Authorities {
        dir: tempfile::tempdir().unwrap(),
        addresses: vec!["127.0.0.1:1".into()],
        processes: vec![None],
    };
    let keyless = fresh();
    keyless.configure(0, &place);
    let text = said(&keyless);
    assert!(text.contains("has a root certificate but no root.key"), "{text}");

    let other = fresh();
    other.configure(0, &place);
    make_private(&other.state(0));
    make_private(&other.state(0).join("authority"));
    bonafide_ca::key::Key::generate().unwrap().create_file(&other.state(0).join("authority/root.key")).unwrap();
    let text = said(&other);
    assert!(text.contains("the root key is not that of the root certificate"), "{text}");
    drop(founder);
}
