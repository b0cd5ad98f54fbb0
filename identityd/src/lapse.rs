//! Lapses: what was attested before and is so no longer, told to everybody who remembers answers.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::revoked::Barred;
use bonafide_proto::wire::node as wire;
use tokio::sync::broadcast;
use tokio_stream::Stream;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

use crate::events::Use;

/// Lapses that may wait for a listener who is slow; beyond that it is told that everything lapsed.
const WAITING_MAX: usize = 4096;

/// What has to be asked again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lapsed {
    /// The evidence about this execution changed.
    Execution(Execution),
    /// Somebody used this socket who is not the program that was attested.
    Flow(Use),
    /// Another process of the same program used this socket: what that is by now has to be asked, too.
    Kin(Use),
    /// Others may hold the sockets of this execution by now, as the same program.
    Holders(Execution),
    /// Events were lost.
    Everything,
    /// This is in quarantine, or revoked, now, and nothing else.
    Quarantine(Arc<Barred>),
}

/// A lapse, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lapse {
    /// What has to be asked again.
    pub(crate) what: Lapsed,
    /// Which doubt arose.
    pub(crate) reason: AttestReason,
    /// What changed, in words.
    pub(crate) detail: String,
}

/// Where lapses are told, and heard. Clones are of one hub.
#[derive(Debug, Clone)]
pub(crate) struct Lapses {
    told: broadcast::Sender<Lapse>,
    quarantined: Told,
}

/// What the CA told is in quarantine, or revoked; `None` as long as it told nothing. That is not told on, as if nothing were:
/// who heard of it from an earlier identityd would forget it.
type Told = Arc<Mutex<Option<Arc<Barred>>>>;

impl Lapses {
    /// A hub to which nobody listens yet.
    pub(crate) fn new() -> Self {
        Self { told: broadcast::Sender::new(WAITING_MAX), quarantined: Arc::default() }
    }

    /// From now on this is in quarantine, or revoked, and nothing else: tells everybody who listens, now or later.
    pub(crate) fn quarantine(&self, barred: Arc<Barred>) {
        let mut quarantined = self.quarantined.lock().unwrap_or_else(PoisonError::into_inner);
        self.tell(in_quarantine(&barred));
        *quarantined = Some(barred);
    }

    /// Tells everybody who listens.
    pub(crate) fn tell(&self, lapse: Lapse) {
        tracing::debug!(what = ?lapse.what, reason = %lapse.reason, detail = lapse.detail, "lapsed");
        // Nobody listens: nobody remembers.
        let _ = self.told.send(lapse);
    }

    /// Every lapse from now on, for whoever is in this daemon.
    pub(crate) fn told(&self) -> broadcast::Receiver<Lapse> {
        self.told.subscribe()
    }

    /// `ready`, then the digests in quarantine if they are known, then every lapse from now on. Who falls behind is told that everything
    /// lapsed, and what is in quarantine by then.
    pub(crate) fn listen(&self) -> Heard {
        use wire::lapse::Of;
        // Between these two lines nothing changes unheard: who changes it holds the lock.
        let quarantined = self.quarantined.lock().unwrap_or_else(PoisonError::into_inner);
        let told = BroadcastStream::new(self.told.subscribe());
        let ready = wire::Lapse { of: Some(Of::Ready(true)), reason: String::new(), detail: String::new() };
        let first = std::iter::once(ready).chain(quarantined.as_ref().map(|barred| in_quarantine(barred).into()));
        let first = first.collect();
        Heard { first, told, quarantined: Arc::clone(&self.quarantined) }
    }
}

fn in_quarantine(barred: &Arc<Barred>) -> Lapse {
    let detail = format!(
        "{} digests are in quarantine, and {} revocations in force",
        barred.digests.len(),
        barred.revoked.len()
    );
    Lapse { what: Lapsed::Quarantine(Arc::clone(barred)), reason: AttestReason::Quarantined, detail }
}

/// What a listener hears; it never ends.
#[derive(Debug)]
pub(crate) struct Heard {
    first: VecDeque<wire::Lapse>,
    told: BroadcastStream<Lapse>,
    quarantined: Told,
}

impl Heard {
    fn behind(&mut self, missed: u64) -> wire::Lapse {
        let quarantined = self.quarantined.lock().unwrap_or_else(PoisonError::into_inner);
        self.first.extend(quarantined.as_ref().map(|barred| in_quarantine(barred).into()));
        let detail = format!("{missed} changes were not told in time");
        Lapse { what: Lapsed::Everything, reason: AttestReason::Unavailable, detail }.into()
    }
}

impl Stream for Heard {
    type Item = wire::Lapse;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<wire::Lapse>> {
        if let Some(first) = self.first.pop_front() {
            return Poll::Ready(Some(first));
        }
        let told = std::task::ready!(Pin::new(&mut self.told).poll_next(cx));
        Poll::Ready(told.map(|told| match told {
            Ok(lapse) => lapse.into(),
            Err(BroadcastStreamRecvError::Lagged(missed)) => self.behind(missed),
        }))
    }
}

impl From<Lapse> for wire::Lapse {
    fn from(lapse: Lapse) -> Self {
        use wire::lapse::Of;
        let of = match lapse.what {
            Lapsed::Execution(execution) => Of::Execution(execution.into()),
            Lapsed::Flow(used) => Of::Flow(flow(used)),
            Lapsed::Kin(used) => Of::Kin(flow(used)),
            Lapsed::Holders(execution) => Of::Holders(execution.into()),
            Lapsed::Everything => Of::Everything(true),
            Lapsed::Quarantine(barred) => Of::Quarantine(barred.as_ref().into()),
        };
        Self { of: Some(of), reason: lapse.reason.as_str().to_owned(), detail: lapse.detail }
    }
}

fn flow(Use { local, remote, by, at_ns }: Use) -> wire::lapse::Flow {
    wire::lapse::Flow { local: Some(local.into()), remote: Some(remote.into()), used_by: Some(by.into()), at_ns }
}

#[cfg(test)]
mod tests {
    use bonafide_proto::fingerprint::Digest;
    use tokio_stream::StreamExt as _;
    use wire::lapse::Of;

    use super::*;

    fn lapse(pid: u32) -> Lapse {
        let execution = Execution { pid, start_ticks: 1, image: 2 };
        Lapse { what: Lapsed::Execution(execution), reason: AttestReason::GenerationGone, detail: "exec".into() }
    }

    async fn next(heard: &mut Heard) -> Of {
        heard.next().await.unwrap().of.unwrap()
    }

    fn quarantined<const N: usize>(digests: [Digest; N]) -> Of {
        Of::Quarantine((&Barred::from(digests)).into())
    }

    #[tokio::test]
    async fn who_listens_is_told_what_lapses_from_then_on() {
        let lapses = Lapses::new();
        lapses.tell(lapse(1));
        let mut heard = lapses.listen();
        lapses.tell(lapse(2));
        assert_eq!(next(&mut heard).await, Of::Ready(true));
        assert_eq!(heard.next().await.unwrap(), lapse(2).into(), "and nothing of a quarantine that nobody told");
    }

    #[tokio::test]
    async fn who_listens_is_told_what_is_in_quarantine_now_and_later() {
        let lapses = Lapses::new();
        lapses.quarantine(Arc::new(Barred::from([Digest([1; 32])])));
        let mut heard = lapses.listen();
        assert_eq!(next(&mut heard).await, Of::Ready(true));
        assert_eq!(next(&mut heard).await, quarantined([Digest([1; 32])]));
        lapses.quarantine(Arc::new(Barred::from([Digest([2; 32]), Digest([1; 32])])));
        assert_eq!(next(&mut heard).await, quarantined([Digest([1; 32]), Digest([2; 32])]));
    }

    #[tokio::test]
    async fn who_is_slow_is_told_that_everything_lapsed() {
        let lapses = Lapses::new();
        let mut heard = lapses.listen();
        lapses.quarantine(Arc::new(Barred::from([Digest([1; 32])])));
        for pid in 0..=u32::try_from(WAITING_MAX).unwrap() {
            lapses.tell(lapse(pid));
        }
        assert_eq!(next(&mut heard).await, Of::Ready(true));
        assert_eq!(next(&mut heard).await, Of::Everything(true));
        assert_eq!(next(&mut heard).await, quarantined([Digest([1; 32])]));
    }
}
