//! Rules turned into tables, so that a decision takes the same time however many rules there are.

use std::collections::{HashMap, HashSet};

use crate::fault::Faults;
use crate::names::End;
use crate::outside::Outsides;
use crate::ports::{Claims, FirstRules, Ports};
use crate::rule::{Action, Placed, Rule};

/// The most (from, to, port range) triples that the rules together may stand for.
const TRIPLES_MAX: usize = 1_000_000;

/// What the rules say about one pair of ends.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    /// The rule that decides each port.
    pub(crate) by_port: FirstRules,
    /// The first rule that allows some port.
    pub(crate) allowing: Option<u32>,
}

/// The rules as tables.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    /// Decides.
    pub(crate) pairs: HashMap<(End, End), Pair>,
    /// Explains: the first rule that allows the source to reach something on a port.
    pub(crate) allowed_from: HashMap<End, FirstRules>,
    /// Explains: the first rule that allows something to reach the destination on a port.
    pub(crate) allowed_to: HashMap<End, FirstRules>,
    /// Workloads that some rule allows to reach some workload.
    pub(crate) reach_mesh: HashSet<End>,
}

/// The ports on which a rule is about this destination.
fn ports_at(rule: &Rule, to: End, outsides: &Outsides) -> Option<Ports> {
    let End::Outside(position) = to else { return None };
    let outside = outsides.list.get(usize::try_from(position).ok()?)?;
    (!outside.ports.is_all()).then(|| rule.ports.intersection(&outside.ports))
}

/// Builds the tables.
pub(crate) fn compile(rules: &[Placed], outsides: &Outsides, faults: &mut Faults<'_>) -> Tables {
    let mut claims = Claimed::default();
    for (position, (at, rule)) in (0..).zip(rules) {
        for to in &rule.to {
            let limited = ports_at(rule, *to, outsides);
            let ports = limited.as_ref().unwrap_or(&rule.ports);
            if ports.is_empty() {
                let remedy = "change one of the two";
                faults.wrong(*at, format!("this rule and an [[outside]] it goes to have no port in common; {remedy}"));
            }
            if !claims.afford(rule.from.len().saturating_mul(ports.len())) {
                let limit = format!("the rules up to here stand for more than {TRIPLES_MAX} (from, to, ports) triples");
                faults.wrong(*at, format!("{limit}; shorten the lists"));
                return claims.settle(rules);
            }
            claims.add(rule, *to, ports, position);
        }
    }
    claims.settle(rules)
}

#[derive(Default)]
struct Claimed {
    triples: usize,
    pairs: HashMap<(End, End), Claims>,
    from: HashMap<End, Claims>,
    to: HashMap<End, Claims>,
}

impl Claimed {
    fn afford(&mut self, triples: usize) -> bool {
        self.triples = self.triples.saturating_add(triples);
        self.triples <= TRIPLES_MAX
    }

    fn add(&mut self, rule: &Rule, to: End, ports: &Ports, position: u32) {
        for from in &rule.from {
            self.pairs.entry((*from, to)).or_default().add(ports, position);
            if rule.action == Action::Allow {
                self.from.entry(*from).or_default().add(ports, position);
            }
        }
        if rule.action == Action::Allow {
            self.to.entry(to).or_default().add(ports, position);
        }
    }

    fn settle(self, rules: &[Placed]) -> Tables {
        let pairs: HashMap<(End, End), Pair> =
            self.pairs.into_iter().map(|(ends, claims)| (ends, pair(claims.settle(), rules))).collect();
        let between_workloads = |ends: &(End, End)| matches!(ends, (End::Workload(_), End::Workload(_)));
        let reach_mesh = pairs
            .iter()
            .filter(|(ends, pair)| between_workloads(ends) && pair.allowing.is_some())
            .map(|((from, _), _)| *from)
            .collect();
        let settle = |claims: HashMap<End, Claims>| claims.into_iter().map(|(end, c)| (end, c.settle())).collect();
        Tables { pairs, allowed_from: settle(self.from), allowed_to: settle(self.to), reach_mesh }
    }
}

fn pair(by_port: FirstRules, rules: &[Placed]) -> Pair {
    let allows = |position: &u32| action_of(rules, *position) == Some(Action::Allow);
    let allowing = by_port.rules().filter(allows).min();
    Pair { by_port, allowing }
}

fn action_of(rules: &[Placed], position: u32) -> Option<Action> {
    let (_, rule) = rules.get(usize::try_from(position).ok()?)?;
    Some(rule.action)
}
