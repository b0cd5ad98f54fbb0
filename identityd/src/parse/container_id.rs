//! Which containers a process may be in, by the names in its cgroup's paths. Nothing here is proof: anybody who may
//! make a cgroup may give it such a name. Each candidate is for its runtime to confirm.

use super::cgroup::{Seat, seats};

/// The most candidates that one process has: containers in containers, the outermost first.
const CANDIDATES_MAX: usize = 4;

/// Deeper in a path no container is looked for.
const DEPTH_MAX: usize = 32;

/// The longest ID of containerd (pkg/identifiers).
const NAME_MAX: usize = 76;

/// A container in which a process may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its ID: 64 lower-case hex digits; or, for containerd, up to 76 of `[A-Za-z0-9._-]`, beginning with one of the
    /// first two kinds.
    pub(crate) id: String,
    /// Who names containers' cgroups like this.
    pub(crate) maker: Maker,
    /// The container's own cgroup, in each tree whose path names it; never empty.
    pub(crate) seats: Vec<Seat>,
}

/// Who may have named a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Maker {
    /// Docker.
    Docker,
    /// Podman.
    Podman,
    /// containerd, its CRI plugin, or nerdctl.
    Containerd,
    /// containerd, in this of its namespaces.
    ContainerdIn(String),
    /// CRI-O.
    Crio,
    /// The name does not tell.
    Unknown,
}

/// Candidates, the innermost first. `namespaces` are containerd's, whose containers need not have hex IDs.
///
/// # Errors
/// Why the file says nothing.
pub(crate) fn candidates(file: &[u8], namespaces: &[&str]) -> Result<Vec<Candidate>, &'static str> {
    let mut found: Vec<(usize, Candidate)> = Vec::new();
    for seat in seats(file)? {
        for (depth, id, maker) in named(&seat.path, namespaces) {
            match found.iter_mut().find(|(_, known)| known.id == id) {
                // Trees that do not agree on who made it leave it open.
                Some((_, known)) => {
                    if known.maker != maker {
                        known.maker = Maker::Unknown;
                    }
                    known.seats.push(seat.above(depth));
                }
                None => {
                    found.push((depth, Candidate { id: id.to_owned(), maker, seats: vec![seat.above(depth)] }));
                }
            }
        }
    }
    found.sort_by_key(|(depth, _)| *depth);
    found.truncate(CANDIDATES_MAX);
    Ok(found.into_iter().rev().map(|(_, candidate)| candidate).collect())
}

/// The components of a path that name a container; each ID at most once.
fn named<'a>(path: &'a str, namespaces: &[&str]) -> Vec<(usize, &'a str, Maker)> {
    let mut found: Vec<(usize, &str, Maker)> = Vec::new();
    let mut parent = "";
    for (part, depth) in path.split('/').filter(|part| !part.is_empty()).zip(1..=DEPTH_MAX) {
        let of_namespace = || {
            let namespace = (depth == 2).then_some(parent).filter(|parent| namespaces.contains(parent))?;
            is_name(part).then(|| (part, Maker::ContainerdIn(namespace.to_owned())))
        };
        if let Some((id, maker)) = hexadecimal(part, parent).or_else(of_namespace)
            && found.iter().all(|(_, known, _)| *known != id)
        {
            found.push((depth, id, maker));
        }
        parent = part;
    }
    found
}

/// `ID`, `PREFIX-ID`, `PREFIX-ID.scope`, or what a cgroup gets that was meant for systemd: `SLICE:PREFIX:ID`.
fn hexadecimal<'a>(part: &'a str, parent: &str) -> Option<(&'a str, Maker)> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let (prefix, id) = part.rsplit_once(['-', ':']).unwrap_or(("", part));
    let prefix = prefix.rsplit_once(':').map_or(prefix, |(_, last)| last);
    if id.len() != 64 || id.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let maker = match (prefix, parent) {
        ("", "docker") | ("docker", _) => Maker::Docker,
        ("libpod" | "libpod-payload", _) => Maker::Podman,
        ("cri-containerd" | "nerdctl", _) => Maker::Containerd,
        ("crio", _) => Maker::Crio,
        // The monitor of a container is not in it.
        ("libpod-conmon" | "crio-conmon", _) => return None,
        _ => Maker::Unknown,
    };
    Some((id, maker))
}

fn is_name(part: &str) -> bool {
    part.len() <= NAME_MAX
        && part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::parse::cgroup::Tree;

    const A: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const B: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

    fn found(file: &str) -> Vec<(String, Maker)> {
        let found = candidates(file.as_bytes(), &["k8s.io", "default"]).unwrap();
        found.into_iter().map(|candidate| (candidate.id, candidate.maker)).collect()
    }

    fn v2(path: &str) -> Vec<(String, Maker)> {
        found(&format!("0::{}\n", path.replace('@', A).replace('%', B)))
    }

    fn a(maker: Maker) -> Vec<(String, Maker)> {
        vec![(A.to_owned(), maker)]
    }

    #[test]
    fn docker() {
        for path in ["/docker/@", "/system.slice/docker-@.scope", "/docker/@/init.scope", "/x.slice/docker-@.scope/a/b"]
        {
            assert_eq!(v2(path), a(Maker::Docker), "{path}");
        }
        // `--cgroup-parent`
        assert_eq!(v2("/custom/@"), a(Maker::Unknown));
    }

    #[test]
    fn kubernetes() {
        let pod = "pod11111111-2222-3333-4444-555555555555";
        let slices = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1111.slice";
        assert_eq!(v2(&format!("/kubepods/burstable/{pod}/@")), a(Maker::Unknown));
        assert_eq!(v2(&format!("{slices}/cri-containerd-@.scope")), a(Maker::Containerd));
        assert_eq!(v2(&format!("{slices}/docker-@.scope")), a(Maker::Docker));
        assert_eq!(v2(&format!("{slices}/crio-@.scope/container")), a(Maker::Crio));
        assert_eq!(v2("/system.slice/kubepods-besteffort-pod1.slice:cri-containerd:@"), a(Maker::Containerd));
        assert_eq!(v2("/k8s.io/@"), a(Maker::Unknown));
    }

    #[test]
    fn podman() {
        let rootless = "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-@.scope/container";
        for path in ["/machine.slice/libpod-@.scope/container", "/libpod_parent/libpod-@", rootless] {
            assert_eq!(v2(path), a(Maker::Podman), "{path}");
        }
        assert_eq!(v2("/system.slice/web.service/libpod-payload-@"), a(Maker::Podman));
        for monitor in ["/machine.slice/libpod-conmon-@.scope", "/libpod_parent/conmon", "/x/crio-conmon-@.scope"] {
            assert_eq!(v2(monitor), Vec::new(), "{monitor}");
        }
    }

    #[test]
    fn containerd_itself() {
        assert_eq!(v2("/default/web.1"), vec![("web.1".to_owned(), Maker::ContainerdIn("default".to_owned()))]);
        assert_eq!(v2("/default/web/below"), vec![("web".to_owned(), Maker::ContainerdIn("default".to_owned()))]);
        assert_eq!(v2("/default/@"), a(Maker::Unknown));
        assert_eq!(v2("/system.slice/nerdctl-@.scope"), a(Maker::Containerd));
        for other in ["/other/web", "/a/default/web", "/default", "/default/-web", "/default/we b", "/default/é"] {
            assert_eq!(v2(other), Vec::new(), "{other}");
        }
        assert_eq!(v2(&format!("/default/{}", "x".repeat(NAME_MAX + 1))), Vec::new());
    }

    #[test]
    fn hosts_programs_are_in_no_container() {
        let paths = ["/", "/init.scope", "/system.slice/docker.service", "/user.slice/user-1000.slice/session-3.scope"];
        for path in paths {
            assert_eq!(v2(path), Vec::new(), "{path}");
        }
        for almost in [&A[1..], &A.to_uppercase(), &format!("{A}0"), &format!("x{A}"), &A.replace('0', "g")] {
            assert_eq!(v2(&format!("/docker/{almost}")), Vec::new(), "{almost}");
        }
    }

    #[test]
    fn the_innermost_of_nested_containers_comes_first() {
        assert_eq!(
            v2("/docker/@/kubepods/besteffort/podx/%"),
            vec![(B.to_owned(), Maker::Unknown), (A.to_owned(), Maker::Docker)]
        );
        assert_eq!(v2("/docker/@/docker/@"), a(Maker::Docker));
    }

    #[test]
    fn the_outermost_are_found_however_deep_a_process_buries_itself() {
        let path: Vec<String> = (0..2 * DEPTH_MAX).map(|n| format!("{n:064x}")).collect();
        let found = v2(&format!("/{}", path.join("/")));
        let expected: Vec<&String> = path[..CANDIDATES_MAX].iter().rev().collect();
        assert_eq!(found.iter().map(|(id, _)| id).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn version_1_and_hybrid_name_it_in_several_trees() {
        let file = format!("12:cpu,cpuacct:/docker/{A}\n3:memory:/docker/{A}/sub\n1:name=systemd:/docker/{A}\n0::/\n");
        let found = candidates(file.as_bytes(), &[]).unwrap();
        let seat = |tree: &str| Seat { tree: Tree::V1(tree.to_owned()), path: format!("/docker/{A}") };
        let seats = ["cpu,cpuacct", "memory", "name=systemd"].map(seat).to_vec();
        assert_eq!(found, vec![Candidate { id: A.to_owned(), maker: Maker::Docker, seats }]);

        let disagree = format!("3:memory:/docker/{A}\n0::/machine.slice/libpod-{A}.scope\n");
        assert_eq!(candidates(disagree.as_bytes(), &[]).unwrap()[0].maker, Maker::Unknown);
    }

    #[test]
    fn a_cgroup_namespace_shows_what_is_outside_by_dots() {
        assert_eq!(v2("/../../docker/@"), a(Maker::Docker));
    }

    #[test]
    fn hostile_names_name_nothing() {
        assert!(candidates(b"0::/docker/\xff\n", &[]).is_err());
        assert!(candidates(b"0::/docker/\x1b\n", &[]).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>) {
            let _ = candidates(&bytes, &["default"]);
        }

        #[test]
        fn what_is_found_is_bounded_and_fit_for_a_path(path in "(/(docker|default|libpod-|[a-f0-9]{64}|[!-~]{1,9})){0,40}") {
            for candidate in candidates(format!("0::{path}\n").as_bytes(), &["default"]).unwrap() {
                prop_assert!(is_name(&candidate.id) && !candidate.seats.is_empty());
            }
        }
    }
}
