//! What a live connection was allowed for is watched: the script, the user. What changes nothing ends nothing.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use bonafide_proto::record::{End, Reason};
use bonafide_tests::ends::digest_of;
use bonafide_tests::node::{Backend, Daemon};
use bonafide_tests::policy::Policy;
use bonafide_tests::process::Program;
use bonafide_tests::programs::{changeling, echo_server, hold, script};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, World};
use rustix::process::{Pid, Signal, kill_process};

/// For a busy machine; the promise is 100 ms, and it is measured elsewhere.
const SOON: Duration = Duration::from_secs(10);

fn policy(bare: &BareWorld) -> Policy {
    let pinned = script(bare, "hold.py");
    Policy::enforce()
        .script("test/holder", &pinned)
        .lines(&format!("script_sha256 = \"{}\"", digest_of(&pinned)))
        .script("test/root", &script(bare, "changeling.py"))
        .lines("uid = 0")
        .script("test/server", &script(bare, "echo_server.py"))
        .lines("[[rule]]\nname = \"let in\"\naction = \"allow\"")
        .lines("from = [\"test/holder\", \"test/root\"]\nto = \"test/server\"")
}

#[test]
fn what_changes_under_a_live_connection_ends_it_and_is_named() {
    let bare = BareWorld::create();
    let policy = policy(&bare);
    let mut world = World::start(bare, &policy, Backend::Nft);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    another_user_ends_it(&world);
    a_child_that_is_left_with_it_keeps_it_until_it_changes(&world);
    another_identityd_is_told_what_lives(&mut world, &policy);
    a_script_changed_in_place_ends_it_and_one_that_was_touched_does_not(&world);
    world.finish();
}

fn reset(holder: &mut Program) {
    wait_until("the idle connection to be ended", SOON, || !holder.is_running());
    assert!(holder.output().contains("ECONNRESET"), "{}", holder.output());
}

fn still_echoes(holder: &mut Program) {
    holder.signal(Signal::USR1);
    holder.wait_for_output("echoed");
}

fn another_user_ends_it(world: &World) {
    for family in Family::BOTH {
        let to = Site::B.at(family, 7);
        let mut client = changeling(world.bare(), world.netns(Site::A), to, &["user", "65534"]);
        client.signal(Signal::USR1);
        reset(&mut client);
        let ends = world.next_flow();
        let record = ends.assert_ended_at(End::Source, Reason::IdentityChanged);
        let detail = record.detail.as_deref().unwrap_or_default();
        assert!(detail.contains("uid was 0 and is 65534"), "{record:#?}");
    }
}

fn a_child_that_is_left_with_it_keeps_it_until_it_changes(world: &World) {
    for family in Family::BOTH {
        let to = Site::B.at(family, 7);
        let mut client = changeling(world.bare(), world.netns(Site::A), to, &["leave", "user", "65534"]);
        client.signal(Signal::USR1);
        wait_until("a child to be left", SOON, || client.output().contains("left "));
        wait_until("the parent to end", SOON, || !client.is_running());
        let output = client.output();
        let pid = output.lines().find_map(|line| line.strip_prefix("left ")).unwrap().parse().unwrap();
        let child = Pid::from_raw(pid).unwrap();
        assert!(!output.contains("ECONNRESET"), "{output}");
        kill_process(child, Signal::USR1).unwrap();
        wait_until("the idle connection to be ended", SOON, || client.output().contains("ECONNRESET"));
        let ends = world.next_flow();
        let record = ends.assert_ended_at(End::Source, Reason::IdentityChanged);
        let detail = record.detail.as_deref().unwrap_or_default();
        // The other: it had changed before it was looked at.
        let said = ["uid was 0 and is 65534", "does not earn test/root"].iter().any(|what| detail.contains(what));
        assert!(said, "it does not say what changed: {record:#?}");
    }
}

fn another_identityd_is_told_what_lives(world: &mut World, policy: &Policy) {
    for (family, site) in Family::BOTH.into_iter().zip([Site::A, Site::B]) {
        let mut holder = hold(world.bare(), world.netns(Site::A), Site::B.at(family, 7));
        world.host(site).node().kill(Daemon::Identityd);
        still_echoes(&mut holder);
        world.restart(site, Daemon::Identityd, policy);
        let mut later = hold(world.bare(), world.netns(Site::A), Site::B.at(family, 7));
        still_echoes(&mut later);
        later.kill();
        world.next_flow().assert_allowed("let in", "test/holder", "test/server").assert_closed();
        holder.kill();
        world.next_flow().assert_allowed("let in", "test/holder", "test/server").assert_closed();
    }
}

fn append(script: &Path, text: &str) {
    std::fs::File::options().append(true).open(script).unwrap().write_all(text.as_bytes()).unwrap();
}

fn a_script_changed_in_place_ends_it_and_one_that_was_touched_does_not(world: &World) {
    let held = script(world.bare(), "hold.py");
    let text = std::fs::read(&held).unwrap();
    let pinned = digest_of(&held);
    for family in Family::BOTH {
        std::fs::write(&held, &text).unwrap();
        let mut holder = hold(world.bare(), world.netns(Site::A), Site::B.at(family, 7));
        // The same bytes, written over themselves: at no moment is it another script.
        std::fs::File::options().write(true).open(&held).unwrap().write_all(&text).unwrap();
        still_echoes(&mut holder);
        append(&held, "# one line more\n");
        reset(&mut holder);
        let ends = world.next_flow();
        let record = ends.assert_ended_at(End::Source, Reason::IdentityChanged);
        let detail = record.detail.as_deref().unwrap_or_default();
        for digest in [pinned, digest_of(&held)] {
            assert!(detail.contains(&digest.to_string()), "it does not say what changed: {record:#?}");
        }
        assert_eq!(record.source.script_digest, Some(pinned), "it says what it was let through for");
    }
}
