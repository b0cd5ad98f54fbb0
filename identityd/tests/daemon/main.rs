//! The daemon as its callers see it: real sockets, real processes, real files, asked over its unix socket.
//!
//! Everything happens on loopback, and in one network namespace of our own. The tests need root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "this is a test")]

mod connectors;
mod forgeries;
mod listeners;
mod namespaces;
mod node;
mod policies;
mod programs;
mod svids;
