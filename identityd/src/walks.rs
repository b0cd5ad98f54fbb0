//! Walks of all processes, shared by all who ask: a question that arrives during a walk waits for the next one, and one walk
//! answers everything that waited when it began. A thousand connections at once cost a few walks.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::sync::{mpsc, oneshot};

use crate::refuse::refuse;
use crate::sys::diag::{Diag, Found};
use crate::sys::walk::{Busiest, Sightings, walk};

/// Questions that may wait; more are refused.
const WAITING_MAX: usize = 4096;

/// A walk that took this long is told of.
const SLOW: Duration = Duration::from_millis(500);
/// Not before this has passed is another told of.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// What one walk saw.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// The descriptors of the sockets that were sought.
    pub(crate) sightings: Sightings,
    /// Every connection bound to a device: it can have the same addresses as one that is bound to none.
    pub(crate) device_bound: Vec<Found>,
}

struct Question<W> {
    sought: Vec<u64>,
    answer: oneshot::Sender<Result<Arc<W>, AttestRefusal>>,
}

/// Asks the walker.
#[derive(Debug)]
pub(crate) struct Walks<W> {
    questions: mpsc::Sender<Question<W>>,
}

impl<W> Clone for Walks<W> {
    fn clone(&self) -> Self {
        Self { questions: self.questions.clone() }
    }
}

impl Walks<Walk> {
    /// Starts the walker of `/proc`; it ends when the last `Walks` is dropped.
    pub(crate) fn start() -> Self {
        let slow = Arc::new(Slow::default());
        Self::with(move |sought| {
            let began = Instant::now();
            let sightings = walk(sought).map_err(|e| format!("/proc cannot be listed: {e}"))?;
            slow.note(began, Instant::now(), sightings.busiest());
            let bound = Diag::open().and_then(|mut diag| diag.device_bound());
            Ok(Walk { sightings, device_bound: bound.map_err(|e| format!("sock_diag: {e}"))? })
        })
    }
}

impl<W: Send + Sync + 'static> Walks<W> {
    /// Starts a walker that walks like this; it ends when the last `Walks` is dropped.
    pub(crate) fn with(walk: impl Fn(&HashSet<u64>) -> Result<W, String> + Clone + Send + 'static) -> Self {
        let (questions, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(walker(waiting, walk));
        Self { questions }
    }

    /// What a walk that began after this call saw of these sockets (inodes of `/proc`, or cookies).
    ///
    /// # Errors
    /// `unavailable` if too many wait or the walk failed.
    pub(crate) async fn seek(&self, sought: Vec<u64>) -> Result<Arc<W>, AttestRefusal> {
        let (answer, answered) = oneshot::channel();
        if self.questions.try_send(Question { sought, answer }).is_err() {
            let detail = format!("{WAITING_MAX} questions wait for a walk already");
            return refuse(AttestReason::Unavailable, detail);
        }
        match answered.await {
            Ok(seen) => seen,
            Err(_) => refuse(AttestReason::Unavailable, "the walk ended early"),
        }
    }
}

/// Tells of slow walks, but not of each.
#[derive(Debug, Default)]
struct Slow {
    told: Mutex<Option<Instant>>,
}

impl Slow {
    /// Whether it told.
    fn note(&self, began: Instant, ended: Instant, busiest: Option<Busiest>) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let just_told = told.is_some_and(|told| ended.duration_since(told) < TOLD_AGAIN);
        let took = ended.duration_since(began);
        if took < SLOW || just_told {
            return false;
        }
        *told = Some(ended);
        let (pid, descriptors) = busiest.map(|b| (b.pid, b.descriptors)).unwrap_or_default();
        tracing::warn!(?took, pid, descriptors, "a walk of /proc was slow; this process has the most open files");
        true
    }
}

async fn walker<W: Send + Sync + 'static>(
    mut waiting: mpsc::Receiver<Question<W>>,
    walk: impl Fn(&HashSet<u64>) -> Result<W, String> + Clone + Send + 'static,
) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, WAITING_MAX).await > 0 {
        let sought: HashSet<u64> = batch.iter().flat_map(|q| &q.sought).copied().collect();
        let walk = walk.clone();
        let seen = match tokio::task::spawn_blocking(move || walk(&sought)).await {
            Ok(Ok(seen)) => Ok(Arc::new(seen)),
            Ok(Err(why)) => refuse(AttestReason::Unavailable, why),
            Err(e) => refuse(AttestReason::Unavailable, format!("the walk failed: {e}")),
        };
        for question in batch.drain(..) {
            // Whoever stopped waiting does not want to know.
            let _ = question.answer.send(seen.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as gate;

    use super::*;

    /// A walker that notes what it was sent for and walks on only when told.
    fn gated() -> (Walks<Walk>, gate::Receiver<HashSet<u64>>, gate::Sender<()>) {
        let (began, begins) = gate::channel();
        let (go, gone) = gate::channel();
        let (began, gone) = (Mutex::new(began), Arc::new(Mutex::new(gone)));
        let began = Arc::new(began);
        let walks = Walks::with(move |sought| {
            began.lock().unwrap().send(sought.clone()).unwrap();
            gone.lock().unwrap().recv().unwrap();
            Ok(Walk::default())
        });
        (walks, begins, go)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_thousand_questions_cost_two_walks() {
        let (walks, begins, go) = gated();
        let ask = |inode: u64| {
            tokio::spawn({
                let walks = walks.clone();
                async move { walks.seek(vec![inode]).await }
            })
        };
        let first = ask(0);
        assert_eq!(begins.recv().unwrap(), HashSet::from([0]));
        // These come during the first walk, and none of them is answered by it.
        let rest: Vec<_> = (1..1000).map(ask).collect();
        while walks.questions.capacity() > WAITING_MAX - 999 {
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
        first.await.unwrap().unwrap();
        assert_eq!(begins.recv().unwrap(), (1..1000).collect());
        assert!(rest.iter().all(|task| !task.is_finished()));
        go.send(()).unwrap();
        for task in rest {
            task.await.unwrap().unwrap();
        }
        assert!(begins.try_recv().is_err());
    }

    #[test]
    fn a_slow_walk_is_told_of_once_a_minute() {
        let slow = Slow::default();
        let began = Instant::now();
        let note = |at: Duration, took: Duration| slow.note(began + at, began + at + took, None);
        assert!(!note(Duration::ZERO, SLOW - Duration::from_millis(1)));
        assert!(note(Duration::ZERO, SLOW));
        assert!(!note(SLOW, SLOW));
        assert!(note(TOLD_AGAIN, SLOW));
        assert!(!note(TOLD_AGAIN + SLOW, SLOW));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn too_many_questions_are_refused() {
        let (walks, begins, go) = gated();
        let ask = |walks: Walks<Walk>| tokio::spawn(async move { walks.seek(vec![1]).await });
        let first = ask(walks.clone());
        begins.recv().unwrap();
        let rest: Vec<_> = (0..WAITING_MAX).map(|_| ask(walks.clone())).collect();
        while walks.questions.capacity() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(walks.seek(vec![2]).await.unwrap_err().reason, AttestReason::Unavailable);
        go.send(()).unwrap();
        go.send(()).unwrap();
        first.await.unwrap().unwrap();
        for task in rest {
            task.await.unwrap().unwrap();
        }
    }
}
