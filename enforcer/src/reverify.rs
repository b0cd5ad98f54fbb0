//! Continuous re-verification: what identityd takes back is asked again, and flows that it no longer justifies end.

mod room;
mod unsaid;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::Execution;
use bonafide_proto::flow::SocketRole;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::flow::listener_now;
use crate::identity::{About, Answer, AsOf, Identity, Quarantine};
use crate::live::{Doubt, Live, is_no_answer, is_no_doubt};
use room::Room;
use unsaid::Unsaid;

/// The pause before a question is repeated that nobody answered; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Hears every lapse from now on; runs as long as the enforcer.
pub(crate) fn run(live: Arc<Live>, identity: Identity) -> impl Future<Output = ()> + Send {
    let heard = identity.memory().heard();
    let seen = identity.memory().as_of();
    let quarantine = identity.quarantine();
    follow(Asking::new(live, identity), heard, seen, quarantine)
}

async fn follow(
    mut asking: Asking,
    mut heard: watch::Receiver<u64>,
    mut seen: AsOf,
    mut quarantine: watch::Receiver<Arc<Quarantine>>,
) {
    let (memory, policy) = (asking.identity.memory(), asking.identity.policy());
    let live = Arc::clone(&asking.live);
    loop {
        let ended = tokio::select! {
            changed = heard.changed() => {
                let (now, lapses) = memory.since(seen);
                seen = now;
                changed.map(|()| lapses.iter().map(|lapse| live.hear(lapse)).sum())
            }
            changed = quarantine.changed() => {
                let policy = policy.borrow().clone();
                changed.map(|()| policy.map_or(0, |policy| live.judge_again(&policy)))
            }
            Some(answered) = asking.next() => Ok(asking.settle(answered)),
            () = live.doubted() => Ok(0),
        };
        match ended {
            Ok(0) => {}
            Ok(ended) => tracing::info!(ended, "flows ended: their programs are not what they were"),
            Err(_) => return,
        }
        while let Some(doubt) = live.next_doubt() {
            asking.ask(doubt);
        }
    }
}

/// A doubt, when it was asked, and what identityd said.
struct Settled {
    doubt: Doubt,
    asked: AsOf,
    answer: Answer<Arc<Attestation>>,
}

impl Settled {
    /// Whether the same has to be asked again.
    fn is_open(&self) -> bool {
        matches!(&self.answer.result, Err(refusal) if is_no_answer(refusal.reason))
    }

    /// Whether identityd was there, and could not say. Without a policy it says nothing of anybody.
    fn is_unsaid(&self) -> bool {
        self.answer.reached && matches!(&self.answer.result, Err(e) if e.reason == AttestReason::Unavailable)
    }

    /// It could not say for too long: that is an answer.
    fn conclude(&mut self) {
        if self.is_unsaid()
            && let Err(refusal) = &mut self.answer.result
        {
            let detail = format!("identityd could not say for too long: {}", refusal.detail);
            *refusal = AttestRefusal::new(AttestReason::EvidenceUnavailable, detail);
        }
    }
}

/// All that was asked about the same executions.
struct Answered {
    executions: Vec<Execution>,
    settled: Vec<Settled>,
}

/// Questions under way: one at a time about the same executions, and not too many of them.
struct Asking {
    live: Arc<Live>,
    identity: Identity,
    running: JoinSet<Answered>,
    /// What is asked, and the doubt that arose meanwhile: the answer under way may be older than that.
    about: HashMap<Vec<Execution>, Option<Doubt>>,
    room: Arc<Room>,
}

impl Asking {
    fn new(live: Arc<Live>, identity: Identity) -> Self {
        let room = Arc::new(Room::new());
        Self { live, identity, running: JoinSet::new(), about: HashMap::new(), room }
    }

    fn ask(&mut self, doubt: Doubt) {
        match self.about.get_mut(&doubt.executions) {
            Some(Some(meanwhile)) => meanwhile.join(doubt),
            Some(meanwhile) => *meanwhile = Some(doubt),
            None => {
                self.about.insert(doubt.executions.clone(), None);
                let (live, identity) = (Arc::clone(&self.live), self.identity.clone());
                let asker = Asker { live, identity, room: Arc::clone(&self.room) };
                self.running.spawn(asker.answered(doubt));
            }
        }
    }

    /// The next answer; `None` if nothing is asked.
    async fn next(&mut self) -> Option<Answered> {
        // A question that was torn down settles nothing.
        self.running.join_next().await?.ok()
    }

    fn settle(&mut self, answered: Answered) -> usize {
        if let Some(Some(meanwhile)) = self.about.remove(&answered.executions) {
            self.ask(meanwhile);
        }
        answered.settled.iter().map(|s| self.live.settle(&s.doubt, s.asked, &s.answer.result)).sum()
    }
}

/// Asks one question.
struct Asker {
    live: Arc<Live>,
    identity: Identity,
    room: Arc<Room>,
}

impl Asker {
    /// Asks until there is an answer, or nobody waits for it any more. As long as identityd is not there the question
    /// stays; that it cannot say is an answer after a while.
    async fn answered(self, doubt: Doubt) -> Answered {
        let memory = self.identity.memory();
        let (mut pause, mut unsaid) = (PAUSE_MIN, Unsaid::default());
        loop {
            let began = Instant::now();
            let mut settled = self.attempt(&doubt).await;
            if doubt.raised.is_of_another_session(memory.as_of()) {
                // Another identityd does not know these executions by their numbers. With it comes another doubt.
                return Answered { executions: doubt.executions, settled: Vec::new() };
            }
            if !settled.iter().any(Settled::is_unsaid) {
                unsaid.forget();
            } else if unsaid.too_often(began, Instant::now()) {
                settled.iter_mut().for_each(Settled::conclude);
            }
            if !settled.iter().any(Settled::is_open) || self.live.doubted_program(&doubt).is_none() {
                return Answered { executions: doubt.executions, settled };
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn attempt(&self, doubt: &Doubt) -> Vec<Settled> {
        let asked = self.identity.memory().as_of();
        let answer = {
            let _room = self.room.enter(self.user(doubt)).await;
            self.identity.reattest(&doubt.executions).await
        };
        match &answer.result {
            Err(refusal) if doubt.executions.len() > 1 && !is_no_doubt(refusal.reason) => {
                self.socket_by_socket(doubt, refusal).await
            }
            _ => vec![Settled { doubt: doubt.clone(), asked, answer }],
        }
    }

    /// One of several executions is another now. It may have been a child between fork and exec, which had the socket
    /// in common with its parent for that moment: whoever has it now is whom it is about.
    async fn socket_by_socket(&self, doubt: &Doubt, refusal: &AttestRefusal) -> Vec<Settled> {
        let mut settled = Vec::new();
        for part in doubt.split() {
            let Some(program) = self.live.doubted_program(&part) else { continue };
            let _room = self.room.enter(program.attestation.fingerprint.uid).await;
            let asked = self.identity.memory().as_of();
            let answer = if program.as_of.is_of_another_session(asked) {
                // Nor does another identityd know the kernel's record of that socket.
                Answer { result: Err(refusal.clone()), reached: true }
            } else {
                self.who_has(program.about).await
            };
            settled.push(Settled { doubt: part, asked, answer });
        }
        settled
    }

    async fn who_has(&self, about: About) -> Answer<Arc<Attestation>> {
        let attested = match about.key.role {
            SocketRole::Connector => self.identity.asked(about).await,
            SocketRole::Listener => match listener_now(about.key) {
                Ok((_spare, key)) => self.identity.asked(About::key(key)).await,
                Err(e) => {
                    let refusal = AttestRefusal::new(AttestReason::Unavailable, format!("no port to ask from: {e}"));
                    Answer { result: Err(refusal), reached: true }
                }
            },
        };
        attested.map(|attested| attested.attestation)
    }

    /// Whose program the doubt is about.
    fn user(&self, doubt: &Doubt) -> u32 {
        self.live.doubted_program(doubt).map_or(0, |program| program.attestation.fingerprint.uid)
    }
}
