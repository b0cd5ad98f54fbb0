//! The stream of lapses: while it lasts, answers may be remembered; when it breaks, they are forgotten.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch::{Receiver, Sender, channel};

use super::ask::Daemon;
use super::lapse::{Lapse, Quarantine, Told};
use super::memory::Memory;
use super::watch::follow;

/// What is in quarantine, or revoked, as it is heard of.
#[derive(Debug)]
pub(super) struct Heard {
    into: Sender<Arc<Quarantine>>,
    /// Whether anything was heard yet.
    any: AtomicBool,
}

impl Heard {
    /// Nothing was heard yet.
    pub(super) fn channel() -> (Arc<Self>, Receiver<Arc<Quarantine>>) {
        let (into, quarantine) = channel(Arc::default());
        (Arc::new(Self { into, any: AtomicBool::new(false) }), quarantine)
    }

    /// The trust bundle says what was in quarantine and revoked when it was made: that counts until something is heard here.
    /// Both streams begin at once, and no peer may be trusted before it is known what is revoked.
    pub(super) fn of_bundle(&self, barred: Quarantine) {
        self.into.send_if_modified(|now| {
            let first = !self.any.swap(true, Ordering::SeqCst);
            if first {
                *now = Arc::new(barred);
            }
            first
        });
    }

    /// How many digests are new.
    fn told(&self, barred: Quarantine) -> usize {
        let mut new = 0;
        self.into.send_if_modified(|now| {
            self.any.store(true, Ordering::SeqCst);
            new = barred.digests.difference(&now.digests).count();
            let differs = **now != barred;
            *now = Arc::new(barred);
            differs
        });
        new
    }
}

/// Follows the lapses, for ever.
pub(super) async fn lapses(daemon: Daemon, memory: Arc<Memory>, quarantine: Arc<Heard>) {
    let open = || daemon.clone().watch_lapses();
    follow("lapses", open, |told| take(told.into(), &memory, &quarantine), || memory.deafen()).await;
}

fn take(told: Told, memory: &Memory, quarantine: &Heard) {
    match told {
        Told::Ready => memory.ready(),
        Told::Lapse(lapse) => {
            tracing::debug!(what = ?lapse.what, why = lapse.why, "lapsed");
            memory.hear(lapse);
        }
        Told::Quarantine(barred) => quarantine_now(barred, memory, quarantine),
    }
}

/// New connections are refused first, and those ended that are revoked. Then those that live are looked at: also by identityd, who sees digests that are
/// not told here, such as those of single libraries.
fn quarantine_now(barred: Quarantine, memory: &Memory, quarantine: &Heard) {
    let new = quarantine.told(barred);
    if new > 0 {
        tracing::warn!(new, "more digests are in quarantine");
        memory.hear(Lapse::of_everything("more digests are in quarantine"));
    }
}
