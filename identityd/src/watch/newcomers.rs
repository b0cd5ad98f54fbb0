//! Executions that were attested just now: the sentry is told of all of them at once, and then they are looked at again.

use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::fingerprint::Execution;
use tokio::sync::Notify;

use super::Eyes;
use super::turns::Lane;

/// Executions that the sentry does not know of yet. The table bounds them.
#[derive(Debug, Default)]
pub(crate) struct Newcomers {
    waiting: Mutex<Vec<Execution>>,
    more: Notify,
}

impl Newcomers {
    /// One more.
    pub(crate) fn put(&self, execution: Execution) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(execution);
        self.more.notify_one();
    }

    fn take(&self) -> Arc<[Execution]> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

/// Has them watched.
pub(crate) async fn run(eyes: Arc<Eyes>) {
    loop {
        eyes.newcomers.more.notified().await;
        let newcomers = eyes.newcomers.take();
        let (sentry, told) = (Arc::clone(&eyes.sentry), Arc::clone(&newcomers));
        if let Err(e) = tokio::task::spawn_blocking(move || sentry.watch(&told)).await {
            tracing::error!(error = %e, "nobody tells what changes in place");
        }
        let mut known = eyes.known();
        for execution in newcomers.iter().copied() {
            if known.table.get_mut(execution).is_some() {
                eyes.suspect(&mut known, execution, Lane::Patient);
            } else {
                // It was dismissed meanwhile.
                eyes.sentry.forget(execution);
            }
        }
    }
}
