//! The X509-SVID profile: what the messages hold, and when they come.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bonafide_proto::svid::{Expect, TrustBundle};
use rustls::pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::endpoint::{ENTITLED, Endpoint, LEAF_TTL, PATIENCE, policy};
use crate::program::{Program, bytes, refusal};

/// The certificates of a concatenation.
pub(crate) fn certificates(der: &[u8]) -> Vec<CertificateDer<'static>> {
    let (mut rest, mut found) = (der, Vec::new());
    while !rest.is_empty() {
        let (left, _) = X509Certificate::from_der(rest).unwrap();
        found.push(CertificateDer::from(rest[..rest.len() - left.len()].to_vec()));
        rest = left;
    }
    found
}

pub(crate) fn the_one(said: &Value) -> &Value {
    let svids = said["svids"].as_array().unwrap_or_else(|| panic!("{said}"));
    assert_eq!(svids.len(), 1);
    &svids[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn w_5_an_svid_is_a_der_chain_with_its_pkcs8_key_and_its_bundle() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    let said = program.asked("svids").await;
    let svid = the_one(&said);
    assert_eq!(svid["id"], "spiffe://example.org/shop/web");
    let (chain, roots) = (certificates(&bytes(&svid["chain"])), certificates(&bytes(&svid["bundle"])));
    assert_eq!((chain.len(), roots.len()), (2, 1));
    let trust = TrustBundle::new("example.org".parse().unwrap(), roots).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(endpoint.now()).unwrap()));
    let proven = trust.verify(&chain, now, Expect::Workload).unwrap();
    assert_eq!(proven.id().to_string(), "spiffe://example.org/shop/web");
    let key = rcgen::KeyPair::try_from(bytes(&svid["key"]).as_slice()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(leaf.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
    assert_eq!(said["federated"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn w_5_every_field_but_the_hint_says_something_and_w_6_the_hint_of_the_one_identity_is_unset() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    let said = program.asked("svids").await;
    let svid = the_one(&said).as_object().unwrap();
    assert_eq!(svid.keys().collect::<Vec<_>>(), ["bundle", "chain", "hint", "id", "key"]);
    for (field, value) in svid {
        assert_eq!(value.as_str().unwrap().is_empty(), field == "hint", "{field}: {value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_accepts_chain_and_key() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    let said = program.asked("svids").await;
    let (svid, dir) = (the_one(&said), tempfile::tempdir().unwrap());
    let pem = |name: &str, ders: &[CertificateDer<'_>]| {
        for (n, der) in ders.iter().enumerate() {
            std::fs::write(dir.path().join(format!("{name}{n}.der")), der).unwrap();
            openssl(
                dir.path(),
                &["x509", "-inform", "der", "-in", &format!("{name}{n}.der"), "-out", &format!("{name}{n}.pem")],
            );
        }
    };
    pem("chain", &certificates(&bytes(&svid["chain"])));
    pem("root", &certificates(&bytes(&svid["bundle"])));
    std::fs::write(dir.path().join("key.der"), bytes(&svid["key"])).unwrap();
    for purpose in ["sslserver", "sslclient"] {
        let verify = [
            "verify",
            "-x509_strict",
            "-purpose",
            purpose,
            "-CAfile",
            "root0.pem",
            "-untrusted",
            "chain1.pem",
            "chain0.pem",
        ];
        assert_eq!(openssl(dir.path(), &verify), "chain0.pem: OK\n");
    }
    let of_key = openssl(dir.path(), &["pkey", "-inform", "der", "-in", "key.der", "-pubout"]);
    assert_eq!(of_key, openssl(dir.path(), &["x509", "-in", "chain0.pem", "-noout", "-pubkey"]));
}

pub(crate) fn openssl(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn w_8_our_own_bundle_is_there_under_the_id_of_its_trust_domain_and_no_other() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    let said = program.asked("bundles").await;
    let bundles = said["bundles"].as_object().unwrap();
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org"]);
    let svid = program.asked("svids").await;
    assert_eq!(bundles["spiffe://example.org"], the_one(&svid)["bundle"]);
    assert_eq!(endpoint.issued().await, 1, "who asks for bundles alone gets no certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn w_2_the_first_message_is_whole_and_the_next_comes_at_half_life_and_w_3_is_whole_too() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    let first = program.asked("svids").await;
    assert!(program.is_silent_for(Duration::from_millis(1500)).await, "nothing changed");
    endpoint.travel(LEAF_TTL / 2 + LEAF_TTL / 8 + 1);
    let second = program.says().await;
    let (first, second) = (the_one(&first), the_one(&second));
    assert_eq!((&first["id"], &first["bundle"]), (&second["id"], &second["bundle"]));
    assert!(first["chain"] != second["chain"] && first["key"] != second["key"], "a new key for each certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_are_the_same_share_one_certificate_in_each_rotation() {
    let endpoint = Endpoint::start().await;
    let mut programs: Vec<Program> = (0..4).map(|_| Program::start(&endpoint.socket())).collect();
    for program in &mut programs {
        program.tell("svids").await;
        program.tell("svids").await;
    }
    let mut said = Vec::new();
    for program in &mut programs {
        said.extend([program.says().await, program.says().await]);
    }
    assert!(said.iter().all(|one| one == &said[0]));
    assert_eq!(endpoint.issued().await, 1);
    endpoint.travel(LEAF_TTL * 3 / 4);
    let mut renewed = Vec::new();
    for program in &mut programs {
        renewed.extend([program.says().await, program.says().await]);
    }
    assert!(renewed.iter().all(|one| one == &renewed[0] && one != &said[0]));
    assert_eq!(endpoint.issued().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_another_subject() {
    let endpoint = Endpoint::with(&policy("shop/web", &format!("{ENTITLED}\nallow_taints = \"unwitnessed\""))).await;
    std::fs::set_permissions(endpoint.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (mut root, mut other) = (Program::start(&endpoint.socket()), Program::start_as(4711, &endpoint.socket()));
    let (first, second) = (root.asked("svids").await, other.asked("svids").await);
    assert_eq!(the_one(&first)["id"], the_one(&second)["id"]);
    assert_ne!(the_one(&first)["key"], the_one(&second)["key"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn e_4_without_an_intermediate_it_is_unavailable_and_a_certificate_outlives_its_ca() {
    let mut endpoint = Endpoint::without_ca(&policy("shop/web", ENTITLED)).await;
    let mut program = Program::start(&endpoint.socket());
    let said = program.asked("svids").await;
    assert_eq!(refusal(&said).0, "Unavailable", "{said}");
    endpoint.start_ca().await;
    let first = granted(&mut program).await;
    endpoint.stop_ca().await;
    endpoint.travel(LEAF_TTL * 3 / 4);
    assert!(program.is_silent_for(Duration::from_millis(2500)).await, "what is valid goes on");
    let again = program.asked("svids").await;
    assert_eq!(the_one(&again), the_one(&first), "also for those who come");
    endpoint.travel(LEAF_TTL / 2);
    let mut ends = [program.says().await, program.says().await];
    assert!(ends.iter_mut().all(|said| refusal(said).0 == "Unavailable"), "{ends:?}");
}

/// As clients do: asks again while it is unavailable.
async fn granted(program: &mut Program) -> Value {
    let asking = async {
        loop {
            let said = program.asked("svids").await;
            if said["code"] != "Unavailable" {
                return said;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap()
}
