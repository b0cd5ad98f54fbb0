//! Every workload held against the evidence, nearest first: what holds, what does not, and what was seen instead.
//!
//! The comparison is the one that [`crate::Policy::identify`] decides by.

use std::cmp::Reverse;

use bonafide_proto::fingerprint::Fingerprint;
use bonafide_proto::name::WorkloadName;

use crate::identify::{Compared, compare, nearness};
use crate::workload::Workload;

/// A workload beside the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Which.
    pub workload: WorkloadName,
    /// Every selector it has, in the order in which a person would look, and last the taints it allows.
    pub selectors: Vec<Compare>,
}

/// A selector beside the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// As policies write it.
    pub field: &'static str,
    /// What it demands.
    pub expected: String,
    /// Whether that was seen.
    pub fit: Fit,
}

/// Whether a selector holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// It does.
    Holds,
    /// It does not: this was seen.
    Fails(String),
    /// Nobody can say: this is who does not answer.
    Unavailable(String),
}

impl Explained {
    /// Whether the evidence earns it, as far as this workload is concerned.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.selectors.iter().all(|selector| selector.fit == Fit::Holds)
    }
}

/// All workloads, the nearest first; equally near ones as in the file.
pub(crate) fn explain(workloads: &[Workload], of: &Fingerprint, now: i64) -> Vec<Explained> {
    let mut all: Vec<_> = workloads.iter().map(|workload| (workload, compare(workload, of, now))).collect();
    all.sort_by_cached_key(|(_, compared)| {
        (Reverse(compared.iter().all(Compared::holds)), Reverse(nearness(compared, of)))
    });
    let explained = |(workload, compared): (&Workload, Vec<Compared>)| {
        let selectors = compared.into_iter().map(Compared::explained).collect();
        Explained { workload: workload.name.clone(), selectors }
    };
    all.into_iter().map(explained).collect()
}

#[cfg(test)]
mod tests {
    use bonafide_proto::fingerprint::{Digest, Evidence, HashedFile, Host, Script};
    use bonafide_proto::taint::Taint;

    use super::*;
    use crate::{Identified, Policy};

    const POLICY: &str = r#"
        mode = "enforce"
        [[workload]]
        name = "far"
        exe = "/usr/sbin/nginx"
        uid = 0
        [[workload]]
        name = "near"
        exe = "/usr/bin/python3.11"
        script = "/srv/b.py"
        uid = 34
        [[workload]]
        name = "contained"
        exe = "/usr/bin/python3.11"
        container = "web"
        [[workload]]
        name = "earned"
        script = "/srv/a.py"
        uid = 33
    "#;

    fn seen() -> Fingerprint {
        let file = |path: &str| HashedFile { path: path.into(), digest: Digest([1; 32]) };
        let absent = || Evidence::Absent("none".to_owned());
        let host = Host { bios_uuid: absent(), machine_id: absent(), node: None };
        Fingerprint {
            script: Evidence::Known(Script::File(file("/srv/a.py"))),
            container: Evidence::Unavailable("docker does not answer".into()),
            ..Fingerprint::of(file("/usr/bin/python3.11"), (33, 33), host)
        }
    }

    #[test]
    fn every_workload_is_explained_with_every_selector_and_the_nearest_is_first() {
        let policy = Policy::parse("p", POLICY).unwrap();
        let all = policy.explain(&seen());
        let names: Vec<_> = all.iter().map(|explained| explained.workload.as_str()).collect();
        assert_eq!(names, ["earned", "near", "contained", "far"]);
        assert!(all[0].holds() && !all[1].holds());
        let Identified::Workload(earned) = policy.identify(&seen()) else { panic!("nothing earned") };
        assert_eq!(earned, all[0].workload);

        let fails = |seen: &str| Fit::Fails(seen.to_owned());
        let near: Vec<_> = all[1].selectors.iter().map(|s| (s.field, s.expected.as_str(), s.fit.clone())).collect();
        let expected = [
            ("exe", "/usr/bin/python3.11", Fit::Holds),
            ("script", "/srv/b.py", fails("/srv/a.py")),
            ("uid", "34", fails("33")),
            ("allow_taints", "none", Fit::Holds),
        ];
        assert_eq!(near, expected);
        assert_eq!(all[2].selectors[1].fit, Fit::Unavailable("docker does not answer".into()));
    }

    #[test]
    fn a_taint_that_nobody_allows_is_a_selector_that_fails() {
        let mut tainted = seen();
        tainted.taints.insert(Taint::Traced);
        let all = Policy::parse("p", POLICY).unwrap().explain(&tainted);
        assert_eq!(all[0].workload.as_str(), "earned");
        assert_eq!(all[0].selectors.last().unwrap().fit, Fit::Fails("traced".into()));
        assert!(all.iter().all(|explained| !explained.holds()));
    }
}
