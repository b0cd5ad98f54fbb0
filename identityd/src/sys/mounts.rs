//! The overlays that this host mounted itself.
//!
//! Any user can mount an overlay in a user namespace of their own, over a file system that a program of theirs serves,
//! and files below that belong to root still do so on top. Such a mount is never seen in the host's mount namespace.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::parse::mountinfo::devices;

/// The most that is read of the list of mounts, in bytes: a hundred thousand of them.
const MOUNTINFO_MAX: u64 = 32 << 20;

/// Device numbers of overlays in this daemon's mount namespace, as of now.
#[derive(Debug)]
pub(crate) struct OwnOverlays(Mutex<Seen>);

#[derive(Debug)]
struct Seen {
    mountinfo: File,
    /// None before the first look.
    devices: Option<HashSet<u64>>,
}

impl OwnOverlays {
    /// Looks at `/proc/self/mountinfo` from now on.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(Mutex::new(Seen { mountinfo: File::open("/proc/self/mountinfo")?, devices: None })))
    }

    /// Whether this device number is that of one of them. It stays so for as long as a file on it is open.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn have(&self, device: u64) -> io::Result<bool> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = seen.changed()?;
        match &seen.devices {
            Some(devices) if !changed => Ok(devices.contains(&device)),
            _ => Ok(seen.look()?.contains(&device)),
        }
    }
}

impl Seen {
    /// Whether something was mounted or unmounted since this was asked last (proc(5): "poll").
    fn changed(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.mountinfo, PollFlags::PRI)];
        rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        Ok(polled.iter().any(|one| one.revents().intersects(PollFlags::PRI | PollFlags::ERR)))
    }

    fn look(&mut self) -> io::Result<&HashSet<u64>> {
        // What cannot be read is not known from before either.
        self.devices = None;
        let mut text = Vec::new();
        self.mountinfo.rewind()?;
        (&self.mountinfo).take(MOUNTINFO_MAX).read_to_end(&mut text)?;
        let devices = devices(&text, "overlay").map(|(major, minor)| rustix::fs::makedev(major, minor)).collect();
        Ok(self.devices.insert(devices))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::process::Command;

    use super::*;

    /// Python in a mount namespace of its own that mounts an overlay at the path in its argument, tells its device
    /// number, and waits.
    const ELSEWHERE: &str = "import os, sys; print(os.stat(sys.argv[1]).st_dev, flush=True); sys.stdin.read()";

    fn overlay(dir: &std::path::Path) -> String {
        for part in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir(dir.join(part)).unwrap();
        }
        let dir = dir.display();
        format!("mount -t overlay overlay -o lowerdir={dir}/lower,upperdir={dir}/upper,workdir={dir}/work {dir}/merged")
    }

    fn run(command: &str) {
        assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
    }

    #[test]
    fn the_hosts_overlays_are_known_while_they_are_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let overlays = OwnOverlays::open().unwrap();
        let mount = overlay(dir.path());
        let merged = dir.path().join("merged");
        assert!(!overlays.have(std::fs::metadata(&merged).unwrap().dev()).unwrap());
        run(&mount);
        let device = std::fs::metadata(&merged).unwrap().dev();
        let mounted = overlays.have(device);
        run(&format!("umount {}", merged.display()));
        assert!(mounted.unwrap());
        assert!(!overlays.have(device).unwrap());
    }

    #[test]
    fn the_overlays_of_another_mount_namespace_are_not_the_hosts() {
        use std::io::{BufRead as _, BufReader};
        use std::process::Stdio;
        let dir = tempfile::tempdir().unwrap();
        let overlays = OwnOverlays::open().unwrap();
        let script =
            format!("{} && exec python3 -c '{ELSEWHERE}' {}/merged", overlay(dir.path()), dir.path().display());
        let mut child = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let known = overlays.have(line.trim().parse().unwrap());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!known.unwrap());
    }
}
