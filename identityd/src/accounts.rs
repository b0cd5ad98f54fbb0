//! Whose account pays for a look: a person's, however many user IDs they have. Subordinate user IDs (subuid(5)) are given
//! to users by the thousand, so all of one range count as its owner, inside user namespaces and outside: a set-user-ID
//! file of such an ID lends it to anybody. In other user namespaces a service may give out IDs without that file (65,536
//! at a time, as systemd does): there, each such block is one account.
//!
//! The road not taken: the kernel knows who made a user namespace, but tells it only by an ioctl, for which there is no safe
//! function.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the ranges are believed before they are read again.
const FRESH: Duration = Duration::from_secs(10);
/// The longest file that is read, in bytes.
const FILE_MAX: u64 = 4 << 20;
/// IDs in a block of those that a service gives out.
const BLOCK: u32 = 1 << 16;

/// Knows persons.
#[derive(Debug)]
pub(crate) struct Accounts {
    directory: PathBuf,
    ranges: Mutex<Option<(Instant, Ranges)>>,
}

/// By their first ID: the number of IDs, and whose they are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ranges(Vec<Range>);

#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
    owner: u32,
}

impl Default for Accounts {
    fn default() -> Self {
        Self::in_directory("/etc")
    }
}

impl Accounts {
    /// With `subuid` and `passwd` from there.
    fn in_directory(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), ranges: Mutex::default() }
    }

    /// The account of a process with this user ID, in another user namespace or not.
    pub(crate) fn of(&self, user: u32, foreign: bool) -> u32 {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (_, ranges) = match ranges.take() {
            Some((read, known)) if now.saturating_duration_since(read) < FRESH => ranges.insert((read, known)),
            _ => ranges.insert((now, Ranges::read(&self.directory))),
        };
        match ranges.owner(user) {
            Some(owner) => owner,
            None if foreign && user >= BLOCK => user - user % BLOCK,
            None => user,
        }
    }
}

impl Ranges {
    /// What cannot be read gives nobody anything.
    fn read(directory: &Path) -> Self {
        Self::parse(&content(&directory.join("subuid")), &content(&directory.join("passwd")))
    }

    fn parse(subuid: &str, passwd: &str) -> Self {
        let users: HashMap<&str, u32> = passwd.lines().filter_map(named).collect();
        let mut ranges: Vec<Range> = subuid.lines().filter_map(|line| Range::parse(line, &users)).collect();
        ranges.sort_by_key(|range| range.first);
        Self(ranges)
    }

    fn owner(&self, user: u32) -> Option<u32> {
        let after = self.0.partition_point(|range| range.first <= user);
        let range = self.0.get(after.checked_sub(1)?)?;
        (user - range.first < range.count).then_some(range.owner)
    }
}

impl Range {
    /// `OWNER:FIRST:COUNT`, the owner by name or number. One that is not known here still is one account.
    fn parse(line: &str, users: &HashMap<&str, u32>) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let first = fields.next()?.parse().ok()?;
        let count = fields.next()?.parse().ok()?;
        let owner = users.get(owner).copied().or_else(|| owner.parse().ok()).unwrap_or(first);
        Some(Self { first, count, owner })
    }
}

/// A line of passwd(5).
fn named(line: &str) -> Option<(&str, u32)> {
    let mut fields = line.split(':');
    Some((fields.next()?, fields.nth(1)?.parse().ok()?))
}

fn content(path: &Path) -> String {
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut content));
    if let Err(e) = read {
        tracing::trace!(error = %e, "{} is not read", path.display());
    }
    String::from_utf8_lossy(&content).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
    const SUBUID: &str = "bob:296608:65536\nann:100000:65536\n# nothing\n1001:165536:65536\nann:x:1\nann:362144:10\n";

    fn accounts() -> (tempfile::TempDir, Accounts) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("subuid"), SUBUID).unwrap();
        std::fs::write(dir.path().join("passwd"), PASSWD).unwrap();
        let accounts = Accounts::in_directory(dir.path());
        (dir, accounts)
    }

    #[test]
    fn subordinate_users_are_their_owner() {
        let (_dir, accounts) = accounts();
        for foreign in [false, true] {
            for user in [1000, 100_000, 165_535, 362_144, 362_153] {
                assert_eq!(accounts.of(user, foreign), 1000, "{user}");
            }
            assert_eq!(accounts.of(165_536, foreign), 1001);
            // Nobody knows who that is, but it is one.
            assert_eq!((accounts.of(296_608, foreign), accounts.of(300_000, foreign)), (296_608, 296_608));
            for user in [0, 1, 65_534] {
                assert_eq!(accounts.of(user, foreign), user);
            }
        }
    }

    #[test]
    fn what_a_service_gives_out_is_one_account_by_the_block() {
        let (_dir, accounts) = accounts();
        let first = 10 * BLOCK;
        assert_eq!(accounts.of(first + 7, true), first);
        assert_eq!(accounts.of(first + BLOCK, true), first + BLOCK);
        // Elsewhere these are users of a directory.
        assert_eq!(accounts.of(first + 7, false), first + 7);
        assert_eq!(accounts.of(362_154, false), 362_154);
        assert_eq!(accounts.of(u32::MAX, true), u32::MAX - u32::MAX % BLOCK);
    }

    #[test]
    fn without_the_files_users_are_themselves() {
        let accounts = Accounts::in_directory("/nowhere");
        assert_eq!(accounts.of(100_000, false), 100_000);
    }
}
