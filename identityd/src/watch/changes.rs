//! What changed between two looks at one execution, in words. Pure.

use std::fmt;
use std::sync::Arc;

use bonafide_proto::container::Container;
use bonafide_proto::fingerprint::{Digest, Evidence, Fingerprint, HashedFile, Libraries, Root, Script, Unit};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::taint::Taints;

use crate::refuse::refuse;
use crate::sys::executable::FileId;
use crate::witness::Witnessed;

/// What is believed of an execution since the last look.
#[derive(Debug, Clone)]
pub(crate) struct Believed {
    /// The file it runs.
    pub(crate) exe: FileId,
    /// Whose account pays for looking at it.
    pub(crate) account: u32,
    /// The evidence.
    pub(crate) fingerprint: Arc<Fingerprint>,
    /// The digests of its libraries, one by one.
    pub(crate) members: Arc<[Digest]>,
}

impl Believed {
    /// What this look showed.
    pub(crate) fn of(witnessed: &Witnessed) -> Self {
        let (fingerprint, members) = (Arc::new(witnessed.fingerprint.clone()), Arc::clone(&witnessed.members));
        Self { exe: witnessed.exe, account: witnessed.account, fingerprint, members }
    }

    /// Whether a look showed enough to tell what changed.
    ///
    /// # Errors
    /// `rate-limited`: code is mapped that nobody may hash now. It need not be what was there before.
    pub(crate) fn comparable(&self, now: &Self) -> Result<(), AttestRefusal> {
        match (&self.fingerprint.libraries, &now.fingerprint.libraries) {
            (Evidence::Known(_), Evidence::Unavailable(why)) => refuse(AttestReason::RateLimited, why.clone()),
            _ => Ok(()),
        }
    }

    /// What is different now; `None` if nothing is.
    ///
    /// A runtime or systemd that does not answer changes nothing: what it said before was true, and a process that
    /// changes its container or unit changes its cgroup, which needs nobody's answer.
    pub(crate) fn changed(&self, now: &Self) -> Option<String> {
        let (a, b) = (&self.fingerprint, &now.fingerprint);
        let all = [
            executable(self, now),
            root(&a.root, &b.root),
            evidence("the script", &a.script, &b.script, script),
            evidence("the libraries are", &a.libraries, &b.libraries, libraries),
            number("uid", a.uid, b.uid),
            number("gid", a.gid, b.gid),
            evidence("the cgroup", &a.cgroup, &b.cgroup, Clone::clone),
            answered(&b.unit, || unit(&a.unit, &b.unit)),
            answered(&b.container, || container(&a.container, &b.container)),
            taints(&a.taints, &b.taints),
            (a.host != b.host).then(|| "the host's identity changed".to_owned()),
        ];
        let changes: Vec<String> = all.into_iter().flatten().collect();
        (!changes.is_empty()).then(|| changes.join("; "))
    }

    /// Takes over what a look showed that changed nothing, and keeps what nobody answered then.
    pub(crate) fn refresh(&mut self, now: Self) {
        let before = std::mem::replace(self, now);
        let (kept, fresh) = (&before.fingerprint, &self.fingerprint);
        if *kept == *fresh {
            // One copy for all who share it.
            *self = before;
        } else if unanswered(&fresh.unit) || unanswered(&fresh.container) {
            let mut merged = Fingerprint::clone(fresh);
            if unanswered(&merged.unit) {
                merged.unit = kept.unit.clone();
            }
            if unanswered(&merged.container) {
                merged.container = kept.container.clone();
            }
            self.fingerprint = Arc::new(merged);
        }
    }
}

fn executable(before: &Believed, now: &Believed) -> Option<String> {
    let (a, b) = (&before.fingerprint.exe, &now.fingerprint.exe);
    if a == b {
        return (before.exe != now.exe).then(|| format!("the executable {} is another file of equal content", b.path));
    }
    Some(format!("the executable {}", moved(a, b)))
}

fn root(before: &Root, now: &Root) -> Option<String> {
    let named = |root: &Root| match root {
        Root::Host => "its root directory is the host's".to_owned(),
        Root::Within(why) | Root::Other(why) => why.clone(),
    };
    (before != now).then(|| format!("{} before, and now {}", named(before), named(now)))
}

fn moved(before: &HashedFile, now: &HashedFile) -> String {
    match (before.path == now.path, before.digest == now.digest) {
        (true, _) => format!("{} was {} and is {}", now.path, before.digest, now.digest),
        (false, true) => format!("was at {} and is at {}", before.path, now.path),
        (false, false) => {
            format!("was {} ({}) and is {} ({})", before.path, before.digest, now.path, now.digest)
        }
    }
}

fn script(script: &Script) -> String {
    match script {
        Script::File(file) => format!("{} ({})", file.path, file.digest),
        Script::Inline(digest) => format!("inline ({digest})"),
        Script::Stdin => "standard input".to_owned(),
    }
}

fn libraries(libraries: &Libraries) -> String {
    format!("{} files ({})", libraries.count, libraries.digest)
}

fn number(what: &str, before: u32, now: u32) -> Option<String> {
    (before != now).then(|| format!("{what} was {before} and is {now}"))
}

/// Two reasons for the absence of the same thing are no change.
fn evidence<T: PartialEq>(
    what: &str,
    before: &Evidence<T>,
    now: &Evidence<T>,
    name: impl Fn(&T) -> String,
) -> Option<String> {
    match (before, now) {
        (Evidence::Known(a), Evidence::Known(b)) if a == b => None,
        (Evidence::Absent(_), Evidence::Absent(_)) | (Evidence::Unavailable(_), Evidence::Unavailable(_)) => None,
        _ => Some(format!("{what} {} before and {} now", named(before, &name), named(now, &name))),
    }
}

fn named<T>(evidence: &Evidence<T>, name: impl Fn(&T) -> String) -> String {
    match evidence {
        Evidence::Known(value) => name(value),
        Evidence::Absent(why) => format!("absent ({why})"),
        Evidence::Unavailable(why) => format!("unavailable ({why})"),
    }
}

fn unanswered<T>(evidence: &Evidence<T>) -> bool {
    matches!(evidence, Evidence::Unavailable(_))
}

fn answered<T>(now: &Evidence<T>, change: impl FnOnce() -> Option<String>) -> Option<String> {
    if unanswered(now) { None } else { change() }
}

fn unit(before: &Evidence<Unit>, now: &Evidence<Unit>) -> Option<String> {
    if let (Evidence::Known(a), Evidence::Known(b)) = (before, now) {
        // An invocation that was or is not told is no other one.
        let same =
            a.name == b.name && (a.invocation == b.invocation || a.invocation.is_none() || b.invocation.is_none());
        if same {
            return None;
        }
    }
    evidence("the unit", before, now, |unit| match &unit.invocation {
        Some(invocation) => format!("{} ({invocation})", unit.name),
        None => unit.name.clone(),
    })
}

fn container(before: &Evidence<Container>, now: &Evidence<Container>) -> Option<String> {
    if let (Evidence::Known(a), Evidence::Known(b)) = (before, now) {
        // The manifests that lead to an image are the runtime's index, and no part of the container.
        if *a == (Container { manifests: a.manifests.clone(), ..b.clone() }) {
            return None;
        }
        if (&a.id, a.image) == (&b.id, b.image) {
            return Some(format!("the container {} has another name, labels or pod", b.id));
        }
    }
    evidence("the container", before, now, |container| format!("{} (image {})", container.id, container.image))
}

fn taints(before: &Taints, now: &Taints) -> Option<String> {
    let new = now.difference(before).map(|taint| Tainting { taint: taint.as_str(), word: "new" });
    let gone = before.difference(now).map(|taint| Tainting { taint: taint.as_str(), word: "gone" });
    let all: Vec<String> = new.chain(gone).map(|tainting| tainting.to_string()).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

struct Tainting {
    taint: &'static str,
    word: &'static str,
}

impl fmt::Display for Tainting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the taint {} is {}", self.taint, self.word)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use bonafide_proto::fingerprint::{Digest, Host};
    use bonafide_proto::taint::Taint;

    use super::*;

    /// What makes one fingerprint of another.
    pub(crate) type Change = Box<dyn Fn(&mut Fingerprint)>;

    /// Something believed, of a program at this path.
    pub(crate) fn believed(path: &str) -> Believed {
        let host = Host {
            bios_uuid: Evidence::Absent("none".into()),
            machine_id: Evidence::Absent("none".into()),
            node: None,
        };
        let exe = HashedFile { path: path.to_owned(), digest: Digest::of(path.as_bytes()) };
        let exe_id = FileId { dev: 1, ino: path.len() as u64 };
        let fingerprint = Arc::new(Fingerprint::of(exe, (0, 0), host));
        Believed { exe: exe_id, account: 0, fingerprint, members: Arc::default() }
    }

    /// The same, with this changed.
    pub(crate) fn with(before: &Believed, change: impl FnOnce(&mut Fingerprint)) -> Believed {
        let mut fingerprint = Fingerprint::clone(&before.fingerprint);
        change(&mut fingerprint);
        Believed { account: fingerprint.uid, fingerprint: Arc::new(fingerprint), ..before.clone() }
    }

    pub(crate) fn container_of(image: u8) -> Container {
        Container {
            runtime: "podman".into(),
            id: "abc".into(),
            name: None,
            image: Digest([image; 32]),
            image_name: None,
            manifests: Vec::new(),
            labels: BTreeMap::new(),
            pod: None,
        }
    }

    fn unit_of(name: &str, invocation: Option<&str>) -> Evidence<Unit> {
        Evidence::Known(Unit { name: name.into(), invocation: invocation.map(str::to_owned) })
    }

    fn change(before: &Believed, change: impl FnOnce(&mut Fingerprint)) -> Option<String> {
        before.changed(&with(before, change))
    }

    #[test]
    fn nothing_is_no_change() {
        let before = believed("/a");
        assert_eq!(before.changed(&before.clone()), None);
        assert_eq!(change(&before, |f| f.script = Evidence::Absent("for another reason".into())), None);
    }

    #[test]
    fn every_piece_of_evidence_counts_and_is_named() {
        let before = believed("/a");
        let file = HashedFile { path: "/a.py".into(), digest: Digest([7; 32]) };
        let cases: [(&str, Change); 9] = [
            ("the executable /a was sha256:", Box::new(|f| f.exe.digest = Digest([1; 32]))),
            ("the executable was at /a and is at /b", Box::new(|f| f.exe.path = "/b".into())),
            ("the script absent (nobody looked) before and /a.py", {
                Box::new(move |f| f.script = Evidence::Known(Script::File(file.clone())))
            }),
            ("the libraries are absent", {
                let known = Libraries { digest: Digest([3; 32]), count: 2 };
                Box::new(move |f| f.libraries = Evidence::Known(known.clone()))
            }),
            ("uid was 0 and is 7", Box::new(|f| f.uid = 7)),
            ("gid was 0 and is 7", Box::new(|f| f.gid = 7)),
            ("the cgroup absent", Box::new(|f| f.cgroup = Evidence::Known("/x".into()))),
            ("the unit absent (nobody looked) before and a.service now", {
                Box::new(|f| f.unit = unit_of("a.service", None))
            }),
            ("the taint traced is new", Box::new(|f| f.taints.extend([Taint::Traced]))),
        ];
        for (words, make) in cases {
            let changed = change(&before, make).unwrap();
            assert!(changed.contains(words), "{changed}");
        }
        let other = Believed { exe: FileId { dev: 1, ino: 77 }, ..before.clone() };
        assert!(before.changed(&other).unwrap().contains("another file"));
        let tainted = with(&before, |f| f.taints.extend([Taint::Traced]));
        assert_eq!(tainted.changed(&before).unwrap(), "the taint traced is gone");
    }

    #[test]
    fn two_changes_are_both_told() {
        let changed = change(&believed("/a"), |f| (f.uid, f.gid) = (5, 6)).unwrap();
        assert_eq!(changed, "uid was 0 and is 5; gid was 0 and is 6");
    }

    #[test]
    fn another_start_of_a_unit_is_a_change_and_silence_is_none() {
        let before = with(&believed("/a"), |f| f.unit = unit_of("a.service", Some("11")));
        assert!(change(&before, |f| f.unit = unit_of("a.service", Some("22"))).unwrap().contains("(22)"));
        assert!(change(&before, |f| f.unit = unit_of("b.service", None)).is_some());
        assert_eq!(change(&before, |f| f.unit = unit_of("a.service", None)), None);
        assert_eq!(change(&before, |f| f.unit = Evidence::Unavailable("systemd is busy".into())), None);
        assert!(change(&before, |f| f.unit = Evidence::Absent("none".into())).is_some());
    }

    #[test]
    fn another_container_or_image_is_a_change_and_a_silent_runtime_is_none() {
        let before = with(&believed("/a"), |f| f.container = Evidence::Known(container_of(1)));
        let image = change(&before, |f| f.container = Evidence::Known(container_of(2))).unwrap();
        assert!(image.contains("(image sha256:0202"), "{image}");
        let renamed = Container { name: Some("web".into()), ..container_of(1) };
        assert!(change(&before, |f| f.container = Evidence::Known(renamed)).unwrap().contains("another name"));
        let pulled = Container { manifests: vec![Digest([9; 32])], ..container_of(1) };
        assert_eq!(change(&before, |f| f.container = Evidence::Known(pulled)), None);
        assert_eq!(change(&before, |f| f.container = Evidence::Unavailable("no answer".into())), None);
        assert!(change(&before, |f| f.container = Evidence::Absent("none".into())).is_some());
    }

    #[test]
    fn libraries_that_nobody_may_hash_are_not_taken_for_the_same() {
        let known = Libraries { digest: Digest([3; 32]), count: 2 };
        let before = with(&believed("/a"), |f| f.libraries = Evidence::Known(known));
        let now = with(&before, |f| f.libraries = Evidence::Unavailable("too much was hashed".into()));
        assert_eq!(before.comparable(&now).unwrap_err().reason, AttestReason::RateLimited);
        assert_eq!(before.comparable(&before), Ok(()));
        assert_eq!(now.comparable(&now), Ok(()));
    }

    #[test]
    fn what_nobody_answers_stays_believed() {
        let mut believed = with(&believed("/a"), |f| {
            f.container = Evidence::Known(container_of(1));
            f.unit = unit_of("a.service", Some("11"));
        });
        let silent = with(&believed, |f| {
            f.container = Evidence::Unavailable("no answer".into());
            f.unit = Evidence::Unavailable("no answer".into());
        });
        believed.refresh(silent);
        assert_eq!(believed.fingerprint.container.known(), Some(&container_of(1)));
        assert!(change(&believed, |f| f.container = Evidence::Known(container_of(2))).is_some());
        assert!(change(&believed, |f| f.unit = unit_of("a.service", Some("22"))).is_some());
    }
}
