//! Another program on the server's port: refused at the client's end, even where the server's host would let it.

use bonafide_proto::record::{End, Outcome, Reason};
use bonafide_tests::ends::assert_refused;
use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{echo_server, say, script, script_as, script_server};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::world::{BareWorld, World};

on_each_backend! {
    a_client_refuses_whoever_else_listens_on_its_servers_port,
}

const PORT: u16 = 7;

fn a_client_refuses_whoever_else_listens_on_its_servers_port(backend: Backend) {
    let bare = BareWorld::create();
    let client = script(&bare, "say.py");
    let (server, impostor) = (script(&bare, "echo_server.py"), script_as(&bare, "echo_server.py", "impostor.py"));
    let policy = Policy::enforce()
        .script("test/client", &client)
        .script("test/server", &server)
        .script("test/impostor", &impostor)
        .allow("client to server", "test/client", "test/server");
    let world = World::start(bare, &policy, backend);
    // The impostor's host is on its side.
    world.b().set_policy(&policy.clone().allow("an open door", "test/client", "test/impostor"));
    let (a, b) = (world.netns(Site::A), world.netns(Site::B));

    let real = echo_server(world.bare(), b, PORT);
    for family in Family::BOTH {
        assert_eq!(run(&mut say(a, &client, Site::B.at(family, PORT), "a secret")).success(), "a secret\n");
        world.next_flow().assert_allowed("client to server", "test/client", "test/server").assert_closed();
    }
    drop(real);

    let named = script_server(world.bare(), b, &impostor, &[&PORT.to_string()], PORT);
    for family in Family::BOTH {
        run(&mut say(a, &client, Site::B.at(family, PORT), "a secret")).was_reset();
        let ends = world.next_flow();
        assert_refused(&ends.source, Reason::NoRule);
        assert_eq!(ends.source.destination.workload.as_ref().unwrap().as_str(), "test/impostor");
        assert_refused(&ends.destination, Reason::RefusedByPeer);
    }
    drop(named);

    let nobody = script_as(world.bare(), "echo_server.py", "nobody.py");
    let unnamed = script_server(world.bare(), b, &nobody, &[&PORT.to_string()], PORT);
    for family in Family::BOTH {
        run(&mut say(a, &client, Site::B.at(family, PORT), "a secret")).was_reset();
        let ends = world.next_flow();
        assert_eq!((ends.source.verdict, ends.source.bytes_sent), (Outcome::Refused, 0));
        assert_refused(&ends.destination, Reason::NoWorkload);
        assert_eq!(ends.destination.destination.script.as_deref(), nobody.to_str());
    }
    drop(unnamed);

    for family in Family::BOTH {
        run(&mut say(a, &client, Site::B.at(family, PORT), "a secret")).was_reset();
        assert_eq!(world.a().records().next(End::Source).verdict, Outcome::Refused);
        assert_refused(&world.b().records().next(End::Destination), Reason::Unreachable);
    }
    world.finish();
}
