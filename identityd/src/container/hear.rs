//! Hears what runtimes tell, as long as something depends on it: from the first container that one confirms, and after
//! an interruption from the next.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;

use super::Containers;
use super::told::{Changed, Told};

/// After an interruption a runtime is left alone for so long; if it ends soon again, twice as long;
const REST_MIN: Duration = Duration::from_millis(100);
/// but not longer than this.
const REST_MAX: Duration = Duration::from_secs(10);

impl Containers {
    /// How many runtimes there are.
    pub(crate) fn count(&self) -> usize {
        self.runtimes.len()
    }

    /// How the runtime at this place is called.
    pub(crate) fn name(&self, place: usize) -> &str {
        self.runtimes.get(place).map_or("", |runtime| runtime.name())
    }

    /// What the runtime at this place confirmed of these containers, it will be asked again.
    pub(crate) fn forget(&self, place: usize, changed: &Changed) {
        self.remembered.forget(place, changed);
    }

    /// Hears what the runtime at this place tells.
    pub(crate) async fn hear(&self, place: usize, told: &Told) -> Infallible {
        let Some(runtime) = self.runtimes.get(place) else { return std::future::pending().await };
        let (mut rest, mut failing) = (REST_MIN, false);
        loop {
            runtime.confirmed().await;
            let begun = Instant::now();
            let Err(error) = runtime.hear(told).await;
            let lasted = begun.elapsed() > REST_MAX;
            if lasted || !failing {
                tracing::info!(
                    runtime = runtime.name(),
                    %error,
                    "a container runtime tells of changes no more, or not yet; its containers are looked at every few seconds"
                );
            }
            rest = if lasted { REST_MIN } else { (rest * 2).min(REST_MAX) };
            failing = true;
            tokio::time::sleep(rest).await;
        }
    }
}
