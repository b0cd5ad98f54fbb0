//! A disk that is full: what was acknowledged stays, what could not be written is an error that says so.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bonafide_ca::store::{By, Event, Store, StoreError};
use bonafide_proto::clock::SystemClock;

/// A file system of its own, and small.
struct Small {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Small {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("small");
        std::fs::create_dir(&path).unwrap();
        mount(&["-t", "tmpfs", "-o", "size=6m", "bonafide-test"], &path);
        Self { _dir: dir, path }
    }

    fn grow(&self) {
        mount(&["-o", "remount,size=64m"], &self.path);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l".as_ref(), self.path.as_os_str()]).status();
    }
}

fn mount(arguments: &[&str], path: &Path) {
    let output = Command::new("mount").args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn open(path: &Path) -> Result<Store, StoreError> {
    Store::embedded(&path.join("store"), Arc::new(SystemClock))
}

fn note(store: &Store, n: usize) -> Result<(), StoreError> {
    let mut change = store.change();
    change.note(Event::new("tested", &By::Daemon).with("number", n).with("filling", "x".repeat(500)));
    change.commit().map(drop)
}

#[test]
fn a_full_disk_is_an_error_and_what_was_acknowledged_stays() {
    let small = Small::new();
    let store = open(&small.path).unwrap();
    let mut acknowledged = 0;
    let refused = loop {
        match note(&store, acknowledged) {
            Ok(()) => acknowledged += 1,
            Err(e) => break e,
        }
        assert!(acknowledged < 100_000, "the disk never filled");
    };
    assert!(acknowledged > 10, "{acknowledged}: {refused}");
    assert!(refused.to_string().contains("No space left on device"), "{refused}");
    note(&store, acknowledged).unwrap_err();
    drop(store);
    small.grow();
    let store = open(&small.path).unwrap();
    let entries = crate::audit::verify(&store).unwrap();
    let kept = entries.iter().filter(|entry| entry.act == "tested").count();
    assert!(kept >= acknowledged, "{acknowledged} were acknowledged, {kept} are there");
    note(&store, kept).unwrap();
}
