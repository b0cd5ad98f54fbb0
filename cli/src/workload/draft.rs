//! A `[[workload]]` as text, and the policy it would belong to: nothing counts as drafted that the whole policy does
//! not take, or that this very program would not earn.

use bonafide_policy::{Identified, Policy};
use bonafide_proto::fingerprint::Fingerprint;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::taint::Taints;

use super::pin::Selector;

/// The longest name that is made up.
const NAME_MAX: usize = 64;

/// A workload to be added.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) name: WorkloadName,
    pub(super) selectors: Vec<Selector>,
    pub(super) allow_taints: Taints,
    /// Where it comes from; one line without control characters.
    pub(super) origin: String,
}

impl Draft {
    /// As it is written into a policy.
    pub(super) fn text(&self) -> String {
        let mut lines: Vec<(String, &str)> = vec![(format!("name = \"{}\"", self.name), "")];
        lines.extend(self.selectors.iter().map(|s| (format!("{} = {}", s.field, s.value), s.comment)));
        if !self.allow_taints.is_empty() {
            let taints: Vec<String> = self.allow_taints.iter().map(|taint| format!("\"{taint}\"")).collect();
            lines.push((format!("allow_taints = [{}]", taints.join(", ")), "evidence against it, which is accepted"));
        }
        let width = lines.iter().map(|(line, _)| line.chars().count()).filter(|width| *width <= 48).max().unwrap_or(0);
        let mut text = format!("# {}\n[[workload]]\n", self.origin);
        for (line, comment) in lines {
            match comment {
                "" => text.push_str(&format!("{line}\n")),
                comment => text.push_str(&format!("{line:width$}  # {comment}\n")),
            }
        }
        text
    }

    /// The whole policy with this workload at its end.
    ///
    /// # Errors
    /// Every mistake that it would have, or what this program would be instead.
    pub(super) fn added_to(&self, file: &str, policy: &str, of: &Fingerprint) -> Result<String, String> {
        let gap = if policy.is_empty() || policy.ends_with('\n') { "\n" } else { "\n\n" };
        let text = format!("{policy}{gap}{}", self.text());
        let whole = Policy::parse(file, &text).map_err(|e| format!("the policy would not parse any more:\n{e}"))?;
        match whole.identify(of) {
            Identified::Workload(earned) if earned == self.name => Ok(text),
            Identified::Workload(earned) => Err(format!("the program would be {earned}, not {}", self.name)),
            Identified::Ambiguous(names) => {
                let names: Vec<&str> = names.iter().map(WorkloadName::as_str).collect();
                Err(format!("the program would fit {}, and so be none of them; pin more, or less", names.join(" and ")))
            }
            Identified::Nothing { near } => {
                let missed = near.iter().find(|miss| miss.of == self.name.as_str()).or(near.first());
                let missed = missed.map(|m| format!(": {} is {}, not {}", m.field, m.seen, m.expected));
                Err(format!("the program would not earn it{}", missed.unwrap_or_default()))
            }
            Identified::Unavailable { field, why, .. } => Err(format!("the program cannot be told by {field}: {why}")),
        }
    }
}

/// A name after what the program is: its script, its container, its unit, else its executable.
pub(super) fn name_of(of: &Fingerprint) -> Option<WorkloadName> {
    let script = of.script_file().map(|file| file.path.as_str());
    let container = of.container.known().and_then(|container| container.name.as_deref());
    let unit = of.unit.known().map(|unit| unit.name.as_str());
    let stem = |text: &str| {
        let file = text.rsplit('/').next().unwrap_or(text);
        file.rsplit_once('.').map_or(file, |(stem, _)| stem).to_owned()
    };
    let exe = of.exe.path.rsplit('/').next().map(str::to_owned);
    let base = script.map(stem).or_else(|| container.map(str::to_owned)).or_else(|| unit.map(stem)).or(exe)?;
    let known = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' };
    base.chars().map(known).take(NAME_MAX).collect::<String>().trim_matches('.').parse().ok()
}

#[cfg(test)]
mod tests {
    use bonafide_proto::fingerprint::Evidence;
    use bonafide_proto::taint::Taint;

    use super::super::pin::tests::{contained, python};
    use super::super::pin::{Pin, selectors};
    use super::*;

    const POLICY: &str = "mode = \"enforce\"\n[[workload]]\nname = \"db\"\nexe = \"/usr/bin/postgres\"";

    fn draft(name: &str, pins: &[Pin]) -> Draft {
        Draft {
            name: name.parse().unwrap(),
            selectors: selectors(pins, &python()).unwrap(),
            allow_taints: Taints::new(),
            origin: "here".into(),
        }
    }

    #[test]
    fn what_is_added_parses_and_is_earned() {
        for pins in [&[][..], &[Pin::Path], &[Pin::Digest], &[Pin::Unit, Pin::Libraries], &[Pin::Unit, Pin::Node]] {
            let text = draft("shop/web", pins).added_to("p.toml", POLICY, &python()).unwrap();
            assert!(text.starts_with(&format!("{POLICY}\n\n# here\n[[workload]]\nname = \"shop/web\"\n")), "{text}");
            let earned = Policy::parse("p", &text).unwrap().identify(&python());
            assert_eq!(earned, Identified::Workload("shop/web".parse().unwrap()));
        }
    }

    #[test]
    fn what_the_policy_does_not_take_is_refused_with_its_mistakes() {
        let twice = draft("db", &[]).added_to("p.toml", POLICY, &python()).unwrap_err();
        assert!(twice.contains("would not parse") && twice.contains("p.toml:"), "{twice}");
        let codeless = draft("web", &[Pin::User]).added_to("p.toml", POLICY, &python()).unwrap_err();
        assert!(codeless.contains("does not say which program"), "{codeless}");
    }

    #[test]
    fn what_the_program_would_not_earn_is_refused() {
        let other = format!("{POLICY}\n[[workload]]\nname = \"web\"\nunit = \"shop-web.service\"\n");
        let both = draft("shop/web", &[Pin::Path]).added_to("p", &other, &python()).unwrap_err();
        assert!(both.contains("would fit web and shop/web"), "{both}");
        let mut tainted = python();
        tainted.taints.insert(Taint::Preload);
        let refused = draft("shop/web", &[]).added_to("p", POLICY, &tainted).unwrap_err();
        assert!(refused.contains("would not earn it: allow_taints is preload, not none"), "{refused}");
        let allowed = Draft { allow_taints: [Taint::Preload].into(), ..draft("shop/web", &[]) };
        allowed.added_to("p", POLICY, &tainted).unwrap();
    }

    #[test]
    fn names_come_from_the_script_the_container_the_unit_or_the_executable() {
        let named = |of: &Fingerprint| name_of(of).map(|name| name.to_string());
        assert_eq!(named(&python()).as_deref(), Some("we-b"));
        let scriptless = |f: Fingerprint| Fingerprint { script: Evidence::Absent("none".into()), ..f };
        assert_eq!(named(&scriptless(contained())).as_deref(), Some("shop_web"));
        assert_eq!(named(&scriptless(python())).as_deref(), Some("shop-web"));
        let mut bare = scriptless(python());
        bare.unit = Evidence::Absent("none".into());
        assert_eq!(named(&bare).as_deref(), Some("python3.11"));
        bare.exe.path = "/..".into();
        assert_eq!(named(&bare), None);
    }

    #[test]
    fn every_selector_is_commented_and_lined_up() {
        let text = draft("shop/web", &[Pin::Path, Pin::User]).text();
        assert!(text.contains("exe = \"/usr/bin/python3.11\"  # the executable\n"), "{text}");
        assert!(text.contains("uid = 33                     # the effective user\n"), "{text}");
    }
}
