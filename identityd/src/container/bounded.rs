//! What a runtime may say about a container, cut down to what evidence may hold. What is left out matches nothing.

use std::collections::{BTreeMap, HashMap};

use bonafide_proto::fingerprint::Digest;

/// The longest name or value, in bytes.
const TEXT_MAX: usize = 1024;
/// Labels of one container or pod.
const LABELS_MAX: usize = 256;
/// All labels of one container or pod together, in bytes.
const LABELS_SIZE_MAX: usize = 32 << 10;
/// Manifests of one image.
const MANIFESTS_MAX: usize = 64;

/// A name, if it is one.
pub(crate) fn text(said: &str) -> Option<String> {
    let sound = !said.is_empty() && said.len() <= TEXT_MAX && !said.chars().any(char::is_control);
    sound.then(|| said.to_owned())
}

/// Those that are short and printable, in alphabetical order, until there is no room left.
pub(crate) fn labels(said: HashMap<String, String>) -> BTreeMap<String, String> {
    let sound = |(key, value): &(String, String)| text(key).is_some() && (value.is_empty() || text(value).is_some());
    let mut size = 0;
    let fits = |(key, value): &(String, String)| {
        size += key.len() + value.len();
        size <= LABELS_SIZE_MAX
    };
    let sorted: BTreeMap<String, String> = said.into_iter().filter(sound).collect();
    sorted.into_iter().take(LABELS_MAX).take_while(fits).collect()
}

/// The digests in names such as `example.org/image@sha256:…`.
pub(crate) fn manifests(names: impl IntoIterator<Item = String>) -> Vec<Digest> {
    let digest = |name: String| name.rsplit_once("@sha256:")?.1.parse().ok();
    let mut digests: Vec<Digest> = names.into_iter().take(MANIFESTS_MAX).filter_map(digest).collect();
    digests.sort_unstable();
    digests.dedup();
    digests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_left_out() {
        assert_eq!(text("web").as_deref(), Some("web"));
        for unsound in ["", "a\nb", "\u{1b}[2J", &"x".repeat(TEXT_MAX + 1)] {
            assert_eq!(text(unsound), None);
        }
        let label = |n: usize, size: usize| (format!("{n:04}"), "x".repeat(size));
        assert_eq!(labels((0..300).map(|n| label(n, 0)).collect()).len(), LABELS_MAX);
        assert_eq!(labels((0..40).map(|n| label(n, 1020)).collect()).len(), LABELS_SIZE_MAX / 1024);
        assert_eq!(labels((0..2).map(|n| label(n, 1024 + n)).collect()).into_keys().collect::<Vec<_>>(), ["0000"]);
    }

    #[test]
    fn digests_of_manifests_are_taken_from_names() {
        let digest = Digest::of(b"m");
        let names = [format!("a/b@{digest}"), format!("c:1@{digest}"), "a:1".to_owned(), "a@sha256:x".to_owned()];
        assert_eq!(manifests(names), [digest]);
    }
}
