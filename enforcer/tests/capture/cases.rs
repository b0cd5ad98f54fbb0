//! What must hold, for nft and for iptables.

use std::fs;

use super::lab::{Held, Lab, Part, Seen, kill_pid, must, wait_for};
use super::roles::PORT;

/// One test.
pub struct Case {
    pub name: &'static str,
    pub backend: &'static str,
    pub run: fn(&'static str),
}

pub fn all() -> impl Iterator<Item = Case> {
    let both = |nft, iptables, run| {
        [Case { name: nft, backend: "nft", run }, Case { name: iptables, backend: "iptables", run }]
    };
    [
        both("captures_exactly_nft", "captures_exactly_iptables", captures_exactly as fn(&'static str)),
        both("captures_exactly_shadowing_nft", "captures_exactly_shadowing_iptables", captures_exactly_shadowing),
        both("enforce_stays_closed_nft", "enforce_stays_closed_iptables", enforce_stays_closed),
        both("shadow_needs_no_routes_nft", "shadow_needs_no_routes_iptables", shadow_needs_no_routes),
        both("shadow_opens_nft", "shadow_opens_iptables", shadow_opens),
        both("a_killed_guard_is_replaced_nft", "a_killed_guard_is_replaced_iptables", a_killed_guard_is_replaced),
        both("flushed_rules_come_back_nft", "flushed_rules_come_back_iptables", flushed_rules_come_back),
        both("deleted_routes_come_back_nft", "deleted_routes_come_back_iptables", deleted_routes_come_back),
        both("observe_leaves_no_trace_nft", "observe_leaves_no_trace_iptables", observe_leaves_no_trace),
        both("direct_connections_survive_nft", "direct_connections_survive_iptables", direct_connections_survive),
        both("captured_connections_survive_nft", "captured_connections_survive_iptables", captured_connections_survive),
        both("a_fresh_start_resets_nft", "a_fresh_start_resets_iptables", a_fresh_start_resets),
        both("spared_marks_end_nft", "spared_marks_end_iptables", spared_marks_end),
        both("switches_nft", "switches_iptables", switches),
        both("removes_every_trace_nft", "removes_every_trace_iptables", removes_every_trace),
        both("marks_do_not_help_nft", "marks_do_not_help_iptables", marks_do_not_help),
        both("devices_come_and_go_nft", "devices_come_and_go_iptables", devices_come_and_go),
        both("control_is_exempt_nft", "control_is_exempt_iptables", control_is_exempt),
        both(
            "another_engine_takes_over_from_nft",
            "another_engine_takes_over_from_iptables",
            another_engine_takes_over,
        ),
        both("many_deliveries", "many_deliveries_of_v6", many_deliveries),
        both("the_root_cgroup_is_refused_nft", "the_root_cgroup_is_refused_iptables", the_root_cgroup_is_refused),
    ]
    .into_iter()
    .flatten()
}

const HOST: [&str; 2] = ["10.77.0.1", "[fd77::1]"];
const REMOTE: [&str; 2] = ["10.77.0.2", "[fd77::2]"];
const LOOPBACK: [&str; 3] = ["127.0.0.1", "127.9.9.9", "[::1]"];

fn at(ip: &str) -> String {
    format!("{ip}:{PORT}")
}

fn ip_of(addr: &str) -> &str {
    addr.rsplit_once(':').unwrap().0
}

fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.start_servers();
    lab
}

/// Through the relay once, which saw exactly what the client dialled and who it is; the server saw the client's address.
fn assert_captured(seen: &Seen, direction: &str, to: &str, server_sees: &str) {
    let Seen::Heard { local, lines } = seen else { panic!("{direction} to {to}: {seen:?}") };
    let [relay, server, echo] = lines.as_slice() else { panic!("{direction} to {to}: {seen:?}") };
    assert_eq!(*relay, format!("{direction} {to} {local} -"));
    let peer = server.strip_prefix("peer ").unwrap_or_else(|| panic!("{seen:?}"));
    assert_eq!(ip_of(peer), server_sees, "{seen:?}");
    assert_ne!(peer, local, "the port cannot be kept");
    assert_eq!(echo, "hello");
}

fn assert_plain(seen: &Seen) {
    let Seen::Heard { local, lines } = seen else { panic!("{seen:?}") };
    assert_eq!(*lines, [format!("peer {local}"), "hello".to_owned()]);
}

fn assert_failed(seen: &Seen) {
    assert!(matches!(seen, Seen::Failed { .. }), "{seen:?}");
}

fn local_ip(seen: &Seen) -> String {
    let Seen::Heard { local, .. } = seen else { panic!("{seen:?}") };
    ip_of(local).to_owned()
}

fn assert_all_captured(lab: &Lab) {
    for (host, remote) in HOST.iter().zip(REMOTE) {
        assert_captured(&lab.client(&lab.host, &at(remote), &[]), "out", &at(remote), host);
        assert_captured(&lab.client(&lab.remote, &at(host), &[]), "in", &at(host), remote);
    }
    for own in HOST.iter().chain(&LOOPBACK) {
        let seen = lab.client(&lab.host, &at(own), &[]);
        assert_captured(&seen, "out", &at(own), &local_ip(&seen));
    }
    let odd = lab.client(&lab.host, &at("10.77.0.1"), &["from=127.0.0.7"]);
    assert_captured(&odd, "out", &at("10.77.0.1"), "127.0.0.7");
}

fn captures_exactly(backend: &'static str) {
    let lab = lab();
    let enforcer = lab.enforcer(&[backend, "enforce"]);
    assert_all_captured(&lab);
    for (host, remote) in HOST.iter().zip(REMOTE) {
        let bound = lab.client(&lab.host, &at(remote), &["device=h0"]);
        assert_captured(&bound, "out", &at(remote), host);
    }
    for from in ["fd77::1", "::"] {
        assert_failed(&lab.client(&lab.host, &link_local(&lab), &[&format!("from={from}")]));
    }
    enforcer.kill();
}

fn captures_exactly_shadowing(backend: &'static str) {
    let lab = lab();
    let enforcer = lab.enforcer(&[backend, "shadow"]);
    assert_all_captured(&lab);
    // It cannot be captured, and shadow breaks nothing.
    for from in ["fd77::1", "::"] {
        let Seen::Heard { lines, .. } = lab.client(&lab.host, &link_local(&lab), &[&format!("from={from}")]) else {
            panic!("link-local from {from}")
        };
        assert_eq!(lines.len(), 2, "{lines:?}");
    }
    enforcer.kill();
}

/// The remote's link-local address, as a program of the host dials it.
fn link_local(lab: &Lab) -> String {
    let links = must("ip", &["-n", &lab.remote, "-6", "-o", "addr", "show", "dev", "r0", "scope", "link"]);
    let address = links.split_whitespace().find(|word| word.starts_with("fe80")).unwrap();
    let address = address.split('/').next().unwrap();
    let link = lab.ip(&["-o", "link", "show", "h0"]);
    let index = link.split(':').next().unwrap();
    format!("[{address}%{index}]:{PORT}")
}

fn assert_closed(lab: &Lab, backend: &str) {
    for to in REMOTE.iter().chain(&HOST).chain(&LOOPBACK) {
        let seen = lab.client(&lab.host, &at(to), &[]);
        assert_failed(&seen);
        if backend == "nft" {
            assert_refused_at_once(&seen);
        }
    }
    for host in HOST {
        assert_failed(&lab.client(&lab.remote, &at(host), &[]));
    }
    assert_eq!(lab.seen_at_remote(), 0, "something left the host");
}

fn assert_refused_at_once(seen: &Seen) {
    let Seen::Failed { kind, after } = seen else { panic!("{seen:?}") };
    assert_eq!(kind, "ConnectionRefused");
    assert!(*after < 1000, "{seen:?}");
}

fn enforce_stays_closed(backend: &'static str) {
    let lab = lab();
    let before = lab.traces();
    lab.enforcer(&[backend, "enforce"]).kill();
    assert_closed(&lab, backend);
    for device in ["h0", "lo"] {
        assert_failed(&lab.client(&lab.host, &at("10.77.0.2"), &[&format!("device={device}")]));
    }
    assert_eq!(lab.seen_at_remote(), 0);
    let again = lab.enforcer(&[backend, "enforce"]);
    assert_all_captured(&lab);
    again.kill();
    lab.remove_leftovers(backend);
    assert_eq!(lab.traces(), before);
    assert_plain(&lab.client(&lab.host, &at("10.77.0.2"), &[]));
    lab.remove_leftovers(backend);
}

fn wait_until_open(lab: &Lab, before: &str) {
    wait_for("every trace gone", || lab.traces() == before);
    for to in REMOTE.iter().chain(&HOST).chain(&LOOPBACK) {
        assert_plain(&lab.client(&lab.host, &at(to), &[]));
    }
}

fn shadow_opens(backend: &'static str) {
    let lab = lab();
    let before = lab.traces();
    for signal in ["-KILL", "-TERM"] {
        let enforcer = lab.enforcer(&[backend, "shadow"]);
        assert_captured(&lab.client(&lab.host, &at("10.77.0.2"), &[]), "out", &at("10.77.0.2"), "10.77.0.1");
        kill_pid("-TERM", guard_of(&enforcer));
        kill_pid("-INT", guard_of(&enforcer));
        assert_ne!(lab.traces(), before);
        kill_pid(signal, enforcer.pid());
        wait_until_open(&lab, &before);
        assert!(!enforcer.has_ended());
    }
    // A successor that starts while the guard is still at work.
    lab.enforcer(&[backend, "shadow"]).kill();
    let successor = lab.enforcer(&[backend, "enforce"]);
    assert_all_captured(&lab);
    successor.kill();
    assert_failed(&lab.client(&lab.host, &at("10.77.0.2"), &[]));
}

/// Somebody deleted our routing rules: what was steered leaves as it is, or not at all.
fn shadow_needs_no_routes(backend: &'static str) {
    let lab = lab();
    let mut enforcer = lab.enforcer(&[backend, "shadow"]);
    delete_routing_rules(&lab);
    for to in REMOTE {
        assert_plain(&lab.client(&lab.host, &at(to), &[]));
    }
    assert_eq!(enforcer.order("switch enforce"), "done");
    let seen = lab.seen_at_remote();
    for to in REMOTE {
        assert_failed(&lab.client(&lab.host, &at(to), &[]));
    }
    assert_eq!(lab.seen_at_remote(), seen, "something left the host");
    enforcer.kill();
}

fn delete_routing_rules(lab: &Lab) {
    for family in ["-4", "-6"] {
        for preference in ["30", "31"] {
            lab.ip(&[family, "rule", "del", "pref", preference]);
        }
    }
}

/// The only child that stays.
fn guard_of(enforcer: &Part) -> u32 {
    let pid = enforcer.pid();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let children = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("children")).unwrap());
    let children = children.collect::<Vec<_>>().concat();
    children.split_whitespace().next().expect("there is a guard").parse().unwrap()
}

fn a_killed_guard_is_replaced(backend: &'static str) {
    let lab = lab();
    let before = lab.traces();
    let mut enforcer = lab.enforcer(&[backend, "shadow"]);
    assert_eq!(enforcer.order("refresh"), "refreshed false");
    kill_pid("-KILL", guard_of(&enforcer));
    wait_for("a new guard", || enforcer.order("refresh") == "refreshed true");
    assert_captured(&lab.client(&lab.host, &at("10.77.0.2"), &[]), "out", &at("10.77.0.2"), "10.77.0.1");
    enforcer.kill();
    wait_until_open(&lab, &before);
}

/// What `systemctl restart nftables` does, and smaller damage.
fn flushed_rules_come_back(backend: &'static str) {
    let lab = lab();
    let before = lab.traces();
    let damages: &[&[&str]] = match backend {
        "nft" => &[
            &["nft", "flush", "ruleset"],
            &["nft", "flush", "chain", "inet", "bonafide", "out"],
            &["nft", "insert", "rule", "inet", "bonafide", "out", "accept"],
            &["nft", "add table inet bonafide { flags dormant; }"],
        ],
        _ => &[
            &["nft", "flush", "ruleset"],
            &["iptables-nft", "-t", "mangle", "-F", "OUTPUT"],
            &["ip6tables-nft", "-t", "mangle", "-F", "BF-OUT"],
            &["ip6tables-nft", "-t", "mangle", "-I", "BF-OUT", "-j", "ACCEPT"],
            &["iptables-nft", "-t", "nat", "-F"],
        ],
    };
    for mode in ["enforce", "shadow"] {
        let mut enforcer = lab.enforcer(&[backend, mode]);
        for damage in damages {
            assert_eq!(enforcer.order("refresh"), "refreshed false");
            lab.on_host(damage);
            assert_eq!(enforcer.order("refresh"), "refreshed true", "{damage:?}");
            assert_eq!(enforcer.order("refresh"), "refreshed false", "{damage:?}");
            assert_all_captured(&lab);
        }
        // Others may change what is theirs.
        lab.on_host(&["nft", "add table inet theirs; add chain inet theirs c; add rule inet theirs c accept"]);
        assert_eq!(enforcer.order("refresh"), "refreshed false");
        lab.on_host(&["nft", "delete", "table", "inet", "theirs"]);
        assert_eq!(enforcer.order("remove"), "done");
        assert!(enforcer.has_ended());
        assert_eq!(lab.traces(), before);
    }
}

fn deleted_routes_come_back(backend: &'static str) {
    let lab = lab();
    let before = lab.traces();
    let mut enforcer = lab.enforcer(&[backend, "enforce"]);
    let mut comes_back = || {
        assert_eq!(enforcer.order("refresh"), "refreshed true");
        assert_eq!(enforcer.order("refresh"), "refreshed false");
    };
    for family in ["-4", "-6"] {
        for preference in ["30", "31"] {
            lab.ip(&[family, "rule", "del", "pref", preference]);
            comes_back();
        }
        lab.ip(&[family, "route", "flush", "table", "30808"]);
        comes_back();
    }
    delete_routing_rules(&lab);
    comes_back();
    assert_all_captured(&lab);
    // Nothing can be put right while `lo` is down.
    lab.ip(&["link", "set", "lo", "down"]);
    assert_eq!(enforcer.order("refresh"), "refreshed false");
    lab.ip(&["link", "set", "lo", "up"]);
    assert_eq!(enforcer.order("remove"), "done");
    assert!(enforcer.has_ended());
    assert_eq!(lab.traces(), before);
}

fn switches(backend: &'static str) {
    let lab = lab();
    let before = lab.traces();
    let mut enforcer = lab.enforcer(&[backend, "shadow"]);
    assert_eq!(enforcer.order("switch enforce"), "done");
    assert_all_captured(&lab);
    let seen = lab.seen_at_remote();
    enforcer.kill();
    assert_failed(&lab.client(&lab.host, &at("10.77.0.2"), &[]));
    assert_eq!(lab.seen_at_remote(), seen);

    let mut enforcer = lab.enforcer(&[backend, "enforce"]);
    assert_eq!(enforcer.order("switch shadow"), "done");
    assert_all_captured(&lab);
    enforcer.kill();
    wait_until_open(&lab, &before);
}

fn observe_leaves_no_trace(backend: &'static str) {
    let lab = lab();
    let before = lab.traces();
    // An enforcing predecessor's rules would cut the host off.
    lab.enforcer(&[backend, "enforce"]).kill();
    let mut enforcer = lab.enforcer(&[backend, "observe"]);
    assert_eq!(lab.traces(), before);
    wait_until_open(&lab, &before);
    for mode in ["shadow", "enforce"] {
        assert_eq!(enforcer.order(&format!("switch {mode}")), "done");
        assert_all_captured(&lab);
        assert_eq!(enforcer.order("switch observe"), "done");
        wait_for("the rules gone", || enforcer.order("refresh") == "refreshed true");
        wait_until_open(&lab, &before);
        assert_eq!(enforcer.order("refresh"), "refreshed false");
    }
    enforcer.kill();
    wait_until_open(&lab, &before);
}

/// From host to remote and back, inside the host, over both families.
fn held(lab: &Lab) -> Vec<Held> {
    let (host, remote) = (lab.host.as_str(), lab.remote.as_str());
    let pairs = HOST.iter().zip(REMOTE).flat_map(|(own, far)| [(host, far), (remote, *own), (host, *own)]);
    pairs.chain(LOOPBACK.map(|own| (host, own))).map(|(from, to)| lab.hold(from, &at(to))).collect()
}

fn assert_all_alive(held: &mut [Held]) {
    for one in held {
        one.assert_alive();
    }
}

/// Idle ones, busy ones, and those that say nothing but goodbye.
fn direct_connections_survive(backend: &'static str) {
    let lab = lab();
    let mut enforcer = lab.enforcer(&[backend, "observe"]);
    let mut busy = held(&lab);
    let (mut idle, mut parting, mut later) = (held(&lab), held(&lab), held(&lab));
    assert!(busy.iter().all(|one| one.is_direct()));
    for mode in ["shadow", "enforce", "observe", "enforce", "shadow", "observe"] {
        assert_eq!(enforcer.order(&format!("switch {mode}")), "done");
        assert_all_alive(&mut busy);
        enforcer.order("refresh");
        assert_all_alive(&mut busy);
        if mode == "enforce" {
            // Its first packet since the switch is its last.
            for one in parting.drain(..).take(4) {
                one.assert_closes();
            }
        }
    }
    assert_all_alive(&mut idle);
    assert_eq!(enforcer.order("switch enforce"), "done");
    assert_all_captured(&lab);
    assert_all_alive(&mut idle);
    assert_all_alive(&mut busy);
    assert_all_alive(&mut later);
    for one in later {
        one.assert_closes();
    }
    enforcer.kill();
}

fn captured_connections_survive(backend: &'static str) {
    let lab = lab();
    let before = lab.traces();
    let mut enforcer = lab.enforcer(&[backend, "enforce"]);
    let mut captured = held(&lab);
    assert!(captured.iter().all(|one| !one.is_direct()));
    let mut direct = Vec::new();
    for mode in ["shadow", "observe", "enforce", "observe"] {
        assert_eq!(enforcer.order(&format!("switch {mode}")), "done");
        for _ in 0..4 {
            enforcer.order("refresh");
            assert_all_alive(&mut captured);
            assert_all_alive(&mut direct);
        }
        if mode == "observe" {
            // Nothing new is captured meanwhile.
            direct.extend(held(&lab));
            assert!(direct.iter().all(Held::is_direct));
        }
        let stays = captured.pop().unwrap();
        stays.assert_closes();
    }
    assert_ne!(lab.traces(), before);
    drop(captured);
    wait_for("the rules gone with the last captured connection", || enforcer.order("refresh") == "refreshed true");
    assert_eq!(lab.traces(), before);
    assert_all_alive(&mut direct);
    enforcer.kill();
}

fn a_fresh_start_resets(backend: &'static str) {
    let lab = lab();
    let mut older = held(&lab);
    let mut first = lab.enforcer(&[backend, "observe"]);
    assert_eq!(first.order("switch enforce"), "done");
    assert_all_alive(&mut older);
    first.kill();
    let second = lab.enforcer(&[backend, "enforce"]);
    // iptables cannot reset, and lets them hang.
    let (dead, answer) = if backend == "nft" { (older.len(), "error") } else { (2, "silent") };
    for one in older.iter_mut().take(dead) {
        let said = one.try_it();
        assert!(said.starts_with(answer), "its predecessor spared it, this one does not: {said}");
    }
    second.kill();
}

/// With the connection goes what let its packets pass.
fn spared_marks_end(backend: &'static str) {
    let lab = lab();
    let mut enforcer = lab.enforcer(&[backend, "observe"]);
    let older = held(&lab);
    assert_eq!(enforcer.order("switch enforce"), "done");
    assert_eq!(lab.spared().len(), older.len());
    drop(older);
    wait_for("the marks gone", || {
        enforcer.order("refresh");
        lab.spared().is_empty()
    });
    let again = held(&lab);
    assert!(again.iter().all(|one| !one.is_direct()));
    enforcer.kill();
}

fn removes_every_trace(backend: &'static str) {
    let lab = lab();
    let before = lab.traces();
    for mode in ["enforce", "shadow"] {
        let mut enforcer = lab.enforcer(&[backend, mode]);
        assert_ne!(lab.traces(), before);
        assert_eq!(enforcer.order("remove"), "done");
        assert!(enforcer.has_ended());
        assert_eq!(lab.traces(), before);
    }
}

/// `SO_MARK` takes only `CAP_NET_RAW`. Whatever the mark, nothing of it leaves while no enforcer runs.
fn marks_do_not_help(backend: &'static str) {
    let lab = lab();
    lab.enforcer(&[backend, "enforce"]).kill();
    for mark in [0x539_u32, 0x0100_0000, 0x0200_0000, 0x0300_0000, 0x0800_0000, 0x0a00_0000, 0xffff_ffff] {
        let option = format!("mark={mark}");
        for to in REMOTE {
            let Seen::Failed { kind, .. } = lab.raw_client(&at(to), &[&option]) else { panic!("mark {mark:#x}") };
            assert_ne!(kind, "PermissionDenied", "the mark could not even be set");
        }
    }
    assert_eq!(lab.seen_at_remote(), 0, "a forged mark left the host");
}

fn devices_come_and_go(backend: &'static str) {
    let lab = lab();
    let enforcer = lab.enforcer(&[backend, "enforce"]);
    lab.ip(&["link", "set", "lo", "down"]);
    lab.ip(&["link", "set", "lo", "up"]);
    wait_for("the routes of lo", || {
        lab.ip(&["-6", "route", "show", "table", "30808"]).contains("local default dev lo")
    });
    assert_captured(&lab.client(&lab.host, &at("[fd77::2]"), &[]), "out", &at("[fd77::2]"), "[fd77::1]");
    lab.ip(&["link", "add", "new0", "type", "veth", "peer", "name", "new1"]);
    for device in ["new0", "new1"] {
        lab.ip(&["link", "set", device, "up"]);
    }
    for family in ["-4", "-6"] {
        let routes = || lab.ip(&[family, "route", "show", "table", "30808"]);
        wait_for("the routes of a new device", || routes().contains("local default dev new0"));
    }
    enforcer.kill();
}

fn control_is_exempt(backend: &'static str) {
    let lab = lab();
    let (cgroup, uid) = (lab.cgroup("other"), 64_701);
    for to in REMOTE {
        let path = cgroup.display().to_string();
        let mut enforcer = lab.enforcer(&[backend, "enforce", &path, &uid.to_string(), &at(to)]);
        assert_plain(&lab.client_in(&cgroup, uid, &at(to)));
        let Seen::Heard { lines, .. } = lab.client_in(&cgroup, uid + 1, &at(to)) else { panic!("another user") };
        assert!(lines[0].starts_with("out "), "another user is captured: {lines:?}");
        let other_port = format!("{}:{}", to, PORT + 1);
        let Seen::Heard { lines, .. } = lab.client_in(&cgroup, uid, &other_port) else { panic!("another port") };
        assert!(lines[0].starts_with("out "), "another port is captured: {lines:?}");
        // What a service manager does when it starts a unit again.
        wait_for("the cgroup is empty", || fs::remove_dir(&cgroup).is_ok());
        fs::create_dir(&cgroup).unwrap();
        assert_eq!(enforcer.order("refresh"), "refreshed true");
        assert_plain(&lab.client_in(&cgroup, uid, &at(to)));
        assert_eq!(enforcer.order("refresh"), "refreshed false");
        enforcer.kill();
    }
}

fn the_root_cgroup_is_refused(backend: &'static str) {
    let lab = lab();
    let before = lab.traces();
    let root = lab.cgroup("..");
    let mut enforcer = lab.try_enforcer(&root, &[backend, "enforce"]);
    let line = enforcer.line();
    assert!(line.starts_with("error: this process lives in the root cgroup"), "{line}");
    assert!(!enforcer.has_ended());
    assert_eq!(lab.traces(), before);
}

/// The configuration names another backend after a crash in enforce mode.
fn another_engine_takes_over(backend: &'static str) {
    let lab = lab();
    let before = lab.traces();
    lab.enforcer(&[backend, "enforce"]).kill();
    let other = if backend == "nft" { "iptables" } else { "nft" };
    let mut enforcer = lab.enforcer(&[other, "enforce"]);
    assert_all_captured(&lab);
    assert_eq!(enforcer.order("remove"), "done");
    assert!(enforcer.has_ended());
    assert_eq!(lab.traces(), before);
}

/// More than there are delivery ports, within one TIME-WAIT.
fn many_deliveries(backend: &'static str) {
    let lab = lab();
    let loopback = if backend == "nft" { "127.0.0.1" } else { "::1" };
    let to = if backend == "nft" { at("127.0.0.1") } else { at("[::1]") };
    lab.deliver(loopback, &to, 25_000);
}
