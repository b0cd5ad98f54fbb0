//! Digests that nobody may be attested with. Pure.

use std::collections::BTreeSet;

use bonafide_proto::fingerprint::{Digest, Fingerprint, Script};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use super::changes::Believed;
use crate::refuse::refuse;
use crate::witness::Witnessed;

/// What a program is known by: its evidence, and the digests of its libraries one by one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Digests<'a>(&'a Fingerprint, &'a [Digest]);

/// What this program is known by.
pub(crate) fn of(witnessed: &Witnessed) -> Digests<'_> {
    Digests(&witnessed.fingerprint, &witnessed.members)
}

impl Believed {
    /// What it is known by.
    pub(crate) fn digests(&self) -> Digests<'_> {
        Digests(&self.fingerprint, &self.members)
    }
}

/// Nothing of it may be in quarantine: its executable, its script, its libraries, its container's image.
///
/// # Errors
/// `quarantined`.
pub(crate) fn unquarantined(program: Digests<'_>, quarantined: &BTreeSet<Digest>) -> Result<(), AttestRefusal> {
    if quarantined.is_empty() {
        return Ok(());
    }
    let Digests(fingerprint, members) = program;
    let all = fingerprint.digests().chain(members.iter().copied());
    match all.into_iter().find(|digest| quarantined.contains(digest)) {
        None => Ok(()),
        Some(digest) => {
            let what = name(fingerprint, digest);
            refuse(AttestReason::Quarantined, format!("{what}, {digest}, is in quarantine"))
        }
    }
}

fn name(fingerprint: &Fingerprint, digest: Digest) -> String {
    if fingerprint.exe.digest == digest {
        return format!("its executable {}", fingerprint.exe.path);
    }
    match fingerprint.script.known() {
        Some(Script::File(file)) if file.digest == digest => return format!("its script {}", file.path),
        Some(Script::Inline(inline)) if *inline == digest => return "the code in its command line".to_owned(),
        _ => {}
    }
    if fingerprint.libraries.known().is_some_and(|libraries| libraries.digest == digest) {
        return "the set of its libraries".to_owned();
    }
    // People know an image by the digest of its manifest.
    match fingerprint.container.known() {
        Some(container) if container.image == digest || container.manifests.contains(&digest) => {
            format!("the image of its container {}", container.id)
        }
        _ => "one of its libraries".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bonafide_proto::container::Container;
    use bonafide_proto::fingerprint::{Evidence, HashedFile, Libraries};

    use super::super::changes::tests::{Change, believed, container_of, with};
    use super::*;

    #[test]
    fn executable_script_code_libraries_and_image_are_looked_for() {
        let digest = Digest([5; 32]);
        let set = BTreeSet::from([digest, Digest([6; 32])]);
        let clean = believed("/a");
        assert_eq!(unquarantined(clean.digests(), &set), Ok(()));
        let file = HashedFile { path: "/x.py".into(), digest };
        let manifest = Container { manifests: vec![Digest([1; 32]), digest], ..container_of(1) };
        let cases: [(&str, Change); 6] = [
            ("executable", Box::new(move |f| f.exe.digest = digest)),
            ("script /x.py", Box::new(move |f| f.script = Evidence::Known(Script::File(file.clone())))),
            ("command line", Box::new(move |f| f.script = Evidence::Known(Script::Inline(digest)))),
            ("the set of", Box::new(move |f| f.libraries = Evidence::Known(Libraries { digest, count: 1 }))),
            ("image", Box::new(|f| f.container = Evidence::Known(container_of(5)))),
            ("image", Box::new(move |f| f.container = Evidence::Known(manifest.clone()))),
        ];
        for (what, make) in cases {
            refused(&with(&clean, make), what, digest, &set);
        }
        refused(&Believed { members: Arc::new([Digest([1; 32]), digest]), ..clean }, "one of its", digest, &set);
    }

    fn refused(program: &Believed, what: &str, digest: Digest, set: &BTreeSet<Digest>) {
        let refusal = unquarantined(program.digests(), set).unwrap_err();
        assert_eq!(refusal.reason, AttestReason::Quarantined);
        assert!(refusal.detail.contains(what) && refusal.detail.contains(&digest.to_string()), "{refusal}");
    }
}
