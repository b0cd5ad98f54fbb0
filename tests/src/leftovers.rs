//! What a run that was killed could not remove: found by its name, removed if its creator is dead.

use std::path::Path;
use std::sync::Once;

use bonafide_cli::node::InstanceCgroup;

use crate::netns::Netns;

/// Every name we give begins with it; the process ID of the creator follows.
pub(crate) const PREFIX: &str = "bt";

/// Where worlds keep their files.
pub(crate) const DIRECTORY: &str = "/tmp";

/// Removes what dead runs left, once per process.
pub(crate) fn remove() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for name in names("/run/netns").filter(|name| is_orphan(name)) {
            drop(Netns::adopt(&name));
        }
        for name in names(&cgroups()) {
            if let Some(instance) = name.strip_prefix("bonafide-").filter(|instance| is_orphan(instance)) {
                let _ = InstanceCgroup::find(instance).and_then(|cgroup| cgroup.remove());
            }
        }
        for name in names(DIRECTORY).filter(|name| is_orphan(name)) {
            let _ = std::fs::remove_dir_all(Path::new(DIRECTORY).join(name));
        }
    });
}

fn cgroups() -> String {
    let parent = InstanceCgroup::find(PREFIX).ok().and_then(|cgroup| cgroup.path().parent().map(Path::to_owned));
    parent.unwrap_or_default().display().to_string()
}

fn names(directory: &str) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// `bt<pid>-…` of a process that is no more.
fn is_orphan(name: &str) -> bool {
    let creator = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
    creator.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_dead_leave_orphans() {
        assert!(!is_orphan(&format!("bt{}-0-a", std::process::id())));
        assert!(is_orphan("bt4294967295-0-a"));
        for other in ["bonafide", "btx-0", "bt", "a"] {
            assert!(!is_orphan(other), "{other} was taken for ours");
        }
    }
}
