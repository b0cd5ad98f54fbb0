//! Scripts are programs too: same interpreter, same user, another script, another verdict. And both ends decide.

use bonafide_proto::record::{End, Outcome, Reason};
use bonafide_tests::ends::{assert_refused, digest_of};
use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{echo_server, python, say, script, script_as};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::world::{BareWorld, World};

on_each_backend! {
    of_two_scripts_only_the_one_named_gets_through,
}

fn of_two_scripts_only_the_one_named_gets_through(backend: Backend) {
    let bare = BareWorld::create();
    let (good, bad) = (script_as(&bare, "say.py", "good.py"), script_as(&bare, "say.py", "bad.py"));
    let (other, unknown) = (script_as(&bare, "say.py", "other.py"), script_as(&bare, "say.py", "unknown.py"));
    let policy = Policy::enforce()
        .script("test/good", &good)
        .script("test/bad", &bad)
        .script("test/other", &other)
        .script("test/echo", &script(&bare, "echo_server.py"))
        .allow("good to echo", "test/good", "test/echo")
        // Bad may go somewhere, so it gets a certificate, but not to echo; other may go nowhere.
        .allow("bad to good", "test/bad", "test/good");
    let world = World::start(bare, &policy, backend);
    let (a, b) = (world.netns(Site::A), world.netns(Site::B));
    let _server = echo_server(world.bare(), b, 7);

    for family in Family::BOTH {
        let to = Site::B.at(family, 7);
        assert_eq!(run(&mut say(a, &good, to, "hello")).success(), "hello\n");
        let ends = world.next_flow();
        ends.assert_allowed("good to echo", "test/good", "test/echo").assert_closed();
        ends.assert_programs(&python(), &python());
        for record in ends.both() {
            assert_eq!(record.source.script.as_deref(), good.to_str());
            assert_eq!(record.source.script_digest, Some(digest_of(&good)));
            assert_eq!((record.bytes_sent, record.bytes_received), (5, 5));
        }

        run(&mut say(a, &bad, to, "hello")).was_reset();
        let ends = world.next_flow();
        assert_refused(&ends.source, Reason::NoRule);
        assert_eq!(ends.source.destination.workload.as_ref().unwrap().as_str(), "test/echo");
        assert_refused(&ends.destination, Reason::RefusedByPeer);
        assert_eq!(ends.destination.source.workload.as_ref().unwrap().as_str(), "test/bad");

        run(&mut say(a, &other, to, "hello")).was_reset();
        assert_refused(&world.a().records().next(End::Source), Reason::NoRule);

        run(&mut say(a, &unknown, to, "hello")).was_reset();
        let record = world.a().records().next(End::Source);
        assert_refused(&record, Reason::NoWorkload);
        assert_eq!(record.source.script.as_deref(), unknown.to_str());
    }

    // The destination's end decides for itself.
    let strict = Policy::enforce()
        .script("test/good", &good)
        .script("test/echo", &world.bare().dir().join("echo_server.py"))
        .deny("good stays out", "test/good", "test/echo");
    world.b().set_policy(&strict);
    for family in Family::BOTH {
        run(&mut say(a, &good, Site::B.at(family, 7), "hello")).was_reset();
        let ends = world.next_flow();
        assert_refused(&ends.source, Reason::RefusedByPeer);
        assert_refused(&ends.destination, Reason::RuleDenies);
        assert_eq!(ends.destination.rule.as_deref(), Some("good stays out"));
        assert_eq!(ends.source.id, ends.destination.id);
        assert!(ends.both().iter().all(|record| record.verdict == Outcome::Refused));
    }
    world.finish();
}
