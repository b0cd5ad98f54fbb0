//! The systemd unit a process runs in: believed only from a cgroup that PID 1 made, never from one that was delegated
//! and then named by its owner.

use std::path::Path;

use bonafide_proto::fingerprint::{Evidence, Unit};

use crate::parse::cgroup::NamedUnit;
use crate::sys::hierarchy::{Hierarchies, Owned};

/// Where systemd keeps one link for each unit that runs: `invocation:UNIT` "leads" to the invocation's ID.
const INVOCATIONS: &str = "/run/systemd/units";

/// The unit, if the cgroup that is called so is root's, and so are all above it.
pub(crate) fn unit(hierarchies: &Hierarchies, named: &NamedUnit) -> Evidence<Unit> {
    let path = &named.seat.path;
    match hierarchies.owned(&named.seat, 0) {
        Owned::AsExpected => {
            Evidence::Known(Unit { name: named.name.clone(), invocation: invocation(hierarchies, named) })
        }
        Owned::By(user) => Evidence::Absent(format!("the cgroup {path} is not systemd's: user {user} may fill it")),
        Owned::Unseen(why) => Evidence::Unavailable(format!("it cannot be seen who made the cgroup {path}: {why}")),
    }
}

/// Which start of the unit it is. The attribute `user.invocation_id` is not asked: a cgroup's owner may write it.
fn invocation(hierarchies: &Hierarchies, named: &NamedUnit) -> Option<String> {
    let link = || {
        let target = std::fs::read_link(Path::new(INVOCATIONS).join(format!("invocation:{}", named.name))).ok()?;
        target.into_os_string().into_string().ok()
    };
    let is_id = |id: &String| id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    hierarchies.attribute(&named.seat, "trusted.invocation_id").filter(is_id).or_else(link).filter(is_id)
}
