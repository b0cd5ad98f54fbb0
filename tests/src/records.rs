//! The flow records of one node, taken one by one so that none is overlooked and none counts twice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use bonafide_proto::record::{End, FlowRecord};

use crate::wait::wait_for;

/// How long a record may take to be written after its flow is over.
const LATE: Duration = Duration::from_secs(8);

/// A reader of `flows.jsonl` that remembers which records a scenario has already asked for.
#[derive(Debug)]
pub struct Records {
    file: PathBuf,
    taken: Mutex<BTreeSet<usize>>,
}

impl Records {
    /// Reads this file, which may not exist yet.
    #[must_use]
    pub fn of(file: PathBuf) -> Self {
        Self { file, taken: Mutex::default() }
    }

    /// Every record so far.
    ///
    /// # Panics
    /// If a line is no record.
    #[must_use]
    pub fn all(&self) -> Vec<FlowRecord> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        // The last line may be half written.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in the record {line}"));
        complete.lines().map(parse).collect()
    }

    /// Waits for a record that fits and was not taken yet, and takes it.
    ///
    /// # Panics
    /// If none appears in time.
    #[track_caller]
    pub fn take(&self, what: &str, fits: impl Fn(&FlowRecord) -> bool) -> FlowRecord {
        wait_for(what, LATE, || {
            let mut taken = self.taken.lock().expect("no test goes on after a panic");
            let all = self.all();
            let found = all.iter().enumerate().find(|(n, record)| !taken.contains(n) && fits(record));
            match found {
                Some((n, record)) => {
                    taken.insert(n);
                    Ok(record.clone())
                }
                None => Err(self.describe_untaken(&taken)),
            }
        })
    }

    /// Takes a record that fits and was not taken yet, if there is one now.
    ///
    /// # Panics
    /// If a line is no record.
    pub fn try_take(&self, fits: impl Fn(&FlowRecord) -> bool) -> Option<FlowRecord> {
        let mut taken = self.taken.lock().expect("no test goes on after a panic");
        let all = self.all();
        let (n, record) = all.iter().enumerate().find(|(n, record)| !taken.contains(n) && fits(record))?;
        taken.insert(n);
        Some(record.clone())
    }

    /// Takes the next record of this end.
    ///
    /// # Panics
    /// If none appears in time.
    #[track_caller]
    pub fn next(&self, end: End) -> FlowRecord {
        self.take(&format!("a record of the {end:?} end in {}", self.file.display()), |record| record.end == end)
    }

    /// Waits for `count` more records, and takes all there are.
    ///
    /// # Panics
    /// If fewer appear in time.
    #[track_caller]
    pub fn take_many(&self, count: usize) -> Vec<FlowRecord> {
        wait_for(&format!("{count} more records in {}", self.file.display()), LATE, || {
            let mut taken = self.taken.lock().expect("no test goes on after a panic");
            let lines = std::fs::read_to_string(&self.file).unwrap_or_default().matches('\n').count();
            let new: Vec<usize> = (0..lines).filter(|n| !taken.contains(n)).collect();
            if new.len() < count {
                return Err(format!("{} more", new.len()));
            }
            let all = self.all();
            taken.extend(new.iter().copied());
            Ok(new.into_iter().map(|n| all[n].clone()).collect())
        })
    }

    /// Asserts that every record was taken, and that no flow has two records of one end.
    ///
    /// # Panics
    /// If there is one too many.
    #[track_caller]
    pub fn assert_all_taken(&self) {
        let taken = self.taken.lock().expect("no test goes on after a panic");
        let left = self.describe_untaken(&taken);
        assert!(left.is_empty(), "records in {} that nobody expected:\n{left}", self.file.display());
        let mut seen = BTreeSet::new();
        for record in self.all() {
            let source = record.end == End::Source;
            assert!(seen.insert((record.id.clone(), source)), "two records of one end of one flow: {record:#?}");
        }
    }

    /// The last records as they stand, and how often what was said: for a person who looks for what went wrong.
    #[must_use]
    pub(crate) fn digest(&self) -> String {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let mut counts = BTreeMap::<String, usize>::new();
        for record in text.lines().filter_map(|line| serde_json::from_str::<FlowRecord>(line).ok()) {
            let reason = record.reason.map_or("-", |reason| reason.as_str());
            let detail = record.detail.unwrap_or_default();
            *counts.entry(format!("{:?} {:?} {reason} {detail}", record.end, record.verdict)).or_default() += 1;
        }
        let last = text.lines().rev().take(5).map(|line| format!("{line}\n"));
        let counted = counts.into_iter().take(20).map(|(what, times)| format!("{times} x {what}\n"));
        last.chain(counted).collect()
    }

    fn describe_untaken(&self, taken: &BTreeSet<usize>) -> String {
        let all = self.all();
        let left = all.iter().enumerate().filter(|(n, _)| !taken.contains(n));
        left.map(|(_, record)| format!("{record:?}\n")).collect()
    }
}
