//! `/proc/PID/cgroup` of version 1, version 2 and hybrid hosts: the cgroup, and the unit that PID 1 runs in it.

use bonafide_proto::fingerprint::Evidence;

/// Where a process sits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    /// The path of the cgroup.
    pub(crate) cgroup: Evidence<String>,
    /// The systemd unit, as far as names tell.
    pub(crate) unit: Evidence<NamedUnit>,
}

/// A cgroup that is called like a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedUnit {
    /// The unit's name.
    pub(crate) name: String,
    /// Its cgroup.
    pub(crate) seat: Seat,
}

/// A directory of a cgroup tree: one in which a process sits, or one above it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Seat {
    /// The tree.
    pub(crate) tree: Tree,
    /// The path from that tree's root. Absolute, without `..`.
    pub(crate) path: String,
}

/// A tree of cgroups.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Tree {
    /// The one of version 2.
    V2,
    /// One of version 1, by its controllers as they are written: `cpu,cpuacct` or `name=systemd`.
    V1(String),
}

/// A cgroup directory that was removed under its last process gets this suffix (kernel/cgroup/cgroup.c).
const REMOVED: &str = " (deleted)";

/// The tree that systemd keeps on hosts of version 1.
const SYSTEMD: &str = "name=systemd";

/// Ends of the names of units that own processes (`systemd.unit(5)`); a slice only groups them.
const OWNERS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// The trees in a `/proc/PID/cgroup`, each with the path of the process in it.
///
/// # Errors
/// Why the file says nothing.
pub(crate) fn seats(file: &[u8]) -> Result<impl Iterator<Item = Seat>, &'static str> {
    let text = std::str::from_utf8(file).map_err(|_| "the cgroup's name is not UTF-8")?;
    if text.bytes().any(|b| b.is_ascii_control() && b != b'\n') {
        return Err("the cgroup's name has control characters");
    }
    Ok(text.lines().filter_map(seat))
}

/// `hierarchy:controllers:path`; the path may hold further colons.
fn seat(line: &str) -> Option<Seat> {
    let mut fields = line.splitn(3, ':');
    let tree = match (fields.next()?, fields.next()?) {
        ("0", "") => Tree::V2,
        (_, controllers) => Tree::V1(controllers.to_owned()),
    };
    Some(Seat { tree, path: fields.next()?.to_owned() })
}

impl Seat {
    /// Whether the path leads to a directory that exists, in the part of the tree that is visible here.
    pub(crate) fn visible(&self) -> Result<(), &'static str> {
        if self.path.ends_with(REMOVED) {
            return Err("its cgroup was removed");
        }
        if !self.path.starts_with('/') || self.path.split('/').any(|part| part == "..") {
            return Err("its cgroup is outside the tree that is visible here");
        }
        Ok(())
    }

    /// The directory at this one of the path's components, counted from 1.
    pub(crate) fn above(&self, components: usize) -> Self {
        let parts: Vec<&str> = self.path.split('/').filter(|part| !part.is_empty()).take(components).collect();
        Self { tree: self.tree.clone(), path: format!("/{}", parts.join("/")) }
    }
}

impl Placement {
    /// Reads the file. What is missing or contradictory is absent, with its reason.
    pub(crate) fn parse(file: &[u8]) -> Self {
        let (mut v2, mut v1) = (None, None);
        match seats(file) {
            Err(why) => return Self::absent(why),
            Ok(seats) => {
                for seat in seats {
                    match &seat.tree {
                        Tree::V2 => v2 = v2.or(Some(seat)),
                        Tree::V1(name) if name == SYSTEMD => v1 = v1.or(Some(seat)),
                        Tree::V1(_) => {}
                    }
                }
            }
        }
        match (v2, v1) {
            (None, None) => Self::absent("the process is in no cgroup that systemd or cgroup v2 knows"),
            (Some(only), None) | (None, Some(only)) => Self::of(&only),
            (Some(v2), Some(v1)) => Self::hybrid(&v2, &v1),
        }
    }

    /// On a hybrid host the tree that names a unit speaks; two different units contradict each other.
    fn hybrid(v2: &Seat, v1: &Seat) -> Self {
        let (new, old) = (Self::of(v2), Self::of(v1));
        match (new.unit.known(), old.unit.known()) {
            (Some(a), Some(b)) if a.name != b.name => {
                let why = format!("cgroup v2 says {}, v1 says {}", a.name, b.name);
                Self { cgroup: new.cgroup, unit: Evidence::Absent(why) }
            }
            (None, Some(_)) => old,
            (None, None) if v2.path == "/" => old,
            _ => new,
        }
    }

    fn of(seat: &Seat) -> Self {
        match seat.visible() {
            Ok(()) => Self { cgroup: Evidence::Known(seat.path.clone()), unit: unit(seat) },
            Err(why) => Self::absent(why),
        }
    }

    fn absent(why: &str) -> Self {
        Self { cgroup: Evidence::Absent(why.to_owned()), unit: Evidence::Absent(why.to_owned()) }
    }
}

/// The first component that is no slice: what lies below it may be delegated, and then its names are the unit's own choice.
fn unit(seat: &Seat) -> Evidence<NamedUnit> {
    let mut parts = seat.path.split('/').filter(|part| !part.is_empty()).zip(1..);
    match parts.find(|(part, _)| !part.ends_with(".slice")) {
        Some((owner, depth)) if OWNERS.iter().any(|end| owner.len() > end.len() && owner.ends_with(end)) => {
            // systemd puts `_` before names that would collide with the kernel's files (CONTROL_GROUP_INTERFACE).
            let name = owner.strip_prefix('_').unwrap_or(owner).to_owned();
            Evidence::Known(NamedUnit { name, seat: seat.above(depth) })
        }
        Some(_) => Evidence::Absent("its cgroup was not made by systemd".to_owned()),
        None => Evidence::Absent("it runs outside any systemd unit".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(file: &str) -> (Option<String>, Option<String>) {
        let placement = Placement::parse(file.as_bytes());
        (placement.cgroup.known().cloned(), placement.unit.known().map(|unit| unit.name.clone()))
    }

    fn both(cgroup: &str, unit: &str) -> (Option<String>, Option<String>) {
        (Some(cgroup.to_owned()), Some(unit.to_owned()))
    }

    #[test]
    fn version_2() {
        assert_eq!(parsed("0::/system.slice/nginx.service\n"), both("/system.slice/nginx.service", "nginx.service"));
        assert_eq!(parsed("0::/init.scope\n"), both("/init.scope", "init.scope"));
        assert_eq!(parsed("0::/system.slice/a-b.slice/c@1.service/x\n").1.as_deref(), Some("c@1.service"));
        assert_eq!(parsed("0::/\n"), (Some("/".to_owned()), None));
        assert_eq!(parsed("0::/docker/nginx.service\n").1, None);
        assert_eq!(parsed("0::/_cpu.service\n").1.as_deref(), Some("cpu.service"));
        assert_eq!(parsed("0::/.service\n").1, None);
    }

    #[test]
    fn a_user_cannot_name_a_unit_by_a_cgroup_of_its_own() {
        let path = "/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service";
        assert_eq!(parsed(&format!("0::{path}\n")), both(path, "user@1000.service"));
    }

    #[test]
    fn version_1() {
        let file = "3:cpu,cpuacct:/other.service\n2:memory:/m\n1:name=systemd:/system.slice/db.service\n";
        assert_eq!(parsed(file), both("/system.slice/db.service", "db.service"));
        assert_eq!(parsed("3:cpu:/a\n"), (None, None));
    }

    #[test]
    fn hybrid_takes_the_tree_that_names_a_unit() {
        let v1 = "1:name=systemd:/system.slice/db.service\n";
        assert_eq!(parsed(&format!("{v1}0::/\n")), both("/system.slice/db.service", "db.service"));
        assert_eq!(parsed(&format!("{v1}0::/mesh/a\n")), both("/system.slice/db.service", "db.service"));
        assert_eq!(parsed("1:name=systemd:/\n0::/a.service\n"), both("/a.service", "a.service"));
        assert_eq!(parsed("1:name=systemd:/\n0::/mesh/a\n"), (Some("/mesh/a".to_owned()), None));
        assert_eq!(parsed("1:name=systemd:/x\n0::/\n"), (Some("/x".to_owned()), None));
    }

    #[test]
    fn trees_that_contradict_each_other_name_no_unit() {
        assert_eq!(parsed("1:name=systemd:/a.service\n0::/b.service\n"), (Some("/b.service".to_owned()), None));
    }

    #[test]
    fn a_controller_whose_path_looks_like_another_line_is_not_believed() {
        assert_eq!(parsed("2:memory:/x:name=systemd:/evil.service\n"), (None, None));
    }

    #[test]
    fn removed_foreign_and_hostile_cgroups_are_absent() {
        assert_eq!(parsed("0::/a.service (deleted)\n"), (None, None));
        assert_eq!(parsed("0::/../a.service\n"), (None, None));
        assert_eq!(parsed("0::/a\u{1b}.service\n"), (None, None));
        assert_eq!(Placement::parse(b"0::/\xff.service\n").unit.known(), None);
        assert_eq!(parsed(""), (None, None));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>) {
            let _ = Placement::parse(&bytes);
        }

        #[test]
        fn below_a_delegated_unit_no_name_matters(below in "(/[a-z@][a-z.@]{0,11}){0,4}") {
            let file = format!("0::/user.slice/user-7.slice/user@7.service{below}\n");
            prop_assert_eq!(parsed(&file).1, Some("user@7.service".to_owned()));
        }
    }
}
