//! SPIFFE_Trust_Domain_and_Bundle.md and X509-SVID.md §6, rule by rule (the numbers are of the rules as this project lists
//! them), as a reader and as a writer.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bonafide_proto::jwt::{JwtBundle, JwtKey};
use bonafide_proto::spiffe_bundle::{BundleError, DOCUMENT_MAX, KEYS_MAX, SpiffeBundle};
use bonafide_proto::svid::TrustBundle;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SignatureAlgorithm};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

fn certificate(of: &'static SignatureAlgorithm, is_ca: IsCa) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.is_ca = is_ca;
    params.self_signed(&KeyPair::generate_for(of).unwrap()).unwrap().der().clone()
}

fn root() -> CertificateDer<'static> {
    certificate(&rcgen::PKCS_ECDSA_P256_SHA256, IsCa::Ca(BasicConstraints::Unconstrained))
}

fn bundle(roots: &[CertificateDer<'static>], sequence: Option<u64>) -> SpiffeBundle {
    let roots = TrustBundle::new("example.org".parse().unwrap(), roots.to_vec()).unwrap();
    let key = JwtKey::new([&[4], [7; 64].as_slice()].concat()).unwrap();
    SpiffeBundle::of(&roots, &JwtBundle::new("example.org".parse().unwrap(), vec![key]).unwrap(), sequence).unwrap()
}

fn read(document: &Value) -> Result<SpiffeBundle, BundleError> {
    SpiffeBundle::parse(document.to_string().as_bytes())
}

/// A document of this root and a key of tokens, with one member of the root's key as it is said here.
fn with(root: &CertificateDer<'static>, member: &str, value: Option<Value>) -> Value {
    let mut document = bundle(std::slice::from_ref(root), None).document();
    let key = document["keys"][0].as_object_mut().unwrap();
    match value {
        Some(value) => key.insert(member.to_owned(), value),
        None => key.remove(member),
    };
    document
}

/// That the root is ignored, and the rest of the document is not.
fn ignored(document: &Value) {
    let read = read(document).unwrap();
    assert_eq!((read.roots().len(), read.token_keys().len()), (0, 1), "{document}");
}

fn refused(document: &Value) {
    assert!(matches!(read(document), Err(BundleError::Key { at: 0, .. })), "{document}: {:?}", read(document));
}

#[test]
fn what_is_written_here_is_read_here_as_it_was() {
    let kinds = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384];
    let roots = kinds.map(|kind| certificate(kind, IsCa::Ca(BasicConstraints::Unconstrained)));
    let written = bundle(&roots, Some(u64::MAX));
    let again = read(&written.document()).unwrap();
    assert_eq!(again, written);
    assert_eq!(again.roots().collect::<Vec<_>>(), roots.iter().collect::<Vec<_>>());
    assert_eq!((again.sequence(), again.refresh_hint()), (Some(u64::MAX), Some(3600)));
}

#[test]
fn b_1_keys_have_to_be_there_and_may_be_none() {
    for bad in [json!({}), json!({ "keys": null }), json!({ "keys": {} }), json!([]), json!("keys")] {
        assert_eq!(read(&bad), Err(BundleError::Keys));
    }
    let none = read(&json!({ "keys": [] })).unwrap();
    assert_eq!((none.roots().len(), none.token_keys().len()), (0, 0), "nobody is trusted");
    assert_eq!((none.sequence(), none.refresh_hint()), (None, None));
}

#[test]
fn b_2_a_sequence_is_a_whole_number_of_64_bits() {
    for bad in [json!(-1), json!(1.5), json!("1"), json!(null), json!(1e30)] {
        let refused = read(&json!({ "keys": [], "spiffe_sequence": bad }));
        assert_eq!(refused, Err(BundleError::Number("spiffe_sequence")), "{bad}");
    }
    let highest = read(&json!({ "keys": [], "spiffe_sequence": u64::MAX })).unwrap();
    assert_eq!(highest.sequence(), Some(u64::MAX));
}

#[test]
fn b_3_a_refresh_hint_is_a_whole_number_of_seconds() {
    for bad in [json!(-1), json!(0.5), json!("300")] {
        let refused = read(&json!({ "keys": [], "spiffe_refresh_hint": bad }));
        assert_eq!(refused, Err(BundleError::Number("spiffe_refresh_hint")), "{bad}");
    }
    assert_eq!(read(&json!({ "keys": [], "spiffe_refresh_hint": 300 })).unwrap().refresh_hint(), Some(300));
}

#[test]
fn b_4_a_key_without_a_kind_or_a_use_that_is_known_is_ignored_and_no_other_is() {
    let root = root();
    for member in ["kty", "use"] {
        for value in [None, Some(json!("unheard-of")), Some(json!(7)), Some(json!("ec")), Some(json!("X509-SVID"))] {
            ignored(&with(&root, member, value));
        }
    }
    // As others write the keys of WIT-SVIDs.
    ignored(&with(&root, "use", Some("wit-svid".into())));
    // Members that are not known mean nothing.
    assert_eq!(read(&with(&root, "unheard-of", Some(json!({ "a": 1 })))).unwrap().roots().len(), 1);
}

#[test]
fn x_9_a_root_without_a_certificate_is_ignored_and_so_are_all_but_its_first() {
    let (root, other) = (root(), root());
    ignored(&with(&root, "x5c", None));
    let two = json!([STANDARD.encode(&root), STANDARD.encode(&other)]);
    let taken = read(&with(&root, "x5c", Some(two))).unwrap();
    assert_eq!(taken.roots().collect::<Vec<_>>(), [&root]);
}

#[test]
fn x_9_a_certificate_that_is_none_or_of_another_key_is_a_doubt_and_no_root() {
    let (root, other) = (root(), root());
    let leaf = certificate(&rcgen::PKCS_ECDSA_P256_SHA256, IsCa::ExplicitNoCa);
    for bad in [json!([]), json!("x"), json!([7]), json!(["!"]), json!([STANDARD.encode(b"no certificate")])] {
        refused(&with(&root, "x5c", Some(bad)));
    }
    refused(&with(&root, "x5c", Some(json!([URL_SAFE_NO_PAD.encode(&root)]))));
    refused(&with(&root, "x5c", Some(json!([STANDARD.encode([&*root, &[0]].concat())]))));
    refused(&with(&root, "x5c", Some(json!([STANDARD.encode(&other)]))));
    refused(&with(&root, "x5c", Some(json!([STANDARD.encode(&leaf)]))));
    refused(&with(&root, "x5c", Some(json!([STANDARD.encode(vec![0x30; 9000])]))));
}

/// RFC 7517 §5 has those ignored that lack something.
#[test]
fn x_9_a_root_whose_key_is_not_said_is_ignored() {
    for member in ["crv", "x", "y"] {
        ignored(&with(&root(), member, None));
    }
}

#[test]
fn j_5_a_key_of_tokens_has_a_kid_of_its_own_and_all_that_makes_a_key() {
    let jwk = bundle(&[root()], None).document()["keys"][1].clone();
    let taken = |key: &Value| read(&json!({ "keys": [key] })).map(|read| read.token_keys().len());
    assert_eq!(taken(&jwk), Ok(1));
    for member in ["kid", "crv", "x", "y"] {
        for value in [None, Some(json!("")), Some(json!(7)), Some(json!("?"))] {
            let mut key = jwk.clone();
            match value {
                Some(value) => key[member] = value,
                None => drop(key.as_object_mut().unwrap().remove(member)),
            }
            let kept = usize::from(member == "kid" && key["kid"] == "?");
            assert_eq!(taken(&key), Ok(kept), "{key}");
        }
    }
    let rsa = |bytes: usize| json!({ "kty": "RSA", "use": "jwt-svid", "kid": "r", "e": "AQAB", "n": URL_SAFE_NO_PAD.encode(vec![0xff; bytes]) });
    assert_eq!([128, 256, 1024, 1025].map(|bytes| taken(&rsa(bytes)).unwrap()), [0, 1, 1, 0]);
    assert!(matches!(read(&json!({ "keys": [jwk, jwk] })), Err(BundleError::Key { .. })), "whose is it?");
}

#[test]
fn a_bundle_with_a_private_key_is_refused_as_such() {
    let refused = read(&with(&root(), "d", Some("c2VjcmV0".into()))).unwrap_err().to_string();
    assert!(refused.contains("private key") && !refused.contains("c2VjcmV0"), "{refused}");
}

#[test]
fn a_name_that_stands_twice_is_a_doubt() {
    for text in [r#"{"keys":[],"keys":[]}"#, r#"{"keys":[{"use":"a","use":"b"}]}"#] {
        assert!(matches!(SpiffeBundle::parse(text.as_bytes()), Err(BundleError::Json(_))), "{text}");
    }
}

#[test]
fn a_root_that_is_there_twice_is_one() {
    let jwk = bundle(&[root()], None).document()["keys"][0].clone();
    assert_eq!(read(&json!({ "keys": [jwk, jwk] })).unwrap().roots().len(), 1);
}

#[test]
fn it_is_refused_by_its_length_and_its_count_before_anything_is_read_of_it() {
    // Not even JSON, and no certificate: nothing was looked at.
    let long = vec![b'!'; DOCUMENT_MAX + 1];
    assert_eq!(SpiffeBundle::parse(&long), Err(BundleError::TooLarge(DOCUMENT_MAX + 1)));
    let many = json!({ "keys": vec![json!("!"); KEYS_MAX + 1] });
    assert_eq!(read(&many), Err(BundleError::TooManyKeys(KEYS_MAX + 1)));
}
