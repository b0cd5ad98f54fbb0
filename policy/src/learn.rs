//! What a policy lacks for the flows that were seen: the workloads and rules to add, each with its evidence, and what was
//! left out and why. It never widens: a rule stands for flows that were seen and for no others, as long as no workload
//! gets the label of a group.

mod merge;
mod newcomer;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use bonafide_proto::edge::{Actor, EdgeCount, Seen};
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::observed::Protocol;
use bonafide_proto::record::{Outcome, Reason};
use bonafide_proto::taint::Taint;

use crate::decide::Verdict;
use crate::diff::Weight;
use crate::fault::PolicyErrors;
use crate::policy::Policy;
use crate::remedy;
use crate::replay::{Ends, Nameless, Replay};
use crate::section;

/// What is proposed for a policy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Learned {
    /// Text to add at the end of the policy; empty if nothing is lacking.
    pub text: String,
    /// How many `[[workload]]` it has.
    pub workloads: usize,
    /// How many `[[rule]]` it has.
    pub rules: usize,
    /// What was seen and is not proposed, most flows first.
    pub left_out: Vec<LeftOut>,
}

/// Flows for which nothing is proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Which, in words.
    pub flows: String,
    /// Why.
    pub why: String,
    /// How much of them was seen.
    pub seen: Seen,
}

/// Which flows count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lessons {
    /// Those that were let through, whatever would have been.
    LetThrough,
    /// Those that were refused, too.
    Refused,
}

/// One thing to be allowed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Need {
    from: String,
    to: String,
    port: u16,
}

/// What was seen of it.
#[derive(Debug, Default)]
struct Proof {
    weight: Weight,
    from: BTreeSet<Digest>,
    to: BTreeSet<Digest>,
}

type Needs = BTreeMap<Need, Proof>;

/// See [`Policy::learn`].
pub(crate) fn learn(
    file: &str,
    text: &str,
    now: i64,
    edges: &[EdgeCount],
    lessons: Lessons,
) -> Result<Learned, PolicyErrors> {
    let policy = Policy::parse(file, text)?.at(now);
    let mut study = Study { lessons, left_out: BTreeMap::new() };
    let taught: Vec<EdgeCount> = edges.iter().filter(|count| study.teaches(count)).cloned().collect();
    let newcomers = newcomer::propose(file, text, &policy, &taught);
    let policy = match newcomers.text.as_str() {
        "" => policy,
        more => Policy::parse(file, &section::with(text, more))?.at(now),
    };
    let needs = study.needs(&policy, &taught);
    let bundles = merge::bundles(&needs);
    let rules = bundles.len();
    let proposed = write::rules(&policy, &bundles, &needs);
    Ok(Learned {
        text: [newcomers.text.as_str(), &proposed]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("\n"),
        workloads: newcomers.workloads,
        rules,
        left_out: study.settle(),
    })
}

/// One look through what was seen.
struct Study {
    lessons: Lessons,
    left_out: BTreeMap<(String, String), Weight>,
}

impl Study {
    /// Whether a rule may be made of it, as far as the record alone tells.
    fn teaches(&mut self, count: &EdgeCount) -> bool {
        let objection = self.objection(count);
        let flows =
            || described(&count.edge.from.label(), &count.edge.to.label(), count.edge.port, count.edge.protocol);
        if let Some(why) = &objection {
            self.leave_out(flows(), why.clone(), count);
        }
        objection.is_none()
    }

    fn objection(&self, EdgeCount { edge, .. }: &EdgeCount) -> Option<String> {
        if let Some(reason) = edge.reason.filter(|reason| BARRED.contains(reason)) {
            return Some(format!("recorded as {reason}"));
        }
        if edge.port == 0 {
            return Some("the port was not recorded".to_owned());
        }
        if let Some(why) = [("source", &edge.from), ("destination", &edge.to)].into_iter().find_map(untaught) {
            return Some(why);
        }
        let refused = edge.verdict == Outcome::Refused && self.lessons == Lessons::LetThrough;
        let reason = edge.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        refused.then(|| format!("was refused{reason}; ask for refused flows, if they are meant to pass"))
    }

    fn leave_out(&mut self, flows: String, why: String, count: &EdgeCount) {
        self.left_out.entry((flows, why)).or_default().add(count.edge.end, &count.seen);
    }

    /// What this policy would have to allow besides what it does.
    fn needs(&mut self, policy: &Policy, edges: &[EdgeCount]) -> Needs {
        let mut replay = Replay::of(policy, edges);
        let mut needs = Needs::new();
        for count in edges {
            let edge = &count.edge;
            match replay.ends(count).map(|ends| need(policy, &ends, edge.port)) {
                Ok(Lack::Nothing) | Err(Nameless::ToldByTheOtherEnd) => {}
                Ok(Lack::Rule(need)) => {
                    let proof = needs.entry(need).or_default();
                    proof.weight.add(edge.end, &count.seen);
                    proof.from.extend(edge.from.digest);
                    proof.to.extend(edge.to.digest);
                }
                Ok(Lack::Barred(why)) | Err(Nameless::Program(why) | Nameless::Peer(why)) => {
                    let flows = described(&edge.from.label(), &edge.to.label(), edge.port, edge.protocol);
                    self.leave_out(flows, why, count);
                }
            }
        }
        needs
    }

    fn settle(self) -> Vec<LeftOut> {
        let left_out =
            self.left_out.into_iter().map(|((flows, why), weight)| LeftOut { flows, why, seen: weight.seen() });
        let mut left_out: Vec<LeftOut> = left_out.collect();
        left_out.sort_by_key(|left| std::cmp::Reverse(left.seen.flows));
        left_out
    }
}

/// Nobody learns from what came to nothing, or from whom the certificates or the quarantine speak against.
const BARRED: [Reason; 10] = [
    Reason::Quarantined,
    Reason::NodeRevoked,
    Reason::WorkloadRevoked,
    Reason::SerialRevoked,
    Reason::PeerCertificate,
    Reason::NotGranted,
    Reason::Unattributed,
    Reason::Unreachable,
    Reason::OwnListener,
    Reason::Handshake,
];

/// An interpreter without a script may be told to do anything, whatever the policy allows it today.
fn untaught((which, actor): (&str, &Actor)) -> Option<String> {
    let bare = actor.taints.contains(&Taint::NoScript) && actor.script_digest.is_none();
    bare.then(|| format!("the {which} is an interpreter without a script"))
}

/// What a policy lacks for a flow.
enum Lack {
    Nothing,
    Rule(Need),
    /// A rule that allowed it would be wrong, or cannot be written.
    Barred(String),
}

fn need(policy: &Policy, (from, to): &Ends, port: u16) -> Lack {
    let (from, to) = (from.subject(), to.subject());
    let denying = match policy.decide(&from, &to, port) {
        Verdict::Allow(_) => return Lack::Nothing,
        Verdict::Deny(denied) => denied.rule,
    };
    if let Some(rule) = denying {
        return Lack::Barred(format!("\"{rule}\" denies it"));
    }
    match remedy::names(policy, &from, &to, port) {
        Ok((from, to)) => Lack::Rule(Need { from, to, port }),
        Err(first) => Lack::Barred(first),
    }
}

fn described(from: &str, to: &str, port: u16, protocol: Protocol) -> String {
    let protocol = if protocol == Protocol::Udp { "/udp" } else { "" };
    format!("{from} to {to} on {port}{protocol}")
}

#[cfg(test)]
mod tests;
