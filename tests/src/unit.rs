//! The cgroup of a systemd unit of a scenario's own, in each hierarchy that can tell units.

use std::path::{Path, PathBuf};

/// The cgroups of one unit; removed with it, once nobody is inside.
#[derive(Debug)]
pub struct UnitCgroups {
    name: String,
    /// The roots of the hierarchies.
    roots: Vec<PathBuf>,
}

impl UnitCgroups {
    /// Makes the cgroups of a unit whose name begins so.
    ///
    /// # Panics
    /// If they cannot be made.
    #[must_use]
    pub fn create(instance: &str) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        let roots = mounts.lines().filter_map(hierarchy).collect();
        // Found by this name if this run is killed.
        let unit = Self { name: format!("bonafide-{instance}-unit.service"), roots };
        for root in &unit.roots {
            let cgroup = root.join(&unit.name);
            std::fs::create_dir(&cgroup).unwrap_or_else(|e| panic!("{} cannot be made: {e}", cgroup.display()));
        }
        unit
    }

    /// The unit's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves a process into the unit.
    ///
    /// # Panics
    /// If it cannot be moved.
    pub fn enter(&self, pid: u32) {
        self.roots.iter().for_each(|root| join(&root.join(&self.name), pid));
    }

    /// Moves a process to the root of each hierarchy.
    ///
    /// # Panics
    /// If it cannot be moved.
    pub fn leave(&self, pid: u32) {
        self.roots.iter().for_each(|root| join(root, pid));
    }
}

impl Drop for UnitCgroups {
    fn drop(&mut self) {
        for root in &self.roots {
            let _ = std::fs::remove_dir(root.join(&self.name));
        }
    }
}

/// Where a hierarchy is mounted, if a line of `/proc/self/mounts` tells of one with units.
fn hierarchy(line: &str) -> Option<PathBuf> {
    let mut fields = line.split(' ').skip(1);
    let (at, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
    let tells = kind == "cgroup2" || kind == "cgroup" && options.split(',').any(|option| option == "name=systemd");
    tells.then(|| PathBuf::from(at))
}

fn join(cgroup: &Path, pid: u32) {
    let procs = cgroup.join("cgroup.procs");
    std::fs::write(&procs, pid.to_string()).unwrap_or_else(|e| panic!("{}: {e}", procs.display()));
}
