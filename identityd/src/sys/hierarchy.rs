//! The trees of cgroups as they are mounted here: who owns a cgroup, and what systemd wrote on it.
//!
//! A cgroup says something about a process only if whoever made it is trusted, and nobody else may move processes
//! into it. Cgroups are delegated by giving their directories and `cgroup.procs` files to another user.

use std::path::{Path, PathBuf};

use rustix::fs::Stat;
use rustix::io::Errno;

use crate::parse::cgroup::{Seat, Tree};
use crate::parse::cgroup_mounts::{Mount, cgroups, sorted};

/// `mountinfo` of a busy host has thousands of lines; this is far beyond.
const MOUNTINFO_MAX: u64 = 16 << 20;

/// The mounted trees.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hierarchies {
    mounts: Vec<Mount>,
}

/// Who made a cgroup, and may move processes into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owned {
    /// Only those who were named.
    AsExpected,
    /// Somebody else.
    By(u32),
    /// It cannot be seen here, and why.
    Unseen(String),
}

impl Hierarchies {
    /// As they are mounted now. Without any, everything is unseen.
    pub(crate) fn read() -> Self {
        use std::io::Read as _;
        let mut file = Vec::new();
        let read = std::fs::File::open("/proc/self/mountinfo")
            .and_then(|mountinfo| mountinfo.take(MOUNTINFO_MAX).read_to_end(&mut file));
        if let Err(e) = read {
            tracing::warn!(error = %e, "the mounts of cgroups cannot be read: nothing is known about their owners");
        }
        Self { mounts: cgroups(&file) }
    }

    /// Whether the cgroup was made by root or `user`, and nobody else may move processes into it.
    ///
    /// In version 2 moving a process takes the right to do so in the cgroup above both places: who owns this cgroup
    /// alone can move nothing into it. In version 1 it takes nothing but the destination.
    pub(crate) fn owned(&self, seat: &Seat, user: u32) -> Owned {
        let directory = match self.directory(seat) {
            Ok(directory) => directory,
            Err(why) => return Owned::Unseen(why),
        };
        let depth = seat.path.split('/').filter(|part| !part.is_empty()).count();
        let first = usize::from(seat.tree == Tree::V2);
        for directory in directory.ancestors().skip(first).take(depth + 1 - first) {
            match owners(directory).map(|owners| owners.into_iter().find(|stat| !is_of(stat, user))) {
                Ok(None) => {}
                Ok(Some(stat)) => return Owned::By(stat.st_uid),
                Err(e) => return Owned::Unseen(format!("{}: {e}", directory.display())),
            }
        }
        Owned::AsExpected
    }

    /// An extended attribute of the cgroup, as text.
    pub(crate) fn attribute(&self, seat: &Seat, name: &str) -> Option<String> {
        let mut value = [0; 64];
        let length = rustix::fs::lgetxattr(self.directory(seat).ok()?, name, &mut value[..]).ok()?;
        String::from_utf8(value.get(..length)?.to_vec()).ok()
    }

    /// Where the cgroup is. That its path leads there is not checked.
    fn directory(&self, seat: &Seat) -> Result<PathBuf, String> {
        seat.visible()?;
        let tree = match &seat.tree {
            Tree::V2 => Tree::V2,
            Tree::V1(controllers) => Tree::V1(sorted(controllers)),
        };
        let mounted = self.mounts.iter().find(|mount| mount.tree == tree && mount.root == "/");
        let mount = mounted.ok_or("its tree of cgroups is not mounted here")?;
        Ok(Path::new(&mount.point).join(seat.path.trim_start_matches('/')))
    }
}

/// A cgroup, and the files by which processes are moved into it: not every tree has all of them.
fn owners(directory: &Path) -> Result<Vec<Stat>, Errno> {
    let mut owners = vec![rustix::fs::lstat(directory)?];
    for name in ["cgroup.procs", "cgroup.threads", "tasks"] {
        match rustix::fs::lstat(directory.join(name)) {
            Ok(stat) => owners.push(stat),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(owners)
}

/// Root's or the user's, and writable for nobody else. (Cgroups have no access control lists.)
fn is_of(stat: &Stat, user: u32) -> bool {
    (stat.st_uid == 0 || stat.st_uid == user) && stat.st_mode & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Gid, Uid};

    use super::*;

    /// A cgroup of our own, with one below it.
    struct Made {
        hierarchies: Hierarchies,
        outer: Seat,
        inner: Seat,
    }

    impl Made {
        fn new(tree: Tree, name: &str) -> Self {
            let path = format!("/bt{}-{name}", std::process::id());
            let outer = Seat { tree: tree.clone(), path: path.clone() };
            let made = Self { hierarchies: Hierarchies::read(), outer, inner: Seat { tree, path: path + "/in" } };
            for seat in [&made.outer, &made.inner] {
                std::fs::create_dir(made.hierarchies.directory(seat).unwrap()).unwrap();
            }
            made
        }

        fn give(&self, seat: &Seat, file: &str) {
            let path = self.hierarchies.directory(seat).unwrap().join(file);
            rustix::fs::chown(path, Some(Uid::from_raw(1000)), Some(Gid::from_raw(1000))).unwrap();
        }

        fn owned(&self, seat: &Seat) -> Owned {
            self.hierarchies.owned(seat, 0)
        }
    }

    impl Drop for Made {
        fn drop(&mut self) {
            for seat in [&self.inner, &self.outer] {
                let _ = std::fs::remove_dir(self.hierarchies.directory(seat).unwrap());
            }
        }
    }

    /// One tree that is mounted, if any of that version is.
    fn tree(v2: bool) -> Option<Tree> {
        Hierarchies::read().mounts.into_iter().map(|mount| mount.tree).find(|tree| (*tree == Tree::V2) == v2)
    }

    #[test]
    fn what_lies_below_a_delegated_cgroup_is_not_roots() {
        for v2 in [true, false] {
            let Some(tree) = tree(v2) else { continue };
            let made = Made::new(tree, if v2 { "below2" } else { "below1" });
            assert_eq!(made.owned(&made.inner), Owned::AsExpected);
            made.give(&made.outer, "");
            assert_eq!(made.owned(&made.inner), Owned::By(1000));
            assert_eq!(made.hierarchies.owned(&made.inner, 1000), Owned::AsExpected);
        }
        assert!(tree(true).is_some(), "these tests need cgroup v2");
    }

    #[test]
    fn a_delegated_cgroup_itself_is_entered_by_its_owner_in_version_1_only() {
        for (v2, expected) in [(true, Owned::AsExpected), (false, Owned::By(1000))] {
            let Some(tree) = tree(v2) else { continue };
            let made = Made::new(tree, if v2 { "itself2" } else { "itself1" });
            made.give(&made.outer, "cgroup.procs");
            assert_eq!(made.owned(&made.outer), expected);
            assert_eq!(made.owned(&made.inner), Owned::By(1000));
        }
    }

    #[test]
    fn what_is_not_there_or_not_mounted_is_unseen() {
        let hierarchies = Hierarchies::read();
        let unseen = |tree, path: &str| match hierarchies.owned(&Seat { tree, path: path.to_owned() }, 0) {
            Owned::Unseen(_) => {}
            other => panic!("{path} is {other:?}"),
        };
        unseen(Tree::V2, "/no-such-cgroup/at-all");
        unseen(Tree::V2, "/../a");
        unseen(Tree::V1("name=nothing".to_owned()), "/");
    }
}
