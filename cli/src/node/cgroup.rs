//! The cgroups of an instance, in the cgroup2 hierarchy: `bonafide-<instance>/{ca,identityd,enforcer}`.
//!
//! They are how capture tells our own sockets from a workload's, and how everything that was started is found again.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::error::{NodeError, io_at};

/// How long killed processes may take to leave.
const LEAVE: Duration = Duration::from_secs(5);
/// Between two looks at a cgroup that should become empty.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The cgroup of one instance, parent of its daemons' cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceCgroup {
    path: PathBuf,
}

impl InstanceCgroup {
    /// Where the instance's cgroup is, whether it exists yet or not.
    ///
    /// # Errors
    /// A bad instance name, or no cgroup2 mount.
    pub fn find(instance: &str) -> Result<Self, NodeError> {
        let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=16).contains(&instance.len()) || !instance.chars().all(named) {
            return Err(NodeError::Instance(instance.to_owned()));
        }
        let mountinfo = Path::new("/proc/self/mountinfo");
        let mounts = fs::read_to_string(mountinfo).map_err(io_at("read", mountinfo))?;
        let mount = cgroup2_mount(&mounts).ok_or(NodeError::NoCgroup2)?;
        Ok(Self { path: mount.join(format!("bonafide-{instance}")) })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cgroup of one of its daemons.
    #[must_use]
    pub fn daemon(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Creates it, if it is missing, so that only root can open it.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(&self) -> Result<(), NodeError> {
        make(&self.path)?;
        // Searching must stay possible: the enforcer names its own cgroup to nft by path.
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o711)).map_err(io_at("restrict", &self.path))
    }

    /// Creates the cgroup of one of its daemons.
    pub(super) fn create_daemon(&self, name: &str) -> Result<PathBuf, NodeError> {
        let path = self.daemon(name);
        make(&path)?;
        Ok(path)
    }

    /// The processes in the cgroup of this daemon; none if it does not exist.
    #[must_use]
    pub fn members(&self, name: &str) -> Vec<Pid> {
        members(&self.daemon(name))
    }

    /// Kills whatever still runs in it and removes it with its children. Not existing is success.
    ///
    /// # Errors
    /// Processes that survive SIGKILL for 5 s, or the file system's.
    pub fn remove(&self) -> Result<(), NodeError> {
        self.remove_daemons()?;
        clear(&self.path)
    }

    /// As [`Self::remove`], but keeps the instance's own cgroup.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub fn remove_daemons(&self) -> Result<(), NodeError> {
        ["enforcer", "identityd", "ca"].iter().try_for_each(|name| clear(&self.daemon(name)))
    }
}

fn make(path: &Path) -> Result<(), NodeError> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(io_at("create this cgroup", path)(e)),
        _ => Ok(()),
    }
}

/// The first cgroup2 mount whose root is the hierarchy's own (`proc(5)`, mountinfo fields 4, 5 and after the dash).
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (after.split(' ').next() == Some("cgroup2") && root == "/").then(|| PathBuf::from(point))
    })
}

fn members(cgroup: &Path) -> Vec<Pid> {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|l| l.parse().ok().and_then(Pid::from_raw)).collect()
}

fn kill_members(cgroup: &Path) {
    // cgroup.kill is atomic, but needs Linux 5.14.
    let killed =
        fs::OpenOptions::new().write(true).open(cgroup.join("cgroup.kill")).and_then(|mut f| f.write_all(b"1"));
    if killed.is_err() {
        for pid in members(cgroup) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn clear(cgroup: &Path) -> Result<(), NodeError> {
    let give_up = Instant::now() + LEAVE;
    loop {
        match fs::remove_dir(cgroup) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() != io::ErrorKind::ResourceBusy => return Err(io_at("remove this cgroup", cgroup)(e)),
            Err(_) if Instant::now() > give_up => return Err(NodeError::StillAlive(cgroup.to_owned())),
            Err(_) => {
                kill_members(cgroup);
                std::thread::sleep(LOOK_AGAIN);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found_in_every_arrangement() {
        let v2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let bound = "40 31 0:38 /docker/x /mnt rw - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(v2), Some("/sys/fs/cgroup".into()));
        assert_eq!(cgroup2_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2_mount(bound), None);
        assert_eq!(cgroup2_mount("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
    }

    #[test]
    fn an_instance_is_a_plain_name() {
        for bad in ["", "..", "a/b", "A", "a_b", "12345678901234567"] {
            assert!(matches!(InstanceCgroup::find(bad), Err(NodeError::Instance(_))), "{bad:?} was accepted");
        }
    }
}
