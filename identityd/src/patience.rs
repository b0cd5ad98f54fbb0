//! Work that may never end: the content of a file can depend on a silent server, a page of a process's memory on that
//! very process. Each piece has a time limit, after which nobody waits for it any more. Its thread cannot be ended, only
//! counted; a user on whose account too many are stuck gets no further one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinError;

/// Threads that may be stuck on one user's account.
const EACH_USER: usize = 8;
/// Threads that may be stuck at all; the runtime has 512 for such work.
const ALL: usize = 256;

/// Counts what is stuck.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    stuck: Mutex<HashMap<u32, usize>>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutOfPatience {
    /// Nobody waits any longer.
    #[error("it did not end within {0:?}")]
    Late(Duration),
    /// Nothing more is begun.
    #[error("{count} threads are stuck already{}", user.map(|uid| format!(" on account of user {uid}")).unwrap_or_default())]
    Stuck {
        /// Whose account is full; none: all of them together are too many.
        user: Option<u32>,
        /// How many.
        count: usize,
    },
    /// It panicked, or the daemon stops.
    #[error("{0}")]
    Failed(#[from] JoinError),
}

/// What the thread and whoever waits for it have in common.
#[derive(Debug)]
struct Work {
    patience: Arc<Patience>,
    user: u32,
    unwanted: AtomicBool,
    /// Locked while `stuck` is counted up or down.
    state: Mutex<State>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Awaited,
    Stuck,
    Ended,
}

/// Whether anybody still waits, for work that can be left unfinished.
#[derive(Debug)]
pub(crate) struct Wanted(Arc<Work>);

impl Wanted {
    /// Somebody does.
    pub(crate) fn still(&self) -> bool {
        !self.0.unwanted.load(Ordering::Relaxed)
    }
}

impl Patience {
    /// Does this work on a thread of its own, on this user's account, and waits at most so long for it.
    ///
    /// # Errors
    /// See [`OutOfPatience`].
    pub(crate) async fn wait<T: Send + 'static>(
        self: &Arc<Self>,
        user: u32,
        most: Duration,
        work: impl FnOnce(&Wanted) -> T + Send + 'static,
    ) -> Result<T, OutOfPatience> {
        self.admits(user)?;
        let shared = Arc::new(Work {
            patience: Arc::clone(self),
            user,
            unwanted: AtomicBool::new(false),
            state: Mutex::new(State::Awaited),
        });
        let ends = Ends(Wanted(Arc::clone(&shared)));
        let waiting = Waits(shared);
        let done = tokio::task::spawn_blocking(move || work(&ends.0));
        let done = tokio::time::timeout(most, done).await;
        drop(waiting);
        done.map_or(Err(OutOfPatience::Late(most)), |done| Ok(done?))
    }

    fn admits(&self, user: u32) -> Result<(), OutOfPatience> {
        let stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        let (theirs, all) = (stuck.get(&user).copied().unwrap_or_default(), stuck.values().sum());
        if theirs >= EACH_USER {
            return Err(OutOfPatience::Stuck { user: Some(user), count: theirs });
        }
        if all >= ALL {
            return Err(OutOfPatience::Stuck { user: None, count: all });
        }
        Ok(())
    }

    fn count_up(&self, user: u32) {
        let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        *stuck.entry(user).or_default() += 1;
        tracing::warn!(
            user,
            stuck = stuck.values().sum::<usize>(),
            "a thread is stuck in the file or memory of a user"
        );
    }

    fn count_down(&self, user: u32) {
        let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = stuck.get_mut(&user) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                stuck.remove(&user);
            }
        }
    }
}

/// Held by whoever waits; dropped also when they are no longer asked themselves.
struct Waits(Arc<Work>);

impl Drop for Waits {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == State::Awaited {
            *state = State::Stuck;
            self.0.unwanted.store(true, Ordering::Relaxed);
            self.0.patience.count_up(self.0.user);
        }
    }
}

/// Held by the thread; dropped also when it panics, or is never begun.
struct Ends(Wanted);

impl Drop for Ends {
    fn drop(&mut self) {
        let work = &self.0.0;
        let mut state = work.state.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *state, State::Ended) == State::Stuck {
            work.patience.count_down(work.user);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_millis(1);
    const LATER: Duration = Duration::from_secs(60);

    /// Leaves a thread stuck until what is returned is dropped.
    async fn stick(patience: &Arc<Patience>, user: u32) -> mpsc::Sender<()> {
        let (release, released) = mpsc::channel::<()>();
        let late = patience.wait(user, SOON, move |_| released.recv().is_err()).await;
        assert!(matches!(late, Err(OutOfPatience::Late(SOON))), "{late:?}");
        release
    }

    #[tokio::test]
    async fn who_leaves_threads_stuck_gets_no_more_and_others_do() {
        let patience = Arc::new(Patience::default());
        let mut stuck = Vec::new();
        for _ in 0..EACH_USER {
            stuck.push(stick(&patience, 1000).await);
        }
        let said = patience.wait(1000, LATER, |_| ()).await.unwrap_err().to_string();
        assert_eq!(said, "8 threads are stuck already on account of user 1000");
        patience.wait(1001, LATER, |_| ()).await.unwrap();
        // One that ends after all is forgiven.
        stuck.pop();
        while patience.wait(1000, LATER, |_| ()).await.is_err() {
            tokio::task::yield_now().await;
        }
        drop(stuck);
        while !patience.stuck.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_crowd_of_users_leaves_threads_to_the_rest_of_the_daemon() {
        let patience = Arc::new(Patience::default());
        let mut stuck = Vec::new();
        for n in 0..u32::try_from(ALL).unwrap() {
            stuck.push(stick(&patience, n).await);
        }
        let said = patience.wait(5000, LATER, |_| ()).await.unwrap_err().to_string();
        assert_eq!(said, "256 threads are stuck already");
        tokio::task::spawn_blocking(|| ()).await.unwrap();
    }

    #[tokio::test]
    async fn work_learns_that_nobody_waits_and_a_result_in_time_counts_as_nothing() {
        let patience = Arc::new(Patience::default());
        assert!(patience.wait(7, LATER, Wanted::still).await.unwrap());
        assert!(patience.stuck.lock().unwrap().is_empty());
        let (tell, told) = mpsc::channel();
        let asked = patience.wait(7, SOON, move |wanted| {
            while wanted.still() {
                std::thread::yield_now();
            }
            tell.send(()).unwrap();
        });
        assert!(asked.await.is_err());
        tokio::task::spawn_blocking(move || told.recv().unwrap()).await.unwrap();
    }
}
