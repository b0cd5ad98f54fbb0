//! Certificates of programs: one for all their connections, renewed under those that live.

use std::time::Duration;

use bonafide_proto::record::Reason;
use bonafide_tests::node::{Backend, Daemon};
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{echo_server, hold, interpret, script};
use bonafide_tests::rpc::issuance_status;
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, World};
use rustix::process::Signal;

use crate::revoked::ended_for;

/// The shortest life that a leaf can be given.
const LIFE: Duration = Duration::from_secs(60);
/// For a busy machine.
const LATE: Duration = Duration::from_secs(20);
/// Connections that are opened at once.
const BURST: u64 = 200;

fn world(client: &str) -> (World, Policy, std::path::PathBuf) {
    let bare = BareWorld::create();
    let client = script(&bare, client);
    let policy = Policy::enforce()
        .script("test/client", &client)
        .script("test/server", &script(&bare, "echo_server.py"))
        .allow("client to server", "test/client", "test/server");
    (World::start(bare, &policy, Backend::Nft), policy, client)
}

fn issued(world: &World) -> [u64; 2] {
    [world.a(), world.b()].map(|host| {
        let socket = host.dir().join("run/ca/ca.sock");
        issuance_status(&socket).expect("the CA answers").issued
    })
}

#[test]
fn however_many_connections_begin_at_once_each_program_gets_one_certificate() {
    let (world, _, client) = world("crowd.py");
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let before = issued(&world);
    let to = Site::B.at(Family::V4, 7);
    let args = [to.ip().to_string(), to.port().to_string(), BURST.to_string()];
    let args = args.each_ref().map(String::as_str);
    let said = run(&mut interpret(world.netns(Site::A), &client, &args)).success();
    assert_eq!(said, format!("{BURST} at once\n"), "every one is answered");
    for _ in 0..BURST {
        world.next_flow().assert_allowed("client to server", "test/client", "test/server");
    }
    let after = issued(&world);
    assert_eq!([after[0] - before[0], after[1] - before[1]], [1, 1]);
    world.finish();
}

/// Its CA issues leaves of the shortest life from now on.
fn shorten(world: &mut World, site: Site, policy: &Policy) {
    let config = world.host(site).dir().join("ca.toml");
    let text = std::fs::read_to_string(&config).expect("the CA's configuration");
    let shorter = text.replace("[node]\n", &format!("[node]\nleaf_ttl_seconds = {}\n", LIFE.as_secs()));
    assert_ne!(shorter, text);
    world.host(site).node().kill(Daemon::Ca);
    // In place: the file stays that user's.
    std::fs::write(&config, shorter).expect("it can be written");
    world.restart(site, Daemon::Ca, policy);
}

#[test]
fn a_connection_outlives_its_certificates_and_ends_before_one_that_nobody_renews() {
    let (mut world, policy, _) = world("hold.py");
    shorten(&mut world, Site::A, &policy);
    shorten(&mut world, Site::B, &policy);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let mut holders = Family::BOTH.map(|family| hold(world.bare(), world.netns(Site::A), Site::B.at(family, 7)));
    world.only_waits();
    // The clock of real programs cannot be set.
    std::thread::sleep(LIFE + Duration::from_secs(5));
    for holder in &mut holders {
        assert!(holder.is_running(), "it ended with its first certificate: {}", holder.output());
        holder.signal(Signal::USR1);
        holder.wait_for_output("echoed");
    }
    world.host(Site::A).node().kill(Daemon::Ca);
    for holder in &mut holders {
        wait_until("the connection to be ended", LIFE + LATE, || !holder.is_running());
        assert!(holder.output().contains("ECONNRESET"), "{}", holder.output());
        let ends = world.next_flow();
        let by = ends.both().map(|record| ended_for(record, Reason::CertificateExpired));
        assert!(by.contains(&true), "neither end says why: {ends:#?}");
        assert_eq!((ends.source.bytes_sent, ends.source.bytes_received), (2, 2));
    }
    world.finish();
}
