//! Loads `bpf/observe.bpf.c` while somebody wants to know of flows; dropped, the programs are gone.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use libbpf_rs::{
    Link, MapCore as _, MapFlags, MapHandle, Object, ObjectBuilder, ProgramInput, ProgramMut, RingBufferBuilder,
};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::layout::{Misses, StepEvent, TALK, TALLY, Talk, Tally};
use crate::kernel::Ground;

/// `bpf/observe.bpf.c`, compiled.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/observe.bpf.o"));

const ON_KERNEL: [&str; 2] = ["sent", "received"];
/// Sees every connection, and so costs every `connect()`: in its place only while connections are told of.
const ON_CONNECTIONS: &str = "changed";
/// Run by the daemon itself.
const LAST_WORD: &str = "last_word";
const ON_CGROUP: [&str; 5] = ["sends4", "sends6", "receives4", "receives6", "released"];

/// Events that may wait; what finds no room is lost, and counted.
const WAITING_MAX: usize = 1 << 15;
/// How soon the reading thread sees that it shall end.
const TURN: Duration = Duration::from_millis(100);

/// Why flows cannot be observed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObserveError {
    /// The kernel refused the programs.
    #[error("the kernel did not load the programs that see flows (they need Linux 6.3): {0}")]
    Refused(libbpf_rs::Error),
    /// A program could not be put in its place.
    #[error("the program `{0}` could not be attached: {1}")]
    Unattached(&'static str, libbpf_rs::Error),
    /// The object does not have what this daemon expects.
    #[error("the kernel programs lack `{0}`")]
    Lacks(&'static str),
    /// There is no thread to be had.
    #[error("no thread reads the kernel's events: {0}")]
    Thread(std::io::Error),
}

/// The programs in their places.
#[derive(Debug)]
pub(super) struct Programs {
    /// Never read: a program runs as long as its link is there.
    _places: Vec<Link>,
    on_connections: Option<Link>,
    object: Object,
    wanted: Wanted,
    misses: MapHandle,
    talks: MapHandle,
    /// Events that found no room on their way from the reading thread.
    unheard: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
}

/// `struct wanted`.
#[derive(Debug)]
struct Wanted {
    map: MapHandle,
    netns: u64,
}

impl Wanted {
    fn set(&self, connections: bool) -> Result<(), ObserveError> {
        let [connections, padding] = [u32::from(connections), 0].map(u32::to_ne_bytes);
        let value = [self.netns.to_ne_bytes().as_slice(), &connections, &padding].concat();
        self.map.update(&[0; 4], &value, MapFlags::ANY).map_err(ObserveError::Refused)
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

impl Programs {
    /// Loads and attaches them; what they say is heard from then on.
    ///
    /// # Errors
    /// See [`ObserveError`]; nothing stays behind.
    pub(super) fn load(ground: &Ground, connections: bool) -> Result<(Self, mpsc::Receiver<StepEvent>), ObserveError> {
        let mut open = ObjectBuilder::default().open_memory(OBJECT).map_err(ObserveError::Refused)?;
        for (name, of_ground) in [("processes", &ground.processes), ("origins", &ground.origins)] {
            let shared = open.maps_mut().find(|map| map.name() == name);
            let reused = shared.ok_or(ObserveError::Lacks(name))?.reuse_fd(of_ground.as_fd());
            reused.map_err(ObserveError::Refused)?;
        }
        let object = open.load().map_err(ObserveError::Refused)?;
        let steps = map(&object, "steps")?;
        let wanted = Wanted { map: map(&object, "wanted")?, netns: ground.netns };
        // Before that nothing is told.
        wanted.set(connections)?;
        let places = attach(&object, ground)?;
        let on_connections = connections.then(|| attach_to_kernel(&object, ON_CONNECTIONS)).transpose()?;
        let (unheard, ends) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let heard = read(&steps, Arc::clone(&unheard), Arc::clone(&ends))?;
        let (misses, talks) = (map(&object, "misses")?, map(&object, "talks")?);
        Ok((Self { _places: places, on_connections, object, wanted, misses, talks, unheard, ends }, heard))
    }

    /// Whether connections that begin from now on are told of. Those that are known are, to their end.
    pub(super) fn want(&mut self, connections: bool) -> Result<(), ObserveError> {
        self.wanted.set(connections)?;
        if connections && self.on_connections.is_none() {
            self.on_connections = Some(attach_to_kernel(&self.object, ON_CONNECTIONS)?);
        } else if !connections && self.counted().living == 0 {
            self.on_connections = None;
        }
        Ok(())
    }

    /// How many events and flows found no room since the programs were loaded.
    pub(super) fn missed(&self) -> u64 {
        let Misses { lost, full, .. } = self.counted();
        lost.saturating_add(full).saturating_add(self.unheard.load(Ordering::Relaxed))
    }

    fn counted(&self) -> Misses {
        let value = self.misses.lookup(&[0; 4], MapFlags::ANY).ok().flatten();
        value.and_then(|bytes| Misses::read(&bytes)).unwrap_or_default()
    }

    /// Every pair of a socket and a remote that datagrams are counted of.
    pub(super) fn talks(&self) -> Vec<Talk> {
        self.talks.keys().filter_map(|key| key.try_into().ok()).collect()
    }

    /// What was counted so far.
    pub(super) fn tally(&self, talk: &Talk) -> Option<Tally> {
        self.talks.lookup(talk, MapFlags::ANY).ok().flatten().and_then(|bytes| Tally::read(&bytes))
    }

    /// The same, for the last time: the next datagram begins a new flow.
    pub(super) fn end(&self, talk: &Talk) -> Option<Tally> {
        let mut ending = [0; TALK + TALLY];
        ending.get_mut(..TALK)?.copy_from_slice(talk);
        let program = program(&self.object, LAST_WORD).ok()?;
        let input = ProgramInput { context_in: Some(&mut ending), ..ProgramInput::default() };
        match program.test_run(input) {
            Ok(output) if output.return_value == 0 => Tally::read(ending.get(TALK..)?),
            _ => None,
        }
    }
}

fn attach(object: &Object, ground: &Ground) -> Result<Vec<Link>, ObserveError> {
    let cgroup = ground.cgroup.as_raw_fd();
    let anywhere = ON_KERNEL.into_iter().map(|name| attach_to_kernel(object, name));
    let on_cgroup = ON_CGROUP
        .into_iter()
        .map(|name| program(object, name)?.attach_cgroup(cgroup).map_err(|e| ObserveError::Unattached(name, e)));
    anywhere.chain(on_cgroup).collect()
}

fn attach_to_kernel(object: &Object, name: &'static str) -> Result<Link, ObserveError> {
    program(object, name)?.attach().map_err(|e| ObserveError::Unattached(name, e))
}

fn program<'a>(object: &'a Object, name: &'static str) -> Result<ProgramMut<'a>, ObserveError> {
    object.progs_mut().find(|program| program.name() == name).ok_or(ObserveError::Lacks(name))
}

fn map(object: &Object, name: &'static str) -> Result<MapHandle, ObserveError> {
    let map = object.maps().find(|map| map.name() == name).ok_or(ObserveError::Lacks(name))?;
    MapHandle::try_from(&map).map_err(ObserveError::Refused)
}

/// One thread, in order.
fn read(
    steps: &MapHandle,
    unheard: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
) -> Result<mpsc::Receiver<StepEvent>, ObserveError> {
    let (tell, heard) = mpsc::channel(WAITING_MAX);
    let mut ring = RingBufferBuilder::new();
    ring.add(steps, move |bytes| {
        let told = StepEvent::read(bytes).map(|event| tell.try_send(event));
        if matches!(told, None | Some(Err(TrySendError::Full(_)))) {
            unheard.fetch_add(1, Ordering::Relaxed);
        }
        0
    })
    .map_err(ObserveError::Refused)?;
    let ring = ring.build().map_err(ObserveError::Refused)?;
    let reader = thread::Builder::new().name("kernel-flows".to_owned());
    let started = reader.spawn(move || {
        while !ends.load(Ordering::Relaxed) {
            if let Err(e) = ring.poll(TURN) {
                tracing::warn!(error = %e, "the kernel's events of flows cannot be read");
                thread::sleep(TURN);
            }
        }
    });
    started.map(|_| heard).map_err(ObserveError::Thread)
}
