//! A runtime that does not answer costs nobody else anything: questions to it are few at once and end in time, and
//! after one that failed it is not asked about the same container for a while. (It is about others: some runtimes
//! hang for one container only.)

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::refuse::shown;

/// Questions to one runtime at once.
pub(super) const AT_ONCE: usize = 16;
/// The longest that one question takes, waiting included.
const PATIENCE: Duration = Duration::from_secs(1);
/// After the first failure the container is left alone for so long; after each further one, twice as long;
const REST_MIN: Duration = Duration::from_millis(100);
/// but not longer than this.
const REST_MAX: Duration = Duration::from_secs(5);
/// Containers that are left alone at once.
const RESTING_MAX: usize = 1024;

/// Why a runtime did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// The usual socket was never there.
    #[error("it is not on this host")]
    NotHere,
    /// No connection, or it broke.
    #[error("it cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
    /// Too slow.
    #[error("it did not answer within {} ms", PATIENCE.as_millis())]
    Silent,
    /// It was left alone.
    #[error("{0} (a moment ago)")]
    Resting(String),
    /// Not what it should say.
    #[error("it answered what cannot be: {0}")]
    Garbage(String),
    /// It said no.
    #[error("it answered with the error {0}")]
    Failed(String),
}

impl AskError {
    /// What it said is none of this; at most a short piece is shown.
    pub(crate) fn garbage(said: impl AsRef<[u8]>) -> Self {
        Self::Garbage(shown(said.as_ref()))
    }

    /// It told what it had to tell, and no more.
    pub(crate) fn ended() -> Self {
        Self::Unreachable(io::ErrorKind::UnexpectedEof.into())
    }

    /// It said that it cannot; at most a short piece is shown.
    pub(crate) fn failed(said: impl AsRef<[u8]>) -> Self {
        Self::Failed(shown(said.as_ref()))
    }
}

/// The way to one runtime.
#[derive(Debug)]
pub(crate) struct Circuit {
    room: Semaphore,
    resting: Mutex<HashMap<String, Resting>>,
}

#[derive(Debug)]
struct Resting {
    why: String,
    failures: u32,
    until: Instant,
}

impl Circuit {
    /// Nothing failed yet.
    pub(crate) fn new() -> Self {
        Self { room: Semaphore::new(AT_ONCE), resting: Mutex::default() }
    }

    /// Asks about a container, if that is not left alone just now.
    ///
    /// # Errors
    /// See [`AskError`].
    pub(crate) async fn ask<T>(
        &self,
        container: &str,
        asking: impl Future<Output = Result<T, AskError>>,
    ) -> Result<T, AskError> {
        self.rested(container)?;
        let asked = async {
            let _room = self.room.acquire().await.map_err(|_| AskError::Silent)?;
            asking.await
        };
        let answer = tokio::time::timeout(PATIENCE, asked).await.unwrap_or(Err(AskError::Silent));
        self.note(container, answer.as_ref().err());
        answer
    }

    fn rested(&self, container: &str) -> Result<(), AskError> {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        match resting.get_mut(container) {
            Some(resting) if Instant::now() < resting.until => Err(AskError::Resting(resting.why.clone())),
            Some(resting) => {
                // One tries; the others wait for what becomes of it.
                resting.until = Instant::now() + PATIENCE;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn note(&self, container: &str, error: Option<&AskError>) {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(error) = error else {
            resting.remove(container);
            return;
        };
        if resting.len() >= RESTING_MAX {
            resting.clear();
        }
        let failures = resting.get(container).map_or(0, |resting| resting.failures);
        let rest = REST_MIN.saturating_mul(1 << failures.min(10)).min(REST_MAX);
        let rest = Resting { why: error.to_string(), failures: failures + 1, until: Instant::now() + rest };
        resting.insert(container.to_owned(), rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_container_about_which_asking_failed_is_left_alone_and_then_tried_again() {
        let circuit = Circuit::new();
        let failed = circuit.ask("a", async { Err::<(), _>(AskError::garbage(b"\x1b!")) }).await.unwrap_err();
        assert_eq!(failed.to_string(), "it answered what cannot be: \\x1b!");
        let resting = circuit.ask("a", async { Ok(()) }).await.unwrap_err();
        assert_eq!(resting.to_string(), "it answered what cannot be: \\x1b! (a moment ago)");
        circuit.ask("b", async { Ok(()) }).await.unwrap();
        while circuit.ask("a", async { Ok(()) }).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        circuit.ask("a", async { Ok(()) }).await.unwrap();
    }

    #[tokio::test]
    async fn however_many_ask_all_of_them_end_in_time_and_the_next_at_once() {
        let circuit = std::sync::Arc::new(Circuit::new());
        let ask = |n: usize| {
            let circuit = std::sync::Arc::clone(&circuit);
            tokio::spawn(async move { circuit.ask(&n.to_string(), std::future::pending::<Result<(), _>>()).await })
        };
        let asked: Vec<_> = (0..5 * AT_ONCE).map(ask).collect();
        let begun = Instant::now();
        for one in asked {
            assert!(matches!(one.await.unwrap(), Err(AskError::Silent)));
        }
        // One after the other they would take 80 seconds.
        assert!(begun.elapsed() < PATIENCE * 20, "{:?}", begun.elapsed());
        assert!(matches!(ask(0).await.unwrap(), Err(AskError::Resting(_))));
    }
}
