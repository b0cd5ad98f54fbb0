//! Programs that cannot ask the workload endpoint have `bonafide svid` ask it; and a token of one host is checked at the other.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bonafide_tests::node::{Backend, binaries};
use bonafide_tests::operator::bonafide;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::{PATIENCE, must_run};
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, World};

/// The exit code of "answered, and the answer is no".
const REFUSED: i32 = 3;

/// Where `bonafide` itself is a workload that may ask, or one that may not.
fn policy(more: &str) -> Policy {
    let exe = std::fs::canonicalize(binaries().join("bonafide")).unwrap();
    Policy::enforce().program("ops/cli", &exe).lines(more)
}

const ENTITLED: &str = "workload_api = true";

fn world() -> World {
    World::start(BareWorld::create(), &policy(ENTITLED), Backend::Nft)
}

#[test]
fn certificate_key_and_bundle_are_written_for_programs_that_read_files() {
    let world = world();
    let below = world.bare().dir().join("tls");
    let at = below.display().to_string();
    let said = bonafide(world.a().dir(), &["svid", "x509", "--write", &at]).success();
    assert!(said.contains("/ops/cli  serial ") && said.contains(&format!("written to {at}/current\n")), "{said}");
    let current = below.join("current");
    for name in ["svid.pem", "svid_key.pem", "bundle.pem"] {
        assert_eq!(std::fs::metadata(current.join(name)).unwrap().mode() & 0o777, 0o600, "{name}");
    }
    let openssl = |args: &[&str]| must_run(Command::new("openssl").args(args).current_dir(&current));
    let verify = ["verify", "-x509_strict", "-CAfile", "bundle.pem", "-untrusted", "svid.pem", "svid.pem"];
    assert_eq!(openssl(&verify), "svid.pem: OK\n");
    let of_key = openssl(&["pkey", "-in", "svid_key.pem", "-pubout"]);
    assert_eq!(of_key, openssl(&["x509", "-in", "svid.pem", "-noout", "-pubkey"]));
    let roots = bonafide(world.b().dir(), &["svid", "bundle"]).success();
    assert_eq!(roots, std::fs::read_to_string(current.join("bundle.pem")).unwrap());
    world.finish();
}

fn watches(dir: &Path, below: &Path) -> Child {
    let mut command = Command::new(binaries().join("bonafide"));
    command.arg("--dir").arg(dir).args(["svid", "x509", "--watch", "--write"]).arg(below);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn what_was_written_goes_when_the_identity_is_taken_back() {
    let world = world();
    let below = world.bare().dir().join("tls");
    let mut watching = watches(world.a().dir(), &below);
    let key = below.join("current/svid_key.pem");
    wait_until("the files", PATIENCE, || key.exists());
    world.set_policy(&policy(""));
    wait_until("its end", PATIENCE, || watching.try_wait().unwrap().is_some());
    assert_eq!(watching.wait().unwrap().code(), Some(REFUSED));
    assert_eq!(std::fs::read_dir(&below).unwrap().count(), 0, "nothing is left of it");

    let refused = bonafide(world.a().dir(), &["svid", "x509"]);
    assert_eq!((refused.code(), refused.stdout.as_str()), (Some(REFUSED), ""));
    assert!(refused.stderr.contains("no identity issued") && refused.stderr.contains(ENTITLED), "{}", refused.stderr);
    world.finish();
}

#[test]
fn a_token_that_one_host_was_given_is_checked_at_the_other() {
    let world = world();
    let mut token = String::new();
    // The keys of tokens come to a node a moment after it joined.
    wait_until("a token", PATIENCE, || {
        let told = bonafide(world.a().dir(), &["svid", "jwt", "--audience", "db.example.net"]);
        token.clone_from(&told.stdout);
        told.code() == Some(0)
    });
    let checked = |token: &str, audience: &str| {
        let file = world.bare().file("shown.jwt", token).display().to_string();
        bonafide(world.b().dir(), &["svid", "validate", "--audience", audience, "--token-file", &file])
    };
    wait_until("the keys to be known there, too", PATIENCE, || checked(&token, "db.example.net").code() == Some(0));
    let id = checked(&token, "db.example.net").success();
    assert!(id.starts_with("spiffe://") && id.ends_with("/ops/cli\n"), "{id}");
    for (token, audience) in [(token.as_str(), "api.example.net"), (&token[..token.len() / 2], "db.example.net")] {
        let refused = checked(token, audience);
        assert_eq!((refused.code(), refused.stdout.as_str()), (Some(REFUSED), ""), "{}", refused.stderr);
    }
    world.finish();
}
