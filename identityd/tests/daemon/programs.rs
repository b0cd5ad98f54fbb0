//! What does it run?

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::Evidence;
use bonafide_proto::refusal::AttestReason;

use crate::node::{CONNECTS, NOBODY, Node, Program, connector, digest_of, needed, python, sleep};

/// Starts a program that connects and says its address, and asks who it is.
async fn attested(node: &Node, command: &mut Command) -> Attestation {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let mut program = Program::start(command.arg(address.to_string()));
    let local = program.address();
    let attested = node.flow(connector(local, address)).await.unwrap();
    assert_eq!(attested.executions[0].pid, program.pid());
    attested
}

fn why(script: &Evidence<bonafide_proto::fingerprint::HashedFile>) -> &str {
    match script {
        Evidence::Absent(why) => why,
        Evidence::Known(file) => panic!("it names {file:?}"),
    }
}

#[tokio::test]
async fn a_python_script_is_evidence_and_inline_code_is_not() {
    let node = Node::start(NOBODY).await;
    let script = node.path("app.py");
    std::fs::write(&script, CONNECTS).unwrap();

    let file = attested(&node, Command::new(python()).arg("-u").arg(&script)).await.fingerprint;
    let hashed = file.script.known().unwrap();
    assert_eq!((Path::new(&hashed.path), hashed.digest), (script.as_path(), digest_of(&script)));
    assert_eq!(Path::new(&file.exe.path), python());

    let inline = attested(&node, Command::new(python()).args(["-c", CONNECTS])).await.fingerprint;
    assert!(why(&inline.script).contains("inline"));
    let module = attested(&node, Command::new(python()).args(["-m", "app"]).env("PYTHONPATH", node.dir.path())).await;
    assert!(why(&module.fingerprint.script).contains("module app"));
}

#[tokio::test]
async fn a_relative_script_is_found_from_the_working_directory() {
    let node = Node::start(NOBODY).await;
    std::fs::create_dir(node.path("bin")).unwrap();
    std::fs::create_dir(node.path("cwd")).unwrap();
    let script = node.path("bin/app.py");
    std::fs::write(&script, CONNECTS).unwrap();
    std::os::unix::fs::symlink(&script, node.path("cwd/link.py")).unwrap();
    for name in ["../bin/app.py", "link.py"] {
        let found = attested(&node, Command::new(python()).arg(name).current_dir(node.path("cwd"))).await;
        assert_eq!(Path::new(&found.fingerprint.script.known().unwrap().path), script, "{name}");
    }
}

#[tokio::test]
async fn perl_and_bash_scripts_are_evidence_too() {
    let node = Node::start(NOBODY).await;
    let perl = needed(&["/usr/bin/perl"]);
    let script = node.path("app.pl");
    let code = "use IO::Socket::INET; $| = 1; my $s = IO::Socket::INET->new($ARGV[-1]) or die; \
                print $s->sockhost, ':', $s->sockport, \"\\n\"; sleep 1000;";
    std::fs::write(&script, code).unwrap();
    let found = attested(&node, Command::new(&perl).arg("-w").arg(&script)).await.fingerprint;
    assert_eq!(Path::new(&found.script.known().unwrap().path), script);
    let inline = attested(&node, Command::new(&perl).args(["-e", code])).await.fingerprint;
    assert!(why(&inline.script).contains("inline"));

    let bash = needed(&["/usr/bin/bash", "/bin/bash"]);
    let script = node.path("app.sh");
    std::fs::write(&script, "echo ready; read -r _\n").unwrap();
    let mut program =
        Program::start(Command::new(&bash).args(["-eu", "-o", "pipefail"]).arg(&script).stdin(Stdio::piped()));
    assert_eq!(program.line(), "ready");
    let found = node.process(program.pid()).await.unwrap().fingerprint;
    assert_eq!(Path::new(&found.script.known().unwrap().path), script);
}

#[tokio::test]
async fn a_script_that_is_gone_or_hostile_is_no_evidence() {
    let node = Node::start(NOBODY).await;
    let script = node.path("app.py");
    std::fs::write(&script, "import time\nprint('ready', flush=True)\ntime.sleep(1000)\n").unwrap();
    let mut program = Program::start(Command::new(python()).arg(&script));
    assert_eq!(program.line(), "ready");
    std::fs::remove_file(&script).unwrap();
    let found = node.process(program.pid()).await.unwrap().fingerprint;
    assert!(why(&found.script).contains("cannot be opened"));

    let hostile = node.path("a\n\u{1b}[2Jpp.py");
    std::fs::write(&hostile, "import time\nprint('ready', flush=True)\ntime.sleep(1000)\n").unwrap();
    let mut program = Program::start(Command::new(python()).arg(&hostile));
    assert_eq!(program.line(), "ready");
    let refusal = node.process(program.pid()).await.unwrap_err();
    assert_eq!(refusal.reason, AttestReason::Unreadable);
    assert!(refusal.detail.contains("\\n\\x1b[2J") && !refusal.detail.contains('\u{1b}'), "{refusal}");
}

#[tokio::test]
async fn an_executable_that_was_deleted_is_refused() {
    let node = Node::start(NOBODY).await;
    let copy = node.path("napper");
    std::fs::copy(sleep(), &copy).unwrap();
    let program = Program::start(Command::new(&copy).arg("1000"));
    program.runs(&copy).await;
    assert_eq!(node.process(program.pid()).await.unwrap().fingerprint.exe.digest, digest_of(sleep()));
    std::fs::remove_file(&copy).unwrap();
    assert_eq!(node.process(program.pid()).await.unwrap_err().reason, AttestReason::ExeDeleted);
}

/// Python that runs a copy of `sleep` from memory.
const FROM_MEMORY: &str = r"
import os, sys
fd = os.memfd_create('napper', 0)
os.write(fd, open(sys.argv[1], 'rb').read())
print('ready', flush=True)
os.execve(fd, ['napper', '1000'], {})
";

#[tokio::test]
async fn an_executable_in_memory_is_refused() {
    let node = Node::start(NOBODY).await;
    let mut program = Program::start(Command::new(python()).args(["-c", FROM_MEMORY]).arg(sleep()));
    program.line();
    program.runs(Path::new("/memfd:napper (deleted)")).await;
    assert_eq!(node.process(program.pid()).await.unwrap_err().reason, AttestReason::ExeDeleted);
}

#[tokio::test]
async fn a_process_in_another_user_namespace_is_refused() {
    let node = Node::start(NOBODY).await;
    let unshare = needed(&["/usr/bin/unshare"]);
    let program = Program::start(Command::new(unshare).arg("--user").arg(sleep()).arg("1000"));
    program.runs(&sleep()).await;
    assert_eq!(node.process(program.pid()).await.unwrap_err().reason, AttestReason::ExeUnwitnessed);
}

#[tokio::test]
async fn kernel_threads_zombies_and_strangers_are_refused() {
    let node = Node::start(NOBODY).await;
    let name = std::fs::read_to_string("/proc/2/comm").unwrap_or_default();
    assert_eq!(name.trim_end(), "kthreadd", "this test needs to see the machine's kernel threads");
    assert_eq!(node.process(2).await.unwrap_err().reason, AttestReason::KernelTask);
    for nobody in [0, 4_194_304, u32::MAX] {
        assert_eq!(node.process(nobody).await.unwrap_err().reason, AttestReason::ProcessGone);
    }
    let mut zombie = Command::new(sleep()).arg("0").spawn().unwrap();
    let stat = format!("/proc/{}/stat", zombie.id());
    crate::node::until(|| std::fs::read_to_string(&stat).unwrap().contains(") Z ")).await;
    assert_eq!(node.process(zombie.id()).await.unwrap_err().reason, AttestReason::ProcessGone);
    zombie.wait().unwrap();
}

#[tokio::test]
async fn a_name_chosen_to_confuse_does_not() {
    let node = Node::start(NOBODY).await;
    let code =
        "import time\nopen('/proc/self/comm', 'w').write('x) Z 1\\n(')\nprint('ready', flush=True)\ntime.sleep(1000)";
    let mut program = Program::start(Command::new(python()).args(["-c", code]));
    program.line();
    assert_eq!(node.process(program.pid()).await.unwrap().executions[0].pid, program.pid());
}
