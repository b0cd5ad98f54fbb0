//! The flows that live: each can be judged again and ended, idle or not.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bonafide_policy::{Mode, Policy, Subject, Verdict};
use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::Reason;
use tokio::sync::oneshot;

use crate::flow::why_denied;
use crate::record::Why;

/// One party of a verdict, owned, so that it can be asked for again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// A workload.
    Workload(WorkloadName),
    /// An address outside the mesh.
    Outside(SocketAddr),
}

impl Judged {
    /// As the policy asks for it.
    #[must_use]
    pub fn subject(&self) -> Subject<'_> {
        match self {
            Self::Workload(name) => Subject::Workload(name),
            Self::Outside(addr) => Subject::Outside(*addr),
        }
    }
}

/// The question a live flow was allowed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The connecting side.
    pub from: Judged,
    /// The listening side.
    pub to: Judged,
    /// The port on which the destination listens.
    pub port: u16,
}

impl Question {
    /// Asks a policy.
    pub fn ask(&self, policy: &Policy) -> Verdict {
        policy.decide(&self.from.subject(), &self.to.subject(), self.port)
    }
}

#[derive(Debug)]
struct Entry {
    /// `None`: let through unjudged in observe mode; a policy never ends it.
    question: Option<Question>,
    /// Taken when the flow is told to end; the entry itself stays until its record is written.
    end: Option<oneshot::Sender<Why>>,
}

/// The table of live flows.
#[derive(Debug, Default)]
pub struct Live {
    flows: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// The policy that judged last; under the same lock as the entries, so that no flow slips between.
    policy: Option<Arc<Policy>>,
    next: u64,
    entries: HashMap<u64, Entry>,
}

/// A flow's place in the table; leaving scope leaves the table, so it has to outlast the flow's account.
#[derive(Debug)]
#[must_use = "the flow is forgotten when its seat is dropped"]
pub struct Seat {
    live: Arc<Live>,
    key: u64,
    /// Says when and why the flow has to end.
    pub ended: oneshot::Receiver<Why>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.live.table().entries.remove(&self.key);
    }
}

impl Live {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a flow that was allowed by this question under this policy. If another policy came into force
    /// meanwhile, that one is asked too.
    ///
    /// # Errors
    /// Why the newer policy does not allow it.
    pub fn enter(self: &Arc<Self>, question: Question, under: &Arc<Policy>) -> Result<Seat, Why> {
        let mut table = self.table();
        if let Some(newer) = table.policy.as_ref().filter(|newest| !Arc::ptr_eq(newest, under))
            && let Some(why) = no_longer(&question, newer)
        {
            return Err(why);
        }
        Ok(self.seat(&mut table, Some(question)))
    }

    /// Enters a flow that observe mode let through.
    pub fn enter_unjudged(self: &Arc<Self>) -> Seat {
        self.seat(&mut self.table(), None)
    }

    fn seat(self: &Arc<Self>, table: &mut Table, question: Option<Question>) -> Seat {
        let (end, ended) = oneshot::channel();
        table.next += 1;
        let key = table.next;
        table.entries.insert(key, Entry { question, end: Some(end) });
        Seat { live: Arc::clone(self), key, ended }
    }

    /// How many flows live.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table().entries.len()
    }

    /// True if none lives.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asks every flow's question of a new policy and ends those that it no longer allows.
    /// Observe mode ends nothing.
    pub fn judge_again(&self, policy: &Arc<Policy>) -> usize {
        let mut table = self.table();
        table.policy = Some(Arc::clone(policy));
        end_where(&mut table, |question| question.and_then(|question| no_longer(question, policy)))
    }

    /// Ends every flow, because the enforcer stops.
    pub fn end_all(&self) -> usize {
        end_where(&mut self.table(), |_| Some(Why::new(Reason::EnforcerStopped, "the enforcer was stopped")))
    }
}

fn no_longer(question: &Question, policy: &Policy) -> Option<Why> {
    if policy.mode() == Mode::Observe {
        return None;
    }
    match question.ask(policy) {
        Verdict::Allow(_) => None,
        Verdict::Deny(denied) => {
            let why = why_denied(denied);
            let detail = format!("the policy changed and no longer allows it ({}): {}", why.reason, why.detail);
            Some(Why { reason: Reason::PolicyChanged, detail, ..why })
        }
    }
}

fn end_where(table: &mut Table, why: impl Fn(Option<&Question>) -> Option<Why>) -> usize {
    let mut count = 0;
    for entry in table.entries.values_mut() {
        if let Some(why) = why(entry.question.as_ref())
            && let Some(end) = entry.end.take()
        {
            // The flow may have ended by itself just now.
            let _ = end.send(why);
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: &str = "mode = 'enforce'\nmesh = ['10.0.0.0/8']\n[[workload]]\nname = 'a'\nexe = '/a'\n[[workload]]\nname = 'b'\nexe = '/b'\n";
    const RULE: &str = "[[rule]]\nname = 'r'\nfrom = 'a'\nto = 'b'\naction = 'allow'\n";

    fn policy(text: &str) -> Arc<Policy> {
        Arc::new(Policy::parse("p.toml", text).unwrap())
    }

    fn question() -> Question {
        Question { from: Judged::Workload("a".parse().unwrap()), to: Judged::Workload("b".parse().unwrap()), port: 80 }
    }

    #[test]
    fn a_flow_ends_when_its_rule_goes_and_only_then() {
        let (with, without) = (policy(&format!("{OPEN}{RULE}")), policy(OPEN));
        let live = Arc::new(Live::default());
        let mut seat = live.enter(question(), &with).unwrap();
        assert_eq!(live.judge_again(&with), 0);
        assert!(seat.ended.try_recv().is_err());
        assert_eq!(live.judge_again(&without), 1);
        assert_eq!(seat.ended.try_recv().unwrap().reason, Reason::PolicyChanged);
    }

    #[test]
    fn a_flow_decided_under_an_older_policy_is_asked_again_when_it_enters() {
        let (with, without) = (policy(&format!("{OPEN}{RULE}")), policy(OPEN));
        let live = Arc::new(Live::default());
        live.judge_again(&without);
        assert_eq!(live.enter(question(), &with).unwrap_err().reason, Reason::PolicyChanged);
        assert!(live.is_empty());
    }

    #[test]
    fn observe_mode_ends_nothing() {
        let with = policy(&format!("{OPEN}{RULE}"));
        let live = Arc::new(Live::default());
        let seats = (live.enter(question(), &with).unwrap(), live.enter_unjudged());
        assert_eq!(live.judge_again(&policy(&OPEN.replace("enforce", "observe"))), 0);
        assert_eq!(live.end_all(), 2);
        assert_eq!(live.len(), 2, "a flow lives until its record is written");
        drop(seats);
        assert!(live.is_empty());
    }
}
