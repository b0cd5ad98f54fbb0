//! The server moves to another port and address, behind port forwarding: the same policy keeps working.

use std::net::SocketAddr;

use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::must_run;
use bonafide_tests::programs::{curl, curl_exe, nginx, nginx_exe};
use bonafide_tests::topology::{Family, Site, forward, virtual_ip};
use bonafide_tests::world::{BareWorld, World};

on_each_backend! {
    a_server_moves_behind_port_forwarding_and_the_policy_stays,
}

fn a_server_moves_behind_port_forwarding_and_the_policy_stays(backend: Backend) {
    let policy = Policy::enforce().program("test/client", &curl_exe()).program("test/web", &nginx_exe()).allow(
        "client to web",
        "test/client",
        "test/web",
    );
    let world = World::start(BareWorld::create(), &policy, backend);
    let (a, b, router) = (world.netns(Site::A), world.netns(Site::B), &world.bare().topology().router);
    for (length, family) in [("24", Family::V4), ("64", Family::V6)] {
        let second = format!("{}/{length}", Site::B.nth_ip(family, 3));
        b.run(&["ip", "addr", "add", &second, "dev", "eth0", "nodad"]);
    }

    // First at home, then on another port, then on another address and port.
    for (host_part, port) in [(2, 80), (2, 8080), (3, 9090)] {
        let _server = nginx(world.bare(), b, port, "here I am");
        for family in Family::BOTH {
            let real = SocketAddr::new(Site::B.nth_ip(family, host_part), port);
            let known = SocketAddr::new(virtual_ip(family), 80);
            forward(router, known, real);
            assert_eq!(must_run(&mut curl(a, &curl_exe(), known)), "here I am");
            let ends = world.next_flow();
            ends.assert_allowed("client to web", "test/client", "test/web").assert_closed();
            assert_eq!(ends.source.destination.addr, Some(known), "the source knows what it dialled");
            assert_eq!(ends.destination.destination.addr, Some(real), "the destination knows where it is");
            assert_eq!(ends.destination.source.addr.unwrap().ip(), Site::A.ip(family));
        }
    }
    world.finish();
}

/// Only nftables: the iptables backend cannot tell what a DNAT of its own host did (`bonafide run --help`).
#[test]
fn the_servers_own_host_forwards_a_port() {
    let policy = Policy::enforce().program("test/client", &curl_exe()).program("test/web", &nginx_exe()).allow(
        "client to web",
        "test/client",
        "test/web",
    );
    let world = World::start(BareWorld::create(), &policy, Backend::Nft);
    let (a, b) = (world.netns(Site::A), world.netns(Site::B));
    let _server = nginx(world.bare(), b, 80, "here I am");
    for family in Family::BOTH {
        let (known, real) = (Site::B.at(family, 8080), Site::B.at(family, 80));
        forward(b, known, real);
        for dialled in [known, real] {
            assert_eq!(must_run(&mut curl(a, &curl_exe(), dialled)), "here I am");
            let ends = world.next_flow();
            ends.assert_allowed("client to web", "test/client", "test/web").assert_closed();
            assert_eq!(ends.source.destination.addr, Some(dialled), "the source knows what it dialled");
            assert_eq!(ends.destination.destination.addr, Some(real), "the destination knows where it is");
            assert_eq!(ends.destination.source.addr.unwrap().ip(), Site::A.ip(family));
        }
    }
    world.finish();
}
