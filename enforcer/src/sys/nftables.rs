//! What nf_tables holds, told by its handles: which tables and rules are there, not what they say.
//!
//! The kernel gives every table and every rule a handle that is not used again while its table lives, and counts
//! transactions: equal handles are the same rules, and an equal count needs no look at all. iptables over nf_tables is
//! seen, too.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::io::Errno;

use super::netlink::Netlink;
use super::nfnetlink::{self, Message};

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
        let answers = self.kernel.get(message(GET_GENERATION, 0, &[]))?;
        let answer = answers.first().and_then(|answer| answer.number(GENERATION)).and_then(|n| n.try_into().ok());
        answer.ok_or_else(|| io::Error::other("nf_tables does not say its generation"))
    }

    /// `None` where there is no such table.
    pub(crate) fn table(&mut self, family: Family, name: &str) -> io::Result<Option<Table>> {
        let answers = match self.kernel.get(message(GET_TABLE, family as u8, &[(TABLE_NAME, name)])) {
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
        let answers = self.kernel.dump(message(GET_RULE, table.family as u8, &wanted))?;
        Ok(answers.iter().filter_map(|answer| rule(answer, table, name, chain)).collect())
    }
}

/// Every attribute asked with is a name.
fn message(request: u16, family: u8, names: &[(u16, &str)]) -> Message {
    let names: Vec<_> = names.iter().map(|(kind, name)| nfnetlink::named(*kind, name)).collect();
    Message::new(NFTABLES, request, family, &names)
}

/// Old kernels filter a dump less than they are asked to.
fn rule(answer: &Message, table: Table, name: &str, chain: &str) -> Option<Rule> {
    let in_table = answer.family == table.family as u8 && answer.name(RULE_TABLE)? == name;
    let rule = Rule { table, chain: answer.name(RULE_CHAIN)?, handle: answer.number(RULE_HANDLE)? };
    (in_table && rule.chain == chain).then_some(rule)
}
