//! Programs whose exec nobody saw: because they are older than the daemon, or because nobody can see it here.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::{Evidence, Script};
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::taint::Taint;

use crate::accept::Front;
use crate::attacks::{NOBODYS_UID, compile_odd};
use crate::connectors::{Obedient, is};
use crate::node::{BY_PROC, NOBODY, Node, Program, connector, needed, python, sleep};

/// What the forger would pass for.
fn trusted() -> PathBuf {
    needed(&["/usr/bin/true"])
}

fn policy() -> String {
    let exe = trusted();
    format!("mode = \"observe\"\n[[workload]]\nname = \"trusted\"\nexe = \"{}\"\n", exe.display())
}

/// Arbitrary code of a user without privileges that `/proc` shows as the trusted program, in the initial user namespace.
fn forged(dir: &tempfile::TempDir) -> Program {
    let mut forger = Command::new(compile_odd(dir.path()));
    forger.arg("share").arg(trusted()).uid(NOBODYS_UID).gid(NOBODYS_UID).stdin(Stdio::piped());
    let mut forger = Program::start(&mut forger);
    assert_eq!(forger.line(), "forged");
    let link = |name: &str| std::fs::read_link(format!("/proc/{}/{name}", forger.pid())).unwrap();
    assert_eq!(link("exe"), trusted(), "the forgery does not work here, so the test shows nothing");
    assert_eq!(link("ns/user"), std::fs::read_link("/proc/self/ns/user").unwrap());
    forger
}

fn connects(forger: &mut Program, to: std::net::SocketAddr) {
    forger.tell(&to.to_string());
    assert_eq!(forger.line(), "connected");
}

/// It is taken for the trusted program, and earns nothing by that.
fn earns_nothing(attested: &Attestation) {
    assert!(is(&trusted(), attested));
    assert_eq!(attested.fingerprint.taints, [Taint::Unwitnessed].into());
    assert_eq!(attested.workload, None);
    let [miss] = attested.near_misses.as_slice() else { panic!("{:?}", attested.near_misses) };
    assert_eq!((miss.field.as_str(), miss.expected.as_str()), ("allow_taints", "none"));
    assert!(miss.seen.contains("restart it"), "{miss:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forger_earns_nothing_from_the_proc_source() {
    let dir = tempfile::tempdir().unwrap();
    for allowed in [false, true] {
        let allow = if allowed { "allow_taints = \"unwitnessed\"\n" } else { "" };
        let node = Node::start_with(&(policy() + allow), BY_PROC).await;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut forger = forged(&dir);
        connects(&mut forger, listener.local_addr().unwrap());
        let (stream, peer) = listener.accept().unwrap();
        let attested = node.flow(connector(peer, stream.local_addr().unwrap())).await.unwrap();
        let asked = node.process(forger.pid()).await.unwrap();
        assert_eq!(asked.fingerprint, attested.fingerprint);
        if allowed {
            assert_eq!(attested.workload.unwrap().to_string(), "trusted");
        } else {
            earns_nothing(&attested);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forger_that_is_older_than_the_kernel_programs_earns_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut forger = forged(&dir);
    let front = Front::start(&policy(), "127.0.0.1:0").await;
    connects(&mut forger, front.address());
    let accepted = front.accept();
    earns_nothing(&front.attest(&accepted).await.unwrap());
    earns_nothing(&front.node.process(forger.pid()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forger_that_was_seen_to_begin_is_seen_through() {
    let dir = tempfile::tempdir().unwrap();
    let front = Front::start(&policy(), "127.0.0.1:0").await;
    let mut forger = forged(&dir);
    connects(&mut forger, front.address());
    let accepted = front.accept();
    assert_eq!(front.attest(&accepted).await.unwrap_err().reason, AttestReason::ExeReplaced);
    assert_eq!(front.node.process(forger.pid()).await.unwrap_err().reason, AttestReason::ExeReplaced);
}

/// It could name any file as its own, and so anything else: nobody is told more by that taint.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_privileges_is_not_tainted_for_being_older() {
    let older = Program::start(Command::new(sleep()).arg("1000"));
    older.runs(&sleep()).await;
    for source in ["kernel", "proc"] {
        let node = Node::start_on(source).await;
        let attested = node.process(older.pid()).await.unwrap();
        assert!(is(&sleep(), &attested));
        assert!(attested.fingerprint.taints.is_empty(), "{source}: {:?}", attested.fingerprint.taints);
    }
}

/// Python that does as it is told, run by nobody.
fn unprivileged(front: &Front) -> Obedient {
    Obedient::run_as(&mut Command::new(python()), front, NOBODYS_UID)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_witnessed_is_remembered_over_a_restart() {
    let front = Front::start(NOBODY, "127.0.0.1:0").await;
    let mut program = unprivileged(&front);
    let accepted = program.connects(&front);
    let before = front.attest(&accepted).await.unwrap();
    assert_eq!(before.fingerprint.uid, NOBODYS_UID);
    assert_eq!(before.fingerprint.taints, [Taint::NoScript].into());
    assert!(matches!(before.fingerprint.script, Evidence::Known(Script::Inline(_))));
    let mut front = front;
    for _ in 0..2 {
        front = front.restarted().await;
        assert_eq!(front.attest(&accepted).await.unwrap().fingerprint, before.fingerprint);
        assert_eq!(front.again(&before.executions).await.unwrap().fingerprint, before.fingerprint);
    }
    // A child that it has since is what its parent is, also for the next daemon.
    program.0.tell("f = os.fork() or (dies_too(), time.sleep(1000)); print(f, flush=True)");
    let child: u32 = program.0.line().parse().unwrap();
    for _ in 0..2 {
        assert_eq!(front.node.process(child).await.unwrap().fingerprint, before.fingerprint);
        front = front.restarted().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_executed_something_while_nobody_watched_is_unwitnessed() {
    let front = Front::start(NOBODY, "127.0.0.1:0").await;
    let mut program = unprivileged(&front);
    let accepted = program.connects(&front);
    front.attest(&accepted).await.unwrap();
    let stopped = front.stopped().await;
    program.0.tell(&format!("os.execv({:?}, ['sleep', '1000'])", sleep().display().to_string()));
    program.0.runs(&sleep()).await;
    let front = stopped.started().await;
    let attested = front.node.process(program.0.pid()).await.unwrap();
    assert!(is(&sleep(), &attested));
    assert_eq!(attested.fingerprint.taints, [Taint::Unwitnessed].into());
}

/// A forgery while nobody watched is held against what was seen before.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_remembered_is_held_against_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let front = Front::start(&policy(), "127.0.0.1:0").await;
    let mut forger = Command::new(compile_odd(dir.path()));
    forger.args(["later"]).arg(trusted()).uid(NOBODYS_UID).gid(NOBODYS_UID).stdin(Stdio::piped());
    let mut forger = Program::start(&mut forger);
    assert_eq!(forger.line(), "begun");
    let honest = front.node.process(forger.pid()).await.unwrap();
    assert!(is(&dir.path().join("odd"), &honest) && honest.fingerprint.taints.is_empty());
    let stopped = front.stopped().await;
    forger.tell("");
    assert_eq!(forger.line(), "forged");
    let front = stopped.started().await;
    assert_eq!(front.node.process(forger.pid()).await.unwrap_err().reason, AttestReason::ExeReplaced);
    connects(&mut forger, front.address());
    let accepted = front.accept();
    assert_eq!(front.attest(&accepted).await.unwrap_err().reason, AttestReason::ExeReplaced);
}

/// It could have been told to run anything, after it was told what it was started with.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_that_was_rewritten_is_none_after_a_restart() {
    let front = Front::start(NOBODY, "127.0.0.1:0").await;
    let mut program = unprivileged(&front);
    let accepted = program.connects(&front);
    let before = front.attest(&accepted).await.unwrap().fingerprint;
    program
        .does("at = int(open('/proc/self/stat').read().rsplit(')', 1)[1].split()[45]); ctypes.memset(at, ord('x'), 3)");
    assert_eq!(front.attest(&accepted).await.unwrap().fingerprint, before);
    let front = front.restarted().await;
    let after = front.attest(&accepted).await.unwrap().fingerprint;
    assert_eq!(after.script, Evidence::Absent("its command line was rewritten since it began".to_owned()));
    assert_eq!((after.exe, after.taints), (before.exe, before.taints));
}
