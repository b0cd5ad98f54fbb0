//! What years do to tokens, bans, policies and roots: each lasts exactly as long as it says.

use bonafide_ca::node::MembershipError;
use bonafide_ca::policies::Publication;
use bonafide_ca::rotation::Step;
use bonafide_ca::store::By;
use bonafide_ca::{Authority, NodeCa};
use bonafide_proto::signed_policy::SignedPolicy;
use bonafide_proto::svid::Expect;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::bench::{Domain, charter, csr, fingerprint, instant, refusal};

const YEAR: i64 = 365 * 86_400;

/// The authority is stopped, and started at this time.
fn restarted(domain: Domain) -> Domain {
    let Domain { dir, clock, authority } = domain;
    drop(Arc::into_inner(authority).expect("nobody else holds it"));
    let authority = Arc::new(Authority::open(&charter(dir.path()), clock.clone()).unwrap());
    Domain { dir, clock, authority }
}

fn verified(domain: &Domain, node: &NodeCa) {
    let leaf = node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(&[])).unwrap();
    let bundle = node.trust_bundle().unwrap();
    bundle.verify(&leaf.chain, instant(&domain.clock), Expect::Workload).unwrap();
}

#[tokio::test]
async fn a_join_token_lasts_to_its_last_second_and_is_forgotten_long_after() {
    let domain = Domain::new();
    let [first, second, third] = [(); 3].map(|()| domain.token(None));
    domain.clock.forward(600);
    domain.stranger("a").join(&domain.link(), &first).await.unwrap();
    domain.clock.forward(1);
    let join = async |domain: &Domain, token, name: &str| -> MembershipError {
        domain.stranger(name).join(&domain.link(), token).await.unwrap_err()
    };
    assert_eq!(refusal(&join(&domain, &second, "b").await), "token-expired");
    assert_eq!(refusal(&join(&domain, &first, "b").await), "token-used");
    domain.clock.forward(YEAR);
    let domain = restarted(domain);
    assert_eq!(refusal(&join(&domain, &third, "c").await), "token-unknown");
    let member = domain.member("c").await;
    verified(&domain, &member);
}

#[tokio::test]
async fn a_ban_lasts_for_years_and_over_restarts_until_it_is_lifted() {
    let domain = Domain::new();
    let (member, name) = (domain.member("a").await, "a".parse().unwrap());
    domain.authority.ban(&By::Uid(0), &name, "stolen").unwrap();
    drop(member);
    let mut domain = domain;
    for _ in 0..3 {
        domain.clock.forward(YEAR);
        domain = restarted(domain);
        let token = domain.token(Some("a"));
        let refused = domain.stranger("a").join(&domain.link(), &token).await.unwrap_err();
        assert_eq!(refusal(&refused), "banned");
    }
    assert!(domain.authority.unban(&By::Uid(0), &name).unwrap());
    domain.stranger("a").join(&domain.link(), &domain.token(Some("a"))).await.unwrap();
}

#[tokio::test]
async fn a_policy_is_believed_years_after_whoever_signed_it_has_expired() {
    let domain = Domain::new();
    let publish = |domain: &Domain, text: &str| {
        let publication = Publication { text: text.into(), author: String::new(), version: None, confirm_within: None };
        domain.authority.publish(&By::Uid(0), &publication).unwrap().version
    };
    assert_eq!(publish(&domain, "mode = \"observe\"\n"), 1);
    domain.clock.forward(9 * YEAR);
    let domain = restarted(domain);
    let signed = domain.authority.policies().now().unwrap().signed.clone();
    let node = domain.member("late").await;
    assert_eq!(SignedPolicy::verify(&signed, &node.trust_bundle().unwrap()).unwrap().version(), 1);
    assert_eq!(publish(&domain, "mode = \"shadow\"\n"), 2, "and the next one follows it");
}

#[tokio::test]
async fn a_root_that_expired_certifies_nobody_and_the_next_one_does_in_its_place() {
    let (domain, alone) = (Domain::new(), Domain::new());
    let first = domain.authority.root();
    domain.clock.forward(9 * YEAR);
    for step in [Step::Prepare, Step::Publish, Step::Activate] {
        domain.authority.rotate(&By::Uid(0), step, &BTreeSet::new()).unwrap();
    }
    let node = domain.member("a").await;
    assert_eq!(domain.authority.root(), first, "who was away knows the older one");
    for domain in [&domain, &alone] {
        domain.clock.forward(if std::ptr::eq(domain, &alone) { 10 * YEAR + 1 } else { YEAR + 1 });
    }
    assert_ne!(domain.authority.root(), first, "it is nobody's any more");
    domain.authority.own_svid().unwrap();
    let fresh = domain.member("b").await;
    verified(&domain, &fresh);
    assert!(domain.authority.rotate(&By::Uid(0), Step::Retire, &BTreeSet::new()).unwrap(), "nothing depends on it");
    let domain = restarted(domain);
    verified(&domain, &domain.member("c").await);
    drop(node);

    // Where nobody made the next one, nothing is certified, and it says why.
    assert!(alone.authority.own_svid().unwrap_err().to_string().contains("is not valid now"));
    assert!(alone.stranger("a").join(&alone.link(), &alone.token(None)).await.is_err());
}
