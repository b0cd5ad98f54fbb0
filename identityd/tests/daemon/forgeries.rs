//! Programs that pass themselves off as others, and honest ones in the same situation.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use bonafide_proto::fingerprint::{Evidence, Root};
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::taint::Taint;

use crate::node::{NOBODY, Node, Program, digest_of, needed, python, sleep};

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
    let found = node.process(program.pid()).await.unwrap().fingerprint;
    assert_eq!((Path::new(&found.exe.path), found.root), (node.path("jail/app").as_path(), Root::Host));

    let jailed = format!("mount --rbind / {dir}/jail; exec chroot {dir}/jail {} 1000", sleep.display());
    let program = Program::start(&mut container(&jailed));
    let path = PathBuf::from(format!("{dir}/jail{}", sleep.display()));
    program.runs(&path).await;
    let found = node.process(program.pid()).await.unwrap().fingerprint;
    assert_eq!(Path::new(&found.exe.path), path);
    assert!(matches!(found.root, Root::Other(why) if why.contains("/jail")));
}

/// Python that confines itself to the directory in its argument.
const CONFINES_ITSELF: &str = r"
import os, sys, time
os.chroot(sys.argv[-1])
print('ready', flush=True)
time.sleep(1000)
";

#[tokio::test]
async fn what_confines_itself_keeps_its_executable_and_no_script_below_is_the_host_s() {
    let node = Node::start(NOBODY).await;
    std::fs::create_dir(node.path("jail")).unwrap();
    let mut program = Program::start(Command::new(python()).args(["-c", CONFINES_ITSELF]).arg(node.path("jail")));
    assert_eq!(program.line(), "ready");
    let found = node.process(program.pid()).await.unwrap().fingerprint;
    assert_eq!(Path::new(&found.exe.path), python());
    assert!(matches!(found.root, Root::Within(why) if why.ends_with("/jail")));
    let host = node.process(std::process::id()).await.unwrap().fingerprint;
    assert_eq!(host.root, Root::Host);
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

/// Python that writes one content to a file and, when it is told to, stores another through a mapping. It says
/// whether that shows in the file's times. A program that runs cannot be kept mapped meanwhile; a script can.
const STORES: &str = r"
import mmap, os, sys, time
kind, path, genuine, forged, go = sys.argv[1:]
genuine, forged = open(genuine, 'rb').read(), open(forged, 'rb').read()
assert len(genuine) == len(forged)
open(path, 'wb').write(genuine)
os.chmod(path, 0o755)
def mapping():
    file = os.open(path, os.O_RDWR)
    mapped = mmap.mmap(file, len(genuine))
    os.close(file)
    # In memory, a page that was read is writable already.
    sum(mapped[i] for i in range(0, len(genuine), 4096))
    return mapped
if kind == 'script':
    mapped = mapping()
    mapped[:] = genuine
times = lambda: (os.stat(path).st_mtime_ns, os.stat(path).st_ctime_ns)
# So that it is no change of this very moment.
time.sleep(0.3)
before = times()
print('ready', flush=True)
while not os.path.exists(go):
    time.sleep(0.005)
if kind == 'program':
    mapped = mapping()
mapped[:] = forged
mapped.close()
print('unseen' if times() == before else 'seen', flush=True)
time.sleep(1000)
";

/// A file whose owner stores other content into it, unseen by `stat`, between two questions.
struct Swap {
    dir: tempfile::TempDir,
    owner: Program,
}

impl Swap {
    fn start(kind: &str, below: &Path, genuine: &[u8]) -> Self {
        let dir = tempfile::tempdir_in(below).unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("genuine"), [genuine, b"#genuine\n"].concat()).unwrap();
        std::fs::write(at("forged"), [genuine, b"#forged!\n"].concat()).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(NOBODYS_UID), Some(NOBODYS_UID)).unwrap();
        let python = needed(&["/usr/bin/python3"]);
        let mut command = Command::new(python);
        command.args(["-c", STORES, kind]).args([at("file"), at("genuine"), at("forged"), at("go")]);
        let mut owner = Program::start(command.uid(NOBODYS_UID).gid(NOBODYS_UID).current_dir("/"));
        assert_eq!(owner.line(), "ready");
        Self { dir, owner }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    /// Stores it, and tells whether `stat` shows nothing of it. On a disk it shows where the kernel wrote the page back
    /// meanwhile: the next store into that page changes the file's times.
    fn store_unseen(&mut self) -> bool {
        std::fs::write(self.dir.path().join("go"), "").unwrap();
        let seen = self.owner.line();
        assert_eq!(digest_of(self.file()), digest_of(self.dir.path().join("forged")));
        seen == "unseen"
    }
}

#[tokio::test]
async fn a_program_changed_unseen_has_its_new_digest() {
    let node = Node::start(NOBODY).await;
    let mut swap = Swap::start("program", Path::new("/dev/shm"), &std::fs::read(sleep()).unwrap());
    let runs = async |swap: &Swap| {
        let program = Program::start(Command::new(swap.file()).arg("1000"));
        program.runs(&swap.file()).await;
        node.process(program.pid()).await.unwrap().fingerprint.exe.digest
    };
    assert_eq!(runs(&swap).await, digest_of(swap.file()));
    assert!(swap.store_unseen(), "in memory nothing is written back");
    assert_eq!(runs(&swap).await, digest_of(swap.file()));
}

#[tokio::test]
async fn a_script_changed_unseen_is_none_of_a_process_that_runs_the_old_one() {
    let node = Node::start_on("kernel").await;
    let code = b"import time\nprint('ready', flush=True)\ntime.sleep(1000)\n";
    for below in [Path::new("/dev/shm"), node.dir.path()] {
        std::fs::set_permissions(node.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut unseen = false;
        for _ in 0..ATTEMPTS {
            let mut swap = Swap::start("script", below, code);
            let mut program = Program::start(Command::new(python()).arg(swap.file()));
            assert_eq!(program.line(), "ready");
            let began = node.process(program.pid()).await.unwrap().fingerprint.script_file().unwrap().digest;
            assert_eq!(began, digest_of(swap.file()));
            unseen = swap.store_unseen();
            let why = scriptless(&node, &program).await;
            for digest in [began, digest_of(swap.file())] {
                assert!(why.contains(&digest.to_string()), "{}: {why}", below.display());
            }
            if unseen {
                break;
            }
        }
        assert!(unseen, "every store showed: nothing was tried below {}", below.display());
    }
}

/// Stores into a file on a disk, until one of them does not show.
const ATTEMPTS: usize = 20;

#[tokio::test]
async fn a_large_program_that_is_not_roots_is_refused() {
    let node = Node::start(NOBODY).await;
    let large = node.path("large");
    std::fs::copy(sleep(), &large).unwrap();
    std::os::unix::fs::chown(&large, Some(NOBODYS_UID), None).unwrap();
    std::fs::File::options().write(true).open(&large).unwrap().set_len((256 << 20) + 1).unwrap();
    let program = Program::start(Command::new(&large).arg("1000"));
    program.runs(&large).await;
    assert_eq!(node.process(program.pid()).await.unwrap_err().reason, AttestReason::TooLarge);
}

/// Python that says so and waits. What changes after it has spoken is later than its exec by any clock.
const WAITS: &str = "import time\ntime.sleep(0.05)\nprint('ready', flush=True)\ntime.sleep(1000)\n";

/// Why there is no script, though it could be opened.
async fn scriptless(node: &Node, program: &Program) -> String {
    let found = node.process(program.pid()).await.unwrap().fingerprint;
    assert!(found.taints.contains(&Taint::NoScript), "{found:?}");
    match found.script {
        Evidence::Absent(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_script_is_what_ran_and_not_what_its_name_leads_to_later() {
    let node = Node::start_on("kernel").await;
    let (evil, trusted, link) = (node.path("evil.py"), node.path("trusted.py"), node.path("link"));
    std::fs::write(&trusted, "pass\n").unwrap();
    std::fs::write(&evil, WAITS).unwrap();
    std::os::unix::fs::symlink(&evil, &link).unwrap();
    let mut program = Program::start(Command::new(python()).arg(&link));
    assert_eq!(program.line(), "ready");
    std::os::unix::fs::symlink(&trusted, node.path("new")).unwrap();
    std::fs::rename(node.path("new"), &link).unwrap();
    let why = scriptless(&node, &program).await;
    assert!(why.contains("changed") && why.contains("restart"), "{why}");

    // What is honest: written, and executed at once.
    let mut program = Program::start(Command::new(python()).arg(&evil));
    assert_eq!(program.line(), "ready");
    let found = node.process(program.pid()).await.unwrap().fingerprint;
    assert_eq!(found.script_file().map(|script| script.digest), Some(digest_of(&evil)));
    assert!(found.taints.is_empty(), "{found:?}");
    // Rewritten in place it is not what runs; put back it is.
    std::fs::write(&evil, "pass\n").unwrap();
    let why = scriptless(&node, &program).await;
    assert!(why.contains(&found.script_file().unwrap().digest.to_string()), "{why}");
    std::fs::write(&evil, WAITS).unwrap();
    assert_eq!(node.process(program.pid()).await.unwrap().fingerprint.script, found.script);
}
