//! Containers and units, as the daemon's callers see them: real runtimes, started by the tests and removed after them.
//!
//! The tests need root, and containerd, runc, docker, podman and busybox.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "this is a test")]

mod asked;
mod cgroups;
mod changes;
mod confirmed;
mod cri;
mod forged;
mod node;
mod rootless;
mod runtimes;
mod silent;
mod units;
