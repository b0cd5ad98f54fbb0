//! The kernel programs at work: real programs connect, and the test accepts them as the enforcer would, with the
//! record of its own accepted socket. Everything happens on loopback. The tests need root, and a kernel with BTF.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "this is a test")]

mod accept;
mod attacks;
mod connectors;
mod files;
mod handover;
#[path = "../daemon/node.rs"]
#[allow(dead_code, reason = "each of the two suites uses a part of it")]
mod node;
#[path = "../daemon/records.rs"]
#[allow(dead_code, reason = "likewise")]
mod records;
mod stopped;
mod strangers;
mod unwitnessed;
