//! Everything that was attested is watched until its process ends. What happened is looked at again, and what is no
//! longer so is told as a lapse, with what changed.
//!
//! Reading order: [`Watch::attested`] remembers the evidence and watches its files; `listen` hears events and
//! inotify; `newcomers` has the sentry watch them; `look` examines again and compares
//! (`changes`), and has the libraries watched (`libraries`); `heirs` asks whether somebody else has the sockets;
//! `runtimes` hears what container runtimes tell of changes; `warm` hashes new programs before their first connection. `table`, `files`, `turns` and `shares` keep what is known, in
//! bounds: an execution that there is no room to watch is refused by name.
//!
//! Nothing happens between a look and the watch unseen: each execution, and each file that is new to it, is looked at
//! once more after the watch began.

mod changes;
mod files;
mod heirs;
mod libraries;
mod listen;
mod look;
mod newcomers;
pub(crate) mod proc_sentry;
mod quarantine;
mod runtimes;
mod shares;
mod table;
#[cfg(test)]
mod tests;
mod turns;
mod warm;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::revoked::Barred;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::changes::Believed;
use self::files::Files;
use self::heirs::Heirs;
use self::listen::Losses;
use self::newcomers::Newcomers;
use self::quarantine::{of, unquarantined};
use self::table::{Place, Table};
use self::turns::{Lane, Turns};
use self::warm::Warm;
use crate::events::{Event, Sentry};
use crate::execs::Execs;
use crate::lapse::{Lapse, Lapsed, Lapses};
use crate::refuse::refuse;
use crate::sys::executable::FileId;
use crate::witness::{Witness, Witnessed};

/// What is in quarantine, or revoked.
pub(crate) type Quarantined = Arc<Barred>;

/// Watches. Clones are of one.
#[derive(Debug, Clone)]
pub(crate) struct Watch(Arc<Eyes>);

/// What it takes to watch.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Who looks again.
    pub(crate) witness: Arc<Witness>,
    /// Who tells of changes in place.
    pub(crate) sentry: Arc<dyn Sentry>,
    /// What happens to processes.
    pub(crate) events: mpsc::Receiver<Event>,
    /// Who knows what was executed.
    pub(crate) execs: Arc<dyn Execs>,
    /// Where lapses are told.
    pub(crate) lapses: Lapses,
    /// What is in quarantine.
    pub(crate) quarantined: watch::Receiver<Quarantined>,
}

/// The tasks of a watch; they end when this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Watching {
    _tasks: JoinSet<()>,
}

/// What the tasks share.
#[derive(Debug)]
struct Eyes {
    witness: Arc<Witness>,
    sentry: Arc<dyn Sentry>,
    lapses: Lapses,
    newcomers: Newcomers,
    turns: Turns,
    heirs: Heirs,
    warm: Warm,
    execs: Arc<dyn Execs>,
    losses: Losses,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    table: Table,
    files: Files,
    quarantined: Quarantined,
    /// Nobody tells what happens any more.
    deaf: bool,
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// The kernel has no sock_diag, or no thread can be started.
    pub(crate) fn start(parts: Parts) -> io::Result<(Self, Watching)> {
        let files = Files::open();
        let told = files.inotify().map(files::listen).transpose()?;
        let quarantined = parts.quarantined.borrow().clone();
        parts.lapses.quarantine(Arc::clone(&quarantined));
        let eyes = Arc::new(Eyes {
            witness: parts.witness,
            sentry: parts.sentry,
            lapses: parts.lapses,
            newcomers: Newcomers::default(),
            turns: Turns::new(),
            heirs: Heirs::new()?,
            warm: Warm::new(Arc::clone(&parts.execs)),
            execs: parts.execs,
            losses: Losses::default(),
            known: Mutex::new(Known { table: Table::default(), files, quarantined, deaf: false }),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(listen::events(Arc::clone(&eyes), parts.events));
        tasks.spawn(listen::quarantine(Arc::clone(&eyes), parts.quarantined));
        if let Some(told) = told {
            tasks.spawn(listen::files(Arc::clone(&eyes), told));
        }
        tasks.spawn(listen::looked_files(Arc::clone(&eyes)));
        tasks.spawn(listen::time(Arc::clone(&eyes)));
        tasks.spawn(listen::losses(Arc::clone(&eyes)));
        for place in 0..eyes.witness.runtimes().count() {
            tasks.spawn(runtimes::run(Arc::clone(&eyes), place));
        }
        tasks.spawn(newcomers::run(Arc::clone(&eyes)));
        tasks.spawn(heirs::run(Arc::clone(&eyes)));
        tasks.spawn(warm::run(Arc::clone(&eyes)));
        for preferred in look::WORKERS {
            tasks.spawn(look::run(Arc::clone(&eyes), preferred));
        }
        Ok((Self(eyes), Watching { _tasks: tasks }))
    }

    /// This evidence is about to be believed: from now on every change of it is a lapse.
    ///
    /// # Errors
    /// `quarantined`; `unavailable` if it cannot be watched.
    pub(crate) fn attested(&self, witnessed: &[Witnessed]) -> Result<(), AttestRefusal> {
        witnessed.iter().try_for_each(|one| self.0.remember(one))
    }

    /// Nothing of this evidence is in quarantine.
    ///
    /// # Errors
    /// `quarantined`.
    pub(crate) fn unquarantined(&self, witnessed: &[Witnessed]) -> Result<(), AttestRefusal> {
        let quarantined = Arc::clone(&self.0.known().quarantined);
        witnessed.iter().try_for_each(|one| unquarantined(of(one), &quarantined.digests))
    }
}

impl Watch {
    /// How many executions are watched.
    pub(crate) fn watched(&self) -> usize {
        let [executions, ..] = self.0.known().table.sizes();
        executions
    }
}

impl Eyes {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(self: &Arc<Self>, witnessed: &Witnessed) -> Result<(), AttestRefusal> {
        let mut known = self.known();
        if known.deaf {
            return refuse(AttestReason::Unavailable, "nobody tells what happens to processes any more");
        }
        unquarantined(of(witnessed), &known.quarantined.digests)?;
        let new = self.believe(&mut known, witnessed)?;
        let armed = known.arm(witnessed);
        match &armed {
            Err(_) => self.dismiss(&mut known, witnessed.execution),
            Ok(_) if new => self.newcomers.put(witnessed.execution),
            Ok(true) => self.suspect(&mut known, witnessed.execution, Lane::Patient),
            Ok(false) => {}
        }
        armed.map(drop)
    }

    /// Takes over what was attested; whether it was not watched before.
    fn believe(&self, known: &mut Known, witnessed: &Witnessed) -> Result<bool, AttestRefusal> {
        let (execution, now) = (witnessed.execution, Believed::of(witnessed));
        if let Some(watched) = known.table.get_mut(execution) {
            match watched.believed.changed(&now) {
                Some(detail) => {
                    watched.believed = now;
                    self.tell(execution, AttestReason::EvidenceChanged, detail);
                }
                None => watched.believed.refresh(now),
            }
            return Ok(false);
        }
        if let Some(before) = known.table.of_pid(execution.pid) {
            self.succeeded(known, before, execution);
        }
        known.table.add(execution, now, Instant::now())?;
        Ok(true)
    }

    /// Another execution has the process number now.
    fn succeeded(&self, known: &mut Known, before: Execution, now: Execution) {
        if before.start_ticks != now.start_ticks {
            return self.ended(known, before);
        }
        let detail = format!("process {} executed another program", now.pid);
        self.lapsed(known, before, AttestReason::GenerationGone, detail);
    }

    /// It is no longer what was attested.
    fn lapsed(&self, known: &mut Known, execution: Execution, reason: AttestReason, detail: String) {
        self.dismiss(known, execution);
        self.tell(execution, reason, detail);
    }

    fn tell(&self, execution: Execution, reason: AttestReason, detail: String) {
        tracing::info!(pid = execution.pid, %reason, detail, "no longer what was attested");
        self.lapses.tell(Lapse { what: Lapsed::Execution(execution), reason, detail });
    }

    /// Its process ended. Nobody watched its children, who may have its sockets.
    fn ended(&self, known: &mut Known, execution: Execution) {
        let was_watched = known.table.get_mut(execution).is_some();
        self.dismiss(known, execution);
        if was_watched && self.execs.is_run(execution.image) {
            self.shared(execution, format!("process {} ended", execution.pid));
        }
    }

    /// Others who are the same program may have its sockets.
    fn shared(&self, execution: Execution, detail: String) {
        self.lapses.tell(Lapse { what: Lapsed::Holders(execution), reason: AttestReason::ProcessGone, detail });
    }

    /// Watches it no longer.
    fn dismiss(&self, known: &mut Known, execution: Execution) {
        let Some(unused) = known.table.remove(execution) else { return };
        unused.into_iter().for_each(|spot| known.files.forget(spot));
        self.sentry.forget(execution);
    }

    fn suspect(self: &Arc<Self>, known: &mut Known, execution: Execution, lane: Lane) {
        if let Some(place) = known.table.suspect(execution, lane) {
            self.wait(execution, place, look::SETTLES);
        }
    }

    /// Puts it in its place, later.
    fn wait(self: &Arc<Self>, execution: Execution, Place { user, lane }: Place, after: std::time::Duration) {
        let eyes = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if let Some(eyes) = eyes.upgrade() {
                eyes.turns.put(user, execution, lane);
            }
        });
    }
}

impl Known {
    /// Watches the files of this evidence, and no others; whether that was more than before. Those of its libraries that
    /// are not watched yet come with the next look.
    fn arm(&mut self, witnessed: &Witnessed) -> Result<bool, AttestRefusal> {
        let (execution, mut more) = (witnessed.execution, false);
        for (version, file) in &witnessed.files {
            more |= self.watch(execution, version.id, file)?;
        }
        let needed: HashSet<FileId> = witnessed.files.keys().map(|version| version.id).collect();
        let needs = |file: FileId| needed.contains(&file) || witnessed.mapped.contains_key(&file);
        for spot in self.table.keep(execution, needs) {
            self.files.forget(spot);
        }
        Ok(more)
    }

    /// Watches a file for an execution that is watched; whether that is new.
    fn watch(&mut self, execution: Execution, id: FileId, file: &Arc<File>) -> Result<bool, AttestRefusal> {
        if self.table.get_mut(execution).is_none_or(|watched| watched.has(id)) {
            return Ok(false);
        }
        let watched = self.files.watch(file);
        let spot = watched.or_else(|e| refuse(AttestReason::Unavailable, format!("a file cannot be watched: {e}")))?;
        if let Err(refusal) = self.table.attach(execution, id, spot) {
            if self.table.users(spot).is_empty() {
                self.files.forget(spot);
            }
            return Err(refusal);
        }
        Ok(true)
    }
}
