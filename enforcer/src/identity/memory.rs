//! What identityd answered and has not taken back. Performs no I/O.
//!
//! ```text
//!   [deaf] --- ready ---> [listening] --- the stream ends ---> [deaf], and all answers are forgotten
//! ```
//!
//! An answer is remembered only if it was asked for while listening, and nothing it rests on lapsed between the question
//! and the answer: identityd looks first and tells lapses through another stream, which may overtake the answer.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::Execution;
use bonafide_proto::kernel::{ConnectRecord, Doubts};
use tokio::sync::watch;

use super::lapse::{Lapse, Lapsed, Process, Socket};

/// Lapses that are remembered. Who missed more than that has missed everything.
const LAPSES_MAX: usize = 16_384;
/// Answers in each of the two halves of the cache.
const HALF_MAX: usize = 8192;

/// How far identityd had been heard when a question was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct AsOf {
    /// Lapses heard before.
    heard: u64,
    /// How often identityd had begun or ceased to tell them.
    session: u64,
    /// How many policies had come into force.
    policies: u64,
}

/// What may be used again. Every clone of an identity shares it.
#[derive(Debug)]
pub(crate) struct Memory {
    known: Mutex<Known>,
    heard: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Known {
    listening: bool,
    session: u64,
    policies: u64,
    heard: u64,
    /// The newest lapses, the newest last.
    lapses: VecDeque<Arc<Lapse>>,
    /// Those of them that are about sockets.
    uses: HashMap<Socket, VecDeque<Arc<Lapse>>>,
    /// When the last use by another program was that is not remembered.
    forgotten_ns: u64,
    answers: Answers,
}

impl Default for Memory {
    fn default() -> Self {
        Self { known: Mutex::default(), heard: watch::channel(0).0 }
    }
}

impl Memory {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Now.
    pub(crate) fn as_of(&self) -> AsOf {
        self.known().as_of()
    }

    /// The answer about this record, if one is remembered; and now.
    pub(super) fn recall(&self, record: Option<&ConnectRecord>) -> (AsOf, Option<Arc<Attestation>>) {
        let mut known = self.known();
        let answer = record.and_then(Asked::of).and_then(|asked| known.answers.get(&asked));
        (known.as_of(), answer)
    }

    /// Remembers the answer to a question that was asked then, unless there is doubt.
    pub(super) fn remember(&self, asked: AsOf, record: Option<&ConnectRecord>, answer: &Arc<Attestation>) {
        let Some(about) = record.and_then(Asked::of).filter(|about| about.is_answered_by(answer)) else { return };
        let mut known = self.known();
        let sound = known.listening && known.policies == asked.policies;
        if sound && !known.since(asked).iter().any(|lapse| lapse.concerns(&[about.execution])) {
            known.answers.insert(about, Arc::clone(answer));
        }
    }

    /// identityd will tell lapses from now on. Nobody knows what lapsed before.
    pub(crate) fn ready(&self) {
        {
            let mut known = self.known();
            known.listening = true;
            known.session += 1;
        }
        self.hear(Lapse::of_everything("identityd was away"));
    }

    /// identityd tells no lapses any more.
    pub(crate) fn deafen(&self) {
        let mut known = self.known();
        known.listening = false;
        known.session += 1;
        known.answers = Answers::default();
    }

    /// Something lapsed.
    pub(crate) fn hear(&self, lapse: Lapse) {
        let heard = {
            let mut known = self.known();
            match lapse.what {
                Lapsed::Process(process) | Lapsed::Holders(process) => known.answers.forget(process),
                Lapsed::Everything => known.answers = Answers::default(),
                Lapsed::Socket(..) | Lapsed::Kin(..) => {}
            }
            known.note(lapse)
        };
        self.heard.send_replace(heard);
    }

    /// Another policy: what identityd answered about workloads before it is worth nothing now, and neither is what it
    /// was asked before. Live flows are judged by that policy already.
    pub(super) fn another_policy(&self) {
        let mut known = self.known();
        known.answers = Answers::default();
        known.policies += 1;
    }

    /// The number of lapses heard, whenever it changes.
    pub(crate) fn heard(&self) -> watch::Receiver<u64> {
        self.heard.subscribe()
    }
}

impl Memory {
    /// What lapsed since then, in order; and now.
    pub(crate) fn since(&self, then: AsOf) -> (AsOf, Vec<Arc<Lapse>>) {
        let known = self.known();
        (known.as_of(), known.since(then))
    }
}

impl Memory {
    /// Which uses of a socket were told of, of those since then: a connection that began then had no others. `None`: too
    /// many uses by other programs were told of to know.
    pub(crate) fn uses(&self, socket: Socket, since_ns: u64) -> Option<Vec<Arc<Lapse>>> {
        let known = self.known();
        let uses = known.uses.get(&socket).into_iter().flatten();
        let since = || uses.filter(|lapse| lapse.at_ns >= since_ns).cloned().collect();
        (known.forgotten_ns < since_ns).then(since)
    }
}

impl AsOf {
    /// Whether identityd was away since then, or may have been replaced by another one.
    pub(crate) fn is_of_another_session(self, now: Self) -> bool {
        self.session != now.session
    }
}

impl Known {
    fn as_of(&self) -> AsOf {
        AsOf { heard: self.heard, session: self.session, policies: self.policies }
    }

    fn note(&mut self, lapse: Lapse) -> u64 {
        if self.lapses.len() == LAPSES_MAX
            && let Some(oldest) = self.lapses.pop_front()
        {
            self.forget(&oldest);
        }
        let lapse = Arc::new(lapse);
        if let Some(socket) = lapse.socket() {
            self.uses.entry(socket).or_default().push_back(Arc::clone(&lapse));
        }
        self.lapses.push_back(lapse);
        self.heard += 1;
        self.heard
    }

    fn forget(&mut self, oldest: &Lapse) {
        let Some(socket) = oldest.socket() else { return };
        if matches!(oldest.what, Lapsed::Socket(..)) {
            self.forgotten_ns = self.forgotten_ns.max(oldest.at_ns);
        }
        if let Some(uses) = self.uses.get_mut(&socket) {
            uses.pop_front();
            if uses.is_empty() {
                self.uses.remove(&socket);
            }
        }
    }

    fn since(&self, then: AsOf) -> Vec<Arc<Lapse>> {
        let missed = usize::try_from(self.heard - then.heard).unwrap_or(usize::MAX);
        match self.lapses.len().checked_sub(missed) {
            Some(skip) => self.lapses.range(skip..).cloned().collect(),
            None => vec![Arc::new(Lapse::of_everything("more changed than is remembered"))],
        }
    }
}

/// A question about a connecting program, as the kernel's record puts it: all that makes the answer its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    execution: Execution,
    uid: u32,
    gid: u32,
    cgroup: u64,
}

impl Asked {
    /// None if the record leaves a doubt: then only identityd can tell, who looks at everybody who holds the socket.
    /// (Whether it is content with a program that ran before the kernel programs did is in its answer already.)
    fn of(record: &ConnectRecord) -> Option<Self> {
        let doubts = record.doubts.0 & !Doubts::UNWITNESSED.0;
        if doubts != 0 || record.image == 0 || record.pid == 0 {
            return None;
        }
        let execution = Execution { pid: record.pid, start_ticks: record.start_ticks(), image: record.image };
        Some(Self { execution, uid: record.uid, gid: record.gid, cgroup: record.cgroup })
    }

    /// Whether an answer is about this execution alone, and as it was when it connected.
    fn is_answered_by(&self, answer: &Attestation) -> bool {
        let owner = (answer.fingerprint.uid, answer.fingerprint.gid);
        answer.executions == [self.execution] && owner == (self.uid, self.gid)
    }
}

/// Answers, one for each process: the newest. When the young half is full, the old half is dropped and the young one
/// grows old, so that what is used stays and what is not goes.
#[derive(Debug, Default)]
struct Answers {
    young: HashMap<Process, (Asked, Arc<Attestation>)>,
    old: HashMap<Process, (Asked, Arc<Attestation>)>,
}

impl Answers {
    fn get(&mut self, asked: &Asked) -> Option<Arc<Attestation>> {
        let process = Process::from(asked.execution);
        if let Some((about, answer)) = self.young.get(&process) {
            return (about == asked).then(|| Arc::clone(answer));
        }
        let (about, answer) = self.old.remove(&process)?;
        let found = (about == *asked).then(|| Arc::clone(&answer));
        self.insert(about, answer);
        found
    }

    fn insert(&mut self, about: Asked, answer: Arc<Attestation>) {
        if self.young.len() >= HALF_MAX {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(about.execution.into(), (about, answer));
    }

    fn forget(&mut self, process: Process) {
        self.young.remove(&process);
        self.old.remove(&process);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bonafide_proto::fingerprint::{Digest, Evidence, Fingerprint, HashedFile, Host};

    fn record(pid: u32) -> ConnectRecord {
        ConnectRecord {
            at_ns: 1,
            cookie: 2,
            start_ns: 70_000_000,
            image: 4,
            cgroup: 5,
            netns: 6,
            pid,
            tid: pid,
            uid: 33,
            gid: 34,
            references: 1,
            isn: 12,
            doubts: Doubts::default(),
        }
    }

    fn execution(pid: u32) -> Execution {
        Execution { pid, start_ticks: 7, image: 4 }
    }

    fn answer(executions: Vec<Execution>) -> Arc<Attestation> {
        let absent = || Evidence::Absent("none".into());
        let host = Host { bios_uuid: absent(), machine_id: absent(), node: None };
        let exe = HashedFile { path: "/a".into(), digest: Digest::of(b"a") };
        Arc::new(Attestation {
            executions,
            fingerprint: Fingerprint::of(exe, (33, 34), host),
            account: 33,
            workload: None,
            near_misses: vec![],
            source: "kernel".into(),
        })
    }

    fn lapse(what: Lapsed) -> Lapse {
        Lapse { what, why: "because".into(), at_ns: 0 }
    }

    fn ready() -> Memory {
        let memory = Memory::default();
        memory.ready();
        memory
    }

    /// Asks about a process and gets an answer, with whatever happens in between.
    fn ask(memory: &Memory, pid: u32, meanwhile: impl FnOnce(&Memory)) {
        let (as_of, _) = memory.recall(Some(&record(pid)));
        meanwhile(memory);
        memory.remember(as_of, Some(&record(pid)), &answer(vec![execution(pid)]));
    }

    fn remembers(memory: &Memory, record: &ConnectRecord) -> bool {
        memory.recall(Some(record)).1.is_some()
    }

    #[test]
    fn an_answer_is_good_for_the_same_question_only() {
        let memory = ready();
        ask(&memory, 1, |_| ());
        let same = ConnectRecord { at_ns: 9, cookie: 9, tid: 9, isn: 9, ..record(1) };
        assert!(remembers(&memory, &same));
        let others = [
            ConnectRecord { image: 5, ..record(1) },
            ConnectRecord { start_ns: 80_000_000, ..record(1) },
            ConnectRecord { uid: 0, ..record(1) },
            ConnectRecord { gid: 0, ..record(1) },
            ConnectRecord { cgroup: 6, ..record(1) },
            record(2),
        ];
        for other in others {
            assert!(!remembers(&memory, &other), "{other:?}");
        }
        for doubt in (0..32).map(|bit| Doubts(1 << bit)) {
            let doubtful = ConnectRecord { doubts: doubt, ..record(1) };
            assert_eq!(remembers(&memory, &doubtful), doubt == Doubts::UNWITNESSED);
        }
        assert!(memory.recall(None).1.is_none());
        assert!(remembers(&memory, &record(1)));
    }

    #[test]
    fn what_is_not_about_this_execution_alone_is_not_remembered() {
        let memory = ready();
        let (as_of, _) = memory.recall(None);
        memory.remember(as_of, Some(&record(1)), &answer(vec![execution(1), execution(2)]));
        memory.remember(as_of, Some(&record(1)), &answer(vec![execution(2)]));
        memory.remember(as_of, None, &answer(vec![execution(1)]));
        let doubtful = ConnectRecord { doubts: Doubts::SHARED_FILE, ..record(1) };
        memory.remember(as_of, Some(&doubtful), &answer(vec![execution(1)]));
        let unwitnessed = ConnectRecord { image: 0, ..record(1) };
        memory.remember(as_of, Some(&unwitnessed), &answer(vec![Execution { image: 0, ..execution(1) }]));
        let became_root = ConnectRecord { uid: 0, ..record(1) };
        memory.remember(as_of, Some(&became_root), &answer(vec![execution(1)]));
        for record in [record(1), doubtful, unwitnessed, became_root] {
            assert!(!remembers(&memory, &record));
        }
    }

    #[test]
    fn nothing_is_remembered_while_lapses_are_not_told() {
        let memory = Memory::default();
        ask(&memory, 1, |_| ());
        assert!(!remembers(&memory, &record(1)), "not ready yet");
        ask(&memory, 1, Memory::ready);
        assert!(!remembers(&memory, &record(1)), "asked before it was ready");
        ask(&memory, 1, |_| ());
        assert!(remembers(&memory, &record(1)));
        memory.deafen();
        assert!(!remembers(&memory, &record(1)), "the stream ended");
        ask(&memory, 1, |_| ());
        assert!(!remembers(&memory, &record(1)), "deaf");
        memory.ready();
        ask(&memory, 1, |memory| {
            memory.deafen();
            memory.ready();
        });
        assert!(!remembers(&memory, &record(1)), "it was away between question and answer");
    }

    #[test]
    fn a_lapse_takes_answers_back_also_those_under_way() {
        let memory = ready();
        for pid in [1, 2] {
            ask(&memory, pid, |_| ());
        }
        let of_one = || lapse(Lapsed::Process(execution(1).into()));
        memory.hear(of_one());
        assert!(!remembers(&memory, &record(1)));
        assert!(remembers(&memory, &record(2)));
        ask(&memory, 1, |memory| memory.hear(of_one()));
        assert!(!remembers(&memory, &record(1)), "asked before the lapse, answered after it");
        ask(&memory, 2, |memory| memory.hear(of_one()));
        assert!(remembers(&memory, &record(2)), "somebody else's lapse");
        memory.hear(lapse(Lapsed::Everything));
        assert!(!remembers(&memory, &record(2)));
        ask(&memory, 2, |memory| memory.hear(lapse(Lapsed::Everything)));
        assert!(!remembers(&memory, &record(2)));
        ask(&memory, 2, |memory| (0..=LAPSES_MAX).for_each(|_| memory.hear(of_one())));
        assert!(!remembers(&memory, &record(2)), "too many lapses to know");
        ask(&memory, 2, |memory| (0..LAPSES_MAX).for_each(|_| memory.hear(of_one())));
        assert!(remembers(&memory, &record(2)), "just not too many");
    }

    #[test]
    fn uses_of_a_socket_are_known_from_when_its_connection_began() {
        let memory = ready();
        let [one, other] = [1, 2].map(|port| Socket::new(([10, 0, 0, 1], port).into(), ([10, 0, 0, 2], 80).into()));
        let used = |socket, at_ns| Lapse { at_ns, ..lapse(Lapsed::Socket(socket, None)) };
        memory.hear(used(one, 5));
        memory.hear(Lapse { at_ns: 7, ..lapse(Lapsed::Kin(one, execution(1))) });
        let uses = |socket, since| memory.uses(socket, since).map(|uses| uses.len());
        assert_eq!([uses(one, 5), uses(one, 6), uses(one, 8), uses(other, 1)], [Some(2), Some(1), Some(0), Some(0)]);
        (0..LAPSES_MAX).for_each(|_| memory.hear(used(other, 9)));
        assert_eq!([uses(one, 5), uses(one, 6)], [None, Some(0)], "the first is forgotten");
        (0..LAPSES_MAX).for_each(|_| memory.hear(lapse(Lapsed::Process(execution(1).into()))));
        assert!(memory.known().uses.is_empty());
    }

    #[test]
    fn another_policy_takes_all_answers_back_also_those_under_way() {
        let memory = ready();
        ask(&memory, 1, |_| ());
        memory.another_policy();
        assert!(!remembers(&memory, &record(1)));
        ask(&memory, 1, Memory::another_policy);
        assert!(!remembers(&memory, &record(1)));
    }

    #[test]
    fn what_is_used_stays_and_the_cache_is_bounded() {
        let memory = ready();
        for pid in 1..=u32::try_from(5 * HALF_MAX).unwrap() {
            ask(&memory, pid, |_| ());
            assert!(remembers(&memory, &record(1)), "used all the time: {pid}");
        }
        let known = memory.known();
        assert!(known.answers.young.len() <= HALF_MAX && known.answers.old.len() <= HALF_MAX);
        assert!(known.lapses.len() <= LAPSES_MAX);
        drop(known);
        assert!(!remembers(&memory, &record(2)));
    }
}
