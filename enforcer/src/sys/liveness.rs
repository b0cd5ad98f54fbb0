//! How a connection notices that the other side is gone without a word: a host that lost power, a cable, a firewall.

use std::io;
use std::time::Duration;

use socket2::{Socket, TcpKeepalive};

/// How long nothing is heard before the first probe.
const IDLE: Duration = Duration::from_secs(60);
/// Between probes.
const INTERVAL: Duration = Duration::from_secs(10);
/// Probes without an answer that end a connection.
const PROBES: u32 = 6;
/// How long what was sent may stay unacknowledged. The kernel's own limit is some 15 minutes.
const UNACKNOWLEDGED: Duration = Duration::from_secs(120);

/// Ends a silent connection two minutes after its peer died.
pub(super) fn probe_when_idle(socket: &Socket) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(IDLE).with_interval(INTERVAL).with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Ends a connection whose peer died while something was being sent: probes are for idle ones only.
///
/// Linux counts a window that stays closed, too, so this is for the wire and not for slow programs of this host.
pub(super) fn give_up_on_silence(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use socket2::SockRef;
    use tokio::net::TcpStream;

    pub(in crate::sys) fn assert_probes(stream: &TcpStream) {
        let socket = SockRef::from(stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), PROBES);
    }

    pub(in crate::sys) fn assert_gives_up(stream: &TcpStream, expected: bool) {
        let timeout = SockRef::from(stream).tcp_user_timeout().unwrap().filter(|limit| !limit.is_zero());
        assert_eq!(timeout, expected.then_some(UNACKNOWLEDGED));
    }
}
