//! `[[test]]`: what the author of a policy expects of it. Whether that holds is for `bonafide policy check` to say; a
//! node that was sent the policy does not refuse it for a test that fails.

use std::net::{IpAddr, SocketAddr};

use bonafide_proto::name::WorkloadName;

use crate::decide::Subject;
use crate::fault::{Faults, quoted};
use crate::names::{End, Names};
use crate::policy::Policy;
use crate::rule::{self, Action, Placed};
use crate::table::{Table, Text, as_integer};
use crate::workload::Workload;

/// The most tests of one policy.
const CASES_MAX: usize = 10_000;

/// One test.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    name: String,
    line: usize,
    from: Who,
    to: Who,
    port: u16,
    expect: Action,
    rule: Option<String>,
}

#[derive(Debug, Clone)]
enum Who {
    Workload(WorkloadName),
    Address(IpAddr),
}

/// How a test of the policy went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseResult {
    /// What the test is called.
    pub name: String,
    /// Where it is written, from 1.
    pub line: usize,
    /// What was decided instead; `None` if what is expected holds.
    pub failure: Option<String>,
}

impl Case {
    pub(crate) fn run(&self, policy: &Policy) -> CaseResult {
        let verdict = policy.decide(&self.from.subject(), &self.to.subject(), self.port);
        let by_rule = self.rule.as_deref().is_none_or(|rule| verdict.rule() == Some(rule));
        let holds = verdict.is_allow() == (self.expect == Action::Allow) && by_rule;
        let by = self.rule.as_ref().map(|rule| format!(" by rule \"{rule}\"")).unwrap_or_default();
        let failure = (!holds).then(|| format!("expected {}{by}, but it is {verdict}", self.expect.as_str()));
        CaseResult { name: self.name.clone(), line: self.line, failure }
    }
}

impl Who {
    fn subject(&self) -> Subject<'_> {
        match self {
            Self::Workload(name) => Subject::Workload(name),
            Self::Address(addr) => Subject::Outside(SocketAddr::new(*addr, 0)),
        }
    }
}

/// Reads every `[[test]]`.
pub(crate) fn read<'t>(
    tables: &[Table<'t>],
    names: &Names<'t>,
    workloads: &[Workload],
    rules: &[Placed],
    faults: &mut Faults<'_>,
) -> Vec<Case> {
    if let Some(table) = tables.get(CASES_MAX) {
        faults.wrong(table.at, format!("there are more than {CASES_MAX} tests"));
        return Vec::new();
    }
    let mut earlier = std::collections::HashMap::new();
    let rules: std::collections::HashSet<&str> = rules.iter().map(|(_, rule)| rule.name.as_str()).collect();
    let known = Known { names, workloads, rules };
    tables.iter().filter_map(|table| known.read_one(table, &mut earlier, faults)).collect()
}

/// What tests may speak of.
struct Known<'k, 't> {
    names: &'k Names<'t>,
    workloads: &'k [Workload],
    rules: std::collections::HashSet<&'k str>,
}

impl<'t> Known<'_, 't> {
    fn read_one(
        &self,
        table: &Table<'t>,
        earlier: &mut std::collections::HashMap<&'t str, usize>,
        faults: &mut Faults<'_>,
    ) -> Option<Case> {
        let name = table
            .required_text("name", faults)
            .and_then(|text| rule::checked_name("test", text, Some(earlier), faults));
        let from = table.required_text("from", faults).and_then(|text| self.who(text, faults));
        let to = table.required_text("to", faults).and_then(|text| self.who(text, faults));
        let port = port(table, faults);
        let expect =
            table.required_text("expect", faults).and_then(|text| rule::action_of(text, "expectation", faults));
        let rule = match table.get("rule") {
            None => Some(None),
            Some(_) => table.text("rule", faults).and_then(|text| self.rule(text, faults)).map(Some),
        };
        let line = faults.line(table.at);
        Some(Case { name: name?, line, from: from?, to: to?, port: port?, expect: expect?, rule: rule? })
    }

    fn who(&self, text: Text<'t>, faults: &mut Faults<'_>) -> Option<Who> {
        if let Ok(addr) = text.value.parse() {
            return Some(Who::Address(addr));
        }
        match self.names.resolve(text, faults)? {
            End::Workload(position) => {
                let workload = self.workloads.get(usize::try_from(position).ok()?)?;
                Some(Who::Workload(workload.name.clone()))
            }
            End::Group(_) | End::Outside(_) => {
                let seen = quoted(text.value);
                faults.wrong(text.at, format!("{seen} is no single end; a test is of a [[workload]] or an address"));
                None
            }
        }
    }

    fn rule(&self, text: Text<'t>, faults: &mut Faults<'_>) -> Option<String> {
        if self.rules.contains(text.value) {
            return Some(text.value.to_owned());
        }
        let remedy = faults.did_you_mean(text.value, self.rules.iter().copied(), || "write the name of one".to_owned());
        faults.wrong_if_whole(text.at, format!("no [[guard]] or [[rule]] is named {}; {remedy}", quoted(text.value)));
        None
    }
}

fn port(table: &Table<'_>, faults: &mut Faults<'_>) -> Option<u16> {
    let value = table.required("port", faults)?;
    let Some(number) = as_integer(value) else {
        table.wrong_type("port", "a number", value, faults);
        return None;
    };
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    if port.is_none() {
        faults.wrong(value.span().start, format!("{number} is no port; ports are 1 to 65535"));
    }
    port
}

#[cfg(test)]
mod tests {
    use crate::Policy;

    const POLICY: &str = "mode = 'enforce'
[[workload]]
name = 'web'
exe = '/web'
[[workload]]
name = 'db'
exe = '/db'
[[group]]
name = 'all'
members = ['web', 'db']
[[rule]]
name = 'web to db'
from = 'web'
to = 'db'
ports = [5432]
action = 'allow'
";

    fn test(name: &str, from: &str, to: &str, more: &str) -> String {
        format!("[[test]]\nname = '{name}'\nfrom = '{from}'\nto = '{to}'\n{more}\n")
    }

    #[test]
    fn what_is_expected_and_does_not_hold_is_told_with_what_was_decided() {
        let tests = [
            test("1", "web", "db", "port = 5432\nexpect = 'allow'\nrule = 'web to db'"),
            test("2", "web", "db", "port = 5432\nexpect = 'deny'"),
            test("3", "web", "db", "port = 22\nexpect = 'allow'"),
            test("4", "2001:db8::1", "db", "port = 22\nexpect = 'deny'"),
            test("5", "db", "192.0.2.1", "port = 443\nexpect = 'deny'\nrule = 'web to db'"),
        ];
        let policy = Policy::parse("p", &format!("{POLICY}{}", tests.concat())).unwrap_or_else(|e| panic!("{e}"));
        let results = policy.try_cases();
        let failed: Vec<_> = results.iter().map(|result| result.failure.is_some()).collect();
        assert_eq!(failed, [false, true, true, false, true]);
        assert_eq!(results[1].failure.as_deref(), Some("expected deny, but it is allowed by rule \"web to db\""));
        assert!(results[2].failure.as_ref().unwrap().ends_with("but for ports: expected 5432, seen 22"));
        assert_eq!((results[0].line, results[1].line), (17, 24));
    }

    #[test]
    fn a_test_with_mistakes_is_a_mistake_of_the_policy() {
        for (test, said) in [
            (test("1", "wbe", "db", "port = 1\nexpect = 'deny'"), "is named \"wbe\"; did you mean \"web\"?"),
            (test("1", "all", "db", "port = 1\nexpect = 'deny'"), "\"all\" is no single end"),
            (test("1", "web", "db", "port = 0\nexpect = 'deny'"), "0 is no port"),
            (test("1", "web", "db", "port = 1\nexpect = 'maybe'"), "the expectation \"maybe\" is not known"),
            (test("1", "web", "db", "expect = 'deny'"), "[[test]] has no port; add port = 5432"),
            (test("1", "web", "db", "port = 1\nexpect = 'deny'\nrule = 'web to dbb'"), "did you mean \"web to db\"?"),
            (test(" 1", "web", "db", "port = 1\nexpect = 'deny'"), "begins or ends with a space"),
        ] {
            let errors = Policy::parse("p", &format!("{POLICY}{test}")).unwrap_err().to_string();
            assert!(errors.contains(said) && errors.lines().count() == 1, "{errors}");
        }
    }
}
