//! Which workload a fingerprint earns: all selectors of exactly one, or none.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use bonafide_proto::fingerprint::{Digest, Evidence, Fingerprint, HashedFile};
use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::NearMiss;

use crate::workload::{Selectors, Workload};

/// The most near misses that are reported.
pub const NEAR_MAX: usize = 8;
/// The most digests that a near miss writes out.
const DIGESTS_SHOWN_MAX: usize = 4;

/// What the evidence earned.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identified {
    /// Every selector of this workload holds, and of no other.
    Workload(WorkloadName),
    /// No workload's selectors all hold.
    Nothing {
        /// For each of the nearest workloads the first selector that failed; nearest first, at most [`NEAR_MAX`].
        near: Vec<NearMiss>,
    },
    /// The selectors of several hold: earned none of them, for there is no telling which was meant.
    Ambiguous(Vec<WorkloadName>),
}

/// Compares the evidence with every workload.
pub(crate) fn identify(workloads: &[Workload], fingerprint: &Fingerprint) -> Identified {
    let mut fitting = Vec::new();
    let mut missing: Vec<(Nearness, NearMiss)> = Vec::new();
    for workload in workloads {
        let compared = compare(&workload.selectors, fingerprint);
        match compared.iter().find_map(|c| c.miss(workload)) {
            None => fitting.push(workload.name.clone()),
            Some(miss) => missing.push((nearness(&compared, fingerprint), miss)),
        }
    }
    match <[WorkloadName; 1]>::try_from(fitting) {
        Ok([one]) => Identified::Workload(one),
        Err(none) if none.is_empty() => Identified::Nothing { near: nearest(missing) },
        Err(several) => Identified::Ambiguous(several),
    }
}

/// The first selector of this workload that the evidence fails.
pub(crate) fn miss(workload: &Workload, fingerprint: &Fingerprint) -> Option<NearMiss> {
    compare(&workload.selectors, fingerprint).iter().find_map(|c| c.miss(workload))
}

/// A selector beside its evidence.
struct Compared {
    field: &'static str,
    holds: bool,
    expected: String,
    seen: String,
}

impl Compared {
    fn miss(&self, workload: &Workload) -> Option<NearMiss> {
        (!self.holds).then(|| NearMiss {
            of: workload.name.to_string(),
            field: self.field.to_owned(),
            expected: self.expected.clone(),
            seen: self.seen.clone(),
        })
    }
}

/// Greater is nearer: the same script, then the same executable, then, for a process that runs a script, that the
/// workload is one too, then more selectors that hold and fewer that do not.
type Nearness = (bool, bool, bool, usize, Reverse<usize>);

fn nearness(compared: &[Compared], seen: &Fingerprint) -> Nearness {
    let holds = |field| compared.iter().any(|c| c.holds && c.field == field);
    let asks = |field| compared.iter().any(|c| c.field == field);
    let scripts = matches!(seen.script, Evidence::Known(_)) && (asks("script") || asks("script_sha256"));
    let holding = compared.iter().filter(|c| c.holds).count();
    (holds("script"), holds("exe"), scripts, holding, Reverse(compared.len() - holding))
}

fn nearest(mut missing: Vec<(Nearness, NearMiss)>) -> Vec<NearMiss> {
    // Stable: equally near ones stay in the order of the file.
    missing.sort_by_key(|(nearness, _)| Reverse(*nearness));
    missing.truncate(NEAR_MAX);
    missing.into_iter().map(|(_, miss)| miss).collect()
}

/// Every selector that is given, in the order in which a person would look.
fn compare(selectors: &Selectors, seen: &Fingerprint) -> Vec<Compared> {
    let exe = Evidence::Known(seen.exe.clone());
    [
        selectors.exe.as_ref().map(|path| path_of("exe", path, &exe)),
        selectors.sha256.as_ref().map(|digests| digest_of("sha256", digests, &exe)),
        selectors.script.as_ref().map(|path| path_of("script", path, &seen.script)),
        selectors.script_sha256.as_ref().map(|digests| digest_of("script_sha256", digests, &seen.script)),
        selectors.unit.as_ref().map(|unit| text_of("unit", unit, &seen.unit)),
        selectors.uid.map(|uid| text_of("uid", &uid.to_string(), &Evidence::Known(seen.uid.to_string()))),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn path_of(field: &'static str, expected: &str, seen: &Evidence<HashedFile>) -> Compared {
    let (holds, seen) = against(seen, |file| (file.path == expected, file.path.clone()));
    Compared { field, holds, expected: expected.to_owned(), seen }
}

fn digest_of(field: &'static str, expected: &BTreeSet<Digest>, seen: &Evidence<HashedFile>) -> Compared {
    let (holds, seen) = against(seen, |file| (expected.contains(&file.digest), file.digest.to_string()));
    Compared { field, holds, expected: listed(expected), seen }
}

fn text_of(field: &'static str, expected: &str, seen: &Evidence<String>) -> Compared {
    let (holds, seen) = against(seen, |text| (text == expected, text.clone()));
    Compared { field, holds, expected: expected.to_owned(), seen }
}

/// Absent evidence never holds; what was seen is then the reason for its absence.
fn against<T>(seen: &Evidence<T>, test: impl FnOnce(&T) -> (bool, String)) -> (bool, String) {
    match seen {
        Evidence::Known(value) => test(value),
        Evidence::Absent(why) => (false, format!("nothing: {why}")),
    }
}

fn listed(digests: &BTreeSet<Digest>) -> String {
    let shown: Vec<String> = digests.iter().take(DIGESTS_SHOWN_MAX).map(ToString::to_string).collect();
    match digests.len().saturating_sub(DIGESTS_SHOWN_MAX) {
        0 => shown.join(" or "),
        more => format!("{} or {more} more", shown.join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use bonafide_proto::fingerprint::Host;

    use super::*;
    use crate::Policy;

    fn digest(byte: u8) -> Digest {
        Digest([byte; 32])
    }

    fn file(path: &str, byte: u8) -> HashedFile {
        HashedFile { path: path.into(), digest: digest(byte) }
    }

    /// `/usr/sbin/nginx` of digest 1, no script, uid 33, in `nginx.service`.
    fn nginx() -> Fingerprint {
        let absent = |why: &str| Evidence::Absent(why.to_owned());
        Fingerprint {
            exe: file("/usr/sbin/nginx", 1),
            script: Evidence::Absent("it is no interpreter".into()),
            uid: 33,
            gid: 33,
            cgroup: absent("none"),
            unit: Evidence::Known("nginx.service".into()),
            host: Host { bios_uuid: absent("none"), machine_id: absent("none"), node: None },
        }
    }

    fn python(script: &str, byte: u8) -> Fingerprint {
        let exe = file("/usr/bin/python3.11", 9);
        Fingerprint { exe, script: Evidence::Known(file(script, byte)), ..nginx() }
    }

    /// A policy of workloads named `w0`, `w1` and so on.
    fn identify(workloads: &[&str], fingerprint: &Fingerprint) -> Identified {
        let mut text = "mode = \"enforce\"\n".to_owned();
        for (i, selectors) in workloads.iter().enumerate() {
            text.push_str(&format!("[[workload]]\nname = \"w{i}\"\n{selectors}\n"));
        }
        Policy::parse("p", &text).unwrap().identify(fingerprint)
    }

    fn near(workloads: &[&str], fingerprint: &Fingerprint) -> Vec<NearMiss> {
        match identify(workloads, fingerprint) {
            Identified::Nothing { near } => near,
            other => panic!("{other:?}"),
        }
    }

    fn earned(name: &str) -> Identified {
        Identified::Workload(name.parse().unwrap())
    }

    fn miss(of: &str, field: &str, expected: &str, seen: &str) -> NearMiss {
        NearMiss { of: of.into(), field: field.into(), expected: expected.into(), seen: seen.into() }
    }

    #[test]
    fn every_given_selector_must_hold() {
        let all = format!(
            "exe = \"/usr/sbin/nginx\"\nsha256 = [\"{}\", \"{}\"]\nunit = \"nginx.service\"\nuid = 33",
            digest(7),
            digest(1)
        );
        assert_eq!(identify(&[&all], &nginx()), earned("w0"));
        for (from, to, field) in [
            ("/usr/sbin/nginx", "/usr/sbin/nginx2", "exe"),
            (digest(1).to_string().as_str(), digest(2).to_string().as_str(), "sha256"),
            ("nginx.service", "nginx2.service", "unit"),
            ("33", "34", "uid"),
        ] {
            let near = near(&[&all.replace(from, to)], &nginx());
            assert_eq!(near.iter().map(|m| m.field.as_str()).collect::<Vec<_>>(), [field]);
        }
    }

    #[test]
    fn each_code_selector_alone_is_enough() {
        let app = python("/srv/app.py", 5);
        for selector in [
            "exe = \"/usr/bin/python3.11\"".to_owned(),
            format!("sha256 = \"{}\"", digest(9)),
            "script = \"/srv/app.py\"".to_owned(),
            format!("script_sha256 = \"{}\"", digest(5)),
            "unit = \"nginx.service\"".to_owned(),
        ] {
            assert_eq!(identify(&[&selector], &app), earned("w0"), "{selector}");
        }
    }

    #[test]
    fn a_changed_program_shows_expected_and_seen_digest() {
        let workload = format!("exe = \"/usr/sbin/nginx\"\nsha256 = [\"{}\", \"{}\"]", digest(3), digest(2));
        let expected = format!("{} or {}", digest(2), digest(3));
        assert_eq!(near(&[&workload], &nginx()), [miss("w0", "sha256", &expected, &digest(1).to_string())]);
        // Also where the digest is all there is.
        let workload = format!("sha256 = \"{}\"", digest(2));
        let expected = [miss("w0", "sha256", &digest(2).to_string(), &digest(1).to_string())];
        assert_eq!(near(&[&workload], &nginx()), expected);
    }

    #[test]
    fn absent_evidence_never_matches_and_says_why() {
        let mut bare = nginx();
        bare.unit = Evidence::Absent("no systemd here".into());
        let workloads =
            ["unit = \"nginx.service\"", "script = \"/srv/a.py\"", &format!("script_sha256 = \"{}\"", digest(1))];
        assert_eq!(
            near(&workloads, &bare),
            [
                miss("w0", "unit", "nginx.service", "nothing: no systemd here"),
                miss("w1", "script", "/srv/a.py", "nothing: it is no interpreter"),
                miss("w2", "script_sha256", &digest(1).to_string(), "nothing: it is no interpreter"),
            ]
        );
        // Not even against a policy that names the words of the reason.
        bare.unit = Evidence::Absent("nginx.service".into());
        assert_eq!(near(&["unit = \"nginx.service\""], &bare).len(), 1);
    }

    #[test]
    fn several_fitting_workloads_earn_none() {
        let workloads = ["exe = \"/usr/sbin/nginx\"", "exe = \"/usr/bin/other\"", "unit = \"nginx.service\""];
        let both = ["w0", "w2"].map(|name| name.parse().unwrap()).to_vec();
        assert_eq!(identify(&workloads, &nginx()), Identified::Ambiguous(both));
    }

    #[test]
    fn two_scripts_of_one_interpreter_are_told_apart() {
        let exe = "exe = \"/usr/bin/python3.11\"\nscript =";
        let (a, b) = (format!("{exe} \"/srv/a.py\""), format!("{exe} \"/srv/b.py\""));
        let workloads = [a.as_str(), b.as_str()];
        assert_eq!(identify(&workloads, &python("/srv/b.py", 1)), earned("w1"));
        assert_eq!(
            near(&workloads, &python("/srv/c.py", 1)),
            [miss("w0", "script", "/srv/a.py", "/srv/c.py"), miss("w1", "script", "/srv/b.py", "/srv/c.py")]
        );
    }

    #[test]
    fn nearest_by_script_then_executable_then_count() {
        let workloads = [
            "unit = \"nginx.service\"\nuid = 33\nexe = \"/bin/other\"",
            "exe = \"/usr/bin/python3.11\"\nuid = 1",
            "exe = \"/usr/bin/python3.11\"\nunit = \"nginx.service\"\nuid = 2",
            &format!("script = \"/srv/app.py\"\nscript_sha256 = \"{}\"", digest(2)),
            "exe = \"/bin/nothing/alike\"",
        ];
        let order: Vec<String> = near(&workloads, &python("/srv/app.py", 1)).into_iter().map(|m| m.of).collect();
        assert_eq!(order, ["w3", "w2", "w1", "w0", "w4"]);
    }

    #[test]
    fn a_strange_script_is_nearer_to_scripts_than_to_other_executables() {
        let workloads = ["exe = \"/bin/other\"\nuid = 33", "script = \"/srv/app.py\""];
        let near_of = |fingerprint: &Fingerprint| near(&workloads, fingerprint).into_iter().map(|m| m.of);
        assert_eq!(near_of(&python("/tmp/stranger.py", 1)).collect::<Vec<_>>(), ["w1", "w0"]);
        assert_eq!(near_of(&nginx()).collect::<Vec<_>>(), ["w0", "w1"]);
    }

    #[test]
    fn near_misses_and_digests_are_bounded() {
        let many: Vec<String> = (0..NEAR_MAX + 3).map(|i| format!("exe = \"/bin/{i}\"")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(near(&many, &nginx()).len(), NEAR_MAX);
        let digests: Vec<String> = (10..20).map(|byte| format!("\"{}\"", digest(byte))).collect();
        let near = near(&[&format!("sha256 = [{}]", digests.join(","))], &nginx());
        assert!(near[0].expected.ends_with(" or 6 more"), "{near:?}");
    }

    #[test]
    fn one_workload_is_compared_however_far_it_is() {
        let mut text = "mode = \"enforce\"\n".to_owned();
        for i in 0..NEAR_MAX {
            text.push_str(&format!("[[workload]]\nname = \"near{i}\"\nexe = \"/usr/sbin/nginx\"\nuid = {i}\n"));
        }
        text.push_str("[[workload]]\nname = \"far\"\nexe = \"/far\"\nuid = 1\n");
        text.push_str("[[workload]]\nname = \"fits\"\nexe = \"/usr/sbin/nginx\"\nunit = \"nginx.service\"\n");
        text.push_str("[[outside]]\nname = \"internet\"\nprefixes = [\"192.0.2.0/24\"]\n");
        let policy = Policy::parse("p", &text).unwrap();
        let of = |name: &str| policy.miss_of(&name.parse().unwrap(), &nginx());
        assert_eq!(of("far"), Some(miss("far", "exe", "/far", "/usr/sbin/nginx")));
        assert_eq!(of("near3"), Some(miss("near3", "uid", "3", "33")));
        assert_eq!(of("fits"), None);
        assert_eq!(of("unknown"), None);
        let known = ["far", "fits", "unknown", "internet"].map(|name| policy.knows(&name.parse().unwrap()));
        assert_eq!(known, [true, true, false, false]);
    }

    #[test]
    fn an_empty_policy_knows_nobody() {
        assert_eq!(near(&[], &nginx()), []);
    }
}
