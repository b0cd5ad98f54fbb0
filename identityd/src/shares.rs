//! Room that nobody fills alone: each user has a share of it, and waits for more in a line of their own, which is bounded
//! in length and in time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bonafide_proto::refusal::AttestReason;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// Users who are kept in mind though they have nothing.
const USERS_KEPT: usize = 256;

/// The bounds of a room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// For all users together.
    pub(crate) all: usize,
    /// For each of them.
    pub(crate) each: usize,
    /// How many more of one user's may wait.
    pub(crate) waiting: usize,
    /// And how long.
    pub(crate) most: Duration,
}

/// The room.
#[derive(Debug)]
pub(crate) struct Shares {
    bounds: Bounds,
    all: Arc<Semaphore>,
    users: Mutex<HashMap<u32, Arc<Semaphore>>>,
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    /// One user has their share, and all who may wait for more do, or did too long.
    #[error("user {user} has {each} of them under way, and more waiting than are answered in time")]
    Share {
        /// Who.
        user: u32,
        /// Their share.
        each: usize,
    },
    /// Many users together have everything.
    #[error("{all} of them are under way for all users together")]
    Everything {
        /// All there is.
        all: usize,
    },
}

impl Full {
    /// What it says to whoever asks: that they did too much, or nothing of them.
    pub(crate) fn reason(self) -> AttestReason {
        match self {
            Self::Share { .. } => AttestReason::RateLimited,
            Self::Everything { .. } => AttestReason::Unavailable,
        }
    }
}

/// Some room, until it is dropped.
#[must_use]
#[derive(Debug)]
pub(crate) struct Share {
    _of_all: OwnedSemaphorePermit,
    _of_user: OwnedSemaphorePermit,
}

impl Shares {
    /// All of it free.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, all: Arc::new(Semaphore::new(bounds.all)), users: Mutex::default() }
    }

    /// Waits for room for one.
    ///
    /// # Errors
    /// See [`Full`].
    pub(crate) async fn take(&self, user: u32) -> Result<Share, Full> {
        self.take_many(user, 1).await
    }

    /// Waits for room for so many; whoever wants more than a share waits for a whole one.
    ///
    /// # Errors
    /// See [`Full`].
    pub(crate) async fn take_many(&self, user: u32, many: usize) -> Result<Share, Full> {
        let Bounds { all, each, most, .. } = self.bounds;
        let until = Instant::now().checked_add(most);
        let (share, everything) = (Full::Share { user, each }, Full::Everything { all });
        // First the user's: nobody waits for room of all with more than their share.
        let of_user = acquired(self.user(user)?, many.min(each), until).await.ok_or(share)?;
        let of_all = acquired(Arc::clone(&self.all), many.min(all), until).await.ok_or(everything)?;
        Ok(Share { _of_all: of_all, _of_user: of_user })
    }

    fn user(&self, user: u32) -> Result<Arc<Semaphore>, Full> {
        let Bounds { each, waiting, .. } = self.bounds;
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.len() >= USERS_KEPT && !users.contains_key(&user) {
            // Whoever has something, or waits for it, shares theirs.
            users.retain(|_, theirs| Arc::strong_count(theirs) > 1);
        }
        let theirs = users.entry(user).or_insert_with(|| Arc::new(Semaphore::new(each)));
        // One is in the map, and each who waits or has something has one.
        if Arc::strong_count(theirs) > each.saturating_add(waiting) {
            return Err(Full::Share { user, each });
        }
        Ok(Arc::clone(theirs))
    }
}

/// Permits, if there are in time. A semaphore is never closed.
async fn acquired(from: Arc<Semaphore>, many: usize, until: Option<Instant>) -> Option<OwnedSemaphorePermit> {
    let permits = from.acquire_many_owned(u32::try_from(many).ok()?);
    match until {
        Some(until) => timeout_at(until, permits).await.ok()?.ok(),
        None => permits.await.ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { all: 4, each: 2, waiting: 3, most: Duration::from_secs(3600) };

    /// Whether there is room at this moment.
    async fn free(shares: &Shares, user: u32) -> Option<Share> {
        tokio::select! {
            biased;
            share = shares.take(user) => Some(share.unwrap()),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn a_user_has_a_share_and_leaves_the_rest_to_others() {
        let shares = Shares::new(BOUNDS);
        let mut taken = Vec::new();
        while let Some(share) = free(&shares, 1000).await {
            taken.push(share);
        }
        assert_eq!(taken.len(), BOUNDS.each);
        assert!(free(&shares, 1001).await.is_some());
        taken.pop();
        assert!(free(&shares, 1000).await.is_some());
    }

    #[tokio::test]
    async fn a_crowd_of_users_is_bounded_and_forgotten() {
        let shares = Shares::new(BOUNDS);
        let mut taken = Vec::new();
        for user in 0..2 * u32::try_from(USERS_KEPT).unwrap() {
            taken.extend(free(&shares, user).await);
        }
        assert_eq!(taken.len(), BOUNDS.all);
        assert!(shares.users.lock().unwrap().len() <= USERS_KEPT + BOUNDS.all);
        // Those who have something are still counted.
        assert_eq!(shares.user(0).unwrap().available_permits(), BOUNDS.each - 1);
    }

    #[tokio::test]
    async fn a_line_is_bounded_and_of_one_user() {
        let shares = Arc::new(Shares::new(BOUNDS));
        let wait = |user| {
            let shares = Arc::clone(&shares);
            tokio::spawn(async move { shares.take(user).await })
        };
        let waiting: Vec<_> = (0..BOUNDS.each + BOUNDS.waiting).map(|_| wait(1000)).collect();
        tokio::task::yield_now().await;
        assert_eq!(shares.take(1000).await.unwrap_err(), Full::Share { user: 1000, each: 2 });
        assert!(free(&shares, 1001).await.is_some());
        for one in waiting {
            drop(one.await.unwrap().unwrap());
        }
        assert!(free(&shares, 1000).await.is_some());
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_and_is_told_for_whom() {
        let shares = Shares::new(Bounds { most: Duration::from_millis(1), ..BOUNDS });
        let whole = shares.take_many(1000, 2).await.unwrap();
        assert_eq!(shares.take(1000).await.unwrap_err(), Full::Share { user: 1000, each: 2 });
        let other = shares.take_many(1001, 2).await.unwrap();
        assert_eq!(shares.take(1002).await.unwrap_err(), Full::Everything { all: 4 });
        drop((whole, other));
        assert!(free(&shares, 1002).await.is_some());
    }
}
