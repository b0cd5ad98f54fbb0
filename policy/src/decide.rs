//! The decision: two subjects and a port in, a verdict with its explanation out.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::{NearMiss, Outcome, Tried};

use crate::compile;
use crate::names::End;
use crate::party::{Party, Ruling};
use crate::policy::{NO_TIME, Place, Policy};
use crate::remedy::{self, Remedy};
use crate::rule::{Action, Rule};
use crate::schedule;

/// The most names that an explanation writes out.
const SHOWN_MAX: usize = 8;
/// The most expired rules that are looked through for one that would have allowed a flow.
const EXPIRED_MAX: usize = 1000;

/// One end of a flow, as far as it proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// It proved to be this workload.
    Workload(&'a WorkloadName),
    /// It proved nothing: only its address is known.
    Outside(SocketAddr),
}

/// May it pass?
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A rule allows it.
    Allow(Allowed),
    /// A rule denies it, or none allows it.
    Deny(Denied),
}

/// Why it may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// The rule that decided.
    pub rule: String,
    /// What a rule that is only tried would have decided.
    pub tried: Option<Tried>,
}

/// Why it may not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// The rule that decided; none if no rule matched.
    pub rule: Option<String>,
    /// If no rule matched: a rule that would have allowed it but for one field (`from`, `to` or `ports`).
    pub nearest: Option<NearMiss>,
    /// What would let this pass, and nothing else.
    pub remedy: Remedy,
    /// What a rule that is only tried would have decided.
    pub tried: Option<Tried>,
}

impl Verdict {
    /// The rule that decided, if one did.
    #[must_use]
    pub fn rule(&self) -> Option<&str> {
        match self {
            Self::Allow(allowed) => Some(&allowed.rule),
            Self::Deny(denied) => denied.rule.as_deref(),
        }
    }

    /// What a rule that is only tried would have decided.
    #[must_use]
    pub fn tried(&self) -> Option<&Tried> {
        match self {
            Self::Allow(allowed) => allowed.tried.as_ref(),
            Self::Deny(denied) => denied.tried.as_ref(),
        }
    }

    /// True for [`Verdict::Allow`].
    #[must_use]
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(Allowed { rule, .. }) => write!(f, "allowed by rule \"{rule}\""),
            Self::Deny(Denied { rule: Some(rule), .. }) => write!(f, "denied by rule \"{rule}\""),
            Self::Deny(Denied { rule: None, nearest: None, .. }) => f.write_str("denied: no rule allows it"),
            Self::Deny(Denied { rule: None, nearest: Some(NearMiss { of, field, expected, seen }), .. }) => {
                write!(
                    f,
                    "denied: no rule allows it; rule \"{of}\" would, but for {field}: expected {expected}, seen {seen}"
                )
            }
        }
    }
}

/// The first rule that matches decides; nothing matched is deny.
pub(crate) fn decide(policy: &Policy, from: &Subject<'_>, to: &Subject<'_>, port: u16) -> Verdict {
    let flow = Flow { policy, from: policy.party(from), to: policy.party(to), port };
    let against = |denying| remedy::against(policy, denying, from, to, port);
    let trial = flow.from.trial(&flow.to, port);
    let tried = trial.map(|rule| {
        let verdict = if rule.action == Action::Allow { Outcome::Allowed } else { Outcome::Refused };
        Tried { rule: rule.name.clone(), verdict }
    });
    match flow.from.may_reach(&flow.to, port) {
        Ruling::Allow(rule) => Verdict::Allow(Allowed { rule: rule.to_owned(), tried }),
        Ruling::Deny(rule) => {
            let remedy = against(policy.rule_named(rule));
            Verdict::Deny(Denied { rule: Some(rule.to_owned()), nearest: None, remedy, tried })
        }
        Ruling::NoRule => {
            let nearest = flow.miss_by_mode(trial).or_else(|| flow.nearest(from, to));
            Verdict::Deny(Denied { rule: None, nearest, remedy: against(None), tried })
        }
    }
}

/// A flow in the words of the rules.
struct Flow<'p> {
    policy: &'p Policy,
    from: Party<'p>,
    to: Party<'p>,
    port: u16,
}

impl<'p> Flow<'p> {
    /// The rule that misses by one field: by its time or its ports if there is one, else by its source, else by its
    /// destination.
    fn nearest(&self, from: &Subject<'_>, to: &Subject<'_>) -> Option<NearMiss> {
        self.miss_by_time()
            .or_else(|| self.miss_by_ports())
            .or_else(|| self.miss_by_source(from))
            .or_else(|| self.miss_by_destination(to))
    }

    fn miss_by_mode(&self, trial: Option<&Rule>) -> Option<NearMiss> {
        let rule = trial.filter(|rule| rule.action == Action::Allow)?;
        Some(miss(rule, "mode", "enforce".to_owned(), "shadow".to_owned()))
    }

    fn miss_by_time(&self) -> Option<NearMiss> {
        let now = self.policy.now;
        let out_of_time = |rule: &&Rule| !rule.tried && rule.action == Action::Allow && !rule.is_in_time(now);
        let rules = self.policy.rules.iter().map(|(_, rule)| rule).filter(out_of_time);
        let rule = rules.take(EXPIRED_MAX).find(|rule| {
            let is = |ends: &[End], party: &Party<'_>| {
                let mut named = ends.iter().flat_map(|end| compile::keys(*end, &self.policy.groups));
                named.any(|named| party.keys().any(|key| key == named))
            };
            rule.ports.contains(self.port) && is(&rule.from, &self.from) && is(&rule.to, &self.to)
        })?;
        Some(match (rule.expires.filter(|expiry| expiry.0 <= now), &rule.schedule) {
            (None, Some(schedule)) if now == NO_TIME => {
                miss(rule, "schedule", schedule.to_string(), "no time at all".to_owned())
            }
            (None, Some(schedule)) => miss(rule, "schedule", schedule.to_string(), schedule::shown(now)),
            (expiry, _) => {
                let expected = expiry.map(|expiry| format!("a time before {expiry}")).unwrap_or_default();
                miss(rule, "expires", expected, "a later one".to_owned())
            }
        })
    }

    fn miss_by_ports(&self) -> Option<NearMiss> {
        let pairs = &self.policy.tables.pairs;
        let allowing = self.from.pairs(&self.to).filter_map(|ends| Some((pairs.allowing(&ends)?, ends.to())));
        let (position, to) = allowing.min_by_key(|(position, _)| *position)?;
        let rule = self.policy.rule_at(position)?;
        let dialled = to.as_outside().and_then(|outside| self.policy.outside_at(outside));
        let expected = match dialled {
            Some(outside) => rule.ports.intersection(&outside.ports).to_string(),
            None => rule.ports.to_string(),
        };
        Some(miss(rule, "ports", expected, self.port.to_string()))
    }

    fn miss_by_source(&self, from: &Subject<'_>) -> Option<NearMiss> {
        let allowing = self.to.keys().filter_map(|to| self.policy.tables.allowed_to.at(&to, self.port));
        let rule = self.policy.rule_at(allowing.min()?)?;
        Some(miss(rule, "from", self.names(&rule.from), self.seen(from)))
    }

    fn miss_by_destination(&self, to: &Subject<'_>) -> Option<NearMiss> {
        let allowing = self.from.keys().filter_map(|from| self.policy.tables.allowed_from.at(&from, self.port));
        let rule = self.policy.rule_at(allowing.min()?)?;
        Some(miss(rule, "to", self.names(&rule.to), self.seen(to)))
    }

    fn names(&self, ends: &[End]) -> String {
        let mut names: Vec<&str> = ends.iter().take(SHOWN_MAX).filter_map(|end| self.name(*end)).collect();
        let more = ends.len().saturating_sub(SHOWN_MAX);
        let more = (more > 0).then(|| format!("{more} more"));
        names.extend(more.as_deref());
        names.join(", ")
    }

    fn name(&self, end: End) -> Option<&'p str> {
        match end {
            End::Workload(position) => {
                self.policy.workloads.get(usize::try_from(position).ok()?).map(|w| w.name.as_str())
            }
            End::Group(position) => self.policy.groups.name(position),
            End::Outside(position) => self.policy.outside_at(position).map(|o| o.name.as_str()),
        }
    }

    fn seen(&self, subject: &Subject<'_>) -> String {
        match subject {
            Subject::Workload(name) if self.policy.by_name.contains_key(*name) => name.to_string(),
            Subject::Workload(name) => format!("{name}, which the policy does not know"),
            Subject::Outside(addr) => self.seen_address(addr.ip().to_canonical()),
        }
    }

    fn seen_address(&self, addr: IpAddr) -> String {
        if self.policy.place(addr) == Place::Mesh {
            return format!("{addr}, which is in the mesh and proved no workload");
        }
        let covering: Vec<End> = self.policy.covering(addr).into_iter().map(End::Outside).collect();
        if covering.is_empty() {
            return format!("{addr}, which is in no [[outside]]");
        }
        format!("{addr} ({})", self.names(&covering))
    }
}

fn miss(rule: &Rule, field: &str, expected: String, seen: String) -> NearMiss {
    NearMiss { of: rule.name.clone(), field: field.to_owned(), expected, seen }
}
