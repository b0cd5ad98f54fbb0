//! Loads `bpf/observe.bpf.c` while somebody wants to know of flows; dropped, the programs are gone.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::{Enum, Typedef};
use libbpf_rs::{
    Link, MapCore as _, MapFlags, MapHandle, Object, ObjectBuilder, OpenObject, ProgramInput, ProgramMut,
    RingBufferBuilder,
};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::layout::{ENDS, HALF, Half, Misses, RawEnds, StepEvent, TALK, TALLY, Talk, Tally};
use crate::kernel::Ground;

/// `bpf/observe.bpf.c`, compiled.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/observe.bpf.o"));

const ON_KERNEL: [&str; 2] = ["sent", "received"];
/// Sees every connection, and so costs every `connect()`: in its place only while connections are told of.
const ON_CONNECTIONS: &str = "changed";
/// See attempts that never become a connection, at their destination; in their places with the one above.
const ON_REFUSAL: &str = "knocked";
const ON_HALF_OPEN: &str = "unfinished";
/// Run by the daemon itself.
const LAST_WORD: &str = "last_word";
const LAST_WAIT: &str = "last_wait";
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
    on_connections: Vec<Link>,
    sight: Sight,
    object: Object,
    wanted: Wanted,
    misses: MapHandle,
    talks: MapHandle,
    halves: MapHandle,
    /// Events that found no room on their way from the reading thread.
    unheard: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
}

/// Which attempts that never become a connection this kernel tells of at their destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    /// To a port where nobody listens.
    pub(crate) refused: bool,
    /// Whose handshake is never done.
    pub(crate) half_open: bool,
}

impl Sight {
    /// Of this kernel.
    pub(crate) fn of_kernel() -> Self {
        let Ok(kernel) = Btf::from_vmlinux() else { return Self { refused: false, half_open: false } };
        let tells = |event| kernel.type_by_name::<Typedef<'_>>(event).is_some();
        // Kernels that do not know why they refuse (before Linux 6.10) tell only of refusals by a socket.
        let says_why = kernel.type_by_name::<Enum<'_>>("sk_rst_reason").is_some();
        Self {
            refused: tells("btf_trace_tcp_send_reset") && says_why,
            half_open: tells("btf_trace_tcp_retransmit_synack"),
        }
    }

    fn programs(self) -> impl Iterator<Item = (&'static str, bool)> {
        [(ON_REFUSAL, self.refused), (ON_HALF_OPEN, self.half_open)].into_iter()
    }
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
        let sight = Sight::of_kernel();
        sight.programs().filter(|(_, seen)| !seen).for_each(|(name, _)| leave_out(&mut open, name));
        let object = open.load().map_err(ObserveError::Refused)?;
        let steps = map(&object, "steps")?;
        let wanted = Wanted { map: map(&object, "wanted")?, netns: ground.netns };
        // Before that nothing is told.
        wanted.set(connections)?;
        let places = attach(&object, ground)?;
        let on_connections = if connections { attach_to_connections(&object, sight)? } else { Vec::new() };
        let (unheard, ends) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let heard = read(&steps, Arc::clone(&unheard), Arc::clone(&ends))?;
        let (misses, talks, halves) = (map(&object, "misses")?, map(&object, "talks")?, map(&object, "halves")?);
        let programs =
            Self { _places: places, on_connections, sight, object, wanted, misses, talks, halves, unheard, ends };
        Ok((programs, heard))
    }

    /// Whether connections that begin from now on are told of. Those that are known are, to their end.
    pub(super) fn want(&mut self, connections: bool) -> Result<(), ObserveError> {
        self.wanted.set(connections)?;
        if connections && self.on_connections.is_empty() {
            self.on_connections = attach_to_connections(&self.object, self.sight)?;
        } else if !connections {
            // Whether their handshakes are done is not told any more.
            for ends in self.halves() {
                self.end_half(&ends);
            }
            if self.counted().living == 0 {
                self.on_connections.clear();
            }
        }
        Ok(())
    }

    /// How many events and flows found no room since the programs were loaded.
    pub(super) fn missed(&self) -> u64 {
        let Misses { lost, full, .. } = self.counted();
        lost.saturating_add(full).saturating_add(self.unheard.load(Ordering::Relaxed))
    }

    /// Attempts that came to nothing and were only counted, since the programs were loaded.
    pub(super) fn attempts(&self) -> u64 {
        self.counted().attempts
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
        self.run(LAST_WORD, &mut ending)?;
        Tally::read(ending.get(TALK..)?)
    }

    /// Both ends of every attempt whose handshake is not done.
    pub(super) fn halves(&self) -> Vec<RawEnds> {
        self.halves.keys().filter_map(|key| key.try_into().ok()).collect()
    }

    /// How it goes on.
    pub(super) fn half(&self, ends: &RawEnds) -> Option<Half> {
        let half = self.halves.lookup(ends, MapFlags::ANY).ok().flatten()?;
        Half::read(&[ends.as_slice(), &half].concat())
    }

    /// The same, for the last time. `None`: it is done after all.
    pub(super) fn end_half(&self, ends: &RawEnds) -> Option<Half> {
        let mut ending = [0; ENDS + HALF];
        ending.get_mut(..ENDS)?.copy_from_slice(ends);
        self.run(LAST_WAIT, &mut ending)?;
        Half::read(&ending)
    }

    /// `None`: it found nothing to do.
    fn run(&self, name: &'static str, on: &mut [u8]) -> Option<()> {
        let program = program(&self.object, name).ok()?;
        let input = ProgramInput { context_in: Some(on), ..ProgramInput::default() };
        program.test_run(input).is_ok_and(|output| output.return_value == 0).then_some(())
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

fn attach_to_connections(object: &Object, sight: Sight) -> Result<Vec<Link>, ObserveError> {
    let attempts = sight.programs().filter(|(_, seen)| *seen).map(|(name, _)| name);
    std::iter::once(ON_CONNECTIONS).chain(attempts).map(|name| attach_to_kernel(object, name)).collect()
}

fn leave_out(open: &mut OpenObject, name: &str) {
    for mut program in open.progs_mut().filter(|program| program.name() == name) {
        program.set_autoload(false);
    }
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
