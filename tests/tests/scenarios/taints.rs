//! Evidence against a program: refused by default, allowed where the policy says so, recorded in any case.

use std::process::Command;

use bonafide_proto::record::{End, Reason};
use bonafide_proto::taint::Taint;
use bonafide_tests::ends::{Ends, assert_refused, digest_of};
use bonafide_tests::node::Backend;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::run;
use bonafide_tests::programs::{curl_exe, interpret, nginx, nginx_exe, script, url};
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::world::{BareWorld, World};

const PAGE: &str = "marker-6f1a0b7c2d934e58";

/// A library that does no harm, and is there.
const LIBRARY: &str = "libm.so.6";

fn policy(taints: &str) -> Policy {
    // By its content only: what runs from memory has no path.
    let client = format!("[[workload]]\nname = \"test/client\"\nsha256 = \"{}\"\n{taints}", digest_of(&curl_exe()));
    Policy::enforce().lines(&client).program("test/web", &nginx_exe()).allow("client to web", "test/client", "test/web")
}

/// curl, executed by `become.py`.
fn tainted(world: &World, taint: Taint, family: Family) -> Command {
    let how = match taint {
        Taint::Memfd => "memory",
        Taint::Deleted => "deleted",
        _ => "plain",
    };
    let (curl, url) = (curl_exe().display().to_string(), url(Site::B.at(family, 80)));
    let words = [how, &curl, "--silent", "--show-error", "--max-time", "15", &url];
    let mut command = interpret(world.netns(Site::A), &script(world.bare(), "become.py"), &words);
    match taint {
        Taint::Preload => command.env("LD_PRELOAD", LIBRARY),
        Taint::Audit => command.env("LD_AUDIT", LIBRARY),
        _ => &mut command,
    };
    command
}

#[test]
fn a_tainted_program_is_refused_unless_its_workload_may_be_tainted_so() {
    let bare = BareWorld::create();
    let world = World::start(bare, &policy(""), Backend::Nft);
    let _server = nginx(world.bare(), world.netns(Site::B), 80, PAGE);
    let turns = [
        (Taint::Deleted, Family::V4),
        (Taint::Memfd, Family::V6),
        (Taint::Preload, Family::V4),
        (Taint::Audit, Family::V6),
    ];
    for (taint, family) in turns {
        // Reset before curl has looked, it says that it could not connect.
        run(&mut tainted(&world, taint, family)).failed_at_once();
        let record = world.a().records().next(End::Source);
        assert_refused(&record, Reason::NoWorkload);
        let nearest = record.nearest.as_ref().expect("a near miss");
        assert_eq!((nearest.of.as_str(), nearest.field.as_str()), ("test/client", "allow_taints"), "{record:#?}");
        assert!(nearest.seen.contains(taint.as_str()), "{record:#?}");
        assert_eq!(record.source.taints, [taint].into(), "{record:#?}");
        assert_eq!(record.source.digest, Some(digest_of(&curl_exe())), "{record:#?}");
    }

    let allowing = policy("allow_taints = [\"deleted\", \"memfd\", \"preload\", \"audit\"]");
    world.a().set_policy(&allowing);
    // The certificate says how the program is tainted, and the other node allows none of it.
    run(&mut tainted(&world, Taint::Deleted, Family::V4)).failed_at_once();
    let Ends { source, destination } = world.next_flow();
    assert_eq!((source.reason, destination.reason), (Some(Reason::RefusedByPeer), Some(Reason::PeerCertificate)));
    world.b().set_policy(&allowing);
    for (taint, family) in turns {
        assert_eq!(run(&mut tainted(&world, taint, family)).success(), PAGE);
        let ends = world.next_flow();
        ends.assert_allowed("client to web", "test/client", "test/web").assert_closed();
        for record in ends.both() {
            assert_eq!(record.source.taints, [taint].into(), "{record:#?}");
            assert!(record.destination.taints.is_empty(), "{record:#?}");
            assert_eq!(record.source.digest, Some(digest_of(&curl_exe())), "{record:#?}");
        }
    }
    world.finish();
}
