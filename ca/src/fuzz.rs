//! Fuzz targets for what the authority and its nodes are sent: no panic, no endless loop, and nothing is certified or
//! believed but what was ordered or written. `cargo test` gives each two seconds; ARCHITECTURE.md says how to give one
//! longer.

use std::sync::LazyLock;
use std::time::Duration;

use bonafide_fuzz::{element, fuzz};
use bonafide_proto::revoked::Revoked;
use bonafide_proto::svid::{Expect, TrustBundle};
use bonafide_proto::wire::authority as wire;
use prost::Message as _;
use rcgen::{PublicKeyData as _, SigningKey as _};
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::attestor::{Answer, Challenge, Evidence};
use crate::certify;
use crate::checker::{self, SignedBy};
use crate::csr::{self, CsrError, PublicKey};
use crate::key::Key;
use crate::mesh::{MeshState, QUARANTINE_MAX};
use crate::order::{Holder, Order, Validity};
use crate::{mint, template};

const NOW: i64 = 1_800_000_000;

/// What this key signs, whatever it is.
fn signed(content: &[u8], key: &Key) -> Vec<u8> {
    let signature = key.sign(content).unwrap();
    // ecdsa-with-SHA256 (RFC 5758)
    let algorithm = element(0x30, &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]);
    let signature = element(3, &[&[0], signature.as_slice()].concat());
    element(0x30, &[content, &algorithm, &signature].concat())
}

/// It can be a line of a log.
fn shown(refusal: &impl std::fmt::Display) {
    let text = refusal.to_string();
    assert!(text.len() <= 20_000 && !text.chars().any(char::is_control), "{text:?}");
}

static KEY: LazyLock<Key> = LazyLock::new(|| Key::generate().unwrap());

/// Whoever asks holds the key that is certified, even where the request says what it likes.
#[test]
fn requests() {
    let whole = csr::request(&*KEY).unwrap();
    let (_, read) = X509CertificationRequest::from_der(&whole).unwrap();
    let content = read.certification_request_info.raw.to_vec();
    assert!(PublicKey::of_csr(&signed(&content, &KEY)).is_ok());
    fuzz!([content, whole.clone()], |bytes| {
        let own = KEY.subject_public_key_info();
        for request in [bytes.to_vec(), signed(bytes, &KEY)] {
            match PublicKey::of_csr(&request) {
                Ok(key) => {
                    assert_eq!((key.spki(), rcgen::PublicKeyData::der_bytes(&key)), (own.as_slice(), KEY.der_bytes()))
                }
                Err(refusal) => shown(&refusal),
            }
        }
        let long = [bytes, &[0; csr::CSR_MAX + 1]].concat();
        assert_eq!(PublicKey::of_csr(&long), Err(CsrError::TooLarge(long.len())));
    });
}

/// A root, and the certificate of a node that it issued.
struct Issued {
    root: Key,
    certificate: CertificateDer<'static>,
    order: Order,
    node: Vec<u8>,
    /// By what the authority certifies, were the root away.
    issuing: Vec<u8>,
}

static ISSUED: LazyLock<Issued> = LazyLock::new(|| {
    let root = Key::generate().unwrap();
    let order = |holder, ttl| Order {
        trust_domain: "example.org".parse().unwrap(),
        holder,
        validity: Validity { from: NOW - 60, until: NOW + ttl },
    };
    let certificate = certify::found(&order(Holder::Root, 6000), &root).unwrap().der().clone();
    let order = order(Holder::Node("a".parse().unwrap()), 600);
    let draft = mint::sign(&template::template(&order).unwrap(), &*KEY, &Holder::Root, &root).unwrap();
    let above = Order { holder: Holder::Issuing, ..order.clone() };
    let issuing = mint::sign(&template::template(&above).unwrap(), &*KEY, &Holder::Root, &root).unwrap();
    Issued { root, certificate, order, node: draft.der().to_vec(), issuing: issuing.der().to_vec() }
});

/// What the checker passes says what was ordered to whoever verifies it, or nothing, though its issuer signs anything.
#[test]
fn certificates() {
    let Issued { root, certificate, order, node, issuing } = &*ISSUED;
    assert!(checker::read_issuing(issuing, &order.trust_domain, certificate).is_ok());
    let stands_above = X509Certificate::from_der(issuing).unwrap().1.tbs_certificate.as_ref().to_vec();
    let (_, read) = X509Certificate::from_der(node).unwrap();
    let content = read.tbs_certificate.as_ref().to_vec();
    let roots = [certificate.clone()];
    let above = checker::Above { roots: &roots, issuing: None };
    let check = |der: &[u8]| {
        let holder = order.holder.clone();
        let taken = checker::received(der, &order.trust_domain, holder, &KEY.subject_public_key_info(), above);
        taken.map(|(validity, _)| validity)
    };
    assert_eq!((check(node), check(&signed(&content, root))), (Ok(order.validity), Ok(order.validity)));
    fuzz!([content, stands_above, node.clone(), issuing.clone(), certificate.to_vec()], |bytes| {
        let Issued { root, certificate, order, node, .. } = &*ISSUED;
        let spki = KEY.subject_public_key_info();
        let by = SignedBy::Issuer(certificate);
        match checker::check(&crate::draft::Draft::of(bytes.to_vec()), order, &spki, by) {
            Ok(_) => assert_eq!(bytes, node),
            Err(refusal) => shown(&refusal),
        }
        if let Err(refusal) = checker::read_root(bytes) {
            shown(&refusal);
        } else {
            assert_eq!(bytes, &**certificate);
        }
        let domain = &order.trust_domain;
        for der in [bytes.to_vec(), signed(bytes, root)] {
            match checker::read_issuing(&der, domain, certificate) {
                // Its times are the root's to say.
                Ok(read) => assert!(read.validity.from < read.validity.until && read.serial.len() == 32),
                Err(refusal) => shown(&refusal),
            }
        }
        let der = signed(bytes, root);
        match checker::check(&crate::draft::Draft::of(der.clone()), order, &spki, by) {
            Ok(checked) => {
                let bundle = TrustBundle::new(order.trust_domain.clone(), vec![certificate.clone()]).unwrap();
                let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW.unsigned_abs()));
                // Some bytes that are no DER the checker reads more kindly than whoever is shown them: those refuse.
                let Ok(peer) = bundle.verify(&[CertificateDer::from(der)], now, Expect::Node) else { return };
                assert_eq!(peer.id().to_string(), "spiffe://example.org/bonafide/node/a");
                assert_eq!((peer.serial(), peer.not_after()), (checked.serial(), order.validity.until));
            }
            Err(refusal) => shown(&refusal),
        }
    });
}

/// Digests in quarantine, as nodes hear of them: none is made up, and none is missed.
#[test]
fn mesh_states() {
    let with = |quarantine, revoked| {
        wire::MeshState { sequence: 7, quarantine, revoked, restored: false, roots: None }.encode_to_vec()
    };
    let state = |digests: Vec<Vec<u8>>| with(digests, None);
    let node = |name: &str, through| wire::revoked::Node { name: name.to_owned(), through };
    let revoked = |names: &[&str], serial: usize| wire::Revoked {
        nodes: names.iter().map(|name| node(name, 7)).collect(),
        workloads: names.iter().map(ToString::to_string).collect(),
        serials: vec![vec![0x4a; serial]],
    };
    let seeds = [
        state(vec![vec![1; 32], vec![2; 32], vec![1; 32]]),
        state(vec![vec![1; 31]]),
        state(vec![vec![]]),
        state(vec![]),
        with(vec![vec![1; 32]], Some(revoked(&["a", "b-1"], 16))),
        with(vec![], Some(revoked(&["a/b"], 21))),
    ];
    fuzz!(seeds, |bytes| {
        let Ok(message) = wire::MeshState::decode(bytes) else { return };
        match MeshState::try_from(message.clone()) {
            Ok(state) => {
                assert!(state.quarantine.len() <= QUARANTINE_MAX && state.sequence == message.sequence);
                let told = |digest: &Vec<u8>| state.quarantine.iter().any(|kept| kept.0 == digest.as_slice());
                assert!(message.quarantine.iter().all(told));
                let revoked = message.revoked.unwrap_or_default();
                let known =
                    |node: &wire::revoked::Node| state.revoked.nodes.keys().any(|name| name.as_str() == node.name);
                assert!(state.revoked.is_bounded() && revoked.nodes.iter().all(known));
                assert_eq!(state.revoked.workloads.is_empty(), revoked.workloads.is_empty());
                assert_eq!(state.revoked.serials.is_empty(), revoked.serials.is_empty());
                assert_eq!(MeshState::try_from(wire::MeshState::from(&state)), Ok(state));
            }
            Err(refusal) => {
                shown(&refusal);
                let digests =
                    message.quarantine.len() > QUARANTINE_MAX || message.quarantine.iter().any(|d| d.len() != 32);
                assert!(digests || message.revoked.is_some_and(|r| Revoked::try_from(r).is_err()));
            }
        }
    });
}

/// Proofs of nodes that want to join, as they come from strangers: bounded, and read as they were written.
#[test]
fn proofs() {
    let pop = wire::X509Pop { chain: vec![vec![0x30; 40], vec![]], nonce: vec![7; 32] };
    let evidence = |of| wire::Evidence { of: Some(of) }.encode_to_vec();
    let signed = wire::X509PopSigned { scheme: 0x0403, signature: vec![1; 70] };
    let seeds = [
        evidence(wire::evidence::Of::X509pop(pop)),
        evidence(wire::evidence::Of::TokenSecret(vec![5; 32])),
        wire::Answer { of: Some(wire::answer::Of::X509pop(signed)) }.encode_to_vec(),
        wire::Challenge { of: Some(wire::challenge::Of::X509popNonce(vec![9; 32])) }.encode_to_vec(),
    ];
    fuzz!(seeds, |bytes| {
        if let Ok(message) = wire::Evidence::decode(bytes) {
            match Evidence::try_from(message.clone()) {
                Ok(evidence) => assert_eq!(wire::Evidence::from(&evidence), message),
                Err(refusal) => shown(&refusal),
            }
        }
        if let Ok(message) = wire::Answer::decode(bytes) {
            match Answer::try_from(message.clone()) {
                Ok(answer) => assert_eq!(wire::Answer::from(&answer), message),
                Err(refusal) => shown(&refusal),
            }
        }
        if let Ok(message) = wire::Challenge::decode(bytes) {
            match Challenge::try_from(message.clone()) {
                Ok(challenge) => assert_eq!(wire::Challenge::from(&challenge), message),
                Err(refusal) => shown(&refusal),
            }
        }
    });
}
