//! The flows that live: each can be judged again and ended, idle or not.
//!
//! ```text
//!   [sure] --- what it depends on lapsed ---> [in doubt] --- asked again: the same ---> [sure]
//!                                                 |--------- asked again: another, or a doubt ---> ended
//!                                                 |--------- asked again: it cannot be said, for 10 s ---> ended
//!                                                 +--------- nobody is there: it goes on, and is asked again
//! ```

mod doubt;
mod fresh;
mod question;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bonafide_policy::{Mode, Policy};
use bonafide_proto::clock::SharedClock;
use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::Execution;
use bonafide_proto::record::Reason;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::sync::{Notify, oneshot, watch};

use crate::identity::{About, AsOf, HOLDERS_MAX, Lapse, Lapsed, Memory, Process, Quarantine, TrustInForce};
use crate::record::Why;
use crate::tunnel::Leaf;
use crate::tunnel::ending::Kind;
pub(crate) use doubt::Doubt;
use doubt::{Doubts, Stake, Stakes};
pub(crate) use fresh::Stale;
pub use question::{Judged, Peer, Program, Question};

#[derive(Debug)]
struct Entry {
    /// `None`: let through unjudged in shadow mode; nothing ends it but the enforcer's own end.
    question: Option<Question>,
    /// Taken when the flow is told to end; the entry itself stays until its record is written.
    end: Option<oneshot::Sender<Why>>,
    /// Here a later certificate is handed to whoever shows it to the other end.
    fresh: watch::Sender<Option<Arc<Leaf>>>,
}

/// The table of live flows.
#[derive(Debug)]
pub struct Live {
    policy: watch::Receiver<Option<Arc<Policy>>>,
    quarantine: watch::Receiver<Arc<Quarantine>>,
    /// What lapsed while a flow was on its way into the table.
    memory: Arc<Memory>,
    /// By which later certificates are judged.
    trust: TrustInForce,
    clock: SharedClock,
    flows: Mutex<Table>,
    /// Somebody has to ask again.
    doubted: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    entries: HashMap<u64, Entry>,
    stakes: Stakes,
    doubts: Doubts,
    /// The mode by which the flows were judged last.
    mode: Option<Mode>,
}

/// A flow in the table, and what it is told.
#[derive(Debug)]
#[must_use = "the flow is forgotten when its seat is dropped"]
pub struct Seat {
    /// Says when and why the flow has to end.
    pub ended: oneshot::Receiver<Why>,
    /// Later certificates of the program at this end, to be shown to the other.
    pub fresh: watch::Receiver<Option<Arc<Leaf>>>,
    /// Its place.
    pub place: Place,
}

/// A flow's place in the table; leaving scope leaves the table, so it has to outlast the flow's account.
#[derive(Debug)]
pub struct Place {
    live: Arc<Live>,
    key: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.live.table().remove(self.key);
    }
}

impl Live {
    /// An empty table that asks these policies, and knows what lapsed, what is in quarantine, whom to trust, and the time.
    pub(crate) fn new(
        policy: watch::Receiver<Option<Arc<Policy>>>,
        quarantine: watch::Receiver<Arc<Quarantine>>,
        memory: Arc<Memory>,
        trust: TrustInForce,
        clock: SharedClock,
    ) -> Self {
        Self { policy, quarantine, memory, trust, clock, flows: Mutex::default(), doubted: Notify::new() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a flow that was let through, and asks the newest policy once more.
    ///
    /// That policy is read under the same lock under which [`Live::judge_again`] asks: a flow that was decided
    /// under an older one cannot slip between. So it is with the quarantine, and with what lapsed since its programs
    /// were attested. `None` is a flow that shadow mode let through unjudged.
    ///
    /// # Errors
    /// Why it may not live.
    pub fn enter(self: &Arc<Self>, question: Option<Question>) -> Result<Seat, Why> {
        let mut table = self.table();
        if let Some(why) = self.objection(question.as_ref()) {
            return Err(why);
        }
        let lapsed = question.as_ref().map_or(Ok(Vec::new()), |question| self.lapsed(question))?;
        if let Some((_, lapse)) = lapsed.iter().find(|(_, lapse)| matches!(lapse.what, Lapsed::Socket(..))) {
            return Err(why_changed(Some(Kind::Socket), &lapse.why));
        }
        let (end, ended) = oneshot::channel();
        let (fresh_in, fresh) = watch::channel(None);
        let key = table.insert(Entry { question, end: Some(end), fresh: fresh_in });
        for (side, lapse) in lapsed {
            self.doubt_by(&mut table, Stake { flow: key, side }, &lapse);
        }
        Ok(Seat { ended, fresh, place: Place { live: Arc::clone(self), key } })
    }

    fn objection(&self, question: Option<&Question>) -> Option<Why> {
        let policy = self.policy.borrow();
        let policy = policy.as_ref()?;
        match question {
            Some(question) => {
                let objection = question.objection(policy, &self.quarantine.borrow());
                objection.or_else(|| question.expired(self.clock.unix()).filter(|_| policy.mode() == Mode::Enforce))
            }
            None if policy.mode() == Mode::Enforce => {
                Some(Why::new(Reason::PolicyChanged, "enforce mode began while it was let through unjudged"))
            }
            None => None,
        }
    }

    /// What lapsed of a flow's programs since they were attested, and of their sockets since they were connected.
    fn lapsed(&self, question: &Question) -> Result<Vec<(question::Side, Arc<Lapse>)>, Why> {
        let mut all = Vec::new();
        for (side, program) in question.programs() {
            let mut lapses = self.memory.since(program.as_of).1;
            if let Some(record) = &program.about.record {
                let uses = self.memory.uses(program.socket(), record.at_ns);
                let forgotten = "more sockets were used by other programs since it began than are remembered";
                lapses.extend(uses.ok_or_else(|| why_changed(Some(Kind::Socket), forgotten))?);
            }
            let (socket, executions) = (program.socket(), &program.attestation.executions);
            lapses.retain(|lapse| {
                lapse.ends(socket, executions) || lapse.concerns(executions) || lapse.kin(socket, executions).is_some()
            });
            all.extend(lapses.into_iter().map(|lapse| (side, lapse)));
        }
        Ok(all)
    }

    fn doubt_by(&self, table: &mut Table, stake: Stake, lapse: &Lapse) {
        match lapse.what {
            Lapsed::Kin(_, by) => self.doubt_kin(table, stake, by, &lapse.why),
            _ => self.doubt(table, stake, &lapse.why, lapse.concerns_holders()),
        }
    }

    /// Somebody of the same program uses the socket: from now on the flow depends on that process, too.
    fn doubt_kin(&self, table: &mut Table, stake: Stake, by: Execution, why: &str) {
        let raised = self.memory.as_of();
        let Some(program) = table.program(stake) else { return };
        if program.attestation.executions.contains(&by) {
            return;
        }
        let mut executions = program.executions(raised);
        // Beyond that identityd says who holds the socket, or that they are too many.
        let of_holders = executions.len() >= HOLDERS_MAX;
        if !of_holders {
            executions.push(by);
        }
        let (stakes, why) = ([stake].into(), why.to_owned());
        table.doubts.raise(Doubt { executions, raised, of_holders, stakes, why });
        self.doubted.notify_one();
    }

    fn doubt(&self, table: &mut Table, stake: Stake, why: &str, of_holders: bool) {
        let raised = self.memory.as_of();
        if let Some(program) = table.program(stake) {
            let executions = program.executions(raised);
            let (stakes, why) = ([stake].into(), why.to_owned());
            table.doubts.raise(Doubt { executions, raised, of_holders, stakes, why });
            self.doubted.notify_one();
        }
    }

    fn enforces(&self) -> bool {
        self.policy.borrow().as_ref().is_some_and(|policy| policy.mode() == Mode::Enforce)
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

    /// Asks every flow's question again, of a new policy or under another quarantine, and ends those that are no longer
    /// allowed. Observe mode ends nothing, and a change of mode leaves the flows alone that it let through unjudged.
    pub fn judge_again(&self, policy: &Policy) -> usize {
        let mut table = self.table();
        let quarantine = self.quarantine.borrow().clone();
        let ended = table.end_where(|question| question?.objection(policy, &quarantine));
        let before = table.mode.replace(policy.mode());
        if policy.mode() == Mode::Enforce && before.is_some_and(|before| before != Mode::Enforce) {
            // What lapsed under another mode ended nothing.
            self.doubt_all(&mut table, "enforce mode began", true);
        }
        ended
    }

    fn doubt_all(&self, table: &mut Table, why: &str, of_holders: bool) {
        for stake in table.all_stakes() {
            self.doubt(table, stake, why, of_holders);
        }
    }

    /// Everything lapsed, but it is not the time to ask who holds the sockets: the holders that are known are asked about.
    pub(crate) fn hear_in_haste(&self, why: &str) {
        self.doubt_all(&mut self.table(), why, false);
    }

    /// Something lapsed: what depends on it is in doubt, and a socket that another program used is no doubt any more.
    pub(crate) fn hear(&self, lapse: &Lapse) -> usize {
        let mut table = self.table();
        match lapse.what {
            Lapsed::Process(process) | Lapsed::Holders(process) => {
                for stake in table.stakes.of_process(process) {
                    self.doubt(&mut table, stake, &lapse.why, lapse.concerns_holders());
                }
            }
            Lapsed::Everything => self.doubt_all(&mut table, &lapse.why, true),
            Lapsed::Kin(socket, by) => {
                for stake in table.stakes.of_socket(socket) {
                    self.doubt_kin(&mut table, stake, by, &lapse.why);
                }
            }
            Lapsed::Socket(socket, _) if self.enforces() => {
                let mut used = table.stakes.of_socket(socket);
                used.retain(|stake| {
                    table.program(*stake).is_none_or(|program| lapse.ends(socket, &program.attestation.executions))
                });
                return used
                    .into_iter()
                    .filter(|stake| table.end(stake.flow, why_changed(Some(Kind::Socket), &lapse.why)))
                    .count();
            }
            Lapsed::Socket(..) => {}
        }
        0
    }

    /// Waits until there may be a doubt.
    pub(crate) async fn doubted(&self) {
        self.doubted.notified().await;
    }

    /// The next question to be asked.
    pub(crate) fn next_doubt(&self) -> Option<Doubt> {
        self.table().doubts.pop()
    }

    /// The sockets that the doubt is about; none, if no flow waits for the answer any more.
    pub(crate) fn doubted_sockets(&self, doubt: &Doubt) -> Vec<About> {
        let table = self.table();
        doubt.stakes.iter().filter_map(|stake| Some(table.program(*stake)?.about)).collect()
    }

    /// On whose account questions about the doubted program are.
    pub(crate) fn doubted_user(&self, doubt: &Doubt) -> u32 {
        let table = self.table();
        let program = doubt.stakes.iter().find_map(|stake| table.program(*stake));
        program.map_or(0, |program| program.attestation.account)
    }

    /// Takes the answer to a doubt, which was asked for then, and ends the flows that it does not justify.
    ///
    /// A socket that nobody holds any more is no reason to end a flow: its last bytes may still be on their way.
    pub(crate) fn settle(&self, doubt: &Doubt, asked: AsOf, answer: &Result<Arc<Attestation>, AttestRefusal>) -> usize {
        let mut table = self.table();
        let settled = |stake: &&Stake| {
            let why = self.settled(&mut table, **stake, asked, answer, doubt);
            why.is_some_and(|why| self.enforces() && table.end(stake.flow, why))
        };
        doubt.stakes.iter().filter(settled).count()
    }

    /// Why the flow has to end, if it has.
    fn settled(
        &self,
        table: &mut Table,
        stake: Stake,
        asked: AsOf,
        answer: &Result<Arc<Attestation>, AttestRefusal>,
        doubt: &Doubt,
    ) -> Option<Why> {
        let program = table.program(stake)?;
        let now = match answer {
            Ok(now) => now,
            Err(refusal) if is_no_doubt(refusal.reason) => return None,
            Err(refusal) if refusal.reason == AttestReason::Quarantined => {
                return Some(Why::new(Reason::Quarantined, refusal.detail.clone()));
            }
            Err(refusal) => {
                return Some(why_changed(
                    kind_in_doubt(refusal.reason),
                    &format!("{}; asked again: {refusal}", doubt.why),
                ));
            }
        };
        if let Some(changed) = program.changed(now) {
            return Some(why_changed(changed.of, &format!("{}; asked again: {}", doubt.why, changed.how)));
        }
        let before = program.attestation.executions.clone();
        table.update(stake, now, asked, &doubt.executions);
        self.hear_of_newcomers(table, stake, asked, &before, &now.executions);
        self.objection(table.entries.get(&stake.flow)?.question.as_ref())
    }

    /// Who was not known to have to do with a flow may have lapsed while it was asked about.
    fn hear_of_newcomers(&self, table: &mut Table, stake: Stake, asked: AsOf, before: &[Execution], now: &[Execution]) {
        let new: Vec<Execution> = now.iter().filter(|execution| !before.contains(execution)).copied().collect();
        if new.is_empty() {
            return;
        }
        for lapse in self.memory.since(asked).1.iter().filter(|lapse| lapse.concerns(&new)) {
            self.doubt(table, stake, &lapse.why, lapse.concerns_holders());
        }
    }

    /// Ends every flow, because the enforcer stops.
    pub fn end_all(&self) -> usize {
        self.table().end_where(|_| Some(Why::new(Reason::EnforcerStopped, "the enforcer was stopped")))
    }
}

fn why_changed(changed: Option<Kind>, detail: &str) -> Why {
    Why { changed, ..Why::new(Reason::IdentityChanged, detail) }
}

/// What changed of a program about which there is a doubt of this name, where the name tells.
fn kind_in_doubt(doubt: AttestReason) -> Option<Kind> {
    use AttestReason as R;
    match doubt {
        R::GenerationGone | R::ExeUnwitnessed | R::ExeReplaced => Some(Kind::Executable),
        R::TwoPrograms | R::ConnectorDiffers | R::HolderUnseen => Some(Kind::Socket),
        _ => None,
    }
}

/// Refusals that say nothing about a program: it ended, or nobody could be asked.
pub(crate) fn is_no_doubt(reason: AttestReason) -> bool {
    reason == AttestReason::ProcessGone || is_no_answer(reason)
}

/// Refusals after which the same question has to be asked again.
pub(crate) fn is_no_answer(reason: AttestReason) -> bool {
    matches!(reason, AttestReason::Unavailable | AttestReason::NoPolicy)
}

impl Table {
    fn insert(&mut self, entry: Entry) -> u64 {
        self.next += 1;
        let flow = self.next;
        for (side, program) in entry.question.iter().flat_map(Question::programs) {
            self.stakes.insert(Stake { flow, side }, program);
        }
        self.entries.insert(flow, entry);
        flow
    }

    fn remove(&mut self, flow: u64) {
        let question = self.entries.remove(&flow).and_then(|entry| entry.question);
        for (side, program) in question.iter().flat_map(Question::programs) {
            self.stakes.remove(Stake { flow, side }, program);
        }
    }

    fn program(&self, stake: Stake) -> Option<&Program> {
        let question = self.entries.get(&stake.flow)?.question.as_ref()?;
        question.programs().find(|(side, _)| *side == stake.side).map(|(_, program)| program)
    }

    fn all_stakes(&self) -> Vec<Stake> {
        let questions = self.entries.iter().filter_map(|(flow, entry)| Some((*flow, entry.question.as_ref()?)));
        questions.flat_map(|(flow, question)| question.programs().map(move |(side, _)| Stake { flow, side })).collect()
    }

    /// Another look, at that time and at those who were asked about, found the same program. Who came to be known
    /// meanwhile stays.
    fn update(&mut self, stake: Stake, now: &Arc<Attestation>, asked: AsOf, about: &[Execution]) {
        let question = self.entries.get_mut(&stake.flow).and_then(|entry| entry.question.as_mut());
        if let Some(program) = question.and_then(|question| question.program_mut(stake.side)) {
            self.stakes.remove(stake, program);
            program.attestation = with_others(now, &program.attestation.executions, about);
            program.as_of = asked;
            self.stakes.insert(stake, program);
        }
    }

    /// Tells one flow to end; false if it was told before.
    fn end(&mut self, flow: u64, why: Why) -> bool {
        let end = self.entries.get_mut(&flow).and_then(|entry| entry.end.take());
        // The flow may have ended by itself just now.
        end.map(|end| end.send(why)).is_some()
    }

    fn end_where(&mut self, why: impl Fn(Option<&Question>) -> Option<Why>) -> usize {
        let mut count = 0;
        for entry in self.entries.values_mut() {
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
}

/// The answer about some executions, and with it those that it was not about.
fn with_others(now: &Arc<Attestation>, known: &[Execution], about: &[Execution]) -> Arc<Attestation> {
    let was_asked = |one: &Execution| about.iter().any(|asked| Process::from(*asked) == Process::from(*one));
    let mut others = known.iter().filter(|one| !was_asked(one) && !now.executions.contains(one)).peekable();
    if others.peek().is_none() {
        return Arc::clone(now);
    }
    let mut all = Attestation::clone(now);
    all.executions.extend(others);
    Arc::new(all)
}

#[cfg(test)]
mod tests;
