//! Shadow mode refuses nothing, writes down what enforce would refuse, and cannot take a host down.

use std::time::Duration;

use bonafide_proto::record::{End, Outcome, Reason, Transport};
use bonafide_tests::node::{Backend, Daemon};
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{echo_server, say, script, script_as};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, World};

on_each_backend! {
    shadowing_breaks_nothing,
}

fn shadowing_breaks_nothing(backend: Backend) {
    let bare = BareWorld::create();
    let (good, bad) = (script_as(&bare, "say.py", "good.py"), script_as(&bare, "say.py", "bad.py"));
    let policy = Policy::shadow()
        .script("test/good", &good)
        .script("test/echo", &script(&bare, "echo_server.py"))
        .allow("good to echo", "test/good", "test/echo");
    let mut world = World::start(bare, &policy, backend);
    let server = echo_server(world.bare(), world.netns(Site::B), 7);
    let works = |world: &World, from: Site, script, to| {
        assert_eq!(run(&mut say(world.netns(from), script, to, "hello")).success(), "hello\n");
    };

    for family in Family::BOTH {
        works(&world, Site::A, &good, Site::B.at(family, 7));
        let ends = world.next_flow();
        for record in ends.both() {
            // Who is at the other end is not known in the clear.
            assert_eq!((record.verdict, record.transport), (Outcome::Undecided, Transport::Clear), "{record:#?}");
            assert_eq!(record.mode, "shadow");
            assert_eq!((record.bytes_sent, record.bytes_received), (5, 5));
        }
        works(&world, Site::A, &bad, Site::B.at(family, 7));
        let ends = world.next_flow();
        assert_eq!(ends.source.verdict, Outcome::WouldRefuse);
        assert_eq!(ends.source.reason, Some(Reason::NoWorkload));
        assert_eq!(ends.destination.verdict, Outcome::Undecided);

        // On one host both are known.
        works(&world, Site::B, &good, Site::B.at(family, 7));
        for record in world.next_local_flow(Site::B).both() {
            assert_eq!((record.verdict, record.rule.as_deref()), (Outcome::Allowed, Some("good to echo")));
        }
        works(&world, Site::B, &bad, Site::B.at(family, 7));
        for record in world.next_local_flow(Site::B).both() {
            assert_eq!((record.verdict, record.reason), (Outcome::WouldRefuse, Some(Reason::NoWorkload)));
        }
    }

    for site in [Site::A, Site::B] {
        world.host(site).node().kill(Daemon::Enforcer);
        for family in Family::BOTH {
            let ask = || run(&mut say(world.netns(Site::A), &good, Site::B.at(family, 7), "hello")).code() == Some(0);
            wait_until(&format!("the hosts to work without the enforcer of {site:?}"), Duration::from_secs(5), ask);
            if site == Site::A {
                // The other one still lives, and records.
                let record = world.b().records().next(End::Destination);
                assert_eq!((record.verdict, record.transport), (Outcome::Undecided, Transport::Clear), "{record:#?}");
            }
        }
    }
    assert!(world.a().records().all().iter().all(|record| record.verdict != Outcome::Refused));
    drop(server);
    world.finish();
}
