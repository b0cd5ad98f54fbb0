//! The history: flows alike counted together by the hour, kept for weeks, bounded in memory and on disk.
//!
//! A flow is counted in memory and nothing else; a thread of its own writes what was counted twice a second. So a killed
//! enforcer loses a second of it at most, and a disk that stands still holds up no flow.

mod day;
mod store;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::edge::{Edge, EdgeCount, Seen};
use bonafide_proto::record::FlowRecord;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use store::Store;
pub use store::{HistoryError, Kept};

/// How often what was counted is written.
const WRITE_EVERY: Duration = Duration::from_millis(500);
/// The most edges that wait to be written; more come only while the disk does not take them.
const WAITING_MAX: usize = 20_000;
/// A span of counting, in seconds.
const HOUR: i64 = 3600;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Days, 1 to 3650.
    pub days: u16,
    /// Bytes on disk; at least 16 MiB.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { days: 90, bytes: 1 << 30 }
    }
}

/// Which edges are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Flows that began then or later, unix seconds. An hour that it begins in counts as a whole.
    pub since: i64,
    /// Flows that began before, unix seconds; hours likewise.
    pub until: i64,
    /// Each edge once for each hour, and not once for all of the time.
    pub by_hour: bool,
}

/// See the module.
#[derive(Debug)]
pub struct History {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    store: Mutex<Store>,
    stopped: AtomicBool,
    clock: SharedClock,
}

/// What was counted and not written yet, by the hour and the edge.
#[derive(Debug, Default)]
struct Waiting {
    edges: HashMap<(i64, Edge), Seen>,
    left_out: u64,
}

impl Waiting {
    fn add(&mut self, hour: i64, edge: Edge, seen: Seen) {
        let full = self.edges.len() >= WAITING_MAX;
        let flows = seen.flows;
        match self.edges.entry((hour, edge)) {
            Entry::Occupied(mut there) => there.get_mut().add(seen),
            Entry::Vacant(vacant) if !full => drop(vacant.insert(seen)),
            Entry::Vacant(_) => self.left_out = self.left_out.saturating_add(flows),
        }
    }
}

impl History {
    /// Opens the history in this directory, which is made if it is missing, and starts to write.
    ///
    /// # Errors
    /// The directory cannot be made. A history that cannot be read is no error: it is put aside.
    pub fn open(dir: PathBuf, limits: Limits, clock: SharedClock) -> Result<Arc<Self>, HistoryError> {
        let store = Store::open(dir, limits, clock.unix())?;
        let history = Arc::new(Self {
            waiting: Mutex::default(),
            wake: Condvar::new(),
            store: Mutex::new(store),
            stopped: AtomicBool::new(false),
            clock,
        });
        let writer = Arc::downgrade(&history);
        let writing = move || {
            while let Some(history) = writer.upgrade().filter(|history| !history.stopped.load(Ordering::Acquire)) {
                history.pause();
                history.write();
            }
        };
        let thread = std::thread::Builder::new().name("history".to_owned()).spawn(writing);
        thread.map_err(|source| HistoryError::Thread { source })?;
        Ok(history)
    }

    /// Counts a flow that is over, or was refused.
    pub fn count(&self, record: &FlowRecord) {
        let began = OffsetDateTime::parse(&record.started, &Rfc3339).map(OffsetDateTime::unix_timestamp);
        let began = began.unwrap_or_else(|_| self.clock.unix());
        self.waiting().add(began.div_euclid(HOUR) * HOUR, Edge::of(record), Seen::of(record, began));
    }

    /// Tells each edge of this time, those just counted included, until `tell` says that it is enough; and what is missing.
    ///
    /// # Errors
    /// What is kept cannot be read.
    pub fn read(&self, span: Span, tell: impl FnMut(EdgeCount) -> bool) -> Result<Kept, HistoryError> {
        self.write();
        self.store().read(span, tell)
    }

    /// Writes what was counted.
    pub fn write(&self) {
        let mut store = self.store();
        let Waiting { edges, left_out } = std::mem::take(&mut *self.waiting());
        store.leave_out(left_out);
        let unwritten = store.write(edges, self.clock.unix());
        let mut waiting = self.waiting();
        unwritten.into_iter().for_each(|((hour, edge), seen)| waiting.add(hour, edge, seen));
    }

    /// Writes what was counted, and ends the thread.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake.notify_all();
        self.write();
    }

    fn pause(&self) {
        let waiting = self.waiting();
        drop(self.wake.wait_timeout(waiting, WRITE_EVERY));
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Counts are whole whenever the lock is free.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
