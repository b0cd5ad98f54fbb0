//! The workload endpoint as programs see it: real processes that ask over the socket, a real CA behind it, and a clock
//! that travels.
//!
//! The tests need root, and kernel programs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "this is a test"
)]

mod callers;
mod endpoint;
mod envoy;
mod jwt;
mod others;
mod program;
mod python;
mod requests;
mod revoked;
mod sds;
mod x509;
