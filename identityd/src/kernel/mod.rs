//! The kernel programs at work: what was recorded at exec and at `connect()`, who holds a socket, and what happens.
//!
//! `bpf/attribution.bpf.c` is the other half. Reading order here: `load` puts the programs in their places; `execs` asks
//! what a process executed; `source` whose a connection is, with `walk`; `events` and `sweep` tell what changes;
//! `handover` gives the enforcer the map it reads.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::events::{Event, Sentry};
use crate::execs::Execs;

mod events;
mod execs;
mod handover;
pub(crate) mod layout;
mod load;
mod source;
mod sweep;
#[cfg(test)]
mod tests;
pub(crate) mod walk;

pub(crate) use events::Outlet;
pub(crate) use handover::Handover;
pub(crate) use layout::Counters;
pub(crate) use load::{Ground, LoadError};
pub(crate) use source::KernelSource;

use execs::KernelExecs;
use load::Programs;
use sweep::Sweeper;

/// The kernel programs, loaded. They are gone when everything that was had of this is dropped.
#[derive(Debug)]
pub(crate) struct Kernel {
    programs: Arc<Programs>,
    execs: Arc<KernelExecs>,
    sweeper: Arc<Sweeper>,
    /// Never read: the reading ends with it.
    _reader: events::Reader,
}

impl Kernel {
    /// Loads them; events are heard from now on.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub(crate) fn load() -> Result<(Self, mpsc::Receiver<Event>), LoadError> {
        let programs = Arc::new(Programs::load()?);
        let execs = Arc::new(KernelExecs::of(Arc::clone(&programs)));
        let started =
            events::start(&programs).and_then(|started| Ok((started, Sweeper::start(Arc::clone(&programs))?)));
        let ((reader, heard), sweeper) = started.map_err(LoadError::Threads)?;
        Ok((Self { programs, execs, sweeper, _reader: reader }, heard))
    }

    /// Traces sockets to processes.
    ///
    /// # Errors
    /// The kernel has no sock_diag, or `/proc` is not mounted.
    pub(crate) fn source(&self) -> io::Result<KernelSource> {
        KernelSource::open(&self.programs, Arc::clone(&self.execs))
    }

    /// Hands the enforcer the map that it reads, at a socket beside this one, if it has one of these uids.
    ///
    /// # Errors
    /// The socket cannot be bound, or there are no descriptors left.
    pub(crate) fn hand_over(&self, socket: &Path, uids: &[u32]) -> io::Result<Handover> {
        let map = self.programs.origins.as_fd().try_clone_to_owned()?;
        Handover::start(Handover::path(socket), uids.to_vec(), map)
    }

    /// Knows what processes executed.
    pub(crate) fn execs(&self) -> Arc<dyn Execs> {
        Arc::<KernelExecs>::clone(&self.execs)
    }

    /// What other programs of this daemon stand on.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub(crate) fn ground(&self) -> Result<Ground, LoadError> {
        self.programs.ground()
    }

    /// Watches processes for what changes in place.
    pub(crate) fn sentry(&self) -> Arc<dyn Sentry> {
        Arc::<Sweeper>::clone(&self.sweeper)
    }
}
