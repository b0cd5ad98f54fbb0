//! JWT-SVIDs: whom the authority signs them for.

use bonafide_ca::jwt::JwtOrder;
use bonafide_ca::store::By;
use bonafide_ca::{AuthorityLink as _, LinkError};
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::grant::Grant;
use bonafide_proto::jwt::JwtBundle;
use bonafide_proto::refusal::AttestReason;

use crate::bench::{Domain, START, fingerprint, trust_domain};

fn order(workload: &str, digests: Vec<Digest>) -> JwtOrder {
    JwtOrder { workload: workload.parse().unwrap(), audiences: vec!["db".into()], digests }
}

#[tokio::test]
async fn a_member_has_tokens_signed_that_the_published_keys_prove() {
    let domain = Domain::new();
    let node = domain.member("a").await;
    let link = domain.link();
    node.refresh_jwt_keys(&link).await.unwrap();
    let keys = node.jwt_keys().borrow().to_vec();
    let token = node.issue_jwt(&link, &"shop/web".parse().unwrap(), &fingerprint(), vec!["db".into()]).await.unwrap();
    let bundle = JwtBundle::new(trust_domain(), keys).unwrap();
    let proven = bundle.verify(&token, "db", START).unwrap();
    assert_eq!(proven.id.to_string(), "spiffe://example.org/shop/web");
}

#[tokio::test]
async fn no_token_is_signed_for_a_program_in_quarantine_or_without_an_audience() {
    let domain = Domain::new();
    let node = domain.member("a").await;
    let (link, member) = (domain.link(), node.member().unwrap());
    let refused = async |order: JwtOrder| match link.sign_jwt(&member, &order).await {
        Err(LinkError::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let program = || order("web", vec![Digest([6; 32]), Digest([7; 32])]);
    assert!(link.sign_jwt(&member, &program()).await.is_ok());
    domain.authority.quarantine().add(&By::Uid(0), Digest([7; 32]), "").unwrap();
    assert_eq!(refused(program()).await, "quarantined");
    assert_eq!(refused(JwtOrder { audiences: Vec::new(), ..order("web", Vec::new()) }).await, "bad-request");
    assert_eq!(refused(JwtOrder { audiences: vec!["x".repeat(600)], ..order("web", Vec::new()) }).await, "bad-request");
}

#[tokio::test]
async fn a_node_signs_nothing_by_itself_and_nothing_beyond_its_grant() {
    let domain = Domain::new();
    let stranger = domain.stranger("b");
    let link = domain.link();
    let asked = stranger.issue_jwt(&link, &"web".parse().unwrap(), &fingerprint(), vec!["db".into()]).await;
    assert_eq!(asked.unwrap_err().reason, AttestReason::NoIntermediate);
    assert!(stranger.refresh_jwt_keys(&link).await.is_err());

    let grant = Grant::of(["shop/*"]).unwrap();
    stranger.join(&link, &domain.token_for(None, Some(grant))).await.unwrap();
    let member = stranger.member().unwrap();
    assert!(link.sign_jwt(&member, &order("shop/web", Vec::new())).await.is_ok());
    // The authority itself refuses, whatever the node's own CA would have.
    match link.sign_jwt(&member, &order("pay/api", Vec::new())).await {
        Err(LinkError::Refused { reason, .. }) => assert_eq!(reason, "not-granted"),
        other => panic!("{other:?}"),
    }
    let asked = stranger.issue_jwt(&link, &"pay/api".parse().unwrap(), &fingerprint(), vec!["db".into()]).await;
    assert_eq!(asked.unwrap_err().reason, AttestReason::NotGranted);
}
