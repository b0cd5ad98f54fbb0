//! Who may become a node: join tokens that are wrong, damaged, used, expired or somebody else's admit nobody.

use std::time::Duration;

use bonafide_tests::node::{Authority, Backend, Daemon, Node, NodeFiles};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::BareWorld;
use bonafide_tests::{policy::Policy, rpc};

/// The exit code for a token that is no good (see `bonafide-ca --help`).
const BAD_INPUT: i32 = 2;
/// The exit code where the authority is not the one that the token names.
const FAILED: i32 = 1;

/// Starts a node's CA with this token and returns what it said when it gave up.
fn refused(world: &BareWorld, family: Family, name: &str, token: &str, exit: i32) -> String {
    let mut node = candidate(world, family, name, token);
    node.start_daemon(Daemon::Ca, &world.topology().a);
    let code = node.wait_for_exit(Daemon::Ca);
    assert_eq!(code, Some(exit), "with a bad token:\n{}", node.log(Daemon::Ca));
    node.log(Daemon::Ca)
}

fn candidate(world: &BareWorld, family: Family, name: &str, token: &str) -> Node {
    let dir = world.dir().join(name);
    let policy = world.file("policy.toml", Policy::enforce().text());
    let files = NodeFiles { dir: &dir, policy: Some(&policy), token, backend: Backend::Nft, authority_family: family };
    Node::prepare(world.instance(), Site::A, &files)
}

#[test]
fn bad_join_tokens_admit_nobody_and_say_why_over_ipv4() {
    bad_join_tokens_admit_nobody_and_say_why(Family::V4);
}

#[test]
fn bad_join_tokens_admit_nobody_and_say_why_over_ipv6() {
    bad_join_tokens_admit_nobody_and_say_why(Family::V6);
}

fn bad_join_tokens_admit_nobody_and_say_why(family: Family) {
    let world = BareWorld::create();
    let t = world.topology();
    let mut authority = Authority::start(world.instance(), &t.authority, &world.dir().join("authority"));

    let good = authority.token("a", 60);
    let said = refused(&world, family, "damaged", &good[..good.len() - 5], BAD_INPUT);
    assert!(said.contains("damaged"), "{said}");
    let said = refused(&world, family, "nonsense", "let me in", BAD_INPUT);
    assert!(said.contains("no join token"), "{said}");
    let said = refused(&world, family, "other", &authority.token("b", 60), BAD_INPUT);
    assert!(said.contains("for node b"), "{said}");

    let short = authority.token("a", 1);
    // Only time makes it expire.
    std::thread::sleep(Duration::from_millis(2100));
    let said = refused(&world, family, "expired", &short, BAD_INPUT);
    assert!(said.contains("expired"), "{said}");

    {
        let mut node = candidate(&world, family, "member", &good);
        node.start_daemon(Daemon::Ca, &t.a);
        let socket = node.layout().ca_socket();
        let joined = || rpc::issuance_status(&socket).is_ok_and(|s| s.intermediate_not_after > 0);
        wait_until("a good token to admit a node", Duration::from_secs(10), joined);
        assert!(!node.layout().join_token().exists(), "the used token stays on disk");
    }
    let said = refused(&world, family, "again", &good, BAD_INPUT);
    assert!(said.contains("used already"), "{said}");

    // Another authority at the same address is not the one that the token names.
    let trusted = authority.token("a", 60);
    authority.kill();
    drop(authority);
    let _usurper = Authority::start(world.instance(), &t.authority, &world.dir().join("usurper"));
    let said = refused(&world, family, "usurped", &trusted, FAILED);
    assert!(!said.contains("member of"), "{said}");
}
