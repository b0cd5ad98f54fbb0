//! What was confirmed: it holds as long as the process lives, stays in its cgroup, and the runtime's connection stays.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bonafide_proto::container::Container;

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
    processes: Mutex<HashMap<(u32, u64), Confirmed>>,
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
}

impl Remembered {
    /// The container, if it was confirmed over a connection that `lasts`.
    pub(crate) fn get(&self, subject: Subject<'_>, lasts: impl Fn(Line) -> bool) -> Option<Container> {
        let processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        let found = processes.get(&(subject.pid, subject.start_ticks))?;
        let holds = *found.cgroup == *subject.cgroup && found.at.elapsed() < FRESH && lasts(found.by);
        holds.then(|| found.container.clone())
    }

    /// From now on it is known.
    pub(crate) fn put(&self, subject: Subject<'_>, container: Container, by: Line) {
        let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        if processes.len() >= PROCESSES_MAX {
            processes.retain(|_, confirmed| confirmed.at.elapsed() < FRESH);
            if processes.len() >= PROCESSES_MAX {
                processes.clear();
            }
        }
        let confirmed = Confirmed { cgroup: subject.cgroup.into(), container, by, at: Instant::now() };
        processes.insert((subject.pid, subject.start_ticks), confirmed);
    }
}

#[cfg(test)]
mod tests {
    use bonafide_proto::fingerprint::Digest;

    use super::*;

    const LINE: Line = Line { runtime: 0, generation: 1 };
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
    fn it_does_not_grow_without_bound() {
        let remembered = Remembered::default();
        for pid in 0..u32::try_from(PROCESSES_MAX + 9).unwrap() {
            remembered.put(Subject { pid, ..SUBJECT }, container("a"), LINE);
        }
        assert!(remembered.processes.lock().unwrap().len() <= PROCESSES_MAX);
        assert!(remembered.get(Subject { pid: u32::try_from(PROCESSES_MAX).unwrap(), ..SUBJECT }, |_| true).is_some());
    }
}
