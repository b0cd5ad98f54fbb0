//! Commits acts together with their entries in the audit chain.
//!
//! Whoever comes while a commit is under way waits, and all who waited go into the next one, which the first of them
//! makes: a disk or a cluster is asked once for many, and who is done waits for nobody else. The chain's head is one of
//! the conditions of each commit, so daemons that share an engine take turns, and none of them writes into the middle.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bonafide_proto::audit::{Entry, Head};
use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Digest;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::StoreError;
use super::audit::Event;
use super::engine::{Condition, Engine, Key, Tree, Write};

pub(super) const HEAD_KEY: &[u8] = b"audit-head";

/// Where an entry lies.
pub(super) fn audit_key(sequence: u64) -> Key {
    Key::new(Tree::Audit, sequence.to_be_bytes())
}

/// What is done at once, or not at all.
#[derive(Debug, Clone, Default)]
pub(super) struct Act {
    pub(super) conditions: Vec<Condition>,
    pub(super) writes: Vec<Write>,
    pub(super) events: Vec<Event>,
    /// What is kept of the chain begins here, after the entry of this digest.
    pub(super) begins: Option<(u64, Digest)>,
}

impl Act {
    fn keys(&self) -> impl Iterator<Item = &Key> {
        self.conditions.iter().map(|c| &c.key).chain(self.writes.iter().map(Write::key))
    }

    /// How much of a commit it takes.
    fn size(&self) -> usize {
        self.conditions.len().max(self.writes.len()) + self.events.len()
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Committer {
    engine: Arc<dyn Engine>,
    clock: SharedClock,
    writer: String,
    queue: Mutex<Queue>,
    /// Held by who commits.
    end: Mutex<End>,
}

/// The end of the chain, as far as this daemon knows.
#[derive(Debug)]
struct End {
    known: Option<Known>,
    mark: Mark,
}

/// A head, and the bytes that say so; `None`: there was none.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known(Head, Option<Vec<u8>>);

/// Those whose acts are in no commit yet.
#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Arc<Waiting>>,
    /// Somebody commits, and wakes the first that waits when that is done.
    led: bool,
}

#[derive(Debug)]
struct Waiting {
    act: Act,
    turn: Mutex<Turn>,
    changed: Condvar,
}

/// ```text
/// Waits ─┬─► Leads ─┐
///        └──────────┴─► Ended
/// ```
#[derive(Debug)]
enum Turn {
    /// Somebody else commits.
    Waits,
    /// It is to commit for all that wait.
    Leads,
    Ended(Result<bool, StoreError>),
}

impl Waiting {
    fn of(act: Act) -> Arc<Self> {
        Arc::new(Self { act, turn: Mutex::new(Turn::Waits), changed: Condvar::new() })
    }

    fn leads(&self) {
        *lock(&self.turn) = Turn::Leads;
        self.changed.notify_one();
    }

    fn ends(&self, outcome: Result<bool, StoreError>) {
        *lock(&self.turn) = Turn::Ended(outcome);
        self.changed.notify_one();
    }

    /// Until it does not wait any more: its outcome, or `None` if it leads.
    fn wait(&self) -> Option<Result<bool, StoreError>> {
        let waits = |turn: &mut Turn| matches!(turn, Turn::Waits);
        let turn = self.changed.wait_while(lock(&self.turn), waits).unwrap_or_else(PoisonError::into_inner);
        match &*turn {
            Turn::Ended(outcome) => Some(outcome.clone()),
            Turn::Waits | Turn::Leads => None,
        }
    }
}

/// The right to commit; dropped, it passes to the first that waits.
struct Lead<'a>(&'a Mutex<Queue>);

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut queue = lock(self.0);
        match queue.waiting.first() {
            Some(next) => next.leads(),
            None => queue.led = false,
        }
    }
}

impl Committer {
    pub(super) fn open(engine: Arc<dyn Engine>, mark: &Path, clock: SharedClock) -> Result<Self, StoreError> {
        let mut writer = [0u8; 8];
        SystemRandom::new().fill(&mut writer).map_err(|_| StoreError::Io {
            path: engine.place(),
            why: "the system's random source failed".to_owned(),
        })?;
        let failed = |e: io::Error| StoreError::Io { path: mark.to_owned(), why: e.to_string() };
        let end = End { known: None, mark: Mark::open(mark).map_err(failed)? };
        let committer =
            Self { engine, clock, writer: hex::encode(writer), queue: Mutex::default(), end: Mutex::new(end) };
        committer.chain_holds_what_was_seen()?;
        Ok(committer)
    }

    /// Done, or false if a condition of it did not hold.
    pub(super) fn commit(&self, act: Act) -> Result<bool, StoreError> {
        let waiting = Waiting::of(act);
        {
            let mut queue = lock(&self.queue);
            queue.waiting.push(waiting.clone());
            if !std::mem::replace(&mut queue.led, true) {
                waiting.leads();
            }
        }
        if let Some(outcome) = waiting.wait() {
            return outcome;
        }
        {
            let _lead = Lead(&self.queue);
            let mut end = lock(&self.end);
            let all = std::mem::take(&mut lock(&self.queue).waiting);
            self.settle(all, &mut end);
        }
        // Its own act was among them.
        waiting.wait().unwrap_or(Ok(false))
    }

    /// Where the chain ends now.
    pub(super) fn head(&self) -> Result<Head, StoreError> {
        self.known().map(|known| known.0)
    }

    fn settle(&self, mut all: Vec<Arc<Waiting>>, end: &mut End) {
        while !all.is_empty() {
            let batch = self.batch(&mut all);
            match self.append(&batch, end) {
                // Which of them it was that lost is told by each alone.
                Ok(false) if batch.len() > 1 => {
                    for one in batch {
                        one.ends(self.append(std::slice::from_ref(&one), end));
                    }
                }
                outcome => batch.iter().for_each(|one| one.ends(outcome.clone())),
            }
        }
    }

    /// The first act, and as many more as fit beside it and touch nothing that another one touches.
    fn batch(&self, all: &mut Vec<Arc<Waiting>>) -> Vec<Arc<Waiting>> {
        // The head takes one condition and one write.
        let mut room = self.engine.room().saturating_sub(1);
        let mut touched = BTreeSet::new();
        let (mut batch, mut left): (Vec<Arc<Waiting>>, Vec<Arc<Waiting>>) = (Vec::new(), Vec::new());
        for one in std::mem::take(all) {
            let alone = one.act.keys().all(|key| !touched.contains(key));
            if batch.is_empty() || (alone && one.act.size() <= room && one.act.begins.is_none()) {
                room = room.saturating_sub(one.act.size());
                touched.extend(one.act.keys().cloned());
                batch.push(one);
            } else {
                left.push(one);
            }
        }
        *all = left;
        batch
    }

    /// Commits these acts at the chain's end; tries again for as long as it is only the chain that has grown.
    fn append(&self, batch: &[Arc<Waiting>], end: &mut End) -> Result<bool, StoreError> {
        loop {
            let known = match end.known.take() {
                Some(known) => known,
                None => self.known()?,
            };
            let (conditions, writes, next) = self.entries(batch, &known)?;
            if self.engine.commit(&conditions, &writes)? {
                end.mark.raise(&next.0).map_err(|e| self.failed(&e))?;
                end.known = Some(next);
                return Ok(true);
            }
            let now = self.known()?;
            let grown = now != known;
            end.known = Some(now);
            if !grown {
                return Ok(false);
            }
        }
    }

    fn entries(
        &self,
        batch: &[Arc<Waiting>],
        known: &Known,
    ) -> Result<(Vec<Condition>, Vec<Write>, Known), StoreError> {
        let mut head = known.0.clone();
        let (mut conditions, mut writes) = (Vec::new(), Vec::new());
        for event in batch.iter().flat_map(|one| &one.act.events) {
            let entry = self.entry(&head, event);
            let bytes = entry.encode().map_err(|e| self.failed(&e))?;
            head = Head { sequence: entry.sequence, digest: Digest::of(&bytes), ..head };
            // First: by these a commit in doubt is told from another one's.
            conditions.push(Condition { key: audit_key(entry.sequence), holds: None });
            writes.push(Write::Put(audit_key(entry.sequence), bytes));
        }
        for act in batch.iter().map(|one| &one.act) {
            conditions.extend(act.conditions.iter().cloned());
            writes.extend(act.writes.iter().cloned());
            // Another daemon may have dropped more meanwhile.
            if let Some((first, before)) = act.begins.filter(|(first, _)| *first > head.first) {
                head = Head { first, before, ..head };
            }
        }
        let bytes = serde_json::to_vec(&head).map_err(|e| self.failed(&e))?;
        let key = Key::new(Tree::Meta, HEAD_KEY);
        conditions.push(Condition { key: key.clone(), holds: known.1.clone() });
        writes.push(Write::Put(key, bytes.clone()));
        Ok((conditions, writes, Known(head, Some(bytes))))
    }

    fn entry(&self, head: &Head, event: &Event) -> Entry {
        Entry {
            sequence: head.sequence.saturating_add(1),
            time: self.clock.unix(),
            previous: head.digest,
            writer: self.writer.clone(),
            act: event.act.to_owned(),
            by: event.by.clone(),
            about: event.about.clone(),
        }
    }

    fn known(&self) -> Result<Known, StoreError> {
        let Some(bytes) = self.engine.get(&Key::new(Tree::Meta, HEAD_KEY))? else {
            return Ok(Known(Head::default(), None));
        };
        let head = serde_json::from_slice(&bytes).map_err(|e| StoreError::Damaged {
            path: self.engine.place(),
            why: format!("the head of the audit chain cannot be read: {e}"),
        })?;
        Ok(Known(head, Some(bytes)))
    }

    /// Whoever can write into the store alone cannot take back what this daemon has seen in it.
    fn chain_holds_what_was_seen(&self) -> Result<(), StoreError> {
        let end = lock(&self.end);
        let Mark { sequence, digest, .. } = end.mark;
        let Known(head, _) = self.known()?;
        let changed = |why| StoreError::AuditChanged { path: self.engine.place(), mark: end.mark.path.clone(), why };
        if sequence > head.sequence {
            return Err(changed(format!("entry {sequence} was written, and its last one now is {}", head.sequence)));
        }
        if sequence < head.first {
            return Ok(());
        }
        let kept = self.engine.get(&audit_key(sequence))?;
        match kept.as_deref().map(Digest::of) == Some(digest) {
            true => Ok(()),
            false => Err(changed(format!("entry {sequence} is another one than was written"))),
        }
    }

    fn failed(&self, why: &dyn std::fmt::Display) -> StoreError {
        StoreError::Io { path: self.engine.place(), why: format!("the audit chain: {why}") }
    }
}

/// The file in which this daemon keeps how far the chain had come, apart from the chain: a number and a digest.
///
/// Not made durable with each commit: after a crash it may be behind, never ahead.
#[derive(Debug)]
pub(super) struct Mark {
    path: PathBuf,
    file: File,
    pub(super) sequence: u64,
    digest: Digest,
}

const MARK_LEN: usize = 40;

impl Mark {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut file).take(MARK_LEN as u64 + 1).read_to_end(&mut bytes)?;
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, format!("{} bytes, not {MARK_LEN}", bytes.len()));
        let (sequence, digest) = match bytes.split_first_chunk::<8>() {
            None if bytes.is_empty() => (0, bonafide_proto::audit::NOTHING),
            Some((sequence, digest)) => {
                (u64::from_be_bytes(*sequence), Digest::try_from(digest).map_err(|_| malformed())?)
            }
            None => return Err(malformed()),
        };
        Ok(Self { path: path.to_owned(), file, sequence, digest })
    }

    fn raise(&mut self, head: &Head) -> io::Result<()> {
        let bytes = [&head.sequence.to_be_bytes()[..], &head.digest.0].concat();
        self.file.write_all_at(&bytes, 0)?;
        (self.sequence, self.digest) = (head.sequence, head.digest);
        Ok(())
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
