//! Cgroups of version 2 that a test makes, and programs in them. Removed when the test is over.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

pub(crate) struct Cgroup {
    root: PathBuf,
    /// From the tree's root; the first of its components is the test's own.
    pub(crate) path: String,
    children: Vec<Child>,
}

impl Cgroup {
    /// Makes the directories of a path, from the root of the tree.
    pub(crate) fn make(path: &str) -> Self {
        let root = root();
        std::fs::create_dir_all(root.join(path.trim_start_matches('/'))).unwrap();
        Self { root, path: path.to_owned(), children: Vec::new() }
    }

    /// The directory after so many of its components.
    pub(crate) fn directory(&self, components: usize) -> PathBuf {
        self.root.join(self.path.split('/').filter(|part| !part.is_empty()).take(components).collect::<PathBuf>())
    }

    /// Gives a directory to a user, as delegation does.
    pub(crate) fn delegate(&self, components: usize, user: u32) {
        for path in [self.directory(components), self.directory(components).join("cgroup.procs")] {
            std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
        }
    }

    /// Starts a program that sleeps, in it.
    pub(crate) fn sleeper(&mut self) -> u32 {
        self.sleeper_as(0)
    }

    /// The same as another user.
    pub(crate) fn sleeper_as(&mut self, user: u32) -> u32 {
        let procs = self.directory(usize::MAX).join("cgroup.procs");
        let sleeps = format!("exec setpriv --reuid={user} --clear-groups -- sleep 1000");
        let script = format!("echo 0 >{} && {sleeps}", procs.display());
        let child = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        let exe = format!("/proc/{pid}/exe");
        let begun = std::time::Instant::now();
        while !std::fs::read_link(&exe).is_ok_and(|exe| exe.ends_with("sleep")) {
            assert!(begun.elapsed() < crate::node::PATIENCE, "no program runs in {}", self.path);
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        pid
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let depth = self.path.split('/').filter(|part| !part.is_empty()).count();
        for components in (1..=depth).rev() {
            let _ = std::fs::remove_dir(self.directory(components));
        }
    }
}

fn root() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let found = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("these tests need cgroup v2");
    PathBuf::from(found.split(' ').nth(4).unwrap())
}
