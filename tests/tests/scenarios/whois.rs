//! An operator asks who somebody is, and gives a stranger a name.

use bonafide_proto::record::{End, Reason};
use bonafide_tests::ends::{assert_refused, digest_of};
use bonafide_tests::node::Backend;
use bonafide_tests::operator::bonafide;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::{Finished, run};
use bonafide_tests::programs::{echo_server, hold, python, say, script, script_as, script_server};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, POLICY_DELAY, World};

/// The exit code of "answered, and the answer is no".
const REFUSED: i32 = 3;

fn whois(world: &World, site: Site, args: &[&str]) -> Finished {
    let host = if site == Site::A { world.a() } else { world.b() };
    bonafide(host.dir(), &[&["whois"], args].concat())
}

#[test]
fn whois_tells_by_process_and_by_both_ends_addresses_and_explains() {
    let bare = BareWorld::create();
    let (client, server) = (script(&bare, "hold.py"), script(&bare, "echo_server.py"));
    let policy = Policy::enforce()
        .script("test/client", &client)
        .script("test/server", &server)
        .lines("uid = 0")
        .allow("client to server", "test/client", "test/server");
    let world = World::start(bare, &policy, Backend::Nft);
    let running = echo_server(world.bare(), world.netns(Site::B), 7);
    let by_pid = whois(&world, Site::B, &[&running.pid().to_string()]).success();
    assert!(by_pid.starts_with("workload       test/server\n"), "{by_pid}");
    assert!(by_pid.contains(&format!("script_sha256  {}\n", digest_of(&server))), "{by_pid}");

    for family in Family::BOTH {
        let to = Site::B.at(family, 7);
        let by_address = whois(&world, Site::B, &[&to.to_string(), "--json"]).success();
        let answer: serde_json::Value = serde_json::from_str(&by_address).unwrap();
        assert_eq!(
            (answer["workload"].as_str(), &answer["executions"][0]["pid"]),
            (Some("test/server"), &running.pid().into())
        );
        assert_eq!(answer["fingerprint"]["exe"]["path"], python().to_str().unwrap());

        let mut holder = hold(world.bare(), world.netns(Site::A), to);
        let explained = whois(&world, Site::A, &[&holder.pid().to_string(), "--explain"]).success();
        let (earned, missed) = explained.split_once("\n\ntest/client: 2 of 2 selectors hold\n").unwrap();
        assert!(earned.starts_with("workload       test/client\n"), "{explained}");
        let differs =
            format!("\ntest/server: 2 of 3 selectors hold\n  script differs\n    expected {}\n", server.display());
        assert!(missed.starts_with(&differs), "{explained}");
        holder.kill();
        world.next_flow().assert_allowed("client to server", "test/client", "test/server");
    }

    let nobody = whois(&world, Site::B, &[&Site::B.at(Family::V6, 9).to_string()]);
    assert_eq!((nobody.code(), nobody.stdout.as_str()), (Some(REFUSED), ""));
    assert!(nobody.stderr.contains("no-socket"), "{}", nobody.stderr);
    world.finish();
}

#[test]
fn a_stranger_that_was_added_to_the_policy_is_somebody() {
    let bare = BareWorld::create();
    let (client, other) = (script(&bare, "say.py"), script_as(&bare, "echo_server.py", "other-server.py"));
    let policy = Policy::enforce().script("test/client", &client);
    let world = World::start(bare, &policy, Backend::Nft);
    let running = script_server(world.bare(), world.netns(Site::B), &other, &["7"], 7);
    let pid = running.pid().to_string();
    assert_eq!(whois(&world, Site::B, &[&pid]).code(), Some(REFUSED));
    let _ = run(&mut say(world.netns(Site::A), &client, Site::B.at(Family::V4, 7), "hi")).was_reset();
    assert_refused(&world.a().records().next(End::Source), Reason::NoRule);

    let add = |args: &[&str]| bonafide(world.b().dir(), &[&["workload", "add", "--from-pid", &pid], args].concat());
    let printed = add(&[]).success();
    for line in ["name = \"other-server\"", &format!("script = \"{}\"", other.display()), "uid = 0"] {
        assert!(printed.contains(line), "{line} is missing:\n{printed}");
    }
    let file = world.bare().dir().join("policy-b.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    let file = file.to_str().unwrap();
    // A name that is taken, pins that say nothing about the code: the policy stays as it is.
    for wrong in [&["--name", "test/client"][..], &["--pin", "user"]] {
        let refused = add(&[&["--policy", file], wrong].concat());
        assert_eq!(refused.code(), Some(2), "{refused:#?}");
        assert!(refused.stderr.contains("would not parse"), "{refused:#?}");
    }
    assert_eq!(std::fs::read_to_string(file).unwrap(), before);

    let _ = add(&["--policy", file, "--name", "test/server"]).success();
    wait_until("the process to be somebody", 5 * POLICY_DELAY, || whois(&world, Site::B, &[&pid]).code() == Some(0));
    let again = add(&["--policy", file, "--name", "test/twin"]);
    assert_eq!(again.code(), Some(REFUSED));
    assert!(again.stderr.contains("it is test/server already"), "{again:#?}");

    let text = std::fs::read_to_string(file).unwrap();
    let mut both = Policy::enforce();
    both = both.lines(text.trim_start_matches(Policy::enforce().text()));
    world.set_policy(&both.allow("client to server", "test/client", "test/server"));
    for family in Family::BOTH {
        let heard = run(&mut say(world.netns(Site::A), &client, Site::B.at(family, 7), "hi")).success();
        assert_eq!(heard, "hi\n");
        world.next_flow().assert_allowed("client to server", "test/client", "test/server");
    }
    world.finish();
}
