//! What the rules mean.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;

use bonafide_policy::{Mode, Place, Policy, SameHost, Subject, Verdict};
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::NearMiss;

const HEAD: &str = r#"mode = "enforce"
mesh = ["10.77.0.0/16", "fd77::/16"]
[[workload]]
name = "web"
exe = "/bin/web"
[[workload]]
name = "db"
exe = "/bin/db"
[[workload]]
name = "cron"
exe = "/bin/cron"
[[outside]]
name = "dns"
prefixes = ["192.0.2.0/24", "2001:db8:53::/48"]
ports = [53, "8000-8100"]
[[outside]]
name = "internet"
prefixes = ["0.0.0.0/0", "::/0"]
"#;

fn policy(rules: &str) -> Policy {
    Policy::parse("p", &format!("{HEAD}{rules}")).unwrap_or_else(|e| panic!("{e}"))
}

fn rule(name: &str, from: &str, to: &str, ports: &str, action: &str) -> String {
    let ports = if ports.is_empty() { String::new() } else { format!("ports = [{ports}]\n") };
    format!("[[rule]]\nname = \"{name}\"\nfrom = \"{from}\"\nto = \"{to}\"\n{ports}action = \"{action}\"\n")
}

/// Decides between two subjects: a workload's name, or an address with a port.
fn decide(policy: &Policy, from: &str, to: &str, port: u16) -> Verdict {
    let names = (from.parse::<WorkloadName>(), to.parse::<WorkloadName>());
    policy.decide(&subject(from, names.0.as_ref().ok()), &subject(to, names.1.as_ref().ok()), port)
}

fn subject<'n>(text: &str, name: Option<&'n WorkloadName>) -> Subject<'n> {
    match text.parse::<SocketAddr>() {
        Ok(addr) => Subject::Outside(addr),
        Err(_) => Subject::Workload(name.unwrap()),
    }
}

fn nearest(verdict: Verdict) -> Option<NearMiss> {
    match verdict {
        Verdict::Deny(denied) => denied.nearest,
        Verdict::Allow(allowed) => panic!("allowed by {}", allowed.rule),
    }
}

#[test]
fn nothing_matched_is_deny() {
    let empty = policy("");
    for (from, to) in [("web", "db"), ("web", "web"), ("web", "192.0.2.1:53"), ("192.0.2.1:9", "web")] {
        let verdict = decide(&empty, from, to, 53);
        assert!(!verdict.is_allow());
        assert_eq!((verdict.rule(), verdict.to_string().as_str()), (None, "denied: no rule allows it"));
    }
}

#[test]
fn the_first_match_wins() {
    let both = [rule("no", "web", "db", "80", "deny"), rule("yes", "web", "db", "", "allow")];
    let deny_first = policy(&both.concat());
    assert_eq!(decide(&deny_first, "web", "db", 80).to_string(), "denied by rule \"no\"");
    assert_eq!(decide(&deny_first, "web", "db", 81).to_string(), "allowed by rule \"yes\"");
    let allow_first = policy(&[both[1].as_str(), both[0].as_str()].concat());
    assert_eq!(decide(&allow_first, "web", "db", 80).to_string(), "allowed by rule \"yes\"");
}

#[test]
fn rules_have_a_direction() {
    let policy = policy(&rule("r", "web", "db", "", "allow"));
    assert!(decide(&policy, "web", "db", 1).is_allow());
    assert!(!decide(&policy, "db", "web", 1).is_allow());
}

#[test]
fn port_ranges_include_their_ends() {
    let policy = policy(&rule("r", "web", "db", "80, \"8000-8002\", 65535", "allow"));
    for (port, allowed) in
        [(79, false), (80, true), (81, false), (7999, false), (8000, true), (8002, true), (8003, false), (65535, true)]
    {
        assert_eq!(decide(&policy, "web", "db", port).is_allow(), allowed, "port {port}");
    }
}

#[test]
fn outsides_by_ipv4_and_ipv6_prefix_and_port() {
    let policy = policy(&rule("r", "web", "dns", "", "allow"));
    for (to, port, allowed) in [
        ("192.0.2.1:53", 53, true),
        ("[2001:db8:53::1]:53", 53, true),
        ("[::ffff:192.0.2.1]:53", 53, true),
        ("192.0.2.255:8100", 8100, true),
        ("192.0.2.1:54", 54, false),
        ("192.0.3.1:53", 53, false),
        ("[2001:db8:54::1]:53", 53, false),
        ("[::192.0.2.1]:53", 53, false),
    ] {
        assert_eq!(decide(&policy, "web", to, port).is_allow(), allowed, "{to}");
    }
}

#[test]
fn rules_of_every_covering_outside_count() {
    let policy =
        policy(&[rule("not dns", "web", "dns", "53", "deny"), rule("out", "web", "internet", "", "allow")].concat());
    assert_eq!(decide(&policy, "web", "192.0.2.1:53", 53).rule(), Some("not dns"));
    assert_eq!(decide(&policy, "web", "192.0.2.1:54", 54).rule(), Some("out"));
    assert_eq!(decide(&policy, "web", "[2001:db8::1]:53", 53).rule(), Some("out"));
}

#[test]
fn an_address_in_the_mesh_is_never_outside() {
    let policy =
        policy(&[rule("out", "web", "internet", "", "allow"), rule("in", "internet", "web", "", "allow")].concat());
    for addr in ["10.77.0.1:80", "[fd77::1]:80", "127.0.0.1:80", "[::1]:80", "[::ffff:10.77.0.1]:80"] {
        assert!(!decide(&policy, "web", addr, 80).is_allow(), "to {addr}");
        assert!(!decide(&policy, addr, "web", 80).is_allow(), "from {addr}");
    }
    assert!(decide(&policy, "web", "10.78.0.1:80", 80).is_allow());
    assert!(decide(&policy, "198.51.100.7:40000", "web", 80).is_allow());
}

#[test]
fn outside_to_outside_is_deny() {
    let policy =
        policy(&[rule("out", "web", "internet", "", "allow"), rule("in", "internet", "web", "", "allow")].concat());
    assert!(!decide(&policy, "192.0.2.1:1", "192.0.2.2:80", 80).is_allow());
}

#[test]
fn the_nearest_miss_by_each_field() {
    let policy = policy(
        &[rule("web to db", "web", "db", "5432, \"6000-6010\"", "allow"), rule("lookups", "web", "dns", "", "allow")]
            .concat(),
    );
    let miss = |of: &str, field: &str, expected: &str, seen: &str| {
        Some(NearMiss { of: of.into(), field: field.into(), expected: expected.into(), seen: seen.into() })
    };
    for (from, to, port, expected) in [
        ("web", "db", 80, miss("web to db", "ports", "5432, 6000-6010", "80")),
        ("cron", "db", 5432, miss("web to db", "from", "web", "cron")),
        ("web", "cron", 5432, miss("web to db", "to", "db", "cron")),
        ("web", "192.0.2.1:80", 80, miss("lookups", "ports", "53, 8000-8100", "80")),
        ("cron", "192.0.2.1:53", 53, miss("lookups", "from", "web", "cron")),
        ("web", "203.0.113.1:53", 53, miss("lookups", "to", "dns", "203.0.113.1 (internet)")),
        ("gone", "db", 5432, miss("web to db", "from", "web", "gone, which the policy does not know")),
        (
            "10.77.0.9:4000",
            "db",
            5432,
            miss("web to db", "from", "web", "10.77.0.9, which is in the mesh and proved no workload"),
        ),
        ("cron", "web", 80, None),
        ("cron", "db", 80, None),
    ] {
        assert_eq!(nearest(decide(&policy, from, to, port)), expected, "{from} to {to}:{port}");
    }
    let shown = decide(&policy, "cron", "db", 5432).to_string();
    assert_eq!(shown, "denied: no rule allows it; rule \"web to db\" would, but for from: expected web, seen cron");
}

#[test]
fn explanations_are_bounded() {
    let workloads: String = (0..20).map(|i| format!("[[workload]]\nname = \"w{i}\"\nexe = \"/bin/w{i}\"\n")).collect();
    let names: Vec<String> = (0..20).map(|i| format!("\"w{i}\"")).collect();
    let rule = format!("[[rule]]\nname = \"r\"\nfrom = [{}]\nto = \"db\"\naction = \"allow\"\n", names.join(","));
    let policy = policy(&format!("{workloads}{rule}"));
    assert_eq!(nearest(decide(&policy, "web", "db", 1)).unwrap().expected, "w0, w1, w2, w3, w4, w5, w6, w7, 12 more");
}

#[test]
fn who_may_reach_the_mesh() {
    let policy = policy(
        &[
            rule("shadowed by", "cron", "db", "", "deny"),
            rule("shadowed", "cron", "db", "5432", "allow"),
            rule("web to db", "web", "db", "5432", "allow"),
            rule("out", "db", "internet", "", "allow"),
            rule("in", "internet", "cron", "", "allow"),
        ]
        .concat(),
    );
    let may = |name: &str| policy.may_reach_mesh(&name.parse().unwrap());
    assert_eq!([may("web"), may("db"), may("cron"), may("gone")], [true, false, false, false]);
}

#[test]
fn places() {
    let policy = policy("");
    for (addr, place) in [
        ("10.77.255.255", Place::Mesh),
        ("fd77:ffff::", Place::Mesh),
        ("127.255.0.1", Place::Mesh),
        ("::1", Place::Mesh),
        ("::ffff:10.77.0.1", Place::Mesh),
        ("::ffff:127.0.0.1", Place::Mesh),
        ("10.78.0.0", Place::Outside),
        ("fd78::", Place::Outside),
        ("::10.77.0.1", Place::Outside),
    ] {
        assert_eq!(policy.place(addr.parse().unwrap()), place, "{addr}");
    }
}

#[test]
fn outsides_by_name() {
    let policy = policy("");
    for (addr, name) in [
        ("192.0.2.1:53", Some("dns")),
        ("[::ffff:192.0.2.1]:53", Some("dns")),
        ("192.0.2.1:54", Some("internet")),
        ("[2001:db8:53::1]:8000", Some("dns")),
        ("10.77.0.1:53", None),
        ("[::1]:53", None),
    ] {
        assert_eq!(policy.outside(addr.parse().unwrap()), name, "{addr}");
    }
}

#[test]
fn the_rest_of_the_policy() {
    let policy = policy("");
    assert_eq!((policy.mode(), policy.mode().as_str()), (Mode::Enforce, "enforce"));
    assert_eq!(policy.same_host(), SameHost::Verified);
    assert_eq!(policy.digest(), Digest::of(HEAD.as_bytes()));
    assert_eq!(policy.workloads().map(WorkloadName::as_str).collect::<Vec<_>>(), ["web", "db", "cron"]);
    assert!(!policy.is_empty());

    let least = Policy::parse("p", "mode = \"observe\"\nsame_host = \"mtls\"\n").unwrap();
    assert_eq!((least.mode(), least.mode().as_str(), least.same_host()), (Mode::Observe, "observe", SameHost::Mtls));
    assert!(least.is_empty());
    assert_eq!(least.place("10.0.0.1".parse().unwrap()), Place::Outside);
    assert_eq!(least.place("127.0.0.1".parse().unwrap()), Place::Mesh);
}
