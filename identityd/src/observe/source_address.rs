//! Which address the kernel would send from: asked so often at most, for remotes can be forged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Questions in one round.
const QUESTIONS: u32 = 512;

/// Knows from where datagrams go.
#[derive(Debug)]
pub(super) struct SourceAddress {
    left: u32,
}

impl Default for SourceAddress {
    fn default() -> Self {
        Self { left: QUESTIONS }
    }
}

impl SourceAddress {
    /// The address of the socket: its own, or else the one that goes towards the remote. A socket that is bound to none
    /// keeps none when too much was asked.
    pub(super) fn of(&mut self, mut local: SocketAddr, remote: SocketAddr) -> SocketAddr {
        if local.ip().is_unspecified() && self.left > 0 {
            self.left -= 1;
            if let Some(ip) = towards(remote) {
                local = SocketAddr::new(ip, local.port());
            }
        }
        local
    }

    /// It may be asked again.
    pub(super) fn round(&mut self) {
        self.left = QUESTIONS;
    }
}

/// Nothing is sent.
fn towards(remote: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_without_address_has_the_one_towards_the_remote() {
        let mut asked = SourceAddress::default();
        for (any, remote) in [("0.0.0.0:7", "127.0.0.1:9"), ("[::]:7", "[::1]:9"), ("[::]:7", "127.0.0.1:9")] {
            let remote: SocketAddr = remote.parse().unwrap();
            assert_eq!(asked.of(any.parse().unwrap(), remote), SocketAddr::new(remote.ip(), 7));
        }
        let own = "10.1.2.3:7".parse().unwrap();
        assert_eq!(asked.of(own, "127.0.0.1:9".parse().unwrap()), own);
    }

    #[test]
    fn it_is_asked_so_often_at_most() {
        let (any, remote) = ("0.0.0.0:7".parse().unwrap(), "127.0.0.1:9".parse().unwrap());
        let mut asked = SourceAddress::default();
        let answered = (0..2 * QUESTIONS).filter(|_| asked.of(any, remote) != any).count();
        assert_eq!(answered, usize::try_from(QUESTIONS).unwrap());
        asked.round();
        assert_ne!(asked.of(any, remote), any);
    }
}
