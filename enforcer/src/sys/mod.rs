//! The kernel through safe functions: sockets that stand in for somebody else's, and the routing questions they raise.

pub mod captured;
pub(crate) mod connections;
pub(crate) mod conntrack;
pub mod dial;
pub mod listen;
mod liveness;
pub mod locality;
pub(crate) mod netlink;
pub mod netns;
mod nfnetlink;
pub(crate) mod nftables;
pub mod reset;
