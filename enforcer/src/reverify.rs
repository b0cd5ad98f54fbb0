//! Continuous re-verification: what identityd takes back is asked again, and flows that it no longer justifies end.

mod room;
mod unsaid;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::Execution;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::identity::{About, Answer, AsOf, Identity, Lapse, Lapsed, Quarantine, SOCKETS_MAX};
use crate::live::{Doubt, Live, is_no_answer, is_no_doubt};
use room::Room;
use unsaid::Unsaid;

/// The pause before a question is repeated that nobody answered; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The least time between two searches for whoever holds any socket.
const SEARCH_PAUSE: Duration = Duration::from_secs(1);

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
    let mut searches = Searches::default();
    loop {
        let ended = tokio::select! {
            changed = heard.changed() => {
                let (now, lapses) = memory.since(seen);
                seen = now;
                changed.map(|()| lapses.iter().map(|lapse| searches.hear(&live, lapse)).sum())
            }
            () = searches.due() => Ok(searches.begin(&live)),
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

/// Searches for whoever holds any live flow's socket: identityd looks through every process for it.
#[derive(Default)]
struct Searches {
    last: Option<Instant>,
    /// What was heard too early for the next.
    waiting: Option<Arc<Lapse>>,
}

impl Searches {
    fn hear(&mut self, live: &Live, lapse: &Arc<Lapse>) -> usize {
        if lapse.what == Lapsed::Everything {
            if self.last.is_some_and(|last| last.elapsed() < SEARCH_PAUSE) {
                self.waiting = Some(Arc::clone(lapse));
                live.hear_in_haste(&lapse.why);
                return 0;
            }
            self.last = Some(Instant::now());
            self.waiting = None;
        }
        live.hear(lapse)
    }

    /// Returns when it is time for the one that waits; never if none does.
    async fn due(&self) {
        match (&self.waiting, self.last) {
            (Some(_), Some(last)) => sleep_until(last + SEARCH_PAUSE).await,
            _ => std::future::pending().await,
        }
    }

    fn begin(&mut self, live: &Live) -> usize {
        self.last = Some(Instant::now());
        self.waiting.take().map_or(0, |lapse| live.hear(&lapse))
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
            if !settled.iter().any(Settled::is_open) || self.live.doubted_sockets(&doubt).is_empty() {
                return Answered { executions: doubt.executions, settled };
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn attempt(&self, doubt: &Doubt) -> Vec<Settled> {
        if doubt.of_holders {
            return self.by_sockets(doubt).await;
        }
        let asked = self.reattest(doubt.clone(), &[]).await;
        match &asked.answer.result {
            // Who has its sockets now, if anybody?
            Err(refusal) if refusal.reason == AttestReason::ProcessGone => self.by_sockets(doubt).await,
            // One of several executions is another now. It may have been a child between fork and exec, which had the
            // socket in common with its parent for that moment: whoever has it now is whom it is about.
            Err(refusal) if doubt.executions.len() > 1 && !is_no_answer(refusal.reason) => self.by_sockets(doubt).await,
            _ => vec![asked],
        }
    }

    /// Asks about many sockets at once, and about each half where their holders do not agree. None are asked about for
    /// which no flow waits any more.
    async fn by_sockets(&self, doubt: &Doubt) -> Vec<Settled> {
        let mut settled = Vec::new();
        let mut parts = doubt.split(SOCKETS_MAX);
        while let Some(part) = parts.pop() {
            let sockets = self.live.doubted_sockets(&part);
            if sockets.is_empty() {
                continue;
            }
            let asked = self.reattest(part, &sockets).await;
            match &asked.answer.result {
                Err(refusal) if asked.doubt.flows() > 1 && !is_no_doubt(refusal.reason) => {
                    parts.extend(asked.doubt.split(asked.doubt.flows().div_ceil(2)));
                }
                _ => settled.push(asked),
            }
        }
        settled
    }

    async fn reattest(&self, doubt: Doubt, sockets: &[About]) -> Settled {
        let _room = self.room.enter(self.live.doubted_user(&doubt)).await;
        let asked = self.identity.memory().as_of();
        let answer = self.identity.reattest(&doubt.executions, sockets).await;
        Settled { doubt, asked, answer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Memory;

    fn searches(last: Option<Instant>) -> Searches {
        Searches { last, waiting: None }
    }

    #[tokio::test]
    async fn a_search_follows_another_after_a_pause() {
        let (_policy, policies) = watch::channel(None);
        let (_quarantine, quarantined) = watch::channel(Arc::default());
        let (trust, clock) = (watch::channel(None).1, Arc::new(bonafide_proto::clock::SystemClock));
        let live = Live::new(policies, quarantined, Arc::new(Memory::default()), trust, clock);
        let lost = Arc::new(Lapse { what: Lapsed::Everything, why: "lost".into(), at_ns: 0 });
        let just_now = Some(Instant::now() + Duration::from_secs(3600));
        for (last, waits) in [(None, false), (Instant::now().checked_sub(SEARCH_PAUSE), false), (just_now, true)] {
            let mut searches = searches(last);
            searches.hear(&live, &lost);
            assert_eq!(searches.waiting.is_some(), waits, "{last:?}");
        }
        let mut searches = searches(Instant::now().checked_sub(SEARCH_PAUSE));
        searches.waiting = Some(lost);
        searches.due().await;
        searches.begin(&live);
        assert!(searches.waiting.is_none() && searches.last.is_some_and(|last| last.elapsed() < SEARCH_PAUSE));
    }
}
