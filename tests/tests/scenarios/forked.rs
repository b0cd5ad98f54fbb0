//! Servers with a process for each connection: what happens to that process alone ends its connection alone.

use std::process::{Command, Stdio};
use std::time::Duration;

use bonafide_proto::record::{End, Reason};
use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::Program;
use bonafide_tests::programs::{hold, python, script, script_server};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, World};
use rustix::process::Signal;

/// For a busy machine; the promise is 100 ms, and it is measured elsewhere.
const SOON: Duration = Duration::from_secs(10);
const PORT: u16 = 7;

/// Python that traces the process in its last argument (`PTRACE_SEIZE`) as long as its input lasts.
const TRACES: &str = r#"
import ctypes, sys
assert ctypes.CDLL(None, use_errno=True).ptrace(0x4206, int(sys.argv[1]), None, None) == 0
sys.stdin.read()
"#;

#[test]
fn a_tracer_on_the_child_that_serves_a_connection_ends_that_one() {
    let bare = BareWorld::create();
    let forking = script(&bare, "forking.py");
    let policy = Policy::enforce()
        .script("test/holder", &script(&bare, "hold.py"))
        .script("test/forking", &forking)
        .lines("[[rule]]\nname = \"let in\"\naction = \"allow\"\nfrom = \"test/holder\"\nto = \"test/forking\"");
    let world = World::start(bare, &policy, Backend::Nft);
    let server = script_server(world.bare(), world.netns(Site::B), &forking, &[&PORT.to_string()], PORT);
    for (family, another) in Family::BOTH.into_iter().zip(Family::BOTH.into_iter().rev()) {
        let known = children(&server);
        let mut other = hold(world.bare(), world.netns(Site::A), Site::B.at(another, PORT));
        wait_until("a child to serve", SOON, || children(&server).len() == known.len() + 1);
        let mut holder = hold(world.bare(), world.netns(Site::A), Site::B.at(family, PORT));
        wait_until("another child to serve", SOON, || children(&server).len() == known.len() + 2);
        let child = children(&server).pop().unwrap();
        let mut tracer = Command::new(python());
        let mut tracer = tracer.args(["-c", TRACES, &child]).stdin(Stdio::piped()).spawn().unwrap();
        wait_until("the idle connection to be ended", SOON, || !holder.is_running());
        assert!(holder.output().contains("ECONNRESET"), "{}", holder.output());
        drop(tracer.stdin.take());
        assert!(tracer.wait().unwrap().success());
        let ends = world.next_flow();
        let record = ends.assert_ended_at(End::Destination, Reason::IdentityChanged);
        let detail = record.detail.as_deref().unwrap_or_default();
        // As what is new, or, if it was traced before it was looked at, as what the policy does not allow.
        assert!(detail.contains("traced"), "it does not say what changed: {record:#?}");

        other.signal(Signal::USR1);
        other.wait_for_output("echoed");
        other.kill();
        world.next_flow().assert_allowed("let in", "test/holder", "test/forking").assert_closed();
    }
    world.finish();
}

/// The numbers of all children so far.
fn children(server: &Program) -> Vec<String> {
    server.output().lines().filter_map(|line| line.strip_prefix("child ")).map(str::to_owned).collect()
}
