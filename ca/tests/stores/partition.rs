//! A member of the store that is cut off from everybody: what it sends gets lost, and nobody is told.
//!
//! In a network namespace of its own, where each member runs as a user of its own: a rule drops what that user sends.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bonafide_ca::store::Store;
use bonafide_ca::upkeep;
use bonafide_proto::fingerprint::Digest;

use crate::cluster::Cluster;
use crate::replicas::{Authorities, check, clock, join, knows, node, quarantine};

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
        "ip link set lo up; exec \"$0\" --exact partition::a_member_that_is_cut_off_costs_nothing",
    ]);
    let output = inside.arg(myself).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
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

fn cut_off(member: u32) {
    let uid = FIRST_UID + member;
    nft(&format!(
        "add table inet cut; add chain inet cut out {{ type filter hook output priority 0; }}; \
         add rule inet cut out meta skuid {uid} drop"
    ));
}

fn heal() {
    nft("delete table inet cut");
}

async fn inside() {
    let cluster = Cluster::as_users(3, FIRST_UID);
    let authorities = Authorities::on(&cluster.place("cut"), 2).await;
    let dir = tempfile::tempdir().unwrap();
    let sockets = [authorities.socket(0), authorities.socket(1)];
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
    following.abort();
    let store = Store::open(cluster.engine("cut"), &dir.path().join("mark"), clock()).unwrap();
    check(&store, &members);
}
