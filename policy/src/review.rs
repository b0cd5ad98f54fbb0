//! What a policy says of flows that were recorded, one by one.

use bonafide_proto::edge::EdgeCount;

use crate::decide::Verdict;
use crate::policy::Policy;
use crate::remedy::Remedy;
use crate::replay::{Ends, Nameless, Replay};

/// What a policy says of a flow that was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    /// Whether it allows it.
    pub allows: bool,
    /// The verdict in words, or why there is none.
    pub said: String,
    /// What would let it pass, if it does not.
    pub remedy: Option<Remedy>,
}

/// See [`Policy::review`].
pub(crate) fn review(policy: &Policy, edges: &[EdgeCount]) -> Vec<Review> {
    let mut replay = Replay::of(policy, edges);
    let ends: Vec<_> = edges.iter().map(|count| (replay.ends(count), count.edge.port)).collect();
    let told = ends.iter().filter(|(ends, _)| *ends != Err(Nameless::ToldByTheOtherEnd));
    told.map(|(ends, port)| one(policy, ends, *port)).collect()
}

fn one(policy: &Policy, ends: &Result<Ends, Nameless>, port: u16) -> Review {
    let (judged, _) = judge(policy, ends.as_ref(), port);
    let remedy = ends.as_ref().ok().and_then(|(from, to)| policy.remedy(&from.subject(), &to.subject(), port));
    Review { allows: judged.allows(), said: judged.said(), remedy }
}

/// What a policy says of a flow.
#[derive(Debug)]
pub(crate) enum Judged {
    Allow(String),
    Deny(String),
    /// Only an address in the mesh is known of one end.
    Unknown(String),
}

impl Judged {
    pub(crate) fn allows(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    pub(crate) fn said(self) -> String {
        match self {
            Self::Allow(said) | Self::Deny(said) | Self::Unknown(said) => said,
        }
    }
}

/// The verdict, and the rule that decided.
pub(crate) fn judge(policy: &Policy, ends: Result<&Ends, &Nameless>, port: u16) -> (Judged, Option<String>) {
    let (from, to) = match ends {
        Ok(ends) => ends,
        Err(Nameless::Program(why)) => return (Judged::Deny(format!("denied: {why}")), None),
        Err(Nameless::Peer(why)) => return (Judged::Unknown(format!("unknown: {why}")), None),
        Err(Nameless::ToldByTheOtherEnd) => return (Judged::Unknown("unknown".to_owned()), None),
    };
    let verdict = policy.decide(&from.subject(), &to.subject(), port);
    let rule = verdict.rule().map(ToOwned::to_owned);
    let said = verdict.to_string();
    match verdict {
        Verdict::Allow(_) => (Judged::Allow(said), rule),
        Verdict::Deny(_) => (Judged::Deny(said), rule),
    }
}
