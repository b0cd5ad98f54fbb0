//! A member of the store that is cut off from everybody: what it sends gets lost, and nobody is told.
//!
//! In a network namespace of its own, where each member runs as a user of its own: a rule drops what that user sends.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bonafide_ca::store::Store;
use bonafide_ca::{NodeCa, upkeep};
use bonafide_proto::fingerprint::Digest;

use crate::cluster::Cluster;
use crate::replicas::{Authorities, check, clock, join, knows, node, quarantine, told};

/// A uid that nobody has.
const FIRST_UID: u32 = 74_800;

#[test]
fn a_member_that_is_cut_off_costs_nothing() {
    if is_inside() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(inside());
    }
    let myself = std::env::current_exe().unwrap();
    let mut inside = Command::new("unshare");
    inside.args([
        "--net",
        "sh",
        "-ec",
        "ip link set lo up; exec \"$0\" --nocapture --exact partition::a_member_that_is_cut_off_costs_nothing",
    ]);
    let output = inside.arg(myself).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
}

/// Whether this test was run by itself, in another network than itself. The machine's own rules are never touched.
fn is_inside() -> bool {
    let parent = std::os::unix::process::parent_id();
    let of = |process: &str, what: &str| std::fs::read_link(format!("/proc/{process}/{what}")).ok();
    let (me, it) = ("self", parent.to_string());
    of(&it, "exe").is_some_and(|exe| of(me, "exe") == Some(exe))
        && of(&it, "ns/net").is_some_and(|theirs| of(me, "ns/net").is_some_and(|ours| ours != theirs))
}

fn nft(script: &str) {
    let output = Command::new("nft").arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn drop_what(packets: &str) {
    nft(&format!(
        "add table inet cut; add chain inet cut out {{ type filter hook output priority 0; }}; \
         add rule inet cut out {packets} drop"
    ));
}

fn cut_off(member: u32) {
    drop_what(&format!("meta skuid {}", FIRST_UID + member));
}

/// Where this authority finds the store.
fn store_at(authority: usize) -> String {
    format!("127.0.1.{}", authority + 1)
}

/// Where nodes find this authority.
fn reached_at(authority: usize) -> String {
    format!("127.0.2.{}", authority + 1)
}

fn heal() {
    nft("delete table inet cut");
}

/// Which packets go nowhere when this authority is cut off, as nftables says it.
type Packets = fn(usize) -> String;

/// A way of the authority that the follower follows is cut: others admit a node, and revoke what the follower hears of.
async fn cut_at_authority(authorities: &Authorities, follower: &NodeCa, joining: &NodeCa, packets: Packets) {
    let cut = authorities.followed_by(follower.name()).await;
    let others: Vec<usize> = (0..3).filter(|n| *n != cut).collect();
    drop_what(&packets(cut));
    let digest = Digest::of(joining.name().as_str().as_bytes());
    let took = told(authorities, others[0], follower, digest).await;
    eprintln!("a revocation reached a node in {took:?}: {} of its authority", joining.name());
    // A busy machine has more to do than this.
    assert!(took < Duration::from_secs(15), "{took:?}");
    let sockets: Vec<_> = others.iter().map(|n| authorities.socket(*n)).collect();
    join(joining, &authorities.link(), &sockets).await;
    heal();
}

async fn inside() {
    let cluster = Cluster::as_users(3, FIRST_UID);
    // Each reaches the store by an address of its own, and is reached by one: so each way can be cut.
    let each = [0, 1, 2].map(|n| (reached_at(n), cluster.configured_at(&store_at(n), "cut")));
    let authorities = Authorities::at(&each).await;
    let dir = tempfile::tempdir().unwrap();
    let sockets = [0, 1, 2].map(|n| authorities.socket(n));
    let first = Arc::new(node(dir.path(), "first"));
    join(&first, &authorities.link(), &sockets).await;
    let (follower, link) = (first.clone(), authorities.link());
    let following = tokio::spawn(async move { match upkeep::follow(&follower, &link).await {} });
    let mut members = BTreeSet::from(["first".to_owned()]);
    for n in 0..3u8 {
        cut_off(n.into());
        let joining = node(dir.path(), &format!("n{n}"));
        join(&joining, &authorities.link(), &sockets).await;
        members.insert(joining.name().to_string());
        // The first authority watches by whichever member: if by this one, it notices, and watches by another.
        let digest = Digest([n + 1; 32]);
        quarantine(&authorities, 1, digest).await;
        let took = knows(&first, digest).await;
        assert!(took < Duration::from_secs(30), "{took:?}");
        heal();
    }
    // It cannot know any more what others know; and it is silent.
    let ways: [(&str, Packets); 2] = [
        ("cut-from-the-store", |cut| format!("ip daddr {}", store_at(cut))),
        ("cut-from-the-nodes", |cut| format!("ip daddr {0} drop; add rule inet cut out ip saddr {0}", reached_at(cut))),
    ];
    for (name, packets) in ways {
        let joining = node(dir.path(), name);
        cut_at_authority(&authorities, &first, &joining, packets).await;
        members.insert(name.to_owned());
    }
    following.abort();
    let store = Store::open(cluster.engine("cut"), &dir.path().join("mark"), clock()).unwrap();
    check(&store, &members);
}
