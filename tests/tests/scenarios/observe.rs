//! Observe mode touches nothing and misses nothing: flows go as they would without it, and are recorded at both ends
//! with the programs of both. Changing the mode leaves what is established alone.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use bonafide_proto::observed::Protocol;
use bonafide_proto::record::{End, EndedBy, FlowRecord, Outcome, Reason, Transport};
use bonafide_tests::ends::{Ends, digest_of};
use bonafide_tests::netns::Netns;
use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::Program;
use bonafide_tests::programs::{
    echo_server, hold, interpret, python, script, script_as, script_server, udp_echo_server,
};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, World};
use rustix::process::Signal;

on_each_backend! {
    a_switch_leaves_established_connections_alone,
}

/// Good may reach echo, bad may not.
fn policy(bare: &BareWorld, begun: Policy) -> Policy {
    begun
        .script("test/good", &script_as(bare, "seen.py", "good.py"))
        .script("test/echo", &script(bare, "echo_server.py"))
        .script("test/udp-echo", &script(bare, "udp_echo.py"))
        .script("test/hold", &script(bare, "hold.py"))
        .allow("good to echo", "test/good", "test/echo")
        .allow("hold to echo", "test/hold", "test/echo")
        .allow("talk", "test/good", "test/udp-echo")
}

fn observing(bare: BareWorld, policy: &Policy) -> World {
    let mut world = World::start(bare, policy, Backend::Nft);
    for site in [Site::A, Site::B] {
        world.on(site, |node, netns| {
            node.wait_observing();
            assert_untouched(netns);
        });
    }
    world
}

fn assert_untouched(netns: &Netns) {
    assert_eq!(netns.run(&["nft", "list", "ruleset"]).trim(), "");
    for family in ["-4", "-6"] {
        assert!(!netns.run(&["ip", family, "rule"]).contains("30808"));
    }
}

#[track_caller]
fn assert_seen(ends: &Ends, protocol: Protocol, source: &Path, destination: &Path) {
    assert_eq!(ends.source.id, ends.destination.id, "{ends:#?}");
    for record in ends.both() {
        assert_eq!((record.transport, record.mode.as_str()), (Transport::Observed, "observe"), "{record:#?}");
        assert_eq!((record.protocol, record.ended_by), (protocol, EndedBy::Closed), "{record:#?}");
        assert_eq!((record.bytes_sent, record.bytes_received), (5, 5), "{record:#?}");
        for (party, script) in [(&record.source, source), (&record.destination, destination)] {
            assert_eq!(party.program.as_deref(), python().to_str(), "{record:#?}");
            assert_eq!(party.digest, Some(digest_of(&python())), "{record:#?}");
            assert_eq!(party.script_digest, Some(digest_of(script)), "{record:#?}");
        }
    }
}

/// A program that has said something, or failed to; it stays until dropped.
struct Sayer(Child);

impl Sayer {
    fn say(netns: &Netns, script: &Path, kind: &str, to: SocketAddr, expected: &str) -> Self {
        // Whoever is not answered gives up soon, unless the kernel does.
        let patience = if expected == "ETIMEDOUT" { "1" } else { "15" };
        let expected = expected.trim_end_matches(" by itself");
        let words = [kind, &to.ip().to_string(), &to.port().to_string(), "hello", patience];
        let mut command = interpret(netns, script, &words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut heard = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut heard).unwrap();
        assert_eq!(heard.trim_end(), expected);
        Self(child)
    }
}

impl Drop for Sayer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn both_hosts_record_both_ends_and_nothing_is_touched() {
    let bare = BareWorld::create();
    let (good, bad) = (script_as(&bare, "seen.py", "good.py"), script_as(&bare, "seen.py", "bad.py"));
    let echo = script(&bare, "echo_server.py");
    let policy = policy(&bare, Policy::observe());
    let world = observing(bare, &policy);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);

    for family in Family::BOTH {
        let to = Site::B.at(family, 7);
        let _good = Sayer::say(world.netns(Site::A), &good, "tcp", to, "hello");
        let ends = world.next_flow();
        assert_seen(&ends, Protocol::Tcp, &good, &echo);
        for record in ends.both() {
            assert_eq!((record.verdict, record.rule.as_deref()), (Outcome::Allowed, Some("good to echo")));
            assert_eq!(record.source.addr.unwrap().ip(), Site::A.ip(family));
            assert_eq!(record.destination.addr, Some(to));
            let nodes = [&record.source, &record.destination].map(|party| party.node.as_ref().unwrap().to_string());
            assert_eq!(nodes, ["a", "b"]);
        }

        let _bad = Sayer::say(world.netns(Site::A), &bad, "tcp", to, "hello");
        let ends = world.next_flow();
        assert_seen(&ends, Protocol::Tcp, &bad, &echo);
        for record in ends.both() {
            assert_eq!((record.verdict, record.reason), (Outcome::WouldRefuse, Some(Reason::NoWorkload)));
        }

        for own in [to, SocketAddr::new(family.loopback(), 7)] {
            let _good = Sayer::say(world.netns(Site::B), &good, "tcp", own, "hello");
            let ends = world.next_local_flow(Site::B);
            assert_seen(&ends, Protocol::Tcp, &good, &echo);
            for record in ends.both() {
                assert_eq!((record.verdict, record.rule.as_deref()), (Outcome::Allowed, Some("good to echo")));
            }
        }
    }
    world.finish();
}

#[test]
fn datagrams_are_recorded_in_every_mode() {
    let bare = BareWorld::create();
    let (good, echo) = (script_as(&bare, "seen.py", "good.py"), script(&bare, "udp_echo.py"));
    let policies = [Policy::observe(), Policy::shadow(), Policy::enforce()].map(|begun| policy(&bare, begun));
    let world = observing(bare, &policies[0]);
    let _server = udp_echo_server(world.bare(), world.netns(Site::B), 9);
    for (policy, mode) in policies.iter().zip(["observe", "shadow", "enforce"]) {
        world.set_policy(policy);
        for family in Family::BOTH {
            let to = Site::B.at(family, 9);
            let _good = Sayer::say(world.netns(Site::A), &good, "udp", to, "hello");
            // It is over for the server, whose socket stays, because the client's end of it is.
            let ends = world.next_flow();
            for record in ends.both() {
                assert_eq!((record.protocol, record.transport), (Protocol::Udp, Transport::Observed), "{record:#?}");
                assert_eq!((record.mode.as_str(), record.verdict), (mode, Outcome::Allowed), "{record:#?}");
                assert_eq!((record.bytes_sent, record.bytes_received), (5, 5), "{record:#?}");
                assert_eq!(record.source.script_digest, Some(digest_of(&good)), "{record:#?}");
                assert_eq!(record.destination.script_digest, Some(digest_of(&echo)), "{record:#?}");
                assert_eq!(record.destination.addr, Some(to), "{record:#?}");
            }
        }
    }
    world.finish();
}

#[test]
fn attempts_that_come_to_nothing_are_recorded() {
    let bare = BareWorld::create();
    let good = script_as(&bare, "seen.py", "good.py");
    let policy = policy(&bare, Policy::observe());
    let world = observing(bare, &policy);
    world.netns(Site::B).run(&["nft", "add table inet t; add chain inet t c { type filter hook input priority 0; }"]);
    world.netns(Site::B).run(&["nft", "add rule inet t c tcp dport 13 drop"]);
    let tried = |record: &FlowRecord, said: &str| {
        assert_eq!((record.verdict, record.reason), (Outcome::Undecided, Some(Reason::Unreachable)), "{record:#?}");
        assert!(record.detail.as_ref().unwrap().contains(said), "{record:#?}");
        assert_eq!(record.source.digest, Some(digest_of(&python())), "{record:#?}");
        assert_ne!(record.source.addr.unwrap().port(), 0, "{record:#?}");
    };
    for family in Family::BOTH {
        let to = Site::B.at(family, 11);
        let _refused = Sayer::say(world.netns(Site::A), &good, "tcp", to, "ECONNREFUSED");
        let ends = world.next_flow();
        assert_eq!(ends.source.id, ends.destination.id, "{ends:#?}");
        for record in ends.both() {
            tried(record, "refused");
            assert_eq!((record.ended_by, record.bytes_sent), (EndedBy::Refusal, 0));
            assert_eq!((record.destination.addr, record.destination.digest.as_ref()), (Some(to), None), "{record:#?}");
            assert_eq!(record.source.script_digest, Some(digest_of(&good)), "{record:#?}");
        }
        assert_eq!(ends.source.destination.node.as_ref().unwrap().to_string(), "b");
        assert_eq!(ends.destination.source.node.as_ref().unwrap().to_string(), "a");

        let _gave_up = Sayer::say(world.netns(Site::A), &good, "tcp", Site::B.at(family, 13), "ETIMEDOUT");
        tried(&world.a().records().next(End::Source), "never answered");

        let _refused = Sayer::say(world.netns(Site::A), &good, "udp", Site::B.at(family, 15), "ECONNREFUSED");
        let record = world.a().records().next(End::Source);
        tried(&record, "refused");
        assert_eq!((record.protocol, record.bytes_sent), (Protocol::Udp, 5));
    }
    world.finish();
}

/// The answer never reaches whoever asked, who waits for longer than the answers come.
#[test]
fn a_handshake_that_is_never_done_is_recorded_at_both_ends() {
    let bare = BareWorld::create();
    let (good, echo) = (script_as(&bare, "seen.py", "good.py"), script(&bare, "echo_server.py"));
    let policy = policy(&bare, Policy::observe());
    let world = observing(bare, &policy);
    world.netns(Site::B).run(&["sysctl", "-qw", "net.ipv4.tcp_synack_retries=1"]);
    world.netns(Site::A).run(&["sysctl", "-qw", "net.ipv4.tcp_syn_retries=1"]);
    let _server = echo_server(world.bare(), world.netns(Site::B), 7);
    world.netns(Site::A).run(&["nft", "add table inet t; add chain inet t c { type filter hook input priority 0; }"]);
    world.netns(Site::A).run(&["nft", "add rule inet t c tcp sport 7 drop"]);
    for family in Family::BOTH {
        let _waits = Sayer::say(world.netns(Site::A), &good, "tcp", Site::B.at(family, 7), "ETIMEDOUT by itself");
        let ends = world.next_flow();
        assert_eq!(ends.source.id, ends.destination.id, "{ends:#?}");
        for (record, said) in [(&ends.source, "never answered"), (&ends.destination, "half-open")] {
            assert_eq!((record.verdict, record.rule.as_deref()), (Outcome::Allowed, Some("good to echo")));
            assert_eq!((record.ended_by, record.reason), (EndedBy::Refusal, Some(Reason::Unreachable)), "{record:#?}");
            assert!(record.detail.as_ref().unwrap().contains(said), "{record:#?}");
            assert_eq!((record.bytes_sent, record.bytes_received), (0, 0), "{record:#?}");
            assert_eq!(record.source.script_digest, Some(digest_of(&good)), "{record:#?}");
            assert_eq!(record.destination.script_digest, Some(digest_of(&echo)), "{record:#?}");
        }
    }
    world.finish();
}

fn assert_alive(holder: &mut Program, times: &mut usize) {
    holder.signal(Signal::USR1);
    *times += 1;
    let wanted = "echoed\n".repeat(*times);
    holder.wait_for_output(&wanted);
}

fn a_switch_leaves_established_connections_alone(backend: Backend) {
    let bare = BareWorld::create();
    let modes = [Policy::observe(), Policy::shadow(), Policy::enforce(), Policy::observe(), Policy::enforce()];
    let modes = modes.map(|begun| policy(&bare, begun));
    let mut world = World::start(bare, &modes[0], backend);
    for site in [Site::A, Site::B] {
        world.on(site, |node, _| node.wait_observing());
    }
    let _servers = [7, 8].map(|port| {
        let echo = script(world.bare(), "echo_server.py");
        script_server(world.bare(), world.netns(Site::B), &echo, &[&port.to_string()], port)
    });
    for family in Family::BOTH {
        let mut direct = hold(world.bare(), world.netns(Site::A), Site::B.at(family, 7));
        let mut direct_times = 0;
        let mut captured: Option<(Program, usize)> = None;
        for mode in &modes {
            world.set_policy(mode);
            assert_alive(&mut direct, &mut direct_times);
            if let Some((captured, times)) = &mut captured {
                assert_alive(captured, times);
            } else if mode.text().contains("enforce") {
                captured = Some((hold(world.bare(), world.netns(Site::A), Site::B.at(family, 8)), 0));
            }
        }
        direct.kill();
        if let Some((mut captured, _)) = captured {
            captured.kill();
        }
        let mut records = Vec::new();
        for host in [world.a(), world.b()] {
            records.extend(host.records().take_many(2));
        }
        let by = |transport| records.iter().filter(|record| record.transport == transport).count();
        assert_eq!((by(Transport::Observed), by(Transport::Mtls)), (2, 2), "{records:#?}");
        world.set_policy(&modes[0]);
        for site in [Site::A, Site::B] {
            let steers = || world.netns(site).run(&["ip", "rule"]).contains("30808");
            wait_until("the rules to be gone with the last captured connection", Duration::from_secs(10), || !steers());
            world.on(site, |node, _| node.wait_observing());
        }
    }
    world.finish();
}
