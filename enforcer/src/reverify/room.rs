//! Room for questions on their way: whoever makes answers take long takes a share of it, and root's programs what they need.
//! Users are accounts, as identityd names them: a person's subordinate users have one share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Questions on their way at once.
const ALL: usize = 32;
/// Of those, questions about one user's programs, unless that is root.
const EACH_USER: usize = 8;
/// Users who are kept in mind though nothing is asked about them.
const USERS_KEPT: usize = 256;

/// The room.
#[derive(Debug)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    users: Mutex<HashMap<u32, Arc<Semaphore>>>,
}

/// Room for one question, until it is dropped.
#[must_use]
#[derive(Debug)]
pub(super) struct Entered {
    _of_all: Option<OwnedSemaphorePermit>,
    _of_user: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Nothing is asked.
    pub(super) fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(ALL)), users: Mutex::default() }
    }

    /// Waits for room for a question about this user's program.
    pub(super) async fn enter(&self, user: u32) -> Entered {
        // Neither is ever closed. First the user's: nobody waits for room of all with more than their share.
        let of_user = self.user(user).acquire_owned().await.ok();
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        Entered { _of_all: of_all, _of_user: of_user }
    }

    fn user(&self, user: u32) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.len() >= USERS_KEPT && !users.contains_key(&user) {
            users.retain(|_, theirs| Arc::strong_count(theirs) > 1);
        }
        let share = if user == 0 { ALL } else { EACH_USER };
        Arc::clone(users.entry(user).or_insert_with(|| Arc::new(Semaphore::new(share))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn free(room: &Room, user: u32) -> Option<Entered> {
        tokio::select! {
            biased;
            entered = room.enter(user) => Some(entered),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn a_user_whose_answers_take_long_leaves_room_for_questions_about_others() {
        let room = Room::new();
        let mut entered = Vec::new();
        while let Some(one) = free(&room, 1000).await {
            entered.push(one);
        }
        assert_eq!(entered.len(), EACH_USER);
        while let Some(one) = free(&room, 0).await {
            entered.push(one);
        }
        assert_eq!(entered.len(), ALL);
        entered.clear();
        for user in 1..1000 {
            drop(room.enter(user).await);
        }
        assert!(room.users.lock().unwrap().len() <= USERS_KEPT);
    }
}
