//! `bonafide policy explain`: what a policy file says about one connection, and what would change that.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use bonafide_policy::{Policy, Remedy, Subject};
use bonafide_proto::clock::{Clock as _, SystemClock};
use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::Outcome;

use crate::exit::{Exit, Failure};
use crate::policy::check;
use crate::printable::printable;
use crate::screen::{Screen, Tone};

/// One connection, and the policy it is asked of.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// Policy file
    pub file: PathBuf,
    /// Who connects: a workload, or an address
    #[arg(long, value_name = "WORKLOAD|ADDRESS")]
    pub from: Who,
    /// Who is connected to: a workload, or an address
    #[arg(long, value_name = "WORKLOAD|ADDRESS")]
    pub to: Who,
    /// The port on which it listens
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
}

/// One end.
#[derive(Debug, Clone)]
pub enum Who {
    /// A workload.
    Workload(WorkloadName),
    /// An address that proves no workload.
    Address(SocketAddr),
}

impl std::str::FromStr for Who {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(addr) = text.parse::<IpAddr>() {
            return Ok(Self::Address(SocketAddr::new(addr, 0)));
        }
        text.parse().map(Self::Workload).map_err(|e| format!("neither an address nor the name of a workload: {e}"))
    }
}

impl Who {
    fn subject(&self) -> Subject<'_> {
        match self {
            Self::Workload(name) => Subject::Workload(name),
            Self::Address(addr) => Subject::Outside(*addr),
        }
    }
}

/// Exit code 0 if it is allowed, 3 if not.
pub(crate) fn explain(args: &ExplainArgs, screen: &mut Screen) -> Result<Exit, Failure> {
    let policy = check::parse(&args.file).map_err(|e| Failure::BadInput(printable_lines(&e)))?;
    let policy = policy.at(SystemClock.unix());
    let (from, to) = (args.from.subject(), args.to.subject());
    let verdict = policy.decide(&from, &to, args.port);
    let tone = if verdict.is_allow() { Tone::Good } else { Tone::Bad };
    let said = screen.tint(tone, &verdict.to_string());
    screen.line(&said.to_string())?;
    if let Some(tried) = verdict.tried() {
        let would = if tried.verdict == Outcome::Allowed { "allow" } else { "deny" };
        screen.line(&format!("rule \"{}\", which is only tried, would {would} it", tried.rule))?;
    }
    let responsible = verdict.rule().and_then(|rule| policy.responsible(rule));
    responsible.into_iter().try_for_each(|responsible| screen.line(&responsible.to_string()))?;
    let Some(remedy) = policy.remedy(&from, &to, args.port) else { return Ok(Exit::Done) };
    advice(&policy, remedy).lines().try_for_each(|line| screen.line(line))?;
    Ok(Exit::Refused)
}

fn advice(policy: &Policy, remedy: Remedy) -> String {
    let mode = policy.mode().as_str();
    match remedy {
        Remedy::Add(rule) => format!("To allow this and nothing else, add to the policy (mode {mode}):\n\n{rule}"),
        Remedy::AddBefore { rule, denying } => {
            format!("To allow this and nothing else, add before the rule \"{denying}\" (mode {mode}):\n\n{rule}")
        }
        Remedy::Guarded(guard) => {
            format!(
                "No rule can allow it: the guard \"{guard}\" stands before all rules. Change the guard, if it is meant to pass."
            )
        }
        Remedy::Unnamed(first) => format!("No rule can allow it yet: {first}."),
    }
}

fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::screen::tests::Kept;

    fn explained(text: &str, from: &str, to: &str, port: u16) -> (Exit, String) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        std::fs::write(&file, text).unwrap();
        let args = ExplainArgs { file, from: from.parse().unwrap(), to: to.parse().unwrap(), port };
        let out = Kept::default();
        (explain(&args, &mut Screen::on(out.clone())).unwrap(), out.text())
    }

    const POLICY: &str = "mode = 'enforce'\n[[workload]]\nname = 'web'\nexe = '/web'\n[[workload]]\nname = 'db'\nexe = '/db'\n\
                          [[rule]]\nname = 'r'\nfrom = 'web'\nto = 'db'\nports = [80]\naction = 'allow'\n";

    #[test]
    fn the_answer_has_the_rule_or_the_near_miss_and_a_rule_to_copy() {
        let (exit, said) = explained(POLICY, "web", "db", 80);
        assert_eq!((exit, said.as_str()), (Exit::Done, "allowed by rule \"r\"\n"));
        let (exit, said) = explained(POLICY, "web", "db", 81);
        assert_eq!(exit, Exit::Refused);
        assert!(said.contains("but for ports: expected 80, seen 81"), "{said}");
        let rule = said.split_once("\n\n").unwrap().1;
        assert_eq!(explained(&format!("{POLICY}{rule}"), "web", "db", 81).0, Exit::Done);
    }

    #[test]
    fn who_answers_for_a_rule_and_what_is_only_tried_is_told() {
        let owned = format!("{POLICY}owner = 'dba@example.org'\nticket = 'SEC-1'\n");
        assert_eq!(
            explained(&owned, "web", "db", 80).1,
            "allowed by rule \"r\"\nowner dba@example.org, ticket SEC-1\n"
        );
        let (exit, said) = explained(&format!("{owned}mode = 'shadow'\n"), "web", "db", 80);
        assert_eq!(exit, Exit::Refused);
        let near = "denied: no rule allows it; rule \"r\" would, but for mode: expected enforce, seen shadow\n\
                    rule \"r\", which is only tried, would allow it\n";
        assert!(said.starts_with(near), "{said}");
    }

    #[test]
    fn an_end_is_a_workload_or_an_address() {
        let (exit, said) = explained(POLICY, "web", "2001:db8::1", 443);
        assert_eq!(exit, Exit::Refused);
        assert!(said.contains("No rule can allow it yet: no [[outside]] covers 2001:db8::1"), "{said}");
        assert!("no name".parse::<Who>().unwrap_err().starts_with("neither an address nor the name of a workload"));
    }

    #[test]
    fn a_policy_with_mistakes_explains_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        std::fs::write(&file, "mode = 'sleep'\n").unwrap();
        let args = ExplainArgs { file, from: "a".parse().unwrap(), to: "b".parse().unwrap(), port: 1 };
        let refused = explain(&args, &mut Screen::on(Kept::default())).unwrap_err();
        assert_eq!(refused.exit(), Exit::BadInput);
    }
}
