//! Authorities as processes of their own that share a store: any of them may die, and any member of the store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bonafide_ca::jwt::JwtOrder;
use bonafide_ca::node::MembershipError;
use bonafide_ca::remote::Remote;
use bonafide_ca::store::Store;
use bonafide_ca::{AuthorityLink as _, JoinToken, LinkError, NodeCa, NodeSetup, upkeep};
use bonafide_proto::audit::{Chain, Entry};
use bonafide_proto::clock::{SharedClock, SystemClock};
use bonafide_proto::endpoint;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::NodeName;
use bonafide_proto::wire::authority as wire;
use bonafide_proto::wire::authority::admission_client::AdmissionClient;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::cluster::{Cluster, free_port, terminate};

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
    pub(crate) async fn on(store: &str, count: usize) -> Self {
        Self::at(&vec![("127.0.0.1".to_owned(), store.to_owned()); count]).await
    }

    /// The same, but the root's key is in a directory of its own, and the others are given the issuing key.
    async fn below_an_offline_root(store: &str, count: usize) -> Self {
        Self::keyed(&vec![("127.0.0.1".to_owned(), store.to_owned()); count], "issuing.key").await
    }

    /// One at each of these addresses, with the store that it is told.
    pub(crate) async fn at(each: &[(String, String)]) -> Self {
        Self::keyed(each, "root.key").await
    }

    async fn keyed(each: &[(String, String)], key: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let addresses: Vec<String> = each.iter().map(|(host, _)| format!("{host}:{}", free_port())).collect();
        let mut all = Self { dir, addresses, processes: each.iter().map(|_| None).collect() };
        for (n, (_, store)) in each.iter().enumerate() {
            all.configure(n, store);
            if n > 0 {
                let state = all.state(n).join("authority");
                make_private(&all.state(n));
                make_private(&state);
                std::fs::copy(all.state(0).join("authority").join(key), state.join(key)).unwrap();
            } else if key == "issuing.key" {
                all.ask(&["init", "--config"], &[&all.config(0), Path::new("--offline-root"), &all.root()]);
            }
            all.start(n);
            all.serves(n).await;
        }
        all
    }

    fn configure(&self, n: usize, store: &str) {
        let text = format!(
            "role = \"root\"\nstate = {:?}\n[root]\ntrust_domain = \"example.org\"\nlisten = [{:?}]\n\
             admin_socket = {:?}\n{store}",
            self.state(n),
            self.addresses[n],
            self.socket(n)
        );
        std::fs::write(self.config(n), text).unwrap();
    }

    /// What the program says to these arguments.
    fn ask(&self, what: &[&str], of: &[&Path]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_bonafide-ca")).args(what).args(of).output().unwrap();
        assert!(output.status.success(), "{what:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Where the key of a root is that is offline.
    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
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

    /// What it has written down.
    pub(crate) fn log(&self, n: usize) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("log-{n}"))).unwrap()
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

    /// Ends it as its supervisor would.
    fn stop(&mut self, n: usize) {
        terminate(self.processes[n].take().unwrap());
    }

    pub(crate) fn admin(&self, n: usize) -> AdmissionClient<Channel> {
        AdmissionClient::new(endpoint::channel(self.socket(n)))
    }

    /// Waits until this one answers for its store.
    async fn serves(&mut self, n: usize) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.admin(n).list_nodes(wire::ListNodesRequest {}).await.is_err() {
            if self.processes[n].as_mut().unwrap().try_wait().unwrap().is_some() {
                self.start(n);
            }
            assert!(Instant::now() < until, "authority {n} does not serve: {}", self.log(n));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Which of them this node follows; waits until it is one.
    pub(crate) async fn followed_by(&self, node: &NodeName) -> usize {
        let until = Instant::now() + PATIENCE;
        loop {
            for n in 0..self.processes.len() {
                let asked = self.admin(n).list_nodes(wire::ListNodesRequest {}).await;
                let nodes = asked.map_or(Vec::new(), |listed| listed.into_inner().nodes);
                if nodes.iter().any(|listed| listed.name == node.as_str() && listed.following) {
                    return n;
                }
            }
            assert!(Instant::now() < until, "{node} follows nobody");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn link(&self) -> Remote {
        Remote::among(&self.addresses, &clock())
    }

    /// The way to one of them alone.
    fn link_to(&self, n: usize) -> Remote {
        Remote::new(&self.addresses[n], clock())
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
            let grant = Some(wire::Grant { workloads: vec!["shop/*".into()] });
            let request = wire::CreateTokenRequest { node: name.into(), ttl_seconds: 600, grant, ..Default::default() };
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

/// Nodes that join, renew and have tokens signed, one after the other, for as long as this lives.
struct Load {
    done: Arc<AtomicBool>,
    joined: Arc<AtomicUsize>,
    workers: Vec<tokio::task::JoinHandle<BTreeSet<String>>>,
}

impl Load {
    fn on(authorities: &Authorities, dir: &Path) -> Self {
        let sockets: Vec<PathBuf> = (0..authorities.processes.len()).map(|n| authorities.socket(n)).collect();
        let (done, joined) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let work = |worker: usize| {
            let (dir, sockets, link) = (dir.to_owned(), sockets.clone(), authorities.link());
            let (done, joined) = (done.clone(), joined.clone());
            async move {
                let mut members = BTreeSet::new();
                while !done.load(Ordering::Relaxed) {
                    let node = node(&dir, &format!("n{worker}-{}", members.len()));
                    join(&node, &link, &sockets).await;
                    members.insert(node.name().to_string());
                    renew(&node, &link).await;
                    sign(&node, &link).await;
                    joined.fetch_add(1, Ordering::Relaxed);
                }
                members
            }
        };
        Self { workers: (0..4).map(|worker| tokio::spawn(work(worker))).collect(), done, joined }
    }

    /// Waits until so many more have joined, renewed, and had a token signed.
    async fn more(&self, count: usize) {
        let (until, enough) = (Instant::now() + PATIENCE, self.joined.load(Ordering::Relaxed) + count);
        while self.joined.load(Ordering::Relaxed) < enough {
            assert!(Instant::now() < until, "nobody joins any more");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The names of all who were told that they are members.
    async fn end(self) -> BTreeSet<String> {
        self.done.store(true, Ordering::Relaxed);
        let mut members = BTreeSet::new();
        for worker in self.workers {
            members.extend(worker.await.unwrap());
        }
        members
    }
}

/// How long anything may take while others do all they can.
const PATIENCE: Duration = Duration::from_secs(120);

/// Renews until it has.
async fn renew(node: &NodeCa, link: &Remote) {
    let until = Instant::now() + PATIENCE;
    while let Err(e) = node.renew(link).await {
        assert!(Instant::now() < until, "{} never renewed: {e}", node.name());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Has a token signed, until it has one.
async fn sign(node: &NodeCa, link: &Remote) {
    let (until, member) = (Instant::now() + PATIENCE, node.member().unwrap());
    let (workload, audiences) = ("shop/web".parse().unwrap(), vec!["tested".to_owned()]);
    let order = JwtOrder { workload, audiences, digests: Vec::new() };
    while let Err(e) = link.sign_jwt(&member, &order).await {
        assert!(Instant::now() < until, "{} never had a token: {e}", node.name());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_the_store_and_authorities_die_and_are_restarted_and_nothing_is_lost() {
    let mut cluster = Cluster::with_tls(3);
    let mut authorities = Authorities::on(&cluster.configured("replicas"), 3).await;
    let dir = tempfile::tempdir().unwrap();
    let follower = Arc::new(node(dir.path(), "follower"));
    join(&follower, &authorities.link(), &[authorities.socket(0)]).await;
    let (follows, link) = (follower.clone(), authorities.link());
    let following = tokio::spawn(async move { match upkeep::follow(&follows, &link).await {} });
    let load = Load::on(&authorities, dir.path());
    load.more(1).await;

    let mut slowest = Duration::ZERO;
    // `kill -9` of an authority and of the member that leads, three times; both come back.
    for n in 0..3u8 {
        let (leader, authority) = (cluster.leader(), usize::from(n));
        cluster.kill(leader);
        authorities.kill(authority);
        load.more(1).await;
        let told = told(&authorities, (authority + 1) % 3, &follower, Digest([n; 32])).await;
        slowest = slowest.max(told);
        cluster.start(leader);
        authorities.start(authority);
        authorities.serves(authority).await;
        cluster.takes_part(leader);
    }
    eprintln!("after a death, a revocation reached who followed in {slowest:?} at the most");
    // And one after the other is restarted.
    for n in 0..3 {
        authorities.stop(n);
        authorities.start(n);
        authorities.serves(n).await;
    }
    for n in 0..3 {
        cluster.stop(n);
        cluster.start(n);
        cluster.takes_part(n);
    }
    load.more(1).await;
    told(&authorities, 2, &follower, Digest([9; 32])).await;
    let mut members = load.end().await;
    members.insert("follower".to_owned());
    following.abort();
    let store = Store::open(cluster.engine("replicas"), &dir.path().join("mark"), clock()).unwrap();
    check(&store, &members);
}

/// Puts a digest in quarantine at this authority; how long until the node knows.
pub(crate) async fn told(authorities: &Authorities, at: usize, node: &NodeCa, digest: Digest) -> Duration {
    let (began, mut admin) = (Instant::now(), authorities.admin(at));
    let asking = tokio::spawn(async move {
        // While there is no leader nobody changes anything.
        while let Err(status) = admin.quarantine(of(digest)).await {
            assert!(began.elapsed() < PATIENCE, "nothing can be put in quarantine: {status}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    knows(node, digest).await;
    let took = began.elapsed();
    asking.await.unwrap();
    took
}

fn of(digest: Digest) -> wire::QuarantineRequest {
    wire::QuarantineRequest { sha256: digest.0.to_vec(), lift: false, reason: "tested".into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_uses_of_one_token_at_three_authorities_exactly_one_wins() {
    let cluster = Cluster::with_tls(3);
    let authorities = Authorities::on(&cluster.configured("hundred"), 3).await;
    let dir = tempfile::tempdir().unwrap();
    let secret = token(&[authorities.socket(0)], "").await;
    let uses: Vec<_> = (0..100)
        .map(|n| {
            let (node, link, secret) = (node(dir.path(), &format!("n{n}")), authorities.link_to(n % 3), secret.clone());
            tokio::spawn(async move {
                loop {
                    match node.join(&link, &secret).await {
                        Ok(()) => return None,
                        Err(MembershipError::Link(LinkError::Refused { reason, .. })) => return Some(reason),
                        // One address has few connections at a time.
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
            })
        })
        .collect();
    let mut said = Vec::new();
    for using in uses {
        said.push(using.await.unwrap());
    }
    let refused = said.iter().flatten().filter(|reason| *reason == "token-used").count();
    assert_eq!((said.len(), refused), (100, 99), "{said:?}");
    let store = Store::open(cluster.engine("hundred"), &dir.path().join("mark"), clock()).unwrap();
    check(&store, &BTreeSet::new());
    assert_eq!(store.nodes().unwrap().len(), 1);
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
    assert!(authorities.admin(at).quarantine(of(digest)).await.unwrap().into_inner().changed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_at_one_authority_reaches_who_follows_another_within_a_second_and_nodes_fail_over() {
    let cluster = Cluster::of(1);
    let mut authorities = Authorities::on(&cluster.configured("told"), 2).await;
    let dir = tempfile::tempdir().unwrap();
    let sockets = [authorities.socket(0), authorities.socket(1)];
    let (node, link) = (Arc::new(node(dir.path(), "a")), authorities.link());
    join(&node, &link, &sockets).await;
    let following = node.clone();
    let following = tokio::spawn(async move { match upkeep::follow(&following, &link).await {} });
    quarantine(&authorities, 0, Digest([100; 32])).await;
    knows(&node, Digest([100; 32])).await;

    // It follows the first, and is told of what the second was asked: from before it was asked, to when it is kept.
    let (mut revoked, mut published) = (Vec::new(), Vec::new());
    for n in 1..=9u8 {
        let (admin, began) = (authorities.admin(1), Instant::now());
        let asked = tokio::spawn(async move { { admin }.quarantine(of(Digest([n; 32]))).await.unwrap() });
        knows(&node, Digest([n; 32])).await;
        revoked.push(began.elapsed());
        asked.await.unwrap();
        let (admin, began) = (authorities.admin(1), Instant::now());
        let request = wire::PublishPolicyRequest { text: format!("{OBSERVE}# {n}"), ..Default::default() };
        let asked = tokio::spawn(async move { { admin }.publish_policy(request).await.unwrap().into_inner() });
        let mut policies = node.policy();
        let kept = policies.wait_for(|kept| kept.as_ref().is_some_and(|kept| kept.mark.version == u64::from(n)));
        tokio::time::timeout(PATIENCE, kept).await.unwrap().unwrap();
        published.push(began.elapsed());
        assert_eq!(asked.await.unwrap().published.unwrap().version, u64::from(n));
    }
    revoked.sort();
    published.sort();
    let [r, p] = [&revoked, &published].map(|all| (all[4], all[8]));
    eprintln!("from one authority to who follows another: a revocation {r:?}, a policy {p:?} (middle, slowest of 9)");
    // Others use this machine at the same time: not the slowest.
    assert!(r.0 < Duration::from_secs(1) && p.0 < Duration::from_secs(1), "{revoked:?} {published:?}");

    authorities.kill(0);
    quarantine(&authorities, 1, Digest([200; 32])).await;
    knows(&node, Digest([200; 32])).await;
    node.renew(&authorities.link()).await.unwrap();
    following.abort();
}

const OBSERVE: &str = "mode = \"observe\"\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_publications_at_once_one_is_refused_and_no_number_is_used_twice() {
    let cluster = Cluster::of(1);
    let authorities = Authorities::on(&cluster.configured("published"), 2).await;
    let publish = |at: usize, n: usize| {
        let text = format!("{OBSERVE}# {at} {n}");
        let request = wire::PublishPolicyRequest { text, author: format!("Ada at {at}"), ..Default::default() };
        let mut admin = authorities.admin(at);
        async move { admin.publish_policy(request).await }
    };
    let (mut versions, mut refused) = (Vec::new(), 0);
    for n in 0..50 {
        for outcome in <[_; 2]>::from(tokio::join!(publish(0, n), publish(1, n))) {
            match outcome {
                Ok(published) => versions.push(published.into_inner().published.unwrap().version),
                Err(status) => {
                    refused += 1;
                    assert_eq!(status.code(), tonic::Code::Aborted, "{status}");
                    assert!(status.message().contains("policy-meanwhile: version "), "{status}");
                    assert!(status.message().contains("was published at this moment"), "{status}");
                }
            }
        }
        if refused >= 3 {
            break;
        }
    }
    assert!(refused >= 3, "they were never at once");
    versions.sort_unstable();
    assert_eq!(versions, (1..=versions.len() as u64).collect::<Vec<_>>());
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(cluster.engine("published"), &dir.path().join("mark"), clock()).unwrap();
    let of_store = chain(&store).into_iter().filter(|entry| entry.act == "policy-published");
    assert_eq!(of_store.map(|entry| entry.about["version"].parse::<u64>().unwrap()).collect::<Vec<_>>(), versions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_with_another_key_or_none_does_not_start() {
    let cluster = Cluster::of(1);
    let store = cluster.configured("keys");
    let founder = Authorities::on(&store, 1).await;
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
    keyless.configure(0, &store);
    let text = said(&keyless);
    assert!(text.contains("has a root certificate but no root.key"), "{text}");

    let other = fresh();
    other.configure(0, &store);
    make_private(&other.state(0));
    make_private(&other.state(0).join("authority"));
    bonafide_ca::key::Key::generate().unwrap().create_file(&other.state(0).join("authority/root.key")).unwrap();
    let text = said(&other);
    assert!(text.contains("is not that of the certificate by which the authority certifies"), "{text}");
    drop(founder);
}

#[tokio::test]
async fn the_next_root_is_active_where_its_key_was_brought_and_nodes_go_there() {
    let cluster = Cluster::of(1);
    let authorities = Authorities::on(&cluster.configured("rotation"), 2).await;
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path(), "a");
    let token = wire::CreateTokenRequest { node: "a".into(), ttl_seconds: 600, grant: None, bios_uuid: String::new() };
    let token = authorities.admin(0).create_token(token).await.unwrap().into_inner().token;
    node.join(&authorities.link(), &token.parse().unwrap()).await.unwrap();

    let order = async |n: usize, step: wire::RotationStep| {
        let leave_behind = vec!["a".to_owned()];
        authorities.admin(n).rotate_root(wire::RotateRootRequest { step: step.into(), leave_behind }).await
    };
    order(0, wire::RotationStep::Prepare).await.unwrap();
    order(1, wire::RotationStep::Publish).await.unwrap();
    let away = order(1, wire::RotationStep::Activate).await.unwrap_err();
    assert!(away.message().contains("root-2.key"), "{away}");
    order(0, wire::RotationStep::Activate).await.unwrap();
    // The one without the key certifies nobody, and the node goes on to the other one.
    let apart = Remote::new(authorities.addresses[1].clone(), clock());
    let refused = node.renew(&apart).await.unwrap_err();
    assert!(refused.to_string().contains("authority-failed"), "{refused}");
    let turned = Remote::among(&[authorities.addresses[1].clone(), authorities.addresses[0].clone()], &clock());
    node.renew(&turned).await.unwrap();
    assert_eq!(node.trust_bundle().unwrap().roots().len(), 2);

    let key = |n| authorities.state(n).join("authority/root-2.key");
    std::fs::copy(key(0), key(1)).unwrap();
    node.renew(&apart).await.unwrap();
    let shown = authorities.admin(1).show_roots(wire::ShowRootsRequest {}).await.unwrap().into_inner();
    assert!(shown.roots.iter().all(|root| root.key_here), "{shown:?}");
}

#[tokio::test]
async fn authorities_below_an_offline_root_certify_by_one_key_and_all_by_its_later_certificate() {
    let cluster = Cluster::of(1);
    let mut authorities = Authorities::below_an_offline_root(&cluster.configured("offline"), 2).await;
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path(), "a");
    let token = wire::CreateTokenRequest { node: "a".into(), ttl_seconds: 600, grant: None, bios_uuid: String::new() };
    let token = authorities.admin(0).create_token(token).await.unwrap().into_inner().token;
    node.join(&authorities.link(), &token.parse().unwrap()).await.unwrap();
    let apart = |n: usize| Remote::new(authorities.addresses[n].clone(), clock());
    let shown = |node: &NodeCa| node.member().unwrap().shown()[1].clone();
    let first = shown(&node);
    node.renew(&apart(1)).await.unwrap();
    assert_eq!(shown(&node), first, "both certify by the same");

    let (csr, next) = (dir.path().join("next.csr"), dir.path().join("next.pem"));
    std::fs::write(&csr, authorities.ask(&["issuing", "request", "--config"], &[&authorities.config(1)])).unwrap();
    let signed = authorities.ask(&["issuing", "sign", "--days", "700", "--root-dir"], &[&authorities.root(), &csr]);
    std::fs::write(&next, signed).unwrap();
    authorities.ask(&["issuing", "install", "--socket"], &[&authorities.socket(1), &next]);
    for n in [1, 0] {
        let before = shown(&node);
        node.renew(&apart(n)).await.unwrap();
        assert_ne!(shown(&node), first, "authority {n} looks before it certifies");
        assert!(n == 1 || shown(&node) == before);
    }
    authorities.stop(0);
    let refused = authorities.state(0).join("authority/root.key");
    std::fs::copy(authorities.root().join("root.key"), &refused).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bonafide-ca")).arg("--config").arg(authorities.config(0)).output();
    let said = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(said.contains("take") && said.contains("root.key away"), "{said}");
    std::fs::remove_file(refused).unwrap();
    authorities.start(0);
    authorities.serves(0).await;
    node.renew(&Remote::new(authorities.addresses[0].clone(), clock())).await.unwrap();
}
