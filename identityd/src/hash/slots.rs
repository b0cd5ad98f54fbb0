//! Who may have how many files hashed at once. Whoever starts programs faster than they can be hashed keeps only
//! questions about their own processes waiting, and not too many of those.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Files hashed at once for all users together, beside those that need hashing only once.
const ALL_USERS: usize = 4;
/// Files hashed at once for one user.
const EACH_USER: usize = 2;
/// Files that wait to be hashed for one user; for more the answer is no.
const WAITING_MAX: usize = 32;
/// Users who are kept in mind though nothing is hashed for them.
const USERS_KEPT: usize = 256;

/// The slots.
#[derive(Debug)]
pub(crate) struct Slots {
    lasting: Arc<Semaphore>,
    all_users: Arc<Semaphore>,
    users: Mutex<HashMap<u32, Arc<Semaphore>>>,
}

/// On whose account a file is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Account {
    /// Nobody's: its digest lasts, so that it is hashed once for all.
    Lasting,
    /// Of the user who runs it: it is hashed each time somebody asks. (Not of the file's owner: that would let anybody
    /// keep the owner waiting by running the owner's files.)
    User(u32),
}

/// Too many wait.
#[derive(Debug, thiserror::Error)]
#[error("{WAITING_MAX} files that user {0} runs wait to be hashed already")]
pub(crate) struct Busy(u32);

/// A slot, until it is dropped.
#[must_use]
#[derive(Debug)]
pub(crate) struct Slot {
    _of_all: OwnedSemaphorePermit,
    _of_user: Option<OwnedSemaphorePermit>,
}

impl Slots {
    /// So many for files whose digest lasts.
    pub(crate) fn new(lasting: usize) -> Self {
        Self {
            lasting: Arc::new(Semaphore::new(lasting.max(1))),
            all_users: Arc::new(Semaphore::new(ALL_USERS)),
            users: Mutex::default(),
        }
    }

    /// Waits for a slot.
    ///
    /// # Errors
    /// Too many wait on this account already.
    pub(crate) async fn take(&self, account: Account) -> Result<Slot, Busy> {
        match account {
            Account::Lasting => Ok(Slot {
                _of_all: Arc::clone(&self.lasting).acquire_owned().await.map_err(|_| Busy(0))?,
                _of_user: None,
            }),
            Account::User(uid) => {
                // First the user's: nobody waits for a slot of all with more than their share.
                let slots = self.user(uid)?;
                let of_user = slots.acquire_owned().await.map_err(|_| Busy(uid))?;
                let of_all = Arc::clone(&self.all_users).acquire_owned().await.map_err(|_| Busy(uid))?;
                Ok(Slot { _of_all: of_all, _of_user: Some(of_user) })
            }
        }
    }

    fn user(&self, uid: u32) -> Result<Arc<Semaphore>, Busy> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.len() >= USERS_KEPT {
            // Whoever has a slot, or waits for one, shares theirs.
            users.retain(|_, slots| Arc::strong_count(slots) > 1);
        }
        let slots = users.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(EACH_USER)));
        // One is in the map, and each who waits or has a slot has one.
        if Arc::strong_count(slots) > EACH_USER + WAITING_MAX {
            return Err(Busy(uid));
        }
        Ok(Arc::clone(slots))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a slot is free at this moment.
    async fn free(slots: &Slots, account: Account) -> Option<Slot> {
        tokio::select! {
            biased;
            slot = slots.take(account) => Some(slot.unwrap()),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn a_user_with_many_files_leaves_slots_to_others_and_to_root() {
        let slots = Slots::new(1);
        let mut taken = Vec::new();
        while let Some(slot) = free(&slots, Account::User(1000)).await {
            taken.push(slot);
        }
        assert_eq!(taken.len(), EACH_USER);
        assert!(free(&slots, Account::User(1001)).await.is_some());
        assert!(free(&slots, Account::Lasting).await.is_some());
        taken.pop();
        assert!(free(&slots, Account::User(1000)).await.is_some());
    }

    #[tokio::test]
    async fn a_crowd_of_users_leaves_slots_to_root_and_is_forgotten() {
        let slots = Slots::new(1);
        let mut taken = Vec::new();
        for uid in 0..2 * u32::try_from(USERS_KEPT).unwrap() {
            taken.extend(free(&slots, Account::User(uid)).await);
        }
        assert_eq!(taken.len(), ALL_USERS);
        assert!(free(&slots, Account::Lasting).await.is_some());
        assert!(slots.users.lock().unwrap().len() <= USERS_KEPT + ALL_USERS);
        // Those who have slots are still counted.
        assert_eq!(slots.user(0).unwrap().available_permits(), EACH_USER - 1);
    }

    #[tokio::test]
    async fn a_user_with_too_many_waiting_is_told_so() {
        let slots = Arc::new(Slots::new(1));
        let wait = |uid| {
            let slots = Arc::clone(&slots);
            tokio::spawn(async move { slots.take(Account::User(uid)).await })
        };
        let waiting: Vec<_> = (0..EACH_USER + WAITING_MAX).map(|_| wait(1000)).collect();
        tokio::task::yield_now().await;
        assert!(slots.take(Account::User(1000)).await.is_err());
        assert!(free(&slots, Account::User(1001)).await.is_some());
        for one in waiting {
            drop(one.await.unwrap().unwrap());
        }
        assert!(free(&slots, Account::User(1000)).await.is_some());
    }
}
