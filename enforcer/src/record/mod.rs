//! Flow records: exactly one line for each flow, whatever happens to the flow or to this daemon.
//!
//! An [`Account`] is opened when a connection is captured and closed once; dropping it closes it too. While it is
//! open its draft stands in a journal, so that a killed enforcer accounts for its flows when it starts again.

mod account;
mod journal;
mod lines;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bonafide_proto::clock::SharedClock;
use bonafide_proto::record::{End, EndedBy, FlowRecord, Outcome, Reason};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::history::History;
pub use account::{Account, Counters, Why};
pub(crate) use account::{describe_attested, describe_peer};
use journal::Journal;
use lines::Lines;

/// Where records go.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    clock: SharedClock,
    written: Mutex<Files>,
    flows: AtomicU64,
    refused: AtomicU64,
    stopping: AtomicBool,
    history: OnceLock<Arc<History>>,
}

#[derive(Debug)]
struct Files {
    records: Lines,
    journal: Journal,
}

impl Records {
    /// Opens the record file, and first accounts for the flows that an earlier, killed enforcer left open.
    ///
    /// # Errors
    /// Either file cannot be opened or written.
    pub fn open(path: &Path, state: &Path, clock: SharedClock) -> io::Result<Arc<Self>> {
        let mut records = Lines::open(path)?;
        let now = rfc3339(&clock);
        let journal_path = state.join("live.jsonl");
        for orphan in journal::orphans(&journal_path, path)? {
            records.write(&killed(orphan, &now))?;
        }
        let journal = Journal::create(&journal_path)?;
        Ok(Arc::new(Self {
            path: path.to_owned(),
            clock,
            written: Mutex::new(Files { records, journal }),
            flows: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            history: OnceLock::new(),
        }))
    }

    /// From now on, flows are counted there, too; once.
    pub fn count_in(&self, history: Arc<History>) {
        let _already = self.history.set(history);
    }

    /// Where flows are counted.
    #[must_use]
    pub fn history(&self) -> Option<&Arc<History>> {
        self.history.get()
    }

    /// The record file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many flows were accounted for since the start, and how many of them were refused.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (self.flows.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }

    /// From now on, flows that are dropped unfinished were ended by the enforcer's own stop.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        // A panic while holding the lock leaves at worst a partial line, which readers skip.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since 1970.
    pub(crate) fn now_ns(&self) -> i64 {
        i64::try_from(self.clock.now().as_nanos()).unwrap_or(i64::MAX)
    }

    /// Writes the record of a flow that nobody stood in. It was over before it was heard of, so there is no draft.
    pub(crate) fn observed(&self, record: &FlowRecord) {
        self.flows.fetch_add(1, Ordering::Relaxed);
        if let Err(e) = self.files().records.write(record) {
            tracing::error!(error = %e, path = %self.path.display(), id = record.id, "a flow record cannot be written");
        }
        self.history().into_iter().for_each(|history| history.count(record));
    }

    fn draft(&self, number: u64, draft: &FlowRecord, ends: &[End]) {
        if let Err(e) = self.files().journal.draft(number, draft, ends) {
            tracing::error!(error = %e, "the journal of live flows cannot be written");
        }
    }

    fn close(&self, number: u64, record: &FlowRecord, ends: &[End]) {
        self.flows.fetch_add(1, Ordering::Relaxed);
        if record.verdict == Outcome::Refused {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        let records = || ends.iter().map(|end| FlowRecord { end: *end, ..record.clone() });
        let written = {
            let mut files = self.files();
            let files = &mut *files;
            records().try_for_each(|record| files.records.write(&record)).and_then(|()| files.journal.closed(number))
        };
        if let Err(e) = written {
            // The draft stays in the journal: the next start writes it.
            tracing::error!(error = %e, path = %self.path.display(), id = record.id, "a flow record cannot be written");
        }
        if let Some(history) = self.history() {
            records().for_each(|record| history.count(&record));
        }
    }
}

fn rfc3339(clock: &SharedClock) -> String {
    rfc3339_of(i64::try_from(clock.now().as_nanos()).unwrap_or(0))
}

/// Of nanoseconds since 1970, to the microsecond.
pub(crate) fn rfc3339_of(ns: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ns / 1000 * 1000))
        .ok()
        .and_then(|t| t.format(&Rfc3339).ok())
        .unwrap_or_default()
}

fn killed(mut draft: FlowRecord, now: &str) -> FlowRecord {
    now.clone_into(&mut draft.ended);
    draft.ended_by = EndedBy::Enforcer;
    draft.reason = Some(Reason::EnforcerKilled);
    draft.detail = Some("the enforcer was killed while this flow lived; bytes and duration are not known".into());
    draft
}

#[cfg(test)]
mod tests {
    use super::*;
    use bonafide_proto::clock::SystemClock;

    fn open(dir: &Path) -> Arc<Records> {
        Records::open(&dir.join("flows.jsonl"), dir, Arc::new(SystemClock)).unwrap()
    }

    fn lines(dir: &Path) -> Vec<FlowRecord> {
        let text = std::fs::read_to_string(dir.join("flows.jsonl")).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    #[test]
    fn a_dropped_account_is_still_accounted_for_once() {
        let dir = tempfile::tempdir().unwrap();
        let records = open(dir.path());
        drop(Account::open(&records, End::Source, "enforce"));
        Account::open(&records, End::Destination, "enforce").refused(&Why::new(Reason::NoRule, "none"));
        let lines = lines(dir.path());
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].reason, Some(Reason::Internal));
        assert_eq!((lines[1].verdict, lines[1].reason), (Outcome::Refused, Some(Reason::NoRule)));
        assert_eq!(records.totals(), (2, 2));
    }

    #[test]
    fn flows_of_a_killed_enforcer_are_written_at_the_next_start_and_only_once() {
        let dir = tempfile::tempdir().unwrap();
        let records = open(dir.path());
        let finished = Account::open(&records, End::Source, "enforce");
        let mut killed = Account::open(&records, End::Source, "enforce");
        killed.allowed(Some("web to db"));
        let id = killed.id().to_owned();
        finished.refused(&Why::new(Reason::NoRule, "none"));
        std::mem::forget(killed);
        drop(records);

        drop(open(dir.path()));
        drop(open(dir.path()));
        let lines = lines(dir.path());
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[1].id.as_str(), lines[1].reason), (id.as_str(), Some(Reason::EnforcerKilled)));
        assert_eq!(lines[1].rule.as_deref(), Some("web to db"));
    }

    #[test]
    fn a_record_written_before_the_journal_knew_is_not_written_twice() {
        let dir = tempfile::tempdir().unwrap();
        let records = open(dir.path());
        let mut account = Account::open(&records, End::Source, "enforce");
        account.addresses("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap(), None);
        let journal = std::fs::read(dir.path().join("live.jsonl")).unwrap();
        account.refused(&Why::new(Reason::NoRule, "none"));
        drop(records);
        // As if the kill had come between the two writes.
        std::fs::write(dir.path().join("live.jsonl"), journal).unwrap();
        drop(open(dir.path()));
        assert_eq!(lines(dir.path()).len(), 1);
    }

    #[test]
    fn a_peer_that_names_every_flow_alike_makes_no_record_vanish() {
        let dir = tempfile::tempdir().unwrap();
        let records = open(dir.path());
        let same = crate::tunnel::frame::FlowId::random();
        let mut finished = Account::open(&records, End::Destination, "enforce");
        finished.rename(same);
        finished.refused(&Why::new(Reason::NoRule, "none"));
        let mut killed = Account::open(&records, End::Destination, "enforce");
        killed.rename(same);
        killed.allowed(Some("rule"));
        std::mem::forget(killed);
        drop(records);
        drop(open(dir.path()));
        assert_eq!(lines(dir.path()).len(), 2);
    }

    /// A small file system of its own.
    struct Small(tempfile::TempDir);

    impl Small {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut mount = std::process::Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", "size=256k", "bonafide-test"]).arg(dir.path());
            assert!(mount.status().unwrap().success());
            Self(dir)
        }
    }

    impl Drop for Small {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
        }
    }

    #[test]
    fn a_full_disk_costs_what_it_could_not_take_and_nothing_before_or_after() {
        let small = Small::new();
        let dir = small.0.path();
        let records = open(dir);
        let live = || {
            let mut account = Account::open(&records, End::Source, "enforce");
            account.allowed(Some("web to db"));
            let id = account.id().to_owned();
            std::mem::forget(account);
            id
        };
        let before = live();
        let filling = dir.join("filling");
        let mut file = std::fs::File::create(&filling).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        for _ in 0..50 {
            Account::open(&records, End::Source, "enforce").refused(&Why::new(Reason::NoRule, "none"));
        }
        drop(file);
        std::fs::remove_file(filling).unwrap();
        let after = live();
        let done = Account::open(&records, End::Source, "enforce");
        let written = done.id().to_owned();
        done.refused(&Why::new(Reason::NoRule, "none"));
        drop(records);
        drop(open(dir));
        let text = std::fs::read_to_string(dir.join("flows.jsonl")).unwrap();
        let records: Vec<FlowRecord> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        for id in [before, after, written] {
            assert_eq!(records.iter().filter(|record| record.id == id).count(), 1, "{text}");
        }
        assert!(text.lines().count() <= records.len() + 2, "one torn line at the most: {text}");
    }

    #[test]
    fn garbage_in_the_journal_and_a_partial_last_record_lose_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("live.jsonl"), b"\xff\xfe{\"n\":\n{}\n").unwrap();
        std::fs::write(dir.path().join("flows.jsonl"), b"{\"v\":1,\"id\":\"cut").unwrap();
        let records = open(dir.path());
        drop(Account::open(&records, End::Source, "enforce"));
        let text = std::fs::read_to_string(dir.path().join("flows.jsonl")).unwrap();
        assert_eq!(text.lines().filter(|l| serde_json::from_str::<FlowRecord>(l).is_ok()).count(), 1);
    }
}
