//! Lapses: what was attested before and is so no longer, told to everybody who remembers answers.

use bonafide_proto::fingerprint::{Digest, Execution};
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::wire::node as wire;
use std::net::SocketAddr;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt as _};

/// Lapses that may wait for a listener who is slow; beyond that it is told that everything lapsed.
const WAITING_MAX: usize = 4096;

/// What has to be asked again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lapsed {
    /// The evidence about this execution changed.
    Execution(Execution),
    /// Somebody used this socket who is not the program that was attested.
    Flow {
        /// Of the program's socket.
        local: SocketAddr,
        /// Of the program's socket.
        remote: SocketAddr,
        /// Who used it.
        used_by: Execution,
    },
    /// Events were lost.
    Everything,
    /// These digests are in quarantine now: all that are, sorted.
    Quarantine(Vec<Digest>),
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
}

impl Lapses {
    /// A hub to which nobody listens yet.
    pub(crate) fn new() -> Self {
        Self { told: broadcast::Sender::new(WAITING_MAX) }
    }

    /// Tells everybody who listens.
    pub(crate) fn tell(&self, lapse: Lapse) {
        tracing::debug!(what = ?lapse.what, reason = %lapse.reason, detail = lapse.detail, "lapsed");
        // Nobody listens: nobody remembers.
        let _ = self.told.send(lapse);
    }

    /// `ready`, then every lapse from now on. Who falls behind is told that everything lapsed.
    pub(crate) fn listen(&self) -> impl Stream<Item = wire::Lapse> + Send + use<> {
        use wire::lapse::Of;
        let ready = wire::Lapse { of: Some(Of::Ready(true)), reason: String::new(), detail: String::new() };
        let lapses = BroadcastStream::new(self.told.subscribe()).map(|told| match told {
            Ok(lapse) => lapse.into(),
            Err(BroadcastStreamRecvError::Lagged(missed)) => Lapse {
                what: Lapsed::Everything,
                reason: AttestReason::Unavailable,
                detail: format!("{missed} changes were not told in time"),
            }
            .into(),
        });
        tokio_stream::once(ready).chain(lapses)
    }
}

impl From<Lapse> for wire::Lapse {
    fn from(lapse: Lapse) -> Self {
        use wire::lapse::{Flow, Of};
        let of = match lapse.what {
            Lapsed::Execution(execution) => Of::Execution(execution.into()),
            Lapsed::Flow { local, remote, used_by } => {
                Of::Flow(Flow { local: Some(local.into()), remote: Some(remote.into()), used_by: Some(used_by.into()) })
            }
            Lapsed::Everything => Of::Everything(true),
            Lapsed::Quarantine(digests) => {
                Of::Quarantine(wire::Quarantine { sha256: digests.iter().map(|digest| digest.0.to_vec()).collect() })
            }
        };
        Self { of: Some(of), reason: lapse.reason.as_str().to_owned(), detail: lapse.detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lapse(pid: u32) -> Lapse {
        let execution = Execution { pid, start_ticks: 1, image: 2 };
        Lapse { what: Lapsed::Execution(execution), reason: AttestReason::GenerationGone, detail: "exec".into() }
    }

    #[tokio::test]
    async fn who_listens_is_told_what_lapses_from_then_on() {
        use wire::lapse::Of;
        let lapses = Lapses::new();
        lapses.tell(lapse(1));
        let mut heard = Box::pin(lapses.listen());
        lapses.tell(lapse(2));
        assert_eq!(heard.next().await.unwrap().of, Some(Of::Ready(true)));
        assert_eq!(heard.next().await.unwrap(), lapse(2).into());
    }

    #[tokio::test]
    async fn who_is_slow_is_told_that_everything_lapsed() {
        use wire::lapse::Of;
        let lapses = Lapses::new();
        let mut heard = Box::pin(lapses.listen());
        for pid in 0..=u32::try_from(WAITING_MAX).unwrap() {
            lapses.tell(lapse(pid));
        }
        heard.next().await.unwrap();
        assert_eq!(heard.next().await.unwrap().of, Some(Of::Everything(true)));
    }
}
