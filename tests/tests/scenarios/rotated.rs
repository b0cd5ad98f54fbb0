//! A connection lives through the whole way from one root to the next, and new ones are made at every step of it.

use std::process::Command;
use std::time::Duration;

use bonafide_tests::node::{Backend, Daemon, binaries};
use bonafide_tests::policy::Policy;
use bonafide_tests::process::{Finished, Program, run};
use bonafide_tests::programs::{echo_server, hold, say, script};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, World};
use rustix::process::Signal;

/// For a busy machine.
const SOON: Duration = Duration::from_secs(30);
const ECHO: u16 = 7;

fn rotate(world: &mut World, step: &[&str]) -> Finished {
    let socket = world.authority().dir().join("run/ca/authority.sock");
    let mut ca = Command::new(binaries().join("bonafide-ca"));
    run(ca.arg("rotate").args(step).arg("--socket").arg(socket))
}

fn said(finished: &Finished) -> String {
    format!("{}{}", finished.stdout, finished.stderr)
}

/// Bytes go there and come back.
fn echoes(holder: &Program) {
    let echoed = || holder.output().matches("echoed").count();
    let before = echoed();
    holder.signal(Signal::USR1);
    wait_until("the connection to carry a byte", SOON, || echoed() > before);
}

/// Both nodes have leaves, and let a new connection through over either family.
fn connects(world: &World, client: &std::path::Path) {
    for family in Family::BOTH {
        wait_until("a new connection to be let through", SOON, || {
            run(&mut say(world.netns(Site::A), client, Site::B.at(family, ECHO), "hello")).code() == Some(0)
        });
    }
}

#[test]
fn a_connection_lives_through_the_rotation_of_the_root_and_new_ones_are_made_meanwhile() {
    let bare = BareWorld::create();
    let client = script(&bare, "say.py");
    let policy = Policy::enforce()
        .script("test/holder", &script(&bare, "hold.py"))
        .script("test/client", &client)
        .script("test/server", &script(&bare, "echo_server.py"))
        .allow("holder to server", "test/holder", "test/server")
        .allow("client to server", "test/client", "test/server");
    let mut world = World::start_published(bare, &policy, Backend::Nft);
    let _server = echo_server(world.bare(), world.netns(Site::B), ECHO);
    let holders = Family::BOTH.map(|family| hold(world.bare(), world.netns(Site::A), Site::B.at(family, ECHO)));
    let all = |world: &World| {
        holders.iter().for_each(echoes);
        connects(world, &client);
    };
    all(&world);

    assert!(said(&rotate(&mut world, &["activate"])).contains("rotate publish"));
    for step in ["prepare", "publish"] {
        let made = rotate(&mut world, &[step]);
        assert!(made.code() == Some(0), "{step}: {made:#?}");
        all(&world);
    }
    wait_until("every node to say that it trusts both", SOON, || rotate(&mut world, &["activate"]).code() == Some(0));
    all(&world);

    // Their certificates of the old root are valid for hours yet; but they have renewed.
    let early = rotate(&mut world, &["retire"]);
    assert!(early.code() == Some(1) && said(&early).contains("--leave-behind a,b"), "{early:#?}");
    for site in [Site::A, Site::B] {
        let file = world.host(site).dir().join("state/ca/node/membership.json");
        wait_until("the node to renew", SOON, || {
            let text = std::fs::read_to_string(&file).unwrap();
            let member: serde_json::Value = serde_json::from_str(&text).unwrap();
            member["issued_by"] == member["roots"][0] && member["roots"].as_array().unwrap().len() == 2
        });
    }
    all(&world);
    let made = rotate(&mut world, &["retire", "--leave-behind", "a,b"]);
    assert!(made.code() == Some(0), "{made:#?}");
    all(&world);
    wait_until("every node to say that it trusts the next one alone", SOON, || {
        let status = rotate(&mut world, &["status"]);
        status.code() == Some(0) && !said(&status).contains("Not yet")
    });
    all(&world);

    // What they know outlives them.
    for site in [Site::A, Site::B] {
        world.on(site, |node, netns| {
            node.kill(Daemon::Ca);
            node.start_daemon(Daemon::Ca, netns);
            node.wait_member();
        });
    }
    all(&world);
}
