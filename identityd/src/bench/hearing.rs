//! The watch over processes as it hears the kernel programs, without them: what they would say is said by this.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::{Evidence, Execution, Host};
use tokio::sync::watch;

use crate::events::Sentry;
use crate::execs::{Arguments, AtExec, Execs};
use crate::kernel::Outlet;
use crate::lapse::Lapses;
use crate::sys::executable::FileId;
use crate::sys::process::Process;
use crate::watch::{Parts, Quarantined, Watch, Watching};
use crate::witness::{Witness, Witnessed};

/// Process numbers of those who are only told of: no process has one of these (`PID_MAX_LIMIT`, linux/threads.h).
const FIRST_PID: u32 = 5_000_000;
const PIDS: u64 = 1 << 20;
/// Images of those who are only told of.
const FIRST_IMAGE: u64 = 1 << 32;
/// Different files that they execute: more than are kept in mind.
const FILES: u64 = 20_000;
/// One of so many is a child of a program that is watched.
const CHILD_EACH: u64 = 1_000;
/// One of so many is attested, and watched until it ends; every other one of those executes something else before.
const ATTESTED_EACH: u64 = 256;
/// How long to wait for room.
const STEP: Duration = Duration::from_millis(1);

/// The watch, over a few real processes, and over those of whom it is told.
#[derive(Debug)]
pub struct Hearing {
    outlet: Outlet,
    watch: Watch,
    real: Vec<Witnessed>,
    _watching: Watching,
    /// Keeps the quarantine from ending.
    _quarantined: watch::Sender<Quarantined>,
}

impl Hearing {
    /// Begins to listen, and to watch these processes. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// One of them cannot be attested, `/proc` is not mounted, or the kernel has no sock_diag.
    pub async fn new(clock: SharedClock, pids: &[u32]) -> io::Result<Self> {
        let absent = || Evidence::Absent("not asked".to_owned());
        let host = Host { bios_uuid: absent(), machine_id: absent(), node: None };
        let execs: Arc<dyn Execs> = Arc::new(Recorded::of(pids)?);
        let (outlet, events) = Outlet::new();
        let (_quarantined, quarantined) = watch::channel(Quarantined::default());
        let witness = Arc::new(Witness::new(host, clock, Arc::clone(&execs), None, &[])?);
        let parts = Parts {
            witness: Arc::clone(&witness),
            sentry: Arc::new(Blind),
            events,
            execs,
            lapses: Lapses::new(),
            quarantined,
        };
        let (watch, _watching) = Watch::start(parts)?;
        let mut real = Vec::new();
        for pid in pids {
            let execution = Process::pin(*pid).map_err(io::Error::other)?.execution();
            let execution = Execution { image: image_of(*pid), ..execution };
            real.extend(witness.examine(&[execution]).await.map_err(io::Error::other)?);
        }
        watch.attested(&real).map_err(io::Error::other)?;
        Ok(Self { outlet, watch, real, _watching, _quarantined })
    }

    /// A process was started, executed something, and ended: the `n`th. Some are children of those that are watched,
    /// some are attested meanwhile.
    ///
    /// # Errors
    /// There is no room to watch one that is attested.
    pub async fn came_and_went(&mut self, n: u64) -> io::Result<()> {
        let mut now = Execution { pid: pid(n), start_ticks: n, image: FIRST_IMAGE + 2 * n };
        let parent = self.real.get(index(n, self.real.len())).filter(|_| n.is_multiple_of(CHILD_EACH));
        let (before, parent) = match parent {
            Some(parent) => (parent.execution.image, parent.execution.pid),
            None => (1, 1),
        };
        self.tell(executed(Execution { image: before, ..now }, now.image, parent)).await;
        if n.is_multiple_of(ATTESTED_EACH) {
            self.attest(now)?;
        }
        if n.is_multiple_of(2 * ATTESTED_EACH) {
            let before = now;
            now.image += 1;
            self.tell(executed(before, now.image, parent)).await;
        }
        self.tell(ended(now)).await;
        Ok(())
    }

    /// Waits until everything was heard, and nobody is watched but the real ones; how many others are after this time.
    pub async fn settle(&self, patience: Duration) -> usize {
        let others = || self.watch.watched().saturating_sub(self.real.len());
        let heard = async {
            while {
                let (room, of) = self.outlet.room();
                room < of
            } || others() > 0
            {
                tokio::time::sleep(STEP).await;
            }
        };
        let _ = tokio::time::timeout(patience, heard).await;
        others()
    }

    async fn tell(&mut self, event: [u8; EVENT]) {
        while self.outlet.room().0 == 0 {
            tokio::time::sleep(STEP).await;
        }
        self.outlet.hear(&event);
    }

    /// As if it ran the program of one of the real ones.
    fn attest(&self, execution: Execution) -> io::Result<()> {
        let Some(like) = self.real.get(index(execution.start_ticks, self.real.len())) else { return Ok(()) };
        let one = Witnessed { execution, ..like.clone() };
        self.watch.attested(&[one]).map_err(io::Error::other)
    }
}

fn pid(n: u64) -> u32 {
    FIRST_PID + u32::try_from(n % PIDS).unwrap_or_default()
}

fn index(n: u64, of: usize) -> usize {
    usize::try_from(n).unwrap_or_default().checked_rem(of).unwrap_or_default()
}

fn image_of(pid: u32) -> u64 {
    u64::from(pid) + 2
}

/// Bytes of a `struct event` (bpf/record.h).
const EVENT: usize = 128;

fn executed(before: Execution, now: u64, parent: u32) -> [u8; EVENT] {
    let mut event = [0; EVENT];
    put(&mut event, 8, 1_u32.to_ne_bytes());
    put(&mut event, 16, now.to_ne_bytes());
    put(&mut event, 72, parent.to_ne_bytes());
    of(event, before)
}

fn ended(execution: Execution) -> [u8; EVENT] {
    let mut event = [0; EVENT];
    put(&mut event, 8, 2_u32.to_ne_bytes());
    of(event, execution)
}

fn of(mut event: [u8; EVENT], execution: Execution) -> [u8; EVENT] {
    // The kernel counts nanoseconds, of which a clock tick has ten million.
    put(&mut event, 24, (execution.start_ticks * 10_000_000).to_ne_bytes());
    put(&mut event, 32, execution.image.to_ne_bytes());
    put(&mut event, 40, execution.pid.to_ne_bytes());
    event
}

fn put<const N: usize>(event: &mut [u8; EVENT], at: usize, bytes: [u8; N]) {
    if let Some(place) = event.get_mut(at..at + N) {
        place.copy_from_slice(&bytes);
    }
}

/// What the real ones executed, and something that the others did.
#[derive(Debug)]
struct Recorded(HashMap<u32, AtExec>);

impl Recorded {
    fn of(pids: &[u32]) -> io::Result<Self> {
        let recorded = pids.iter().map(|pid| {
            let dir = Path::new("/proc").join(pid.to_string());
            let (exe, cwd) = (std::fs::metadata(dir.join("exe"))?, std::fs::metadata(dir.join("cwd"))?);
            let modified = i128::from(exe.mtime()) * 1_000_000_000 + i128::from(exe.mtime_nsec());
            let at_exec = AtExec {
                image: image_of(*pid),
                file: FileId { dev: exe.dev(), ino: exe.ino() },
                size: exe.size(),
                modified,
                executed_ns: None,
                execs: 1,
                arguments: Arguments::Recorded { bytes: std::fs::read(dir.join("cmdline"))?, whole: true },
                directory: Some(FileId { dev: cwd.dev(), ino: cwd.ino() }),
                witnessed: true,
                taints: Default::default(),
            };
            Ok((*pid, at_exec))
        });
        recorded.collect::<io::Result<_>>().map(Self)
    }
}

impl Execs for Recorded {
    fn executed(&self, pid: u32, start_ticks: u64) -> Option<AtExec> {
        let file = FileId { dev: 0, ino: start_ticks % FILES };
        let told_of = || AtExec {
            image: FIRST_IMAGE + 2 * start_ticks,
            file,
            size: 0,
            modified: 0,
            executed_ns: None,
            execs: 1,
            arguments: Arguments::Recorded { bytes: Vec::new(), whole: true },
            directory: None,
            witnessed: true,
            taints: Default::default(),
        };
        Some(self.0.get(&pid).cloned().unwrap_or_else(told_of))
    }

    fn witnesses(&self) -> bool {
        true
    }
}

/// Nobody is looked at.
#[derive(Debug)]
struct Blind;

impl Sentry for Blind {
    fn watch(&self, _: &[Execution]) {}
    fn forget(&self, _: Execution) {}
}

#[cfg(test)]
mod tests {
    use bonafide_proto::clock::SystemClock;

    use super::*;

    #[tokio::test]
    async fn those_who_came_and_went_are_watched_no_longer() {
        let mut hearing = Hearing::new(Arc::new(SystemClock), &[std::process::id()]).await.unwrap();
        assert_eq!(hearing.watch.watched(), 1);
        hearing.attest(Execution { pid: FIRST_PID, start_ticks: 0, image: FIRST_IMAGE }).unwrap();
        assert_eq!(hearing.watch.watched(), 2);
        for n in 0..2048 {
            hearing.came_and_went(n).await.unwrap();
        }
        assert_eq!(hearing.settle(Duration::from_secs(20)).await, 0);
        assert_eq!(hearing.watch.watched(), 1);
    }
}
