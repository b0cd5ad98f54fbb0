//! Whether the daemons' uids are theirs alone: daemons admit each other by uid, so a stranger with one would be heard.
//!
//! Looked at once, before a start. Daemons of other instances are known by their cgroups, which only root can make.

use std::fs;
use std::path::Path;

use super::error::NodeError;

/// # Errors
/// [`NodeError::UidTaken`] for the first process with one of these uids that is in no cgroup of Bonafide.
pub(super) fn are_free(uids: &[u32]) -> Result<(), NodeError> {
    let proc = Path::new("/proc");
    let entries = fs::read_dir(proc).map_err(super::error::io_at("list", proc))?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        if let Some((uid, name)) = stranger(&proc.join(pid.to_string()), uids) {
            return Err(NodeError::UidTaken { uid, pid, name });
        }
    }
    Ok(())
}

/// The uid and name of this process, if it has one of the uids and is no daemon. One that ended is nobody.
fn stranger(process: &Path, uids: &[u32]) -> Option<(u32, String)> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let uid = uids_of(&status).find(|uid| uids.contains(uid))?;
    // After its status, which it may have got by becoming a daemon: it enters its cgroup first.
    let cgroup = fs::read_to_string(process.join("cgroup")).ok()?;
    (!is_dead(&status) && !is_daemon(&cgroup)).then(|| (uid, field(&status, "Name:").unwrap_or_default().to_owned()))
}

/// Real, effective, saved and file-system uid (`proc_pid_status(5)`).
fn uids_of(status: &str) -> impl Iterator<Item = u32> {
    field(status, "Uid:").into_iter().flat_map(|ids| ids.split_ascii_whitespace().filter_map(|id| id.parse().ok()))
}

/// It waits for its parent, or not even that.
fn is_dead(status: &str) -> bool {
    field(status, "State:").is_some_and(|state| state.starts_with(['Z', 'X']))
}

/// In the cgroup2 hierarchy (`0::` in cgroups(7)), in a cgroup as `InstanceCgroup` makes them.
fn is_daemon(cgroup: &str) -> bool {
    cgroup.lines().any(|line| line.strip_prefix("0::").is_some_and(|path| path.starts_with("/bonafide-")))
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command};

    use super::super::cgroup::InstanceCgroup;
    use super::*;

    /// Some uids that nothing else has.
    const UID: u32 = 71_234;
    const OTHER_UID: u32 = 71_235;

    fn sleeper(uid: u32) -> Child {
        Command::new("/bin/sleep").arg("600").uid(uid).current_dir("/").spawn().unwrap()
    }

    #[test]
    fn a_stranger_with_a_daemons_uid_is_named() {
        are_free(&[UID]).unwrap();
        let mut child = sleeper(UID);
        let said = are_free(&[UID]).unwrap_err().to_string();
        child.kill().unwrap();
        // Not yet waited for: a zombie speaks for nobody.
        let mut left = are_free(&[UID]);
        while left.is_err() && child.try_wait().unwrap().is_none() {
            left = are_free(&[UID]);
        }
        left.unwrap();
        child.wait().unwrap();
        assert!(said.contains(&format!("process {} (sleep) already runs as uid {UID}", child.id())), "{said}");
    }

    #[test]
    fn a_daemon_of_another_instance_is_none() {
        let cgroup = InstanceCgroup::find(&format!("u{}", std::process::id())).unwrap();
        cgroup.create().unwrap();
        let place = cgroup.create_daemon("ca").unwrap();
        let mut child = sleeper(OTHER_UID);
        assert!(are_free(&[OTHER_UID]).is_err());
        fs::write(place.join("cgroup.procs"), child.id().to_string()).unwrap();
        let free = are_free(&[OTHER_UID]);
        child.kill().unwrap();
        child.wait().unwrap();
        cgroup.remove().unwrap();
        free.unwrap();
    }

    #[test]
    fn any_of_the_four_uids_counts() {
        assert_eq!(uids_of("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\n").collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(is_daemon("3:cpu:/\n0::/bonafide-run/ca (deleted)\n") && !is_daemon("3:cpu:/bonafide-run\n0::/x\n"));
    }
}
