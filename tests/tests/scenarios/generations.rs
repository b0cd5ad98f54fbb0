//! Trust belongs to an execution: whoever executes another program, or gives it the socket, has lost the connection.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bonafide_proto::record::{End, FlowRecord, Outcome, Party, Reason};
use bonafide_tests::ends::{Ends, digest_of};
use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::{Program, run};
use bonafide_tests::programs::{changeling, changeling_server, echo_server, interpret, python, script};
use bonafide_tests::rpc;
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, World};
use rustix::process::Signal;

/// For a busy machine; the promise is 100 ms, and it is measured elsewhere.
const SOON: Duration = Duration::from_secs(10);
const ECHO: u16 = 7;
/// Of two that wait at one socket only one hears of the reset.
const ENDED: [&str; 4] = ["ECONNRESET", "EPIPE", "ENOTCONN", "end of stream"];

/// One world for many turns: client and echo may talk, in both roles; nobody knows the heir.
struct Stage {
    world: World,
    python: String,
    heir: String,
}

impl Stage {
    fn set() -> (Self, Program) {
        let bare = BareWorld::create();
        let heir = script(&bare, "heir.py").display().to_string();
        let policy = Policy::enforce()
            .script("test/client", &script(&bare, "changeling.py"))
            .script("test/say", &script(&bare, "say.py"))
            .script("test/server", &script(&bare, "echo_server.py"))
            .lines("[[rule]]\nname = \"let in\"\naction = \"allow\"")
            .lines("from = [\"test/client\", \"test/say\"]\nto = [\"test/server\", \"test/client\"]");
        let mut world = World::start(bare, &policy, Backend::Nft);
        let status = rpc::attestation_status(&world.host(Site::A).node().layout().identityd_socket()).unwrap();
        // Nobody else sees who uses a socket, or who connected it before.
        assert_eq!(status.source, "kernel", "{status:?}");
        let server = echo_server(world.bare(), world.netns(Site::B), ECHO);
        (Self { world, python: python().display().to_string(), heir }, server)
    }

    /// Another program, as words to execute.
    fn heir<'a>(&'a self, does: &'a str) -> [&'a str; 3] {
        [&self.python, &self.heir, does]
    }

    /// `changeling.py`, connected to the echo server.
    fn client(&self, family: Family, how: &[&str]) -> Program {
        changeling(self.world.bare(), self.world.netns(Site::A), Site::B.at(family, ECHO), how)
    }
}

/// Asserts that this end ended it, for what the program there did.
#[track_caller]
fn assert_ended(ends: &Ends, end: End) {
    let record = ends.assert_ended_at(end, Reason::IdentityChanged);
    let detail = record.detail.as_deref().unwrap_or_default();
    let said = ["another program", "another script"].iter().any(|what| detail.contains(what));
    assert!(said, "it does not say what changed: {record:#?}");
}

fn changes(changeling: &Program) {
    changeling.signal(Signal::USR1);
}

/// Waits until the connection is over for whoever prints here.
fn over(holder: &Program, whose: &str) {
    wait_until("the connection to be ended", SOON, || {
        let printed = holder.output();
        let ended = |line: &str| line.strip_prefix(whose).is_some_and(|word| ENDED.contains(&word));
        printed.lines().any(ended)
    });
}

#[test]
fn a_connection_belongs_to_the_program_that_was_let_through_and_to_no_other() {
    let (stage, _server) = Stage::set();
    one_that_executes_another_program_loses_its_connection(&stage);
    one_that_executes_another_program_loses_what_it_accepted(&stage);
    a_child_that_is_the_same_program_may_have_it(&stage);
    a_child_that_is_another_program_ends_it_for_both(&stage);
    whoever_executes_a_trusted_program_makes_it_no_less_trusted(&stage);
    a_program_that_is_handed_the_socket_ends_it_for_both(&stage);
    a_trusted_program_does_not_vouch_for_a_connection_that_another_made(&stage);
    stage.world.finish();
}

fn one_that_executes_another_program_loses_its_connection(stage: &Stage) {
    for (family, does) in [(Family::V4, "waits"), (Family::V6, "waits"), (Family::V4, "writes"), (Family::V6, "writes")]
    {
        let client = stage.client(family, &[&["exec"], &stage.heir(does)[..]].concat());
        changes(&client);
        over(&client, "heir: ");
        let ends = stage.world.next_flow();
        assert_ended(&ends, End::Source);
        if does == "waits" {
            // Not a byte more than the first, either way.
            assert_eq!(ends.both().map(|record| (record.bytes_sent, record.bytes_received)), [(1, 1); 2]);
        }
    }
}

fn one_that_executes_another_program_loses_what_it_accepted(stage: &Stage) {
    let words = [&["exec"], &stage.heir("waits")[..]].concat();
    for (family, port) in [(Family::V4, 8), (Family::V6, 9)] {
        let server = changeling_server(stage.world.bare(), stage.world.netns(Site::B), port, &words);
        let to = Site::B.at(family, port);
        let client = changeling(stage.world.bare(), stage.world.netns(Site::A), to, &["nothing"]);
        changes(&server);
        over(&server, "heir: ");
        changes(&client);
        over(&client, "");
        let ends = stage.world.next_flow();
        assert_ended(&ends, End::Destination);
    }
}

fn a_child_that_is_the_same_program_may_have_it(stage: &Stage) {
    for family in Family::BOTH {
        let mut client = stage.client(family, &["fork"]);
        changes(&client);
        client.wait_for_output("echoed to the child\ndone\nechoed\n");
        client.kill();
        let ends = stage.world.next_flow();
        ends.assert_allowed("let in", "test/client", "test/server").assert_closed();
        assert_eq!((ends.source.bytes_sent, ends.source.bytes_received), (3, 3));
    }
}

fn a_child_that_is_another_program_ends_it_for_both(stage: &Stage) {
    for (family, does) in [(Family::V4, "waits"), (Family::V6, "waits"), (Family::V6, "writes")] {
        let client = stage.client(family, &[&["spawn"], &stage.heir(does)[..]].concat());
        changes(&client);
        over(&client, "heir: ");
        over(&client, "");
        let ends = stage.world.next_flow();
        assert_ended(&ends, End::Source);
    }
}

fn a_program_that_is_handed_the_socket_ends_it_for_both(stage: &Stage) {
    for family in Family::BOTH {
        let (bare, socket) = (stage.world.bare(), stage.world.bare().dir().join("handed"));
        let socket = socket.to_str().unwrap();
        let mut command = interpret(stage.world.netns(Site::A), Path::new(&stage.heir), &["writes", socket]);
        let log = bare.dir().join(format!("heir-{family}.log"));
        let mut heir = Program::start("heir.py", &mut command, &log);
        heir.wait_for_output("listening");
        let client = stage.client(family, &["hand", socket]);
        changes(&client);
        over(&heir, "heir: ");
        over(&client, "");
        std::fs::remove_file(socket).unwrap();
        let ends = stage.world.next_flow();
        assert_ended(&ends, End::Source);
    }
}

/// `become.py`, which no policy knows, executes `say.py`, which may speak.
fn became(stage: &Stage, how: &str, words: &[&str]) -> Command {
    let untrusted = script(stage.world.bare(), "become.py");
    interpret(stage.world.netns(Site::A), &untrusted, &[&[how, &stage.python], words].concat())
}

fn whoever_executes_a_trusted_program_makes_it_no_less_trusted(stage: &Stage) {
    let say = script(stage.world.bare(), "say.py").display().to_string();
    let mut certificates = BTreeSet::new();
    for family in Family::BOTH {
        let (host, port) = (Site::B.ip(family).to_string(), ECHO.to_string());
        let heard = run(&mut became(stage, "plain", &[&say, &host, &port, "hello"])).success();
        assert_eq!(heard, "hello\n");
        let ends = stage.world.next_flow();
        ends.assert_allowed("let in", "test/say", "test/server").assert_closed();
        ends.assert_programs(&python(), &python());
        for record in ends.both() {
            certificates.insert(record.tls.as_ref().unwrap().peer_serial.clone());
            assert_evidence(&record.source, "a", Path::new(&say), record);
            assert_evidence(&record.destination, "b", &script(stage.world.bare(), "echo_server.py"), record);
        }
    }
    assert_eq!(certificates.len(), 2, "one for each program, however often it speaks");
}

/// Either end's record knows of both programs what they interpret, as whom and where.
#[track_caller]
fn assert_evidence(party: &Party, node: &str, script: &Path, record: &FlowRecord) {
    assert_eq!(
        (party.script.as_deref(), party.script_digest),
        (script.to_str(), Some(digest_of(script))),
        "{record:#?}"
    );
    assert_eq!((party.uid, party.node.as_ref().map(|node| node.as_str())), (Some(0), Some(node)), "{record:#?}");
    assert!(party.host.is_some() && party.libraries.is_some(), "{record:#?}");
}

fn a_trusted_program_does_not_vouch_for_a_connection_that_another_made(stage: &Stage) {
    let trusted = script(stage.world.bare(), "changeling.py").display().to_string();
    for family in Family::BOTH {
        let (to, host) = (Site::B.at(family, ECHO), Site::B.ip(family).to_string());
        // It holds one connection that another program made, and makes one itself.
        let log = stage.world.bare().dir().join(format!("became-{family}.log"));
        let words = [trusted.as_str(), &host, &ECHO.to_string(), "nothing"];
        let mut client = Program::start("become.py", &mut became(stage, &to.to_string(), &words), &log);
        client.wait_for_output("open");
        let refused = stage.world.a().records().take("a refusal", |record| record.verdict == Outcome::Refused);
        // It depends on whether it still was the other program when it was looked at.
        let reasons = [Some(Reason::Unattributed), Some(Reason::NoWorkload)];
        assert!(reasons.contains(&refused.reason) && refused.source.workload.is_none(), "{refused:#?}");
        assert_eq!((refused.bytes_sent, refused.bytes_received), (0, 0));
        changes(&client);
        client.wait_for_output("echoed");
        client.kill();
        stage.world.next_flow().assert_allowed("let in", "test/client", "test/server").assert_closed();
    }
}
