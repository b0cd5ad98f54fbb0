//! What the authority takes back ends live connections on other hosts at once, and refuses new ones by name; a host that
//! was away learns it when it comes back.

use std::time::{Duration, Instant};

use bonafide_proto::record::{End, EndedBy, FlowRecord, Outcome, Reason};
use bonafide_tests::ends::assert_refused;
use bonafide_tests::node::{Backend, Daemon};
use bonafide_tests::operator::bonafide;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{echo_server, hold, say, script};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, World};

/// For a busy machine; the promise is a second.
const SOON: Duration = Duration::from_secs(10);

/// The authority's operator.
fn operator(world: &mut World, args: &[&str]) -> String {
    let dir = world.authority().dir().to_owned();
    bonafide(&dir, args).success()
}

fn world() -> (World, std::path::PathBuf) {
    let bare = BareWorld::create();
    let client = script(&bare, "say.py");
    let policy = Policy::enforce()
        .script("test/holder", &script(&bare, "hold.py"))
        .script("test/client", &client)
        .script("test/server", &script(&bare, "echo_server.py"))
        .allow("holder to server", "test/holder", "test/server")
        .allow("client to server", "test/client", "test/server");
    let mut world = World::start(bare, &policy, Backend::Nft);
    // Connections by which nodes are told are made again when capture begins, which may still be under way.
    wait_until("every node to be told", SOON, || {
        operator(&mut world, &["revoke", "workload", "test/nobody"]).ends_with("in force on 2 of 2 nodes\n")
    });
    (world, client)
}

/// Whether this end ended it by that name; else the other end did, and told.
pub(crate) fn ended_for(record: &FlowRecord, reason: Reason) -> bool {
    assert_eq!(record.verdict, Outcome::Allowed, "{record:#?}");
    match (record.reason, record.ended_by) {
        (Some(said), EndedBy::Enforcer) if said == reason => true,
        (Some(Reason::EndedByPeer), EndedBy::Peer) => {
            let said = format!("the other enforcer ended it: {}", reason.as_str());
            assert_eq!(record.detail.as_deref(), Some(said.as_str()), "{record:#?}");
            false
        }
        _ => panic!("{record:#?}"),
    }
}

#[test]
fn a_banned_nodes_connections_end_on_other_hosts_and_it_makes_no_new_ones() {
    let (mut world, client) = world();
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let mut holders = Family::BOTH.map(|family| hold(world.bare(), world.netns(Site::A), Site::B.at(family, 7)));
    let asked = Instant::now();
    let said = operator(&mut world, &["node", "ban", "a", "--reason", "stolen"]);
    let told = asked.elapsed();
    assert!(said.starts_with("node a is banned; in force on 1 of 1 nodes"), "{said}");
    for holder in &mut holders {
        wait_until("the idle connection to be ended", SOON, || !holder.is_running());
        assert!(holder.output().contains("ECONNRESET"), "{}", holder.output());
    }
    for _ in Family::BOTH {
        let ends = world.next_flow();
        let by = ends.both().map(|record| ended_for(record, Reason::NodeRevoked));
        assert!(by.contains(&true), "neither end says why: {ends:#?}");
        // The answer came when it was in force there, and what was in force had ended them.
        assert!(told < SOON, "it took {told:?}");
    }
    for family in Family::BOTH {
        // The banned host hears of it by being turned away; until then the other end refuses.
        wait_until("the banned host to refuse by itself", SOON, || {
            run(&mut say(world.netns(Site::A), &client, Site::B.at(family, 7), "hello")).was_reset();
            let source = world.a().records().next(End::Source);
            let destination = world.b().records().next(End::Destination);
            match source.reason {
                Some(Reason::NodeRevoked) => {
                    // It had connected before it asked for a certificate, and left without a word.
                    assert_refused(&destination, Reason::NotBonafide);
                    true
                }
                _ => {
                    assert_refused(&destination, Reason::NodeRevoked);
                    false
                }
            }
        });
    }
    let listed = operator(&mut world, &["node", "list"]);
    assert!(listed.lines().any(|line| line.starts_with("a ") && line.contains("banned")), "{listed}");
    let listed = operator(&mut world, &["revoke", "list"]);
    assert!(listed.contains("banned node") && listed.contains("stolen"), "{listed}");
    world.finish();
}

#[test]
fn a_workload_and_a_certificate_are_revoked_by_name_and_lifted() {
    let (mut world, client) = world();
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let to = Site::B.at(Family::V6, 7);
    let mut holder = hold(world.bare(), world.netns(Site::A), to);
    let said = operator(&mut world, &["revoke", "workload", "test/holder"]);
    assert_eq!(said, "workload test/holder is revoked; in force on 2 of 2 nodes\n");
    wait_until("the idle connection to be ended", SOON, || !holder.is_running());
    let ends = world.next_flow();
    let by = ends.both().map(|record| ended_for(record, Reason::WorkloadRevoked));
    assert!(by.contains(&true), "neither end says why: {ends:#?}");
    let said = run(&mut say(world.netns(Site::A), &client, to, "hello")).success();
    assert_eq!(said, "hello\n", "another workload goes on");
    drop(world.next_flow());
    operator(&mut world, &["revoke", "workload", "test/holder", "--lift"]);

    let mut holder = hold(world.bare(), world.netns(Site::A), to);
    // The other end's record will name the certificate; this one is asked for first by a short flow of the same program.
    assert_eq!(run(&mut say(world.netns(Site::A), &client, to, "hello")).success(), "hello\n");
    let serial = world.next_flow().destination.tls.unwrap().peer_serial;
    operator(&mut world, &["revoke", "serial", &serial]);
    // It is of the other program, which is none of the holder's business.
    assert!(holder.is_running());
    let said = run(&mut say(world.netns(Site::A), &client, to, "again")).success();
    assert_eq!(said, "again\n", "it has got another certificate");
    let again = world.next_flow();
    assert_ne!(again.destination.tls.unwrap().peer_serial, serial);
    holder.kill();
    drop(world.next_flow());
    world.finish();
}

#[test]
fn a_host_that_was_away_learns_what_was_revoked_when_it_comes_back() {
    let (mut world, client) = world();
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let to = Site::B.at(Family::V4, 7);
    assert_eq!(run(&mut say(world.netns(Site::A), &client, to, "hello")).success(), "hello\n");
    drop(world.next_flow());
    world.host(Site::A).node().kill(Daemon::Ca);
    let said = operator(&mut world, &["revoke", "workload", "test/client"]);
    assert!(said.contains("in force on 1 of 2 nodes, on a as soon as they come back"), "{said}");
    world.on(Site::A, |node, netns| node.start_daemon(Daemon::Ca, netns));
    wait_until("the one that was away to be told", SOON, || {
        operator(&mut world, &["revoke", "workload", "test/client"]).ends_with("in force on 2 of 2 nodes\n")
    });
    // The host's CA has it now, and its identityd and enforcer as soon as they hear that CA again; until then the other end
    // refuses by the same list.
    wait_until("the host that was away to refuse by itself", SOON, || {
        run(&mut say(world.netns(Site::A), &client, to, "hello")).was_reset();
        let record = world.a().records().next(End::Source);
        assert_eq!(record.verdict, Outcome::Refused, "{record:#?}");
        let by_itself = record.reason == Some(Reason::WorkloadRevoked);
        if !by_itself {
            assert_refused(&world.b().records().next(End::Destination), Reason::WorkloadRevoked);
        }
        by_itself
    });
    world.finish();
}
