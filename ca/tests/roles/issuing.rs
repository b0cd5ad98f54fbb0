//! Leaves: what a verifier elsewhere makes of them, and when there are none.

use bonafide_ca::csr::CSR_MAX;
use bonafide_ca::node::Due;
use bonafide_proto::fingerprint::Evidence;
use bonafide_proto::name::SpiffeId;
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::svid::{Expect, SvidError};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::bench::{Domain, INTERMEDIATE_TTL, LEAF_TTL, START, csr, fingerprint, instant};

fn uris(der: &CertificateDer<'_>) -> Vec<String> {
    let (_, cert) = X509Certificate::from_der(der).unwrap();
    let san = cert.subject_alternative_name().unwrap().unwrap();
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => (*uri).to_owned(),
        other => panic!("{other:?}"),
    };
    san.value.general_names.iter().map(uri).collect()
}

#[tokio::test]
async fn a_leaf_proves_its_workload_to_any_member_of_the_domain() {
    let domain = Domain::new();
    let node = domain.member("a").await;
    let workload = "shop/web".parse().unwrap();
    let leaf = node.issue_leaf(&workload, &fingerprint(), &csr(&[])).unwrap();
    assert_eq!((leaf.not_before, leaf.not_after), (START - 60, START + i64::from(LEAF_TTL)));

    let bundle = domain.authority.trust_bundle();
    let peer = bundle.verify(&leaf.chain, instant(&domain.clock), Expect::Workload).unwrap();
    assert_eq!(*peer.id(), SpiffeId::workload(bundle.trust_domain(), &workload));
    assert_eq!(peer.node().unwrap().as_str(), "a");
    assert_eq!(peer.not_after(), leaf.not_after);
    let program = peer.program().unwrap();
    assert_eq!((program.exe, program.program.as_str()), (fingerprint().exe.digest, "/usr/bin/python3"));
    assert_eq!(program.script, fingerprint().script.known().cloned());
    assert_eq!((program.uid, program.libraries, program.image), (33, None, None));

    for wrong in [Expect::Node, Expect::Authority] {
        let refused = bundle.verify(&leaf.chain, instant(&domain.clock), wrong);
        assert!(matches!(refused, Err(SvidError::WrongKind(..))), "{refused:?}");
    }
    domain.clock.forward(i64::from(LEAF_TTL) + 1);
    let late = bundle.verify(&leaf.chain, instant(&domain.clock), Expect::Workload);
    assert_eq!(late, Err(SvidError::Expired(1)));
    assert_eq!(node.issued(), 1);
}

#[tokio::test]
async fn the_host_in_a_leaf_is_what_the_ca_read_itself() {
    let domain = Domain::new();
    let node = domain.member("a").await;
    let mut lying = fingerprint();
    lying.host.machine_id = Evidence::Known("another-machine".into());
    lying.host.bios_uuid = Evidence::Known("another-bios".into());
    lying.host.node = Some("b".parse().unwrap());
    let leaf = node.issue_leaf(&"shop/web".parse().unwrap(), &lying, &csr(&[])).unwrap();
    let peer = domain.authority.trust_bundle().verify(&leaf.chain, instant(&domain.clock), Expect::Workload).unwrap();
    let own = |path: &str| std::fs::read_to_string(path).ok().map(|text| text.trim().to_lowercase());
    let program = peer.program().unwrap();
    assert_eq!(program.machine_id, own("/etc/machine-id").filter(|id| !id.is_empty()));
    assert_eq!(program.bios_uuid, own("/sys/class/dmi/id/product_uuid").filter(|id| !id.is_empty()));
    assert_eq!(peer.node().unwrap().as_str(), "a");
}

#[tokio::test]
async fn names_inside_a_request_are_ignored() {
    let domain = Domain::new();
    let node = domain.member("a").await;
    for asked in [
        &["spiffe://example.org/shop/db"][..],
        &["spiffe://example.org/shop/db", "spiffe://example.org/shop/admin"],
        &["spiffe://example.org/bonafide/authority"],
    ] {
        let leaf = node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(asked)).unwrap();
        assert_eq!(uris(&leaf.chain[0]), ["spiffe://example.org/shop/web"]);
        domain.authority.trust_bundle().verify(&leaf.chain, instant(&domain.clock), Expect::Workload).unwrap();
    }
}

#[tokio::test]
async fn bad_requests_are_refused_by_name() {
    let domain = Domain::new();
    let node = domain.member("a").await;
    for bad in [vec![], vec![0x30; CSR_MAX + 1], b"garbage".to_vec()] {
        let refused = node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &bad).unwrap_err();
        assert_eq!(refused.reason, AttestReason::BadRequest);
    }
    assert_eq!(node.issued(), 0);
}

#[tokio::test]
async fn a_fingerprint_too_large_for_any_verifier_never_leaves() {
    let domain = Domain::new();
    let node = domain.member("a").await;
    let mut long = fingerprint();
    long.exe.path = format!("/{}", "x".repeat(8192));
    let refused = node.issue_leaf(&"shop/web".parse().unwrap(), &long, &csr(&[])).unwrap_err();
    assert_eq!(refused.reason, AttestReason::CheckerRefused, "{refused}");
}

#[tokio::test]
async fn long_and_foreign_paths_are_certified_as_they_are() {
    let domain = Domain::new();
    let node = domain.member("a").await;
    for path in ["/x".repeat(60), "/y".repeat(63), "/z".repeat(64), "/ü".repeat(300), "/w".repeat(2048)] {
        let mut seen = fingerprint();
        seen.exe.path = path.clone();
        let leaf = node.issue_leaf(&"shop/web".parse().unwrap(), &seen, &csr(&[])).unwrap();
        let peer = domain.authority.trust_bundle().verify(&leaf.chain, instant(&domain.clock), Expect::Workload);
        assert_eq!(peer.unwrap().program().unwrap().program, path);
    }
}

#[test]
fn a_node_that_never_joined_issues_nothing() {
    let domain = Domain::new();
    let node = domain.stranger("a");
    let refused = node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(&[])).unwrap_err();
    assert_eq!(refused.reason, AttestReason::NoIntermediate);
    assert_eq!(node.due(), Due::Join);
}

#[tokio::test]
async fn a_leaf_never_outlives_the_intermediate_and_none_comes_after_it() {
    let domain = Domain::new();
    let node = domain.member("a").await;
    let workload = "shop/web".parse().unwrap();
    let end = START + i64::from(INTERMEDIATE_TTL);
    domain.clock.forward(i64::from(INTERMEDIATE_TTL) - 10);
    let leaf = node.issue_leaf(&workload, &fingerprint(), &csr(&[])).unwrap();
    assert_eq!(leaf.not_after, end);
    assert_eq!(node.due(), Due::Renew);

    domain.clock.forward(11);
    let refused = node.issue_leaf(&workload, &fingerprint(), &csr(&[])).unwrap_err();
    assert_eq!(refused.reason, AttestReason::NoIntermediate, "{refused}");
    assert_eq!(node.due(), Due::Join);
}

#[tokio::test]
async fn a_clock_set_back_before_the_intermediate_issues_nothing() {
    let domain = Domain::new();
    let node = domain.member("a").await;
    domain.clock.forward(-3600);
    let refused = node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(&[])).unwrap_err();
    assert_eq!(refused.reason, AttestReason::NoIntermediate, "{refused}");
}
