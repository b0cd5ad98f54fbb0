//! Time as an argument: the one seam through which every daemon, rustls included, learns the time of day.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Says what time it is. Tests travel in time by another implementation.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Seconds and nanoseconds since 1970-01-01 UTC.
    fn now(&self) -> Duration;

    /// Whole unix seconds.
    fn unix(&self) -> i64 {
        i64::try_from(self.now().as_secs()).unwrap_or(i64::MAX)
    }
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that asks the machine")]
    fn now(&self) -> Duration {
        // A clock before 1970 makes every certificate "not yet valid", which refuses.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
    }
}

/// A clock shared between tasks.
pub type SharedClock = Arc<dyn Clock>;

/// Gives a [`Clock`] to rustls.
#[derive(Debug, Clone)]
pub struct TlsTime(pub SharedClock);

impl rustls::time_provider::TimeProvider for TlsTime {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        Some(rustls::pki_types::UnixTime::since_unix_epoch(self.0.now()))
    }
}
