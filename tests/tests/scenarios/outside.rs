//! What is outside the mesh proves nothing: it is reached, and reaches in, in the clear, and only by a rule.

use std::net::SocketAddr;

use bonafide_proto::record::{End, FlowRecord, Outcome, Reason, Transport};
use bonafide_tests::ends::assert_refused;
use bonafide_tests::netns::Netns;
use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{echo_server, exe, say, script, script_as, script_server, ssh_keyscan, sshd};
use bonafide_tests::topology::{Family, Site, outside_ip};
use bonafide_tests::world::{BareWorld, World};

on_each_backend! {
    programs_reach_outside_only_by_a_rule,
    outside_reaches_programs_only_by_a_rule,
}

/// The policy calls this address "partner".
const PARTNER: u8 = 2;
/// And does not know this one.
const UNKNOWN: u8 = 3;

fn policy() -> Policy {
    Policy::enforce().outside("partner", Family::BOTH.map(|family| outside_ip(family, PARTNER)))
}

/// A host outside the mesh that has both addresses.
fn outside(bare: &BareWorld) -> Netns {
    let outside = bare.topology().join_outside();
    for (family, length) in [(Family::V4, 24), (Family::V6, 64)] {
        let second = format!("{}/{length}", outside_ip(family, UNKNOWN));
        outside.run(&["ip", "addr", "add", &second, "dev", "eth0", "nodad"]);
        // It speaks from the first, until told otherwise.
        speak_from(&outside, family, PARTNER);
    }
    outside
}

fn speak_from(outside: &Netns, family: Family, n: u8) {
    let flag = if family == Family::V4 { "-4" } else { "-6" };
    let [gateway, own] = [1, n].map(|n| outside_ip(family, n).to_string());
    outside.run(&["ip", flag, "route", "replace", "default", "via", &gateway, "dev", "eth0", "src", &own]);
}

#[track_caller]
fn assert_clear(record: &FlowRecord, rule: &str) {
    assert_eq!((record.verdict, record.rule.as_deref()), (Outcome::Allowed, Some(rule)), "{record:#?}");
    assert_eq!((record.transport, &record.tls), (Transport::Clear, &None), "{record:#?}");
}

fn programs_reach_outside_only_by_a_rule(backend: Backend) {
    let bare = BareWorld::create();
    let (client, other) = (script(&bare, "say.py"), script_as(&bare, "say.py", "other.py"));
    let policy = policy()
        .script("test/client", &client)
        .program("test/keyscan", &exe("/usr/bin/ssh-keyscan"))
        .allow("client to partner", "test/client", "partner")
        .lines("ports = [7]")
        .allow("keyscan to partner", "test/keyscan", "partner");
    let outside = outside(&bare);
    let world = World::start(bare, &policy, backend);
    let a = world.netns(Site::A);
    let _servers = [
        echo_server(world.bare(), &outside, 7),
        echo_server(world.bare(), &outside, 8),
        sshd(world.bare(), &outside, 22),
    ];
    let next = || world.a().records().next(End::Source);

    for family in Family::BOTH {
        let partner = |port| SocketAddr::new(outside_ip(family, PARTNER), port);
        assert_eq!(run(&mut say(a, &client, partner(7), "hello")).success(), "hello\n");
        let record = next();
        assert_clear(&record, "client to partner");
        assert_eq!(record.destination.outside.as_deref(), Some("partner"));
        assert_eq!(record.destination.addr, Some(partner(7)));
        assert_eq!((record.bytes_sent, record.bytes_received), (5, 5));

        // Out there the server may speak first.
        let key = run(&mut ssh_keyscan(a, partner(22))).success();
        assert!(key.contains("ssh-ed25519 "), "{key}");
        assert_clear(&next(), "keyscan to partner");

        run(&mut say(a, &client, partner(8), "hello")).was_reset();
        let record = next();
        assert_refused(&record, Reason::NoRule);
        assert_eq!(record.destination.outside.as_deref(), Some("partner"));

        run(&mut say(a, &client, SocketAddr::new(outside_ip(family, UNKNOWN), 7), "hello")).was_reset();
        let record = next();
        assert_refused(&record, Reason::UnknownAddress);
        assert_eq!(record.destination.outside, None);

        run(&mut say(a, &other, partner(7), "hello")).was_reset();
        assert_refused(&next(), Reason::NoWorkload);
    }
    world.finish();
}

fn outside_reaches_programs_only_by_a_rule(backend: Backend) {
    let bare = BareWorld::create();
    let (client, other) = (script(&bare, "say.py"), script_as(&bare, "echo_server.py", "other_server.py"));
    let policy = policy()
        .script("test/server", &script(&bare, "echo_server.py"))
        .script("test/other", &other)
        .program("test/sshd", &exe("/usr/sbin/sshd"))
        .allow("partner to server", "partner", "test/server")
        .allow("partner to sshd", "partner", "test/sshd");
    let outside = outside(&bare);
    let world = World::start(bare, &policy, backend);
    let b = world.netns(Site::B);
    let _servers =
        [echo_server(world.bare(), b, 7), script_server(world.bare(), b, &other, &["8"], 8), sshd(world.bare(), b, 22)];
    let next = || world.b().records().next(End::Destination);

    for family in Family::BOTH {
        let at = |port| Site::B.at(family, port);
        assert_eq!(run(&mut say(&outside, &client, at(7), "hello")).success(), "hello\n");
        let record = next();
        assert_clear(&record, "partner to server");
        assert_eq!(record.source.outside.as_deref(), Some("partner"));
        assert_eq!(record.source.addr.unwrap().ip(), outside_ip(family, PARTNER));
        assert_eq!((record.bytes_sent, record.bytes_received), (5, 5));

        let key = run(&mut ssh_keyscan(&outside, at(22))).success();
        assert!(key.contains("ssh-ed25519 "), "{key}");
        assert_clear(&next(), "partner to sshd");

        run(&mut say(&outside, &client, at(8), "hello")).was_reset();
        let record = next();
        assert_refused(&record, Reason::NoRule);
        assert_eq!(record.source.outside.as_deref(), Some("partner"));
    }

    // The same host under another address is somebody else.
    for family in Family::BOTH {
        speak_from(&outside, family, UNKNOWN);
        run(&mut say(&outside, &client, Site::B.at(family, 7), "hello")).was_reset();
        let record = next();
        assert_refused(&record, Reason::NoRule);
        assert_eq!(record.source.addr.unwrap().ip(), outside_ip(family, UNKNOWN));
        assert_eq!(record.source.outside, None);
    }
    world.finish();
}
