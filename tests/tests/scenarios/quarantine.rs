//! One command takes a program out of the mesh: its live connections end on both hosts, and no new ones begin.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::record::{End, EndedBy, FlowRecord, Outcome, Reason};
use bonafide_tests::ends::{assert_refused, digest_of};
use bonafide_tests::node::{Backend, Daemon};
use bonafide_tests::operator::bonafide;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::Program;
use bonafide_tests::programs::{echo_server, hold, interpret, script, script_as};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, World};
use rustix::process::Signal;

on_each_backend! {
    a_quarantined_program_loses_its_live_connections_and_gets_no_new_ones_until_it_is_lifted,
}

/// For a busy machine; the promise is a second.
const SOON: Duration = Duration::from_secs(10);

/// The authority's operator.
fn quarantine(world: &mut World, args: &[&str]) -> String {
    let dir = world.authority().dir().to_owned();
    bonafide(&dir, &[&["quarantine"], args].concat()).success()
}

/// Waits until every node says that it has this in force. The connections by which nodes are told are made again when
/// their capture begins, which may still be under way.
fn in_force_everywhere(world: &mut World, args: &[&str]) {
    wait_until("every node to be told", SOON, || quarantine(world, args).ends_with("in force on 2 of 2 nodes\n"));
}

fn a_quarantined_program_loses_its_live_connections_and_gets_no_new_ones_until_it_is_lifted(backend: Backend) {
    let bare = BareWorld::create();
    let (client, server) = (script(&bare, "hold.py"), script(&bare, "echo_server.py"));
    let other = script_as(&bare, "say.py", "other.py");
    let policy = Policy::enforce()
        .script("test/client", &client)
        .script("test/server", &server)
        .script("test/other", &other)
        .allow("client to server", "test/client", "test/server");
    let mut world = World::start(bare, &policy, backend);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    in_force_everywhere(&mut world, &[&Digest([0x11; 32]).to_string()]);
    in_force_everywhere(&mut world, &[&Digest([0x11; 32]).to_string(), "--lift"]);

    for (family, digest) in Family::BOTH.into_iter().zip([digest_of(&client), digest_of(&server)]) {
        let to = Site::B.at(family, 7);
        let mut holder = hold(world.bare(), world.netns(Site::A), to);
        let said = quarantine(&mut world, &[&digest.to_string(), "--reason", "CVE-2026-1"]);
        assert_eq!(said, format!("{digest} is in quarantine; in force on 2 of 2 nodes\n"));
        wait_until("the idle connection to be ended", SOON, || !holder.is_running());
        assert!(holder.output().contains("ECONNRESET"), "{}", holder.output());
        let ends = world.next_flow();
        let quarantined = ends.both().map(ended_by_quarantine);
        assert!(quarantined.contains(&true), "neither end says why: {ends:#?}");
        assert!(quarantine(&mut world, &["--list"]).contains("CVE-2026-1"));

        let said = quarantine(&mut world, &[&digest.to_string(), "--lift"]);
        assert_eq!(said, format!("{digest} is in quarantine no longer; in force on 2 of 2 nodes\n"));
        let mut holder = let_through(&world, &client, to);
        holder.signal(Signal::USR1);
        holder.wait_for_output("echoed");
        holder.kill();
        world.next_flow().assert_allowed("client to server", "test/client", "test/server").assert_closed();
    }
    assert_eq!(quarantine(&mut world, &["--list"]).lines().count(), 1);
    world.finish();
}

/// Whether this end ended it for the quarantine; else the other end did, and told.
fn ended_by_quarantine(record: &FlowRecord) -> bool {
    assert_eq!(record.verdict, Outcome::Allowed, "{record:#?}");
    match (record.reason, record.ended_by) {
        (Some(Reason::Quarantined), EndedBy::Enforcer) => true,
        (Some(Reason::EndedByPeer), EndedBy::Peer) => {
            assert_eq!(record.detail.as_deref(), Some("the other enforcer ended it: quarantined"), "{record:#?}");
            false
        }
        _ => panic!("{record:#?}"),
    }
}

/// A client whose connection is let through, sooner or later.
fn let_through(world: &World, client: &Path, to: SocketAddr) -> Program {
    let mut found = None;
    wait_until("a connection to be let through", SOON, || {
        let log = world.bare().dir().join("attempt.log");
        let _ = std::fs::remove_file(&log);
        let words = [to.ip().to_string(), to.port().to_string()];
        let mut command = interpret(world.netns(Site::A), client, &words.each_ref().map(String::as_str));
        let mut attempt = Program::start("attempt", &mut command, &log);
        wait_until("an attempt to come to something", SOON, || {
            attempt.output().contains("open") || !attempt.is_running()
        });
        let open = attempt.output().contains("open");
        if open {
            found = Some(attempt);
        } else {
            drop(world.a().records().next(End::Source));
        }
        open
    });
    // Those that b refused it has told of, too; they are no part of the scenario.
    while let Some(refused) = world.b().records().all().iter().find(|r| r.verdict == Outcome::Refused) {
        let id = refused.id.clone();
        if world.b().records().try_take(|record| record.id == id).is_none() {
            break;
        }
    }
    found.expect("it was let through")
}

#[test]
fn a_node_that_is_cut_off_refuses_what_is_in_quarantine_also_after_a_restart() {
    let bare = BareWorld::create();
    let client = script(&bare, "hold.py");
    let policy = Policy::enforce()
        .script("test/client", &client)
        .script("test/server", &script(&bare, "echo_server.py"))
        .allow("client to server", "test/client", "test/server");
    let mut world = World::start(bare, &policy, Backend::Nft);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let digest = digest_of(&client).to_string();
    in_force_everywhere(&mut world, &[&digest]);
    let known = std::fs::read_to_string(world.a().dir().join("state/ca/node/mesh.json")).unwrap();
    assert!(known.contains(&digest), "what is said to be in force is kept: {known}");

    world.authority().kill();
    for daemon in [Daemon::Ca, Daemon::Identityd] {
        world.host(Site::A).node().kill(daemon);
        world.restart(Site::A, daemon, &policy);
    }
    for family in Family::BOTH {
        let to = Site::B.at(family, 7);
        let words = [to.ip().to_string(), to.port().to_string()];
        let mut command = interpret(world.netns(Site::A), &client, &words.each_ref().map(String::as_str));
        bonafide_tests::process::run(&mut command).was_reset();
        assert_refused(&world.a().records().next(End::Source), Reason::Quarantined);
    }
    world.finish();
}
