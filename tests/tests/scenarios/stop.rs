//! A node that stopped has left no rule, route, socket, process, cgroup or run file; nor has one that was killed and
//! removed.

use bonafide_proto::record::{End, EndedBy, Reason};
use bonafide_tests::netns::Netns;
use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::must_run;
use bonafide_tests::programs::{echo_server, hold, say, script};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::world::{BareWorld, World};

on_each_backend! {
    a_stopped_node_leaves_nothing,
}

/// Everything of a host's network that a node touches, as the system's own tools print it.
pub(super) fn network(netns: &Netns) -> Vec<(&'static str, String)> {
    [
        "nft list ruleset",
        "ip -4 rule",
        "ip -6 rule",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip -o link",
        "ss -Hltn",
        "iptables-save",
        "ip6tables-save",
    ]
    .map(|question| {
        let words: Vec<&str> = question.split(' ').collect();
        (question, plain(&netns.run(&words)))
    })
    .to_vec()
}

/// Without comments, which hold the time of day, and without counters of the kernel's.
fn plain(printed: &str) -> String {
    let lines = printed.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" expires ").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// Whoever uses iptables leaves its tables, empty: they are the system's, not ours.
pub(super) fn use_iptables(netns: &Netns) {
    for program in ["iptables", "ip6tables"] {
        for (table, chains) in
            [("mangle", &["OUTPUT", "PREROUTING", "POSTROUTING", "INPUT"][..]), ("nat", &["OUTPUT", "POSTROUTING"])]
        {
            for chain in chains {
                for action in ["-A", "-D"] {
                    netns.run(&[program, "-t", table, action, chain, "-j", "ACCEPT"]);
                }
            }
        }
    }
}

fn a_stopped_node_leaves_nothing(backend: Backend) {
    let bare = BareWorld::create();
    let (client, holder) = (script(&bare, "say.py"), script(&bare, "hold.py"));
    let policy = Policy::enforce()
        .script("test/client", &client)
        .script("test/holder", &holder)
        .script("test/server", &script(&bare, "echo_server.py"))
        .allow("client to server", "test/client", "test/server")
        .allow("holder to server", "test/holder", "test/server");
    let before = [Site::A, Site::B].map(|site| {
        let netns = bare.topology().netns(site);
        if backend == Backend::Iptables {
            use_iptables(netns);
        }
        network(netns)
    });
    let mut world = World::start(bare, &policy, backend);
    let server = echo_server(world.bare(), world.netns(Site::B), 7);
    for family in Family::BOTH {
        must_run(&mut say(world.netns(Site::A), &client, Site::B.at(family, 7), "hello"));
        world.next_flow().assert_allowed("client to server", "test/client", "test/server");
    }
    let held = hold(world.bare(), world.netns(Site::A), Site::B.at(Family::V6, 7));
    let cgroups = [Site::A, Site::B].map(|site| world.host(site).node().cgroup().path().to_owned());
    let runs = [Site::A, Site::B].map(|site| world.host(site).node().layout().run());

    // a is stopped in order; b is killed and removed.
    world.on(Site::A, |node, netns| node.stop_cleanly(netns));
    let ended = world.a().records().next(End::Source);
    assert_eq!((ended.reason, ended.ended_by), (Some(Reason::EnforcerStopped), EndedBy::Enforcer), "{ended:#?}");
    let ended = world.b().records().next(End::Destination);
    assert_eq!(ended.reason, Some(Reason::EndedByPeer), "{ended:#?}");
    drop((held, server));
    world.host(Site::B).node().kill_all();
    world.on(Site::B, |node, netns| node.remove_capture(netns));
    world.host(Site::B).node().remove();

    for (site, before) in [Site::A, Site::B].into_iter().zip(before) {
        let after = network(world.netns(site));
        for ((question, before), (_, after)) in before.into_iter().zip(after) {
            assert_eq!(before, after, "{question} on {site:?} is not as it was");
        }
        assert_eq!(world.netns(site).pids(), Vec::<i32>::new(), "processes stay on {site:?}");
    }
    for left in cgroups.iter().chain(&runs) {
        assert!(!left.exists(), "{} stays", left.display());
    }
    world.finish();
}
