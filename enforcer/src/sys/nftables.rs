//! What nf_tables holds, told by its handles: which tables and rules are there, not what they say.
//!
//! The kernel gives every table and every rule a handle that is not used again while its table lives, and counts
//! transactions: equal handles are the same rules, and an equal count needs no look at all. iptables over nf_tables is
//! seen, too.

use std::convert::Infallible;
use std::io;

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_HEADER_SIZE, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::io::Errno;

use super::netlink::Netlink;

/// `NFNL_SUBSYS_NFTABLES`, as the upper byte of a message type.
const NFTABLES: u16 = 10 << 8;
/// Requests of `linux/netfilter/nf_tables.h`.
const GET_TABLE: u16 = 1;
const GET_RULE: u16 = 7;
const GET_GENERATION: u16 = 16;
/// Their attributes.
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_HANDLE: u16 = 4;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const GENERATION: u16 = 1;

/// Which packets a table sees: `NFPROTO_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Family {
    Inet = 1,
    V4 = 2,
    V6 = 10,
}

/// One table of this network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Table {
    family: Family,
    handle: u64,
    /// A dormant table has all its rules and applies none.
    flags: u32,
}

/// One rule of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    table: Table,
    chain: String,
    /// Ascends with the order in which rules were made.
    handle: u64,
}

/// nf_tables of one network namespace. Asking takes `CAP_NET_ADMIN`, as changing does.
pub(crate) struct Nftables {
    kernel: Netlink<Message>,
}

impl Nftables {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { kernel: Netlink::over(NETLINK_NETFILTER)? })
    }

    /// How many transactions there were.
    pub(crate) fn generation(&mut self) -> io::Result<u32> {
        let answers = self.kernel.get(Message::new(GET_GENERATION, 0, &[]))?;
        let answer = answers.first().and_then(|answer| answer.number(GENERATION)).and_then(|n| n.try_into().ok());
        answer.ok_or_else(|| io::Error::other("nf_tables does not say its generation"))
    }

    /// `None` where there is no such table.
    pub(crate) fn table(&mut self, family: Family, name: &str) -> io::Result<Option<Table>> {
        let answers = match self.kernel.get(Message::new(GET_TABLE, family as u8, &[(TABLE_NAME, name)])) {
            // A kernel without the family has no table of it.
            Err(e)
                if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::AFNOSUPPORT | Errno::OPNOTSUPP)) =>
            {
                return Ok(None);
            }
            other => other?,
        };
        let answer = answers.first();
        let handle = answer.and_then(|answer| answer.number(TABLE_HANDLE));
        let handle = handle.ok_or_else(|| io::Error::other(format!("nf_tables gives table {name} no handle")))?;
        let flags = answer.and_then(|answer| answer.number(TABLE_FLAGS)).and_then(|n| n.try_into().ok());
        Ok(Some(Table { family, handle, flags: flags.unwrap_or_default() }))
    }

    /// The rules of `chain`, in order. `name` is that of `table`.
    pub(crate) fn rules(&mut self, table: Table, name: &str, chain: &str) -> io::Result<Vec<Rule>> {
        let wanted = [(RULE_TABLE, name), (RULE_CHAIN, chain)];
        let answers = self.kernel.dump(Message::new(GET_RULE, table.family as u8, &wanted))?;
        Ok(answers.iter().filter_map(|answer| answer.rule(table, name, chain)).collect())
    }
}

/// A request or an answer: `struct nfgenmsg` and attributes.
struct Message {
    kind: u16,
    family: u8,
    attributes: Vec<u8>,
}

impl Message {
    /// Every attribute asked with is a name.
    fn new(request: u16, family: u8, names: &[(u16, &str)]) -> Self {
        let names = names.iter().map(|(kind, name)| DefaultNla::new(*kind, [name.as_bytes(), b"\0"].concat()));
        let names: Vec<DefaultNla> = names.collect();
        let mut attributes = vec![0; names.as_slice().buffer_len()];
        names.as_slice().emit(&mut attributes);
        Self { kind: NFTABLES | request, family, attributes }
    }

    fn attribute(&self, kind: u16) -> Option<&[u8]> {
        let all = NlasIterator::new(self.attributes.as_slice()).map_while(Result::ok);
        all.filter(|found| found.kind() == kind)
            .find_map(|found| found.into_inner().get(NLA_HEADER_SIZE..usize::from(found.length())))
    }

    /// Numbers are big-endian here, of four or eight bytes.
    fn number(&self, kind: u16) -> Option<u64> {
        let bytes = self.attribute(kind).filter(|bytes| bytes.len() <= 8)?;
        Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn name(&self, kind: u16) -> Option<String> {
        let bytes = self.attribute(kind)?;
        Some(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
    }

    /// Old kernels filter a dump less than they are asked to.
    fn rule(&self, table: Table, name: &str, chain: &str) -> Option<Rule> {
        let in_table = self.family == table.family as u8 && self.name(RULE_TABLE)? == name;
        let rule = Rule { table, chain: self.name(RULE_CHAIN)?, handle: self.number(RULE_HANDLE)? };
        (in_table && rule.chain == chain).then_some(rule)
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        4 + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let bytes = [&[self.family, 0, 0, 0], self.attributes.as_slice()].concat();
        buffer.copy_from_slice(&bytes);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        let family = payload.first().copied().unwrap_or_default();
        Ok(Self { kind: header.message_type, family, attributes: payload.get(4..).unwrap_or_default().to_vec() })
    }
}
