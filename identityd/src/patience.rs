//! Work that may never end: the content of a file can depend on a silent server, a page of a process's memory on that
//! very process. Each piece has a time limit, after which nobody waits for it any more. Its thread cannot be ended, only
//! counted, from its beginning: a user has so many at once, and waits in line for more; on whose account too many are
//! stuck gets no further one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bonafide_proto::refusal::AttestReason;
use tokio::task::JoinError;

use crate::shares::{Bounds, Full, Share, Shares};

/// Threads that may be stuck on one user's account.
const STUCK_EACH: usize = 8;
/// Threads that may be stuck before a user who has left any of them so gets no more: the rest is for those who have not.
const STUCK_ALL: usize = 64;
/// Threads at work: for all a quarter of those that the runtime has (512), so that the rest of the daemon never waits
/// for any of them.
const THREADS: Bounds = Bounds { all: 128, each: 16, waiting: 1024, most: Duration::from_secs(2) };

/// Counts what is under way, and what is stuck.
#[derive(Debug)]
pub(crate) struct Patience {
    threads: Shares,
    stuck: Mutex<HashMap<u32, usize>>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { threads: Shares::new(THREADS), stuck: Mutex::default() }
    }
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutOfPatience {
    /// Nobody waits any longer.
    #[error("it did not end within {0:?}")]
    Late(Duration),
    /// Nothing more is begun for this user.
    #[error("{count} threads are stuck already on account of user {user}")]
    Stuck {
        /// Whose account is full.
        user: u32,
        /// How many are theirs.
        count: usize,
    },
    /// Too much is under way.
    #[error("too many looks: {0}")]
    Full(#[from] Full),
    /// It panicked, or the daemon stops.
    #[error("{0}")]
    Failed(#[from] JoinError),
}

impl OutOfPatience {
    /// What this says of the program that was looked at: nothing, where it is others who take everything.
    pub(crate) fn reason(&self) -> AttestReason {
        match self {
            Self::Late(_) | Self::Stuck { .. } => AttestReason::Unhashable,
            Self::Full(full) => full.reason(),
            Self::Failed(_) => AttestReason::Unavailable,
        }
    }
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
        let thread = self.threads.take(user).await?;
        // Those before it in the line may have left theirs stuck meanwhile.
        self.admits(user)?;
        let shared = Arc::new(Work {
            patience: Arc::clone(self),
            user,
            unwanted: AtomicBool::new(false),
            state: Mutex::new(State::Awaited),
        });
        let ends = Ends { wanted: Wanted(Arc::clone(&shared)), _thread: thread };
        let waiting = Waits(shared);
        let done = tokio::task::spawn_blocking(move || work(&ends.wanted));
        let done = tokio::time::timeout(most, done).await;
        drop(waiting);
        done.map_or(Err(OutOfPatience::Late(most)), |done| Ok(done?))
    }

    fn admits(&self, user: u32) -> Result<(), OutOfPatience> {
        let stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, all) = (stuck.get(&user).copied().unwrap_or_default(), stuck.values().sum::<usize>());
        match count >= STUCK_EACH || (count > 0 && all >= STUCK_ALL) {
            true => Err(OutOfPatience::Stuck { user, count }),
            false => Ok(()),
        }
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
struct Ends {
    wanted: Wanted,
    /// Counts it, until it ends.
    _thread: Share,
}

impl Drop for Ends {
    fn drop(&mut self) {
        let work = &self.wanted.0;
        let mut state = work.state.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *state, State::Ended) == State::Stuck {
            work.patience.count_down(work.user);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use tokio::task::JoinHandle;

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
        for _ in 0..STUCK_EACH {
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

    /// Begins work that ends when what is returned is dropped.
    fn begin(
        patience: &Arc<Patience>,
        user: u32,
        begun: &Arc<AtomicUsize>,
    ) -> (mpsc::Sender<()>, JoinHandle<Result<(), OutOfPatience>>) {
        let (patience, begun) = (Arc::clone(patience), Arc::clone(begun));
        let (release, released) = mpsc::channel::<()>();
        let work = move |_: &_| {
            begun.fetch_add(1, Ordering::SeqCst);
            let _ = released.recv();
        };
        (release, tokio::spawn(async move { patience.wait(user, LATER, work).await }))
    }

    #[tokio::test]
    async fn what_a_user_has_under_way_is_counted_before_any_of_it_is_stuck() {
        let (patience, begun) = (Arc::new(Patience::default()), Arc::new(AtomicUsize::new(0)));
        // More than the runtime has threads, and nothing of it is late yet.
        let (releases, mut asked): (Vec<_>, Vec<_>) = (0..600).map(|_| begin(&patience, 1000, &begun)).unzip();
        let refused = asked.pop().unwrap().await.unwrap().unwrap_err();
        assert_eq!(refused.reason(), AttestReason::RateLimited, "{refused}");
        assert_eq!(begun.load(Ordering::SeqCst), THREADS.each);
        // Meanwhile there are threads for everybody else.
        patience.wait(1001, LATER, |_| ()).await.unwrap();
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        drop(releases);
        for one in asked {
            drop(one.await.unwrap());
        }
        patience.wait(1000, LATER, |_| ()).await.unwrap();
    }

    #[tokio::test]
    async fn a_crowd_that_leaves_threads_stuck_is_refused_and_who_left_none_is_not() {
        let patience = Arc::new(Patience::default());
        let mut stuck = Vec::new();
        for user in 0..u32::try_from(STUCK_ALL).unwrap() {
            stuck.push(stick(&patience, user).await);
        }
        let said = patience.wait(0, LATER, |_| ()).await.unwrap_err().to_string();
        assert_eq!(said, "1 threads are stuck already on account of user 0");
        patience.wait(5000, LATER, |_| ()).await.unwrap();
    }

    #[tokio::test]
    async fn threads_that_others_take_say_nothing_of_a_program() {
        let (patience, begun) = (Arc::new(Patience::default()), Arc::new(AtomicUsize::new(0)));
        let users = u32::try_from(THREADS.all).unwrap();
        let (_releases, asked): (Vec<_>, Vec<_>) = (0..users).map(|user| begin(&patience, user, &begun)).unzip();
        while begun.load(Ordering::SeqCst) < THREADS.all {
            tokio::task::yield_now().await;
        }
        let refused = patience.wait(5000, LATER, |_| ()).await.unwrap_err();
        assert_eq!(refused.reason(), AttestReason::Unavailable, "{refused}");
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        asked.iter().for_each(JoinHandle::abort);
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
