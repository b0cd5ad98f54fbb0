//! sock_diag(7): one exact question, or the listeners of one port. Answered from this daemon's network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use bonafide_proto::flow::canonical;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

/// `INET_DIAG_NOCOOKIE` (include/uapi/linux/inet_diag.h): any socket with these addresses.
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// The largest datagram the kernel fills in one go (`NLMSG_GOODSIZE` and then some).
const BUFFER: usize = 64 << 10;

const ENOENT: i32 = rustix::io::Errno::NOENT.raw_os_error();

/// A TCP socket as the kernel described it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Local address; IPv4-mapped addresses are spelled as IPv4.
    pub(crate) local: SocketAddr,
    /// Remote address, likewise; unspecified for a listener.
    pub(crate) remote: SocketAddr,
    /// It listens.
    pub(crate) listens: bool,
    /// Whether it is an `AF_INET6` socket, mapped addresses or not.
    pub(crate) family6: bool,
    /// Index of the interface it is bound to, else 0.
    pub(crate) interface: u32,
    /// Inode of its file; 0 if no file refers to it any more.
    pub(crate) inode: u64,
    /// Never used twice while the machine runs.
    pub(crate) cookie: [u8; 8],
}

/// A socket to ask with.
#[derive(Debug)]
pub(crate) struct Diag {
    socket: Socket,
}

impl Diag {
    /// Opens it.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        // The kernel answers within `send`; a question without an answer must not hang.
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// The socket that a segment from `remote` to `local` would reach: a connection, else a listener.
    pub(crate) fn exact(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Found>> {
        let mut id = SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            interface_id: scope(local).max(scope(remote)),
            cookie: ANY_COOKIE,
        };
        if let Some(found) = self.one(&id)? {
            return Ok(Some(found));
        }
        // A socket bound to the loopback device is found only by naming that device, which has index 1 everywhere.
        if id.interface_id == 0 && local.ip().is_loopback() {
            id.interface_id = 1;
            return self.one(&id);
        }
        Ok(None)
    }

    /// Every listener on a port, of both families.
    pub(crate) fn listeners(&mut self, port: u16) -> io::Result<Vec<Found>> {
        let mut all = self.dump(port, StateFlags::LISTEN)?;
        all.retain(|found| found.listens && found.local.port() == port);
        Ok(all)
    }

    /// Every connection from a port, or (0) from all, of both families.
    pub(crate) fn connections(&mut self, port: u16) -> io::Result<Vec<Found>> {
        self.dump(port, connected())
    }

    /// Every connection that is bound to a device, of both families.
    pub(crate) fn device_bound(&mut self) -> io::Result<Vec<Found>> {
        let mut all = self.dump(0, connected())?;
        all.retain(|found| found.interface != 0);
        Ok(all)
    }

    /// Every socket in these states, on one local port or (0) on all.
    fn dump(&mut self, port: u16, states: StateFlags) -> io::Result<Vec<Found>> {
        let mut all = Vec::new();
        for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let id = SocketId {
                source_port: port,
                destination_port: 0,
                source_address: any,
                destination_address: any,
                interface_id: 0,
                cookie: ANY_COOKIE,
            };
            self.ask(&id, states.clone(), NLM_F_REQUEST | NLM_F_DUMP, &mut all)?;
        }
        Ok(all)
    }

    fn one(&mut self, id: &SocketId) -> io::Result<Option<Found>> {
        let mut answers = Vec::new();
        self.ask(id, StateFlags::all(), NLM_F_REQUEST, &mut answers)?;
        Ok(answers.pop())
    }

    fn ask(&mut self, id: &SocketId, states: StateFlags, flags: u16, into: &mut Vec<Found>) -> io::Result<()> {
        self.drain()?;
        let family = if id.source_address.is_ipv4() { AF_INET } else { AF_INET6 };
        let extensions = ExtensionFlags::empty();
        let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id: id.clone() };
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        self.receive(flags & NLM_F_DUMP == NLM_F_DUMP, into)
    }

    fn receive(&mut self, dump: bool, into: &mut Vec<Found>) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            if datagram(&buffer, into)? || !dump {
                return Ok(());
            }
        }
    }

    /// Throws away what is left of an answer that could not be read to its end.
    fn drain(&mut self) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }
}

/// The states of sockets that have a peer, and may have a file.
fn connected() -> StateFlags {
    StateFlags::all() - StateFlags::LISTEN - StateFlags::TIME_WAIT - StateFlags::CLOSE
}

/// Reads the messages of one datagram; whether the answer is complete.
pub(crate) fn datagram(mut bytes: &[u8], into: &mut Vec<Found>) -> io::Result<bool> {
    let malformed = |e: String| io::Error::new(io::ErrorKind::InvalidData, e);
    while !bytes.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(bytes).map_err(|e| malformed(e.to_string()))?;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(answer)) => {
                into.push(Found::from(&answer.header));
            }
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(e) => match e.code {
                // An acknowledgement, or "no such socket".
                None => {}
                Some(code) if code.get() == -ENOENT => return Ok(true),
                // The crate's own conversion panics over the lowest number, which no kernel says.
                Some(code) => return Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
            },
            NetlinkPayload::Overrun(_) => return Err(malformed("the kernel's answer overran".into())),
            _ => {}
        }
        // Messages are aligned to four bytes.
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).saturating_add(3) & !3;
        bytes = bytes.get(length.max(16)..).unwrap_or_default();
    }
    Ok(false)
}

impl From<&InetResponseHeader> for Found {
    fn from(h: &InetResponseHeader) -> Self {
        let id = &h.socket_id;
        Self {
            local: address(id.source_address, id.source_port, id.interface_id),
            remote: address(id.destination_address, id.destination_port, id.interface_id),
            listens: h.state == TCP_LISTEN,
            family6: h.family == AF_INET6,
            interface: id.interface_id,
            inode: u64::from(h.inode),
            cookie: id.cookie,
        }
    }
}

/// In the one spelling, with the scope where the address has one.
fn address(ip: IpAddr, port: u16, interface: u32) -> SocketAddr {
    match ip {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => SocketAddr::V6(SocketAddrV6::new(v6, port, 0, interface)),
        ip => canonical(SocketAddr::new(ip, port)),
    }
}

fn scope(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => v6.scope_id(),
        _ => 0,
    }
}
