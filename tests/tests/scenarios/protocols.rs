//! Protocols in which the client speaks first, the server speaks first, or both talk for long: none notices the mesh.

use bonafide_tests::hybrid_tls::assert_only_hybrid_tls;
use bonafide_tests::node::{AUTHORITY_PORT, Backend};
use bonafide_tests::policy::Policy;
use bonafide_tests::process::{must_run, run};
use bonafide_tests::programs::{exe, postgres, postgres_exe, psql, psql_exe, redis, redis_cli, ssh_keyscan, sshd};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::world::{BareWorld, World};

on_each_backend! {
    postgresql_redis_and_ssh_work,
}

fn postgresql_redis_and_ssh_work(backend: Backend) {
    let policy = Policy::enforce()
        .program("test/psql", &psql_exe())
        .program("test/postgres", &postgres_exe())
        .program("test/redis-cli", &exe("/usr/bin/redis-cli"))
        .program("test/redis", &exe("/usr/bin/redis-server"))
        .program("test/keyscan", &exe("/usr/bin/ssh-keyscan"))
        .program("test/sshd", &exe("/usr/sbin/sshd"))
        .allow("psql", "test/psql", "test/postgres")
        .allow("redis", "test/redis-cli", "test/redis")
        .allow("ssh", "test/keyscan", "test/sshd");
    let world = World::start(BareWorld::create(), &policy, backend);
    let (a, b) = (world.netns(Site::A), world.netns(Site::B));
    let capture = world.bare().capture();
    let _servers = [redis(world.bare(), b, 6379), sshd(world.bare(), b, 22), postgres(world.bare(), b, 5432)];

    for family in Family::BOTH {
        let at = |port| Site::B.at(family, port);
        // A megabyte, so that the answer is more than a packet.
        let answer = must_run(&mut psql(a, at(5432), "select repeat('x', 1 << 20)"));
        assert_eq!(answer.trim_end().len(), 1 << 20);
        world.next_flow().assert_allowed("psql", "test/psql", "test/postgres").assert_closed();

        assert_eq!(must_run(&mut redis_cli(a, at(6379), &["set", "key", "value"])), "OK\n");
        world.next_flow().assert_allowed("redis", "test/redis-cli", "test/redis").assert_closed();
        assert_eq!(must_run(&mut redis_cli(a, at(6379), &["get", "key"])), "value\n");
        world.next_flow().assert_allowed("redis", "test/redis-cli", "test/redis").assert_closed();

        let key = run(&mut ssh_keyscan(a, at(22))).success();
        assert!(key.contains("ssh-ed25519 "), "{key}");
        let ends = world.next_flow();
        ends.assert_allowed("ssh", "test/keyscan", "test/sshd");
        assert!(ends.source.bytes_received > 100, "{ends:#?}");
    }
    let traffic = capture.finish();
    let tunnels = assert_only_hybrid_tls(&traffic, |s| [s.from.port(), s.to.port()].contains(&AUTHORITY_PORT));
    assert_eq!(tunnels, 8, "one for each connection");
    for said in ["SSH-2.0-", "ssh-ed25519", "postgres", "xxxxxxxxxxxxxxxx"] {
        assert!(!traffic.shows(said.as_bytes()), "{said:?} was on the wire in the clear");
    }
    world.finish();
}
