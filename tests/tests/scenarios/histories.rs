//! The histories of several hosts, asked for from one place over SSH, which is a flow of the mesh like any other.

use std::process::Command;

use bonafide_tests::node::{Backend, binaries};
use bonafide_tests::operator::bonafide;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::{must_run, run};
use bonafide_tests::programs::{echo_server, exe, say, script, sshd_for};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, POLICY_DELAY, World};

#[test]
fn what_every_node_saw_is_asked_for_from_one_of_them() {
    let bare = BareWorld::create();
    let [client, server] = ["say.py", "echo_server.py"].map(|name| script(&bare, name));
    let key = bare.dir().join("operator_key");
    must_run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
    let policy = Policy::enforce()
        .script("test/client", &client)
        .script("test/server", &server)
        .program("test/ssh", &exe("/usr/bin/ssh"))
        .program("test/sshd", &exe("/usr/sbin/sshd"))
        .allow("client to server", "test/client", "test/server")
        .allow("operators", "test/ssh", "test/sshd");
    let world = World::start(bare, &policy, Backend::Nft);
    let b = world.netns(Site::B);
    let _servers = [echo_server(world.bare(), b, 7), sshd_for(world.bare(), b, 22, &key.with_extension("pub"))];
    let _ = run(&mut say(world.netns(Site::A), &client, Site::B.at(Family::V4, 7), "hi")).success();
    world.next_flow().assert_allowed("client to server", "test/client", "test/server").assert_closed();

    let ssh = format!(
        "nsenter --net={} ssh -i {} -o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=no \
         -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        world.netns(Site::A).path().display(),
        key.display()
    );
    let remote = format!("{} --dir {}", binaries().join("bonafide").display(), world.b().dir().display());
    let host = format!("root@{}", Site::B.at(Family::V6, 22).ip());
    let typed = ["history", "--node", &host, "--ssh", &ssh, "--remote", &remote];
    let asked = || bonafide(world.a().dir(), &typed);
    // What a flow's record says is counted within the second.
    wait_until("the flow to be in host b's history", 3 * POLICY_DELAY, || {
        let told = asked();
        assert_eq!(told.code(), Some(0), "{told:?}");
        world.next_flow().assert_allowed("operators", "test/ssh", "test/sshd").assert_closed();
        told.stdout.contains("test/client to test/server on 7: allowed by \"client to server\"")
    });
    // Who is not let in is no node that saw nothing.
    let stranger = ssh.replace("operator_key", "no_key");
    let refused = bonafide(world.a().dir(), &["history", "--node", &host, "--ssh", &stranger, "--remote", &remote]);
    assert!(refused.code() == Some(1) && refused.stderr.contains("its history was not told whole"), "{refused:?}");
    world.next_flow().assert_allowed("operators", "test/ssh", "test/sshd").assert_closed();
    world.finish();
}
