//! Which workload a fingerprint earns: all selectors of exactly one, or none.

use std::cmp::Reverse;

use bonafide_proto::fingerprint::{Evidence, Fingerprint, Root};
use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::NearMiss;
use bonafide_proto::taint::Taints;

use crate::candidates::Candidates;
use crate::evidence::{Value, seen};
use crate::explain::{Compare, Fit};
use crate::releases::changes_with_releases;
use crate::selector::{ALLOW_TAINTS, Demand, Field, Selectors};
use crate::workload::Workload;

/// The most near misses that are reported.
pub const NEAR_MAX: usize = 8;

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
    /// No workload's selectors all hold, but this one's might: all that fail are about evidence that could not be had
    /// ([`Evidence::Unavailable`]).
    Unavailable {
        /// The first such workload in the policy.
        workload: WorkloadName,
        /// Its first such selector.
        field: String,
        /// Who does not answer.
        why: String,
    },
}

/// Compares the evidence with every workload that it might earn; and, if it earns none, with others, to tell what is near.
pub(crate) fn identify(
    workloads: &[Workload],
    candidates: &Candidates,
    fingerprint: &Fingerprint,
    now: i64,
) -> Identified {
    let fits = |workload: &&Workload| compare(workload, fingerprint, now).iter().all(Compared::holds);
    let might = candidates.among(workloads, fingerprint).unwrap_or_else(|| workloads.iter().collect());
    let fitting = might.into_iter().filter(fits).map(|workload| workload.name.clone());
    match <[WorkloadName; 1]>::try_from(fitting.collect::<Vec<_>>()) {
        Ok([one]) => Identified::Workload(one),
        Err(none) if none.is_empty() => nothing(&candidates.near(workloads, fingerprint), fingerprint, now),
        Err(several) => Identified::Ambiguous(several),
    }
}

/// The evidence earns none of these.
fn nothing(workloads: &[&Workload], fingerprint: &Fingerprint, now: i64) -> Identified {
    let mut open = None;
    let mut missing: Vec<(Nearness, NearMiss)> = Vec::new();
    for workload in workloads {
        let compared = compare(workload, fingerprint, now);
        open = open.or_else(|| unavailable(&compared, &workload.name));
        missing.extend(first_miss(&compared, &workload.name).map(|miss| (nearness(&compared, fingerprint), miss)));
    }
    open.unwrap_or_else(|| Identified::Nothing { near: nearest(missing) })
}

/// The first selector of this workload that the evidence fails.
pub(crate) fn miss(workload: &Workload, fingerprint: &Fingerprint, now: i64) -> Option<NearMiss> {
    first_miss(&compare(workload, fingerprint, now), &workload.name)
}

/// A selector beside its evidence.
#[derive(Debug)]
pub(crate) struct Compared {
    field: &'static str,
    outcome: Outcome,
    expected: String,
    /// What is demanded was seen, whether or not it is believed.
    alike: bool,
    /// Anything of the kind was seen.
    seen: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Holds,
    /// Something else was seen.
    Fails(String),
    /// Nothing can be seen, because somebody does not answer.
    Unavailable(String),
}

impl Compared {
    /// A demand beside what there is to see.
    pub(crate) fn with(field: Field, demand: &Demand, seen: &Evidence<Value>) -> Self {
        let outcome = match seen {
            Evidence::Known(value) if value.meets(demand) => Outcome::Holds,
            Evidence::Known(value) => Outcome::Fails(value.shown(demand)),
            // Absent evidence never holds; what was seen is then the reason for its absence.
            Evidence::Absent(why) => Outcome::Fails(format!("nothing: {why}")),
            Evidence::Unavailable(why) => Outcome::Unavailable(why.clone()),
        };
        let alike = outcome == Outcome::Holds;
        Self { field: field.name(), outcome, expected: demand.shown(), alike, seen: matches!(seen, Evidence::Known(_)) }
    }

    /// The same, if what was seen proves nothing to this workload.
    fn unless(self, doubt: Option<String>) -> Self {
        match doubt {
            Some(why) if self.holds() => Self { outcome: Outcome::Fails(why), ..self },
            _ => self,
        }
    }

    /// The same, if something else is trusted to speak for what was seen; for what nobody sees nothing speaks.
    pub(crate) fn vouched(self, trusted: bool) -> Self {
        match self.outcome {
            Outcome::Fails(_) if trusted && self.seen => Self { outcome: Outcome::Holds, ..self },
            _ => self,
        }
    }

    pub(crate) fn field(&self) -> &'static str {
        self.field
    }

    /// The taints that are allowed beside those that were seen.
    pub(crate) fn with_taints(allowed: &Taints, seen: &Taints) -> Self {
        let outcome = if seen.is_subset(allowed) { Outcome::Holds } else { Outcome::Fails(explained(seen)) };
        Self { field: ALLOW_TAINTS, alike: outcome == Outcome::Holds, outcome, expected: listed(allowed), seen: false }
    }

    pub(crate) fn holds(&self) -> bool {
        self.outcome == Outcome::Holds
    }

    /// The same, for a person.
    pub(crate) fn explained(self) -> Compare {
        let fit = match self.outcome {
            Outcome::Holds => Fit::Holds,
            Outcome::Fails(seen) => Fit::Fails(seen),
            Outcome::Unavailable(why) => Fit::Unavailable(why),
        };
        Compare { field: self.field, expected: self.expected, fit }
    }

    fn miss(&self, of: &WorkloadName) -> Option<NearMiss> {
        let seen = match &self.outcome {
            Outcome::Holds => return None,
            Outcome::Fails(seen) => seen.clone(),
            Outcome::Unavailable(why) => format!("nothing: {why}"),
        };
        Some(NearMiss { of: of.to_string(), field: self.field.to_owned(), expected: self.expected.clone(), seen })
    }
}

/// The first of these that fails.
pub(crate) fn first_miss(compared: &[Compared], of: &WorkloadName) -> Option<NearMiss> {
    compared.iter().find_map(|c| c.miss(of))
}

fn listed(taints: &Taints) -> String {
    let taints: Vec<&str> = taints.iter().map(|taint| taint.as_str()).collect();
    if taints.is_empty() { "none".to_owned() } else { taints.join(", ") }
}

fn explained(taints: &Taints) -> String {
    let taints: Vec<String> = taints.iter().map(|taint| taint.explained()).collect();
    taints.join(", ")
}

/// If all that fails is unavailable.
fn unavailable(compared: &[Compared], workload: &WorkloadName) -> Option<Identified> {
    if compared.iter().any(|c| matches!(c.outcome, Outcome::Fails(_))) {
        return None;
    }
    compared.iter().find_map(|c| match &c.outcome {
        Outcome::Unavailable(why) => {
            Some(Identified::Unavailable { workload: workload.clone(), field: c.field.to_owned(), why: why.clone() })
        }
        Outcome::Holds | Outcome::Fails(_) => None,
    })
}

/// Greater is nearer: the same script, then the same executable, then the same image or container, then, for a process
/// that runs a script, that the workload is one too, then more selectors that hold and fewer that do not.
pub(crate) type Nearness = (bool, bool, bool, bool, usize, Reverse<usize>);

pub(crate) fn nearness(compared: &[Compared], of: &Fingerprint) -> Nearness {
    let alike = |field: Field| compared.iter().any(|c| c.alike && c.field == field.name());
    let asks = |fields: &[Field]| compared.iter().any(|c| fields.iter().any(|field| c.field == field.name()));
    let code = matches!(of.script, Evidence::Known(_));
    let scripts = code && asks(&[Field::Script, Field::ScriptSha256, Field::InlineSha256]);
    let holding = compared.iter().filter(|c| c.holds()).count();
    (
        alike(Field::Script) || alike(Field::InlineSha256),
        alike(Field::Exe),
        alike(Field::Image) || alike(Field::Container) || alike(Field::Pod),
        scripts,
        holding,
        Reverse(compared.len() - holding),
    )
}

fn nearest(mut missing: Vec<(Nearness, NearMiss)>) -> Vec<NearMiss> {
    // Stable: equally near ones stay in the order of the file.
    missing.sort_by_key(|(nearness, _)| Reverse(*nearness));
    missing.truncate(NEAR_MAX);
    missing.into_iter().map(|(_, miss)| miss).collect()
}

/// Every selector that is given, in the order in which a person would look; then the taints. `now` in unix seconds.
pub(crate) fn compare(workload: &Workload, of: &Fingerprint, now: i64) -> Vec<Compared> {
    compared(workload, of, now, |field| workload.trusts(of.release, field))
}

/// The same, as if everything were vouched for that changes from release to release.
pub(crate) fn compare_vouched(workload: &Workload, of: &Fingerprint, now: i64) -> Vec<Compared> {
    compared(workload, of, now, changes_with_releases)
}

fn compared(workload: &Workload, of: &Fingerprint, now: i64, vouched: impl Fn(Field) -> bool) -> Vec<Compared> {
    let selectors = &workload.selectors;
    let believed = |field: Field| disowned(selectors, field, of).unwrap_or_else(|| seen(field, of));
    let demands = selectors.demands.iter().map(|(field, demand)| {
        Compared::with(*field, &workload.demand(demand, now), &believed(*field))
            .vouched(vouched(*field))
            .unless(elsewhere(selectors, *field, of))
    });
    demands.chain([Compared::with_taints(&selectors.allow_taints, &of.taints)]).collect()
}

/// Why a path is none of the host's, to a workload that means programs of the host.
fn elsewhere(selectors: &Selectors, field: Field, of: &Fingerprint) -> Option<String> {
    let why = match (&of.root, field) {
        (Root::Within(why), Field::Script) | (Root::Other(why), Field::Exe | Field::Script) => why,
        _ => return None,
    };
    let (path, digest) = match field {
        Field::Script => (&of.script_file()?.path, Field::ScriptSha256),
        _ => (&of.exe.path, Field::Sha256),
    };
    let more = format!("image, container, unit or {}", digest.name());
    let doubt = || format!("{path}, but {why}, so that is no path of the host; give the workload {more} too");
    (!selectors.reach_beyond(field)).then(doubt)
}

/// What a user's own runtime says is that user's word: nothing to a workload that does not name that runtime.
fn disowned(selectors: &Selectors, field: Field, of: &Fingerprint) -> Option<Evidence<Value>> {
    let runtime = &of.container.known().filter(|container| container.is_of_user())?.runtime;
    let named = matches!(selectors.demands.get(&Field::Runtime), Some(Demand::Text(named)) if named == runtime);
    if named || !Field::OF_CONTAINERS.contains(&field) {
        return None;
    }
    Some(Evidence::Absent(format!("its container is only known to {runtime}, which the workload does not name")))
}

#[cfg(test)]
mod tests {
    use bonafide_proto::container::{Container, Pod};
    use bonafide_proto::fingerprint::{Digest, HashedFile, Host, Libraries, Script, Unit};
    use bonafide_proto::taint::Taint;

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
        let host = Host { bios_uuid: absent("none"), machine_id: absent("none"), node: None };
        Fingerprint {
            script: Evidence::Absent("it is no interpreter".into()),
            unit: Evidence::Known(Unit { name: "nginx.service".into(), invocation: None }),
            ..Fingerprint::of(file("/usr/sbin/nginx", 1), (33, 33), host)
        }
    }

    fn python(script: &str, byte: u8) -> Fingerprint {
        let exe = file("/usr/bin/python3.11", 9);
        Fingerprint { exe, script: Evidence::Known(Script::File(file(script, byte))), ..nginx() }
    }

    /// The same in a container of a pod, on the node `a`.
    fn contained() -> Fingerprint {
        let labels = |text: &str| [("app".to_owned(), text.to_owned()), ("tier".to_owned(), "1".to_owned())].into();
        let pod = Pod {
            namespace: "shop".into(),
            name: "web-0".into(),
            uid: "u".into(),
            service_account: Some("web".into()),
            labels: labels("podded"),
        };
        let container = Container {
            runtime: "containerd".into(),
            id: "0123".into(),
            name: Some("web".into()),
            image: digest(20),
            image_name: Some("docker.io/library/nginx:1.27".into()),
            manifests: vec![digest(21), digest(22)],
            labels: labels("contained"),
            pod: Some(pod),
        };
        let mut seen = nginx();
        seen.host.node = Some("a".parse().unwrap());
        let libraries = Evidence::Known(Libraries { digest: digest(30), count: 3 });
        Fingerprint { container: Evidence::Known(container), libraries, ..seen }
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
    fn a_users_own_runtime_convinces_only_who_names_it() {
        let image = format!("image = \"{}\"", digest(20));
        let mut theirs = contained();
        if let Evidence::Known(container) = &mut theirs.container {
            container.runtime = "podman:1000".into();
        }
        let missed = near(&[&image], &theirs);
        assert_eq!(
            missed[0].seen,
            "nothing: its container is only known to podman:1000, which the workload does not name"
        );
        let named = |runtime: &str| format!("{image}\nruntime = \"{runtime}\"");
        assert_eq!(identify(&[&named("podman:1000")], &theirs), earned("w0"));
        for other in ["podman", "podman:1001", "docker:1000"] {
            assert_eq!(near(&[&named(other)], &theirs)[0].field, "image", "{other}");
            assert_eq!(near(&[&named(other)], &contained())[0].field, "runtime", "{other}");
        }
        assert_eq!(identify(&["exe = \"/usr/sbin/nginx\""], &theirs), earned("w0"));
    }

    #[test]
    fn what_another_root_directory_shows_at_a_path_is_no_program_of_the_host() {
        let why = "its root directory is another than the host's, as in a container";
        let (exe, script) = ("exe = \"/usr/bin/python3.11\"", "script = \"/srv/app.py\"");
        let mut there = Fingerprint { script: python("/srv/app.py", 5).script, ..contained() };
        there.exe = file("/usr/bin/python3.11", 9);
        assert_eq!(identify(&[&format!("{exe}\n{script}\nuid = 33")], &there), earned("w0"));
        there.root = Root::Other(why.into());
        let remedy = |path: &str, digest: &str| {
            let more = format!("image, container, unit or {digest}");
            format!("{path}, but {why}, so that is no path of the host; give the workload {more} too")
        };
        let (exe_seen, script_seen) = (remedy("/usr/bin/python3.11", "sha256"), remedy("/srv/app.py", "script_sha256"));
        for narrow in ["uid = 33", "runtime = \"containerd\"", "nodes = \"a\"", "libraries = \"{}\""] {
            let narrow = narrow.replace("{}", &digest(30).to_string());
            let missed = near(&[&format!("{exe}\n{narrow}"), &format!("{script}\n{narrow}")], &there);
            let expected = [
                miss("w1", "script", "/srv/app.py", &script_seen),
                miss("w0", "exe", "/usr/bin/python3.11", &exe_seen),
            ];
            assert_eq!(missed, expected, "{narrow}");
        }
        // Its own digest tells only of that file.
        let (exe_too, script_too) =
            (format!("sha256 = \"{}\"", digest(9)), format!("script_sha256 = \"{}\"", digest(5)));
        assert_eq!(near(&[&format!("{exe}\n{script}\n{exe_too}")], &there)[0].field, "script");
        assert_eq!(near(&[&format!("{exe}\n{script}\n{script_too}")], &there)[0].field, "exe");
        assert_eq!(identify(&[&format!("{exe}\n{script}\n{exe_too}\n{script_too}")], &there), earned("w0"));
        for more in ["image_name = \"docker.io/library/nginx:1.27\"", "container = \"web\"", "pod = \"web-0\""] {
            assert_eq!(identify(&[&format!("{exe}\n{script}\n{more}")], &there), earned("w0"), "{more}");
        }
        assert_eq!(identify(&[&format!("{exe}\n{script}\nunit = \"nginx.service\"")], &there), earned("w0"));
        // Confined to a directory of the host: its executable is still the host's.
        there.root = Root::Within("its root directory is /jail".into());
        assert_eq!(identify(&[exe], &there), earned("w0"));
        assert_eq!(near(&[script], &there)[0].field, "script");
        // Another path is just another path.
        there.root = Root::Other(why.into());
        assert_eq!(near(&["exe = \"/usr/bin/other\""], &there)[0].seen, "/usr/bin/python3.11");
    }

    #[test]
    fn a_program_of_the_host_and_its_like_in_a_container_are_two_workloads() {
        let (host, there) = ("exe = \"/usr/sbin/nginx\"", "exe = \"/usr/sbin/nginx\"\ncontainer = \"web\"");
        let in_container = Fingerprint { root: Root::Other("a container".into()), ..contained() };
        assert_eq!(identify(&[host, there], &nginx()), earned("w0"));
        assert_eq!(identify(&[host, there], &in_container), earned("w1"));
    }

    #[test]
    fn every_selector_of_containers_libraries_and_hosts_holds_or_misses() {
        let (config, manifest) = (digest(20), digest(22));
        for (field, right, wrong) in [
            ("image", format!("\"{config}\""), format!("\"{}\"", digest(1))),
            ("image", format!("[\"{}\", \"{manifest}\"]", digest(1)), format!("\"{}\"", digest(23))),
            ("libraries", format!("\"{}\"", digest(30)), format!("\"{}\"", digest(31))),
            ("image_name", "\"docker.io/library/nginx:1.27\"".into(), "\"nginx:1.27\"".into()),
            ("container", "\"web\"".into(), "\"web2\"".into()),
            ("runtime", "\"containerd\"".into(), "\"docker\"".into()),
            ("container_labels", "{ app = \"contained\" }".into(), "{ app = \"contained\", tier = \"2\" }".into()),
            ("pod_namespace", "\"shop\"".into(), "\"shop2\"".into()),
            ("pod", "\"web-0\"".into(), "\"web-1\"".into()),
            ("service_account", "\"web\"".into(), "\"default\"".into()),
            ("pod_labels", "{ app = \"podded\", tier = \"1\" }".into(), "{ app = \"contained\" }".into()),
            ("gid", "33".into(), "34".into()),
            ("nodes", "[\"a\", \"b\"]".into(), "[\"b\", \"c\"]".into()),
        ] {
            let workload = |value: &str| format!("exe = \"/usr/sbin/nginx\"\n{field} = {value}");
            assert_eq!(identify(&[&workload(&right)], &contained()), earned("w0"), "{field} = {right}");
            let missed = near(&[&workload(&wrong)], &contained());
            assert_eq!(missed.iter().map(|m| m.field.as_str()).collect::<Vec<_>>(), [field], "{field} = {wrong}");
            if !matches!(field, "gid") {
                assert_eq!(near(&[&workload(&right)], &nginx())[0].field, field, "absent evidence");
            }
        }
    }

    #[test]
    fn labels_are_shown_as_far_as_they_were_asked_for() {
        let workload = "exe = \"/usr/sbin/nginx\"\ncontainer_labels = { app = \"shop\", owner = \"me\" }";
        assert_eq!(
            near(&[workload], &contained()),
            [miss("w0", "container_labels", "app=shop, owner=me", "app=contained, no owner")]
        );
    }

    #[test]
    fn code_of_a_command_line_is_known_by_its_digest_which_answers_its_taint() {
        let mut inline = python("/srv/app.py", 1);
        inline.script = Evidence::Known(Script::Inline(digest(5)));
        inline.taints.insert(Taint::NoScript);
        let workload = |byte| format!("exe = \"/usr/bin/python3.11\"\ninline_sha256 = \"{}\"", digest(byte));
        assert_eq!(identify(&[&workload(5)], &inline), earned("w0"));
        assert_eq!(near(&[&workload(6)], &inline)[0].field, "inline_sha256");
        assert_eq!(near(&[&workload(5)], &python("/srv/app.py", 5))[0].seen, "nothing: it runs a script file");
        // Other taints stay what they are.
        inline.taints.insert(Taint::Traced);
        let expected = [miss("w0", "allow_taints", "no-script", "traced, no-script")];
        assert_eq!(near(&[&workload(5)], &inline), expected);
    }

    #[test]
    fn every_taint_must_be_allowed() {
        let mut tainted = nginx();
        tainted.taints = [Taint::Preload, Taint::Traced].into();
        let workload = |allowed: &str| format!("exe = \"/usr/sbin/nginx\"\n{allowed}");
        let allowing_one = workload("allow_taints = \"preload\"");
        assert_eq!(near(&[&workload("")], &tainted), [miss("w0", "allow_taints", "none", "preload, traced")]);
        assert_eq!(near(&[&allowing_one], &tainted), [miss("w0", "allow_taints", "preload", "preload, traced")]);
        assert_eq!(identify(&[&workload("allow_taints = [\"traced\", \"preload\"]")], &tainted), earned("w0"));
        // Allowed is not demanded.
        assert_eq!(identify(&[&allowing_one], &nginx()), earned("w0"));
    }

    #[test]
    fn evidence_that_could_not_be_had_is_told_from_evidence_that_is_not_there() {
        let mut dark = nginx();
        dark.container = Evidence::Unavailable("docker does not answer".into());
        let image = format!("image = \"{}\"", digest(20));
        let unavailable = |of: &str, field: &str| Identified::Unavailable {
            workload: of.parse().unwrap(),
            field: field.into(),
            why: "docker does not answer".into(),
        };
        assert_eq!(identify(&["exe = \"/bin/x\"", &image], &dark), unavailable("w1", "image"));
        let two = format!("exe = \"/usr/sbin/nginx\"\n{image}\npod = \"p\"");
        assert_eq!(identify(&[&two], &dark), unavailable("w0", "image"));
        // Something else fails for certain, or another workload fits: nobody has to answer.
        let other = near(&[&format!("uid = 7\n{image}")], &dark);
        assert_eq!(other[0].field, "image");
        assert_eq!(identify(&["exe = \"/usr/sbin/nginx\"", &image], &dark), earned("w0"));
        dark.taints.insert(Taint::Deleted);
        assert!(matches!(identify(&[&image], &dark), Identified::Nothing { .. }));
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
