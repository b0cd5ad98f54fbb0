//! The libraries of a process that runs, as a policy demands them.

use std::collections::BTreeSet;
use std::path::Path;

use bonafide_proto::fingerprint::Digest;

use crate::ends::digest_of;

/// Their composite digest, and how many they are.
///
/// # Panics
/// If the process is gone.
#[must_use]
pub fn libraries_of(pid: u32) -> (Digest, usize) {
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).expect("it runs");
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let code = maps.lines().filter(|line| line.contains("r-xp")).filter_map(|line| Some(&line[line.find('/')?..]));
    let files: BTreeSet<&Path> = code.map(Path::new).filter(|path| *path != exe).collect();
    let digests: BTreeSet<[u8; 32]> = files.into_iter().map(|path| digest_of(path).0).collect();
    let count = digests.len();
    (Digest::of(&digests.into_iter().flatten().collect::<Vec<u8>>()), count)
}
