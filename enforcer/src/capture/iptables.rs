//! The rules for iptables over nf_tables, one restore per family.
//!
//! What it cannot do, and nftables can: TPROXY comes before DNAT here, so a connection that somebody else DNATs to
//! this host (published container ports) fails; a missing listener and a connection older than the rules hang instead
//! of being reset; each family is replaced atomically, but one after the other; and the empty tables and built-in
//! chains that iptables creates stay behind when the rules are removed.

use std::fmt::Write;
use std::net::SocketAddr;

use bonafide_policy::Mode;

use super::Rules;
use super::error::CaptureError;
use super::exemption::Holder;
use super::footprint::Ground;
use super::mark::{CAPTURED_IN, CAPTURED_OUT, DELIVERY, MASK, OLDER, STEER, WIRE};
use super::tool::Tool;
use crate::sys::nftables;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn lister(self) -> Tool {
        let name = match self {
            Self::V4 => "iptables-nft",
            Self::V6 => "ip6tables-nft",
        };
        Tool { name, package: "iptables 1.8 or later, with its nf_tables variant" }
    }

    fn restorer(self) -> Tool {
        let name = match self {
            Self::V4 => "iptables-nft-restore",
            Self::V6 => "ip6tables-nft-restore",
        };
        Tool { name, ..self.lister() }
    }

    fn loopback(self) -> &'static str {
        match self {
            Self::V4 => "127.0.0.1",
            Self::V6 => "::1",
        }
    }

    fn has(self, addr: SocketAddr) -> bool {
        addr.is_ipv4() == (self == Self::V4)
    }
}

/// A built-in chain and the chain of ours that it must visit first.
struct Hook {
    table: &'static str,
    chain: &'static str,
    ours: &'static str,
}

const HOOKS: [Hook; 6] = [
    Hook { table: "mangle", chain: "OUTPUT", ours: "BF-OUT" },
    Hook { table: "mangle", chain: "PREROUTING", ours: "BF-PRE" },
    Hook { table: "mangle", chain: "POSTROUTING", ours: "BF-POST" },
    Hook { table: "mangle", chain: "INPUT", ours: "BF-IN" },
    Hook { table: "nat", chain: "OUTPUT", ours: "BF-IDD" },
    Hook { table: "nat", chain: "POSTROUTING", ours: "BF-IDS" },
];
const TABLES: [&str; 2] = ["mangle", "nat"];
const MANGLE: [&str; 7] = ["BF-OWN", "BF-TOLO", "BF-OUT", "BF-PRE", "BF-PRELO", "BF-POST", "BF-IN"];
const NAT: [&str; 2] = ["BF-IDD", "BF-IDS"];

/// How often each hook of [`HOOKS`] already visits ours.
type Visits = [usize; HOOKS.len()];

/// Loads or replaces the rules, a family at a time.
pub(super) async fn load(rules: &Rules<'_>) -> Result<(), CaptureError> {
    for family in Family::BOTH {
        let text = text(rules, family, &visits(family).await?);
        family.restorer().load("loading the capture rules", &["--noflush"], &text).await?;
    }
    Ok(())
}

/// Removes the rules; there need not be any.
pub(super) async fn remove() -> Result<(), CaptureError> {
    for family in Family::BOTH {
        let text = removal(&visits(family).await?);
        if is_present(family).await? {
            family.restorer().load("removing the capture rules", &["--noflush"], &text).await?;
        }
    }
    Ok(())
}

/// Are rules of ours loaded, in either family?
pub(super) async fn present() -> Result<bool, CaptureError> {
    Ok(is_present(Family::V4).await? || is_present(Family::V6).await?)
}

/// Where the rules are.
pub(super) fn grounds() -> Vec<Ground> {
    let families = [nftables::Family::V4, nftables::Family::V6];
    families.into_iter().flat_map(|family| TABLES.map(|table| ground(family, table))).collect()
}

fn ground(family: nftables::Family, table: &'static str) -> Ground {
    let hooks = HOOKS.iter().filter(|hook| hook.table == table).map(|hook| hook.chain).collect();
    Ground { family, table, own: chains_of(table), hooks }
}

async fn is_present(family: Family) -> Result<bool, CaptureError> {
    for (table, chain) in [("mangle", "BF-OUT"), ("nat", "BF-IDD")] {
        if family.lister().run(&["-t", table, "-S", chain], "").await?.status.success() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn visits(family: Family) -> Result<Visits, CaptureError> {
    let mut visits = Visits::default();
    for (count, hook) in visits.iter_mut().zip(&HOOKS) {
        let said = family.lister().run(&["-t", hook.table, "-S", hook.chain], "").await?;
        let jump = format!("-A {} -j {}", hook.chain, hook.ours);
        *count = said.stdout.lines().filter(|line| *line == jump).count();
    }
    Ok(visits)
}

/// Declaring a chain flushes it, and nothing takes effect before its table's `COMMIT`.
fn text(rules: &Rules<'_>, family: Family, visits: &Visits) -> String {
    let bodies = [mangle(rules, family), nat()];
    let tables = TABLES.iter().zip(bodies).map(|(table, body)| {
        let (chains, unhook, hook) = (declared(table), unhooked(table, visits), hooked(table));
        format!("*{table}\n{chains}{body}{unhook}{hook}COMMIT\n")
    });
    tables.collect()
}

fn removal(visits: &Visits) -> String {
    let tables = TABLES.iter().map(|table| {
        let deleted: String = chains_of(table).iter().map(|chain| format!("-X {chain}\n")).collect();
        format!("*{table}\n{}{}{deleted}COMMIT\n", declared(table), unhooked(table, visits))
    });
    tables.collect()
}

fn chains_of(table: &str) -> &'static [&'static str] {
    if table == "mangle" { &MANGLE } else { &NAT }
}

fn declared(table: &str) -> String {
    chains_of(table).iter().map(|chain| format!(":{chain} - [0:0]\n")).collect()
}

fn unhooked(table: &str, visits: &Visits) -> String {
    let here = HOOKS.iter().zip(visits).filter(|(hook, _)| hook.table == table);
    here.map(|(hook, count)| format!("-D {} -j {}\n", hook.chain, hook.ours).repeat(*count)).collect()
}

/// First, whatever others inserted since.
fn hooked(table: &str) -> String {
    let here = HOOKS.iter().filter(|hook| hook.table == table);
    here.map(|hook| format!("-I {} 1 -j {}\n", hook.chain, hook.ours)).collect()
}

fn mangle(rules: &Rules<'_>, family: Family) -> String {
    [own(), out(rules, family), pre(rules, family), pre_lo(rules, family), guards(rules.mode)].concat()
}

/// What happens to a packet that is in doubt, or older than the rules.
fn doubt(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "DROP",
        Mode::Observe | Mode::Shadow => "RETURN",
    }
}

fn own() -> String {
    format!(
        "-A BF-OWN -m conntrack --ctdir REPLY -j ACCEPT
-A BF-OWN -o lo {delivery}
-A BF-OWN ! -o lo {wire}
-A BF-OWN -j ACCEPT
-A BF-TOLO -j MARK --set-xmark {STEER:#010x}/{STEER:#010x}
-A BF-TOLO -j ACCEPT
",
        delivery = remember(DELIVERY),
        wire = remember(WIRE),
    )
}

fn out(rules: &Rules<'_>, family: Family) -> String {
    let doubt = doubt(rules.mode);
    let mut text = String::from("-A BF-OUT ! -p tcp -j RETURN\n");
    text += &exempt(rules.own, None);
    for control in rules.controls.iter().filter(|control| family.has(control.to)) {
        text += &exempt(control.holder(), Some(control.to));
    }
    text += &link_local("BF-OUT", rules.mode, family);
    let _ = write!(
        text,
        "-A BF-OUT -m conntrack --ctstate INVALID -j {doubt}
{first}-A BF-OUT -m conntrack --ctdir ORIGINAL {captured} -j BF-TOLO
-A BF-OUT ! -o lo -m conntrack --ctdir REPLY {delivery} -j BF-TOLO
-A BF-OUT -p tcp --syn -j {doubt}
-A BF-OUT {known} -j ACCEPT
-A BF-OUT -j {doubt}
",
        first = first("BF-OUT", rules.mode, CAPTURED_OUT),
        captured = is(CAPTURED_OUT),
        delivery = is(DELIVERY),
        known = is_not(0),
    );
    text
}

/// The first packet of a new connection: from here on it is known.
fn first(chain: &str, mode: Mode, kind: u32) -> String {
    match mode {
        Mode::Observe => String::new(),
        Mode::Shadow | Mode::Enforce => {
            format!("-A {chain} -p tcp --syn -m conntrack --ctstate NEW {} {}\n", is(0), remember(kind))
        }
    }
}

/// Shadow leaves outgoing IPv6 link-local alone; it cannot be captured safely.
fn link_local(chain: &str, mode: Mode, family: Family) -> String {
    match (mode, family) {
        (Mode::Observe | Mode::Shadow, Family::V6) => {
            ["-s", "-d"].map(|end| format!("-A {chain} {end} fe80::/10 {} -j RETURN\n", is(0))).concat()
        }
        _ => String::new(),
    }
}

fn exempt(holder: Holder<'_>, to: Option<SocketAddr>) -> String {
    let destination = to.map(|to| format!("-p tcp -d {} --dport {} ", to.ip(), to.port())).unwrap_or_default();
    // Inside quotes, a restore reads a backslash as an escape.
    let path = holder.cgroup.path().replace('\\', "\\\\");
    format!("-A BF-OUT {destination}-m cgroup --path \"{path}\" -m owner --uid-owner {} -j BF-OWN\n", holder.uid)
}

fn pre(rules: &Rules<'_>, family: Family) -> String {
    format!(
        "-A BF-PRE ! -p tcp -j RETURN
-A BF-PRE -i lo -g BF-PRELO
-A BF-PRE {out} -j {doubt}
-A BF-PRE {delivery} -j {doubt}
-A BF-PRE -m addrtype ! --dst-type LOCAL -j RETURN
-A BF-PRE -m conntrack --ctstate INVALID -j {doubt}
{first}-A BF-PRE -p tcp -m conntrack --ctdir ORIGINAL {captured} {tproxy}
-A BF-PRE {known} -j RETURN
-A BF-PRE -p tcp --syn -j {doubt}
-A BF-PRE -j {doubt}
",
        out = is(CAPTURED_OUT),
        delivery = is(DELIVERY),
        doubt = doubt(rules.mode),
        first = first("BF-PRE", rules.mode, CAPTURED_IN),
        captured = is(CAPTURED_IN),
        tproxy = tproxy(family, rules.inbound_port),
        known = is_not(0),
    )
}

fn pre_lo(rules: &Rules<'_>, family: Family) -> String {
    let original = format!("-p tcp -m conntrack --ctdir ORIGINAL {}", is(CAPTURED_OUT));
    let refused = match family {
        Family::V4 => String::new(),
        Family::V6 => ["-s", "-d"].map(|end| format!("-A BF-PRELO {end} fe80::/10 {original} -j DROP\n")).concat(),
    };
    format!(
        "{refused}-A BF-PRELO {original} {tproxy}
-A BF-PRELO {captured} -j RETURN
-A BF-PRELO {delivery} -j RETURN
-A BF-PRELO {older} -j RETURN
-A BF-PRELO {known} -j DROP
{link_local}-A BF-PRELO -p tcp --syn -j {doubt}
-A BF-PRELO -j {doubt}
",
        captured = is(CAPTURED_OUT),
        tproxy = tproxy(family, rules.outbound_port),
        delivery = is(DELIVERY),
        older = is(OLDER),
        known = is_not(0),
        link_local = link_local("BF-PRELO", rules.mode, family),
        doubt = doubt(rules.mode),
    )
}

/// Belt and braces: nothing uncaptured is delivered, nothing captured leaves. It would if somebody deleted our routing
/// rules.
fn guards(mode: Mode) -> String {
    format!(
        "-A BF-IN ! -i lo -p tcp --syn -m conntrack --ctdir ORIGINAL {uncaptured} -j {doubt}
-A BF-POST ! -p tcp -j RETURN
-A BF-POST ! -o lo {out} -j {doubt}
-A BF-POST ! -o lo {delivery} -j {doubt}
",
        uncaptured = is_not(CAPTURED_IN),
        doubt = doubt(mode),
        out = is(CAPTURED_OUT),
        delivery = is(DELIVERY),
    )
}

/// Accepting in `nat` ends it: nobody after us translates these.
fn nat() -> String {
    let (out, delivery) = (is(CAPTURED_OUT), is(DELIVERY));
    format!(
        "-A BF-IDD -p tcp {delivery} -j ACCEPT
-A BF-IDS -p tcp {out} -j ACCEPT
-A BF-IDS -p tcp {delivery} -j ACCEPT
"
    )
}

fn tproxy(family: Family, port: u16) -> String {
    format!("-j TPROXY --on-ip {} --on-port {port}", family.loopback())
}

fn remember(kind: u32) -> String {
    format!("-j CONNMARK --set-xmark {kind:#010x}/{MASK:#010x}")
}

fn is(kind: u32) -> String {
    format!("-m connmark --mark {kind:#010x}/{MASK:#010x}")
}

fn is_not(kind: u32) -> String {
    format!("-m connmark ! --mark {kind:#010x}/{MASK:#010x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::text::{Sample, enforcing, shadowing};

    fn both(sample: &Sample) -> [String; 2] {
        Family::BOTH.map(|family| text(&sample.rules(), family, &Visits::default()))
    }

    #[test]
    fn every_chain_is_declared_hooked_or_visited_and_committed() {
        for text in both(&enforcing()) {
            for chain in MANGLE.iter().chain(&NAT) {
                assert!(text.contains(&format!(":{chain} - [0:0]\n")), "{chain}");
                assert!(text.contains(&format!(" {chain}\n")), "nothing leads to {chain}");
            }
            assert_eq!(text.matches("COMMIT\n").count(), TABLES.len());
        }
    }

    #[test]
    fn each_family_gets_its_own_listener_and_controls() {
        let [v4, v6] = both(&enforcing());
        assert!(v4.contains("--on-ip 127.0.0.1 --on-port 15001") && v4.contains("--on-ip 127.0.0.1 --on-port 15006"));
        assert!(v6.contains("--on-ip ::1 --on-port 15001") && v6.contains("--on-ip ::1 --on-port 15006"));
        assert!(v4.contains("-d 10.0.0.9 --dport 8443 -m cgroup --path \"/mesh/ca\" -m owner --uid-owner 64701"));
        assert!(v6.contains("-d fd00::9 --dport 8443 ") && !v6.contains("10.0.0.9") && !v4.contains("fd00::9"));
    }

    #[test]
    fn an_exemption_always_takes_cgroup_and_user() {
        for text in both(&enforcing()).into_iter().chain(both(&shadowing())) {
            let exempting: Vec<&str> = text.lines().filter(|line| line.ends_with("-j BF-OWN")).collect();
            assert_eq!(exempting.len(), 2);
            assert!(exempting.iter().all(|line| line.contains("-m cgroup --path") && line.contains("--uid-owner")));
        }
    }

    #[test]
    fn enforce_lets_nothing_unknown_by_and_shadow_does() {
        for chain in ["BF-OUT", "BF-PRE", "BF-PRELO", "BF-POST"] {
            let last = |text: String| {
                let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(&format!("-A {chain} "))).collect();
                lines.last().unwrap().rsplit(' ').next().unwrap().to_owned()
            };
            assert!(both(&enforcing()).map(last).iter().all(|verdict| verdict == "DROP"), "{chain}");
            assert!(both(&shadowing()).map(last).iter().all(|verdict| verdict == "RETURN"), "{chain}");
        }
    }

    #[test]
    fn nothing_new_is_captured_in_observe_mode_and_what_was_captured_is_still_steered() {
        let observe = both(&Sample::of(Mode::Observe, "/mesh/enforcer"));
        for (observe, shadow) in observe.into_iter().zip(both(&shadowing())) {
            let taken: Vec<&str> = shadow.lines().filter(|line| !observe.lines().any(|kept| kept == *line)).collect();
            assert_eq!(taken.len(), 2, "{taken:#?}");
            assert!(taken.iter().all(|line| line.contains("--ctstate NEW") && line.contains("--set-xmark")));
        }
    }

    #[test]
    fn loading_again_moves_the_jumps_to_the_top_and_removing_takes_all_of_them() {
        let visits = [2, 1, 0, 1, 1, 1];
        let again = text(&enforcing().rules(), Family::V4, &visits);
        assert_eq!(again.matches("-D OUTPUT -j BF-OUT\n").count(), 2);
        assert!(again.find("-D OUTPUT -j BF-OUT").unwrap() < again.find("-I OUTPUT 1 -j BF-OUT").unwrap());
        let removal = removal(&visits);
        assert!(!removal.contains("-I ") && !removal.contains("-A "));
        assert!(!removal.contains("-D POSTROUTING -j BF-POST"), "it does not visit: deleting it would fail");
        assert!(MANGLE.iter().chain(&NAT).all(|chain| removal.contains(&format!("-X {chain}\n"))));
    }

    #[test]
    fn a_backslash_in_a_name_survives_the_quotes() {
        let sample = Sample::of(Mode::Enforce, "/a\\x2db");
        assert!(both(&sample)[0].contains("--path \"/a\\\\x2db\""));
    }
}
