//! The enforcer's own connections: to local programs in a client's name, and over the wire.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::ops::RangeInclusive;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use ring::rand::{SecureRandom, SystemRandom};
use rustix::io::Errno;
use socket2::{SockRef, Socket};
use tokio::net::{TcpSocket, TcpStream};

use super::listen::{make_transparent, stream_for};

/// Ports used in a client's name. Outside the usual ephemeral range: a delivery from a port that the client itself
/// uses next towards the same service would swallow the client's SYN.
pub const DELIVERY_PORTS: RangeInclusive<u16> = 10_000..=32_767;

/// Ports tried that nobody may hold at all, not even as TIME-WAIT.
const EXCLUSIVE_TRIES: usize = 96;
/// Ports tried after that, which may be held by connections that are established or over.
const SHARED_TRIES: usize = 416;

/// A socket bound to a client's address and to a port of [`DELIVERY_PORTS`], not connected yet: its owner can be told
/// to others before the first packet leaves.
#[derive(Debug)]
pub struct Reserved {
    socket: Socket,
    local: SocketAddr,
}

impl Reserved {
    /// Reserves a port at `source`, which need not be an address of this host. `scope` is the interface index that an
    /// IPv6 link-local address needs, otherwise 0.
    ///
    /// # Errors
    /// `AddrInUse` when the bounded search found no port; `PermissionDenied` without `CAP_NET_ADMIN`.
    pub fn bind(source: IpAddr, scope: u32) -> io::Result<Self> {
        let ports = ports_from(random()?);
        let tries = ports.take(EXCLUSIVE_TRIES + SHARED_TRIES).enumerate();
        for (n, port) in tries {
            let shared = n >= EXCLUSIVE_TRIES;
            match Self::bind_to(with_scope(source, port, scope), shared) {
                Err(e) if is_taken(&e) => {}
                outcome => return outcome,
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, format!("no free delivery port at {source}")))
    }

    fn bind_to(local: SocketAddr, shared: bool) -> io::Result<Self> {
        let socket = stream_for(local)?;
        make_transparent(&socket, local)?;
        socket.set_reuse_address(shared)?;
        socket.bind(&local.into())?;
        // Until it is connected, nobody else may take the port.
        socket.set_reuse_address(false)?;
        Ok(Self { socket, local })
    }

    /// The address the program will see as its peer.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Connects to `to` within `timeout`.
    ///
    /// # Errors
    /// What connecting says. `AddrNotAvailable` only when nearly all delivery ports are in use and this one's
    /// 4-tuple is, too: reserve again.
    pub async fn connect(self, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        let stream = within(timeout, self.socket, to).await?;
        // Once connected, the 4-tuple is what must be unique, also while it is in TIME-WAIT.
        SockRef::from(&stream).set_reuse_address(true)?;
        Ok(stream)
    }
}

/// Connects to `to` from `source`, with a port of the kernel's choice, within `timeout`.
///
/// A loopback or unspecified source cannot cross the wire and is left to the kernel.
///
/// # Errors
/// What binding and connecting say; `AddrNotAvailable` where `source` is not this host's, `InvalidInput` where the two
/// addresses are of different families.
pub async fn connect_from(source: IpAddr, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    if source.is_ipv4() != to.is_ipv4() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("cannot reach {to} from {source}")));
    }
    let socket = stream_for(to)?;
    if !(source.is_loopback() || source.is_unspecified()) {
        // The port is chosen when connecting: a source port may serve many destinations.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&with_scope(source, 0, scope_of(to)).into())?;
    }
    within(timeout, socket, to).await
}

async fn within(timeout: Duration, socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("{to} did not answer within {timeout:?}"));
    let stream = tokio::time::timeout(timeout, connecting).await.map_err(|_| late())??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn with_scope(ip: IpAddr, port: u16, scope: u32) -> SocketAddr {
    match ip {
        IpAddr::V4(_) => SocketAddr::new(ip, port),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, scope).into(),
    }
}

fn scope_of(addr: SocketAddr) -> u32 {
    match addr {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(v6) => v6.scope_id(),
    }
}

fn is_taken(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL))
}

/// Every delivery port once, in an order that depends on `seed` and that a stranger cannot foresee.
fn ports_from(seed: u32) -> impl Iterator<Item = u16> {
    let first = u32::from(*DELIVERY_PORTS.start());
    let count = u32::from(*DELIVERY_PORTS.end()) - first + 1;
    // An odd step that shares no factor with 22 768 = 2^4 * 1423 visits each port.
    let odd = ((seed >> 15) % count) | 1;
    let step = if odd.is_multiple_of(1423) { odd + 2 } else { odd };
    let start = seed % count;
    (0..count).filter_map(move |n| {
        let offset = (u64::from(start) + u64::from(n) * u64::from(step)) % u64::from(count);
        u16::try_from(u64::from(first) + offset).ok()
    })
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the kernel gives no random numbers"))?;
    Ok(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::liveness::tests::assert_probes;
    use std::collections::BTreeSet;
    use tokio::net::TcpListener;

    #[test]
    fn every_delivery_port_is_visited_once() {
        for seed in [0, 1, u32::MAX, 1423 << 15, (1423 * 3) << 15, 0x1234_5678] {
            let seen: BTreeSet<u16> = ports_from(seed).collect();
            assert_eq!(seen.len(), DELIVERY_PORTS.count(), "seed {seed:#x}");
            assert!(seen.iter().all(|port| DELIVERY_PORTS.contains(port)));
        }
    }

    #[tokio::test]
    async fn the_wire_keeps_a_real_source_and_leaves_loopback_to_the_kernel() {
        for (addr, source) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("127.0.0.1:0", "0.0.0.0")] {
            let listener = TcpListener::bind(addr).await.unwrap();
            let to = listener.local_addr().unwrap();
            let stream = connect_from(source.parse().unwrap(), to, Duration::from_secs(5)).await.unwrap();
            assert!(stream.nodelay().unwrap());
            assert_probes(&stream);
            assert!(stream.local_addr().unwrap().ip().is_loopback());
        }
    }

    #[tokio::test]
    async fn a_delivery_notices_a_dead_program_and_waits_for_a_slow_one() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(addr).await.unwrap();
            let to = listener.local_addr().unwrap();
            let reserved = Reserved { socket: stream_for(to).unwrap(), local: to };
            let stream = reserved.connect(to, Duration::from_secs(5)).await.unwrap();
            assert_probes(&stream);
        }
    }

    #[tokio::test]
    async fn a_source_of_another_family_or_of_another_host_is_refused() {
        let to = "127.0.0.1:1".parse().unwrap();
        let soon = Duration::from_secs(5);
        let other_family = connect_from("2001:db8::1".parse().unwrap(), to, soon).await.unwrap_err();
        assert_eq!(other_family.kind(), io::ErrorKind::InvalidInput);
        let other_host = connect_from("192.0.2.77".parse().unwrap(), to, soon).await.unwrap_err();
        assert_eq!(other_host.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
