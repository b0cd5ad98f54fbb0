//! The way by which halves of flows reach the nodes of their other ends, and theirs come here: the node's CA, which
//! hands them to the authority. Nothing waits for it; what finds no room is dropped.

use std::time::Duration;

use bonafide_proto::observed::ObservedFlow;
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::issuance_client::IssuanceClient;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use super::joining::Theirs;

/// Halves that may be on their way, in either direction.
const ON_THE_WAY: usize = 4096;
/// Waits before the way is sought again: doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// An open way; closed when dropped.
#[derive(Debug)]
pub(super) struct Sharing {
    out: mpsc::Sender<wire::FlowHalf>,
    too_long: u64,
    pub(super) theirs: mpsc::Receiver<Theirs>,
    keeping: JoinHandle<()>,
}

impl Drop for Sharing {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

impl Sharing {
    /// By this CA, which may be away.
    pub(super) fn by(issuance: IssuanceClient<Channel>) -> Self {
        let (out, ours) = mpsc::channel(ON_THE_WAY);
        let (come, theirs) = mpsc::channel(ON_THE_WAY);
        Self { out, too_long: 0, theirs, keeping: tokio::spawn(keep(issuance, ours, come)) }
    }

    /// Shares one of ours.
    pub(super) fn share(&mut self, flow: &ObservedFlow) {
        let Some(flow) = flow.to_half() else {
            self.too_long = self.too_long.saturating_add(1);
            return;
        };
        let _ = self.out.try_send(wire::FlowHalf { node: String::new(), flow });
    }

    /// How many were too long to be shared since this was asked last.
    pub(super) fn take_too_long(&mut self) -> u64 {
        std::mem::take(&mut self.too_long)
    }
}

async fn keep(issuance: IssuanceClient<Channel>, mut ours: mpsc::Receiver<wire::FlowHalf>, come: mpsc::Sender<Theirs>) {
    let mut pause = PAUSE.0;
    loop {
        let began = tokio::time::Instant::now();
        if let Err(status) = share(issuance.clone(), &mut ours, &come).await {
            tracing::debug!(%status, "halves of flows are not shared");
        }
        pause = if began.elapsed() > PAUSE.1 { PAUSE.0 } else { (pause * 2).min(PAUSE.1) };
        tokio::time::sleep(pause).await;
        // What waited meanwhile is too old to meet anything.
        while ours.try_recv().is_ok() {}
    }
}

/// Until the way ends.
async fn share(
    mut issuance: IssuanceClient<Channel>,
    ours: &mut mpsc::Receiver<wire::FlowHalf>,
    come: &mpsc::Sender<Theirs>,
) -> Result<(), Status> {
    let (to_ca, halves) = mpsc::channel(ON_THE_WAY);
    let mut given = issuance.share_flows(ReceiverStream::new(halves)).await?.into_inner();
    loop {
        tokio::select! {
            Some(half) = ours.recv() => {
                let _ = to_ca.try_send(half);
            }
            half = given.message() => match half? {
                Some(half) => take(half, come),
                None => return Ok(()),
            },
        }
    }
}

fn take(half: wire::FlowHalf, come: &mpsc::Sender<Theirs>) {
    match (half.node.parse(), ObservedFlow::from_bytes(&half.flow)) {
        (Ok(node), Ok(flow)) => {
            let _ = come.try_send(Theirs { node, flow });
        }
        _ => tracing::debug!("what came as the other half of a flow is none"),
    }
}
