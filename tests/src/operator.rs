//! What an operator types at a node or at the authority.

use std::path::Path;
use std::process::Command;

use crate::node::binaries;
use crate::process::{Finished, run};

/// `bonafide --dir DIR ARGS…`, run to its end.
#[must_use]
pub fn bonafide(dir: &Path, args: &[&str]) -> Finished {
    run(Command::new(binaries().join("bonafide")).arg("--dir").arg(dir).args(args))
}
