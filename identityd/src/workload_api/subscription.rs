//! A stream to one caller: complete state at once, and again whenever it is another one. Before each message the caller is
//! attested; what is no longer so ends the stream.
//!
//! ```text
//!          ┌────────────── lapse, policy, bundle, revocation, half-life ◄──┐
//!          ▼                                                              │
//!   who is it? ──► certificate, if wanted ──► who is it still? ──► message ──► wait
//!          │                  │                      │            (if new)
//!          └──────────────────┴──────────────────────┴──► PermissionDenied | Unavailable: the end
//! ```

use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Execution;
use bonafide_proto::name::{SpiffeId, WorkloadName};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::wire::node as wire;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::svids::{Current, Svids};
use super::trust::Trust;
use super::{Caller, Entitled, Entitles};
use crate::bundle::Authority;
use crate::in_force::{InForce, State};
use crate::lapse::{Lapse, Lapsed, Lapses};

/// What clients look for to tell that there is nothing for them from anything else that is denied.
pub(super) const NO_IDENTITY: &str = "no identity issued";

/// However far away it is, the time is looked at so often: clocks are set.
const CLOCK_STEP: Duration = Duration::from_secs(1);

/// What a stream needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    /// A certificate and its key, and the bundle.
    Svid,
    /// The bundle.
    Bundle,
}

/// What there is to tell a caller now.
#[derive(Debug)]
pub(super) struct Told {
    /// Whom the caller is.
    pub(super) id: SpiffeId,
    /// If it is wanted.
    pub(super) svid: Option<Current>,
    /// Whom to trust.
    pub(super) trust: Trust,
    /// The caller.
    pub(super) entitled: Entitled,
}

/// Opens streams. Clones share everything.
#[derive(Debug, Clone)]
pub(super) struct Subscriptions(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    attests: Arc<dyn Entitles>,
    authority: Authority,
    policy: InForce,
    lapses: Lapses,
    svids: Svids,
    clock: SharedClock,
}

impl Shared {
    /// Nobody is a revoked workload, whatever certificate is at hand.
    fn not_revoked(&self, workload: &WorkloadName) -> Result<(), AttestRefusal> {
        match self.revoked(workload) {
            Some(why) => Err(AttestRefusal::new(AttestReason::WorkloadRevoked, why)),
            None => Ok(()),
        }
    }

    fn revoked(&self, workload: &WorkloadName) -> Option<String> {
        self.authority.quarantine().borrow().revoked.workload(workload).map(|(_, why)| why)
    }
}

impl Subscriptions {
    /// Why a workload is worth nothing any more, if it is revoked.
    pub(super) fn revoked(&self, workload: &WorkloadName) -> Option<String> {
        self.0.revoked(workload)
    }

    pub(super) fn new(
        attests: Arc<dyn Entitles>,
        authority: Authority,
        policy: InForce,
        lapses: Lapses,
        svids: Svids,
        clock: SharedClock,
    ) -> Self {
        Self(Arc::new(Shared { attests, authority, policy, lapses, svids, clock }))
    }

    /// A stream of what `said` makes of the state.
    pub(super) fn open<M: PartialEq + Clone + Send + 'static>(
        &self,
        caller: Caller,
        wants: Wants,
        said: impl Fn(&Told) -> M + Send + 'static,
    ) -> ReceiverStream<Result<M, Status>> {
        let (to, told) = mpsc::channel(1);
        let follower = self.follow(caller);
        tokio::spawn(async move {
            if let Err(refusal) = run(follower, wants, said, &to).await {
                tracing::debug!(%refusal, "nothing is told to a program");
                // Who is gone does not want to know.
                let _ = to.send(Err(status(&refusal))).await;
            }
        });
        ReceiverStream::new(told)
    }

    /// Looks for one caller, and hears of every change from here on.
    pub(super) fn follow(&self, caller: Caller) -> Follower {
        Follower { of: self.clone(), caller, changes: Changes::of(&self.0) }
    }

    /// What there is to tell this caller now.
    ///
    /// # Errors
    /// Why there is nothing.
    pub(super) async fn told(&self, caller: &Caller, wants: Wants) -> Result<Told, AttestRefusal> {
        let shared = &self.0;
        let mut entitled = shared.attests.entitled(caller).await?;
        shared.not_revoked(&entitled.workload)?;
        let trust = Trust::of(shared.authority.bundle().borrow().as_ref())?;
        let svid = match wants {
            Wants::Svid => {
                let svid = shared.svids.get(&entitled, &trust).await?;
                // The CA took its time, too.
                shared.not_revoked(&entitled.workload)?;
                Some(svid)
            }
            Wants::Bundle => None,
        };
        if svid.as_ref().is_some_and(|svid| svid.is_new) {
            entitled = self.still(caller, &entitled).await?;
        }
        let id = SpiffeId::workload(trust.roots.trust_domain(), &entitled.workload);
        Ok(Told { id, svid, trust, entitled })
    }

    /// The CA took its time; the caller may have become somebody else.
    ///
    /// # Errors
    /// It did.
    pub(super) async fn still(&self, caller: &Caller, before: &Entitled) -> Result<Entitled, AttestRefusal> {
        let now = self.0.attests.entitled(caller).await?;
        if now.workload != before.workload {
            let detail = format!("the program is {} now, and was {}", now.workload, before.workload);
            return Err(AttestRefusal::new(AttestReason::GenerationGone, detail));
        }
        Ok(now)
    }
}

async fn run<M: PartialEq + Clone>(
    mut follower: Follower,
    wants: Wants,
    said: impl Fn(&Told) -> M,
    to: &mpsc::Sender<Result<M, Status>>,
) -> Result<(), AttestRefusal> {
    let mut sent = None;
    loop {
        let told = follower.look(wants).await?;
        let message = said(&told);
        if sent.as_ref() != Some(&message) {
            if to.send(Ok(message.clone())).await.is_err() {
                return Ok(());
            }
            sent = Some(message);
        }
        tokio::select! {
            () = to.closed() => return Ok(()),
            () = follower.changed(&told) => {}
        }
    }
}

/// What one caller is to know, as it changes.
#[derive(Debug)]
pub(super) struct Follower {
    of: Subscriptions,
    caller: Caller,
    changes: Changes,
}

impl Follower {
    /// As it is now.
    ///
    /// # Errors
    /// Why there is nothing.
    pub(super) async fn look(&self, wants: Wants) -> Result<Told, AttestRefusal> {
        self.of.told(&self.caller, wants).await
    }

    /// Until it may be something else.
    pub(super) async fn changed(&mut self, told: &Told) {
        let renew_at = told.svid.as_ref().map(|current| current.renew_at);
        tokio::select! {
            () = self.changes.next(&told.entitled.executions) => {}
            () = due(&self.of.0.clock, renew_at) => {}
        }
    }
}

/// What makes it worth while to look again.
#[derive(Debug)]
struct Changes {
    lapses: broadcast::Receiver<Lapse>,
    policy: watch::Receiver<State>,
    bundle: watch::Receiver<Option<wire::Bundle>>,
}

impl Changes {
    fn of(shared: &Shared) -> Self {
        let (mut policy, mut bundle) = (shared.policy.watch(), shared.authority.bundle());
        policy.mark_unchanged();
        bundle.mark_unchanged();
        Self { lapses: shared.lapses.told(), policy, bundle }
    }

    /// Until something changed that may be about these.
    async fn next(&mut self, executions: &[Execution]) {
        loop {
            tokio::select! {
                Ok(()) = self.policy.changed() => return,
                Ok(()) = self.bundle.changed() => return,
                lapse = self.lapses.recv() => match lapse {
                    Ok(lapse) if !concerns(&lapse.what, executions) => {}
                    // Who heard of nothing any more never looks again, and must not go on.
                    Ok(_) | Err(RecvError::Lagged(_) | RecvError::Closed) => return,
                },
            }
        }
    }
}

fn concerns(lapsed: &Lapsed, executions: &[Execution]) -> bool {
    match lapsed {
        Lapsed::Execution(execution) | Lapsed::Holders(execution) => executions.contains(execution),
        Lapsed::Everything | Lapsed::Quarantine(_) => true,
        Lapsed::Flow { .. } | Lapsed::Kin(_) => false,
    }
}

/// Done at that time, unix seconds; never, where there is none.
async fn due(clock: &SharedClock, at: Option<i64>) {
    let Some(at) = at else { return std::future::pending().await };
    loop {
        let left = at - clock.unix();
        let Ok(left @ 1..) = u64::try_from(left) else { return };
        tokio::time::sleep(Duration::from_secs(left).min(CLOCK_STEP)).await;
    }
}

/// What a program learns of a refusal: that there is nothing for it, or that it should come again.
pub(super) fn status(refusal: &AttestRefusal) -> Status {
    use AttestReason::{EvidenceUnavailable, NoIntermediate, NoPolicy, RateLimited, Unavailable};
    match refusal.reason {
        EvidenceUnavailable | NoIntermediate | NoPolicy | RateLimited | Unavailable => {
            Status::unavailable(format!("{}: {}", refusal.reason, refusal.detail))
        }
        // What speaks against it may be about others.
        _ => Status::permission_denied(NO_IDENTITY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_unavailable_and_no_doubt_is_told() {
        let said = |reason| status(&AttestRefusal::new(reason, "held by /bin/a and by /bin/b"));
        for reason in [AttestReason::NotEntitled, AttestReason::TwoPrograms, AttestReason::Quarantined] {
            assert_eq!((said(reason).code(), said(reason).message()), (tonic::Code::PermissionDenied, NO_IDENTITY));
        }
        for reason in [AttestReason::NoIntermediate, AttestReason::Unavailable, AttestReason::NoPolicy] {
            assert_eq!(said(reason).code(), tonic::Code::Unavailable);
        }
    }

    #[test]
    fn lapses_of_others_are_none_of_a_streams_business() {
        let execution = |pid| Execution { pid, start_ticks: 1, image: 2 };
        let own = [execution(1)];
        assert!(concerns(&Lapsed::Execution(execution(1)), &own) && concerns(&Lapsed::Everything, &own));
        assert!(!concerns(&Lapsed::Execution(execution(2)), &own));
        assert!(!concerns(&Lapsed::Execution(Execution { image: 3, ..execution(1) }), &own));
    }
}
