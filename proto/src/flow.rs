//! What a flow is called while it lives: addresses, network namespace, and which end is meant.

use std::net::SocketAddr;

/// Inode of a network namespace (`stat` of `/proc/PID/ns/net`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetNs(pub u64);

/// Which socket of the host is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SocketRole {
    /// The one that connected.
    Connector,
    /// The one that listens and would accept.
    Listener,
}

/// A question: whose socket is this?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The namespace in which the socket lives.
    pub netns: NetNs,
    /// Local address, as the attested socket sees it.
    pub local: SocketAddr,
    /// Remote address, as the attested socket sees it.
    pub remote: SocketAddr,
    /// Which end.
    pub role: SocketRole,
}

/// Strips the IPv4-mapped form, so that one connection has one spelling.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::from((v4, v6.port())),
            None => addr,
        },
        SocketAddr::V4(_) => addr,
    }
}
