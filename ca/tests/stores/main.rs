//! The store on both of its engines, and authorities that share one: with real etcd members.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    reason = "tests"
)]

mod audit;
mod backups;
mod cluster;
mod damage;
mod disk;
mod engines;
mod partition;
mod pki;
mod replicas;
mod tls;
