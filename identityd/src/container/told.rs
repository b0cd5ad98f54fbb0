//! What a runtime tells unasked: of which containers something changed, and no more. What it is now, it is asked.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::circuit::AskError;

/// Containers that may wait; if there are more, it is all of them.
const WAITING_MAX: usize = 256;
/// The longest ID of a container, in bytes.
const ID_MAX: usize = 128;
/// No runtime says since when it tells. So much later it does.
const TELLS: Duration = Duration::from_secs(1);

/// Of which containers something changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Changed {
    /// Of these.
    These(BTreeSet<String>),
    /// It may be any.
    All,
}

impl Changed {
    /// Whether it may be of this one.
    pub(crate) fn has(&self, id: &str) -> bool {
        match self {
            Self::These(ids) => ids.contains(id),
            Self::All => true,
        }
    }

    fn nothing() -> Self {
        Self::These(BTreeSet::new())
    }
}

/// What one runtime told, until somebody attends to it: however much that is, it is little.
#[derive(Debug)]
pub(crate) struct Told {
    waiting: Mutex<Changed>,
    more: Notify,
}

impl Default for Told {
    fn default() -> Self {
        Self { waiting: Mutex::new(Changed::nothing()), more: Notify::new() }
    }
}

impl Told {
    /// Something changed about this container; or about one that cannot be named.
    pub(crate) fn of(&self, container: Option<String>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *waiting, container) {
            // Nobody's container is called so.
            (_, Some(id)) if id.len() > ID_MAX => return,
            (Changed::These(ids), Some(id)) if ids.len() < WAITING_MAX => drop(ids.insert(id)),
            _ => *waiting = Changed::All,
        }
        self.more.notify_one();
    }

    /// Hears, over a connection that was just made: until then anything may have changed.
    pub(crate) async fn begins_now(
        &self,
        hearing: impl Future<Output = Result<Infallible, AskError>>,
    ) -> Result<Infallible, AskError> {
        self.of(None);
        let once_more = async {
            tokio::time::sleep(TELLS).await;
            self.of(None);
            std::future::pending().await
        };
        tokio::select! {
            heard = hearing => heard,
            never = once_more => never,
        }
    }

    /// Waits until something changed.
    pub(crate) async fn next(&self) -> Changed {
        loop {
            self.more.notified().await;
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = std::mem::replace(&mut *waiting, Changed::nothing());
            if changed != Changed::nothing() {
                return changed;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_told_before_somebody_attends_to_it_is_told_once() {
        let told = Told::default();
        for id in ["a", "b", "a", &"x".repeat(ID_MAX + 1)] {
            told.of(Some(id.to_owned()));
        }
        let changed = told.next().await;
        assert_eq!(changed, Changed::These(["a".to_owned(), "b".to_owned()].into()));
        assert!(changed.has("a") && !changed.has("c"));
        told.of(Some("c".to_owned()));
        assert_eq!(told.next().await, Changed::These(["c".to_owned()].into()));
    }

    #[tokio::test]
    async fn too_many_are_all_and_so_is_one_without_a_name() {
        let told = Told::default();
        (0..=WAITING_MAX).for_each(|n| told.of(Some(n.to_string())));
        assert_eq!(told.next().await, Changed::All);
        told.of(None);
        told.of(Some("a".to_owned()));
        let changed = told.next().await;
        assert!(changed == Changed::All && changed.has("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn everything_is_in_doubt_when_hearing_begins_and_once_more_later() {
        let told = Told::default();
        let hearing = told.begins_now(std::future::pending());
        let attending = async {
            assert_eq!(told.next().await, Changed::All);
            assert_eq!(told.next().await, Changed::All);
        };
        tokio::select! {
            _ = hearing => panic!("it ended"),
            () = attending => {}
        }
        let over = told.begins_now(async { Err(AskError::ended()) }).await;
        assert!(matches!(over, Err(AskError::Unreachable(_))));
    }
}
