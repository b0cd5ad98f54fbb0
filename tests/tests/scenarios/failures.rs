//! Daemons die: in enforce mode nothing passes in the clear, nothing written is lost, and service comes back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bonafide_proto::record::{End, FlowRecord, Outcome, Reason};
use bonafide_tests::hybrid_tls::assert_only_hybrid_tls;
use bonafide_tests::node::{AUTHORITY_PORT, Backend, Daemon, Node, NodeFiles};
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{echo_server, hold, say, script, script_as};
use bonafide_tests::records::Records;
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::{wait_for, wait_until};
use bonafide_tests::world::{BareWorld, Host, World};

on_each_backend! {
    each_daemon_is_killed_in_turn,
    flows_that_lived_when_their_enforcer_was_killed_are_recorded_at_its_next_start,
    while_the_authority_is_away_certificates_work_and_new_ones_are_issued,
}

const MARKER: &str = "marker-9b1deb4d3b7d4bad";
/// The flows that a host let through.
fn allowed(records: &Records) -> BTreeSet<String> {
    let allowed = records.all().into_iter().filter(|record| record.verdict == Outcome::Allowed);
    allowed.map(|record| record.id).collect()
}

/// A node that joins while the world is at work.
const LATE: &str = "c";
/// Service has to be back this soon after a daemon's restart.
const BACK: Duration = Duration::from_secs(2);

fn each_daemon_is_killed_in_turn(backend: Backend) {
    let bare = BareWorld::create_alone();
    let client = script(&bare, "say.py");
    let policy = Policy::enforce()
        .script("test/client", &client)
        .script("test/server", &script(&bare, "echo_server.py"))
        .allow("client to server", "test/client", "test/server");
    let mut world = World::start(bare, &policy, backend);
    let capture = world.bare().capture();
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let ask = |world: &World, family| run(&mut say(world.netns(Site::A), &client, Site::B.at(family, 7), MARKER));

    for site in [Site::A, Site::B] {
        for daemon in Daemon::ALL {
            let before = [world.a().records().all(), world.b().records().all()];
            world.host(site).node().kill(daemon);
            for family in Family::BOTH {
                // With its certificate at hand the enforcer may still serve it; what must not happen is a hang.
                let asked = ask(&world, family);
                assert!(asked.code().is_some(), "a client hangs without {daemon:?} of {site:?}: {asked:#?}");
                let dead_end = daemon == Daemon::Enforcer;
                assert!(!(dead_end && asked.code() == Some(0)), "it got through without {daemon:?} of {site:?}");
            }
            let restarted = Instant::now();
            world.on(site, |node, netns| node.start_daemon(daemon, netns));
            for family in Family::BOTH {
                let what = format!("service after the restart of {daemon:?} of {site:?}");
                wait_until(&what, BACK, || ask(&world, family).code() == Some(0));
            }
            assert!(restarted.elapsed() < BACK, "it took {:?} after {daemon:?} of {site:?}", restarted.elapsed());
            for (before, host) in before.iter().zip([world.a(), world.b()]) {
                let now = host.records().all();
                assert_eq!(&now[..before.len()], &before[..], "records were lost with {daemon:?} of {site:?}");
            }
        }
    }

    let traffic = capture.finish();
    assert!(!traffic.shows(MARKER.as_bytes()), "payload was on the wire in the clear");
    let tunnels = assert_only_hybrid_tls(&traffic, |s| [s.from.port(), s.to.port()].contains(&AUTHORITY_PORT));
    assert!(tunnels >= 12, "only {tunnels} tunnels were seen");
    let hosts = [world.a(), world.b()];
    let flows = wait_for("every flow that was allowed to be recorded by both ends", Duration::from_secs(8), || {
        let [at_a, at_b] = hosts.map(|host| allowed(host.records()));
        if at_a == at_b { Ok(at_a) } else { Err(format!("{at_a:?} and {at_b:?}")) }
    });
    for records in hosts.map(Host::records) {
        let records = records.take_many(flows.len());
        let known = |record: &FlowRecord| record.verdict == Outcome::Allowed || record.reason.is_some();
        assert!(records.iter().all(known), "a refusal without a reason: {records:#?}");
    }
    assert!(flows.len() >= 12, "only {} flows were allowed", flows.len());
    world.finish();
}

fn flows_that_lived_when_their_enforcer_was_killed_are_recorded_at_its_next_start(backend: Backend) {
    let bare = BareWorld::create();
    let policy = Policy::enforce()
        .script("test/client", &script(&bare, "hold.py"))
        .script("test/server", &script(&bare, "echo_server.py"))
        .allow("client to server", "test/client", "test/server");
    let mut world = World::start(bare, &policy, backend);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    for (site, there) in [(Site::A, Site::B), (Site::B, Site::A)] {
        for family in Family::BOTH {
            let mut holder = hold(world.bare(), world.netns(Site::A), Site::B.at(family, 7));
            world.host(site).node().kill(Daemon::Enforcer);
            wait_until("the client to notice", Duration::from_secs(5), || !holder.is_running());
            world.restart(site, Daemon::Enforcer, &policy);
            let ends = world.next_flow();
            for record in ends.both() {
                assert_eq!(record.verdict, Outcome::Allowed, "{record:#?}");
                assert_eq!(record.id, ends.source.id);
            }
            let (killed, survivor) = match there {
                Site::B => (&ends.source, &ends.destination),
                _ => (&ends.destination, &ends.source),
            };
            assert_eq!(killed.reason, Some(Reason::EnforcerKilled), "{killed:#?}");
            assert_eq!(survivor.reason, Some(Reason::TunnelBroken), "{survivor:#?}");
        }
    }
    world.finish();
}

/// One more node joins, from the router: nothing is captured there.
fn join(world: &World, policy: &Policy, token: &str) {
    let bare = world.bare();
    let (dir, policy) = (bare.dir().join(LATE), bare.file("policy-late.toml", policy.text()));
    let files =
        NodeFiles { dir: &dir, policy: Some(&policy), token, backend: Backend::Nft, authority_family: Family::V6 };
    let mut late = Node::prepare_named(bare.instance(), LATE, &files);
    late.start_daemon(Daemon::Ca, &bare.topology().router);
    late.wait_member();
}

fn while_the_authority_is_away_certificates_work_and_new_ones_are_issued(backend: Backend) {
    let bare = BareWorld::create();
    let (old, new) = (script_as(&bare, "say.py", "old.py"), script_as(&bare, "say.py", "new.py"));
    let policy = Policy::enforce()
        .script("test/old", &old)
        .script("test/new", &new)
        .script("test/server", &script(&bare, "echo_server.py"))
        .allow("old to server", "test/old", "test/server")
        .allow("new to server", "test/new", "test/server");
    let mut world = World::start(bare, &policy, backend);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let ask = |world: &World, who, script| {
        for family in Family::BOTH {
            let said = run(&mut say(world.netns(Site::A), script, Site::B.at(family, 7), "hello")).success();
            assert_eq!(said, "hello\n");
            world.next_flow().assert_allowed(&format!("{who} to server"), &format!("test/{who}"), "test/server");
        }
    };
    ask(&world, "old", &old);
    let token = world.authority().token(LATE, 60);
    world.authority().kill();
    ask(&world, "old", &old);
    // Never seen before: its node issues the certificate by itself, also after its own restart.
    ask(&world, "new", &new);
    world.host(Site::A).node().kill(Daemon::Ca);
    world.restart(Site::A, Daemon::Ca, &policy);
    world.set_policy(&policy.clone().lines("# the certificates are fetched again"));
    ask(&world, "new", &new);
    let restarted = Instant::now();
    world.restart_authority();
    join(&world, &policy, &token);
    assert!(restarted.elapsed() < BACK, "the authority took {:?} to admit again", restarted.elapsed());
    ask(&world, "old", &old);
    assert!(world.a().records().all().iter().all(|record| record.end == End::Source));
    world.finish();
}
