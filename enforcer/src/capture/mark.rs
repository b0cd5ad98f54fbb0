//! The kinds of connection, as conntrack remembers them, and the one bit that steers.
//!
//! A workload can forge a packet's mark but not a connection's: that takes `CAP_NET_ADMIN` over the namespace.

/// The bits of the connection mark that are ours.
pub(super) const MASK: u32 = 0x0f00_0000;
/// A program's connection on its way to the enforcer. Lives on `lo` only.
pub(super) const CAPTURED_OUT: u32 = 0x0100_0000;
/// The enforcer's own connection to elsewhere. Never on `lo`.
pub(super) const WIRE: u32 = 0x0200_0000;
/// The enforcer's own connection to a program of this host. Lives on `lo` only.
pub(super) const DELIVERY: u32 = 0x0300_0000;
/// A connection from elsewhere, on its way to the enforcer. Never on `lo`.
pub(super) const CAPTURED_IN: u32 = 0x0400_0000;
/// A connection that nobody stands in, because it was there before the rules: see `older`.
pub(super) const OLDER: u32 = 0x0500_0000;
/// The bit of the packet mark that sends a packet to `lo`.
pub(super) const STEER: u32 = 0x0800_0000;
