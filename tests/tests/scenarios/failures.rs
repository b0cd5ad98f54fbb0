//! Daemons die: in enforce mode nothing passes in the clear, nothing written is lost, and service comes back.

use std::time::{Duration, Instant};

use bonafide_proto::record::{End, Outcome, Reason};
use bonafide_tests::hybrid_tls::assert_only_hybrid_tls;
use bonafide_tests::node::{AUTHORITY_PORT, Backend, Daemon};
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{echo_server, hold, say, script, script_as};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, World};

on_each_backend! {
    each_daemon_is_killed_in_turn,
    flows_that_lived_when_their_enforcer_was_killed_are_recorded_at_its_next_start,
}

const MARKER: &str = "marker-9b1deb4d3b7d4bad";
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
    for records in [world.a().records(), world.b().records()] {
        let _ = records.take_many(12);
    }
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

#[test]
fn while_the_authority_is_away_certificates_work_and_new_ones_are_issued() {
    let bare = BareWorld::create();
    let (old, new) = (script_as(&bare, "say.py", "old.py"), script_as(&bare, "say.py", "new.py"));
    let policy = Policy::enforce()
        .script("test/old", &old)
        .script("test/new", &new)
        .script("test/server", &script(&bare, "echo_server.py"))
        .allow("old to server", "test/old", "test/server")
        .allow("new to server", "test/new", "test/server");
    let mut world = World::start(bare, &policy, Backend::Nft);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let ask = |world: &World, who, script| {
        for family in Family::BOTH {
            let said = run(&mut say(world.netns(Site::A), script, Site::B.at(family, 7), "hello")).success();
            assert_eq!(said, "hello\n");
            world.next_flow().assert_allowed(&format!("{who} to server"), &format!("test/{who}"), "test/server");
        }
    };
    ask(&world, "old", &old);
    world.authority().kill();
    ask(&world, "old", &old);
    // Never seen before: its node issues the certificate by itself, also after its own restart.
    ask(&world, "new", &new);
    world.host(Site::A).node().kill(Daemon::Ca);
    world.restart(Site::A, Daemon::Ca, &policy);
    world.set_policy(&policy.clone().lines("# the certificates are fetched again"));
    ask(&world, "new", &new);
    world.restart_authority();
    ask(&world, "old", &old);
    assert!(world.a().records().all().iter().all(|record| record.end == End::Source));
    world.finish();
}
