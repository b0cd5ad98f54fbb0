//! Waiting for conditions, never for time.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(5);

/// Calls `look` until it yields a value, and returns it.
///
/// # Panics
/// If `deadline` passes first; the message names what was waited for and what was seen last.
pub fn wait_for<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) if start.elapsed() > deadline => panic!("waited {deadline:?} for {what}; last seen: {seen}"),
            Err(_) => std::thread::sleep(STEP),
        }
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// If `deadline` passes first.
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, deadline, || if condition() { Ok(()) } else { Err("it does not hold".to_owned()) });
}
