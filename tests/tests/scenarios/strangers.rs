//! Whoever does not speak the mesh's TLS, or shows a certificate that breaks one rule, is refused by name, and
//! nobody else notices.

use std::net::SocketAddr;
use std::time::Duration;

use bonafide_proto::record::{End, FlowRecord, Outcome, Reason};
use bonafide_tests::ends::assert_refused;
use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{echo_server, say, script};
use bonafide_tests::stranger::{Oddity, connect, knock, knock_raw, serve_once};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::world::{BareWorld, World};

on_each_backend! {
    a_server_without_the_mesh_gets_no_payload,
    garbage_and_half_open_connections_are_refused_and_hold_nobody_up,
}

const MARKER: &str = "marker-1b9d6bcdbbfd4b2d";

fn world(backend: Backend) -> (World, std::path::PathBuf) {
    let bare = BareWorld::create();
    let client = script(&bare, "say.py");
    let policy = Policy::enforce()
        .script("test/client", &client)
        .script("test/server", &script(&bare, "echo_server.py"))
        .allow("client to server", "test/client", "test/server");
    (World::start(bare, &policy, backend), client)
}

fn still_works(world: &World, client: &std::path::Path) {
    for family in Family::BOTH {
        let said = run(&mut say(world.netns(Site::A), client, Site::B.at(family, 7), "hello")).success();
        assert_eq!(said, "hello\n");
        world.a().records().next(End::Source);
        let served = |record: &FlowRecord| record.verdict == Outcome::Allowed;
        world.b().records().take("the record of a flow that was served", served);
    }
}

#[test]
fn clients_with_a_certificate_that_breaks_a_rule_are_refused_by_the_rules_name() {
    let (world, client) = world(Backend::Nft);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let router = &world.bare().topology().router;
    for family in Family::BOTH {
        for oddity in Oddity::ALL {
            let answer = knock(router, Site::B.at(family, 7), oddity);
            assert!(answer.is_err(), "{oddity:?} was answered {answer:?}");
            let record = world.b().records().next(End::Destination);
            assert_eq!(record.verdict, Outcome::Refused, "{record:#?}");
            let expected = [Reason::PeerCertificate, Reason::Handshake];
            assert!(record.reason.is_some_and(|reason| expected.contains(&reason)), "{record:#?}");
            assert!(record.detail.as_ref().unwrap().contains(oddity.named()), "{oddity:?}: {record:#?}");
            assert_eq!((record.bytes_sent, record.bytes_received), (0, 0));
        }
    }
    still_works(&world, &client);
    world.finish();
}

#[test]
fn servers_with_a_certificate_that_breaks_a_rule_are_told_nothing() {
    let (world, client) = world(Backend::Nft);
    let router = &world.bare().topology().router;
    for family in Family::BOTH {
        // A gateway's address is in the mesh's prefixes, and no enforcer is there.
        let ip = Site::A.gateway(family);
        for (port, oddity) in (9000..).zip(Oddity::ALL.into_iter().filter(|o| *o != Oddity::NoCertificate)) {
            let at = SocketAddr::new(ip, port);
            let served = serve_once(router, at, oddity);
            run(&mut say(world.netns(Site::A), &client, at, MARKER)).was_reset();
            let record = world.a().records().next(End::Source);
            assert_refused(&record, Reason::PeerCertificate);
            assert!(record.detail.as_ref().unwrap().contains(oddity.named()), "{oddity:?}: {record:#?}");
            let received = served.join().unwrap();
            assert!(received.is_err() || received.is_ok_and(|bytes| bytes.is_empty()), "{oddity:?} learnt something");
        }
    }
    world.finish();
}

fn a_server_without_the_mesh_gets_no_payload(backend: Backend) {
    let (world, client) = world(backend);
    let router = &world.bare().topology().router;
    let capture = world.bare().capture();
    // It even answers every byte.
    let _plain = echo_server(world.bare(), router, 9000);
    for family in Family::BOTH {
        let at = SocketAddr::new(Site::A.gateway(family), 9000);
        run(&mut say(world.netns(Site::A), &client, at, MARKER)).was_reset();
        let record = world.a().records().next(End::Source);
        assert_eq!(record.verdict, Outcome::Refused, "{record:#?}");
        assert!(
            matches!(record.reason, Some(Reason::NotBonafide | Reason::Handshake)),
            "the record does not say that it is no enforcer: {record:#?}"
        );
    }
    let traffic = capture.finish();
    assert!(!traffic.shows(MARKER.as_bytes()), "payload was on the wire in the clear");
    assert!(traffic.streams().iter().any(|s| s.to.port() == 9000 && !s.payload.is_empty()), "nothing was tried");
    world.finish();
}

fn garbage_and_half_open_connections_are_refused_and_hold_nobody_up(backend: Backend) {
    let (world, client) = world(backend);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let router = &world.bare().topology().router;
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let zeros = [0; 70_000];
    let long_record = [0x16, 3, 1, 0xff, 0xff, 1];
    let garbage: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: b\r\n\r\n",
        &zeros,
        b"\x16\x03\x01\x00\x05hello",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"SSH-2.0-x\r\n",
    ];

    for family in Family::BOTH {
        let to = Site::B.at(family, 7);
        // Half open: one says nothing, one stops inside a hello, one announces more than it sends.
        let silent: Vec<_> = [&[][..], &hello, &long_record]
            .into_iter()
            .map(|bytes| {
                let mut stream = connect(router, to).unwrap();
                std::io::Write::write_all(&mut stream, bytes).unwrap();
                stream
            })
            .collect();
        for bytes in garbage {
            let answer = knock_raw(router, to, bytes);
            assert!(!answer.as_ref().is_ok_and(|a| a == bytes), "{:?} was echoed", &bytes[..4]);
            assert!(!answer.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock), "{:?} hangs", &bytes[..4]);
            assert_refused_stranger(&world.b().records().next(End::Destination));
        }
        still_works(&world, &client);
        for mut stream in silent {
            stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
            let ended = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
            assert!(
                !ended.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock),
                "a half-open connection lives on"
            );
            assert_refused_stranger(&world.b().records().next(End::Destination));
        }
    }
    still_works(&world, &client);
    world.finish();
}

#[track_caller]
fn assert_refused_stranger(record: &FlowRecord) {
    assert_eq!(record.verdict, Outcome::Refused, "{record:#?}");
    let expected = [Reason::NotBonafide, Reason::Handshake, Reason::Limit];
    assert!(record.reason.is_some_and(|reason| expected.contains(&reason)), "{record:#?}");
    assert!(record.detail.as_ref().is_some_and(|detail| !detail.is_empty()), "{record:#?}");
}

#[test]
fn the_enforcers_own_ports_lead_nowhere() {
    let (world, client) = world(Backend::Nft);
    for family in Family::BOTH {
        for port in [15001, 15006] {
            let to = SocketAddr::new(family.loopback(), port);
            run(&mut say(world.netns(Site::A), &client, to, "hello")).was_reset();
            let record = world.a().records().next(End::Source);
            assert_refused(&record, Reason::OwnListener);
            assert_eq!(record.source.program, None, "it was refused before anybody was asked");

            // From outside nobody listens there.
            let answer = knock_raw(&world.bare().topology().router, Site::B.at(family, port), b"hello");
            assert!(answer.map_or(true, |bytes| bytes.is_empty()), "port {port} answered");
            let record = world.b().records().next(End::Destination);
            assert_refused(&record, Reason::Unreachable);
        }
    }
    world.finish();
}
