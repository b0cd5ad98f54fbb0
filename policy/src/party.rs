//! One end of a flow as a policy knows it: names and addresses are looked up once, and decisions compare numbers.

use crate::compile::{Key, Pair, Tables};
use crate::decide::Subject;
use crate::policy::Policy;
use crate::rule::{Action, Rule};

/// A subject, looked up in one policy.
#[derive(Debug, Clone)]
pub struct Party<'p> {
    policy: &'p Policy,
    keys: Keys,
}

/// Where the tables speak of it.
#[derive(Debug, Clone)]
enum Keys {
    /// Nowhere: the policy does not know the workload.
    Nowhere,
    /// As its workload, and as those of the same groups.
    Workload(Key, Option<Key>),
    /// As every outside that covers its address.
    Outside(Vec<u32>),
}

/// What the rules say: the name of the rule that decided, or nothing, which is deny.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling<'p> {
    /// This rule allows it.
    Allow(&'p str),
    /// This rule denies it.
    Deny(&'p str),
    /// No rule matched: it may not pass.
    NoRule,
}

impl<'p> Party<'p> {
    pub(crate) fn of(policy: &'p Policy, subject: &Subject<'_>) -> Self {
        let keys = match subject {
            Subject::Workload(name) => {
                let mut keys = policy.keys_of(name);
                keys.next().map_or(Keys::Nowhere, |own| Keys::Workload(own, keys.next()))
            }
            Subject::Outside(addr) => Keys::Outside(policy.covering(addr.ip())),
        };
        Self { policy, keys }
    }

    /// May it connect to `to`? As [`Policy::decide`], without an explanation and without an allocation: at most four
    /// look-ups between workloads, however many rules there are. Parties of two policies may not.
    pub fn may_reach(&self, to: &Self, port: u16) -> Ruling<'p> {
        match self.first_rule(&self.policy.tables, to, port) {
            Some(Rule { name, action: Action::Allow, .. }) => Ruling::Allow(name),
            Some(Rule { name, action: Action::Deny, .. }) => Ruling::Deny(name),
            None => Ruling::NoRule,
        }
    }

    /// The rule that would decide if all those decided that are only tried, if it is one of them.
    pub(crate) fn trial(&self, to: &Self, port: u16) -> Option<&'p Rule> {
        self.first_rule(self.policy.trials.as_deref()?, to, port).filter(|rule| rule.tried)
    }

    fn first_rule(&self, tables: &Tables, to: &Self, port: u16) -> Option<&'p Rule> {
        if !std::ptr::eq(self.policy, to.policy) {
            return None;
        }
        self.policy.rule_at(self.pairs(to).filter_map(|pair| tables.pairs.at(&pair, port)).min()?)
    }

    pub(crate) fn pairs(&self, to: &Self) -> impl Iterator<Item = Pair> {
        self.keys().flat_map(|from| to.keys().map(move |to| Pair::of(from, to)))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> {
        let (own, class, outsides) = match &self.keys {
            Keys::Nowhere => (None, None, [].as_slice()),
            Keys::Workload(own, class) => (Some(*own), *class, [].as_slice()),
            Keys::Outside(outsides) => (None, None, outsides.as_slice()),
        };
        own.into_iter().chain(class).chain(outsides.iter().copied().map(Key::outside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "mode = 'enforce'\n[[workload]]\nname = 'a'\nexe = '/a'\n[[workload]]\nname = 'b'\nexe = '/b'\n\
                          [[rule]]\nname = 'r'\nfrom = 'a'\nto = 'b'\nports = [80]\naction = 'allow'\n\
                          [[rule]]\nname = 'd'\nfrom = 'a'\nto = 'b'\nports = [81]\naction = 'deny'\n";

    #[test]
    fn parties_of_two_policies_never_reach_each_other() {
        let (one, other) = (Policy::parse("p", POLICY).unwrap(), Policy::parse("p", POLICY).unwrap());
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let from = one.party(&Subject::Workload(&a));
        let to = one.party(&Subject::Workload(&b));
        let rulings = [80, 81, 82].map(|port| from.may_reach(&to, port));
        assert_eq!(rulings, [Ruling::Allow("r"), Ruling::Deny("d"), Ruling::NoRule]);
        assert_eq!(from.may_reach(&other.party(&Subject::Workload(&b)), 80), Ruling::NoRule);
    }
}
