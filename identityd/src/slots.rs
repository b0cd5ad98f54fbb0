//! Who may have how many files hashed at once. Whoever starts programs faster than they can be hashed keeps only
//! questions about their own files waiting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Files hashed at once for all owners together, beside those that need hashing only once.
const ALL_OWNERS: usize = 4;
/// Files hashed at once for one owner.
const EACH_OWNER: usize = 2;
/// Owners that are kept in mind though none of their files is hashed.
const OWNERS_KEPT: usize = 256;

/// The slots.
#[derive(Debug)]
pub(crate) struct Slots {
    lasting: Arc<Semaphore>,
    all_owners: Arc<Semaphore>,
    owners: Mutex<HashMap<u32, Arc<Semaphore>>>,
}

/// On whose account a file is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Account {
    /// Nobody's: its digest lasts, so that it is hashed once for all.
    Lasting,
    /// Its owner's: it may have to be hashed each time somebody asks.
    Owner(u32),
}

/// A slot, until it is dropped.
#[must_use]
#[derive(Debug)]
pub(crate) struct Slot {
    _of_all: OwnedSemaphorePermit,
    _of_owner: Option<OwnedSemaphorePermit>,
}

impl Slots {
    /// So many for files whose digest lasts.
    pub(crate) fn new(lasting: usize) -> Self {
        Self {
            lasting: Arc::new(Semaphore::new(lasting.max(1))),
            all_owners: Arc::new(Semaphore::new(ALL_OWNERS)),
            owners: Mutex::default(),
        }
    }

    /// Waits for a slot.
    ///
    /// # Errors
    /// Never: no semaphore is closed.
    pub(crate) async fn take(&self, account: Account) -> Result<Slot, tokio::sync::AcquireError> {
        match account {
            Account::Lasting => Ok(Slot { _of_all: Arc::clone(&self.lasting).acquire_owned().await?, _of_owner: None }),
            Account::Owner(uid) => {
                // First the owner's: nobody waits for a slot of all with more than their share.
                let of_owner = self.owner(uid).acquire_owned().await?;
                let of_all = Arc::clone(&self.all_owners).acquire_owned().await?;
                Ok(Slot { _of_all: of_all, _of_owner: Some(of_owner) })
            }
        }
    }

    fn owner(&self, uid: u32) -> Arc<Semaphore> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if owners.len() >= OWNERS_KEPT {
            // Whoever has a slot, or waits for one, shares theirs.
            owners.retain(|_, slots| Arc::strong_count(slots) > 1);
        }
        Arc::clone(owners.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(EACH_OWNER))))
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
    async fn an_owner_with_many_files_leaves_slots_to_others_and_to_root() {
        let slots = Slots::new(1);
        let mut taken = Vec::new();
        while let Some(slot) = free(&slots, Account::Owner(1000)).await {
            taken.push(slot);
        }
        assert_eq!(taken.len(), EACH_OWNER);
        assert!(free(&slots, Account::Owner(1001)).await.is_some());
        assert!(free(&slots, Account::Lasting).await.is_some());
        taken.pop();
        assert!(free(&slots, Account::Owner(1000)).await.is_some());
    }

    #[tokio::test]
    async fn a_crowd_of_owners_leaves_slots_to_root_and_is_forgotten() {
        let slots = Slots::new(1);
        let mut taken = Vec::new();
        for uid in 0..2 * u32::try_from(OWNERS_KEPT).unwrap() {
            taken.extend(free(&slots, Account::Owner(uid)).await);
        }
        assert_eq!(taken.len(), ALL_OWNERS);
        assert!(free(&slots, Account::Lasting).await.is_some());
        assert!(slots.owners.lock().unwrap().len() <= OWNERS_KEPT + ALL_OWNERS);
        // Those who have slots are still counted.
        assert_eq!(slots.owner(0).available_permits(), EACH_OWNER - 1);
    }
}
