//! Digests that nobody may be attested with. Pure.

use std::collections::BTreeSet;

use bonafide_proto::fingerprint::{Digest, Fingerprint, Script};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use crate::refuse::refuse;

/// Nothing of it may be in quarantine: its executable, its script, its container's image.
///
/// # Errors
/// `quarantined`.
pub(crate) fn unquarantined(fingerprint: &Fingerprint, quarantined: &BTreeSet<Digest>) -> Result<(), AttestRefusal> {
    if quarantined.is_empty() {
        return Ok(());
    }
    match digests(fingerprint).into_iter().find(|(_, digest)| quarantined.contains(digest)) {
        None => Ok(()),
        Some((what, digest)) => refuse(AttestReason::Quarantined, format!("{what}, {digest}, is in quarantine")),
    }
}

fn digests(fingerprint: &Fingerprint) -> Vec<(String, Digest)> {
    let mut all = vec![(format!("its executable {}", fingerprint.exe.path), fingerprint.exe.digest)];
    match fingerprint.script.known() {
        Some(Script::File(file)) => all.push((format!("its script {}", file.path), file.digest)),
        Some(Script::Inline(digest)) => all.push(("the code in its command line".to_owned(), *digest)),
        Some(Script::Stdin) | None => {}
    }
    if let Some(container) = fingerprint.container.known() {
        // People know an image by the digest of its manifest.
        let images = std::iter::once(&container.image).chain(&container.manifests);
        all.extend(images.map(|image| (format!("the image of its container {}", container.id), *image)));
    }
    all
}

#[cfg(test)]
mod tests {
    use bonafide_proto::container::Container;
    use bonafide_proto::fingerprint::{Evidence, HashedFile, Libraries};

    use super::super::changes::tests::{Change, believed, container_of, with};
    use super::*;

    #[test]
    fn executable_script_code_and_image_are_looked_for_and_libraries_are_not() {
        let digest = Digest([5; 32]);
        let set = BTreeSet::from([digest, Digest([6; 32])]);
        let clean = believed("/a");
        assert_eq!(unquarantined(&clean.fingerprint, &set), Ok(()));
        let file = HashedFile { path: "/x.py".into(), digest };
        let manifest = Container { manifests: vec![Digest([1; 32]), digest], ..container_of(1) };
        let cases: [(&str, Change); 5] = [
            ("executable", Box::new(move |f| f.exe.digest = digest)),
            ("script /x.py", Box::new(move |f| f.script = Evidence::Known(Script::File(file.clone())))),
            ("command line", Box::new(move |f| f.script = Evidence::Known(Script::Inline(digest)))),
            ("image", Box::new(|f| f.container = Evidence::Known(container_of(5)))),
            ("image", Box::new(move |f| f.container = Evidence::Known(manifest.clone()))),
        ];
        for (what, make) in cases {
            let refusal = unquarantined(&with(&clean, make).fingerprint, &set).unwrap_err();
            assert_eq!(refusal.reason, AttestReason::Quarantined);
            assert!(refusal.detail.contains(what) && refusal.detail.contains(&digest.to_string()), "{refusal}");
        }
        let linked = with(&clean, |f| f.libraries = Evidence::Known(Libraries { digest, count: 1 }));
        assert_eq!(unquarantined(&linked.fingerprint, &set), Ok(()));
    }
}
