//! The control experiment: without the mesh the same programs work, and the same checks see them in the clear.

use bonafide_tests::hybrid_tls::assert_only_hybrid_tls;
use bonafide_tests::process::run;
use bonafide_tests::programs;
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::world::BareWorld;

#[test]
fn without_the_mesh_every_program_works_and_the_wire_shows_the_payload() {
    let world = BareWorld::create();
    let (a, b) = (&world.topology().a, &world.topology().b);
    let capture = world.capture();
    let _servers = [
        programs::nginx(&world, b, 80, "a marker in a page"),
        programs::redis(&world, b, 6379),
        programs::sshd(&world, b, 22),
        programs::postgres(&world, b, 5432),
        programs::echo_server(&world, b, 7),
    ];
    let script = programs::script(&world, "say.py");
    for family in Family::BOTH {
        let at = |port| Site::B.at(family, port);
        let page = run(&mut programs::curl(a, &programs::curl_exe(), at(80))).success();
        assert_eq!(page, "a marker in a page");
        let sum = run(&mut programs::psql(a, at(5432), "select 20 + 22")).success();
        assert_eq!(sum, "42\n");
        assert_eq!(run(&mut programs::redis_cli(a, at(6379), &["ping"])).success(), "PONG\n");
        let key = run(&mut programs::ssh_keyscan(a, at(22))).success();
        assert!(key.contains("ssh-ed25519 "), "{key}");
        let said = run(&mut programs::say(a, &script, at(7), "hello")).success();
        assert_eq!(said, "hello\n");
    }
    let traffic = capture.finish();
    assert!(traffic.shows(b"a marker in a page"), "the check for markers is blind");
    let judged = std::panic::catch_unwind(|| assert_only_hybrid_tls(&traffic, |_| false));
    assert!(judged.is_err(), "the check for TLS took plaintext for it");
}

#[test]
fn a_killed_program_leaves_no_process_in_its_namespace() {
    let world = BareWorld::create();
    let name = world.topology().b.path();
    let server = programs::nginx(&world, &world.topology().b, 80, "page");
    assert!(!world.topology().b.pids().is_empty());
    drop(server);
    let dir = world.dir().to_owned();
    drop(world);
    assert!(!name.exists() && !dir.exists(), "a world outlives its value");
}
