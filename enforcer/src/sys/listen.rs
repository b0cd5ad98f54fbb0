//! Listeners that accept connections meant for other addresses.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use super::liveness::probe_when_idle;

/// Accepted connections that may wait for `accept`. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Listens on `addr` and accepts what TPROXY steers there: the local address of an accepted stream is where the
/// client meant to go.
///
/// An IPv6 listener takes IPv6 only: a dual one would report IPv4 clients in their mapped form.
///
/// # Errors
/// What the kernel says; `PermissionDenied` where `CAP_NET_ADMIN` is missing. Must be called inside a tokio runtime.
pub fn transparent(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = stream_for(addr)?;
    make_transparent(&socket, addr)?;
    listen(addr, socket)
}

fn listen(addr: SocketAddr, socket: Socket) -> io::Result<TcpListener> {
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A non-blocking TCP socket of the family of `addr`, which probes its peer when idle. So do streams it accepts.
pub(super) fn stream_for(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    probe_when_idle(&socket)?;
    Ok(socket)
}

/// Lets `socket` own an address that is not this host's.
pub(super) fn make_transparent(socket: &Socket, addr: SocketAddr) -> io::Result<()> {
    if addr.is_ipv6() { socket.set_ip_transparent_v6(true) } else { socket.set_ip_transparent_v4(true) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::liveness::tests::assert_probes;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn accepted_streams_inherit_how_a_dead_peer_is_noticed() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let addr = addr.parse().unwrap();
            let listener = listen(addr, stream_for(addr).unwrap()).unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            assert_probes(&listener.accept().await.unwrap().0);
        }
    }
}
