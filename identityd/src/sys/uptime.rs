//! When this machine was booted, by the clock that files' times are of.

use std::io;
use std::time::Duration;

use bonafide_proto::clock::Clock;

/// How far apart two different uptimes are (proc_uptime(5)).
pub(crate) const TICK: Duration = Duration::from_millis(10);
/// How often it is tried to read both clocks within one tick.
const ATTEMPTS: usize = 8;

/// The time of boot, in nanoseconds since 1970: by up to a tick too late, never too early. Where the clock was set, that
/// shows.
///
/// # Errors
/// `/proc/uptime` cannot be read.
pub(crate) fn booted(clock: &dyn Clock) -> io::Result<i128> {
    let mut up = uptime()?;
    for _ in 0..ATTEMPTS {
        let now = clock.now();
        let then = uptime()?;
        if then == up {
            return Ok(nanos(now) - up);
        }
        up = then;
    }
    Err(io::Error::other("/proc/uptime is never the same twice"))
}

/// Nanoseconds since boot by the clock of the kernel programs' events (`CLOCK_BOOTTIME`): by up to a tick too late, never
/// too early.
///
/// # Errors
/// `/proc/uptime` cannot be read.
pub(crate) fn at_most() -> io::Result<u64> {
    u64::try_from(uptime()? + nanos(TICK)).map_err(io::Error::other)
}

/// Nanoseconds since boot, suspended ones among them; as of the last tick.
fn uptime() -> io::Result<i128> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    parse(&text).ok_or_else(|| io::Error::other("/proc/uptime is malformed"))
}

fn parse(text: &str) -> Option<i128> {
    let (seconds, hundredths) = text.split(' ').next()?.split_once('.')?;
    let ticks = i128::from(seconds.parse::<u64>().ok()?) * 100 + i128::from(hundredths.parse::<u8>().ok()?);
    (hundredths.len() == 2).then(|| ticks * nanos(TICK))
}

fn nanos(time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use bonafide_proto::clock::SystemClock;

    use super::*;

    #[test]
    fn an_uptime_has_seconds_and_hundredths() {
        assert_eq!(parse("12.05 99.00\n"), Some(12_050_000_000));
        for malformed in ["", "12", "12.5 1", "12.a5 1", "-1.00 1"] {
            assert_eq!(parse(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn it_was_booted_once() {
        let (a, b) = (booted(&SystemClock).unwrap(), booted(&SystemClock).unwrap());
        assert!((a - b).abs() <= nanos(2 * TICK), "{a} {b}");
    }
}
