//! `deploy/install-deps` on machines with and without Rust. All it can find is in one directory: links to a few real
//! programs, and scripts that play the package managers.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/install-deps");
/// `rustup toolchain install` brings a new compiler; everything else it is asked succeeds.
const RUSTUP: &str =
    "echo \"rustup $*\" >> $LOG\n[ \"$1 $2\" != 'toolchain install' ] || cp $BIN/rustc-new $BIN/rustc\n";

struct Machine(TempDir);

impl Machine {
    /// One that has all packages, but no Rust.
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for program in ["bash", "sh", "sed", "sort", "head", "cut", "dirname", "cp", "env"] {
            symlink(Path::new("/usr/bin").join(program), machine.bin().join(program)).unwrap();
        }
        machine.has("dpkg-query", "printf 'ii '\n");
        machine.has("apt-cache", "printf 'rustup:\\n  Installed: (none)\\n  Candidate: (none)\\n'\n");
        machine.has("apt-get", "echo \"apt-get $*\" >> $LOG\nexit 100\n");
        machine.has("cargo", "exit 0\n");
        machine.has("rustc-new", "echo 'rustc 99.0.0 (abc 2030-01-01)'\n");
        machine
    }

    fn bin(&self) -> &Path {
        self.0.path()
    }

    fn has(&self, program: &str, script: &str) {
        let path = self.bin().join(program);
        fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// The exit code, what was said, and what was asked of package managers.
    fn install(&self) -> (Option<i32>, String, String) {
        let log = self.bin().join("log");
        let mut command = Command::new("/bin/bash");
        command.arg(SCRIPT).env_clear().env("PATH", self.bin()).env("BIN", self.bin()).env("LOG", &log);
        let Output { status, stderr, .. } = command.env("HOME", self.bin()).output().unwrap();
        (status.code(), String::from_utf8(stderr).unwrap(), fs::read_to_string(log).unwrap_or_default())
    }
}

#[test]
fn with_everything_there_nothing_is_asked_of_anybody() {
    let machine = Machine::new();
    machine.has("rustc", "echo 'rustc 99.0.0 (abc 2030-01-01)'\n");
    machine.has("rustup", RUSTUP);
    assert_eq!(machine.install(), (Some(0), String::new(), String::new()));
}

#[test]
fn a_cargo_that_the_path_does_not_name_is_found() {
    let machine = Machine::new();
    let hidden = machine.bin().join(".cargo/bin");
    fs::create_dir_all(&hidden).unwrap();
    fs::rename(machine.bin().join("rustc-new"), hidden.join("rustc")).unwrap();
    assert_eq!(machine.install().0, Some(0));
}

#[test]
fn rustup_brings_what_is_missing_or_old() {
    for rustc in ["echo 'rustc 1.63.0 (Debian)'\n", "exit 127\n"] {
        let machine = Machine::new();
        machine.has("rustc", rustc);
        machine.has("rustup", RUSTUP);
        let (code, said, asked) = machine.install();
        assert_eq!(code, Some(0), "{said}");
        assert!(asked.starts_with("rustup toolchain install stable --profile default\n"), "{asked}");
    }
}

/// As on Debian 13. Needs root, as the script does for installing.
#[test]
fn rustup_is_installed_where_it_is_a_package() {
    let machine = Machine::new();
    machine.has("apt-cache", "printf 'rustup:\\n  Candidate: 1.27.1-3\\n'\n");
    machine.has("rustup-packaged", RUSTUP);
    machine.has("apt-get", "echo \"apt-get $*\" >> $LOG\ncp $BIN/rustup-packaged $BIN/rustup\n");
    let (code, said, asked) = machine.install();
    assert_eq!(code, Some(0), "{said}");
    assert!(asked.contains("install rustup\nrustup toolchain install"), "{asked}");
}

#[test]
fn without_any_way_to_rust_the_remedy_is_printed() {
    let machine = Machine::new();
    let (code, said, asked) = machine.install();
    assert_eq!((code, asked.as_str()), (Some(2), ""), "{said}");
    assert!(said.contains("found: none") && said.contains("https://rustup.rs"), "{said}");

    // A default toolchain that is somebody's choice is not changed.
    machine.has("rustc", "echo 'rustc 1.63.0'\n");
    machine.has("rustup", "echo \"rustup $*\" >> $LOG\n");
    let (code, said, asked) = machine.install();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("found: 1.63.0") && said.contains("rustup default stable"), "{said}");
    assert!(!asked.contains("default stable"), "{asked}");
}
