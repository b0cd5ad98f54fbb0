//! Two programs on one host, over its own address and over loopback: judged by the same rules as any other pair.

use std::net::SocketAddr;

use bonafide_proto::record::Reason;
use bonafide_tests::ends::assert_refused;
use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{echo_server, say, script, script_as};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::world::{BareWorld, World};

on_each_backend! {
    programs_on_one_host_are_judged_like_any_others,
}

fn programs_on_one_host_are_judged_like_any_others(backend: Backend) {
    let bare = BareWorld::create();
    let (good, bad) = (script_as(&bare, "say.py", "good.py"), script_as(&bare, "say.py", "bad.py"));
    let server = script(&bare, "echo_server.py");
    let policy = |same_host: &str| {
        Policy::enforce()
            .lines(same_host)
            .script("test/good", &good)
            .script("test/bad", &bad)
            .script("test/echo", &server)
            .allow("good to echo", "test/good", "test/echo")
    };
    let verified = policy("");
    let world = World::start(bare, &verified, backend);
    let host = world.netns(Site::A);
    let _server = echo_server(world.bare(), host, 7);
    let addresses: Vec<SocketAddr> = Family::BOTH
        .into_iter()
        .flat_map(|family| [SocketAddr::new(family.loopback(), 7), Site::A.at(family, 7)])
        .collect();

    for to in &addresses {
        assert_eq!(run(&mut say(host, &good, *to, "hello")).success(), "hello\n");
        let ends = world.next_local_flow(Site::A);
        ends.assert_allowed_on_host("good to echo", "test/good", "test/echo").assert_closed();

        run(&mut say(host, &bad, *to, "hello")).was_reset();
        let ends = world.next_local_flow(Site::A);
        for record in ends.both() {
            assert_refused(record, Reason::NoRule);
            assert_eq!(record.source.workload.as_ref().unwrap().as_str(), "test/bad", "to {to}");
        }
    }

    world.set_policy(&policy("same_host = \"mtls\""));
    for to in &addresses {
        assert_eq!(run(&mut say(host, &good, *to, "hello")).success(), "hello\n");
        let ends = world.next_local_flow(Site::A);
        ends.assert_allowed("good to echo", "test/good", "test/echo").assert_closed();

        run(&mut say(host, &bad, *to, "hello")).was_reset();
        for record in world.next_local_flow(Site::A).both() {
            assert_refused(record, Reason::NoRule);
        }
    }
    world.finish();
}
