//! How long a store remembers: what is older leaves it when the daemon starts, and a few times a day while it runs.

use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use tokio::sync::watch;

use crate::authority::Authority;
use crate::daemon::ended;
use crate::store::{Store, StoreError};

/// How long ledger entries that have expired, and entries of the audit chain, are kept, seconds.
const REMEMBER: i64 = 90 * 86_400;
/// How much time passes between two clearings, seconds.
const PERIOD: i64 = 6 * 3600;
/// How much time passes between two looks for revocations of what has expired, seconds.
const EXPIRY: i64 = 60;
/// The clock is looked at this often: hosts sleep, and clocks are set.
const LOOK: Duration = Duration::from_secs(5);

/// Drops what is older than is remembered.
///
/// # Errors
/// Any [`StoreError`].
pub(crate) fn clear(store: &Store, now: i64) -> Result<(), StoreError> {
    store.forget_before(now.saturating_sub(REMEMBER))
}

/// Takes from what every node is told the revocations of certificates that have expired, until the daemon stops.
pub(crate) async fn keep_revoked(authority: Arc<Authority>, stopped: watch::Receiver<()>) {
    let mut last = authority.clock().unix();
    while looked(&stopped).await {
        let now = authority.clock().unix();
        if (last..last.saturating_add(EXPIRY)).contains(&now) {
            continue;
        }
        last = now;
        let of = authority.clone();
        if let Ok(Err(e)) = tokio::task::spawn_blocking(move || of.quarantine().expire()).await {
            tracing::error!(error = %e, "revocations of what has expired could not be dropped; tried again later");
        }
    }
}

/// False when the daemon stops.
async fn looked(stopped: &watch::Receiver<()>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(LOOK) => true,
        () = ended(stopped.clone()) => false,
    }
}

/// Clears this store whenever it is time, until the daemon stops.
pub(crate) async fn keep(store: Arc<Store>, clock: SharedClock, stopped: watch::Receiver<()>) {
    let mut last = clock.unix();
    while looked(&stopped).await {
        let now = clock.unix();
        // A clock that was set back begins anew.
        if (last..last.saturating_add(PERIOD)).contains(&now) {
            continue;
        }
        last = now;
        let of = store.clone();
        if let Ok(Err(e)) = tokio::task::spawn_blocking(move || clear(&of, now)).await {
            tracing::error!(error = %e, "what is older than is kept could not be dropped; tried again later");
        }
    }
}
