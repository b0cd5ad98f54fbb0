//! Programs in files that are no ordinary files: served by another program, in memory, full of holes, or too many.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;

use bonafide_proto::convert::Attestation;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::task::JoinHandle;

use crate::node::{NOBODY, Node, Program, digest_of, own_exe, python, sleep};

/// A question beside others.
fn asked(node: &Arc<Node>, program: &Program) -> JoinHandle<Result<Attestation, AttestRefusal>> {
    let (node, pid) = (Arc::clone(node), program.pid());
    tokio::spawn(async move { node.process(pid).await })
}

/// A FUSE file system, unmounted when it is dropped, however its server fares.
pub(crate) struct Fuse {
    server: Program,
    input: Option<ChildStdin>,
    mountpoint: std::path::PathBuf,
}

impl Fuse {
    /// At this directory, with `program` in it, which is sleep.
    pub(crate) fn mount(mountpoint: std::path::PathBuf) -> Self {
        std::fs::create_dir(&mountpoint).unwrap();
        let mut command = Command::new(python());
        command.args(["-c", include_str!("silent.py")]).arg(&mountpoint).arg(sleep()).stdin(Stdio::piped());
        let mut server = Program::start(&mut command);
        let input = server.stdin();
        assert_eq!(server.line(), "ready");
        Self { server, input, mountpoint }
    }

    pub(crate) fn fall_silent(&mut self) {
        self.input.as_mut().unwrap().write_all(b"now\n").unwrap();
        assert_eq!(self.server.line(), "silent");
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // Whoever waits for an answer gets none, and an error.
        drop(self.input.take());
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.mountpoint).stderr(Stdio::null()).status();
        drop(unmounted);
    }
}

/// Programs that such a server serves. The server goes first: without its answers they may not even end.
struct Served {
    fuse: Fuse,
    programs: Vec<Program>,
}

impl Served {
    async fn start(node: &Node, uid: u32, count: usize) -> Self {
        let fuse = Fuse::mount(node.path("fuse"));
        let path = node.path("fuse/program");
        let mut programs = Vec::with_capacity(count);
        for _ in 0..count {
            let program = Program::start(Command::new(&path).arg("1000").uid(uid).gid(uid));
            program.runs(&path).await;
            programs.push(program);
        }
        Self { fuse, programs }
    }
}

#[tokio::test]
async fn a_program_that_a_program_serves_has_no_digest() {
    let node = Node::start(NOBODY).await;
    let served = Served::start(&node, 0, 1).await;
    let refusal = node.process(served.programs[0].pid()).await.unwrap_err();
    assert_eq!(refusal.reason, AttestReason::Unhashable, "{refusal}");
    assert!(refusal.detail.contains("FUSE"), "{refusal}");
}

/// Each of them is another question, and no thread is stuck when they are asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_falls_silent_keeps_only_its_own_programs_waiting() {
    let node = Arc::new(Node::start(NOBODY).await);
    let mut served = Served::start(&node, 65534, 40).await;
    served.fuse.fall_silent();
    // Questions about one process share their looks; these are about many.
    let waiting: Vec<_> = served.programs.iter().map(|program| asked(&node, program)).collect();
    // Meanwhile everybody else is answered.
    let other = node.process(std::process::id()).await.unwrap();
    assert_eq!(other.fingerprint.exe.digest, digest_of(own_exe()));
    let mut kept_busy = 0;
    for answer in waiting {
        let refusal = answer.await.unwrap().unwrap_err();
        match refusal.reason {
            AttestReason::Unhashable if refusal.detail.contains("did not end") => kept_busy += 1,
            AttestReason::Unhashable | AttestReason::RateLimited => {
                assert!(refusal.detail.contains("user 65534"), "{refusal}");
            }
            _ => panic!("{refusal}"),
        }
    }
    assert!((1..=16).contains(&kept_busy), "{kept_busy} threads");
    // By now too many threads wait for that user's file system; no further one does.
    let refusal = node.process(served.programs[0].pid()).await.unwrap_err();
    assert!(refusal.detail.contains("stuck"), "{refusal}");
    let other = node.process(std::process::id()).await.unwrap();
    assert_eq!(other.fingerprint.exe.digest, digest_of(own_exe()));
}

#[tokio::test]
async fn holes_are_zeros_and_monsters_are_refused() {
    let node = Node::start(NOBODY).await;
    let sparse = node.path("sparse");
    std::fs::copy(sleep(), &sparse).unwrap();
    let grow = |size| std::fs::OpenOptions::new().write(true).open(&sparse).unwrap().set_len(size).unwrap();
    grow(64 << 20);
    let program = Program::start(Command::new(&sparse).arg("1000"));
    program.runs(&sparse).await;
    let exe = node.process(program.pid()).await.unwrap().fingerprint.exe;
    assert_eq!(exe.digest, digest_of(&sparse));
    drop(program);

    grow(1 << 40);
    let program = Program::start(Command::new(&sparse).arg("1000"));
    program.runs(&sparse).await;
    assert_eq!(node.process(program.pid()).await.unwrap_err().reason, AttestReason::TooLarge);
}

/// A program of nobody's, of so many bytes.
fn nobodys(path: &Path, size: u64) -> Command {
    std::fs::copy(sleep(), path).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(size).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new(path);
    command.arg("1000").uid(65534).gid(65534);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_too_much_hashed_is_refused_by_name_and_nobody_else() {
    let node = Arc::new(Node::start(NOBODY).await);
    std::fs::set_permissions(node.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut programs = Vec::new();
    for n in 0..12 {
        // Each is worth a second, and eight seconds' worth may come at once.
        let path = node.path(&format!("large-{n}"));
        let program = Program::start(&mut nobodys(&path, 256 << 20));
        program.runs(&path).await;
        programs.push(program);
    }
    let asked: Vec<_> = programs.iter().map(|program| asked(&node, program)).collect();
    let other = node.process(std::process::id()).await.unwrap();
    assert_eq!(other.fingerprint.exe.digest, digest_of(own_exe()));
    let mut refused = 0;
    for answer in asked {
        if let Err(refusal) = answer.await.unwrap() {
            assert_eq!(refusal.reason, AttestReason::RateLimited, "{refusal}");
            assert!(refusal.detail.contains("user 65534"), "{refusal}");
            refused += 1;
        }
    }
    assert!((1..12).contains(&refused), "{refused} of 12");
}

/// Digests that last survive the daemon; see `hash::kept` for damage.
#[tokio::test]
async fn a_restarted_daemon_answers_the_same() {
    let node = Node::start(NOBODY).await;
    let program = Program::start(Command::new(sleep()).arg("1000"));
    program.runs(&sleep()).await;
    let before = node.process(program.pid()).await.unwrap().fingerprint;
    let node = node.restart().await;
    assert!(node.path("digests").is_dir());
    assert_eq!(node.process(program.pid()).await.unwrap().fingerprint, before);
}
