//! New programs are hashed before their first connection, so that it need not wait; and what an interpreter was given is
//! read before it can hide that.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bonafide_proto::fingerprint::Execution;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Eyes;
use super::shares::{Limits, Shares, Ticket};
use crate::execs::Execs;
use crate::sys::executable::FileId;

/// Programs that are hashed at once, and that may wait; what is beyond is not hashed before somebody asks.
const LIMITS: Limits = Limits { each: 1, all: 4, each_admitted: 256, all_admitted: 1024 };
/// What takes longer is left to whoever asks.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// Files that were hashed already, as far as is kept in mind.
const SEEN_MAX: usize = 8192;

/// A file as it was when it was executed: identity, size, last change; and the name under which its process has it, since
/// the same file may be an interpreter under one name and none under another.
type Executed = (FileId, u64, i128, OsString);

/// Executions whose programs are to be hashed.
#[derive(Debug)]
pub(crate) struct Warm {
    execs: Arc<dyn Execs>,
    shares: Arc<Shares>,
    to: mpsc::Sender<(Ticket, Execution)>,
    waiting: Mutex<Option<mpsc::Receiver<(Ticket, Execution)>>>,
    /// Whether they may be interpreters.
    seen: Mutex<HashMap<Executed, bool>>,
}

impl Warm {
    /// None.
    pub(crate) fn new(execs: Arc<dyn Execs>) -> Self {
        let (to, waiting) = mpsc::channel(LIMITS.all_admitted);
        let waiting = Mutex::new(Some(waiting));
        Self { execs, shares: Shares::new(LIMITS), to, waiting, seen: Mutex::default() }
    }

    /// Somebody executed something, on this account.
    pub(crate) fn put(&self, account: u32, execution: Execution) {
        if let Some(ticket) = self.shares.admit(account) {
            // There is room for all who are admitted.
            let _ = self.to.try_send((ticket, execution));
        }
    }

    fn executed(&self, execution: Execution) -> Option<Executed> {
        let at_exec = self.execs.executed(execution.pid, execution.start_ticks)?;
        let path = std::fs::read_link(format!("/proc/{}/exe", execution.pid)).ok()?;
        Some((at_exec.file, at_exec.size, at_exec.modified, path.file_name()?.to_owned()))
    }

    fn known(&self, executed: &Executed) -> Option<bool> {
        self.seen().get(executed).copied()
    }

    /// Whether that is an interpreter; none: not known.
    fn learn(&self, executed: Executed, interprets: Option<bool>) {
        let mut seen = self.seen();
        if seen.len() >= SEEN_MAX {
            seen.clear();
        }
        match interprets {
            Some(interprets) => seen.insert(executed, interprets),
            None => seen.remove(&executed),
        };
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<Executed, bool>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hashes programs as they come, each on the account of who executed it.
pub(crate) async fn run(eyes: Arc<Eyes>) {
    let waiting = eyes.warm.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(mut waiting) = waiting else { return };
    let mut under_way = JoinSet::new();
    while let Some((ticket, execution)) = waiting.recv().await {
        while under_way.try_join_next().is_some() {}
        let eyes = Arc::clone(&eyes);
        under_way.spawn(async move {
            let _turn = ticket.turn().await;
            eyes.warm(execution).await;
        });
    }
}

impl Eyes {
    /// Who executes the same file over and over costs one look at it. Who is gone by now, or may not be looked at, is none
    /// of our business here.
    async fn warm(&self, execution: Execution) {
        let Some(executed) = self.warm.executed(execution) else { return };
        match self.warm.known(&executed) {
            Some(false) => {}
            Some(true) => drop(timeout(LOOK_MAX, self.witness.note(execution)).await),
            None => {
                // Until it is known, and if that takes too long, it may be an interpreter.
                self.warm.learn(executed.clone(), Some(true));
                match timeout(LOOK_MAX, self.witness.examine(&[execution])).await {
                    Ok(Ok(witnessed)) => {
                        self.warm.learn(executed, Some(witnessed.iter().any(|one| one.interprets)));
                    }
                    Ok(Err(_)) => self.warm.learn(executed, None),
                    Err(_) => drop(timeout(LOOK_MAX, self.witness.note(execution)).await),
                }
            }
        }
    }
}
