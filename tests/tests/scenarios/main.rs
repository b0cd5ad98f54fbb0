//! Scenarios with real programs on two hosts. Each test is one world and a few seconds; each module one promise.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "these are tests; clippy only knows those marked so"
)]

/// Makes a test of each function for each way of capturing: by nftables and by iptables.
macro_rules! on_each_backend {
    ($($scenario:ident),* $(,)?) => {
        mod nft {
            $(#[test] fn $scenario() { super::$scenario(bonafide_tests::node::Backend::Nft); })*
        }
        mod iptables {
            $(#[test] fn $scenario() { super::$scenario(bonafide_tests::node::Backend::Iptables); })*
        }
    };
}

mod bare;
mod benchmarks;
mod changes;
mod cloned;
mod demo;
mod edits;
mod failures;
mod fallback;
mod forked;
mod generations;
mod grants;
mod histories;
mod idle;
mod impostor;
mod membership;
mod moves;
mod observe;
mod outside;
mod protocols;
mod published;
mod quarantine;
mod releases;
mod renewed;
mod revoked;
mod rotated;
mod run;
mod same_host;
mod scripts;
mod served;
mod shadow;
mod shop;
mod stop;
mod strangers;
mod streams;
mod svid;
mod taints;
mod web;
mod whois;
