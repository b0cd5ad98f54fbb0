//! Somebody has a copy of a node's state on another host: two have one node's keys, and that shows itself.

use std::process::Command;
use std::time::Duration;

use bonafide_tests::node::{Authority, Backend, Daemon, Node, NodeFiles};
use bonafide_tests::operator::bonafide;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::must_run;
use bonafide_tests::rpc;
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::BareWorld;

/// An older certificate is taken for one on its way for a minute, and each node comes at least once in another.
const SHOWN: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(20);

fn prepared(world: &BareWorld, instance: &str, dir: &str, token: &str) -> Node {
    let (dir, policy) = (world.dir().join(dir), world.file("policy.toml", Policy::enforce().text()));
    let (backend, authority_family) = (Backend::Nft, Family::V4);
    let files = NodeFiles { dir: &dir, policy: Some(&policy), token, backend, authority_family };
    Node::prepare(instance, Site::A, &files)
}

/// As the node's CA says.
fn reaches_its_authority(node: &Node) -> bool {
    rpc::issuance_status(&node.layout().ca_socket()).is_ok_and(|status| status.authority_reachable)
}

#[test]
fn a_copied_state_directory_makes_the_node_suspect_and_a_ban_shuts_both_out() {
    let mut world = BareWorld::create();
    let instance = world.instance().to_owned();
    let authority = Authority::start(&instance, &world.topology().authority, &world.dir().join("authority"));
    let token = authority.token("a", 60);
    let mut node = prepared(&world, &instance, "a", &token);
    node.start_daemon(Daemon::Ca, &world.topology().a);
    node.wait_member();
    node.kill(Daemon::Ca);

    let mut copy = prepared(&world, &format!("{instance}c"), "copy", &authority.token("b", 60));
    let (from, to) = (node.layout().ca_state(), copy.layout().ca_state());
    must_run(Command::new("cp").arg("-aT").arg(from).arg(to));
    node.start_daemon(Daemon::Ca, &world.topology().a);
    copy.start_daemon(Daemon::Ca, &world.topology().b);
    let both = [&node, &copy];
    wait_until("both to be heard: nobody can tell them apart yet", SOON, || {
        both.into_iter().all(reaches_its_authority)
    });
    let list = || bonafide(authority.dir(), &["node", "list"]).success();
    assert!(!list().contains("suspect"), "{}", list());

    // Less than it had: what was issued before is revoked, and whoever has the node's keys renews.
    let _ = bonafide(authority.dir(), &["node", "grant", "a", "--workloads", "shop/web"]).success();
    world.only_waits();
    wait_until("the copy to show itself", SHOWN, || list().contains("suspect: it showed its certificate"));
    let audit = bonafide(authority.dir(), &["audit", "verify"]);
    assert_eq!(audit.code(), Some(0), "{audit:?}");

    let _ = bonafide(authority.dir(), &["node", "ban", "a"]).success();
    let neither = || both.into_iter().all(|node| !reaches_its_authority(node));
    wait_until("both to be shut out", SHOWN, neither);
}
