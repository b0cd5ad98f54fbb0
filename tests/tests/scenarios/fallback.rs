//! Without the kernel programs the mesh goes on, by `sock_diag` and `/proc`.

use std::time::Duration;

use bonafide_proto::record::{End, Reason};
use bonafide_tests::ends::{assert_refused, digest_of};
use bonafide_tests::node::{Backend, Daemon};
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{changeling, echo_server, python, say, script, script_as};
use bonafide_tests::rpc;
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, World};
use rustix::process::Signal;

/// For a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Restarts identityd so that it looks into `/proc` only.
fn fall_back(world: &mut World, site: Site, policy: &Policy) {
    let node = world.host(site).node();
    node.kill(Daemon::Identityd);
    let file = node.layout().config("identityd");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("source = \"proc\"\n{text}")).unwrap();
    world.restart(site, Daemon::Identityd, policy);
    let socket = world.host(site).node().layout().identityd_socket();
    let status = rpc::attestation_status(&socket).unwrap();
    assert_eq!(status.source, "proc", "{status:?}");
}

#[test]
fn without_the_kernel_programs_programs_are_told_apart_and_watched_all_the_same() {
    let bare = BareWorld::create();
    let (good, bad) = (script_as(&bare, "say.py", "good.py"), script_as(&bare, "say.py", "bad.py"));
    let heir = script(&bare, "heir.py");
    let policy = Policy::enforce()
        .script("test/good", &good)
        .script("test/client", &script(&bare, "changeling.py"))
        .script("test/echo", &script(&bare, "echo_server.py"))
        .allow("good to echo", "test/good", "test/echo")
        .allow("client to echo", "test/client", "test/echo");
    let mut world = World::start(bare, &policy, Backend::Nft);
    for site in [Site::A, Site::B] {
        fall_back(&mut world, site, &policy);
    }
    let (a, b) = (world.netns(Site::A), world.netns(Site::B));
    let _server = echo_server(world.bare(), b, 7);
    for family in Family::BOTH {
        let to = Site::B.at(family, 7);
        assert_eq!(run(&mut say(a, &good, to, "hello")).success(), "hello\n");
        let ends = world.next_flow();
        ends.assert_allowed("good to echo", "test/good", "test/echo").assert_closed();
        ends.assert_programs(&python(), &python());
        assert_eq!(ends.destination.source.script_digest, Some(digest_of(&good)));

        run(&mut say(a, &bad, to, "hello")).was_reset();
        assert_refused(&world.a().records().next(End::Source), Reason::NoWorkload);

        let words = [python().display().to_string(), heir.display().to_string()];
        let client = changeling(world.bare(), a, to, &["exec", &words[0], &words[1], "waits"]);
        client.signal(Signal::USR1);
        wait_until("the connection to be ended", SOON, || client.output().contains("heir: ECONNRESET"));
        let ends = world.next_flow();
        let record = ends.assert_ended_at(End::Source, Reason::IdentityChanged);
        // Where nobody tells of an exec, a look can be first to see what came of it.
        let detail = record.detail.as_deref().unwrap_or_default();
        let said = ["another program", "another script"].iter().any(|what| detail.contains(what));
        assert!(said, "it does not say what changed: {record:#?}");
    }
    world.finish();
}
