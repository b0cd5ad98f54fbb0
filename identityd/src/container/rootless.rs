//! A user's own runtime is asked only about that user's processes: their uid is the user's, or one of those that were
//! given to the user for containers (`subuid(5)`).

use std::io::Read as _;

use crate::sys::process::Process;

/// The longest `/etc/subuid`, `/etc/passwd` or `/proc/PID/status` that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Whether all of the process's uids are the user's. What cannot be read is not.
pub(crate) fn is_of(pid: u32, user: u32) -> bool {
    let Ok(status) = Process::pin(pid).and_then(|process| process.content("status", FILE_MAX)) else { return false };
    let Some(uids) = uids(&status) else { return false };
    if uids.iter().all(|uid| *uid == user) {
        return true;
    }
    let name = name(&text("/etc/passwd"), user);
    let ranges = ranges(&text("/etc/subuid"), user, name.as_deref());
    uids.iter().all(|uid| *uid == user || ranges.iter().any(|(first, count)| within(*uid, *first, *count)))
}

pub(crate) fn within(uid: u32, first: u32, count: u32) -> bool {
    uid.checked_sub(first).is_some_and(|place| place < count)
}

fn text(file: &str) -> String {
    let mut text = String::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(FILE_MAX).read_to_string(&mut text));
    // What is cut off in the middle of a line would say something else.
    if read.is_ok_and(|read| !matches!(u64::try_from(read), Ok(FILE_MAX))) { text } else { String::new() }
}

/// Real, effective, saved, file system.
pub(crate) fn uids(status: &[u8]) -> Option<Vec<u32>> {
    let mut lines = status.split(|b| *b == b'\n').filter_map(|line| line.strip_prefix(b"Uid:"));
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    let uids = std::str::from_utf8(line).ok()?.split_ascii_whitespace().map(str::parse);
    let uids: Vec<u32> = uids.collect::<Result<_, _>>().ok()?;
    (uids.len() == 4).then_some(uids)
}

pub(crate) fn name(passwd: &str, user: u32) -> Option<String> {
    let fields = |line: &str| {
        let mut fields = line.split(':');
        Some((fields.next()?.to_owned(), fields.nth(1)?.parse::<u32>().ok()?))
    };
    passwd.lines().filter_map(fields).find(|(_, uid)| *uid == user).map(|(name, _)| name)
}

/// First uid and count of each range of a user, who is named or numbered.
pub(crate) fn ranges(subuid: &str, user: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let number = user.to_string();
    let range = |line: &str| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let is_of_user = owner == number || name == Some(owner);
        let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        is_of_user.then_some(range)
    };
    subuid.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_of_the_user_alone() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n";
        let subuid = "ann:100000:65536\nbob:165536:65536\n1000:300000:5\nann:broken\n";
        assert_eq!(name(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(ranges(subuid, 1000, Some("ann")), [(100_000, 65_536), (300_000, 5)]);
        assert_eq!(ranges(subuid, 7, None), []);
        assert!(within(100_000, 100_000, 65_536) && within(165_535, 100_000, 65_536));
        assert!(!within(165_536, 100_000, 65_536) && !within(99_999, 100_000, 65_536) && !within(0, 0, 0));
    }

    #[test]
    fn every_uid_counts() {
        assert_eq!(uids(b"Name:\tx\nUid:\t1\t2\t3\t4\n"), Some(vec![1, 2, 3, 4]));
        assert_eq!(uids(b"Uid:\t1\t2\t3\n"), None);
        assert_eq!(uids(b"Uid:\t1\t-2\t2\t3\t4\n"), None);
        assert_eq!(uids(b"Uid:\t1\t2\t3\t4\nUid:\t1\t2\t3\t4\n"), None);
    }

    #[test]
    fn this_very_process_is_its_users() {
        let own = rustix::process::geteuid().as_raw();
        assert!(is_of(std::process::id(), own));
        assert!(!is_of(std::process::id(), own + 1));
    }
}
