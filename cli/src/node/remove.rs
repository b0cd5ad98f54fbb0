//! Removes what preparing and running a node left, except what its daemons keep in `state`.

use std::fs;
use std::io;
use std::path::Path;

use super::cgroup::InstanceCgroup;
use super::error::{NodeError, io_at};
use super::layout::Layout;
use super::spec::{NodeSpec, RootSpec};

/// Kills what still runs of the node, removes its cgroups and its run directory. Can be repeated.
///
/// Capture rules are in a network namespace, so [`super::PreparedNode::remove_capture`] removes those; run it before.
///
/// # Errors
/// What could not be removed.
pub fn remove_node(spec: &NodeSpec) -> Result<(), NodeError> {
    remove(&spec.instance, &spec.dir)
}

/// As [`remove_node`], for an authority.
///
/// # Errors
/// What could not be removed.
pub fn remove_root(spec: &RootSpec) -> Result<(), NodeError> {
    remove(&spec.instance, &spec.dir)
}

fn remove(instance: &str, dir: &Path) -> Result<(), NodeError> {
    InstanceCgroup::find(instance)?.remove()?;
    let run = Layout::new(dir).run();
    match fs::remove_dir_all(&run) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_at("remove this directory", &run)(e)),
        _ => Ok(()),
    }
}
