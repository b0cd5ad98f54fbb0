//! `bonafide run` around daemons that misbehave, in a network namespace of its own. Needs root and a cgroup2 mount.
//!
//! The daemons are scripts here: what is tested is that whatever they do, nothing of the run stays behind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bonafide_cli::node::InstanceCgroup;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// Held while a program is written and while one is started: a child between fork and exec would hold another test's file
/// open for writing, and nobody could execute that (execve(2), `ETXTBSY`).
static PROGRAMS: Mutex<()> = Mutex::new(());

/// `bonafide` with scripts beside it.
struct Stage {
    bin: TempDir,
    instance: String,
    cgroup: InstanceCgroup,
}

impl Stage {
    fn new(test: &str, ca: &str) -> Self {
        let _one = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
        let bin = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir().unwrap();
        fs::copy(env!("CARGO_BIN_EXE_bonafide"), bin.path().join("bonafide")).unwrap();
        for (daemon, script) in [("ca", ca), ("identityd", "exit 9"), ("enforcer", "exit 0")] {
            let path = bin.path().join(format!("bonafide-{daemon}"));
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let instance = format!("r{test}{}", std::process::id());
        let cgroup = InstanceCgroup::find(&instance).unwrap();
        Self { bin, instance, cgroup }
    }

    fn dir(&self) -> PathBuf {
        self.bin.path().join("node")
    }

    fn run(&self, more: &[&str]) -> Child {
        let _one = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
        Command::new("unshare")
            .args(["--net", "--"])
            .arg(self.bin.path().join("bonafide"))
            .args(["run", "--name", "a", "--instance", &self.instance, "--dir"])
            .arg(self.dir())
            .args(more)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn wait_until_ca_runs(&self) {
        until("the ca runs", || !self.cgroup.members("ca").is_empty() && self.dir().join("log/ca.log").exists());
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < give_up, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Its exit code and what it said.
fn end(mut child: Child) -> (Option<i32>, String) {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), signal).unwrap();
}

fn modes(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_daemon_that_cannot_start_is_quoted_and_nothing_stays() {
    for (exit, expected) in [(1, 1), (2, 2), (7, 1)] {
        let stage = Stage::new("bad", &format!("echo 'ca.toml: no good' >&2; exit {exit}"));
        let (code, said) = end(stage.run(&[]));
        assert_eq!(code, Some(expected), "{said}");
        assert!(said.contains(&format!("ca could not start (exit code {exit})\n  | ca.toml: no good")), "{said}");
        assert!(!stage.dir().exists() && !stage.cgroup.path().exists());
    }
}

#[test]
fn where_evidence_comes_from_is_told_to_identityd_and_a_mistake_starts_nothing() {
    let stage = Stage::new("evi", "exec sleep 600");
    let file = stage.bin.path().join("evidence.toml");
    let with = |text: &str| {
        fs::write(&file, text).unwrap();
        stage.run(&["--evidence", file.to_str().unwrap()])
    };
    let (code, said) = end(with("socket = \"/elsewhere\"\n"));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("evidence.toml") && said.contains("socket") && !stage.dir().exists(), "{said}");

    let run = with("source = \"proc\"\n[[runtime]]\nkind = \"docker\"\nsocket = \"/run/other.sock\"\n");
    stage.wait_until_ca_runs();
    let written = fs::read_to_string(stage.dir().join("identityd.toml")).unwrap();
    assert!(written.contains("source = \"proc\"\n") && written.contains("socket = \"/run/other.sock\"\n"), "{written}");
    send(&run, Signal::INT);
    assert_eq!(end(run).0, Some(0));
}

#[test]
fn a_signal_ends_it_and_a_second_run_is_refused_meanwhile() {
    let stage = Stage::new("sig", "exec sleep 600");
    let first = stage.run(&[]);
    stage.wait_until_ca_runs();
    assert_eq!(modes(&stage.dir().join("state/ca")), 0o700);
    assert_eq!(modes(&stage.dir().join("ca.toml")), 0o644);

    let (code, said) = end(stage.run(&[]));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("another `bonafide run` is at work"), "{said}");
    assert!(stage.dir().exists() && !stage.cgroup.members("ca").is_empty(), "the refused run changed something");

    send(&first, Signal::INT);
    let (code, said) = end(first);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("SIGINT: stopping") && said.contains("every trace removed"), "{said}");
    assert!(!stage.dir().exists() && !stage.cgroup.path().exists());
}

#[test]
fn what_a_killed_run_left_is_ended_by_the_next() {
    let stage = Stage::new("kill", "exec sleep 600");
    let killed = stage.run(&[]);
    stage.wait_until_ca_runs();
    send(&killed, Signal::KILL);
    // Its daemons hold no pipe of ours, so this returns although they live.
    end(killed);
    let left = stage.cgroup.members("ca");
    assert!(!left.is_empty(), "the daemons of a killed run go on");

    let next = stage.run(&[]);
    until("the next run has its own ca", || {
        let now = stage.cgroup.members("ca");
        !now.is_empty() && now.iter().all(|pid| !left.contains(pid))
    });
    send(&next, Signal::TERM);
    let (code, said) = end(next);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("an earlier run was killed"), "{said}");
    assert!(!stage.dir().exists() && !stage.cgroup.path().exists());
}

#[test]
fn a_kept_directory_stays_and_can_be_used_again() {
    let stage = Stage::new("keep", "echo gone >&2; exit 1");
    for _ in 0..2 {
        let (code, said) = end(stage.run(&["--keep"]));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("stays, with its flow records"), "{said}");
        assert!(stage.dir().join("state/ca").exists() && !stage.dir().join("run").exists());
        assert!(!stage.cgroup.path().exists());
    }
}

#[test]
fn a_daemon_that_talks_without_end_fills_no_disk() {
    let stage = Stage::new("log", "head -c 20000000 /dev/zero >&2; exec sleep 600");
    let run = stage.run(&[]);
    let length = |name: &str| fs::metadata(stage.dir().join("log").join(name)).map_or(0, |meta| meta.len());
    until("the log was begun anew", || length("ca.log.1") > 16 << 20);
    until("the log is small", || length("ca.log") + length("ca.log.1") <= 20_000_000 && length("ca.log") < 16 << 20);
    send(&run, Signal::TERM);
    let (code, said) = end(run);
    assert_eq!(code, Some(0), "{said}");
    assert!(!stage.dir().exists());
}
