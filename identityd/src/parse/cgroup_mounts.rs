//! `/proc/self/mountinfo`: where the trees of cgroups are mounted.

use super::cgroup::Tree;

/// A tree that is mounted, whole or in part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Which tree; of version 1, with its controllers in alphabetical order.
    pub(crate) tree: Tree,
    /// The cgroup at the mount point, as seen from this process's cgroup namespace: mostly `/`.
    pub(crate) root: String,
    /// Where.
    pub(crate) point: String,
}

/// Controllers as they are written, in alphabetical order: the kernel's files do not agree on another one.
pub(crate) fn sorted(controllers: &str) -> String {
    let mut names: Vec<&str> = controllers.split(',').collect();
    names.sort_unstable();
    names.join(",")
}

/// Every mount of a tree of cgroups. Lines that are malformed, or no text, are skipped.
pub(crate) fn cgroups(file: &[u8]) -> Vec<Mount> {
    file.split(|b| *b == b'\n').filter_map(|line| mount(std::str::from_utf8(line).ok()?)).collect()
}

fn mount(line: &str) -> Option<Mount> {
    // `36 35 98:0 /root /point options tags... - type source super-options` (proc(5))
    let (before, after) = line.split_once(" - ")?;
    let (mut before, mut after) = (before.split(' '), after.split(' '));
    let (kind, options) = (after.next()?, after.nth(1)?);
    let tree = match kind {
        "cgroup2" => Tree::V2,
        "cgroup" => Tree::V1(controllers(options)),
        _ => return None,
    };
    let (root, point) = (before.nth(3)?, before.next()?);
    // Spaces and the like are written in octal: such mount points are nobody's.
    let plain = |path: &str| (!path.contains('\\')).then(|| path.to_owned());
    Some(Mount { tree, root: plain(root)?, point: plain(point)? })
}

/// The options of a version 1 tree that are also in `/proc/PID/cgroup`.
fn controllers(options: &str) -> String {
    const OTHER: [&str; 7] = ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods"];
    let is_controller = |option: &&str| !OTHER.contains(option) && !option.starts_with("release_agent=");
    let names: Vec<&str> = options.split(',').filter(is_controller).collect();
    sorted(&names.join(","))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HYBRID: &str = "\
24 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 24 0:27 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755
32 31 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:10 - cgroup cgroup rw,cpuacct,cpu
33 31 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/systemd-agent,name=systemd
34 31 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
35 24 0:30 /.. /mnt/a\\040b rw - cgroup2 cgroup2 rw
36 24 0:30 /.. /mnt/part rw - cgroup2 cgroup2 rw
";

    #[test]
    fn trees_are_found_where_they_are_mounted() {
        let mount = |tree, root: &str, point: &str| Mount { tree, root: root.to_owned(), point: point.to_owned() };
        let v1 = |controllers: &str| Tree::V1(controllers.to_owned());
        assert_eq!(
            cgroups(HYBRID.as_bytes()),
            vec![
                mount(v1("cpu,cpuacct"), "/", "/sys/fs/cgroup/cpu,cpuacct"),
                mount(v1("name=systemd"), "/", "/sys/fs/cgroup/systemd"),
                mount(Tree::V2, "/", "/sys/fs/cgroup/unified"),
                mount(Tree::V2, "/..", "/mnt/part"),
            ]
        );
        assert_eq!(sorted("cpuacct,cpu"), "cpu,cpuacct");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>) {
            let _ = cgroups(&bytes);
        }
    }
}
