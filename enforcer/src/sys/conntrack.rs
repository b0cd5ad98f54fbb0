//! What the kernel's connection tracking remembers of a connection, by ctnetlink. Takes `CAP_NET_ADMIN`.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, Nla as _};
use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::io::Errno;

use super::netlink::Netlink;
use super::nfnetlink::{Message, nested, numbered};

/// `NFNL_SUBSYS_CTNETLINK`, as the upper byte of a message type.
const CTNETLINK: u16 = 1 << 8;
/// Requests of `linux/netfilter/nfnetlink_conntrack.h`.
const NEW: u16 = 0;
const GET: u16 = 1;
/// Their attributes.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_STATE: u16 = 4;
const TIMEOUT: u16 = 7;
const MARK: u16 = 8;
const MARK_MASK: u16 = 21;
/// Inside a tuple: addresses (of IPv4, of IPv6) and protocol.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const V4: [u16; 2] = [1, 2];
const V6: [u16; 2] = [3, 4];
const NUMBER: u16 = 1;
const PORTS: [u16; 2] = [2, 3];
const TCP: u8 = 6;
/// Inside the protocol's state.
const OF_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
const TCP_FLAGS: [u16; 2] = [4, 5];
const ESTABLISHED: u8 = 3;
/// `IP_CT_TCP_FLAG_BE_LIBERAL`: its windows were never seen.
const LIBERAL: u8 = 8;
/// Seen in both directions, not to be dropped early, and in the table.
const SEEN_REPLY_ASSURED_CONFIRMED: u32 = 0b1110;
/// As the kernel's own default for established connections; each packet starts it again.
const IDLE_SECONDS: u32 = 5 * 24 * 3600;

/// One connection, as one of its ends sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tuple {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

/// The table of one network namespace.
pub(crate) struct Conntrack {
    kernel: Netlink<Message>,
}

impl Conntrack {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { kernel: Netlink::over(NETLINK_NETFILTER)? })
    }

    /// The mark of a TCP connection, in whichever direction it is remembered. `None`: it is not.
    pub(crate) fn mark(&mut self, tuple: Tuple) -> io::Result<Option<u32>> {
        let question = Message::new(CTNETLINK, GET, family(tuple), &[attribute(ORIGINAL, tuple)]);
        match self.kernel.get(question) {
            Ok(answers) => Ok(answers.first().map(mark_of)),
            Err(e) if Errno::from_io_error(&e) == Some(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Changes the bits `mask` of the mark of a connection that is remembered.
    pub(crate) fn set_mark(&mut self, tuple: Tuple, mark: u32, mask: u32) -> io::Result<()> {
        let change = [attribute(ORIGINAL, tuple), numbered(MARK, mark), numbered(MARK_MASK, mask)];
        self.kernel.change(Message::new(CTNETLINK, NEW, family(tuple), &change), 0)
    }

    /// Remembers an established TCP connection that is not remembered.
    pub(crate) fn remember(&mut self, tuple: Tuple, mark: u32) -> io::Result<()> {
        let liberal = TCP_FLAGS.map(|flags| DefaultNla::new(flags, vec![LIBERAL, LIBERAL]));
        let [original, reply] = liberal;
        let state = [DefaultNla::new(TCP_STATE, vec![ESTABLISHED]), original, reply];
        let entry = [
            attribute(ORIGINAL, tuple),
            attribute(REPLY, Tuple { from: tuple.to, to: tuple.from }),
            numbered(STATUS, SEEN_REPLY_ASSURED_CONFIRMED),
            nested(PROTOCOL_STATE, &[nested(OF_TCP, &state)]),
            numbered(TIMEOUT, IDLE_SECONDS),
            numbered(MARK, mark),
        ];
        self.kernel.change(Message::new(CTNETLINK, NEW, family(tuple), &entry), NLM_F_CREATE)
    }

    /// Clears the bits `mask` wherever they are `mark`.
    pub(crate) fn clear(&mut self, mark: u32, mask: u32) -> io::Result<()> {
        let wanted = [numbered(MARK, mark), numbered(MARK_MASK, mask)];
        for entry in self.kernel.dump(Message::new(CTNETLINK, GET, 0, &wanted))? {
            // Old kernels filter less than they are asked to.
            let Some(tuple) = entry.attribute(ORIGINAL).filter(|_| mark_of(&entry) & mask == mark) else { continue };
            let tuple = DefaultNla::new(nested(ORIGINAL, &[]).kind(), tuple.to_vec());
            let change = [tuple, numbered(MARK, 0), numbered(MARK_MASK, mask)];
            match self.kernel.change(Message::new(CTNETLINK, NEW, entry.family, &change), 0) {
                // It ended meanwhile.
                Err(e) if Errno::from_io_error(&e) == Some(Errno::NOENT) => {}
                changed => changed?,
            }
        }
        Ok(())
    }
}

fn mark_of(entry: &Message) -> u32 {
    // A mark of 0 is left out by some kernels.
    entry.number(MARK).and_then(|mark| mark.try_into().ok()).unwrap_or_default()
}

fn family(tuple: Tuple) -> u8 {
    if tuple.from.is_ipv4() { 2 } else { 10 }
}

fn attribute(kind: u16, tuple: Tuple) -> DefaultNla {
    let ends = [tuple.from, tuple.to];
    let kinds = if tuple.from.is_ipv4() { V4 } else { V6 };
    let [from, to] = ends.map(|end| bytes(end.ip()));
    let [from_kind, to_kind] = kinds;
    let [from_port, to_port] = PORTS;
    let [from_number, to_number] = ends.map(|end| end.port().to_be_bytes().to_vec());
    let ip = nested(TUPLE_IP, &[DefaultNla::new(from_kind, from), DefaultNla::new(to_kind, to)]);
    let protocol = [
        DefaultNla::new(NUMBER, vec![TCP]),
        DefaultNla::new(from_port, from_number),
        DefaultNla::new(to_port, to_number),
    ];
    nested(kind, &[ip, nested(TUPLE_PROTOCOL, &protocol)])
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
