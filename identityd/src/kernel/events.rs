//! From the programs' ring to whoever consumes events: one thread, in order, and nothing is lost unnoticed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use libbpf_rs::RingBufferBuilder;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::layout;
use super::layout::Counters;
use super::load::Programs;
use crate::events::{Change, Event, Use};

/// Events that may wait for a consumer who is slow; what finds no room is lost, and it is told so.
const WAITING_MAX: usize = 1 << 16;

/// How soon the thread sees that it shall end, and a loss after which nothing happened.
const TURN: Duration = Duration::from_millis(100);

/// Reads the ring; ends when it is dropped.
#[derive(Debug)]
pub(super) struct Reader {
    ends: Arc<AtomicBool>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

/// What goes to the consumer, and what did not.
#[derive(Debug)]
pub(crate) struct Outlet {
    events: mpsc::Sender<Event>,
    lost: u64,
}

impl Outlet {
    /// One, and what it goes to.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Event>) {
        let (events, heard) = mpsc::channel(WAITING_MAX);
        (Self { events, lost: 0 }, heard)
    }

    /// What the programs said.
    pub(crate) fn hear(&mut self, bytes: &[u8]) {
        match layout::Event::read(bytes).and_then(understand) {
            Some(event) => self.tell(event),
            None => self.lost += 1,
        }
    }

    /// For how many events there is room, and how many of them that would be if none waited.
    pub(crate) fn room(&self) -> (usize, usize) {
        (self.events.capacity(), self.events.max_capacity())
    }

    fn tell(&mut self, event: Event) {
        self.tell_of_loss();
        if self.lost > 0 || matches!(self.events.try_send(event), Err(TrySendError::Full(_))) {
            self.lost += 1;
        }
    }

    /// Before everything else, so that whoever hears an event knows what it did not hear.
    fn tell_of_loss(&mut self) {
        if self.lost > 0 && self.events.try_send(Event::Lost(self.lost)).is_ok() {
            self.lost = 0;
        }
    }
}

/// Starts the thread.
///
/// # Errors
/// The ring cannot be mapped, or there is no thread to be had.
pub(super) fn start(programs: &Arc<Programs>) -> std::io::Result<(Reader, mpsc::Receiver<Event>)> {
    let (outlet, heard) = Outlet::new();
    let ends = Arc::new(AtomicBool::new(false));
    let (programs, ending) = (Arc::clone(programs), Arc::clone(&ends));
    let outlet = Arc::new(Mutex::new(outlet));
    let inlet = Arc::clone(&outlet);
    let refused = |e: libbpf_rs::Error| std::io::Error::other(e.to_string());
    let mut ring = RingBufferBuilder::new();
    ring.add(&programs.events, move |bytes| {
        inlet.lock().unwrap_or_else(PoisonError::into_inner).hear(bytes);
        0
    })
    .map_err(refused)?;
    let ring = ring.build().map_err(refused)?;
    thread::Builder::new().name("kernel-events".to_owned()).spawn(move || {
        let mut counted = Counters::default();
        while !ending.load(Ordering::Relaxed) {
            if let Err(e) = ring.poll(TURN) {
                tracing::warn!(error = %e, "the kernel's events cannot be read");
                thread::sleep(TURN);
            }
            // What was counted before the ring was emptied is told of after what was in it.
            let now = programs.counted().unwrap_or(counted);
            if now.full > counted.full {
                let more = now.full - counted.full;
                tracing::warn!(
                    more,
                    "the kernel programs have no room for more processes; what has no record is refused"
                );
            }
            let mut outlet = outlet.lock().unwrap_or_else(PoisonError::into_inner);
            outlet.lost += now.lost.saturating_sub(counted.lost);
            outlet.tell_of_loss();
            counted = now;
        }
    })?;
    Ok((Reader { ends }, heard))
}

/// What the programs said, in the daemon's words.
fn understand(event: layout::Event) -> Option<Event> {
    let layout::Event { at_ns, kind, change, now, of, by, parent, local, remote } = event;
    let used = Use { local, remote, by, at_ns };
    match kind {
        1 => Some(Event::Executed { before: of, now, parent }),
        2 => Some(Event::Ended(of)),
        3 => changed(change).map(|change| Event::Changed(of, change)),
        4 => Some(Event::Used { used, owner: of }),
        5 => Some(Event::UsedByKin(used)),
        _ => None,
    }
}

fn changed(change: u32) -> Option<Change> {
    match change {
        1 => Some(Change::Owner),
        2 => Some(Change::Cgroup),
        3 => Some(Change::Tracer),
        4 => Some(Change::Code),
        5 => Some(Change::Executable),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bonafide_proto::fingerprint::Execution;

    use super::*;

    fn ended(pid: u32) -> Event {
        Event::Ended(Execution { pid, start_ticks: 1, image: 1 })
    }

    #[test]
    fn what_finds_no_room_is_told_of_before_what_comes_after_it() {
        let (events, mut heard) = mpsc::channel(2);
        let mut outlet = Outlet { events, lost: 0 };
        (1..=5).for_each(|pid| outlet.tell(ended(pid)));
        assert_eq!((heard.try_recv(), heard.try_recv()), (Ok(ended(1)), Ok(ended(2))));
        assert!(heard.try_recv().is_err());
        outlet.tell(ended(6));
        assert_eq!((heard.try_recv(), heard.try_recv()), (Ok(Event::Lost(3)), Ok(ended(6))));
    }

    #[test]
    fn a_loss_is_told_of_though_nothing_comes_after_it() {
        let (events, mut heard) = mpsc::channel(1);
        let mut outlet = Outlet { events, lost: 7 };
        outlet.tell_of_loss();
        outlet.tell_of_loss();
        assert_eq!(heard.try_recv(), Ok(Event::Lost(7)));
        assert!(heard.try_recv().is_err());
    }

    #[test]
    fn an_event_of_no_known_kind_is_none() {
        let event = |kind: u32, change: u32| {
            let mut bytes = [0; 128];
            bytes[8..12].copy_from_slice(&kind.to_ne_bytes());
            bytes[12..16].copy_from_slice(&change.to_ne_bytes());
            layout::Event::read(&bytes).and_then(understand)
        };
        assert!(event(0, 0).is_none() && event(6, 0).is_none() && event(3, 0).is_none() && event(3, 6).is_none());
        assert!(matches!(event(3, 5), Some(Event::Changed(_, Change::Executable))));
    }
}
