//! Flows that identityd sees. Nothing depends on them but their records: where they cannot be had, it is said once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bonafide_proto::observed::ObservedFlow;
use bonafide_proto::wire::node as wire;
use tokio::sync::watch::Receiver;
use tonic::{Code, Status};

use super::ask::Daemon;
use super::watch::{PAUSE_MAX, PAUSE_MIN};

/// The pause where identityd has no means to see flows.
const PAUSE_WITHOUT: Duration = Duration::from_secs(10);

/// What identityd was asked to see, and agreed to.
#[derive(Debug, Default)]
pub(super) struct Seen {
    flows: AtomicBool,
    connections: AtomicBool,
}

impl Seen {
    /// Whether flows are told of; and connections among them, if they are wanted.
    pub(super) fn all(&self, connections: bool) -> bool {
        self.flows.load(Ordering::Relaxed) && (!connections || self.connections.load(Ordering::Relaxed))
    }
}

/// Takes every flow, for ever.
pub(super) async fn follow(daemon: Daemon, seen: &Seen, take: impl Fn(ObservedFlow)) {
    let mut complaint = String::new();
    let mut pause = PAUSE_MIN;
    loop {
        let ended: Result<(), Status> = async {
            let mut flows = daemon.clone().watch_flows(false, false).await?;
            seen.flows.store(true, Ordering::Relaxed);
            while let Some(flow) = flows.message().await? {
                take_one(flow, &take);
                pause = PAUSE_MIN;
                complaint.clear();
            }
            Err(Status::unavailable("the stream ended"))
        }
        .await;
        seen.flows.store(false, Ordering::Relaxed);
        let Err(why) = ended else { continue };
        if why.message() != complaint {
            tracing::warn!("flows that are not captured have no records: {}", why.message());
            why.message().clone_into(&mut complaint);
        }
        tokio::time::sleep(if why.code() == Code::FailedPrecondition { PAUSE_WITHOUT } else { pause }).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn take_one(flow: wire::ObservedFlow, take: impl Fn(ObservedFlow)) {
    if flow.missed > 0 {
        tracing::warn!(missed = flow.missed, "flows, or parts of them, were missed: they have no records");
    }
    if flow.id.is_empty() {
        return;
    }
    match ObservedFlow::try_from(flow) {
        Ok(flow) => take(flow),
        Err(e) => tracing::warn!("a flow has no record: {e}"),
    }
}

/// Has connections seen as long as the wish is true, for ever.
pub(super) async fn wish(daemon: Daemon, seen: &Seen, mut wishes: Receiver<bool>) {
    while wishes.wait_for(|wished| *wished).await.map(drop).is_ok() {
        let held = async {
            let mut stream = daemon.clone().watch_flows(true, true).await?;
            seen.connections.store(true, Ordering::Relaxed);
            while stream.message().await?.is_some() {}
            Ok::<_, Status>(())
        };
        let lost = tokio::select! {
            _ = held => true,
            _ = wishes.wait_for(|wished| !wished) => false,
        };
        seen.connections.store(false, Ordering::Relaxed);
        if lost {
            tokio::time::sleep(PAUSE_MIN).await;
        }
    }
}
