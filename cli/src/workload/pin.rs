//! From a fingerprint to the selectors that pin it: what is asked for and cannot be had is a mistake, never left out.

use bonafide_proto::fingerprint::{Digest, Evidence, Fingerprint, Script};
use bonafide_proto::taint::{Taint, Taints};

/// What a workload is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Pin {
    /// Paths: of the executable, and of the script.
    Path,
    /// Digests: of the executable, and of the script or the code in the command line.
    Digest,
    /// The composite digest of everything else it has mapped as code.
    Libraries,
    /// The digest of its container's image.
    Image,
    /// The systemd unit.
    Unit,
    /// The effective user.
    User,
    /// The node on which it runs.
    Node,
}

/// What is pinned unless something else is asked for, as far as the program has it.
const USUAL: [Pin; 5] = [Pin::Path, Pin::Digest, Pin::Image, Pin::Unit, Pin::User];

/// One line of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selector {
    pub(super) field: &'static str,
    /// As TOML.
    pub(super) value: String,
    /// What it means, for whoever reads the policy.
    pub(super) comment: &'static str,
}

/// The selectors of these pins; of the usual ones if none are named.
pub(super) fn selectors(pins: &[Pin], of: &Fingerprint) -> Result<Vec<Selector>, String> {
    let named = !pins.is_empty();
    let mut pins = if named { pins.to_vec() } else { USUAL.to_vec() };
    pins.sort_unstable();
    pins.dedup();
    let mut all = Vec::new();
    for pin in pins {
        let found = one(pin, of)?;
        if found.is_empty() && named {
            return Err(format!("{} cannot be pinned: {}", what(pin), absence(pin, of)));
        }
        all.extend(found);
    }
    Ok(all)
}

/// The taints that must be allowed for it: those whose meaning no selector settles.
pub(super) fn taints(of: &Fingerprint, selectors: &[Selector]) -> Taints {
    let settled = |taint: &Taint| *taint == Taint::NoScript && selectors.iter().any(|s| s.field == "inline_sha256");
    of.taints.iter().copied().filter(|taint| !settled(taint)).collect()
}

fn one(pin: Pin, of: &Fingerprint) -> Result<Vec<Selector>, String> {
    Ok(match pin {
        Pin::Path => [Some(exe(of)), script_path(of)?].into_iter().flatten().collect(),
        Pin::Digest => [Some(sha256(of)), script_digest(of)?].into_iter().flatten().collect(),
        Pin::Libraries => {
            let libraries = had(pin, &of.libraries)?;
            let comment = "everything else it has loaded; changes with every upgrade of a library";
            libraries.map(|l| digest("libraries", l.digest, comment)).into_iter().collect()
        }
        Pin::Image => {
            let container = had(pin, &of.container)?;
            container.map(|c| digest("image", c.image, "the config of its container's image")).into_iter().collect()
        }
        Pin::Unit => {
            let unit = had(pin, &of.unit)?;
            unit.map(|unit| text("unit", &unit.name, "the systemd unit that runs it")).into_iter().collect()
        }
        Pin::User => {
            let value = of.uid.to_string();
            vec![Selector { field: "uid", value, comment: "the effective user" }]
        }
        Pin::Node => {
            let node = of.host.node.as_ref();
            node.map(|node| text("nodes", node.as_str(), "the nodes on which it may run")).into_iter().collect()
        }
    })
}

/// The evidence, or none if there is none; whoever does not answer leaves a gap that must not go unnoticed.
fn had<T>(pin: Pin, evidence: &Evidence<T>) -> Result<Option<&T>, String> {
    match evidence {
        Evidence::Unavailable(why) => {
            Err(format!("{} cannot be had: {why}; try again, or name by --pin what else to pin", what(pin)))
        }
        Evidence::Known(_) | Evidence::Absent(_) => Ok(evidence.known()),
    }
}

fn exe(of: &Fingerprint) -> Selector {
    text("exe", &of.exe.path, "the executable")
}

fn sha256(of: &Fingerprint) -> Selector {
    digest("sha256", of.exe.digest, "its content; during an upgrade list both: [\"sha256:…\", \"sha256:…\"]")
}

fn script_path(of: &Fingerprint) -> Result<Option<Selector>, String> {
    let script = had(Pin::Path, &of.script)?;
    Ok(script.and_then(Script::file).map(|file| text("script", &file.path, "the script that it interprets")))
}

fn script_digest(of: &Fingerprint) -> Result<Option<Selector>, String> {
    Ok(had(Pin::Digest, &of.script)?.and_then(|script| match script {
        Script::File(file) => Some(digest("script_sha256", file.digest, "the script's content")),
        Script::Inline(code) => Some(digest("inline_sha256", *code, "the code in its command line, byte for byte")),
        Script::Stdin => None,
    }))
}

fn text(field: &'static str, value: &str, comment: &'static str) -> Selector {
    Selector { field, value: toml::Value::from(value).to_string(), comment }
}

fn digest(field: &'static str, digest: Digest, comment: &'static str) -> Selector {
    text(field, &digest.to_string(), comment)
}

fn what(pin: Pin) -> &'static str {
    match pin {
        Pin::Path => "its path",
        Pin::Digest => "its digest",
        Pin::Libraries => "its libraries",
        Pin::Image => "its image",
        Pin::Unit => "its unit",
        Pin::User => "its user",
        Pin::Node => "its node",
    }
}

fn absence(pin: Pin, of: &Fingerprint) -> String {
    fn why<T>(evidence: &Evidence<T>) -> String {
        match evidence {
            Evidence::Known(_) => "it is empty".to_owned(),
            Evidence::Absent(why) | Evidence::Unavailable(why) => why.clone(),
        }
    }
    match pin {
        Pin::Libraries => why(&of.libraries),
        Pin::Image => why(&of.container),
        Pin::Unit => why(&of.unit),
        Pin::Node => "the node was not admitted yet".to_owned(),
        Pin::Path | Pin::Digest | Pin::User => "there is none".to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use bonafide_proto::container::Container;
    use bonafide_proto::fingerprint::{HashedFile, Host, Libraries, Unit};

    use super::*;

    pub(crate) fn python() -> Fingerprint {
        let absent = || Evidence::Absent("none".to_owned());
        let file = |path: &str, n| HashedFile { path: path.into(), digest: Digest([n; 32]) };
        let host = Host { bios_uuid: absent(), machine_id: absent(), node: Some("a".parse().unwrap()) };
        Fingerprint {
            script: Evidence::Known(Script::File(file("/srv/we\"b.py", 2))),
            libraries: Evidence::Known(Libraries { digest: Digest([3; 32]), count: 9 }),
            unit: Evidence::Known(Unit { name: "shop-web.service".into(), invocation: None }),
            ..Fingerprint::of(file("/usr/bin/python3.11", 1), (33, 33), host)
        }
    }

    pub(crate) fn contained() -> Fingerprint {
        let container = Container {
            runtime: "docker".into(),
            id: "0123456789ab".into(),
            name: Some("shop_web".into()),
            image: Digest([4; 32]),
            image_name: None,
            manifests: Vec::new(),
            labels: Default::default(),
            pod: None,
        };
        Fingerprint { container: Evidence::Known(container), unit: Evidence::Absent("none".into()), ..python() }
    }

    fn fields(pins: &[Pin], of: &Fingerprint) -> Vec<&'static str> {
        selectors(pins, of).unwrap().iter().map(|selector| selector.field).collect()
    }

    #[test]
    fn the_usual_pins_are_those_that_the_program_has() {
        assert_eq!(fields(&[], &python()), ["exe", "script", "sha256", "script_sha256", "unit", "uid"]);
        assert_eq!(fields(&[], &contained()), ["exe", "script", "sha256", "script_sha256", "image", "uid"]);
        let plain = Fingerprint { script: Evidence::Absent("no interpreter".into()), ..contained() };
        assert_eq!(fields(&[], &plain), ["exe", "sha256", "image", "uid"]);
    }

    #[test]
    fn what_is_asked_for_is_pinned_or_refused() {
        assert_eq!(fields(&[Pin::Unit, Pin::Path, Pin::Unit], &python()), ["exe", "script", "unit"]);
        assert_eq!(fields(&[Pin::Libraries, Pin::Node], &python()), ["libraries", "nodes"]);
        let refused = selectors(&[Pin::Image], &python()).unwrap_err();
        assert_eq!(refused, "its image cannot be pinned: nobody looked");
    }

    #[test]
    fn whoever_does_not_answer_leaves_no_gap() {
        let away = Fingerprint { container: Evidence::Unavailable("docker does not answer".into()), ..python() };
        let refused = selectors(&[], &away).unwrap_err();
        assert!(refused.starts_with("its image cannot be had: docker does not answer; "), "{refused}");
        assert_eq!(fields(&[Pin::Digest], &away), ["sha256", "script_sha256"]);
    }

    #[test]
    fn code_of_a_command_line_settles_its_taint() {
        let mut inline = python();
        inline.script = Evidence::Known(Script::Inline(Digest([5; 32])));
        inline.taints = [Taint::NoScript, Taint::Traced].into();
        let pinned = selectors(&[Pin::Digest], &inline).unwrap();
        assert_eq!(pinned.iter().map(|s| s.field).collect::<Vec<_>>(), ["sha256", "inline_sha256"]);
        assert_eq!(taints(&inline, &pinned), [Taint::Traced].into());
        let paths = selectors(&[Pin::Path], &inline).unwrap();
        assert_eq!(taints(&inline, &paths), inline.taints);
    }

    #[test]
    fn hostile_paths_stay_inside_their_quotes() {
        let pinned = selectors(&[Pin::Path], &python()).unwrap();
        let line: toml::Table = format!("x = {}", pinned[1].value).parse().unwrap();
        assert_eq!(line["x"].as_str(), Some("/srv/we\"b.py"));
    }
}
