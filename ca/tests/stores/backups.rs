//! A store as a file, and in a store again: of the same kind or the other.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use bonafide_ca::authority::{Application, TokenTerms};
use bonafide_ca::csr;
use bonafide_ca::key::Key;
use bonafide_ca::node::MembershipError;
use bonafide_ca::policies::Publication;
use bonafide_ca::store::By;
use bonafide_ca::store::engine::{Engine, Tree};
use bonafide_ca::{Authority, Charter, Embedded, LinkError, NodeCa, upkeep};
use bonafide_proto::audit::Head;
use bonafide_proto::clock::SystemClock;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::revoked::Serial;

use crate::cluster::Cluster;
use crate::replicas::knows;

/// An authority's directory, with its configuration.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new(store: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let text = format!(
            "role = \"root\"\nstate = {:?}\n[root]\ntrust_domain = \"example.org\"\nlisten = [\"127.0.0.1:1\"]\n\
             admin_socket = {:?}\n{store}\n",
            at("state"),
            at("admin.sock")
        );
        std::fs::write(dir.path().join("ca.toml"), text).unwrap();
        Self { dir }
    }

    fn ask(&self, verb: &str, file: &Path) -> Output {
        let mut ca = Command::new(env!("CARGO_BIN_EXE_bonafide-ca"));
        ca.arg(verb).arg("--config").arg(self.dir.path().join("ca.toml")).arg(file).output().unwrap()
    }

    /// Puts a backup in of which the operator says that nothing was done since.
    fn ask_newest(&self, file: &Path) -> Output {
        let mut ca = Command::new(env!("CARGO_BIN_EXE_bonafide-ca"));
        ca.args(["restore", "--newest", "--config"]).arg(self.dir.path().join("ca.toml")).arg(file).output().unwrap()
    }

    fn authority(&self, shared: Option<bonafide_ca::store::EtcdPlace>) -> Authority {
        let state = self.dir.path().join("state/authority");
        let charter = Charter {
            state,
            trust_domain: "example.org".parse().unwrap(),
            intermediate_ttl: 3600,
            shared,
            passphrase: None,
        };
        Authority::open(&charter, std::sync::Arc::new(SystemClock)).unwrap()
    }

    fn prepare(&self) {
        std::fs::DirBuilder::new().mode(0o700).create(self.dir.path().join("state")).unwrap();
    }

    fn copy_key_to(&self, other: &Self) {
        let key = |host: &Self| host.dir.path().join("state/authority/root.key");
        std::fs::copy(key(self), key(other)).unwrap();
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What there is of everything: members, tokens that were used and one that was not, a ban, revocations, digests in
/// quarantine, and a policy in parts.
pub(crate) fn fill(authority: &Authority) {
    let by = By::Uid(0);
    for n in 0..200u8 {
        authority.quarantine().add(&by, Digest([n; 32]), "tested").unwrap();
    }
    for name in ["a", "b"] {
        let (token, _) = authority.create_token(terms()).unwrap();
        let [signing, authentication] = [(); 2].map(|()| csr::request(&Key::generate().unwrap()).unwrap());
        let application = Application {
            node: name.parse().unwrap(),
            signing_csr: signing,
            authentication_csr: authentication,
            bios_uuid: format!("bios-of-{name}"),
            machine_id: String::new(),
        };
        authority.join(token.secret(), &application).unwrap();
    }
    authority.ban(&by, &"b".parse().unwrap(), "tested").unwrap();
    authority.quarantine().revoke_workload(&by, &"shop/web".parse().unwrap(), "tested").unwrap();
    authority.revoke_serial(&by, &Serial::try_from(&[1u8; 16][..]).unwrap(), "tested").unwrap();
    let text = format!("mode = \"observe\"\n{}", "# filling\n".repeat(150_000));
    authority.publish(&by, &Publication { text, author: "Ada".into(), version: None, confirm_within: None }).unwrap();
    authority.create_token(terms()).unwrap();
}

fn terms() -> TokenTerms {
    TokenTerms { ttl: 600, ..TokenTerms::default() }
}

pub(crate) type Records = BTreeMap<(&'static str, Vec<u8>), Vec<u8>>;

/// All that is in a store.
pub(crate) fn all(engine: &dyn Engine) -> Records {
    let mut all = Records::new();
    for tree in Tree::ALL {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = engine.page(tree, after.as_deref(), 100).unwrap();
            let last = page.len() < 100;
            after = page.last().map(|(name, _)| name.clone());
            all.extend(page.into_iter().map(|(name, value)| ((tree.name(), name), value)));
            if last {
                break;
            }
        }
    }
    all
}

/// What a move changes: its own entries in the audit chain, and tokens that nobody had used are left out.
fn moved(mut all: Records, entries: u64) -> Records {
    all.retain(|(tree, name), value| {
        let unused = *tree == "tokens" && String::from_utf8_lossy(value).contains("\"used\":null");
        let later = *tree == "audit" && name.as_slice() > entries.to_be_bytes().as_slice();
        let head = *tree == "meta" && name == b"audit-head";
        !(unused || later || head)
    });
    all
}

/// What one has and the other has not, or otherwise.
fn differing(one: &Records, other: &Records) -> Vec<String> {
    let keys: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    let differ = keys.into_iter().filter(|key| one.get(*key) != other.get(*key));
    differ.map(|(tree, name)| format!("{tree}/{}", String::from_utf8_lossy(name))).collect()
}

#[test]
fn a_store_goes_from_sled_to_etcd_and_back_and_stays_what_it_was() {
    use std::os::unix::fs::MetadataExt as _;
    let cluster = Cluster::of(1);
    let (first, second, third) = (Host::new(""), Host::new(&cluster.configured("restored")), Host::new(""));
    first.prepare();
    let authority = first.authority(None);
    fill(&authority);
    let root = authority.trust_bundle().roots().to_vec();
    let running = first.ask("backup", &first.dir.path().join("early"));
    assert!(said(&running).contains("in use by another daemon"), "{}", said(&running));
    drop(authority);

    let (one, two) = (first.dir.path().join("one"), second.dir.path().join("two"));
    let output = first.ask("backup", &one);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(std::fs::metadata(&one).unwrap().mode() & 0o777, 0o600);
    let store =
        |host: &Host| bonafide_ca::store::Embedded::open(&host.dir.path().join("state/authority/store")).unwrap();
    let before = all(&store(&first));
    let head: Head = serde_json::from_slice(&before[&("meta", b"audit-head".to_vec())]).unwrap();

    assert!(said(&first.ask("backup", &one)).contains("exists"), "no file is overwritten");
    let output = second.ask_newest(&one);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("1 join tokens that nobody had used are not among them"), "{}", said(&output));
    assert!(said(&second.ask_newest(&one)).contains("is not empty"));
    let whole = moved(before, head.sequence);
    assert_eq!(differing(&moved(all(cluster.engine("restored").as_ref()), head.sequence), &whole), [""; 0]);
    first.copy_key_to(&second);
    let output = second.ask("backup", &two);
    assert!(output.status.success(), "{}", said(&output));

    let output = third.ask_newest(&two);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(differing(&moved(all(&store(&third)), head.sequence), &whole), [""; 0]);
    let trees: BTreeSet<&str> = whole.keys().map(|(tree, _)| *tree).collect();
    assert_eq!(trees.len(), Tree::ALL.len(), "nothing was there to compare of some: {trees:?}");
    first.copy_key_to(&third);
    let authority = third.authority(None);
    assert_eq!(authority.trust_bundle().roots(), root);
    let entries = crate::audit::verify(authority.store()).unwrap();
    let moves: Vec<_> =
        entries.iter().map(|e| e.act.as_str()).filter(|act| act.contains("ed-up") || *act == "restored").collect();
    assert_eq!(moves, ["backed-up", "restored", "backed-up", "restored"]);
    authority.create_token(terms()).unwrap();
}

/// What was revoked after the backup stays so, whatever the authority does: it admits nobody before its operator has
/// said that it lacks nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_backup_brings_back_no_token_and_lifts_no_revocation() {
    let cluster = Cluster::of(1);
    let hosts = ["before", "after"].map(|prefix| Host::new(&cluster.configured(prefix)));
    hosts[0].prepare();
    let authority = Arc::new(hosts[0].authority(Some(cluster.place("before"))));
    let nodes = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| Arc::new(crate::replicas::node(nodes.path(), name)));
    let (token, _) = authority.create_token(terms()).unwrap();
    a.join(&Embedded(authority.clone()), &token).await.unwrap();
    authority.quarantine().add(&By::Uid(0), Digest([1; 32]), "before").unwrap();
    let (later, _) = authority.create_token(terms()).unwrap();
    let file = hosts[0].dir.path().join("old");
    assert!(hosts[0].ask("backup", &file).status.success());

    let followed = follow(&a, &authority);
    b.join(&Embedded(authority.clone()), &later).await.unwrap();
    authority.quarantine().add(&By::Uid(0), Digest([2; 32]), "since").unwrap();
    knows(&a, Digest([2; 32])).await;
    followed.abort();
    drop(authority);

    // Who has seen what came later does not take it for the newest.
    let output = hosts[0].ask_newest(&file);
    assert!(said(&output).contains("is not empty"), "{}", said(&output));
    let mark = |host: &Host| host.dir.path().join("state/authority/store.audit");
    hosts[1].prepare();
    std::fs::DirBuilder::new().mode(0o700).create(hosts[1].dir.path().join("state/authority")).unwrap();
    std::fs::copy(mark(&hosts[0]), mark(&hosts[1])).unwrap();
    let output = hosts[1].ask_newest(&file);
    assert!(said(&output).contains("is not the newest state"), "{}", said(&output));
    let output = hosts[1].ask("restore", &file);
    for told in ["Nodes keep what they know", "bonafide-ca settle", "1 join tokens"] {
        assert!(output.status.success() && said(&output).contains(told), "{}", said(&output));
    }
    hosts[0].copy_key_to(&hosts[1]);
    let authority = Arc::new(hosts[1].authority(Some(cluster.place("after"))));
    let link = Embedded(authority.clone());

    // The token that admitted b admits nobody again, and nobody is admitted or renewed.
    let c = Arc::new(crate::replicas::node(nodes.path(), "c"));
    assert_eq!(refusal(c.join(&link, &later).await), "token-unknown");
    let (fresh, _) = authority.create_token(terms()).unwrap();
    assert_eq!(refusal(c.join(&link, &fresh).await), "authority-restored");
    assert_eq!(refusal(a.renew(&link).await), "authority-restored");
    let followed = follow(&a, &authority);
    // However much is changed: nothing that a node knows is lifted.
    for n in 10..20 {
        authority.quarantine().add(&By::Uid(0), Digest([n; 32]), "restored").unwrap();
        knows(&a, Digest([n; 32])).await;
        assert!(a.mesh().borrow().quarantine.contains(&Digest([2; 32])), "forgotten with change {n}");
    }
    authority.quarantine().add(&By::Uid(0), Digest([2; 32]), "again").unwrap();
    assert!(authority.settle(&By::Uid(0)).unwrap());
    assert!(!authority.settle(&By::Uid(0)).unwrap());
    a.renew(&link).await.unwrap();
    c.join(&link, &fresh).await.unwrap();
    // From here on nodes go by the authority alone.
    authority.quarantine().lift(&By::Uid(0), Digest([1; 32])).unwrap();
    let mut mesh = a.mesh();
    let lifted = mesh.wait_for(|mesh| !mesh.quarantine.contains(&Digest([1; 32])));
    tokio::time::timeout(Duration::from_secs(60), lifted).await.unwrap().unwrap();
    assert!(a.mesh().borrow().quarantine.contains(&Digest([2; 32])));
    followed.abort();
}

fn follow(node: &Arc<NodeCa>, authority: &Arc<Authority>) -> tokio::task::JoinHandle<()> {
    let (node, link) = (node.clone(), Embedded(authority.clone()));
    tokio::spawn(async move { match upkeep::follow(&node, &link).await {} })
}

fn refusal(outcome: Result<(), MembershipError>) -> String {
    match outcome {
        Err(MembershipError::Link(LinkError::Refused { reason, .. })) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_backup_that_is_not_what_was_written_restores_nothing() {
    let first = Host::new("");
    first.prepare();
    drop(first.authority(None));
    let file = first.dir.path().join("backup");
    assert!(first.ask("backup", &file).status.success());
    let whole = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let changed = |at: usize| {
        let mut changed: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
        let value = changed[at].rfind("\"value\":\"").map_or(20, |value| value + 12);
        let other = if changed[at].as_bytes()[value] == b'A' { "B" } else { "A" };
        changed[at].replace_range(value..=value, other);
        changed.join("\n") + "\n"
    };
    let bad = [
        String::new(),
        lines[..lines.len() - 1].join("\n"),
        [&lines[..1], &lines[2..]].concat().join("\n") + "\n",
        lines[1..].join("\n"),
        whole.clone() + lines[1],
        whole.replace("\"version\":1", "\"version\":2"),
        changed(1),
        changed(lines.len() - 2),
    ];
    for (n, text) in bad.iter().enumerate() {
        let second = Host::new("");
        let damaged = second.dir.path().join("damaged");
        std::fs::write(&damaged, text).unwrap();
        let output = second.ask("restore", &damaged);
        assert_eq!(output.status.code(), Some(1), "{n}: {}", said(&output));
        assert!(said(&output).contains("nothing of it can be trusted"), "{n}: {}", said(&output));
        assert!(second.ask("restore", &file).status.success(), "{n}: something was written all the same");
    }
    let other = Host::new("");
    let config = other.dir.path().join("ca.toml");
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap().replace("example.org", "example.com")).unwrap();
    assert!(said(&other.ask("restore", &file)).contains("is of trust domain example.org"));
}
