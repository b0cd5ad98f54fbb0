//! The daemon as its callers see it: real sockets, real processes, real files, asked over its unix socket.
//!
//! Everything happens on loopback, and in one network namespace of our own. The tests need root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "this is a test")]

mod connectors;
mod flows;
mod forgeries;
mod lapses;
mod libraries;
mod listeners;
mod lookups;
mod namespaces;
mod node;
mod odd_files;
mod policies;
mod programs;
mod published;
#[allow(dead_code, reason = "the suite of the kernel programs uses all of it")]
mod records;
mod svids;
mod taints;
