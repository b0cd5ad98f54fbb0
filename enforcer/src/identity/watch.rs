//! What identityd pushes: the policy and the trust. Each replaces the last one only if it is whole and sound.

use std::sync::Arc;
use std::time::Duration;

use bonafide_policy::Policy;
use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::svid::TrustBundle;
use bonafide_proto::wire::node as wire;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch::Sender;
use tonic::{Status, Streaming};

use super::ask::Daemon;
use super::lapses::Heard;
use super::memory::Memory;
use super::{NodeTrust, Quarantine};
use crate::tunnel::Trust;

/// The pause after the first failure; each further one doubles it.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause: a restarted identityd is found again this fast.
pub(super) const PAUSE_MAX: Duration = Duration::from_millis(800);

/// Follows the policy and lets its rules expire, for ever.
pub(super) async fn policy(daemon: Daemon, memory: Arc<Memory>, clock: SharedClock, into: Sender<Option<Arc<Policy>>>) {
    let take = |update| take_policy(&update, &memory, &clock, &into);
    let following = follow("policy", || daemon.clone().watch_policy(), take, || ());
    tokio::join!(following, expire(&clock, &into));
}

/// The clock of the host may be set: so often it is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Puts the policy in force again when a rule of it expires, or its hours begin or end.
async fn expire(clock: &SharedClock, into: &Sender<Option<Arc<Policy>>>) {
    let mut policies = into.subscribe();
    loop {
        let next = policies.borrow_and_update().as_ref().and_then(|policy| policy.next_change());
        let Some(next) = next else {
            if policies.changed().await.is_err() {
                return;
            }
            continue;
        };
        if next <= clock.unix() {
            let digest = into.borrow().as_ref().map(|policy| policy.digest());
            tracing::info!(?digest, "a rule of the policy expired, or its hours began or ended");
            into.send_modify(|policy| {
                let now = policy.take().map(|policy| Arc::new(Policy::clone(&policy).at(clock.unix())));
                *policy = now;
            });
            continue;
        }
        let at = Duration::from_secs(u64::try_from(next).unwrap_or(u64::MAX));
        let left = at.saturating_sub(clock.now()).min(LOOK);
        // Another policy may have another expiry; none is lost if this ends early.
        let _ = tokio::time::timeout(left, policies.changed()).await;
    }
}

/// Follows the trust, for ever.
pub(super) async fn trust(
    daemon: Daemon,
    clock: SharedClock,
    barred: Arc<Heard>,
    into: Sender<Option<Arc<NodeTrust>>>,
) {
    let take = |bundle| take_trust(bundle, &clock, &barred, &into);
    follow("trust bundle", || daemon.clone().watch_bundle(), take, || ()).await;
}

/// Takes every message of a stream, and opens the stream again whenever it ends.
pub(super) async fn follow<M, F>(what: &'static str, open: impl Fn() -> F, mut take: impl FnMut(M), lost: impl Fn())
where
    F: Future<Output = Result<Streaming<M>, Status>>,
{
    let mut pause = PAUSE_MIN;
    loop {
        let ended = async {
            let mut stream = open().await?;
            while let Some(message) = stream.message().await? {
                take(message);
                pause = PAUSE_MIN;
            }
            Err(Status::unavailable("the stream ended"))
        };
        let ended: Result<(), Status> = ended.await;
        lost();
        if pause == PAUSE_MIN {
            let why = ended.err().map(|e| e.message().to_owned()).unwrap_or_default();
            tracing::warn!(what, why, "identityd is away; what it sent last stays in force");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn take_policy(update: &wire::PolicyUpdate, memory: &Memory, clock: &SharedClock, into: &Sender<Option<Arc<Policy>>>) {
    let digest = Digest::of(update.text.as_bytes());
    if update.sha256 != digest.0 {
        tracing::error!(file = update.file, "the policy was damaged on its way; the one before stays in force");
        return;
    }
    if into.borrow().as_ref().is_some_and(|now| now.digest() == digest) {
        return;
    }
    match Policy::parse(&update.file, &update.text) {
        Ok(policy) => {
            tracing::info!(file = update.file, %digest, mode = policy.mode().as_str(), "policy in force");
            // Before anybody is judged by it: who was looked at under the old one has to be looked at again.
            memory.another_policy();
            into.send_replace(Some(Arc::new(policy.at(clock.unix()))));
        }
        Err(errors) => tracing::error!(%errors, "the policy does not parse; the one before stays in force"),
    }
}

fn take_trust(mut bundle: wire::Bundle, clock: &SharedClock, barred: &Heard, into: &Sender<Option<Arc<NodeTrust>>>) {
    let quarantine =
        wire::Quarantine { sha256: std::mem::take(&mut bundle.quarantine), revoked: bundle.revoked.take() };
    let revoked = Quarantine::try_from(quarantine).map_err(|e| e.to_string());
    match revoked.and_then(|revoked| Ok((revoked, node_trust(bundle, clock)?))) {
        Ok((revoked, new)) => {
            // First of all.
            barred.of_bundle(revoked);
            // The same roots again, as after a restart, must not make anybody renew anything.
            if into.borrow().as_ref().is_some_and(|now| same(now, &new)) {
                return;
            }
            let trust_domain = new.trust.bundle.trust_domain();
            tracing::info!(%trust_domain, node = %new.node, roots = new.trust.bundle.roots().len(), "trust in force");
            into.send_replace(Some(Arc::new(new)));
        }
        Err(why) => tracing::error!(why, "the trust bundle is unusable; the one before stays in force"),
    }
}

fn node_trust(bundle: wire::Bundle, clock: &SharedClock) -> Result<NodeTrust, String> {
    let trust_domain = bundle.trust_domain.parse().map_err(|e| format!("the trust domain {e}"))?;
    let node = bundle.node.parse().map_err(|e| format!("the node's name {e}"))?;
    let roots = bundle.roots.into_iter().map(CertificateDer::from).collect();
    let bundle = TrustBundle::new(trust_domain, roots).map_err(|e| e.to_string())?;
    Ok(NodeTrust { trust: Trust { bundle, clock: Arc::clone(clock) }, node })
}

fn same(a: &NodeTrust, b: &NodeTrust) -> bool {
    let (x, y) = (&a.trust.bundle, &b.trust.bundle);
    a.node == b.node && x.trust_domain() == y.trust_domain() && x.roots() == y.roots()
}
