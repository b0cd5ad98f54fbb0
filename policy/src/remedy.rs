//! What would let a denied flow pass, and nothing but such flows: a rule to copy, and where it has to stand.

use std::fmt;
use std::net::SocketAddr;

use crate::decide::{Subject, Verdict};
use crate::policy::{Place, Policy};
use crate::rule::Rule;

/// The longest part of a rule's name that is made of the names of its ends, in bytes.
const NAME_MAX: usize = 110;

/// How a flow could be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// By this `[[rule]]`, at the end of the policy.
    Add(String),
    /// By this `[[rule]]`, before the one that denies it.
    AddBefore {
        /// The rule to add.
        rule: String,
        /// The one that denies.
        denying: String,
    },
    /// By no rule: this guard denies it, and guards stand before all rules.
    Guarded(String),
    /// By no rule: an end has no name that a rule could use. This is what to do first.
    Unnamed(String),
}

/// To be copied into a policy: a rule, or a comment that says why there is none.
impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(rule) => f.write_str(rule),
            Self::AddBefore { rule, denying } => write!(f, "# before the rule \"{denying}\"\n{rule}"),
            Self::Guarded(guard) => {
                writeln!(f, "# no rule can allow it: the guard \"{guard}\" stands before all rules")
            }
            Self::Unnamed(first) => writeln!(f, "# no rule can allow it yet: {first}"),
        }
    }
}

/// See [`Policy::remedy`].
pub(crate) fn remedy(policy: &Policy, from: &Subject<'_>, to: &Subject<'_>, port: u16) -> Option<Remedy> {
    match policy.decide(from, to, port) {
        Verdict::Allow(_) => None,
        Verdict::Deny(denied) => Some(denied.remedy),
    }
}

/// What would let this pass, which the given rule denies, or none allows.
pub(crate) fn against(
    policy: &Policy,
    denying: Option<&Rule>,
    from: &Subject<'_>,
    to: &Subject<'_>,
    port: u16,
) -> Remedy {
    match (ends(policy, from, to, port), denying) {
        (_, Some(guard)) if guard.guard => Remedy::Guarded(guard.name.clone()),
        (Err(first), _) => Remedy::Unnamed(first),
        (Ok(rule), Some(denying)) => Remedy::AddBefore { rule, denying: denying.name.clone() },
        (Ok(rule), None) => Remedy::Add(rule),
    }
}

/// The rule, or what keeps one from being written.
fn ends(policy: &Policy, from: &Subject<'_>, to: &Subject<'_>, port: u16) -> Result<String, String> {
    let (from, to) = names(policy, from, to, port)?;
    let called = rule_name(policy, &format!("{from} to {to} on {port}"));
    Ok(format!(
        "[[rule]]\nname = \"{called}\"\nfrom = \"{from}\"\nto = \"{to}\"\nports = [{port}]\naction = \"allow\"\n"
    ))
}

/// What a rule that allows exactly this would call both ends, or what keeps one from being written.
pub(crate) fn names(
    policy: &Policy,
    from: &Subject<'_>,
    to: &Subject<'_>,
    port: u16,
) -> Result<(String, String), String> {
    if port == 0 {
        return Err("port 0 is no port; ports are 1 to 65535".to_owned());
    }
    if let (Subject::Outside(_), Subject::Outside(_)) = (from, to) {
        return Err("one end must be a [[workload]]: what passes between two others never meets an enforcer".to_owned());
    }
    Ok((name(policy, from, None)?, name(policy, to, Some(port))?))
}

/// What a rule calls this end; `dialled` is the port, if it is the end that is dialled.
fn name(policy: &Policy, subject: &Subject<'_>, dialled: Option<u16>) -> Result<String, String> {
    match subject {
        Subject::Workload(name) if policy.knows(name) => Ok(name.to_string()),
        Subject::Workload(name) => Err(format!("the policy has no workload {name}; declare it by a [[workload]]")),
        Subject::Outside(addr) => outside(policy, *addr, dialled),
    }
}

/// The narrowest name: of the outsides that cover the address, the one that covers the fewest.
fn outside(policy: &Policy, addr: SocketAddr, dialled: Option<u16>) -> Result<String, String> {
    let addr = addr.ip().to_canonical();
    if policy.place(addr) == Place::Mesh {
        return Err(format!(
            "{addr} is in the mesh and proved no workload; find out by `bonafide whois` what runs there"
        ));
    }
    let covering = policy.covering(addr).into_iter().filter_map(|position| policy.outside_at(position));
    let usable = |ports: &crate::ports::Ports| dialled.map_or(ports.is_all(), |port| ports.contains(port));
    let fitting = covering.filter(|outside| usable(&outside.ports)).min_by_key(|outside| outside.size);
    fitting.map(|outside| outside.name.clone()).ok_or_else(|| match dialled {
        Some(port) => format!("no [[outside]] covers {addr} with port {port}; declare one"),
        None => format!("no [[outside]] without ports covers {addr}; declare one"),
    })
}

/// A name that no rule has.
pub(crate) fn rule_name(policy: &Policy, wanted: &str) -> String {
    // Names of workloads and outsides are ASCII.
    let wanted = wanted.get(..NAME_MAX).unwrap_or(wanted);
    let taken = |name: &str| policy.rule_named(name).is_some();
    let numbered = (2..).map(|number: u32| format!("{wanted} ({number})"));
    std::iter::once(wanted.to_owned()).chain(numbered).find(|name| !taken(name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bonafide_proto::name::WorkloadName;

    use super::*;

    const POLICY: &str = r#"
mode = "enforce"
mesh = "10.0.0.0/8"
[[workload]]
name = "web"
exe = "/web"
[[workload]]
name = "db"
exe = "/db"
[[outside]]
name = "internet"
prefixes = ["0.0.0.0/0", "::/0"]
[[outside]]
name = "resolver"
prefixes = ["192.0.2.53/32"]
ports = [53]
[[guard]]
name = "no telnet"
from = ["web", "internet"]
to = "db"
ports = [23]
[[rule]]
name = "web to db on 5432"
from = "web"
to = "db"
ports = [80]
action = "allow"
[[rule]]
name = "no admin"
from = "web"
to = "db"
ports = [22]
action = "deny"
"#;

    fn who(text: &str) -> Result<SocketAddr, WorkloadName> {
        text.parse().map(|addr: std::net::IpAddr| SocketAddr::new(addr, 0)).map_err(|_| text.parse().unwrap())
    }

    fn asked<T>(from: &str, to: &str, ask: impl Fn(&Subject<'_>, &Subject<'_>) -> T) -> T {
        let (from, to) = (who(from), who(to));
        let subject = |who: &Result<SocketAddr, WorkloadName>| match who {
            Ok(addr) => Subject::Outside(*addr),
            Err(_) => Subject::Outside(SocketAddr::from(([0, 0, 0, 0], 0))),
        };
        let from = from.as_ref().map_or_else(Subject::Workload, |_| subject(&from));
        let to = to.as_ref().map_or_else(Subject::Workload, |_| subject(&to));
        ask(&from, &to)
    }

    fn remedy_of(policy: &Policy, from: &str, to: &str, port: u16) -> Option<Remedy> {
        asked(from, to, |from, to| policy.remedy(from, to, port))
    }

    #[test]
    fn the_rule_allows_this_and_no_other_port() {
        let policy = Policy::parse("p", POLICY).unwrap();
        for (from, to, port) in [("web", "db", 5432), ("db", "192.0.2.53", 53), ("198.51.100.1", "web", 443)] {
            let Some(Remedy::Add(rule)) = remedy_of(&policy, from, to, port) else { panic!("{from} {to} {port}") };
            let mended = Policy::parse("p", &format!("{POLICY}{rule}")).unwrap_or_else(|e| panic!("{e}\n{rule}"));
            assert_eq!(remedy_of(&mended, from, to, port), None, "{rule}");
            assert!(remedy_of(&mended, from, to, port + 1).is_some() && remedy_of(&mended, to, from, port).is_some());
        }
    }

    #[test]
    fn the_narrowest_outside_and_a_free_name_are_taken() {
        let policy = Policy::parse("p", POLICY).unwrap();
        let Some(Remedy::Add(rule)) = remedy_of(&policy, "db", "192.0.2.53", 53) else { panic!() };
        assert!(rule.contains("to = \"resolver\""), "{rule}");
        let Some(Remedy::Add(rule)) = remedy_of(&policy, "db", "192.0.2.53", 54) else { panic!() };
        assert!(rule.contains("to = \"internet\""), "{rule}");
        let Some(Remedy::Add(rule)) = remedy_of(&policy, "web", "db", 5432) else { panic!() };
        assert!(rule.contains("name = \"web to db on 5432 (2)\""), "{rule}");
    }

    #[test]
    fn what_denies_is_named_and_a_guard_is_not_opened() {
        let policy = Policy::parse("p", POLICY).unwrap();
        let Some(Remedy::AddBefore { rule, denying }) = remedy_of(&policy, "web", "db", 22) else { panic!() };
        assert_eq!(denying, "no admin");
        let before = POLICY.replace("[[rule]]\nname = \"no admin\"", &format!("{rule}[[rule]]\nname = \"no admin\""));
        assert_eq!(remedy_of(&Policy::parse("p", &before).unwrap(), "web", "db", 22), None);
        assert_eq!(remedy_of(&policy, "web", "db", 23), Some(Remedy::Guarded("no telnet".into())));
    }

    #[test]
    fn who_has_no_name_is_told_what_to_do_first() {
        let policy = Policy::parse("p", POLICY).unwrap();
        for (from, to, port, first) in [
            ("other", "db", 1, "the policy has no workload other; declare it"),
            ("10.1.2.3", "db", 1, "10.1.2.3 is in the mesh and proved no workload"),
            ("198.51.100.1", "192.0.2.1", 1, "one end must be a [[workload]]"),
            ("web", "db", 0, "port 0 is no port"),
        ] {
            let Some(Remedy::Unnamed(said)) = remedy_of(&policy, from, to, port) else { panic!("{from} to {to}") };
            assert!(said.starts_with(first), "{said}");
        }
        let closed = Policy::parse("p", "mode = \"enforce\"\n[[workload]]\nname = \"web\"\nexe = \"/web\"\n").unwrap();
        let Some(Remedy::Unnamed(said)) = remedy_of(&closed, "web", "2001:db8::1", 443) else { panic!() };
        assert_eq!(said, "no [[outside]] covers 2001:db8::1 with port 443; declare one");
    }
}
