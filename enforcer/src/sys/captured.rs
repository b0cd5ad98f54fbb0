//! What an accepted, captured connection can tell about itself.

use std::io;
use std::net::SocketAddr;

use bonafide_proto::flow::canonical;
use rustix::io::Errno;
use socket2::SockRef;
use tokio::net::TcpStream;

/// What the client dialled before anybody's NAT rewrote it; `None` where nobody did.
///
/// The local address of a captured stream is the destination *after* DNAT, the one the connection would have reached.
///
/// # Errors
/// What the kernel says about the socket itself. A missing conntrack entry is `None`, not an error.
pub fn original_dst(stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
    let local = stream.local_addr()?;
    let socket = SockRef::from(stream);
    let answer = if local.is_ipv6() { socket.original_dst_v6() } else { socket.original_dst_v4() };
    match answer {
        Ok(addr) => Ok(addr.as_socket().map(canonical).filter(|dialled| !same(*dialled, local))),
        Err(e) if is_untracked(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Address and port only: conntrack knows no scope and no flow label.
fn same(a: SocketAddr, b: SocketAddr) -> bool {
    let b = canonical(b);
    a.ip() == b.ip() && a.port() == b.port()
}

fn is_untracked(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::NOENT | Errno::NOPROTOOPT | Errno::NOTCONN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn nothing_to_tell_about_a_connection_nobody_rewrote() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(addr).await.unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            assert_eq!(original_dst(&accepted).unwrap(), None);
        }
    }
}
