//! What TCP promises is kept: every byte in order, half-close, reset, and many at once.

use std::time::Duration;

use bonafide_proto::record::{EndedBy, FlowRecord};
use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::{must_run, run, run_within};
use bonafide_tests::programs::{echo_server, interpret, netcat, netcat_exe, say, script, script_server};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::world::{BareWorld, World};

on_each_backend! {
    a_gigabyte_each_way_arrives_whole,
    a_half_close_arrives_as_a_half_close,
    a_reset_arrives_as_a_reset_both_ways,
    a_thousand_connections_at_once_are_a_thousand_flows,
}

/// Megabytes, each way.
const GIGABYTE: &str = "1024";
const CROWD: usize = 1000;

/// A world in which these scripts are workloads of the same name, and client may reach server.
fn world(bare: BareWorld, client: &str, server: &str, backend: Backend) -> World {
    let policy = Policy::enforce()
        .script("test/client", &script(&bare, client))
        .script("test/server", &script(&bare, server))
        .allow("client to server", "test/client", "test/server");
    World::start(bare, &policy, backend)
}

fn a_gigabyte_each_way_arrives_whole(backend: Backend) {
    let world = {
        let bare = BareWorld::create_alone();
        // One script, two roles.
        let policy =
            Policy::enforce().script("test/bulk", &script(&bare, "bulk.py")).allow("bulk", "test/bulk", "test/bulk");
        World::start(bare, &policy, backend)
    };
    let bulk = script(world.bare(), "bulk.py");
    let mut server = script_server(world.bare(), world.netns(Site::B), &bulk, &["serve", "9000", GIGABYTE], 9000);
    for family in Family::BOTH {
        let to = Site::B.ip(family).to_string();
        let mut client = interpret(world.netns(Site::A), &bulk, &["connect", &to, "9000", GIGABYTE]);
        let said = run_within(&mut client, Duration::from_secs(120)).success();
        let ends = world.next_flow();
        ends.assert_allowed("bulk", "test/bulk", "test/bulk").assert_closed();
        assert_eq!((ends.source.bytes_sent, ends.source.bytes_received), (1 << 30, 1 << 30));

        let [sent, received, "1073741824"] = said.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("the client said {said}")
        };
        // What one sent is what the other received, by its digest.
        server.wait_for_output(&format!("{received} {sent} 1073741824\n"));
    }
    world.finish();
}

fn a_half_close_arrives_as_a_half_close(backend: Backend) {
    let bare = BareWorld::create();
    let policy = Policy::enforce()
        .program("test/client", &netcat_exe())
        .script("test/server", &script(&bare, "reverse_server.py"))
        .allow("client to server", "test/client", "test/server");
    let world = World::start(bare, &policy, backend);
    let reverse = script(world.bare(), "reverse_server.py");
    let _server = script_server(world.bare(), world.netns(Site::B), &reverse, &["7"], 7);
    for family in Family::BOTH {
        // The server answers only after the end of the stream, on a connection that must still be open that way.
        assert_eq!(must_run(&mut netcat(world.netns(Site::A), Site::B.at(family, 7), "stressed")), "desserts");
        world.next_flow().assert_allowed("client to server", "test/client", "test/server").assert_closed();
    }
    world.finish();
}

fn a_reset_arrives_as_a_reset_both_ways(backend: Backend) {
    let bare = BareWorld::create();
    let (say_script, reset) = (script(&bare, "say.py"), script(&bare, "reset.py"));
    let policy = Policy::enforce()
        .script("test/say", &say_script)
        .script("test/reset", &reset)
        .script("test/echo", &script(&bare, "echo_server.py"))
        .allow("server resets", "test/say", "test/reset")
        .allow("client resets", "test/reset", "test/echo");
    let world = World::start(bare, &policy, backend);
    let (a, b) = (world.netns(Site::A), world.netns(Site::B));
    let _resetting = script_server(world.bare(), b, &reset, &["serve", "7"], 7);
    let mut echo = echo_server(world.bare(), b, 8);

    for family in Family::BOTH {
        let said = run(&mut say(a, &say_script, Site::B.at(family, 7), "hello"));
        assert_eq!(said.stdout, "ECONNRESET\n", "{said:#?}");
        let ends = world.next_flow();
        ends.assert_allowed("server resets", "test/say", "test/reset");
        assert_ended(&ends.both(), EndedBy::DestinationReset);

        let before = echo.output().matches("reset by peer").count();
        must_run(&mut interpret(a, &reset, &["connect", &Site::B.ip(family).to_string(), "8"]));
        echo.wait_for_output(&"reset by peer\n".repeat(before + 1));
        let ends = world.next_flow();
        ends.assert_allowed("client resets", "test/reset", "test/echo");
        assert_ended(&ends.both(), EndedBy::SourceReset);
    }
    world.finish();
}

#[track_caller]
fn assert_ended(records: &[&FlowRecord], by: EndedBy) {
    for record in records {
        assert_eq!(record.ended_by, by, "{record:#?}");
    }
}

fn a_thousand_connections_at_once_are_a_thousand_flows(backend: Backend) {
    let world = world(BareWorld::create_alone(), "crowd.py", "echo_server.py", backend);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let crowd = script(world.bare(), "crowd.py");
    for family in Family::BOTH {
        let to = Site::B.ip(family).to_string();
        let mut command = interpret(world.netns(Site::A), &crowd, &[&to, "7", &CROWD.to_string()]);
        let said = run_within(&mut command, Duration::from_secs(60)).success();
        assert_eq!(said, format!("{CROWD} at once\n"));
        for records in [world.a().records(), world.b().records()] {
            let records = records.take_many(CROWD);
            assert_eq!(records.len(), CROWD);
            for record in records {
                assert_eq!((record.bytes_sent, record.bytes_received), (8, 8), "{record:#?}");
                assert_eq!(record.ended_by, EndedBy::Closed, "{record:#?}");
                assert_eq!(record.rule.as_deref(), Some("client to server"), "{record:#?}");
            }
        }
    }
    world.finish();
}
