//! The JWT-SVID profile: tokens, the keys by which they are checked, and checking them.

use bonafide_proto::endpoint;
use bonafide_proto::wire::authority::revoke_request::What;
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::issuance_client::IssuanceClient;
use serde_json::Value;

use crate::endpoint::{ENTITLED, Endpoint, PATIENCE, policy};
use crate::program::{Program, refusal};

/// Waits until the node's CA has asked its authority for them.
pub(crate) async fn keys_are_known(endpoint: &Endpoint) {
    let mut ca = IssuanceClient::new(endpoint::channel(endpoint.dir.path().join("ca.sock")));
    let mut bundles = ca.watch_bundle(wire::WatchBundleRequest {}).await.unwrap().into_inner();
    let told = async { while bundles.message().await.unwrap().unwrap().jwt_keys.is_empty() {} };
    tokio::time::timeout(PATIENCE, told).await.expect("no keys");
}

async fn start() -> (Endpoint, Program) {
    let endpoint = Endpoint::start().await;
    keys_are_known(&endpoint).await;
    let mut program = Program::start(&endpoint.socket());
    // What the CA knows, identityd knows a moment later.
    program.tell("jwt-bundles").await;
    while keys(&program.says().await).is_empty() {}
    (endpoint, program)
}

fn keys(said: &Value) -> &Vec<Value> {
    let bundles = said["bundles"].as_object().unwrap_or_else(|| panic!("{said}"));
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org"]);
    bundles["spiffe://example.org"]["keys"].as_array().unwrap()
}

fn token(said: &Value) -> &str {
    let svids = said["svids"].as_array().unwrap_or_else(|| panic!("{said}"));
    assert_eq!((svids.len(), &svids[0]["id"]), (1, &"spiffe://example.org/shop/web".into()));
    svids[0]["token"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn w_9_a_token_is_for_its_audiences_and_for_the_id_that_is_asked_for() {
    let (_endpoint, mut program) = start().await;
    let said = program.asked("jwt db api").await;
    for audience in ["db", "api"] {
        let valid = program.asked(&format!("validate {audience} {}", token(&said))).await;
        assert_eq!(valid["id"], "spiffe://example.org/shop/web", "{valid}");
    }
    let named = program.asked("jwt-as spiffe://example.org/shop/web db").await;
    token(&named);
    let other = program.asked("jwt-as spiffe://example.org/shop/db db").await;
    assert_eq!(refusal(&other), ("PermissionDenied", "no identity issued"));
    let none = program.asked("jwt-as web db").await;
    assert_eq!(refusal(&none).0, "InvalidArgument");
}

#[tokio::test(flavor = "multi_thread")]
async fn w_4_a_request_without_its_mandatory_fields_is_an_invalid_argument() {
    let (_endpoint, mut program) = start().await;
    for order in ["jwt", "jwt EMPTY", "jwt db EMPTY", "validate EMPTY a.b.c", "validate db EMPTY"] {
        let said = program.asked(order).await;
        assert_eq!(refusal(&said).0, "InvalidArgument", "{order}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn w_10_the_bundle_is_of_our_trust_domain_and_has_jwt_keys_alone() {
    let (_endpoint, mut program) = start().await;
    let said = program.asked("jwt-bundles").await;
    let keys = keys(&said);
    assert_eq!(keys.len(), 3, "the key before, the one in use, and the next");
    assert!(keys.iter().all(|key| key["use"] == "jwt-svid" && key["kid"].is_string() && key["x5c"].is_null()));
}

#[tokio::test(flavor = "multi_thread")]
async fn w_11_a_token_is_validated_in_full_and_answered_with_its_claims() {
    let (endpoint, mut program) = start().await;
    let said = program.asked("jwt db").await;
    let valid = program.asked(&format!("validate db {}", token(&said))).await;
    for claim in ["sub", "aud", "exp"] {
        assert!(valid["claims"].as_array().unwrap().contains(&claim.into()), "{valid}");
    }
    let other = program.asked(&format!("validate api {}", token(&said))).await;
    assert_eq!(refusal(&other), ("InvalidArgument", "the token is not for that audience"));
    let broken = program.asked(&format!("validate db {}x", token(&said))).await;
    assert_eq!(refusal(&broken).0, "InvalidArgument");
    endpoint.travel(bonafide_ca::jwt::JWT_TTL + 31);
    let late = program.asked(&format!("validate db {}", token(&said))).await;
    assert_eq!(refusal(&late), ("InvalidArgument", "the token has expired"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_a_workload_that_was_revoked_since_is_worth_nothing() {
    let (endpoint, mut program) = start().await;
    let asks = format!("validate db {}", token(&program.asked("jwt db").await));
    // From now on the program is another one, whom nobody revoked.
    endpoint.set_policy(&policy("shop/api", ENTITLED));
    let mut other = Program::start(&endpoint.socket());
    while !other.asked("jwt-as spiffe://example.org/shop/api db").await["svids"].is_array() {}
    let valid = other.asked(&asks).await;
    assert!(valid["claims"].is_array(), "{valid}");
    endpoint.revoke(What::Workload("shop/web".into()), false).await;
    let refused = loop {
        let said = other.asked(&asks).await;
        if !said["claims"].is_array() {
            break said;
        }
    };
    assert_eq!(refusal(&refused).0, "InvalidArgument");
    assert!(refusal(&refused).1.contains("shop/web is revoked"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_remembered_for_half_of_its_life() {
    let (endpoint, mut program) = start().await;
    let first = program.asked("jwt db").await;
    let mut other = Program::start(&endpoint.socket());
    assert_eq!(token(&other.asked("jwt db").await), token(&first), "also for others that are the same");
    assert_ne!(token(&program.asked("jwt api").await), token(&first));
    endpoint.travel(bonafide_ca::jwt::JWT_TTL / 2 + 1);
    assert_ne!(token(&program.asked("jwt db").await), token(&first));
}

#[tokio::test(flavor = "multi_thread")]
async fn e_4_while_nobody_signs_tokens_are_unavailable_and_are_still_checked() {
    let (mut endpoint, mut program) = start().await;
    let said = program.asked("jwt db").await;
    endpoint.stop_ca().await;
    let away = program.asked("jwt api").await;
    assert_eq!(refusal(&away).0, "Unavailable", "{away}");
    let valid = program.asked(&format!("validate db {}", token(&said))).await;
    assert_eq!(valid["id"], "spiffe://example.org/shop/web");
}
