//! Watches processes for what changes in place and no event tells: the kernel compares them every 20 ms, or
//! every 50 ms where there are so many that it takes a while.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bonafide_proto::fingerprint::Execution;
use libbpf_rs::{MapCore as _, MapFlags};

use super::layout::{Process, unseen, watched_image};
use super::load::{Programs, run};
use crate::events::Sentry;

/// Between two sweeps: within 100 ms of a change there is another look to be taken, too.
const OFTEN: Duration = Duration::from_millis(20);
/// The same, where sweeps are long.
const SELDOM: Duration = Duration::from_millis(50);
/// A sweep may take this part of the time.
const SHARE: u32 = 50;

/// Has the kernel compare those that are watched.
pub(super) struct Sweeper {
    programs: Arc<Programs>,
    /// One sweep at a time, or a change would be told of twice.
    sweeping: Mutex<()>,
    /// Whether there is anybody to be watched.
    watches: AtomicBool,
}

impl fmt::Debug for Sweeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sweeper").finish_non_exhaustive()
    }
}

impl Sweeper {
    /// Sweeps until it is dropped.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn start(programs: Arc<Programs>) -> std::io::Result<Arc<Self>> {
        let sweeper = Arc::new(Self { programs, sweeping: Mutex::new(()), watches: AtomicBool::new(false) });
        let weak = Arc::downgrade(&sweeper);
        thread::Builder::new().name("kernel-sweep".to_owned()).spawn(move || {
            let mut pause = OFTEN;
            loop {
                thread::sleep(pause);
                let Some(sweeper) = weak.upgrade() else { return };
                if sweeper.watches.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    sweeper.sweep();
                    pause = pause_after(began.elapsed());
                }
            }
        })?;
        Ok(sweeper)
    }

    fn sweep(&self) {
        let _one = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = run(&self.programs.sweep) {
            tracing::warn!(error = %e, "the kernel does not compare the processes that are watched");
        }
    }
}

fn pause_after(took: Duration) -> Duration {
    took.saturating_mul(SHARE).clamp(OFTEN, SELDOM)
}

impl Sentry for Sweeper {
    fn watch(&self, executions: &[Execution]) {
        executions.iter().for_each(|execution| self.add(*execution));
        self.watches.store(true, Ordering::Relaxed);
        // What they are compared with is what they are now, not at the next turn.
        self.sweep();
    }

    fn forget(&self, execution: Execution) {
        if self.watched(execution) == Some(execution.image) {
            // It may be gone by itself.
            let _ = self.programs.watched.delete(&execution.pid.to_ne_bytes());
        }
    }
}

impl Sweeper {
    fn add(&self, execution: Execution) {
        let key = execution.pid.to_ne_bytes();
        let Ok(Some(bytes)) = self.programs.processes.lookup(&key, MapFlags::ANY) else { return };
        let Some(process) = Process::read(&bytes) else { return };
        if process.start_ticks() != execution.start_ticks || process.image != execution.image {
            return;
        }
        match self.programs.watched.update(&key, &unseen(process.start_ns, process.image), MapFlags::NO_EXIST) {
            Ok(()) => {}
            // It is watched already, or what had its number before is.
            Err(_) if self.watched(execution) == Some(execution.image) => {}
            Err(_) => {
                let again = self.programs.watched.update(&key, &unseen(process.start_ns, process.image), MapFlags::ANY);
                if let Err(e) = again {
                    tracing::warn!(error = %e, pid = execution.pid, "a process cannot be watched");
                }
            }
        }
    }

    /// The image of the process that is watched under this number.
    fn watched(&self, execution: Execution) -> Option<u64> {
        let bytes = self.programs.watched.lookup(&execution.pid.to_ne_bytes(), MapFlags::ANY).ok()??;
        watched_image(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_are_seldom_where_they_are_long_and_never_more_so_than_is_promised() {
        let after = |micros| pause_after(Duration::from_micros(micros));
        assert_eq!([after(0), after(400), after(1_000_000)], [OFTEN, OFTEN, SELDOM]);
        assert_eq!(after(600), Duration::from_millis(30));
    }
}
