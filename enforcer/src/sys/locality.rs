//! Whether an address is this host's own, by asking the kernel's routing.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rustix::io::Errno;

use super::netlink::{Rtnetlink, family_of};

/// Answers for the network namespace in which it is asked.
///
/// It keeps no copy of the addresses, so there is nothing to go stale, and it binds nothing: a bind also succeeds
/// where `ip_nonlocal_bind` is set.
#[derive(Debug, Clone, Copy, Default)]
pub struct Locality;

impl Locality {
    /// Would a packet to `addr` be delivered here? One exchange with the kernel, without waiting for anybody.
    ///
    /// # Errors
    /// Where rtnetlink cannot be asked. An address without a route is simply not local.
    pub fn is_local(&self, addr: IpAddr) -> io::Result<bool> {
        match Rtnetlink::open()?.get(RouteNetlinkMessage::GetRoute(question(addr))) {
            Ok(answers) => Ok(answers.iter().any(is_local_route)),
            Err(e) if is_no_route(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

fn question(addr: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(addr);
    message.header.destination_prefix_length = if addr.is_ipv4() { 32 } else { 128 };
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(addr)));
    message
}

fn is_local_route(message: &RouteNetlinkMessage) -> bool {
    matches!(message, RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local)
}

/// Unreachable, prohibited and black-holed destinations are answered with an error.
fn is_no_route(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS | Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_local_and_documentation_prefixes_are_not() {
        for local in ["127.0.0.1", "127.9.9.9", "::1"] {
            assert!(Locality.is_local(local.parse().unwrap()).unwrap(), "{local}");
        }
        for foreign in ["192.0.2.1", "2001:db8::1"] {
            assert!(!Locality.is_local(foreign.parse().unwrap()).unwrap(), "{foreign}");
        }
    }
}
