//! The routes behind the steering bit: a marked packet goes to `lo`, or nowhere.
//!
//! A routing table of its own holds `local default` by `lo`, and by every other device for programs bound to one. A
//! second rule black-holes what the table does not take: a marked packet must never reach the main table.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NetlinkPayload};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rustix::io::Errno;
use tokio::task::JoinHandle;

use super::error::CaptureError;
use super::mark::STEER;
use crate::sys::netlink::{Rtnetlink, parts};

/// The routing table that is ours.
const TABLE: u32 = 30_808;
/// Preference of the rule that looks the table up; the black hole comes right after.
const LOOKUP: u32 = 30;
const BLACKHOLE: u32 = 31;
/// As if the kernel had made them: systemd-networkd deletes rules and routes of every other origin that it does not know.
const OURS: RouteProtocol = RouteProtocol::Kernel;
/// The index of `lo`, in every network namespace.
const LO: u32 = 1;
/// `RTNLGRP_LINK` and `RTNLGRP_IPV6_IFINFO`: devices that come, go, or get IPv6.
const LINK_GROUPS: [u32; 2] = [1, 12];
/// How many rounds what could not be put back is left alone: trying tells every listener on the host of new routes.
const ROUNDS: u32 = 10;
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// Adds what is missing; what is there stays.
pub(super) fn install() -> Result<(), CaptureError> {
    let mut kernel = open()?;
    for family in FAMILIES {
        for rule in [lookup(family), blackhole(family)] {
            add_rule(&mut kernel, rule)?;
        }
    }
    add_all_devices(&mut kernel)
}

/// Puts back what somebody deleted.
#[derive(Debug, Default)]
pub(super) struct Mender {
    /// What installing did not bring: a device that is down has no route, and a kernel without IPv6 none of it.
    hopeless: Vec<String>,
    /// Rounds since installing was last tried.
    rounds: u32,
}

impl Mender {
    /// Installs again if something is missing. Returns whether that helped.
    pub(super) fn mend(&mut self) -> Result<bool, CaptureError> {
        let before = missing()?;
        self.rounds = self.rounds.saturating_add(1);
        let news = before.iter().any(|what| !self.hopeless.contains(what));
        if !news && (before.is_empty() || self.rounds < ROUNDS) {
            self.hopeless = before;
            return Ok(false);
        }
        self.rounds = 0;
        install()?;
        self.hopeless = missing()?;
        Ok(self.hopeless != before)
    }
}

/// Which rules and which families' routes of `lo` are not there. The other devices' are left to the [`Watch`].
fn missing() -> Result<Vec<String>, CaptureError> {
    let mut kernel = open()?;
    let mut missing = Vec::new();
    for family in FAMILIES {
        let rules = kernel.dump(RouteNetlinkMessage::GetRule(in_family(family))).or_else(nothing_in_it);
        let rules = rules.map_err(|source| failed("list the routing rules", source))?;
        let gone = [lookup(family), blackhole(family)].into_iter().filter(|ours| !rules.iter().any(|r| is(r, ours)));
        missing.extend(gone.map(|rule| format!("{rule:?}")));
        let routes = kernel.dump(RouteNetlinkMessage::GetRoute(in_table(family))).or_else(nothing_in_it);
        let routes = routes.map_err(|source| failed("list the capture routes", source))?;
        if !routes.iter().any(is_by_lo) {
            missing.push(format!("{family:?} by lo"));
        }
    }
    Ok(missing)
}

fn nothing_in_it(e: io::Error) -> io::Result<Vec<RouteNetlinkMessage>> {
    if is_one_of(&e, &NO_TABLE) { Ok(Vec::new()) } else { Err(e) }
}

fn in_family(family: AddressFamily) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule
}

/// Is it `ours`, whoever made it?
fn is(message: &RouteNetlinkMessage, ours: &RuleMessage) -> bool {
    let RouteNetlinkMessage::NewRule(rule) = message else { return false };
    let everywhere = rule.header.src_len == 0 && rule.header.dst_len == 0;
    let same = rule.header.family == ours.header.family && rule.header.action == ours.header.action;
    everywhere && same && ours.attributes.iter().all(|attribute| rule.attributes.contains(attribute))
}

fn is_by_lo(message: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewRoute(route) = message else { return false };
    let has = |attribute| route.attributes.contains(&attribute);
    let everything = route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Local;
    everything && has(RouteAttribute::Table(TABLE)) && has(RouteAttribute::Oif(LO))
}

/// Removes both rules and empties the table; neither need be there.
pub(super) fn remove() -> Result<(), CaptureError> {
    let mut kernel = open()?;
    for family in FAMILIES {
        for rule in [lookup(family), blackhole(family)] {
            delete_rule(&mut kernel, &rule)?;
        }
        empty_table(&mut kernel, family)?;
    }
    Ok(())
}

/// Keeps the routes complete while devices come and go. `lo` loses its IPv6 route when it goes down. Ends when dropped.
#[derive(Debug)]
pub(super) struct Watch {
    task: JoinHandle<()>,
}

impl Watch {
    pub(super) fn start() -> Result<Self, CaptureError> {
        let events = subscribe().map_err(|source| failed("watch for new devices", source))?;
        Ok(Self { task: tokio::spawn(follow(events)) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn subscribe() -> io::Result<TokioSocket> {
    let mut events = TokioSocket::new(NETLINK_ROUTE)?;
    let socket = events.socket_mut();
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in LINK_GROUPS {
        socket.add_membership(group)?;
    }
    Ok(events)
}

async fn follow(events: TokioSocket) {
    loop {
        let outcome = match events.recv_from_full().await {
            Ok((datagram, _)) => add_devices_in(&datagram),
            // Events were lost: look at everything.
            Err(e) if is_one_of(&e, &[Errno::NOBUFS]) => open().and_then(|mut kernel| add_all_devices(&mut kernel)),
            Err(e) => {
                tracing::error!("no more device events, new devices stay without capture routes: {e}");
                return;
            }
        };
        if let Err(e) = outcome {
            tracing::warn!("a device is without its capture routes; programs bound to it get no connection: {e}");
        }
    }
}

fn add_devices_in(datagram: &[u8]) -> Result<(), CaptureError> {
    let messages = parts(datagram).map_err(|source| failed("read a device event", source))?;
    let mut kernel = open()?;
    for message in messages {
        if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = message.payload {
            add_device(&mut kernel, &link)?;
        }
    }
    Ok(())
}

fn add_all_devices(kernel: &mut Rtnetlink) -> Result<(), CaptureError> {
    let links = kernel.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    for message in links.map_err(|source| failed("list network devices", source))? {
        if let RouteNetlinkMessage::NewLink(link) = message {
            add_device(kernel, &link)?;
        }
    }
    Ok(())
}

fn add_device(kernel: &mut Rtnetlink, link: &LinkMessage) -> Result<(), CaptureError> {
    if !link.header.flags.contains(LinkFlags::Up) {
        return Ok(());
    }
    let index = link.header.index;
    let routes =
        if link.header.flags.contains(LinkFlags::Loopback) { loopback(index).to_vec() } else { device(index).to_vec() };
    for route in routes {
        let added = kernel.change(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE);
        tolerate(added, &NO_DEVICE_OR_FAMILY)
            .map_err(|source| failed(&format!("route device {index} to lo"), source))?;
    }
    Ok(())
}

/// The device went away or down meanwhile (its next event comes), or it or this kernel has no IPv6.
const NO_DEVICE_OR_FAMILY: [Errno; 5] =
    [Errno::NODEV, Errno::NETDOWN, Errno::ACCESS, Errno::AFNOSUPPORT, Errno::OPNOTSUPP];

fn loopback(index: u32) -> [RouteMessage; 2] {
    FAMILIES.map(|family| to_host(family, index, None))
}

/// The metric tells the devices' routes apart. All come after those of `lo` (0 and 1024).
fn device(index: u32) -> [RouteMessage; 3] {
    let [v4, v6] = FAMILIES;
    let mut link_local = to_host(v6, index, Some(index.saturating_add(1024)));
    link_local.header.destination_prefix_length = 10;
    let prefix = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0));
    link_local.attributes.push(RouteAttribute::Destination(RouteAddress::from(prefix)));
    [
        to_host(v4, index, Some(index.saturating_add(10))),
        to_host(v6, index, Some(index.saturating_add(2000))),
        link_local,
    ]
}

/// `local default dev INDEX table TABLE`.
fn to_host(family: AddressFamily, index: u32, metric: Option<u32>) -> RouteMessage {
    let mut message = in_table(family);
    message.header.protocol = OURS;
    message.header.kind = RouteType::Local;
    message.header.scope = if family == AddressFamily::Inet { RouteScope::Host } else { RouteScope::Universe };
    message.attributes.push(RouteAttribute::Oif(index));
    message.attributes.extend(metric.map(RouteAttribute::Priority));
    message
}

fn in_table(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.attributes.push(RouteAttribute::Table(TABLE));
    message
}

fn empty_table(kernel: &mut Rtnetlink, family: AddressFamily) -> Result<(), CaptureError> {
    let listed = kernel.dump(RouteNetlinkMessage::GetRoute(in_table(family))).or_else(nothing_in_it);
    let listed = listed.map_err(|source| failed("list the capture routes", source))?;
    for message in listed {
        let RouteNetlinkMessage::NewRoute(route) = message else { continue };
        if !route.attributes.contains(&RouteAttribute::Table(TABLE)) {
            continue;
        }
        let deleted = kernel.change(RouteNetlinkMessage::DelRoute(route), 0);
        tolerate(deleted, &[Errno::SRCH, Errno::NODEV]).map_err(|source| failed("delete a capture route", source))?;
    }
    Ok(())
}

/// Nothing was ever put into the table, or this kernel has no such family.
const NO_TABLE: [Errno; 4] = [Errno::NOENT, Errno::SRCH, Errno::AFNOSUPPORT, Errno::OPNOTSUPP];

fn lookup(family: AddressFamily) -> RuleMessage {
    let mut rule = steered(family, LOOKUP, RuleAction::ToTable);
    rule.attributes.push(RuleAttribute::Table(TABLE));
    rule
}

fn blackhole(family: AddressFamily) -> RuleMessage {
    steered(family, BLACKHOLE, RuleAction::Blackhole)
}

fn steered(family: AddressFamily, preference: u32, action: RuleAction) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = action;
    rule.attributes =
        vec![RuleAttribute::Priority(preference), RuleAttribute::FwMark(STEER), RuleAttribute::FwMask(STEER)];
    rule
}

fn add_rule(kernel: &mut Rtnetlink, rule: RuleMessage) -> Result<(), CaptureError> {
    let mut rule = rule;
    rule.attributes.push(RuleAttribute::Protocol(OURS));
    let added = kernel.change(RouteNetlinkMessage::NewRule(rule), NLM_F_CREATE | NLM_F_EXCL);
    tolerate(added, &[Errno::EXIST, Errno::AFNOSUPPORT, Errno::OPNOTSUPP])
        .map_err(|source| failed("add a routing rule for captured packets", source))
}

/// There may be several where somebody added one by hand.
fn delete_rule(kernel: &mut Rtnetlink, rule: &RuleMessage) -> Result<(), CaptureError> {
    loop {
        match kernel.change(RouteNetlinkMessage::DelRule(rule.clone()), 0) {
            Ok(()) => {}
            Err(e) if is_one_of(&e, &NO_TABLE) => return Ok(()),
            Err(source) => return Err(failed("delete a routing rule for captured packets", source)),
        }
    }
}

fn tolerate(outcome: io::Result<()>, harmless: &[Errno]) -> io::Result<()> {
    match outcome {
        Err(e) if is_one_of(&e, harmless) => Ok(()),
        other => other,
    }
}

fn is_one_of(e: &io::Error, errors: &[Errno]) -> bool {
    Errno::from_io_error(e).is_some_and(|errno| errors.contains(&errno))
}

fn open() -> Result<Rtnetlink, CaptureError> {
    Rtnetlink::open().map_err(|source| failed("open rtnetlink", source))
}

fn failed(doing: &str, source: io::Error) -> CaptureError {
    CaptureError::Route { doing: doing.to_owned(), source }
}
