//! Room for work on users' accounts: each user has a share of what may be under way at once and of what may wait for it,
//! so that whoever makes slow work keeps only themselves waiting. What is beyond the share is refused at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Under way at once, of one user.
    pub(crate) each: usize,
    /// Under way at once.
    pub(crate) all: usize,
    /// Under way or waiting, of one user who is not root.
    pub(crate) each_admitted: usize,
    /// Under way or waiting.
    pub(crate) all_admitted: usize,
}

/// The room.
#[derive(Debug)]
pub(crate) struct Shares {
    limits: Limits,
    all: Arc<Semaphore>,
    users: Mutex<Users>,
}

#[derive(Debug, Default)]
struct Users {
    admitted: usize,
    by_user: HashMap<u32, Share>,
}

#[derive(Debug)]
struct Share {
    admitted: usize,
    room: Arc<Semaphore>,
}

/// Work that was admitted.
#[derive(Debug)]
#[must_use]
pub(crate) struct Ticket {
    shares: Arc<Shares>,
    user: u32,
    room: Arc<Semaphore>,
}

impl Shares {
    /// Empty.
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, all: Arc::new(Semaphore::new(limits.all)), users: Mutex::default() })
    }

    /// Work on this user's account; none if too much waits already.
    pub(crate) fn admit(self: &Arc<Self>, user: u32) -> Option<Ticket> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = users.by_user.get(&user).map_or(0, |share| share.admitted);
        if users.admitted >= self.limits.all_admitted || (user != 0 && theirs >= self.limits.each_admitted) {
            return None;
        }
        users.admitted += 1;
        let empty = || Share { admitted: 0, room: Arc::new(Semaphore::new(self.limits.each)) };
        let share = users.by_user.entry(user).or_insert_with(empty);
        share.admitted += 1;
        Some(Ticket { shares: Arc::clone(self), user, room: Arc::clone(&share.room) })
    }

    fn leave(&self, user: u32) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.admitted -= 1;
        if let Some(share) = users.by_user.get_mut(&user) {
            share.admitted -= 1;
            if share.admitted == 0 {
                users.by_user.remove(&user);
            }
        }
    }
}

impl Ticket {
    /// Waits until there is room; there is as long as what this returns lives. None never comes.
    pub(crate) async fn turn(&self) -> [Option<OwnedSemaphorePermit>; 2] {
        // Neither is ever closed. Their own room first: what waits for it takes nothing of anybody else's.
        let theirs = Arc::clone(&self.room).acquire_owned().await.ok();
        let all = Arc::clone(&self.shares.all).acquire_owned().await.ok();
        [theirs, all]
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shares.leave(self.user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { each: 1, all: 2, each_admitted: 3, all_admitted: 6 };

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn one_user_s_work_keeps_only_that_user_waiting() {
        let shares = Shares::new(LIMITS);
        let theirs: Vec<Ticket> = (0..3).map(|_| shares.admit(7).unwrap()).collect();
        let busy = now(theirs[0].turn()).unwrap();
        assert!(now(theirs[1].turn()).is_none());
        assert!(shares.admit(7).is_none(), "no more may wait");
        let other = shares.admit(8).unwrap();
        assert!(now(other.turn()).is_some());
        drop(busy);
        assert!(now(theirs[1].turn()).is_some());
    }

    #[test]
    fn all_together_are_bounded_and_nothing_is_kept_of_who_is_gone() {
        let shares = Shares::new(LIMITS);
        let tickets: Vec<Ticket> = (0..6).map(|_| shares.admit(0).unwrap()).collect();
        assert!(shares.admit(1).is_none());
        drop(tickets);
        let users = shares.users.lock().unwrap();
        assert!(users.by_user.is_empty() && users.admitted == 0);
    }
}
