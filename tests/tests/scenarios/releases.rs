//! New releases of programs: refused until approved, accepted for a while, or approved because dpkg recorded them.

use std::path::Path;

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::record::{End, Reason};
use bonafide_tests::ends::{Ends, digest_of};
use bonafide_tests::node::Backend;
use bonafide_tests::operator::bonafide;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{echo_server, exe, hold, redis, redis_cli, say, script};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, POLICY_DELAY, World, replace_file};

const REFUSE: &str = "releases = { new = \"refuse\" }";
const GRACE: &str = "releases = { new = \"1h\" }";

/// Two clients, each known by the digest of its script, and what the policy says of other digests.
fn policy(clients: [(&str, &Path, Digest, &str); 2], server: &Path) -> Policy {
    let known = clients.iter().fold(Policy::enforce(), |policy, (name, script, digest, releases)| {
        policy.script(name, script).lines(&format!("script_sha256 = \"{digest}\"\n{releases}"))
    });
    clients
        .iter()
        .fold(known.script("test/server", server), |policy, (name, ..)| policy.allow(name, name, "test/server"))
}

/// Another release: the same script with a comment more.
fn release(script: &Path, number: &str) {
    let text = std::fs::read_to_string(script).unwrap();
    replace_file(script, format!("{text}\n# {number}\n").as_bytes());
}

#[test]
fn a_new_release_is_refused_until_it_is_approved_and_ends_with_its_grace() {
    let bare = BareWorld::create();
    let [client, holder, server] = ["say.py", "hold.py", "echo_server.py"].map(|name| script(&bare, name));
    let (first, unlisted) = (digest_of(&client), Digest([7; 32]));
    let with = |releases| {
        policy([("test/client", &client, first, REFUSE), ("test/holder", &holder, unlisted, releases)], &server)
    };
    let (strict, gracious) = (with(REFUSE), with(GRACE));
    let world = World::start(bare, &strict, Backend::Nft);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let to = |family| Site::B.at(family, 7);
    let says = |family| run(&mut say(world.netns(Site::A), &client, to(family), "hi"));
    let pending = || bonafide(world.a().dir(), &["workload", "pending"]).success();

    // Another release: refused, and the record says what to do.
    release(&client, "1.1");
    let second = digest_of(&client);
    says(Family::V6).failed_at_once();
    let refused = world.a().records().next(End::Source);
    let near = refused.nearest.as_ref().expect("it is nearly the client");
    assert_eq!((refused.reason, near.field.as_str()), (Some(Reason::NoWorkload), "script_sha256"), "{refused:#?}");
    assert!(
        near.seen.contains("nobody approved it yet; to accept it: bonafide workload approve test/client"),
        "{near:?}"
    );
    assert!(pending().contains(&second.to_string()), "{}", pending());

    // A grace: accepted, at the other node too; and when its time is over, idle connections end.
    world.set_policy(&gracious);
    let mut idle = hold(world.bare(), world.netns(Site::A), to(Family::V4));
    assert!(pending().contains("in-grace until"), "{}", pending());
    // Only where it runs: the other node need not hear of it.
    world.a().set_policy(&strict);
    wait_until("the new release's connection to end", 3 * POLICY_DELAY, || !idle.is_running());
    let _ = world.next_flow().assert_allowed("test/holder", "test/holder", "test/server");
    // The other node judges by its own policy, whatever the certificate says.
    world.a().set_policy(&gracious);
    world.b().set_policy(&strict);
    run(&mut say(world.netns(Site::A), &holder, to(Family::V4), "hi")).failed_at_once();
    let Ends { source, destination } = world.next_flow();
    assert_eq!(destination.reason, Some(Reason::PeerCertificate), "{destination:#?}");
    assert_eq!(source.reason, Some(Reason::RefusedByPeer), "{source:#?}");

    // Approved: listed on both nodes, one of which saw none of it.
    world.set_policy(&strict);
    let named = second.to_string();
    for (host, more) in [(world.a(), &[][..]), (world.b(), &[&*named, "--of", "script_sha256"])] {
        let file = host.policy().display().to_string();
        let typed = [&["workload", "approve", "test/client", "--policy", &file][..], more].concat();
        let _ = bonafide(host.dir(), &typed).success();
        host.set_policy(&Policy::of(&std::fs::read_to_string(&file).unwrap()));
    }
    for family in Family::BOTH {
        let _ = says(family).success();
        world.next_flow().assert_allowed("test/client", "test/client", "test/server").assert_closed();
    }
    world.finish();
}

#[test]
fn what_dpkg_recorded_is_approved_and_a_copy_of_it_elsewhere_is_not() {
    let bare = BareWorld::create();
    let (server, client) = (exe("/usr/bin/redis-server"), exe("/usr/bin/redis-cli"));
    let copy = bare.copy_of(&client, "redis-cli");
    let unlisted = Digest([7; 32]);
    let packaged = "releases = { approve = \"dpkg\" }";
    let policy = Policy::enforce()
        .pinned("test/redis", &server, unlisted)
        .lines(packaged)
        .pinned("test/cli", &client, unlisted)
        .lines(packaged)
        .pinned("test/copy", &copy, unlisted)
        .lines(packaged)
        .allow("cli to redis", "test/cli", "test/redis")
        .allow("copy to redis", "test/copy", "test/redis");
    let world = World::start(bare, &policy, Backend::Nft);
    let _server = redis(world.bare(), world.netns(Site::B), 6379);
    for family in Family::BOTH {
        let answer = run(&mut redis_cli(world.netns(Site::A), Site::B.at(family, 6379), &["ping"])).success();
        assert!(answer.contains("PONG"), "{answer}");
        world.next_flow().assert_allowed("cli to redis", "test/cli", "test/redis").assert_closed();
    }
    let to = Site::B.at(Family::V4, 6379);
    let mut by_copy = world.netns(Site::A).command(&copy.to_string_lossy());
    by_copy.args(["-h", &to.ip().to_string(), "-p", "6379", "ping"]);
    let said = run(&mut by_copy);
    assert!(!said.stdout.contains("PONG"), "{said:?}");
    let source = world.a().records().next(End::Source);
    let near = source.nearest.as_ref().expect("it is nearly the copy");
    assert_eq!((source.reason, near.of.as_str()), (Some(Reason::NoWorkload), "test/copy"), "{source:#?}");
    assert!(near.seen.contains("no package of dpkg has"), "{near:?}");
    world.finish();
}
