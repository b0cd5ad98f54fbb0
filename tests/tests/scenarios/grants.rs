//! A stolen member can be only what it was granted: everybody else refuses its other names, and says so.

use std::net::SocketAddr;
use std::path::PathBuf;

use bonafide_proto::record::{End, Reason};
use bonafide_tests::ends::assert_refused;
use bonafide_tests::node::{Backend, Daemon, Node, NodeFiles};
use bonafide_tests::operator::bonafide;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{echo_server, say, script};
use bonafide_tests::stranger::{forge, knock_with, serve_once_with};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::world::{BareWorld, World};

/// A third member, of which only the CA runs; the file that holds its keys.
fn rogue(world: &mut World, workloads: &str) -> (Node, PathBuf) {
    let dir = world.authority().dir().to_owned();
    let token = bonafide(&dir, &["token", "create", "--node", "rogue", "--workloads", workloads]).success();
    let dir = world.bare().dir().join("rogue");
    let policy = world.bare().file("policy-rogue.toml", Policy::enforce().text());
    let files = NodeFiles {
        dir: &dir,
        policy: Some(&policy),
        token: token.trim(),
        backend: Backend::Nft,
        authority_family: Family::V4,
    };
    let mut node = Node::prepare_named(world.bare().instance(), "rogue", &files);
    node.start_daemon(Daemon::Ca, &world.bare().topology().router);
    node.wait_member();
    (node, dir.join("state/ca/node/membership.json"))
}

#[test]
fn a_member_that_issues_beyond_its_grant_is_refused_by_name_as_client_and_as_server() {
    let bare = BareWorld::create();
    let client = script(&bare, "say.py");
    let policy = Policy::enforce()
        .script("test/client", &client)
        .script("test/server", &script(&bare, "echo_server.py"))
        .allow("client to server", "test/client", "test/server");
    let mut world = World::start(bare, &policy, Backend::Nft);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let (_node, keys) = rogue(&mut world, "test/other,test/c");
    let router = &world.bare().topology().router;
    for family in Family::BOTH {
        let answer = knock_with(router, Site::B.at(family, 7), Some(forge(&keys, "rogue", "test/client")));
        assert!(answer.is_err(), "{answer:?}");
        let record = world.b().records().next(End::Destination);
        assert_refused(&record, Reason::NotGranted);
        assert!(record.detail.as_ref().unwrap().contains("node rogue was not granted to issue test/client"));
        assert_eq!((record.bytes_sent, record.bytes_received), (0, 0));

        let at = SocketAddr::new(Site::A.gateway(family), 9000);
        let served = serve_once_with(router, at, forge(&keys, "rogue", "test/server"));
        run(&mut say(world.netns(Site::A), &client, at, "marker")).was_reset();
        assert_refused(&world.a().records().next(End::Source), Reason::NotGranted);
        let received = served.join().unwrap();
        assert!(received.is_err() || received.is_ok_and(|bytes| bytes.is_empty()), "it learnt something");

        // What it was granted is no matter of its grant: here no rule allows it.
        drop(knock_with(router, Site::B.at(family, 7), Some(forge(&keys, "rogue", "test/other"))));
        let record = world.b().records().next(End::Destination);
        assert_ne!(record.reason, Some(Reason::NotGranted), "{record:#?}");
    }
    world.finish();
}
