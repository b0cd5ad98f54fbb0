//! X509-SVID.md, rule by rule (the numbers are of the rules as this project lists them), of every certificate that is
//! issued: root, intermediate, node SVID and workload leaf.

use bonafide_proto::svid::Expect;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::bench::{Domain, csr, fingerprint, instant};

/// One of each kind.
struct Issued {
    domain: Domain,
    root: CertificateDer<'static>,
    node_svid: CertificateDer<'static>,
    /// Leaf and intermediate.
    chain: Vec<CertificateDer<'static>>,
}

impl Issued {
    async fn new() -> Self {
        let domain = Domain::new();
        let node = domain.member("a").await;
        let leaf = node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(&["spiffe://evil/x"])).unwrap();
        let root = domain.authority.trust_bundle().roots()[0].clone();
        let node_svid = node.member().unwrap().node_svid().clone();
        Self { domain, root, node_svid, chain: leaf.chain }
    }

    fn signing(&self) -> [&CertificateDer<'static>; 2] {
        [&self.root, &self.chain[1]]
    }

    fn leaves(&self) -> [&CertificateDer<'static>; 2] {
        [&self.node_svid, &self.chain[0]]
    }
}

fn read<'d>(der: &'d CertificateDer<'_>) -> X509Certificate<'d> {
    X509Certificate::from_der(der).unwrap().1
}

fn uri(der: &CertificateDer<'_>) -> String {
    let certificate = read(der);
    let san = certificate.subject_alternative_name().unwrap().unwrap();
    match san.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => (*uri).to_owned(),
        others => panic!("{others:?}"),
    }
}

#[tokio::test]
async fn x_1_there_is_exactly_one_uri_and_no_other_name_whatever_was_requested() {
    let issued = Issued::new().await;
    for der in issued.signing().into_iter().chain(issued.leaves()) {
        assert!(uri(der).starts_with("spiffe://example.org"), "{}", uri(der));
    }
}

#[tokio::test]
async fn x_2_a_leaf_has_a_path_and_its_names_are_critical_as_its_subject_is_empty() {
    let issued = Issued::new().await;
    assert_eq!(issued.leaves().map(uri), ["spiffe://example.org/bonafide/node/a", "spiffe://example.org/shop/web"]);
    for der in issued.leaves() {
        let certificate = read(der);
        assert_eq!(certificate.subject().iter().count(), 0);
        assert!(certificate.subject_alternative_name().unwrap().unwrap().critical);
    }
}

#[tokio::test]
async fn x_3_a_signing_certificate_has_no_path_and_authenticates_nobody() {
    let issued = Issued::new().await;
    assert_eq!(issued.signing().map(uri), ["spiffe://example.org", "spiffe://example.org"]);
    let (trust, now) = (issued.domain.authority.trust_bundle(), instant(&issued.domain.clock));
    for der in issued.signing() {
        for expect in [Expect::Workload, Expect::Node, Expect::Authority] {
            assert!(trust.verify(std::slice::from_ref(der), now, expect).is_err());
        }
    }
}

#[tokio::test]
async fn x_4_basic_constraints_are_there_on_all_and_canonical() {
    let issued = Issued::new().await;
    for (der, ca) in issued.signing().map(|der| (der, true)).into_iter().chain(issued.leaves().map(|der| (der, false)))
    {
        let certificate = read(der);
        let extension = certificate.extensions().iter().find(|e| e.oid.to_id_string() == "2.5.29.19").unwrap();
        assert_eq!(certificate.basic_constraints().unwrap().unwrap().value.ca, ca);
        // DER leaves out what is the default: FALSE.
        assert!(ca || extension.value == [0x30, 0x00], "{:?}", extension.value);
    }
}

#[tokio::test]
async fn x_5_there_are_no_name_constraints() {
    let issued = Issued::new().await;
    for der in issued.signing().into_iter().chain(issued.leaves()) {
        assert!(read(der).name_constraints().unwrap().is_none());
    }
}

#[tokio::test]
async fn x_6_key_usage_is_critical_and_says_either_signing_certificates_or_handshakes() {
    let issued = Issued::new().await;
    for der in issued.signing() {
        let certificate = read(der);
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && !usage.value.digital_signature());
    }
    for der in issued.leaves() {
        let certificate = read(der);
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature());
        assert!(!usage.value.key_cert_sign() && !usage.value.crl_sign());
    }
}

#[tokio::test]
async fn x_7_a_leaf_is_for_servers_and_for_clients() {
    let issued = Issued::new().await;
    for der in issued.leaves() {
        let certificate = read(der);
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth);
    }
}

#[tokio::test]
async fn x_8_a_chain_is_valid_to_its_root_in_its_time_and_in_no_other() {
    let issued = Issued::new().await;
    let trust = issued.domain.authority.trust_bundle();
    assert!(trust.verify(&issued.chain, instant(&issued.domain.clock), Expect::Workload).is_ok());
    assert!(
        Domain::new()
            .authority
            .trust_bundle()
            .verify(&issued.chain, instant(&issued.domain.clock), Expect::Workload)
            .is_err()
    );
    issued.domain.clock.forward(86_400);
    assert!(trust.verify(&issued.chain, instant(&issued.domain.clock), Expect::Workload).is_err());
}

#[tokio::test]
async fn serials_are_random_and_positive() {
    let issued = Issued::new().await;
    let mut serials: Vec<Vec<u8>> =
        issued.signing().into_iter().chain(issued.leaves()).map(|der| read(der).raw_serial().to_vec()).collect();
    assert!(serials.iter().all(|serial| serial.len() == 16 && serial[0] & 0x80 == 0));
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 4);
}

#[tokio::test]
async fn x_9_a_bundle_has_each_root_as_a_jwk_with_its_one_certificate_and_no_kid() {
    use base64::Engine as _;
    let issued = Issued::new().await;
    let trust = issued.domain.authority.trust_bundle();
    let tokens = bonafide_proto::jwt::JwtBundle::new(trust.trust_domain().clone(), Vec::new()).unwrap();
    let document = bonafide_proto::spiffe_bundle::SpiffeBundle::of(&trust, &tokens, None).unwrap().document();
    let keys = document["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 1);
    assert_eq!((&keys[0]["use"], &keys[0]["kty"]), (&"x509-svid".into(), &"EC".into()));
    assert!(keys[0]["kid"].is_null() && keys[0]["x"].is_string() && keys[0]["y"].is_string());
    let certificate = base64::engine::general_purpose::STANDARD.encode(&issued.root);
    assert_eq!(keys[0]["x5c"], serde_json::json!([certificate]));
    assert!(document["spiffe_refresh_hint"].is_u64());
}
