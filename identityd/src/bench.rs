//! What `bonafide-bench` measures of this crate: parts of the daemon as they are, without its doors.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::{Digest, Evidence, Execution, Host};
use tokio::sync::{mpsc, watch};

use crate::events::{Event, Sentry};
use crate::execs::NoExecs;
use crate::hash::Digests;
use crate::lapse::Lapses;
use crate::watch::{Parts, Quarantined, Watch, Watching};
use crate::witness::Witness;

/// Digests of files, none known at first.
#[derive(Debug)]
pub struct Hashing(Digests);

impl Hashing {
    /// By this clock, a file that root alone can write lasts a minute after its last change.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn new(clock: SharedClock) -> io::Result<Self> {
        Ok(Self(Digests::new(1, clock, Arc::default())?))
    }

    /// The digest of an open file, on this user's account.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn digest(&self, file: &Arc<File>, user: u32) -> io::Result<Digest> {
        self.0.digest(file, user).await.map_err(io::Error::other)
    }
}

/// The watch over processes, with nobody to watch: it hears what it is told.
#[derive(Debug)]
pub struct Hearing {
    told: mpsc::Sender<Event>,
    _watching: Watching,
    /// Keeps the quarantine from ending.
    _quarantined: watch::Sender<Quarantined>,
}

/// Nobody is looked at.
#[derive(Debug)]
struct Blind;

impl Sentry for Blind {
    fn watch(&self, _: &[Execution]) {}
    fn forget(&self, _: Execution) {}
}

impl Hearing {
    /// Begins to listen. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// `/proc` is not mounted, or the kernel has no sock_diag.
    pub fn new(clock: SharedClock) -> io::Result<Self> {
        let host = Host {
            bios_uuid: Evidence::Absent("not asked".to_owned()),
            machine_id: Evidence::Absent("not asked".to_owned()),
            node: None,
        };
        let (told, events) = mpsc::channel(WAITING);
        let (_quarantined, quarantined) = watch::channel(Quarantined::default());
        let parts = Parts {
            witness: Arc::new(Witness::new(host, clock, Arc::new(NoExecs), None, &[])?),
            sentry: Arc::new(Blind),
            events,
            execs: Arc::new(NoExecs),
            lapses: Lapses::new(),
            quarantined,
        };
        let (_, _watching) = Watch::start(parts)?;
        Ok(Self { told, _watching, _quarantined })
    }

    /// A process was started, executed something, and ended: the `n`th.
    pub async fn came_and_went(&self, n: u64) {
        let pid = u32::try_from(n % PIDS).unwrap_or_default() + 2;
        let before = Execution { pid, start_ticks: n, image: n + 1 };
        let now = n + 2;
        // The other end is gone only with this value.
        let _ = self.told.send(Event::Executed { before, now, parent: 1 }).await;
        let _ = self.told.send(Event::Ended(Execution { image: now, ..before })).await;
    }
}

/// Process IDs are used again after so many (`/proc/sys/kernel/pid_max`, 64-bit default).
const PIDS: u64 = 4_194_000;
/// Events that may wait to be heard, as those of the kernel programs may.
const WAITING: usize = 4096;
