//! What does it run?

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::{Digest, Evidence, Script};
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::taint::{Taint, Taints};

use crate::node::{CONNECTS, NOBODY, Node, Program, connector, digest_of, needed, python, sleep};
use crate::records::record;

/// Starts a program that connects and says its address, and asks who it is.
async fn attested(node: &Node, command: &mut Command) -> Attestation {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let mut program = Program::start(command.arg(address.to_string()));
    let local = program.address();
    let record = record(node, &server.accept().unwrap().0);
    let attested = node.flow_by(connector(local, address), record).await.unwrap();
    assert_eq!(attested.executions[0].pid, program.pid());
    attested
}

fn inline(code: &str) -> Evidence<Script> {
    Evidence::Known(Script::Inline(Digest::of(code.as_bytes())))
}

fn why(script: &Evidence<Script>) -> &str {
    match script {
        Evidence::Absent(why) => why,
        other => panic!("it is {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_script_is_evidence_and_so_is_inline_code() {
    let node = Node::start(NOBODY).await;
    let script = node.path("app.py");
    std::fs::write(&script, CONNECTS).unwrap();

    let file = attested(&node, Command::new(python()).arg("-u").arg(&script)).await.fingerprint;
    let hashed = file.script_file().unwrap();
    assert_eq!((Path::new(&hashed.path), hashed.digest), (script.as_path(), digest_of(&script)));
    assert_eq!(Path::new(&file.exe.path), python());

    assert_eq!(file.taints, [].into());

    let code = attested(&node, Command::new(python()).args(["-c", CONNECTS])).await.fingerprint;
    assert_eq!((code.script, code.taints), (inline(CONNECTS), [Taint::NoScript].into()));
    let module = attested(&node, Command::new(python()).args(["-m", "app"]).env("PYTHONPATH", node.dir.path())).await;
    assert!(why(&module.fingerprint.script).contains("module app"));
    assert_eq!(module.fingerprint.taints, [Taint::NoScript].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relative_script_is_found_from_the_working_directory() {
    let node = Node::start(NOBODY).await;
    std::fs::create_dir(node.path("bin")).unwrap();
    std::fs::create_dir(node.path("cwd")).unwrap();
    let script = node.path("bin/app.py");
    std::fs::write(&script, CONNECTS).unwrap();
    std::os::unix::fs::symlink(&script, node.path("cwd/link.py")).unwrap();
    for name in ["../bin/app.py", "link.py"] {
        let found = attested(&node, Command::new(python()).arg(name).current_dir(node.path("cwd"))).await;
        assert_eq!(Path::new(&found.fingerprint.script_file().unwrap().path), script, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn perl_and_bash_scripts_are_evidence_too() {
    let node = Node::start(NOBODY).await;
    let perl = needed(&["/usr/bin/perl"]);
    let script = node.path("app.pl");
    let code = "use IO::Socket::INET; $| = 1; my $s = IO::Socket::INET->new($ARGV[-1]) or die; \
                print $s->sockhost, ':', $s->sockport, \"\\n\"; sleep 1000;";
    std::fs::write(&script, code).unwrap();
    let found = attested(&node, Command::new(&perl).arg("-w").arg(&script)).await.fingerprint;
    assert_eq!(Path::new(&found.script_file().unwrap().path), script);
    // The address is an argument of the code.
    let told = attested(&node, Command::new(&perl).args(["-e", code])).await.fingerprint;
    assert_eq!(told.script, inline(code));

    let bash = needed(&["/usr/bin/bash", "/bin/bash"]);
    let script = node.path("app.sh");
    std::fs::write(&script, "echo ready; read -r _\n").unwrap();
    let mut program =
        Program::start(Command::new(&bash).args(["-eu", "-o", "pipefail"]).arg(&script).stdin(Stdio::piped()));
    assert_eq!(program.line(), "ready");
    let found = node.process(program.pid()).await.unwrap().fingerprint;
    assert_eq!(Path::new(&found.script_file().unwrap().path), script);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_through_standard_input_is_nobodys_script() {
    use std::io::Write as _;
    let node = Node::start(NOBODY).await;
    let code = "import time\nprint('ready', flush=True)\ntime.sleep(1000)\n";
    for arguments in [[].as_slice(), &["-"], &["-i", "-u"]] {
        let (read, mut write) = std::io::pipe().unwrap();
        write.write_all(code.as_bytes()).unwrap();
        let mut program = Program::start(Command::new(python()).args(arguments).stdin(read).stderr(Stdio::null()));
        drop(write);
        assert_eq!(program.line(), "ready");
        let found = node.process(program.pid()).await.unwrap().fingerprint;
        assert_eq!((found.script, found.taints), (Evidence::Known(Script::Stdin), [Taint::NoScript].into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
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

#[tokio::test(flavor = "multi_thread")]
async fn a_process_in_another_user_namespace_is_refused_where_nobody_saw_what_it_executed() {
    let unshare = needed(&["/usr/bin/unshare"]);
    let napper = || Program::start(Command::new(&unshare).arg("--user").arg(sleep()).arg("1000"));
    let node = Node::start_on("proc").await;
    let program = napper();
    program.runs(&sleep()).await;
    assert_eq!(node.process(program.pid()).await.unwrap_err().reason, AttestReason::ExeUnwitnessed);

    let node = Node::start_on("kernel").await;
    let refused = node.process(program.pid()).await.unwrap_err();
    assert_eq!(refused.reason, AttestReason::ExeUnwitnessed, "it ran before anybody looked");
    let program = napper();
    program.runs(&sleep()).await;
    let exe = node.process(program.pid()).await.unwrap().fingerprint.exe;
    assert_eq!((Path::new(&exe.path), exe.digest), (sleep().as_path(), digest_of(sleep())));
}

#[tokio::test(flavor = "multi_thread")]
async fn users_that_a_service_gave_out_are_one_account_and_others_are_themselves() {
    const FIRST: u32 = 10 << 16;
    let unshare = needed(&["/usr/bin/unshare"]).display().to_string();
    let node = Node::start_on("kernel").await;
    for (run, account) in [(vec![unshare.as_str(), "--user"], FIRST), (vec!["env"], FIRST + 7)] {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={}", FIRST + 7), "--clear-groups"]).args(run);
        let program = Program::start(command.arg(sleep()).arg("1000"));
        program.runs(&sleep()).await;
        let attested = node.process(program.pid()).await.unwrap();
        assert_eq!((attested.fingerprint.uid, attested.account), (FIRST + 7, account));
    }
}

/// Its own mounts in its own user namespace, with one program in the place of another.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_in_another_user_namespace_is_nobodys_word() {
    let node = Node::start_on("kernel").await;
    let (sleep, other) = (sleep(), needed(&["/usr/bin/tail"]));
    let inside = format!("mount --bind {} {1}; exec {1} 1000", sleep.display(), other.display());
    let mut unshare = Command::new(needed(&["/usr/bin/unshare"]));
    unshare.args(["-Urm", "--propagation", "private", "bash", "-ec", &inside]);
    let program = Program::start(&mut unshare);
    program.runs(&other).await;
    let exe = node.process(program.pid()).await.unwrap().fingerprint.exe;
    assert_eq!((exe.path, exe.digest), (format!("(unproven){}", other.display()), digest_of(&sleep)));

    // A script there is known by its content, and by no path either.
    let script = node.path("app.py");
    std::fs::write(&script, "import time\nprint('ready', flush=True)\ntime.sleep(1000)\n").unwrap();
    let mut program =
        Program::start(Command::new(needed(&["/usr/bin/unshare"])).args(["-Ur", "--"]).arg(python()).arg(&script));
    assert_eq!(program.line(), "ready");
    let found = node.process(program.pid()).await.unwrap().fingerprint;
    let found = found.script_file().unwrap();
    assert_eq!((&found.path, found.digest), (&format!("(unproven){}", script.display()), digest_of(&script)));
}

/// Python that, when it is told, writes its second argument over its first, as `ps` and `/proc` show them, and its
/// environment over with nothing.
const REWRITES: &str = r"
import sys, time
print('ready', flush=True)
sys.stdin.readline()
fields = open('/proc/self/stat').read().rsplit(')', 1)[1].split()
arguments, environment, end = int(fields[45]), int(fields[47]), int(fields[48])
shown = open('/proc/self/cmdline', 'rb').read()
memory = open('/proc/self/mem', 'r+b', buffering=0)
for where, what in ((arguments + shown.index(sys.argv[0].encode()), sys.argv[1].encode()), (environment, bytes(end - environment))):
    memory.seek(where)
    memory.write(what)
print('rewritten', flush=True)
time.sleep(1000)
";

#[tokio::test(flavor = "multi_thread")]
async fn a_rewritten_command_line_is_seen_through_where_the_kernel_kept_it() {
    let (kernel, proc) = (Node::start_on("kernel").await, Node::start_on("proc").await);
    let (genuine, other) = (kernel.path("an.py"), kernel.path("no.py"));
    std::fs::write(&genuine, REWRITES).unwrap();
    std::fs::write(&other, "print('somebody else')\n").unwrap();
    let mut command = Command::new(python());
    command.args([&genuine, &other]).env("LD_PRELOAD", "libm.so.6").stdin(Stdio::piped());
    let mut program = Program::start(&mut command);
    assert_eq!(program.line(), "ready");
    let script = async |node: &Node| {
        let found = node.process(program.pid()).await.unwrap().fingerprint;
        (PathBuf::from(&found.script_file().unwrap().path), found.taints)
    };
    let preload: Taints = [Taint::Preload].into();
    assert_eq!(script(&kernel).await, (genuine.clone(), preload.clone()));
    assert_eq!(script(&proc).await, (genuine.clone(), preload.clone()));
    program.tell("");
    assert_eq!(program.line(), "rewritten");
    let script = async |node: &Node| {
        let found = node.process(program.pid()).await.unwrap().fingerprint;
        (PathBuf::from(&found.script_file().unwrap().path), found.taints)
    };
    assert_eq!(script(&kernel).await, (genuine, preload));
    // What the weaker source cannot see.
    assert_eq!(script(&proc).await, (other, Taints::new()));
}

/// Python that says where it is, goes elsewhere when it is told, and says so.
const LEAVES: &str = r"
import os, sys, time
print('ready', flush=True)
sys.stdin.readline()
os.chdir('/')
print('left', flush=True)
time.sleep(1000)
";

#[tokio::test(flavor = "multi_thread")]
async fn a_relative_script_is_looked_for_where_its_process_began() {
    let node = Node::start_on("kernel").await;
    let script = node.path("app.py");
    std::fs::write(&script, LEAVES).unwrap();
    // Nobody asks about them before they leave. One that is gone before identityd has looked has no script at all.
    let left = async || {
        let mut command = Command::new(python());
        let mut program = Program::start(command.arg("app.py").current_dir(node.dir.path()).stdin(Stdio::piped()));
        assert_eq!(program.line(), "ready");
        program.tell("");
        assert_eq!(program.line(), "left");
        let found = node.process(program.pid()).await.unwrap().fingerprint;
        found.script_file().map(|file| PathBuf::from(&file.path))
    };
    // The first has its interpreter looked at, the second has not.
    for _ in 0..2 {
        let mut found = left().await;
        for _ in 0..20 {
            found = match found {
                None => left().await,
                found => found,
            };
        }
        assert_eq!(found.as_ref(), Some(&script));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_longer_than_what_was_kept_is_not_guessed_at() {
    let node = Node::start_on("kernel").await;
    let script = node.path("app.py");
    let code = "import time\nprint('ready', flush=True)\ntime.sleep(1000)\n";
    std::fs::write(&script, code).unwrap();
    let long = "x".repeat(100_000);
    // The script is at the beginning; the code is longer than anything that is kept.
    let inline = format!("{code}#{long}");
    for (arguments, known) in [(vec![script.to_str().unwrap(), &long], true), (vec!["-c", &inline], false)] {
        let mut program = Program::start(Command::new(python()).args(&arguments));
        assert_eq!(program.line(), "ready");
        let found = node.process(program.pid()).await.unwrap().fingerprint;
        assert_eq!(found.script_file().is_some(), known);
        assert_eq!(found.taints.contains(&Taint::NoScript), !known);
        if !known {
            assert!(why(&found.script).contains("longer than what was recorded"), "{found:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
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

#[tokio::test(flavor = "multi_thread")]
async fn a_name_chosen_to_confuse_does_not() {
    let node = Node::start(NOBODY).await;
    let code =
        "import time\nopen('/proc/self/comm', 'w').write('x) Z 1\\n(')\nprint('ready', flush=True)\ntime.sleep(1000)";
    let mut program = Program::start(Command::new(python()).args(["-c", code]));
    program.line();
    assert_eq!(node.process(program.pid()).await.unwrap().executions[0].pid, program.pid());
}
