//! Hosts in network namespaces, scenarios with real programs, the demo.
//!
//! A [`world::BareWorld`] is a wire between hosts ([`topology`]); a [`world::World`] is one whose hosts run
//! Bonafide's daemons ([`node`]), exactly as `bonafide run` starts them. [`programs`] are the real programs on the
//! hosts, [`records`] and [`ends`] what the daemons wrote down, [`capture`] what was seen on the wire.
//!
//! A world is removed when its value is dropped, also by a panic; what a killed run left is removed by the next
//! run ([`leftovers`](self)). Worlds share nothing, so that scenarios run side by side.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a harness fails a scenario by panicking, and cleans up while it unwinds"
)]

pub mod capture;
pub mod ends;
pub mod hybrid_tls;
mod leftovers;
pub mod libraries;
pub mod netns;
pub mod node;
pub mod operator;
pub mod pcap;
pub mod policy;
pub mod process;
pub mod programs;
pub mod records;
pub mod rpc;
pub mod stranger;
pub mod topology;
pub mod unit;
pub mod wait;
pub mod world;

/// Whether what a failed scenario built shall stay, to be looked into.
fn kept_for_inspection() -> bool {
    cfg!(feature = "keep") && std::thread::panicking()
}
