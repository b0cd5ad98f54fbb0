//! Who may have how many files hashed at once. Whoever starts programs faster than they can be hashed keeps only
//! questions about their own processes waiting, and not too many of those.

use std::time::Duration;

use crate::shares::{Bounds, Full, Share, Shares};

/// Files hashed at once for all users together, beside those that need hashing only once.
const ALL_USERS: usize = 4;
/// Files hashed at once for one user.
const EACH_USER: usize = 2;
/// Files that wait to be hashed for one user; for more the answer is no.
const WAITING_MAX: usize = 32;
/// Whoever waits is waited for themselves, and not for long.
const FOR_EVER: Duration = Duration::MAX;

/// The slots.
#[derive(Debug)]
pub(crate) struct Slots {
    lasting: Shares,
    users: Shares,
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

impl Slots {
    /// So many for files whose digest lasts, but two at least: one is left when a user has all those they may have.
    pub(crate) fn new(lasting: usize) -> Self {
        let lasting = lasting.max(2);
        let bounds = Bounds { all: lasting, each: lasting - 1, waiting: usize::MAX, most: FOR_EVER };
        let users = Bounds { all: ALL_USERS, each: EACH_USER, waiting: WAITING_MAX, most: FOR_EVER };
        Self { lasting: Shares::new(bounds), users: Shares::new(users) }
    }

    /// Waits for a slot, for a question of this user's.
    ///
    /// # Errors
    /// Too many wait on this account already.
    pub(crate) async fn take(&self, account: Account, asks: u32) -> Result<Share, Full> {
        match account {
            Account::Lasting => self.lasting.take(asks).await,
            Account::User(user) => self.users.take(user).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a slot is free at this moment.
    async fn free(slots: &Slots, account: Account, asks: u32) -> Option<Share> {
        tokio::select! {
            biased;
            slot = slots.take(account, asks) => Some(slot.unwrap()),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn a_user_with_many_files_leaves_slots_to_others() {
        for lasting in [1, 4] {
            let slots = Slots::new(lasting);
            let mut taken = Vec::new();
            for account in [Account::User(1000), Account::Lasting] {
                while let Some(slot) = free(&slots, account, 1000).await {
                    taken.push(slot);
                }
            }
            assert_eq!(taken.len(), EACH_USER + lasting.max(2) - 1);
            assert!(free(&slots, Account::User(1001), 1001).await.is_some());
            assert!(free(&slots, Account::Lasting, 1001).await.is_some());
        }
    }

    #[tokio::test]
    async fn a_crowd_of_users_leaves_slots_to_what_lasts() {
        let slots = Slots::new(1);
        let mut taken = Vec::new();
        for user in 0..100 {
            taken.extend(free(&slots, Account::User(user), user).await);
        }
        assert_eq!(taken.len(), ALL_USERS);
        assert!(free(&slots, Account::Lasting, 5000).await.is_some());
    }
}
