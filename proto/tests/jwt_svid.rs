//! JWT-SVID.md, rule by rule (the numbers are of the rules as this project lists them), as a verifier.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bonafide_proto::jwt::{JwtBundle, JwtError, JwtKey, TOKEN_MAX, joined, signed_part};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

const NOW: i64 = 1_800_000_000;

struct Signer {
    pair: EcdsaKeyPair,
    key: JwtKey,
}

impl Signer {
    fn new() -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
        let key = JwtKey::new(pair.public_key().as_ref().to_vec()).unwrap();
        Self { pair, key }
    }

    fn bundle(&self) -> JwtBundle {
        JwtBundle::new("example.org".parse().unwrap(), vec![self.key.clone()]).unwrap()
    }

    fn sign(&self, signed: &str) -> String {
        joined(signed, self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap().as_ref())
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        self.sign(&format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string())))
    }

    fn header(&self) -> Value {
        json!({ "alg": "ES256", "kid": self.key.kid(), "typ": "JWT" })
    }

    fn verdict(&self, token: &str) -> Result<String, JwtError> {
        self.bundle().verify(token, "db", NOW).map(|proven| proven.id.to_string())
    }
}

fn claims() -> Value {
    json!({ "sub": "spiffe://example.org/web", "aud": ["db"], "exp": NOW + 300 })
}

/// The same, but for this.
fn with(mut claims: Value, key: &str, value: Value) -> Value {
    claims.as_object_mut().unwrap().insert(key.to_owned(), value);
    claims
}

fn without(mut claims: Value, key: &str) -> Value {
    claims.as_object_mut().unwrap().remove(key).unwrap();
    claims
}

#[test]
fn what_is_signed_here_is_accepted_here() {
    let signer = Signer::new();
    let id = "spiffe://example.org/web".parse().unwrap();
    let token = signer.sign(&signed_part(&signer.key, &id, &["api".to_owned(), "db".to_owned()], (NOW, NOW + 300)));
    let proven = signer.bundle().verify(&token, "db", NOW).unwrap();
    assert_eq!((proven.id, proven.expires), (id, NOW + 300));
    assert_eq!(proven.claims["aud"], json!(["api", "db"]));
}

#[test]
fn j_1_only_the_compact_serialization_is_read() {
    let signer = Signer::new();
    let token = signer.token(&signer.header(), &claims());
    let parts: Vec<&str> = token.split('.').collect();
    let json = json!({ "protected": parts[0], "payload": parts[1], "signature": parts[2] }).to_string();
    let more = format!("{token}.{}", parts[2]);
    for bad in ["", ".", "..", "a.b", &json, &more, &token.replace('.', ","), &format!("{token}=")] {
        assert!(matches!(signer.verdict(bad), Err(JwtError::Compact | JwtError::Header(_))), "{bad}");
    }
    assert_eq!(signer.verdict(&"a".repeat(TOKEN_MAX + 1)), Err(JwtError::TooLarge(TOKEN_MAX + 1)));
}

#[test]
fn j_2_the_header_has_alg_kid_and_typ_and_nothing_else() {
    let signer = Signer::new();
    for good in ["JWT", "JOSE"] {
        assert!(signer.verdict(&signer.token(&with(signer.header(), "typ", good.into()), &claims())).is_ok());
    }
    assert!(signer.verdict(&signer.token(&without(signer.header(), "typ"), &claims())).is_ok());
    let bad = [
        with(signer.header(), "typ", "wit+jwt".into()),
        with(signer.header(), "crit", json!(["exp"])),
        with(signer.header(), "jwk", signer.bundle().jwks().next().unwrap()),
        with(signer.header(), "x5u", "https://evil.example".into()),
        without(signer.header(), "kid"),
        without(signer.header(), "alg"),
        json!([]),
    ];
    for header in bad {
        let verdict = signer.verdict(&signer.token(&header, &claims()));
        assert!(matches!(verdict, Err(JwtError::Header(_))), "{header}: {verdict:?}");
    }
}

#[test]
fn what_a_header_says_cannot_be_more_than_a_line_of_a_log() {
    let signer = Signer::new();
    for name in ["\u{1b}[2J\n", &"x".repeat(4096)] {
        let refused = signer.verdict(&signer.token(&with(signer.header(), name, 1.into()), &claims())).unwrap_err();
        let text = refused.to_string();
        assert!(text.len() < 1000 && !text.chars().any(char::is_control), "{text:?}");
    }
}

#[test]
fn j_3_no_other_algorithm_is_accepted_and_none_is_none() {
    let signer = Signer::new();
    for alg in ["none", "HS256", "EdDSA", "es256", "ES384", "RS256", ""] {
        let token = signer.token(&with(signer.header(), "alg", alg.into()), &claims());
        assert_eq!(signer.verdict(&token), Err(JwtError::Algorithm(alg.to_owned())));
    }
}

#[test]
fn j_4_the_subject_is_a_spiffe_id_of_our_trust_domain() {
    let signer = Signer::new();
    let verdict = |claims: Value| signer.verdict(&signer.token(&signer.header(), &claims));
    assert!(matches!(verdict(with(claims(), "sub", "web".into())), Err(JwtError::Subject(_))));
    assert!(matches!(verdict(with(claims(), "sub", "spiffe://example.org".into())), Err(JwtError::Subject(_))));
    assert!(matches!(verdict(with(claims(), "sub", "spiffe://other.org/web".into())), Err(JwtError::TrustDomain(_))));
    assert!(matches!(verdict(with(claims(), "sub", 7.into())), Err(JwtError::Claims(_))));
    assert!(matches!(verdict(without(claims(), "sub")), Err(JwtError::Claims(_))));
}

#[test]
fn j_4_the_audience_is_there_and_ours() {
    let signer = Signer::new();
    let verdict = |claims: Value| signer.verdict(&signer.token(&signer.header(), &claims));
    assert!(verdict(with(claims(), "aud", "db".into())).is_ok());
    assert_eq!(verdict(with(claims(), "aud", "api".into())), Err(JwtError::Audience));
    assert_eq!(verdict(with(claims(), "aud", json!(["api", "DB", ""]))), Err(JwtError::Audience));
    assert_eq!(verdict(with(claims(), "aud", json!([]))), Err(JwtError::Audience));
    assert!(matches!(verdict(without(claims(), "aud")), Err(JwtError::Claims(_))));
}

#[test]
fn j_4_an_expiry_is_there_and_to_come_but_for_clocks_that_differ() {
    let signer = Signer::new();
    let verdict = |claims: Value| signer.verdict(&signer.token(&signer.header(), &claims));
    assert!(verdict(with(claims(), "exp", (NOW - 30).into())).is_ok());
    assert_eq!(verdict(with(claims(), "exp", (NOW - 31).into())), Err(JwtError::Expired));
    assert!(matches!(verdict(with(claims(), "exp", "never".into())), Err(JwtError::Claims(_))));
    assert!(matches!(verdict(without(claims(), "exp")), Err(JwtError::Claims(_))));
    assert_eq!(verdict(with(claims(), "nbf", (NOW + 31).into())), Err(JwtError::NotYetValid));
}

#[test]
fn j_5_a_key_of_the_bundle_has_its_use_and_kid_and_no_other_key_is_one() {
    let (signer, other) = (Signer::new(), Signer::new());
    let jwk = signer.bundle().jwks().next().unwrap();
    assert_eq!((&jwk["use"], &jwk["kty"], &jwk["crv"]), (&"jwt-svid".into(), &"EC".into(), &"P-256".into()));
    assert_eq!(jwk["kid"], signer.key.kid());
    let theirs = other.token(&other.header(), &claims());
    assert!(matches!(signer.verdict(&theirs), Err(JwtError::Key(_))));
    let in_our_name = other.token(&signer.header(), &claims());
    assert_eq!(signer.verdict(&in_our_name), Err(JwtError::Signature));
}

#[test]
fn claims_that_say_two_things_say_nothing() {
    let signer = Signer::new();
    let header = BASE64.encode(signer.header().to_string());
    for twice in [r#""sub":"spiffe://example.org/db""#, r#""exp":9e9"#, r#""a\u0075d":"db""#] {
        let claims = claims().to_string().replacen('{', &format!("{{{twice},"), 1);
        let token = signer.sign(&format!("{header}.{}", BASE64.encode(&claims)));
        assert!(matches!(signer.verdict(&token), Err(JwtError::Claims(_))), "{claims}");
    }
}

#[test]
fn w_12_a_token_is_checked_by_the_keys_of_its_subjects_trust_domain_and_no_others() {
    let (ours, theirs) = (Signer::new(), Signer::new());
    let of_theirs = with(claims(), "sub", "spiffe://other.org/web".into());
    // Signed by our own key, and by one that another trust domain's bundle would have.
    for signer in [&ours, &theirs] {
        let token = signer.token(&signer.header(), &of_theirs);
        assert!(matches!(ours.verdict(&token), Err(JwtError::TrustDomain(_) | JwtError::Key(_))));
    }
    let other = JwtBundle::new("other.org".parse().unwrap(), vec![theirs.key.clone()]).unwrap();
    let in_our_name = theirs.token(&theirs.header(), &claims());
    assert!(matches!(other.verify(&in_our_name, "db", NOW), Err(JwtError::TrustDomain(_))));
}

#[test]
fn a_token_that_is_too_long_is_refused_by_its_length_before_anything_is_decoded() {
    let signer = Signer::new();
    let million = format!("{}.{}", signer.token(&signer.header(), &claims()), "A".repeat(1 << 20));
    assert_eq!(signer.verdict(&million), Err(JwtError::TooLarge(million.len())));
}

#[test]
fn a_token_of_which_a_bit_was_changed_proves_nothing() {
    let signer = Signer::new();
    let token = signer.token(&signer.header(), &claims());
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        assert!(signer.verdict(&String::from_utf8(bytes).unwrap()).is_err(), "at {at}");
    }
}
