//! What a container runtime tells of changes: whoever is in those containers is looked at again.

use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::fingerprint::Evidence;

use super::Eyes;
use super::turns::Lane;
use crate::container::told::{Changed, Told};

/// Between two attentions to what one runtime tells: what it tells meanwhile is one.
const PACE: Duration = Duration::from_millis(50);

/// Hears the runtime at this place.
pub(crate) async fn run(eyes: Arc<Eyes>, place: usize) {
    let told = Told::default();
    let attending = async {
        loop {
            let changed = told.next().await;
            eyes.changed(place, &changed);
            tokio::time::sleep(PACE).await;
        }
    };
    tokio::select! {
        never = eyes.witness.runtimes().hear(place, &told) => match never {},
        () = attending => {}
    }
}

impl Eyes {
    fn changed(self: &Arc<Self>, place: usize, changed: &Changed) {
        let runtimes = self.witness.runtimes();
        runtimes.forget(place, changed);
        let runtime = runtimes.name(place);
        let mut known = self.known();
        let inside = known.table.which(|believed| match &believed.fingerprint.container {
            Evidence::Known(container) => container.runtime == runtime && changed.has(&container.id),
            Evidence::Absent(_) | Evidence::Unavailable(_) => false,
        });
        tracing::debug!(runtime, ?changed, processes = inside.len(), "a container runtime tells of changes");
        for execution in inside {
            self.suspect(&mut known, execution, Lane::Urgent);
        }
    }
}
