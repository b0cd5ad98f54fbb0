//! How much each user may have hashed. Whoever asks for more is told so at once, before anything is read.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that one user may have hashed in a second, for long: a seventh of what one core of today hashes.
const BYTES: u64 = 256 << 20;
/// Files likewise.
const FILES: u64 = 1000;
/// So many seconds' worth may come at once.
const SECONDS_AT_ONCE: u64 = 8;
/// Root gets more: most daemons run as root.
const ROOTS_FACTOR: u64 = 4;
/// Users whose use is kept in mind; any others share one allowance while there are so many.
const USERS_MAX: usize = 4096;

/// What each user has left.
#[derive(Debug)]
pub(crate) struct Allowances {
    users: Mutex<Users>,
    began: Instant,
}

#[derive(Debug, Default)]
struct Users {
    each: HashMap<u32, Left>,
    crowd: Left,
}

/// The user may have no more hashed for now.
#[derive(Debug, thiserror::Error)]
#[error("user {user} starts new programs faster than they may be hashed ({} MiB and {FILES} files a second)", BYTES >> 20)]
pub(crate) struct Exceeded {
    user: u32,
}

/// What was used, and has not run off since.
#[derive(Debug, Clone, Copy, Default)]
struct Left {
    bytes: Used,
    files: Used,
}

/// Runs off at a steady rate, like a leaking bucket.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    /// In nanoseconds' worth.
    level: u64,
    /// Since the beginning, in nanoseconds.
    at: u64,
}

impl Allowances {
    /// Everything left to everybody; `now` is the beginning.
    pub(crate) fn new(now: Instant) -> Self {
        Self { users: Mutex::default(), began: now }
    }

    /// One file of this size on this user's account.
    ///
    /// # Errors
    /// It is too much for now; nothing is taken then.
    pub(crate) fn take(&self, user: u32, bytes: u64, now: Instant) -> Result<(), Exceeded> {
        let now = nanos(now.saturating_duration_since(self.began));
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let left = users.of(user, now);
        let factor = if user == 0 { ROOTS_FACTOR } else { 1 };
        let taken = left.take(bytes, factor, now).ok_or(Exceeded { user })?;
        *left = taken;
        Ok(())
    }
}

impl Users {
    fn of(&mut self, user: u32, now: u64) -> &mut Left {
        if self.each.len() >= USERS_MAX && !self.each.contains_key(&user) {
            self.each.retain(|_, left| left.bytes.now(now) > 0 || left.files.now(now) > 0);
            if self.each.len() >= USERS_MAX {
                return &mut self.crowd;
            }
        }
        self.each.entry(user).or_default()
    }
}

impl Left {
    fn take(self, bytes: u64, factor: u64, now: u64) -> Option<Self> {
        Some(Self {
            bytes: self.bytes.add(bytes, BYTES * factor, now)?,
            files: self.files.add(1, FILES * factor, now)?,
        })
    }
}

impl Used {
    fn now(self, now: u64) -> u64 {
        self.level.saturating_sub(now.saturating_sub(self.at))
    }

    /// With so many more, of which so many run off in a second.
    fn add(self, units: u64, per_second: u64, now: u64) -> Option<Self> {
        let worth = u128::from(units) * 1_000_000_000 / u128::from(per_second);
        let level = self.now(now).checked_add(u64::try_from(worth).ok()?)?;
        (level <= SECONDS_AT_ONCE * 1_000_000_000).then_some(Self { level, at: now })
    }
}

fn nanos(since: Duration) -> u64 {
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowances() -> (Allowances, Instant) {
        let now = Instant::now();
        (Allowances::new(now), now)
    }

    #[test]
    fn so_many_bytes_and_no_more_until_time_has_passed() {
        let (allowances, now) = allowances();
        for _ in 0..SECONDS_AT_ONCE {
            allowances.take(1000, BYTES, now).unwrap();
        }
        let said = allowances.take(1000, 1 << 20, now).unwrap_err().to_string();
        assert!(said.contains("user 1000") && said.contains("256 MiB and 1000 files a second"), "{said}");
        // What was refused was not taken.
        let later = now + Duration::from_secs(1);
        allowances.take(1000, BYTES, later).unwrap();
        assert!(allowances.take(1000, 1 << 20, later).is_err());
    }

    #[test]
    fn empty_files_count_too() {
        let (allowances, now) = allowances();
        for _ in 0..SECONDS_AT_ONCE * FILES {
            allowances.take(1000, 0, now).unwrap();
        }
        assert!(allowances.take(1000, 0, now).is_err());
        allowances.take(1000, 0, now + Duration::from_millis(1)).unwrap();
    }

    #[test]
    fn what_one_user_uses_leaves_others_theirs_and_root_more() {
        let (allowances, now) = allowances();
        while allowances.take(1000, BYTES, now).is_ok() {}
        allowances.take(1001, BYTES, now).unwrap();
        let taken = (0..1000).take_while(|_| allowances.take(0, BYTES, now).is_ok()).count();
        assert_eq!(taken as u64, SECONDS_AT_ONCE * ROOTS_FACTOR);
    }

    #[test]
    fn the_largest_file_of_anybody_fits() {
        let (allowances, now) = allowances();
        allowances.take(1000, crate::hash::OTHERS_MAX, now).unwrap();
        assert!(allowances.take(1000, u64::MAX, now).is_err());
    }

    #[test]
    fn a_crowd_of_users_takes_bounded_memory_and_shares() {
        let (allowances, now) = allowances();
        for user in 1..=u32::try_from(USERS_MAX).unwrap() {
            allowances.take(user, 1 << 20, now).unwrap();
        }
        let beyond = |n: u32| 1_000_000 + n;
        let taken = (0..1000).take_while(|n| allowances.take(beyond(*n), BYTES, now).is_ok()).count();
        assert_eq!(taken as u64, SECONDS_AT_ONCE);
        assert_eq!(allowances.users.lock().unwrap().each.len(), USERS_MAX);
        // Those who have not asked for a while are forgotten.
        allowances.take(beyond(0), BYTES, now + Duration::from_secs(1)).unwrap();
        assert_eq!(allowances.users.lock().unwrap().each.len(), 1);
    }
}
