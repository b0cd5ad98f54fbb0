//! The authority's policy on two hosts: published once, enforced on both, and kept by nodes that are cut off.

use std::time::Duration;

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::record::{End, EndedBy, FlowRecord, Outcome, Reason};
use bonafide_tests::ends::assert_refused;
use bonafide_tests::node::{Backend, Daemon};
use bonafide_tests::operator::bonafide;
use bonafide_tests::policy::Policy;
use bonafide_tests::programs::{echo_server, hold, interpret, script};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::{wait_for, wait_until};
use bonafide_tests::world::{BareWorld, World};
use rustix::process::Signal;

on_each_backend! {
    a_policy_is_published_once_and_enforced_on_both_hosts_also_when_the_authority_is_gone,
}

/// For a busy machine; the promise is a second.
const SOON: Duration = Duration::from_secs(10);

fn names(bare: &BareWorld) -> Policy {
    Policy::enforce()
        .script("test/client", &script(bare, "hold.py"))
        .script("test/server", &script(bare, "echo_server.py"))
}

/// Waits until both nodes judge by it.
fn in_force(world: &mut World, policy: &Policy) {
    let digest = Digest::of(policy.text().as_bytes());
    for site in [Site::A, Site::B] {
        let host = world.host(site);
        wait_for("the published policy to be in force", SOON, || host.node().enforces(&digest));
    }
}

fn ended_by_policy(record: &FlowRecord) -> bool {
    assert_eq!(record.verdict, Outcome::Allowed, "{record:#?}");
    match (record.reason, record.ended_by) {
        (Some(Reason::EndedByPeer), EndedBy::Peer) => false,
        (Some(Reason::PolicyChanged), EndedBy::Enforcer) => true,
        _ => panic!("{record:#?}"),
    }
}

fn a_policy_is_published_once_and_enforced_on_both_hosts_also_when_the_authority_is_gone(backend: Backend) {
    let bare = BareWorld::create();
    let allowing = names(&bare).allow("client to server", "test/client", "test/server");
    let denying = names(&bare);
    let mut world = World::start_published(bare, &allowing, backend);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let mut holders = Family::BOTH.map(|family| {
        let mut holder = hold(world.bare(), world.netns(Site::A), Site::B.at(family, 7));
        holder.signal(Signal::USR1);
        holder.wait_for_output("echoed");
        holder
    });

    // Live connections end by a policy that allows them no longer, and the records say so.
    let said = world.publish(&denying).success();
    assert!(said.starts_with("version 2 is published"), "{said}");
    for holder in &mut holders {
        wait_until("the idle connection to be ended", SOON, || !holder.is_running());
        assert!(holder.output().contains("ECONNRESET"), "{}", holder.output());
        let ends = world.next_flow();
        assert!(ends.both().map(ended_by_policy).contains(&true), "neither end says why: {ends:#?}");
    }
    in_force(&mut world, &denying);
    let dir = world.authority().dir().to_owned();
    wait_for("the authority to be told so", SOON, || {
        let status = bonafide(&dir, &["policy", "status"]);
        let everywhere = status.code() == Some(0) && status.stdout.starts_with("version 2, published");
        everywhere.then_some(()).ok_or_else(|| format!("{status:?}"))
    });
    assert_eq!(bonafide(&dir, &["policy", "published", "--text"]).success(), denying.text());

    // A mistake is found before anybody is told.
    let broken = dir.join("broken.toml");
    std::fs::write(&broken, "mode = \"sleep\"\n").expect("it can be written");
    let refused = bonafide(&dir, &["policy", "publish", &broken.display().to_string()]);
    assert!(refused.code() == Some(2) && refused.stderr.contains("broken.toml:1:"), "{refused:#?}");

    // Without the authority, a node that starts anew enforces what it was told last, and asks nobody.
    world.authority().kill();
    for daemon in [Daemon::Ca, Daemon::Identityd] {
        world.host(Site::A).node().kill(daemon);
    }
    // Not even its own CA.
    world.on(Site::A, |node, netns| node.start_daemon(Daemon::Identityd, netns));
    let node = world.a().dir().to_owned();
    wait_for("identityd to have it in force again", SOON, || {
        let status = bonafide(&node, &["status"]);
        let said = status.stdout.contains("policy of the authority, version 2,");
        said.then_some(()).ok_or_else(|| format!("{status:?}"))
    });
    world.restart(Site::A, Daemon::Ca, &denying);
    for family in Family::BOTH {
        let to = Site::B.at(family, 7);
        let words = [to.ip().to_string(), to.port().to_string()];
        let client = world.bare().dir().join("hold.py");
        let mut command = interpret(world.netns(Site::A), &client, &words.each_ref().map(String::as_str));
        bonafide_tests::process::run(&mut command).was_reset();
        assert_refused(&world.a().records().next(End::Source), Reason::NoRule);
    }

    // Back, the authority counts on.
    world.restart_authority();
    let said = world.publish(&allowing).success();
    assert!(said.starts_with("version 3 is published"), "{said}");
    in_force(&mut world, &allowing);
    world.finish();
}

#[test]
fn what_locks_out_is_taken_back_unless_it_is_confirmed() {
    let bare = BareWorld::create();
    let allowing = names(&bare).allow("client to server", "test/client", "test/server");
    let denying = names(&bare).allow("client to itself", "test/client", "test/client");
    let mut world = World::start_published(bare, &allowing, Backend::Nft);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let authority = world.authority().dir().to_owned();
    let records = [world.a(), world.b()].map(|host| format!("{}/state/enforcer/flows.jsonl", host.dir().display()));
    let file = world.bare().file("denying.toml", denying.text()).display().to_string();
    let apply = |more: &[&str]| {
        let seen = ["--seen", &records[0], "--seen", &records[1]];
        bonafide(&authority, &[&["policy", "apply", &file], &seen[..], more].concat())
    };
    hold(world.bare(), world.netns(Site::A), Site::B.at(Family::V4, 7)).kill();
    world.next_flow().assert_allowed("client to server", "test/client", "test/server");

    // What is seen speaks against it, so it takes a yes.
    let refused = apply(&[]);
    assert_eq!(refused.code(), Some(3), "{refused:#?}");
    assert!(
        refused.stdout.contains("newly denied: 1 flows of 1 kinds\n  test/client to test/server on 7"),
        "{refused:#?}"
    );
    let mut holder = hold(world.bare(), world.netns(Site::A), Site::B.at(Family::V6, 7));
    let applied = apply(&["--yes", "--confirm-within", "5s", "--author", "Eve"]).success();
    assert!(applied.contains("bonafide policy confirm 2"), "{applied}");
    in_force(&mut world, &denying);
    wait_until("the connection to be ended", SOON, || !holder.is_running());
    assert!(world.next_flow().both().map(ended_by_policy).contains(&true), "neither end says why");
    // Nobody confirms, and this login is older than the version.
    let confirm = |more: &[&str]| bonafide(&authority, &[&["policy", "confirm"], more].concat());
    assert_eq!(confirm(&[]).code(), Some(3));
    in_force(&mut world, &allowing);
    hold(world.bare(), world.netns(Site::A), Site::B.at(Family::V6, 7)).kill();
    world.next_flow().assert_allowed("client to server", "test/client", "test/server");

    // Confirmed, it stays until somebody goes back.
    assert!(apply(&["--yes", "--confirm-within", "1d"]).success().contains("bonafide policy confirm 4"));
    let confirmed = confirm(&["4", "--from-here"]).success();
    assert!(confirmed.starts_with("version 4, ") && !confirmed.contains("not confirmed"), "{confirmed}");
    in_force(&mut world, &denying);
    let back = bonafide(&authority, &["policy", "rollback"]).success();
    assert!(back.starts_with("version 5 is published"), "{back}");
    in_force(&mut world, &allowing);
    let history = bonafide(&authority, &["policy", "history"]).success();
    let versions: Vec<_> = history.lines().filter_map(|line| line.split([' ', ',']).nth(1)).collect();
    assert_eq!(versions, ["5", "4", "3", "2", "1"], "{history}");
    assert!(history.contains(" by Eve, "), "{history}");
    let changed = bonafide(&authority, &["policy", "history", "--diff", "2"]).success();
    assert!(
        changed.contains("-name = \"client to server\"") && changed.contains("+name = \"client to itself\""),
        "{changed}"
    );
    world.finish();
}
