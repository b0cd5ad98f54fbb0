//! `bonafide launch` as root: what the launched program is left with. Needs root and a cgroup2 mount.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "what fails here fails the test")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use bonafide_cli::node::InstanceCgroup;

const BONAFIDE: &str = env!("CARGO_BIN_EXE_bonafide");
const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_PTRACE: u64 = 1 << 19;
const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// An instance of its own, removed in the end.
struct Instance(InstanceCgroup);

impl Instance {
    fn new(test: &str) -> Self {
        Self(InstanceCgroup::find(&format!("l{test}{}", std::process::id())).unwrap())
    }

    fn launch(&self, caps: &[&str], program: &[&str]) -> Output {
        let mut command = Command::new(BONAFIDE);
        command.args(["launch", "--uid", "74702", "--gid", "74702", "--cgroup"]).arg(self.0.daemon("ca"));
        for cap in caps {
            command.args(["--cap", cap]);
        }
        command.arg("--").args(program).output().unwrap()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.0.remove().unwrap();
    }
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {status}"));
    line.split_once(':').unwrap().1.trim().to_owned()
}

fn caps(status: &str) -> [u64; 5] {
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|n| u64::from_str_radix(&field(status, n), 16).unwrap())
}

#[test]
fn it_keeps_its_capabilities_and_nothing_else() {
    let instance = Instance::new("caps");
    for (names, expected) in [
        (&[] as &[&str], 0),
        (&["net-admin"], CAP_NET_ADMIN),
        (&["sys-ptrace", "dac-read-search"], CAP_SYS_PTRACE | CAP_DAC_READ_SEARCH),
        (&["checkpoint-restore"], CAP_CHECKPOINT_RESTORE),
        (&["bpf", "perfmon"], CAP_BPF | CAP_PERFMON),
    ] {
        let output = instance.launch(names, &["/bin/cat", "/proc/self/status"]);
        let status = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(caps(&status), [expected; 5], "{status}");
        assert_eq!(field(&status, "Uid"), "74702\t74702\t74702\t74702");
        assert_eq!(field(&status, "Gid"), "74702\t74702\t74702\t74702");
        assert_eq!(field(&status, "Groups"), "");
        assert_eq!(field(&status, "NoNewPrivs"), "1");
        assert_eq!(field(&status, "Umask"), "0022");
    }
}

#[test]
fn it_has_the_groups_that_it_is_given() {
    let instance = Instance::new("grp");
    let mut command = Command::new(BONAFIDE);
    command.args(["launch", "--uid", "74702", "--gid", "74702", "--cgroup"]).arg(instance.0.daemon("ca"));
    let output =
        command.args(["--group", "7", "--group", "0", "--", "/bin/cat", "/proc/self/status"]).output().unwrap();
    assert_eq!(field(&String::from_utf8(output.stdout).unwrap(), "Groups"), "0 7");
}

#[test]
fn it_lives_in_its_cgroup() {
    let instance = Instance::new("cg");
    let output = instance.launch(&[], &["/bin/cat", "/proc/self/cgroup"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let name = instance.0.path().file_name().unwrap().to_str().unwrap();
    assert!(text.lines().any(|l| l == format!("0::/{name}/ca")), "{text}");
}

/// As where the workspace lies below `/root`, which is 0700.
#[test]
fn a_program_below_a_directory_of_roots_starts_but_cannot_look_around() {
    let instance = Instance::new("dir");
    let private = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o700)).tempdir().unwrap();
    let program: PathBuf = private.path().join("cat");
    std::fs::copy("/bin/cat", &program).unwrap();
    std::fs::write(private.path().join("secret"), "x").unwrap();
    let (program, secret) = (program.to_str().unwrap(), private.path().join("secret"));
    let output = instance.launch(&[], &[program, "/proc/self/status"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!instance.launch(&[], &[program, secret.to_str().unwrap()]).status.success());
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let instance = Instance::new("no");
    let output = instance.launch(&[], &["/no/such/program"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot start /no/such/program: No such file"), "{said}");
    let unknown = instance.launch(&["sys-admin"], &["/bin/true"]);
    assert_eq!(unknown.status.code(), Some(2), "a capability that no daemon needs is refused");
}
