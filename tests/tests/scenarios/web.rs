//! nginx and curl: allowed by program; with one byte appended, the same path is another program.

use std::path::Path;

use bonafide_proto::record::{End, Reason};
use bonafide_tests::ends::{assert_refused, digest_of};
use bonafide_tests::hybrid_tls::assert_only_hybrid_tls;
use bonafide_tests::node::{AUTHORITY_PORT, Backend};
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{append_one_byte, curl, curl_exe, nginx, nginx_exe};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::world::{BareWorld, World};

on_each_backend! {
    one_byte_more_is_another_program,
}

const PAGE: &str = "marker-3c6e0b8a9c15224a";

fn policy(client: &Path) -> Policy {
    Policy::enforce().pinned("test/client", client, digest_of(client)).program("test/web", &nginx_exe()).allow(
        "client to web",
        "test/client",
        "test/web",
    )
}

fn one_byte_more_is_another_program(backend: Backend) {
    let bare = BareWorld::create();
    let client = bare.copy_of(&curl_exe(), "curl");
    let world = World::start(bare, &policy(&client), backend);
    let (a, b) = (world.netns(Site::A), world.netns(Site::B));
    let capture = world.bare().capture();
    let _server = nginx(world.bare(), b, 80, PAGE);

    for family in Family::BOTH {
        assert_eq!(run(&mut curl(a, &client, Site::B.at(family, 80))).success(), PAGE);
        let ends = world.next_flow();
        ends.assert_allowed("client to web", "test/client", "test/web").assert_closed();
        ends.assert_programs(&client, &nginx_exe());
        for record in ends.both() {
            assert_eq!(record.source.addr.unwrap().ip(), Site::A.ip(family), "the client's address is kept");
            assert_eq!(record.destination.addr.unwrap(), Site::B.at(family, 80));
        }
        assert!(ends.source.bytes_received > PAGE.len() as u64);
    }

    let expected = digest_of(&client);
    append_one_byte(&client);
    for family in Family::BOTH {
        // Reset before curl has looked, it says that it could not connect.
        run(&mut curl(a, &client, Site::B.at(family, 80))).failed_at_once();
        let record = world.a().records().next(End::Source);
        assert_refused(&record, Reason::NoWorkload);
        let nearest = record.nearest.expect("a near miss");
        assert_eq!((nearest.of.as_str(), nearest.field.as_str()), ("test/client", "sha256"));
        assert_eq!((nearest.expected, nearest.seen), (expected.to_string(), digest_of(&client).to_string()));
        assert_eq!(record.source.digest, Some(digest_of(&client)));
    }

    let traffic = capture.finish();
    let tunnels = assert_only_hybrid_tls(&traffic, |s| [s.from.port(), s.to.port()].contains(&AUTHORITY_PORT));
    assert_eq!(tunnels, 2, "one TLS connection for each that was allowed, none for those refused");
    assert!(!traffic.shows(PAGE.as_bytes()), "the page was on the wire in the clear");
    world.finish();
}
