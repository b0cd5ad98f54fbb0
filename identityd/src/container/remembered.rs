//! What was confirmed: it holds as long as the process lives, stays in its cgroup, and the runtime's connection stays.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bonafide_proto::container::Container;

use super::told::Changed;

/// Processes that are remembered.
const PROCESSES_MAX: usize = 16_384;
/// After this the runtime is asked again, by the next question: names and labels can change while a container runs.
const FRESH: Duration = Duration::from_secs(10);

/// A process, in its cgroups.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// Its number.
    pub(crate) pid: u32,
    /// When it started, in clock ticks since boot.
    pub(crate) start_ticks: u64,
    /// Its `/proc/PID/cgroup`.
    pub(crate) cgroup: &'a [u8],
}

/// Confirmations.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    processes: HashMap<(u32, u64), Confirmed>,
    /// How often each runtime told of changes, by its place.
    changes: HashMap<usize, u64>,
}

#[derive(Debug)]
struct Confirmed {
    cgroup: Box<[u8]>,
    container: Container,
    by: Line,
    at: Instant,
}

/// Who confirmed: which runtime, and over which of its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    /// Its place among the runtimes.
    pub(crate) runtime: usize,
    /// Counts its connections.
    pub(crate) generation: u64,
    /// Counts what it told of changes until it was asked: an answer from before a change may be an old one.
    pub(crate) changes: u64,
}

impl Remembered {
    /// The container, if it was confirmed over a connection that `lasts`.
    pub(crate) fn get(&self, subject: Subject<'_>, lasts: impl Fn(Line) -> bool) -> Option<Container> {
        let known = self.known();
        let found = known.processes.get(&(subject.pid, subject.start_ticks))?;
        let holds = *found.cgroup == *subject.cgroup && found.at.elapsed() < FRESH && lasts(found.by);
        holds.then(|| found.container.clone())
    }

    /// From now on it is known, unless the runtime told of changes since it was asked.
    pub(crate) fn put(&self, subject: Subject<'_>, container: Container, by: Line) {
        let mut known = self.known();
        let Known { processes, changes } = &mut *known;
        if changes.get(&by.runtime).copied().unwrap_or_default() != by.changes {
            return;
        }
        if processes.len() >= PROCESSES_MAX {
            processes.retain(|_, confirmed| confirmed.at.elapsed() < FRESH);
            if processes.len() >= PROCESSES_MAX {
                processes.clear();
            }
        }
        let confirmed = Confirmed { cgroup: subject.cgroup.into(), container, by, at: Instant::now() };
        processes.insert((subject.pid, subject.start_ticks), confirmed);
    }

    /// How often this runtime told of changes.
    pub(crate) fn changes(&self, runtime: usize) -> u64 {
        self.known().changes.get(&runtime).copied().unwrap_or_default()
    }

    /// What this runtime confirmed about these is no longer known, nor what it is asked just now.
    pub(crate) fn forget(&self, runtime: usize, changed: &Changed) {
        let mut known = self.known();
        *known.changes.entry(runtime).or_default() += 1;
        let over = |confirmed: &Confirmed| confirmed.by.runtime == runtime && changed.has(&confirmed.container.id);
        known.processes.retain(|_, confirmed| !over(confirmed));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bonafide_proto::fingerprint::Digest;

    use super::*;

    const LINE: Line = Line { runtime: 0, generation: 1, changes: 0 };
    const SUBJECT: Subject<'_> = Subject { pid: 7, start_ticks: 8, cgroup: b"0::/a\n" };

    fn container(id: &str) -> Container {
        Container {
            runtime: "docker".to_owned(),
            id: id.to_owned(),
            name: None,
            image: Digest([7; 32]),
            image_name: None,
            manifests: Vec::new(),
            labels: Default::default(),
            pod: None,
        }
    }

    #[test]
    fn only_the_same_process_in_the_same_cgroup_over_the_same_connection_is_remembered() {
        let remembered = Remembered::default();
        remembered.put(SUBJECT, container("a"), LINE);
        let known = |subject, line| remembered.get(subject, |by| by == line).map(|container| container.id);
        assert_eq!(known(SUBJECT, LINE).as_deref(), Some("a"));
        assert_eq!(known(Subject { pid: 6, ..SUBJECT }, LINE), None);
        assert_eq!(known(Subject { start_ticks: 9, ..SUBJECT }, LINE), None);
        assert_eq!(known(Subject { cgroup: b"0::/b\n", ..SUBJECT }, LINE), None);
        assert_eq!(known(SUBJECT, Line { generation: 2, ..LINE }), None);
    }

    #[test]
    fn what_a_runtime_tells_of_is_asked_anew_and_so_is_what_it_was_asked_meanwhile() {
        let (remembered, other) = (Remembered::default(), Line { runtime: 1, ..LINE });
        let subject = |pid| Subject { pid, ..SUBJECT };
        let knows = |pid| remembered.get(subject(pid), |_| true).is_some();
        for (pid, id, line) in [(1, "a", LINE), (2, "b", LINE), (3, "a", other)] {
            remembered.put(subject(pid), container(id), line);
        }
        remembered.forget(0, &Changed::These(["a".to_owned()].into()));
        assert_eq!([1, 2, 3].map(knows), [false, true, true]);
        remembered.put(subject(1), container("a"), LINE);
        assert!(!knows(1), "it was asked before the change");
        remembered.put(subject(1), container("a"), Line { changes: remembered.changes(0), ..LINE });
        assert!(knows(1));
        remembered.forget(0, &Changed::All);
        assert_eq!([1, 2, 3].map(knows), [false, false, true]);
    }

    #[test]
    fn it_does_not_grow_without_bound() {
        let remembered = Remembered::default();
        for pid in 0..u32::try_from(PROCESSES_MAX + 9).unwrap() {
            remembered.put(Subject { pid, ..SUBJECT }, container("a"), LINE);
        }
        assert!(remembered.known().processes.len() <= PROCESSES_MAX);
        assert!(remembered.get(Subject { pid: u32::try_from(PROCESSES_MAX).unwrap(), ..SUBJECT }, |_| true).is_some());
    }
}
