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
/// Ends a silent connection two minutes after its peer died.
///
/// The road not taken: `TCP_USER_TIMEOUT` would also end one whose peer died while something was being sent (the kernel
/// takes some 15 minutes for that), but Linux counts a window that stays closed, too: a program that pauses reading
/// for longer would lose its connection.
pub(super) fn probe_when_idle(socket: &Socket) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(IDLE).with_interval(INTERVAL).with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)
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
}
