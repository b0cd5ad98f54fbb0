//! Policy edits take effect while connections live; a broken edit takes none.

use std::time::{Duration, Instant};

use bonafide_proto::clock::{Clock as _, SystemClock};
use bonafide_proto::record::{End, EndedBy, FlowRecord, Outcome, Reason};
use bonafide_tests::ends::Ends;
use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::{Program, run};
use bonafide_tests::programs::{echo_server, hold, say, script, script_as, script_server};
use bonafide_tests::rpc;
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::{wait_for, wait_until};
use bonafide_tests::world::{BareWorld, POLICY_DELAY, World};
use rustix::process::Signal;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How long an exception is made for: time enough to open connections by it.
const LEASE: Duration = Duration::from_secs(10);

on_each_backend! {
    a_removed_rule_ends_idle_connections_within_a_second_at_both_ends,
}

fn a_removed_rule_ends_idle_connections_within_a_second_at_both_ends(backend: Backend) {
    let bare = BareWorld::create_alone();
    let (client, server) = (script(&bare, "hold.py"), script(&bare, "echo_server.py"));
    let other = script_as(&bare, "echo_server.py", "other_server.py");
    let without = Policy::enforce()
        .script("test/client", &client)
        .script("test/server", &server)
        .script("test/other", &other)
        .allow("client to other", "test/client", "test/other");
    let with = without.clone().allow("client to server", "test/client", "test/server");
    let world = World::start(bare, &with, backend);
    let (a, b) = (world.netns(Site::A), world.netns(Site::B));
    let _servers = [echo_server(world.bare(), b, 7), script_server(world.bare(), b, &other, &["8"], 8)];
    let unaffected = hold(world.bare(), a, Site::B.at(Family::V4, 8));

    for family in Family::BOTH {
        for (edited, kept) in [(world.a(), End::Source), (world.b(), End::Destination)] {
            let mut holder = hold(world.bare(), a, Site::B.at(family, 7));
            edited.write_policy(without.text());
            let ended_after = time_until_over(&mut holder);
            assert!(ended_after < POLICY_DELAY, "it lived on for {ended_after:?}");
            let ends = world.next_flow();
            for record in ends.both() {
                assert_eq!(record.verdict, Outcome::Allowed, "{record:#?}");
                let edited_here = record.end == kept;
                let expected = if edited_here {
                    (Some(Reason::PolicyChanged), EndedBy::Enforcer)
                } else {
                    (Some(Reason::EndedByPeer), EndedBy::Peer)
                };
                assert_eq!((record.reason, record.ended_by), expected, "{record:#?}");
            }
            edited.set_policy(&with);
        }
    }

    let mut unaffected = unaffected;
    unaffected.signal(Signal::USR1);
    unaffected.wait_for_output("echoed");
    unaffected.kill();
    world.next_flow().assert_allowed("client to other", "test/client", "test/other").assert_closed();
    world.finish();
}

fn time_until_over(holder: &mut Program) -> Duration {
    let start = Instant::now();
    wait_until("the connection to be ended", 3 * POLICY_DELAY, || !holder.is_running());
    assert!(holder.output().contains("ECONNRESET"), "it should have been reset: {}", holder.output());
    start.elapsed()
}

#[test]
fn a_rule_that_expires_ends_what_it_allowed_and_is_named_by_what_is_refused_then() {
    let bare = BareWorld::create();
    let client = script(&bare, "hold.py");
    let without = Policy::enforce()
        .script("test/client", &client)
        .script("test/server", &script(&bare, "echo_server.py"))
        // Without any rule it would not even be asked who listens there.
        .allow("client to itself", "test/client", "test/client");
    let world = World::start(bare, &without, Backend::Nft);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let expires = SystemClock.unix() + i64::try_from(LEASE.as_secs()).unwrap();
    let written = OffsetDateTime::from_unix_timestamp(expires).unwrap().format(&Rfc3339).unwrap();
    let leased = without.allow("for now", "test/client", "test/server").lines(&format!("expires = {written}"));
    world.a().set_policy(&leased);
    world.b().set_policy(&leased);
    let to = |family| Site::B.at(family, 7);
    let mut holders = Family::BOTH.map(|family| hold(world.bare(), world.netns(Site::A), to(family)));
    for holder in &mut holders {
        wait_until("the connection to be ended", 2 * LEASE, || !holder.is_running());
        let ends = world.next_flow();
        let reasons = ends.both().map(|record| record.reason);
        assert!(reasons.contains(&Some(Reason::PolicyChanged)), "{reasons:?}");
        for record in ends.both() {
            assert_eq!((record.verdict, record.rule.as_deref()), (Outcome::Allowed, Some("for now")), "{record:#?}");
        }
    }
    assert!(SystemClock.unix() >= expires, "it ended before its time");
    for family in Family::BOTH {
        assert!(
            !run(&mut say(world.netns(Site::A), &client, to(family), "hi"))
                .status
                .is_some_and(|status| status.success())
        );
        let Ends { source: record, destination } = world.next_flow();
        assert_eq!(destination.reason, Some(Reason::RefusedByPeer), "{destination:#?}");
        let nearest = record.nearest.as_ref().map(|near| (near.of.as_str(), near.field.as_str()));
        assert_eq!((record.reason, nearest), (Some(Reason::NoRule), Some(("for now", "expires"))), "{record:#?}");
    }
    world.finish();
}

#[test]
fn a_broken_edit_changes_nothing_and_says_where_it_is_broken() {
    let bare = BareWorld::create();
    let client = script(&bare, "say.py");
    let policy = Policy::enforce()
        .script("test/client", &client)
        .script("test/server", &script(&bare, "echo_server.py"))
        .allow("client to server", "test/client", "test/server");
    let mut world = World::start(bare, &policy, Backend::Nft);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    let socket = world.host(Site::A).node().layout().identityd_socket();
    let works = |world: &World| {
        for family in Family::BOTH {
            assert_eq!(run(&mut say(world.netns(Site::A), &client, Site::B.at(family, 7), "hi")).success(), "hi\n");
            world.next_flow().assert_allowed("client to server", "test/client", "test/server");
        }
    };
    works(&world);

    let unknown = policy.clone().allow("to nobody", "test/client", "test/nobody");
    for (broken, named) in [("mode = \"enforce\"\nmode", "2:"), ("", "mode"), (unknown.text(), "test/nobody")] {
        world.a().write_policy(broken);
        let error = wait_for("identityd to say what is wrong", 3 * POLICY_DELAY, || {
            let status = rpc::attestation_status(&socket)?;
            let known = status.policy_error.contains(named);
            if known { Ok(status.policy_error) } else { Err(format!("{status:?}")) }
        });
        assert!(error.contains("policy-a.toml"), "the error does not name the file: {error}");
        works(&world);
    }

    // Gone is broken too.
    std::fs::remove_file(world.bare().dir().join("policy-a.toml")).unwrap();
    wait_for("identityd to miss its policy file", 3 * POLICY_DELAY, || {
        let error = rpc::attestation_status(&socket)?.policy_error;
        if error.is_empty() || error.contains("test/nobody") { Err(error) } else { Ok(()) }
    });
    works(&world);

    world.a().set_policy(&policy.clone().lines("# mended"));
    assert_eq!(rpc::attestation_status(&socket).unwrap().policy_error, "");
    works(&world);
    let records: Vec<FlowRecord> = world.a().records().all();
    assert!(records.iter().all(|record| record.verdict == Outcome::Allowed));
    world.finish();
}
