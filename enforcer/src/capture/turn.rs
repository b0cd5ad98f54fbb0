//! One capture per network namespace at a time.
//!
//! A guard that removes the rules of a dead enforcer must not remove those of its successor, so the successor waits
//! for it. The lock is on the namespace itself: there is nothing to configure, and nothing to clean up.

use std::fs::File;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

/// How long to wait for whoever holds it. Removing takes some 100 ms. Any process of the namespace can take this lock,
/// so holding it must not keep capture from starting, only delay it.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// Held until dropped.
pub(super) struct Turn {
    _locked: File,
}

impl Turn {
    /// Waits for an earlier holder, but not for ever: `None` if it does not let go.
    pub(super) async fn take() -> Option<Self> {
        let file = File::open("/proc/thread-self/ns/net").ok()?;
        let taken = async {
            while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        let taken = tokio::time::timeout(PATIENCE, taken).await;
        if taken.is_err() {
            tracing::warn!("an earlier capture's guard, or somebody else, holds this network namespace; going on");
            return None;
        }
        Some(Self { _locked: file })
    }
}
