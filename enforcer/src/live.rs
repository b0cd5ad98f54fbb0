//! The flows that live: each can be judged again and ended, idle or not.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bonafide_policy::{Identified, Mode, Policy, Subject, Verdict};
use bonafide_proto::fingerprint::Fingerprint;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::Reason;
use tokio::sync::{oneshot, watch};

use crate::flow::why_denied;
use crate::record::Why;

/// One party of a verdict, owned, so that it can be asked for again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// A workload. If its program is on this host, with the evidence that earned the name: a policy that no
    /// longer accepts this evidence no longer allows the flow, though the name may still be allowed.
    Workload(WorkloadName, Option<Box<Fingerprint>>),
    /// An address outside the mesh.
    Outside(SocketAddr),
}

impl Judged {
    /// As the policy asks for it.
    #[must_use]
    pub fn subject(&self) -> Subject<'_> {
        match self {
            Self::Workload(name, _) => Subject::Workload(name),
            Self::Outside(addr) => Subject::Outside(*addr),
        }
    }

    fn lost_its_name(&self, policy: &Policy) -> Option<Why> {
        let Self::Workload(name, Some(evidence)) = self else { return None };
        match policy.identify(evidence) {
            Identified::Workload(earned) if earned == *name => None,
            _ => Some(Why::new(Reason::NoWorkload, format!("{} does not earn {name} any more", evidence.exe.path))),
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
#[derive(Debug)]
pub struct Live {
    policy: watch::Receiver<Option<Arc<Policy>>>,
    flows: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
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
    /// An empty table that asks these policies.
    #[must_use]
    pub fn new(policy: watch::Receiver<Option<Arc<Policy>>>) -> Self {
        Self { policy, flows: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a flow that was let through, and asks the newest policy once more.
    ///
    /// That policy is read under the same lock under which [`Live::judge_again`] asks: a flow that was decided
    /// under an older one cannot slip between. `None` is a flow that observe mode let through unjudged.
    ///
    /// # Errors
    /// Why the newest policy does not allow it.
    pub fn enter(self: &Arc<Self>, question: Option<Question>) -> Result<Seat, Why> {
        let mut table = self.table();
        if let Some(policy) = self.policy.borrow().as_ref() {
            let refused = match &question {
                Some(question) => no_longer(question, policy),
                None if policy.mode() == Mode::Enforce => {
                    Some(Why::new(Reason::PolicyChanged, "enforce mode began while it was let through unjudged"))
                }
                None => None,
            };
            if let Some(why) = refused {
                return Err(why);
            }
        }
        Ok(self.seat(&mut table, question))
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
    /// Observe mode ends nothing, and a change of mode leaves the flows alone that it let through unjudged.
    pub fn judge_again(&self, policy: &Policy) -> usize {
        end_where(&mut self.table(), |question| question.and_then(|question| no_longer(question, policy)))
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
    let lost = question.from.lost_its_name(policy).or_else(|| question.to.lost_its_name(policy));
    let why = match (lost, question.ask(policy)) {
        (Some(why), _) => why,
        (None, Verdict::Deny(denied)) => why_denied(denied),
        (None, Verdict::Allow(_)) => return None,
    };
    let detail = format!("the policy changed and no longer allows it ({}): {}", why.reason, why.detail);
    Some(Why { reason: Reason::PolicyChanged, detail, ..why })
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
    use bonafide_proto::fingerprint::{Digest, Evidence, HashedFile, Host};

    const OPEN: &str = "mode = 'enforce'\nmesh = ['10.0.0.0/8']\n[[workload]]\nname = 'a'\nexe = '/a'\n[[workload]]\nname = 'b'\nexe = '/b'\n";
    const RULE: &str = "[[rule]]\nname = 'r'\nfrom = 'a'\nto = 'b'\naction = 'allow'\n";

    fn policy(text: &str) -> Arc<Policy> {
        Arc::new(Policy::parse("p.toml", text).unwrap())
    }

    fn live(policy: &Arc<Policy>) -> (watch::Sender<Option<Arc<Policy>>>, Arc<Live>) {
        let (sender, receiver) = watch::channel(Some(Arc::clone(policy)));
        (sender, Arc::new(Live::new(receiver)))
    }

    fn evidence(digest: Digest) -> Box<Fingerprint> {
        Box::new(Fingerprint {
            exe: HashedFile { path: "/a".into(), digest },
            script: Evidence::Absent("not an interpreter".into()),
            uid: 0,
            gid: 0,
            cgroup: Evidence::Absent("none".into()),
            unit: Evidence::Absent("none".into()),
            host: Host {
                bios_uuid: Evidence::Absent("none".into()),
                machine_id: Evidence::Absent("none".into()),
                node: None,
            },
        })
    }

    fn question() -> Question {
        Question {
            from: Judged::Workload("a".parse().unwrap(), Some(evidence(Digest::of(b"a")))),
            to: Judged::Workload("b".parse().unwrap(), None),
            port: 80,
        }
    }

    #[test]
    fn a_flow_ends_when_its_rule_goes_and_only_then() {
        let (with, without) = (policy(&format!("{OPEN}{RULE}")), policy(OPEN));
        let (_sender, live) = live(&with);
        let mut seat = live.enter(Some(question())).unwrap();
        assert_eq!(live.judge_again(&with), 0);
        assert!(seat.ended.try_recv().is_err());
        assert_eq!(live.judge_again(&without), 1);
        assert_eq!(seat.ended.try_recv().unwrap().reason, Reason::PolicyChanged);
    }

    #[test]
    fn a_flow_ends_when_its_program_no_longer_earns_its_name() {
        let with = policy(&format!("{OPEN}{RULE}"));
        let (_sender, live) = live(&with);
        let mut seat = live.enter(Some(question())).unwrap();
        let pinned = |digest: Digest| {
            policy(&format!("{OPEN}{RULE}").replace("exe = '/a'", &format!("exe = '/a'\nsha256 = '{digest}'")))
        };
        assert_eq!(live.judge_again(&pinned(Digest::of(b"a"))), 0);
        assert_eq!(live.judge_again(&pinned(Digest::of(b"another"))), 1);
        assert!(seat.ended.try_recv().unwrap().detail.contains("does not earn a any more"));
    }

    #[test]
    fn a_flow_decided_under_an_older_policy_is_asked_again_when_it_enters() {
        let (_sender, live) = live(&policy(OPEN));
        assert_eq!(live.enter(Some(question())).unwrap_err().reason, Reason::PolicyChanged);
        assert_eq!(live.enter(None).unwrap_err().reason, Reason::PolicyChanged);
        assert!(live.is_empty());
    }

    #[test]
    fn observe_mode_ends_nothing() {
        let observe = policy(&OPEN.replace("enforce", "observe"));
        let (_sender, live) = live(&observe);
        let seats = (live.enter(Some(question())).unwrap(), live.enter(None).unwrap());
        assert_eq!(live.judge_again(&observe), 0);
        assert_eq!(live.end_all(), 2);
        assert_eq!(live.len(), 2, "a flow lives until its record is written");
        drop(seats);
        assert!(live.is_empty());
    }
}
