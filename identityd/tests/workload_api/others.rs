//! Programs by others, installed once: `deploy/test-clients.txt` says which.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bonafide_proto::fingerprint::Digest;

const WANTED: &str = include_str!("../../../deploy/test-clients.txt");

/// The directory in which they are installed; another one for each list of them.
pub(crate) fn installed() -> PathBuf {
    let wanted = Digest::of(WANTED.as_bytes()).to_string();
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clients-{}", &wanted[7..23]));
    std::fs::create_dir_all(&dir).unwrap();
    // Tests run at once, also those of other processes.
    let lock = std::fs::File::create(dir.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    if !dir.join("complete").exists() {
        let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/test-clients.txt");
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(dir.join("venv")));
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r"];
        run(Command::new(dir.join("venv/bin/python")).args(pip).arg(list));
        std::fs::write(dir.join("complete"), "").unwrap();
    }
    dir.join("venv")
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed, which needs python3-venv and a package index: {said}");
}

/// Python's own executable, as the kernel knows it.
pub(crate) fn python() -> PathBuf {
    std::fs::canonicalize(installed().join("bin/python")).unwrap()
}

/// Envoy.
pub(crate) fn envoy() -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let packages = std::fs::read_dir(installed().join("lib")).unwrap().next().unwrap().unwrap().path();
    let envoy = packages.join("site-packages/envoy/_bin/envoy");
    if std::fs::metadata(&envoy).unwrap().permissions().mode() & 0o100 == 0 {
        std::fs::set_permissions(&envoy, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::fs::canonicalize(envoy).unwrap()
}
