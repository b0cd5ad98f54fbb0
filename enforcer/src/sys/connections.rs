//! The TCP connections of the network namespace, as sock_diag(7) lists them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bonafide_proto::flow::canonical;
use netlink_packet_core::Nla as _;
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink::Netlink;

/// `INET_DIAG_NOCOOKIE`: any socket with these addresses.
const ANY_COOKIE: [u8; 8] = [0xff; 8];
/// `INET_DIAG_SOCKOPT`, and the bit `transparent` in its first byte.
const SOCKOPT: u16 = 22;
const TRANSPARENT: u8 = if cfg!(target_endian = "little") { 1 << 5 } else { 1 << 2 };

/// One end of a connection that lives in this namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connection {
    /// IPv4-mapped addresses are spelled as IPv4.
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// It may have somebody else's address for its own, as the enforcer's have that stand between.
    pub(crate) transparent: bool,
    /// Who made it; `None` once no file refers to it any more.
    pub(crate) uid: Option<u32>,
}

/// Every connection that is not over: from accepted SYNs to the last FIN. Those whose SYN was not answered yet, and
/// what TIME-WAIT remembers, are none.
pub(crate) fn list() -> io::Result<Vec<Connection>> {
    let mut kernel = Netlink::over(NETLINK_SOCK_DIAG)?;
    let mut all = Vec::new();
    for (family, any) in [(AF_INET, IpAddr::V4(Ipv4Addr::UNSPECIFIED)), (AF_INET6, IpAddr::V6(Ipv6Addr::UNSPECIFIED))] {
        let answers = kernel.dump(question(family, any))?;
        all.extend(answers.into_iter().filter_map(|answer| match answer {
            SockDiagMessage::InetResponse(response) => Some(Connection::from(&*response)),
            _ => None,
        }));
    }
    Ok(all)
}

fn question(family: u8, any: IpAddr) -> SockDiagMessage {
    let socket_id = SocketId {
        source_port: 0,
        destination_port: 0,
        source_address: any,
        destination_address: any,
        interface_id: 0,
        cookie: ANY_COOKIE,
    };
    let states =
        StateFlags::all() - StateFlags::LISTEN - StateFlags::SYN_SENT - StateFlags::TIME_WAIT - StateFlags::CLOSE;
    let extensions = ExtensionFlags::empty();
    SockDiagMessage::InetRequest(InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id })
}

impl From<&InetResponse> for Connection {
    fn from(response: &InetResponse) -> Self {
        let (header, id) = (&response.header, &response.header.socket_id);
        Self {
            local: canonical(SocketAddr::new(id.source_address, id.source_port)),
            remote: canonical(SocketAddr::new(id.destination_address, id.destination_port)),
            transparent: response.nlas.iter().any(is_transparent),
            uid: (header.inode != 0).then_some(header.uid),
        }
    }
}

fn is_transparent(attribute: &Nla) -> bool {
    let Nla::Other(attribute) = attribute else { return false };
    if attribute.kind() != SOCKOPT || attribute.value_len() == 0 {
        return false;
    }
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value.first().is_some_and(|flags| flags & TRANSPARENT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn listed(local: SocketAddr, remote: SocketAddr) -> Option<Connection> {
        list().unwrap().into_iter().find(|one| (one.local, one.remote) == (local, remote))
    }

    #[test]
    fn both_ends_are_listed_while_they_live_and_mapped_addresses_are_plain() {
        for (listen, dial) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "::ffff:127.0.0.1")] {
            let listener = TcpListener::bind(listen).unwrap();
            let to = SocketAddr::new(dial.parse().unwrap(), listener.local_addr().unwrap().port());
            let client = TcpStream::connect(to).unwrap();
            let ends = (canonical(client.local_addr().unwrap()), canonical(to));
            for (local, remote) in [ends, (ends.1, ends.0)] {
                let found = listed(local, remote).unwrap_or_else(|| panic!("{local} {remote}"));
                assert!(!found.transparent);
            }
            drop((client, listener));
            assert_eq!(listed(ends.0, ends.1), None);
        }
    }

    #[test]
    fn a_socket_that_may_have_others_addresses_is_told_apart() {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.set_ip_transparent_v4(true).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(1).unwrap();
        let to = listener.local_addr().unwrap().as_socket().unwrap();
        let client = TcpStream::connect(to).unwrap();
        let from = client.local_addr().unwrap();
        assert!(listed(to, from).unwrap().transparent && !listed(from, to).unwrap().transparent);
    }
}
