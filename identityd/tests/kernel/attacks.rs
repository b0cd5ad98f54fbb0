//! Programs that would pass for others, each with the verdict that it gets.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bonafide_proto::kernel::Doubts;
use bonafide_proto::refusal::AttestReason;

use crate::accept::{Front, LOOPBACKS};
use crate::connectors::{Obedient, another_python, is, pids};
use crate::node::{NOBODY, Program, needed, python, sleep};

/// Nobody, who has no privilege here.
pub(crate) const NOBODYS_UID: u32 = 65534;

/// `odd.c`, compiled.
pub(crate) fn odd(front: &Front) -> PathBuf {
    compile_odd(&front.node.path(""))
}

/// Into this directory, where everybody may execute it.
pub(crate) fn compile_odd(directory: &Path) -> PathBuf {
    let (source, program) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel/odd.c"), directory.join("odd"));
    if program.exists() {
        return program;
    }
    let compiled = Command::new(needed(&["/usr/bin/gcc"])).arg("-o").args([&program, &source]).status().unwrap();
    assert!(compiled.success());
    std::fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    program
}

async fn front() -> Front {
    Front::start(NOBODY, "127.0.0.1:0").await
}

/// One for each family.
async fn fronts() -> [Front; 2] {
    [Front::start(NOBODY, LOOPBACKS[0]).await, Front::start(NOBODY, LOOPBACKS[1]).await]
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_then_exec_is_another_generation() {
    let front = front().await;
    let mut program = Obedient::start(&front);
    let accepted = program.connects(&front);
    let attested = front.attest(&accepted).await.unwrap();
    assert!(is(&python(), &attested));
    program.does("s.set_inheritable(True)");
    program.0.tell(&format!("os.execv({:?}, ['sleep', '1000'])", sleep().display().to_string()));
    program.0.runs(&sleep()).await;
    assert_eq!(front.attest(&accepted).await.unwrap_err().reason, AttestReason::GenerationGone);
    // The same process, asked about as what it was before; and as what it is now.
    let before = front.again(&attested.executions).await;
    assert_eq!(before.unwrap_err().reason, AttestReason::GenerationGone);
    assert!(is(&sleep(), &front.node.process(program.0.pid()).await.unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_then_connect_is_the_new_program() {
    let front = front().await;
    let another = another_python(&front);
    let mut program = Obedient::start(&front);
    program.0.tell(&format!(
        "os.execv({another:?}, ['p', '-c', 'import socket, sys, time; host, port = sys.argv[-1].rsplit(\":\", 1); s = socket.create_connection((host, int(port))); time.sleep(1000)', sys.argv[-1]])",
        another = another.display().to_string()
    ));
    let accepted = front.accept();
    let attested = front.attest(&accepted).await.unwrap();
    assert!(is(&another, &attested));
    assert_eq!(pids(&attested), [program.0.pid()]);
}

/// connect, fork a child that keeps the socket, and have the child execute a trusted program.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_executes_a_trusted_program_lends_its_parent_no_trust() {
    let front = front().await;
    let mut program = Obedient::run(&mut Command::new(another_python(&front)), &front);
    let accepted = program.connects(&front);
    program.does("spawn('sleep', '1000')");
    let attested = front.attest(&accepted).await.unwrap();
    assert!(is(&another_python(&front), &attested));
    assert_eq!(pids(&attested), [program.0.pid()]);
    // Nor does it inherit the connection when its parent is gone.
    drop(program);
    assert_eq!(front.attest(&accepted).await.unwrap_err().reason, AttestReason::ProcessGone);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_number_used_again_is_another_process() {
    for front in fronts().await {
        let odd = odd(&front);
        // A number that comes last.
        let most: u32 = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim_end().parse().unwrap();
        let (number, address) = (most - 7, front.address().to_string());
        let start = || Program::start(Command::new(&odd).args(["number", &number.to_string(), &address]));
        crate::node::until(|| !Path::new(&format!("/proc/{number}")).exists()).await;
        let mut first = start();
        assert_eq!(first.line(), "connected");
        let accepted = front.accept();
        assert_eq!(accepted.record.unwrap().pid, number);
        front.attest(&accepted).await.unwrap();
        drop(first);
        crate::node::until(|| !Path::new(&format!("/proc/{number}")).exists()).await;
        let mut second = start();
        assert_eq!(second.line(), "connected");
        assert_eq!(front.attest(&accepted).await.unwrap_err().reason, AttestReason::ProcessGone);
        let again = front.accept();
        assert_eq!(pids(&front.attest(&again).await.unwrap()), [number]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn setuid_after_connect_is_the_user_it_is_now() {
    let front = front().await;
    let mut program = Obedient::start(&front);
    let accepted = program.connects(&front);
    assert_eq!(front.attest(&accepted).await.unwrap().fingerprint.uid, 0);
    program.does("os.setgid(65534); os.setuid(65534)");
    let attested = front.attest(&accepted).await.unwrap().fingerprint;
    assert_eq!((accepted.record.unwrap().uid, attested.uid, attested.gid), (0, NOBODYS_UID, NOBODYS_UID));
    program.does("t = socket.create_connection(server)");
    assert_eq!(front.accept().record.unwrap().uid, NOBODYS_UID);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_executable_is_seen_through() {
    for front in fronts().await {
        let trusted = needed(&["/usr/bin/true"]);
        let mut forger = Command::new(odd(&front));
        let mut forger = Program::start(
            forger.arg("forge").arg(&trusted).arg(front.address().to_string()).uid(NOBODYS_UID).gid(NOBODYS_UID),
        );
        assert_eq!(forger.line(), "connected");
        let accepted = front.accept();
        let link = std::fs::read_link(format!("/proc/{}/exe", forger.pid())).unwrap();
        assert_eq!(link, trusted, "the forgery does not work here, so the test shows nothing");
        assert!(accepted.record.unwrap().doubts.contains(Doubts::EXE_REPLACED));
        assert_eq!(front.attest(&accepted).await.unwrap_err().reason, AttestReason::ExeReplaced);
        let asked = front.node.process(forger.pid()).await.unwrap_err();
        assert!(matches!(asked.reason, AttestReason::ExeReplaced | AttestReason::ExeUnwitnessed), "{asked}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_used_again_while_the_first_connection_waits_are_told_apart() {
    for front in fronts().await {
        let (mut x, mut y) =
            (Obedient::start(&front), Obedient::run(&mut Command::new(another_python(&front)), &front));
        let bound = "s = socket.socket(family); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind((server[0], PORT)); s.connect(server)";
        x.does(&bound.replace("PORT", "0"));
        x.0.tell("print(s.getsockname()[1], flush=True)");
        let port = x.0.line();
        assert_eq!(x.0.line(), "done");
        x.does(
            "s.send(b'evil'); s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()",
        );
        y.does(&bound.replace("PORT", &port));
        let (first, second) = (front.accept(), front.accept());
        assert_eq!(first.peer, second.peer);
        assert_eq!(first.record.unwrap().pid, x.0.pid());
        assert_eq!(second.record.unwrap().pid, y.0.pid());
        assert!(is(&python(), &front.attest(&first).await.unwrap()));
        assert!(is(&another_python(&front), &front.attest(&second).await.unwrap()));
    }
}

/// One program asks for the connection, another one sends the first segment with data.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_asked_for_by_one_program_and_begun_by_another_is_neither_s() {
    for front in fronts().await {
        let mut asks = Obedient::start(&front);
        // TCP_FASTOPEN_CONNECT and TCP_FASTOPEN_NO_COOKIE (tcp(7)): connect() sends nothing.
        asks.does("s = socket.socket(family); s.setsockopt(6, 34, 1); s.setsockopt(6, 30, 1); s.connect(server)");
        let sends = format!(
            "spawn({:?}, '-c', 'import os, time; os.write(0, b\"x\"); time.sleep(1000)')",
            another_python(&front).display().to_string()
        );
        asks.does(&sends);
        let accepted = front.accept();
        let record = accepted.record.unwrap();
        assert_ne!(record.pid, asks.0.pid());
        assert!(record.doubts.contains(Doubts::ASKER_DIFFERS));
        assert_eq!(front.attest(&accepted).await.unwrap_err().reason, AttestReason::ConnectorDiffers);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_in_no_table_of_open_files_is_a_holder_unseen() {
    for front in fronts().await {
        let mut program = Program::start(Command::new(odd(&front)).args(["ring", &front.address().to_string()]));
        assert_eq!(program.line(), "connected");
        let accepted = front.accept();
        assert_eq!(accepted.record.unwrap().pid, program.pid());
        assert!(accepted.record.unwrap().doubts.contains(Doubts::NO_FILE));
        assert_eq!(front.attest(&accepted).await.unwrap_err().reason, AttestReason::HolderUnseen);
    }
}

/// What speaks on the wire is a socket of the kernel's own, which nobody has open.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_of_mptcp_is_a_holder_unseen() {
    for front in fronts().await {
        let mut program = Obedient::start(&front);
        program.does("s = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_MPTCP); s.connect(server)");
        let accepted = front.accept();
        let record = accepted.record.unwrap();
        assert_eq!(record.pid, program.0.pid());
        assert!(record.doubts.contains(Doubts::CREATOR_DIFFERS));
        assert_eq!(front.attest(&accepted).await.unwrap_err().reason, AttestReason::HolderUnseen);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ends_at_once_is_gone_and_nobody_else() {
    let front = front().await;
    let connects =
        format!("import socket; socket.create_connection(('127.0.0.1', {})).send(b'x')", front.address().port());
    let ended = Command::new(python()).args(["-c", &connects]).stdin(Stdio::null()).status().unwrap();
    assert!(ended.success());
    let accepted = front.accept();
    assert!(accepted.record.is_some());
    assert_eq!(front.attest(&accepted).await.unwrap_err().reason, AttestReason::ProcessGone);
}

/// A daemon that begins anew numbers everything anew, and still tells a process that executed something from one that
/// did not.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_daemon_attested_holds_until_the_next_exec() {
    let earlier = front().await;
    let mut program = Obedient::start(&earlier);
    let accepted = program.connects(&earlier);
    let before = earlier.attest(&accepted).await.unwrap();
    earlier.node.stop().await;
    let later = front().await;
    let after = later.again(&before.executions).await.unwrap();
    assert_ne!(after.executions[0].image, before.executions[0].image);
    assert_eq!(after.fingerprint, before.fingerprint);
    assert_eq!(pids(&later.attest(&accepted).await.unwrap()), [program.0.pid()]);
    program.0.tell(&format!("os.execv({:?}, ['sleep', '1000'])", sleep().display().to_string()));
    program.0.runs(&sleep()).await;
    let refused = AttestReason::GenerationGone;
    assert_eq!(later.again(&before.executions).await.unwrap_err().reason, refused);
    assert_eq!(later.again(&after.executions).await.unwrap_err().reason, refused);
    assert_eq!(later.attest(&accepted).await.unwrap_err().reason, refused);
}
