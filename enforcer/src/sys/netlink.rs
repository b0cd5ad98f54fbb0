//! One netlink request and its answers. The kernel answers before `send` returns, so nothing here waits.

use std::io;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::num::NonZeroI32;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// A connection to the part of the kernel that speaks `M`, in the network namespace in which it was opened.
pub(crate) struct Netlink<M> {
    socket: Socket,
    sequence: u32,
    speaks: PhantomData<fn(M) -> M>,
}

/// The routing half of the kernel.
pub(crate) type Rtnetlink = Netlink<RouteNetlinkMessage>;

impl Rtnetlink {
    pub(crate) fn open() -> io::Result<Self> {
        let kernel = Self::over(NETLINK_ROUTE)?;
        // Lets a dump be filtered by table instead of listing every route of the host.
        kernel.socket.set_netlink_get_strict_chk(true)?;
        Ok(kernel)
    }
}

impl<M: NetlinkSerializable + NetlinkDeserializable> Netlink<M> {
    /// `protocol` must be the one that speaks `M`.
    pub(super) fn over(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, speaks: PhantomData })
    }

    /// Asks about one object.
    pub(crate) fn get(&mut self, message: M) -> io::Result<Vec<M>> {
        self.exchange(message, NLM_F_ACK)
    }

    /// Lists objects.
    pub(crate) fn dump(&mut self, message: M) -> io::Result<Vec<M>> {
        self.exchange(message, NLM_F_DUMP)
    }

    /// Changes one object; `flags` are `NLM_F_CREATE` and the like.
    pub(crate) fn change(&mut self, message: M, flags: u16) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK | flags).map(drop)
    }

    fn exchange(&mut self, message: M, flags: u16) -> io::Result<Vec<M>> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&encode(message, flags | NLM_F_REQUEST, self.sequence), 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for part in parts(&datagram)? {
                if part.header.sequence_number != self.sequence {
                    continue;
                }
                match part.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(e) => {
                        // The crate's own conversion panics over the lowest number, which no kernel says.
                        let refused = |code: NonZeroI32| io::Error::from_raw_os_error(code.get().saturating_neg());
                        return e.code.map_or(Ok(answers), |code| Err(refused(code)));
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }
}

fn encode<M: NetlinkSerializable>(message: M, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The messages of one datagram.
pub(crate) fn parts<M: NetlinkDeserializable>(datagram: &[u8]) -> io::Result<Vec<NetlinkMessage<M>>> {
    let mut messages = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).saturating_add(3) & !3;
        rest = rest.get(length.max(4)..).unwrap_or_default();
        messages.push(message);
    }
    Ok(messages)
}

pub(crate) fn family_of(addr: IpAddr) -> AddressFamily {
    if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
