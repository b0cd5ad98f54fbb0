//! Whether an application can be enforced: which of the flows that were seen of it this policy allows, and what holds it back.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use bonafide_proto::edge::{EdgeCount, Seen};
use bonafide_proto::name::WorkloadName;

use crate::diff::{self, Flow};
use crate::policy::Policy;
use crate::replay::Who;
use crate::review::{Judged, judge};

/// The label by which workloads belong together; without it the part of their name before the first `/` says so.
const APPLICATION: &str = "app";

/// How far an application is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Readiness {
    /// The value of its workloads' label `app`, or the part of their names before the first `/`.
    pub application: String,
    /// Flows of its workloads that this policy allows.
    pub allowed: u64,
    /// What enforcing would refuse, or cannot judge; most flows first.
    pub held_back: Vec<HeldBack>,
}

/// Flows that stand in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBack {
    /// Who connects to whom on which port.
    pub flows: String,
    /// What this policy says.
    pub why: String,
    /// How much of them was seen.
    pub seen: Seen,
}

impl Readiness {
    /// Of the flows that were seen, those that are allowed, in whole percent rounded down; 0 if none was seen. 100 only if
    /// nothing holds it back.
    #[must_use]
    pub fn percent(&self) -> u8 {
        let held: u64 = self.held_back.iter().map(|held| held.seen.flows).fold(0, u64::saturating_add);
        let all = u128::from(self.allowed) + u128::from(held);
        u8::try_from((u128::from(self.allowed) * 100).checked_div(all).unwrap_or(0)).unwrap_or(100)
    }

    /// Something was seen, and nothing of it would be refused.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.allowed > 0 && self.held_back.is_empty()
    }

    /// When the last of what holds it back was seen, unix seconds.
    #[must_use]
    pub fn last_held_back(&self) -> Option<i64> {
        self.held_back.iter().map(|held| held.seen.last).max()
    }
}

/// See [`Policy::readiness`].
pub(crate) fn readiness(policy: &Policy, edges: &[EdgeCount]) -> Vec<Readiness> {
    let mut all: BTreeMap<String, Readiness> = BTreeMap::new();
    for workload in &policy.workloads {
        let application = application(policy, &workload.name);
        all.entry(application.clone()).or_insert_with(|| Readiness { application, ..Readiness::default() });
    }
    for (flow, weight) in diff::flows(policy, policy, edges) {
        let (judged, _) = judge(policy, flow.becomes(), flow.port());
        let (described, of, seen) = (flow.described(), concerned(policy, &flow), weight.seen());
        for application in of {
            let Some(readiness) = all.get_mut(&application) else { continue };
            match &judged {
                Judged::Allow(_) => readiness.allowed = readiness.allowed.saturating_add(seen.flows),
                Judged::Deny(why) | Judged::Unknown(why) => {
                    let (flows, why) = (described.clone(), why.clone());
                    readiness.held_back.push(HeldBack { flows, why, seen: seen.clone() });
                }
            }
        }
    }
    let mut all: Vec<Readiness> = all.into_values().collect();
    all.iter_mut().for_each(|readiness| readiness.held_back.sort_by_key(|held| Reverse(held.seen.flows)));
    all
}

/// The applications of both ends, by what the policy knows of them, or else by what was recorded.
fn concerned(policy: &Policy, flow: &Flow) -> BTreeSet<String> {
    let by_label = |label: &str| label.parse().ok().filter(|name| policy.knows(name));
    let ends: Vec<WorkloadName> = match flow.becomes() {
        Ok((from, to)) => [from, to]
            .into_iter()
            .filter_map(|who| match who {
                Who::Workload(name) => Some(name.clone()),
                Who::Address(_) => None,
            })
            .collect(),
        Err(_) => [&flow.labels().0, &flow.labels().1].into_iter().filter_map(|label| by_label(label)).collect(),
    };
    ends.iter().map(|name| application(policy, name)).collect()
}

fn application(policy: &Policy, name: &WorkloadName) -> String {
    let labelled = policy.label(name, APPLICATION);
    let named = name.as_str().split('/').next().unwrap_or_default();
    labelled.unwrap_or(named).to_owned()
}

#[cfg(test)]
mod tests {
    use bonafide_proto::edge::{Actor, Edge};
    use bonafide_proto::observed::Protocol;
    use bonafide_proto::record::{End, Outcome};

    use super::*;

    const POLICY: &str = "mode = 'shadow'\nmesh = ['10.0.0.0/8']
[[workload]]\nname = 'shop/web'\nexe = '/web'
[[workload]]\nname = 'shop/db'\nexe = '/db'
[[workload]]\nname = 'relay'\nexe = '/relay'\nlabels = { app = 'mail' }
[[workload]]\nname = 'idle/x'\nexe = '/x'
[[rule]]\nname = 'r'\nfrom = 'shop/web'\nto = 'shop/db'\nports = [5432]\naction = 'allow'
";

    fn edge(end: End, from: &str, to: Option<&str>, port: u16, flows: u64) -> EdgeCount {
        let named = |name: &str| Actor { workload: Some(name.parse().unwrap()), ..Actor::default() };
        let to = to.map_or_else(|| Actor { addr: "10.0.0.9".parse().ok(), ..Actor::default() }, named);
        let (mode, protocol, verdict) = ("shadow".to_owned(), Protocol::Tcp, Outcome::Undecided);
        let edge =
            Edge { end, from: named(from), to, port, protocol, mode, verdict, rule: None, tried: None, reason: None };
        EdgeCount { edge, seen: Seen { flows, first: 1, last: i64::from(port), ..Seen::default() } }
    }

    #[test]
    fn an_application_is_ready_if_all_that_was_seen_of_it_is_allowed() {
        let policy = Policy::parse("p", POLICY).unwrap();
        let allowed = [End::Source, End::Destination].map(|end| edge(end, "shop/web", Some("shop/db"), 5432, 99));
        let said = |edges: &[EdgeCount]| {
            let all = policy.readiness(edges);
            all.into_iter().map(|r| (r.application.clone(), r.percent(), r.is_ready())).collect::<Vec<_>>()
        };
        let of = |percent, ready| {
            vec![("idle".into(), 0, false), ("mail".into(), 0, false), ("shop".to_owned(), percent, ready)]
        };
        assert_eq!(said(&allowed), of(100, true));
        let denied = [&allowed[..], &[edge(End::Source, "shop/web", Some("shop/db"), 22, 1)]].concat();
        assert_eq!(said(&denied), of(99, false));
    }

    #[test]
    fn what_holds_it_back_is_told_at_both_applications() {
        let policy = Policy::parse("p", POLICY).unwrap();
        let edges = [edge(End::Source, "shop/web", Some("relay"), 25, 3), edge(End::Source, "shop/web", None, 80, 5)];
        let all = policy.readiness(&edges);
        let [_, mail, shop] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((mail.held_back.len(), mail.last_held_back(), shop.held_back.len()), (1, Some(25), 2));
        assert_eq!(mail.held_back[0].flows, "shop/web to relay on 25");
        assert!(mail.held_back[0].why.starts_with("denied: no rule allows it"), "{mail:?}");
        assert!(shop.held_back[0].why.contains("no record says which program"), "{shop:?}");
    }
}
