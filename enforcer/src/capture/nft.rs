//! The rules as one nftables table: both families, one transaction, after everybody's DNAT.
//!
//! A connection is decided once, on its first packet and by its socket; the connection mark remembers it. Only the
//! original direction of a captured connection and the replies of a delivery are ever steered, because a SYN-ACK
//! belongs to no full socket and could not be told from a program's.
//!
//! Enforce refuses whatever is in doubt. Shadow lets it pass: there the promise is that the host keeps working. Observe
//! captures nothing new; its rules are there for what was captured before, and go when that has ended.

use std::net::SocketAddr;

use bonafide_policy::Mode;

use super::error::CaptureError;
use super::exemption::Holder;
use super::footprint::Ground;
use super::mark::{CAPTURED_IN, CAPTURED_OUT, DELIVERY, MASK, OLDER, STEER, WIRE};
use super::tool::Tool;
use super::{Exempted, Rules};
use crate::sys::nftables::Family;

const NFT: Tool = Tool { name: "nft", package: "nftables" };
/// A first packet. A new connection's may carry ECN and other flags.
const SYN: &str = "tcp flags & (fin|syn|rst|ack) == syn";
const CHAINS: [&str; 14] = [
    "own", "legacy", "tolo", "out", "pre_lo", "tp_out", "tp_in", "pre", "in", "post", "natout", "natpost", "iddst",
    "idsrc",
];
/// Makes loading replace whatever is there, and removing succeed where nothing is.
const CLEARED: &str = "table inet bonafide\ndelete table inet bonafide\n";

/// Loads or replaces the rules. What is there stays in force until the kernel has all of the new ones.
pub(super) async fn load(rules: &Rules<'_>) -> Result<(), CaptureError> {
    NFT.load("loading the capture rules", &["-f", "-"], &text(rules)).await
}

/// Removes the rules; there need not be any.
pub(super) async fn remove() -> Result<(), CaptureError> {
    NFT.load("removing the capture rules", &["-f", "-"], CLEARED).await
}

/// Are rules of ours loaded?
pub(super) async fn present() -> Result<bool, CaptureError> {
    Ok(NFT.run(&["list", "table", "inet", "bonafide"], "").await?.status.success())
}

/// Where the rules are.
pub(super) fn grounds() -> Vec<Ground> {
    vec![Ground { family: Family::Inet, table: "bonafide", own: &CHAINS, hooks: Vec::new() }]
}

fn text(rules: &Rules<'_>) -> String {
    let chains = [own(), legacy(rules.mode), tolo(), out(rules), pre_lo(rules.mode), tp_out(rules), tp_in(rules)];
    let hooks = [pre(rules.mode), input(rules.mode), post(rules.mode), nat()];
    format!("{CLEARED}table inet bonafide {{\n{}{}}}\n", chains.concat(), hooks.concat())
}

/// What happens to a packet that cannot be what it seems.
fn doubt(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "counter drop",
        Mode::Observe | Mode::Shadow => "counter accept",
    }
}

/// Sockets made in an exempt cgroup by its user. Replies are those of connections that were captured.
fn own() -> String {
    format!(
        "  chain own {{
    ct direction reply counter accept
    oif lo {} counter accept
    {} counter accept
  }}
",
        remember(DELIVERY),
        remember(WIRE)
    )
}

/// No mark and not a SYN: older than the rules, or a forgery. Its reset must get through.
fn legacy(mode: Mode) -> String {
    let verdict = match mode {
        Mode::Enforce => "counter reject with tcp reset",
        Mode::Observe | Mode::Shadow => "counter accept",
    };
    format!("  chain legacy {{\n    tcp flags & rst == rst counter accept\n    {verdict}\n  }}\n")
}

fn tolo() -> String {
    format!("  chain tolo {{\n    meta mark set meta mark | {STEER:#010x} counter accept\n  }}\n")
}

fn out(rules: &Rules<'_>) -> String {
    let own = exempt(rules.own, None);
    let controls: String = rules.controls.iter().map(control).collect();
    let (doubt, capture, link_local) = (doubt(rules.mode), first(rules.mode, CAPTURED_OUT), link_local_out(rules.mode));
    let (captured, delivery) = (is(CAPTURED_OUT), is(DELIVERY));
    format!(
        "  chain out {{
    type route hook output priority -150; policy accept;
    meta l4proto != tcp accept
{own}{controls}{link_local}    ct state invalid {doubt}
{capture}    ct direction original {captured} jump tolo
    ct direction reply {delivery} oif != lo jump tolo
    {SYN} {doubt}
    {} accept
    goto legacy
  }}
",
        is_not(0)
    )
}

/// Outgoing IPv6 link-local cannot be captured safely (its socket is bound to the device, and the lookup on `lo` would
/// fall through to a program's own listener under SYN cookies). Shadow leaves it alone, enforce refuses it.
fn link_local_out(mode: Mode) -> String {
    match mode {
        Mode::Enforce => String::new(),
        // Only while nobody knows the connection: one captured from elsewhere has link-local replies, too.
        Mode::Observe | Mode::Shadow => {
            ["saddr", "daddr"].map(|end| format!("    ip6 {end} fe80::/10 {} accept\n", is(0))).concat()
        }
    }
}

fn control(exempted: &Exempted) -> String {
    exempt(exempted.holder(), Some(exempted.to))
}

fn exempt(holder: Holder<'_>, to: Option<SocketAddr>) -> String {
    let destination = to.map(destination).unwrap_or_default();
    let (depth, path) = (holder.cgroup.depth(), holder.cgroup.below_sys_fs_cgroup());
    format!("    {destination}socket cgroupv2 level {depth} \"{path}\" meta skuid {} jump own\n", holder.uid)
}

fn destination(to: SocketAddr) -> String {
    let family = if to.is_ipv4() { "ip" } else { "ip6" };
    format!("{family} daddr {} tcp dport {} ", to.ip(), to.port())
}

/// On `lo`, before routing: what `out` steered there, deliveries, and nothing that came through no output hook.
fn pre_lo(mode: Mode) -> String {
    let (doubt, link_local) = (doubt(mode), link_local_out(mode));
    let (captured, known) = (is(CAPTURED_OUT), is_one_of(&[CAPTURED_OUT, DELIVERY, OLDER]));
    format!(
        "  chain pre_lo {{
    ct direction original {captured} jump tp_out
    {known} accept
    {} counter drop
{link_local}    {SYN} {doubt}
    goto legacy
  }}
",
        is_not(0)
    )
}

fn tp_out(rules: &Rules<'_>) -> String {
    let refused = ["saddr", "daddr"].map(|end| format!("    ip6 {end} fe80::/10 counter reject with tcp reset\n"));
    steer("tp_out", &refused.concat(), rules.outbound_port)
}

fn tp_in(rules: &Rules<'_>) -> String {
    steer("tp_in", "", rules.inbound_port)
}

/// To the listener, all packets and not only the SYN (SYN cookies). Without a listener the client is told at once.
fn steer(chain: &str, first: &str, port: u16) -> String {
    format!(
        "  chain {chain} {{
{first}    meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:{port} counter accept
    meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:{port} counter accept
    counter reject with tcp reset
  }}
"
    )
}

/// From elsewhere, after DNAT. `fib daddr type` and not `fib daddr . iif`: an address of another device is ours, too.
fn pre(mode: Mode) -> String {
    let (doubt, capture, captured) = (doubt(mode), first(mode, CAPTURED_IN), is(CAPTURED_IN));
    format!(
        "  chain pre {{
    type filter hook prerouting priority -90; policy accept;
    meta l4proto != tcp accept
    iif lo goto pre_lo
    {} {doubt}
    fib daddr type != local accept
    ct state invalid {doubt}
{capture}    ct direction original {captured} jump tp_in
    {} accept
    {SYN} {doubt}
    goto legacy
  }}
",
        is_one_of(&[CAPTURED_OUT, DELIVERY]),
        is_not(0)
    )
}

/// Belt and braces: nothing uncaptured is delivered.
fn input(mode: Mode) -> String {
    format!(
        "  chain in {{
    type filter hook input priority -150; policy accept;
    meta l4proto != tcp accept
    iif lo accept
    ct direction original {} {SYN} {}
  }}
",
        is_not(CAPTURED_IN),
        doubt(mode)
    )
}

/// Belt and braces: nothing captured leaves. It would if somebody deleted our routing rules.
fn post(mode: Mode) -> String {
    format!(
        "  chain post {{
    type filter hook postrouting priority 120; policy accept;
    meta l4proto != tcp accept
    oif != lo {} {}
  }}
",
        is_one_of(&[CAPTURED_OUT, DELIVERY]),
        doubt(mode)
    )
}

/// Translates captured connections and deliveries to themselves, before anybody else can translate them to others:
/// who a connection belongs to is read off its addresses.
fn nat() -> String {
    format!(
        "  chain natout {{
    type nat hook output priority -101; policy accept;
    meta l4proto tcp {} jump iddst
  }}
  chain natpost {{
    type nat hook postrouting priority 99; policy accept;
    meta l4proto tcp {} jump idsrc
  }}
  chain iddst {{
    dnat ip to ip daddr
    dnat ip6 to ip6 daddr
  }}
  chain idsrc {{
    snat ip to ip saddr
    snat ip6 to ip6 saddr
  }}
",
        is(DELIVERY),
        is_one_of(&[CAPTURED_OUT, DELIVERY])
    )
}

/// The first packet of a new connection: from here on it is known.
fn first(mode: Mode, kind: u32) -> String {
    match mode {
        Mode::Observe => String::new(),
        Mode::Shadow | Mode::Enforce => format!("    {SYN} ct state new {} {} counter\n", is(0), remember(kind)),
    }
}

fn remember(kind: u32) -> String {
    format!("ct mark set ct mark & {:#010x} | {kind:#010x}", !MASK)
}

fn is(kind: u32) -> String {
    format!("ct mark & {MASK:#010x} == {kind:#010x}")
}

fn is_not(kind: u32) -> String {
    format!("ct mark & {MASK:#010x} != {kind:#010x}")
}

fn is_one_of(kinds: &[u32]) -> String {
    let kinds: Vec<String> = kinds.iter().map(|kind| format!("{kind:#010x}")).collect();
    format!("ct mark & {MASK:#010x} == {{ {} }}", kinds.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::text::{Sample, enforcing, shadowing};

    fn chain<'a>(text: &'a str, name: &str) -> &'a str {
        let (_, body) = text.split_once(&format!("chain {name} {{\n")).unwrap_or_else(|| panic!("no chain {name}"));
        body.split_once("\n  }").unwrap().0
    }

    #[test]
    fn one_transaction_replaces_whatever_was_there() {
        let text = text(&enforcing().rules());
        assert!(text.starts_with(CLEARED));
        assert_eq!(text.matches("table inet bonafide {").count(), 1);
    }

    #[test]
    fn every_chain_is_watched() {
        let text = text(&enforcing().rules());
        let written = text.lines().filter_map(|line| line.strip_prefix("  chain ")?.strip_suffix(" {"));
        assert_eq!(written.collect::<Vec<_>>(), CHAINS);
    }

    #[test]
    fn an_exemption_always_takes_cgroup_and_user_and_a_control_one_destination() {
        let text = text(&enforcing().rules());
        let jumps: Vec<&str> = text.lines().filter(|line| line.ends_with("jump own")).collect();
        assert_eq!(
            jumps,
            [
                "    socket cgroupv2 level 2 \"mesh/enforcer\" meta skuid 64703 jump own",
                "    ip daddr 10.0.0.9 tcp dport 8443 socket cgroupv2 level 2 \"mesh/ca\" meta skuid 64701 jump own",
                "    ip6 daddr fd00::9 tcp dport 8443 socket cgroupv2 level 2 \"mesh/ca\" meta skuid 64701 jump own",
            ]
        );
    }

    #[test]
    fn directions_go_to_their_own_listeners_in_both_families() {
        let text = text(&enforcing().rules());
        for (name, port) in [("tp_out", 15001), ("tp_in", 15006)] {
            let steering = chain(&text, name);
            assert!(steering.contains(&format!("tproxy ip to 127.0.0.1:{port} ")));
            assert!(steering.contains(&format!("tproxy ip6 to [::1]:{port} ")));
            assert!(steering.ends_with("reject with tcp reset"), "without a listener: told at once");
        }
    }

    #[test]
    fn the_packet_mark_decides_nothing() {
        let text = text(&enforcing().rules());
        let uses: Vec<&str> = text.lines().filter(|line| line.contains("meta mark")).collect();
        assert_eq!(uses, ["    meta mark set meta mark | 0x08000000 counter accept"]);
    }

    #[test]
    fn nothing_new_is_captured_in_observe_mode_and_what_was_captured_is_still_steered() {
        let observe = text(&Sample::of(Mode::Observe, "/mesh/enforcer").rules());
        let shadow = text(&shadowing().rules());
        let taken: Vec<&str> = shadow.lines().filter(|line| !observe.lines().any(|kept| kept == *line)).collect();
        assert_eq!(taken.len(), 2, "{taken:#?}");
        assert!(taken.iter().all(|line| line.contains("ct state new") && line.contains("ct mark set")));
    }

    #[test]
    fn enforce_refuses_doubt_and_shadow_lets_it_pass() {
        let (enforce, shadow) = (text(&enforcing().rules()), text(&shadowing().rules()));
        assert!(chain(&enforce, "legacy").ends_with("reject with tcp reset"));
        assert!(chain(&shadow, "legacy").ends_with("accept"));
        for name in ["out", "pre"] {
            assert!(chain(&enforce, name).contains("ct state invalid counter drop"));
            assert!(chain(&shadow, name).contains("ct state invalid counter accept"));
        }
        // Without routing rules a captured connection is where its kind does not live, in both directions.
        let strayed = "ct mark & 0x0f000000 == { 0x01000000, 0x03000000 } counter";
        for (name, place) in [("post", "oif != lo "), ("pre", "")] {
            assert!(chain(&enforce, name).contains(&format!("    {place}{strayed} drop")));
            assert!(chain(&shadow, name).contains(&format!("    {place}{strayed} accept")));
        }
    }
}
