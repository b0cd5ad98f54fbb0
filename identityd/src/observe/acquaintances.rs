//! Who the programs are: asked when a flow begins, because they may be gone when it ends.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::observed::Attested;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::flow::{Flow, Life};

/// Executions that are remembered.
const REMEMBERED_MAX: usize = 1 << 14;
/// Flows that wait until it is known who they belong to.
const WAITING_MAX: usize = 1 << 14;
/// Executions that are looked at at once.
const AT_ONCE: usize = 32;
/// How long an answer is good for flows that begin.
const FRESH: Duration = Duration::from_secs(5);

/// A question that is asked.
pub(crate) type Asked<'a> = Pin<Box<dyn Future<Output = Attested> + Send + 'a>>;

/// Knows programs.
pub(crate) trait Attests: Send + Sync {
    /// What this execution runs, and which workload it earns.
    fn execution(&self, execution: Execution) -> Asked<'_>;
}

/// The answers, and what waits for them.
pub(super) struct Acquaintances {
    attests: Arc<dyn Attests>,
    room: Arc<Semaphore>,
    asked: JoinSet<(Execution, Attested)>,
    known: HashMap<Execution, Acquaintance>,
    waiting: usize,
    missed: u64,
}

struct Acquaintance {
    /// Flows of it that live.
    flows: u64,
    answer: Answer,
}

impl Acquaintance {
    /// An answer is kept for the flows of it that live, as the program may be gone when they end. A refusal is not:
    /// another policy may accept what that one did not, and it says nothing of the program that would be lost.
    fn is_outdated(&self) -> bool {
        match &self.answer {
            Answer::Awaited(_) => false,
            Answer::Given(answer, at) => (self.flows == 0 || answer.is_err()) && at.elapsed() >= FRESH,
        }
    }
}

enum Answer {
    /// By these flows, which are over.
    Awaited(Vec<Flow>),
    Given(Box<Attested>, Instant),
}

impl Acquaintances {
    pub(super) fn new(attests: Arc<dyn Attests>) -> Self {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        Self { attests, room, asked: JoinSet::new(), known: HashMap::new(), waiting: 0, missed: 0 }
    }

    /// A flow of this program begins. What is found out now is what is said when the flow ends.
    pub(super) fn begin(&mut self, who: Option<Execution>) {
        if let Some(known) = who.and_then(|who| self.ask(who)) {
            known.flows += 1;
        }
    }

    /// Somebody who may turn out to have a part in it.
    pub(super) fn meet(&mut self, who: Option<Execution>) {
        if let Some(who) = who {
            self.ask(who);
        }
    }

    /// A flow of this program is not told of after all.
    pub(super) fn leave(&mut self, who: Option<Execution>) {
        if let Some(known) = who.and_then(|who| self.known.get_mut(&who)) {
            known.flows = known.flows.saturating_sub(1);
        }
    }

    /// A flow is to be told of: the answer if there is one, else the flow waits for it. Unless it lives it is over.
    pub(super) fn answer(&mut self, flow: Flow) -> Option<Attested> {
        let Some(who) = flow.who else {
            return Some(Err(if flow.is_to_nobody() { no_listener() } else { nobody() }));
        };
        // Its beginning was not heard of, or forgotten.
        if !self.known.contains_key(&who) && self.ask(who).is_none() {
            return Some(Err(no_room()));
        }
        let known = self.known.get_mut(&who)?;
        if flow.life != Life::Lives {
            known.flows = known.flows.saturating_sub(1);
        }
        match &mut known.answer {
            Answer::Given(answer, _) => Some(answer.as_ref().clone()),
            Answer::Awaited(_) if self.waiting >= WAITING_MAX => {
                self.missed = self.missed.saturating_add(1);
                Some(Err(no_room()))
            }
            Answer::Awaited(flows) => {
                flows.push(flow);
                self.waiting += 1;
                None
            }
        }
    }

    /// The next answer, with the flows that waited for it. Never, while nobody is asked about.
    pub(super) async fn answered(&mut self) -> Vec<(Flow, Attested)> {
        loop {
            let (who, answer) = match self.asked.join_next().await {
                Some(Ok(answered)) => answered,
                // A question that panicked has no answer: who waits for it is told when it is forgotten.
                Some(Err(_)) => continue,
                None => std::future::pending().await,
            };
            let Some(known) = self.known.get_mut(&who) else { continue };
            let given = Answer::Given(Box::new(answer.clone()), Instant::now());
            let Answer::Awaited(flows) = std::mem::replace(&mut known.answer, given) else { continue };
            self.waiting = self.waiting.saturating_sub(flows.len());
            if !flows.is_empty() {
                return flows.into_iter().map(|flow| (flow, answer.clone())).collect();
            }
        }
    }

    /// Answers that nobody needs any more.
    pub(super) fn forget_old(&mut self) {
        self.known.retain(|_, known| match &known.answer {
            Answer::Awaited(_) => true,
            Answer::Given(_, at) => known.flows > 0 || at.elapsed() < FRESH,
        });
    }

    /// How much found no room.
    pub(super) fn missed(&self) -> u64 {
        self.missed
    }

    /// `None`: no room.
    fn ask(&mut self, who: Execution) -> Option<&mut Acquaintance> {
        let known = self.known.get(&who);
        if known.is_none_or(Acquaintance::is_outdated) {
            let flows = known.map_or(0, |known| known.flows);
            self.make_room();
            if self.known.len() >= REMEMBERED_MAX && !self.known.contains_key(&who) {
                self.missed = self.missed.saturating_add(1);
                return None;
            }
            let (attests, room) = (Arc::clone(&self.attests), Arc::clone(&self.room));
            self.asked.spawn(async move {
                // The semaphore is never closed.
                let _room = room.acquire_owned().await;
                (who, attests.execution(who).await)
            });
            self.known.insert(who, Acquaintance { flows, answer: Answer::Awaited(Vec::new()) });
        }
        self.known.get_mut(&who)
    }

    /// In need, also answers go that a long flow would have needed: its program is asked again at its end.
    fn make_room(&mut self) {
        if self.known.len() < REMEMBERED_MAX {
            return;
        }
        self.forget_old();
        if self.known.len() >= REMEMBERED_MAX {
            self.known.retain(|_, known| matches!(known.answer, Answer::Awaited(_)));
        }
    }
}

fn nobody() -> AttestRefusal {
    let detail = "the socket was there before flows were observed, and nobody was seen to use it";
    AttestRefusal::new(AttestReason::HolderUnseen, detail)
}

fn no_listener() -> AttestRefusal {
    AttestRefusal::new(AttestReason::NoSocket, "no program listens at this port")
}

fn no_room() -> AttestRefusal {
    AttestRefusal::new(AttestReason::Unavailable, "too many programs were to be looked at at once")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bonafide_proto::observed::{Ending, Protocol};

    /// Knows nobody, and says so by PID.
    #[derive(Debug)]
    struct Refuser;

    impl Attests for Refuser {
        fn execution(&self, execution: Execution) -> Asked<'_> {
            Box::pin(async move { Err(AttestRefusal::new(AttestReason::ProcessGone, execution.pid.to_string())) })
        }
    }

    fn flow(pid: u32) -> Flow {
        let addr = "10.0.0.1:1".parse().unwrap();
        Flow {
            protocol: Protocol::Tcp,
            cookie: u64::from(pid),
            source: true,
            local: addr,
            remote: addr,
            began_ns: 1,
            ended_ns: 2,
            sent: 0,
            received: 0,
            who: execution(pid),
            ending: Ending::Closed,
            life: Life::Over,
        }
    }

    fn execution(pid: u32) -> Option<Execution> {
        (pid != 0).then_some(Execution { pid, start_ticks: 1, image: 1 })
    }

    #[tokio::test]
    async fn a_flow_waits_for_its_program_and_later_ones_have_the_answer_at_once() {
        let mut known = Acquaintances::new(Arc::new(Refuser));
        known.begin(execution(7));
        known.begin(execution(7));
        assert_eq!(known.answer(flow(7)), None);
        let answered = known.answered().await;
        assert_eq!(answered.len(), 1);
        assert_eq!(answered[0].1.clone().unwrap_err().detail, "7");
        assert_eq!(known.answer(flow(7)).unwrap().unwrap_err().detail, "7");
    }

    #[tokio::test]
    async fn a_flow_whose_beginning_was_lost_is_asked_about_at_its_end() {
        let mut known = Acquaintances::new(Arc::new(Refuser));
        assert_eq!(known.answer(flow(9)), None);
        assert_eq!(known.answered().await.len(), 1);
        assert_eq!(known.answer(flow(0)).unwrap().unwrap_err().reason, AttestReason::HolderUnseen);
    }

    #[tokio::test]
    async fn there_is_an_end_to_what_is_remembered_and_it_is_told() {
        let mut known = Acquaintances::new(Arc::new(Refuser));
        let many = u32::try_from(REMEMBERED_MAX).unwrap();
        (1..=many).for_each(|pid| known.begin(execution(pid)));
        known.begin(execution(many + 1));
        assert_eq!(known.missed(), 1);
        assert_eq!(known.answer(flow(many + 1)).unwrap().unwrap_err().reason, AttestReason::Unavailable);
    }
}
