//! The stream of lapses: while it lasts, answers may be remembered; when it breaks, they are forgotten.

use std::sync::Arc;

use tokio::sync::watch::Sender;

use super::ask::Daemon;
use super::lapse::{Lapse, Quarantine, Told};
use super::memory::Memory;
use super::watch::follow;

/// Follows the lapses, for ever.
pub(super) async fn lapses(daemon: Daemon, memory: Arc<Memory>, quarantine: Sender<Arc<Quarantine>>) {
    let open = || daemon.clone().watch_lapses();
    follow("lapses", open, |told| take(told.into(), &memory, &quarantine), || memory.deafen()).await;
}

fn take(told: Told, memory: &Memory, quarantine: &Sender<Arc<Quarantine>>) {
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
fn quarantine_now(barred: Quarantine, memory: &Memory, quarantine: &Sender<Arc<Quarantine>>) {
    let new = barred.digests.difference(&quarantine.borrow().digests).count();
    quarantine.send_if_modified(|now| {
        let differs = **now != barred;
        *now = Arc::new(barred);
        differs
    });
    if new > 0 {
        tracing::warn!(new, "more digests are in quarantine");
        memory.hear(Lapse::of_everything("more digests are in quarantine"));
    }
}
