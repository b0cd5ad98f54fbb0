//! Who is answered: the very program that connected, as long as it alone can read the answer and still earns it.

use std::time::Duration;

use crate::endpoint::{ENTITLED, Endpoint, policy};
use crate::program::{Program, refusal};

const NOTHING: (&str, &str) = ("PermissionDenied", "no identity issued");

#[tokio::test(flavor = "multi_thread")]
async fn w_7_a_program_that_earns_nothing_has_no_identity() {
    let endpoint = Endpoint::with("mode = \"observe\"\n[[workload]]\nname = \"x\"\nexe = \"/nowhere\"\n").await;
    let mut program = Program::start(&endpoint.socket());
    assert_eq!(refusal(&program.asked("svids").await), NOTHING);
    assert_eq!(refusal(&program.asked("bundles").await), NOTHING);
    assert_eq!(endpoint.issued().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_is_not_answered_unless_the_policy_says_so() {
    for not in ["", "workload_api = false"] {
        let endpoint = Endpoint::with(&policy("shop/web", not)).await;
        let mut program = Program::start(&endpoint.socket());
        assert_eq!(refusal(&program.asked("svids").await), NOTHING);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn w_7_a_policy_that_takes_the_identity_back_ends_the_stream() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    assert!(program.asked("svids").await["svids"].is_array());
    assert!(program.asked("bundles").await["bundles"].is_object());
    endpoint.set_policy(&policy("shop/web", ""));
    for _ in 0..2 {
        assert_eq!(refusal(&program.says().await), NOTHING);
    }
    // Clients come again by themselves.
    endpoint.set_policy(&policy("shop/web", ENTITLED));
    let mut said = program.asked("svids").await;
    while said["code"] == NOTHING.0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        said = program.asked("svids").await;
    }
    assert!(said["svids"].is_array());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_changes_changes_the_certificate() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    assert_eq!(program.asked("svids").await["svids"][0]["id"], "spiffe://example.org/shop/web");
    endpoint.set_policy(&policy("shop/front", ENTITLED));
    assert_eq!(program.says().await["svids"][0]["id"], "spiffe://example.org/shop/front");
}

#[tokio::test(flavor = "multi_thread")]
async fn w_7_a_program_that_becomes_tainted_is_told_nothing_more() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    assert!(program.asked("svids").await["svids"].is_array());
    let mut tracer = std::process::Command::new("python3")
        .args(["-c", TRACES, &program.pid().to_string()])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let said = program.says().await;
    drop(tracer.stdin.take());
    tracer.wait().unwrap();
    assert_eq!(refusal(&said), NOTHING);
}

/// PTRACE_SEIZE, which stops nobody, until its standard input ends.
const TRACES: &str = "
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(0x4206, int(sys.argv[1]), None, None) == 0, ctypes.get_errno()
sys.stdin.read()
";

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_another_program_has_too_is_not_answered() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    let lent = program.asked("lend").await;
    let said = program.asked("svids").await;
    end(&lent["lent"]);
    assert_eq!(refusal(&said), NOTHING);
    assert_eq!(endpoint.issued().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_handed_on_between_two_messages_gets_no_second_one() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    assert!(program.asked("svids").await["svids"].is_array());
    let lent = program.asked("lend").await;
    endpoint.travel(crate::endpoint::LEAF_TTL * 3 / 4);
    let said = program.says().await;
    end(&lent["lent"]);
    assert_eq!(refusal(&said), NOTHING);
}

fn end(pid: &serde_json::Value) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid.as_i64().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_executes_with_its_connection_is_not_who_connected() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    assert_eq!(program.asked("exec").await["executed"], true);
    // The same file, and another execution of it.
    assert_eq!(refusal(&program.asked("svids").await), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_end_are_forgotten() {
    let endpoint = Endpoint::start().await;
    for _ in 0..3 {
        let mut program = Program::start(&endpoint.socket());
        assert!(program.asked("svids").await["svids"].is_array());
    }
    assert_eq!(endpoint.issued().await, 1);
}
