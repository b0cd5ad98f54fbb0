//! Programs that pass themselves off as others, and honest ones in the same situation.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use bonafide_proto::refusal::AttestReason;

use crate::node::{NOBODY, Node, Program, needed, python, sleep};

/// Nobody, who has no privilege here.
const NOBODYS_UID: u32 = 65534;

fn shell(script: &str) -> Command {
    let mut command = Command::new(needed(&["/usr/bin/bash", "/bin/bash"]));
    command.args(["-ec", script]);
    command
}

/// In a user namespace of nobody's own, `mounts` puts a program at `path`; then nobody runs it from out here.
async fn forged(mounts: &str, path: &Path) -> (Program, Program) {
    let unshare = needed(&["/usr/bin/unshare"]);
    let inside = format!("{mounts}; echo ready; exec sleep 1000");
    let bash = needed(&["/usr/bin/bash", "/bin/bash"]);
    let mut world = Program::start(
        Command::new(unshare)
            .args(["-Urm", "--propagation", "private"])
            .arg(bash)
            .args(["-ec", &inside])
            .uid(NOBODYS_UID)
            .gid(NOBODYS_UID),
    );
    assert_eq!(world.line(), "ready");
    let program = format!("/proc/{}/root{}", world.pid(), path.display());
    let forger = Program::start(Command::new(program).arg("1000").uid(NOBODYS_UID).gid(NOBODYS_UID));
    // The kernel prints the path that the forger chose.
    forger.runs(path).await;
    (world, forger)
}

#[tokio::test]
async fn a_path_in_somebody_elses_mounts_is_no_evidence() {
    let node = Node::start(NOBODY).await;
    let sleep = sleep().display().to_string();
    let new = format!("cp {sleep} /tmp/nginx.$$; mount -t tmpfs t /usr/sbin; mv /tmp/nginx.$$ /usr/sbin/nginx");
    // One program in the place of another, which exists.
    let other = needed(&["/usr/bin/tail"]);
    let other_program = format!("mount --bind {sleep} {}", other.display());
    // Even the genuine program, on a mount that is not ours.
    let genuine = format!("mount --bind {sleep} {sleep}");
    for (mounts, path) in
        [(new, PathBuf::from("/usr/sbin/nginx")), (other_program, other), (genuine, PathBuf::from(&sleep))]
    {
        let (_world, forger) = forged(&mounts, &path).await;
        let refusal = node.process(forger.pid()).await.unwrap_err();
        assert_eq!(refusal.reason, AttestReason::ExeUnwitnessed, "{mounts}");
        assert!(refusal.detail.contains("is not there"), "{refusal}");
    }
}

#[tokio::test]
async fn a_container_shows_its_own_paths() {
    let node = Node::start(NOBODY).await;
    let dir = node.dir.path().display().to_string();
    let sleep = sleep();
    std::fs::create_dir(node.path("jail")).unwrap();
    let unshare = needed(&["/usr/bin/unshare"]).display().to_string();
    let container = |inside: &str| shell(&format!("exec {unshare} -m --propagation private bash -ec '{inside}'"));

    let mounted =
        format!("mount -t tmpfs t {dir}/jail; cp {} {dir}/jail/app; exec {dir}/jail/app 1000", sleep.display());
    let program = Program::start(&mut container(&mounted));
    program.runs(&node.path("jail/app")).await;
    let exe = node.process(program.pid()).await.unwrap().fingerprint.exe;
    assert_eq!(Path::new(&exe.path), node.path("jail/app"));

    let jailed = format!("mount --rbind / {dir}/jail; exec chroot {dir}/jail {} 1000", sleep.display());
    let program = Program::start(&mut container(&jailed));
    let path = PathBuf::from(format!("{dir}/jail{}", sleep.display()));
    program.runs(&path).await;
    let exe = node.process(program.pid()).await.unwrap().fingerprint.exe;
    assert_eq!(Path::new(&exe.path), path);
}

/// Python that leaves its mount namespace after it started.
const LEAVES: &str = r"
import ctypes, time
assert ctypes.CDLL(None).unshare(0x00020000) == 0
print('ready', flush=True)
time.sleep(1000)
";

#[tokio::test]
async fn a_daemon_may_leave_our_mounts_after_it_started() {
    let node = Node::start(NOBODY).await;
    let mut program = Program::start(Command::new(python()).args(["-c", LEAVES]));
    assert_eq!(program.line(), "ready");
    let exe = node.process(program.pid()).await.unwrap().fingerprint.exe;
    assert_eq!(Path::new(&exe.path), python());
}
