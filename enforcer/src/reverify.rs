//! Continuous re-verification: what identityd takes back is asked again, and flows that it no longer justifies end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::Execution;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::identity::{AsOf, Identity};
use crate::live::{Doubt, Live, is_no_answer};

/// Questions on their way to identityd at once.
const ASKING_MAX: usize = 32;
/// The pause before a question is repeated that nobody answered; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Runs as long as the enforcer.
pub(crate) async fn run(live: Arc<Live>, identity: Identity) {
    let memory = identity.memory();
    let (mut heard, mut quarantine, policy) = (memory.heard(), identity.quarantine(), identity.policy());
    let mut asking = Asking::new(Arc::clone(&live), identity);
    let mut seen = AsOf::default();
    loop {
        let ended = tokio::select! {
            changed = heard.changed() => match changed {
                Ok(()) => {
                    let (now, lapses) = memory.since(seen);
                    seen = now;
                    lapses.iter().map(|lapse| live.hear(lapse)).sum()
                }
                Err(_) => return,
            },
            changed = quarantine.changed() => match (changed, policy.borrow().as_ref()) {
                (Ok(()), Some(policy)) => live.judge_again(policy),
                (Ok(()), None) => 0,
                (Err(_), _) => return,
            },
            Some(answered) = asking.next() => asking.settle(&answered),
            () = live.doubted() => 0,
        };
        if ended > 0 {
            tracing::info!(ended, "flows ended: their programs are not what they were");
        }
        while let Some(doubt) = live.next_doubt() {
            asking.ask(doubt);
        }
    }
}

/// A doubt, and what identityd said.
struct Answered {
    doubt: Doubt,
    asked: AsOf,
    answer: Result<Arc<Attestation>, AttestRefusal>,
}

/// Questions under way: one at a time about the same executions, and not too many of them.
struct Asking {
    live: Arc<Live>,
    identity: Identity,
    running: JoinSet<Answered>,
    /// What is asked, and the doubt that arose meanwhile: the answer under way may be older than that.
    about: HashMap<Vec<Execution>, Option<Doubt>>,
    room: Arc<Semaphore>,
}

impl Asking {
    fn new(live: Arc<Live>, identity: Identity) -> Self {
        let room = Arc::new(Semaphore::new(ASKING_MAX));
        Self { live, identity, running: JoinSet::new(), about: HashMap::new(), room }
    }

    fn ask(&mut self, doubt: Doubt) {
        match self.about.get_mut(&doubt.executions) {
            Some(Some(meanwhile)) => meanwhile.join(doubt),
            Some(meanwhile) => *meanwhile = Some(doubt),
            None => {
                self.about.insert(doubt.executions.clone(), None);
                let (live, identity, room) = (Arc::clone(&self.live), self.identity.clone(), Arc::clone(&self.room));
                self.running.spawn(answered(doubt, live, identity, room));
            }
        }
    }

    /// The next answer; `None` if nothing is asked.
    async fn next(&mut self) -> Option<Answered> {
        // A question that was torn down settles nothing.
        self.running.join_next().await?.ok()
    }

    fn settle(&mut self, answered: &Answered) -> usize {
        let Answered { doubt, asked, answer } = answered;
        if let Some(Some(meanwhile)) = self.about.remove(&doubt.executions) {
            self.ask(meanwhile);
        }
        self.live.settle(doubt, *asked, answer)
    }
}

/// Asks until there is an answer, or nobody waits for it any more.
async fn answered(doubt: Doubt, live: Arc<Live>, identity: Identity, room: Arc<Semaphore>) -> Answered {
    let memory = identity.memory();
    let mut pause = PAUSE_MIN;
    loop {
        let asked = memory.as_of();
        let answer = {
            let _room = room.acquire().await;
            identity.reattest(&doubt.executions).await.map(Arc::new)
        };
        if doubt.raised.is_of_another_session(memory.as_of()) {
            // Another identityd does not know these executions by their numbers. With it comes another doubt.
            let away = AttestRefusal::new(AttestReason::Unavailable, "identityd was away meanwhile");
            return Answered { doubt, asked, answer: Err(away) };
        }
        let again = answer.as_ref().is_err_and(|refusal| is_no_answer(refusal.reason));
        if !again || !live.still_waits(&doubt) {
            return Answered { doubt, asked, answer };
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
