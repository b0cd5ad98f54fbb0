//! Keeps the certificates of live flows valid: at half-life a later one is had and shown to the other end. What nobody
//! renews ends its flows before it expires.
//!
//! ```text
//!   [valid] -- half-life --> [stale] -- a later one is there: shown to the other end --> [valid]
//!                               |-- none yet: asked for again -----------------------> [stale]
//!                               +-- about to expire -----------------------------------> ended
//! ```

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::identity::Identity;
use crate::live::{Live, Stale};

/// How often the time is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// The pause after a certificate could not be had.
const PAUSE: Duration = Duration::from_secs(2);

/// Looks at the clock for ever.
pub(crate) async fn run(live: Arc<Live>, identity: Identity) {
    let mut renewals = Renewals::new(live, identity);
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => renewals.look(),
            Some(serial) = renewals.running.join_next() => renewals.over(serial.ok()),
        }
    }
}

/// Those under way: one at a time for each certificate.
pub(crate) struct Renewals {
    live: Arc<Live>,
    identity: Identity,
    running: JoinSet<String>,
    about: HashSet<String>,
    /// Counts the looks: each asks for another of the programs that share a certificate.
    turn: usize,
}

impl Renewals {
    pub(crate) fn new(live: Arc<Live>, identity: Identity) -> Self {
        Self { live, identity, running: JoinSet::new(), about: HashSet::new(), turn: 0 }
    }

    /// Ends what expires, and asks for what is stale.
    pub(crate) fn look(&mut self) {
        while let Some(done) = self.running.try_join_next() {
            self.over(done.ok());
        }
        let ended = self.live.end_expired();
        if ended > 0 {
            tracing::warn!(ended, "flows ended: their certificates expire, and there are no later ones");
        }
        self.turn = self.turn.wrapping_add(1);
        for stale in self.live.stale() {
            if self.about.insert(stale.serial.clone()) {
                self.running.spawn(renew(Arc::clone(&self.live), self.identity.clone(), stale, self.turn));
            }
        }
    }

    fn over(&mut self, serial: Option<String>) {
        match serial {
            Some(serial) => drop(self.about.remove(&serial)),
            // Which one did not end well is not told: all may be asked about again.
            None => self.about.clear(),
        }
    }
}

async fn renew(live: Arc<Live>, identity: Identity, stale: Stale, turn: usize) -> String {
    let Stale { serial, of } = stale;
    let Some(attestation) = of.get(turn.checked_rem(of.len()).unwrap_or(0)) else { return serial };
    match identity.leaf(attestation).await {
        // The one before serves while the next is on order.
        Ok(leaf) if leaf.svid().serial() == serial => {}
        Ok(leaf) => {
            let flows = live.refresh(&serial, &leaf);
            tracing::debug!(flows, serial = leaf.svid().serial(), "live flows have a later certificate");
        }
        Err(refusal) => {
            tracing::warn!(%refusal, "no later certificate for a live flow");
            sleep(PAUSE).await;
        }
    }
    serial
}
