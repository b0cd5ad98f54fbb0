//! The claim on an instance: only one run holds it, and giving it back removes what the run made.
//!
//! The lock is on the instance's cgroup directory, which root alone can open, and which goes away with the run:
//! no lock file stays behind, and a killed run's lock is gone with it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::exit::Failure;
use crate::node::{InstanceCgroup, Layout};
use crate::screen::tell;

/// In a directory that a run made, and may remove again.
const MADE_BY_RUN: &str = ".removed-on-stop";

/// How long a lock may be found taken before somebody is said to hold it: a child of a killed run that was between
/// its fork and its exec shares the lock for that long.
const PASSING: Duration = Duration::from_secs(1);
/// The wait between two attempts.
const AGAIN: Duration = Duration::from_millis(20);

/// The right to run this instance.
#[derive(Debug)]
pub(super) struct Claim {
    cgroup: InstanceCgroup,
    dir: PathBuf,
    /// Whether `dir` may be removed in the end.
    made_dir: bool,
    /// Released when closed.
    _lock: File,
}

impl Claim {
    /// Takes the claim, or says who has it. What a killed run left running is ended.
    pub(super) fn take(instance: &str, dir: &Path, keep: bool) -> Result<Self, Failure> {
        let cgroup = InstanceCgroup::find(instance).map_err(|e| Failure::BadInput(e.to_string()))?;
        let lock = lock(&cgroup)?;
        let made_dir = match own_directory(dir, keep) {
            Ok(made) => made,
            Err(e) => {
                let _ = cgroup.remove();
                return Err(e);
            }
        };
        end_leftovers(&cgroup)?;
        Ok(Self { cgroup, dir: dir.to_owned(), made_dir, _lock: lock })
    }

    /// Gives it back: the cgroups, the sockets and, if a run made it, the directory are gone afterwards.
    pub(super) fn release(self) -> Result<(), Failure> {
        let cgroups = self.cgroup.remove().map_err(|e| Failure::Failed(e.to_string()));
        let doomed = if self.made_dir { self.dir.clone() } else { Layout::new(&self.dir).run() };
        let files = match fs::remove_dir_all(&doomed) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Failure::Failed(format!("{}: cannot be removed: {e}", doomed.display())))
            }
            _ => Ok(()),
        };
        if !self.made_dir {
            tell(&format!("{} stays, with its flow records", self.dir.display()));
        }
        cgroups.and(files)
    }
}

fn lock(cgroup: &InstanceCgroup) -> Result<File, Failure> {
    let failed = |e: io::Error| Failure::Failed(format!("{}: cannot be locked: {e}", cgroup.path().display()));
    let patience = Instant::now() + PASSING;
    loop {
        cgroup.create().map_err(|e| Failure::Failed(e.to_string()))?;
        let file = match File::open(cgroup.path()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(failed)?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < patience => {
                std::thread::sleep(AGAIN);
                continue;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(taken()),
            locked => locked.map_err(|e| failed(e.into()))?,
        }
        // Its last holder may have removed it between our opening and our locking it.
        let ours = file.metadata().map_err(failed)?;
        match fs::metadata(cgroup.path()) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => return Ok(file),
            _ => {}
        }
    }
}

fn taken() -> Failure {
    Failure::Refused("another `bonafide run` is at work on this machine; stop it first (Ctrl-C or SIGTERM)".into())
}

/// Makes the directory. True if it may be removed in the end.
fn own_directory(dir: &Path, keep: bool) -> Result<bool, Failure> {
    let failed = |e: io::Error| Failure::BadInput(format!("{}: {e}; choose another --dir", dir.display()));
    let marker = dir.join(MADE_BY_RUN);
    match fs::create_dir(dir) {
        Ok(()) => {
            if !keep {
                File::create(marker).map_err(failed)?;
            }
            return Ok(!keep);
        }
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
        Err(_) => {}
    }
    let marked = fs::symlink_metadata(&marker).is_ok_and(|m| m.is_file() && m.uid() == 0);
    let known = marked || Layout::new(dir).config("ca").exists();
    if !known && fs::read_dir(dir).map_err(failed)?.next().is_some() {
        let message = format!("{} is neither empty nor a node's directory; choose another --dir", dir.display());
        return Err(Failure::BadInput(message));
    }
    if marked && keep {
        fs::remove_file(marker).map_err(failed)?;
    }
    Ok(marked && !keep)
}

fn end_leftovers(cgroup: &InstanceCgroup) -> Result<(), Failure> {
    if ["ca", "identityd", "enforcer"].iter().all(|name| cgroup.members(name).is_empty()) {
        return Ok(());
    }
    tell("an earlier run was killed; ending what it left");
    // Not the cgroup itself: it is our lock. Capture rules stay until the new enforcer replaces them.
    cgroup.remove_daemons().map_err(|e| Failure::Failed(e.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A name that no other test and no other run of the tests has.
    fn instance(test: &str) -> String {
        format!("t{test}{}", std::process::id())
    }

    #[test]
    fn a_claim_is_exclusive_and_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let (one, two) = (parent.path().join("one"), parent.path().join("two"));
        let name = instance("x");
        let claim = Claim::take(&name, &one, false).unwrap();
        assert!(matches!(Claim::take(&name, &two, false), Err(Failure::Refused(_))));
        assert!(!two.exists(), "a refused claim changes nothing");
        let cgroup = claim.cgroup.path().to_owned();
        claim.release().unwrap();
        assert!(!one.exists() && !cgroup.exists());
        Claim::take(&name, &one, false).unwrap().release().unwrap();
    }

    #[test]
    fn a_directory_that_was_there_stays() {
        let parent = tempfile::tempdir().unwrap();
        let name = instance("s");
        Claim::take(&name, parent.path(), false).unwrap().release().unwrap();
        assert!(parent.path().exists());
        fs::write(parent.path().join("precious"), "x").unwrap();
        assert!(matches!(Claim::take(&name, parent.path(), false), Err(Failure::BadInput(_))));
        assert!(!InstanceCgroup::find(&name).unwrap().path().exists());
    }

    #[test]
    fn the_directory_of_a_killed_run_is_taken_over_and_removed() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("d");
        let name = instance("k");
        drop(Claim::take(&name, &dir, false).unwrap());
        assert!(dir.exists(), "a killed run removes nothing");
        Claim::take(&name, &dir, false).unwrap().release().unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn keep_keeps() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("d");
        let name = instance("e");
        Claim::take(&name, &dir, true).unwrap().release().unwrap();
        assert!(dir.exists());
    }
}
