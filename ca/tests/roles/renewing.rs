//! Renewal: new keys over mutual TLS at half-life, and what goes on while the authority is away.

use std::sync::Arc;

use bonafide_ca::node::{Contact, Due, MembershipError};
use bonafide_ca::upkeep::{self, TokenSource};
use bonafide_ca::{LinkError, NodeCa};
use bonafide_proto::svid::Expect;

use crate::bench::{
    Domain, INTERMEDIATE_TTL, LOOPBACKS, START, Served, csr, fingerprint, follow, instant, setup, until,
};

#[tokio::test]
async fn a_member_renews_over_mutual_tls_with_new_keys() {
    for ip in LOOPBACKS {
        let served = Served::on(ip).await;
        let node = served.member("a").await;
        let before = node.member().unwrap();
        served.clock.forward(i64::from(INTERMEDIATE_TTL) / 2);
        node.renew(&served.link()).await.unwrap();
        let after = node.member().unwrap();
        assert_eq!(after.not_after(), before.not_after() + i64::from(INTERMEDIATE_TTL) / 2);
        assert_ne!(after.node_svid(), before.node_svid());
        assert_eq!(after.sequence(), before.sequence(), "the roots did not change");
        assert_eq!(node.contact(), Contact::Reached);
    }
}

#[tokio::test]
async fn renewal_is_due_around_half_life() {
    let domain = Domain::new();
    let node = domain.member("a").await;
    let life = i64::from(INTERMEDIATE_TTL) + 60;
    let half = START - 60 + life / 2;
    let at = node.member().unwrap().renew_at();
    assert!((half - life / 10..=half + life / 10).contains(&at), "{at} is not near {half}");
    assert!(matches!(node.due(), Due::NothingFor(_)));
    domain.clock.forward(at - START);
    assert_eq!(node.due(), Due::Renew);
}

#[tokio::test]
async fn leaves_are_issued_while_the_authority_is_away_and_renewal_follows_its_return() {
    let mut served = Served::on("127.0.0.1").await;
    let node = served.member("a").await;
    let nowhere = TokenSource::File(served.dir.path().join("none"));
    served.stop().await;
    served.clock.forward(i64::from(INTERMEDIATE_TTL) - 100);

    let refused = upkeep::step(&node, &served.link(), &nowhere).await.unwrap_err();
    assert!(refused.to_string().contains("does not answer"), "{refused}");
    assert!(matches!(node.contact(), Contact::Failed(_)));
    let leaf = node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(&[])).unwrap();
    let bundle = node.trust_bundle().unwrap();
    bundle.verify(&leaf.chain, instant(&served.clock), Expect::Workload).unwrap();

    served.start().await;
    upkeep::step(&node, &served.link(), &nowhere).await.unwrap();
    assert!(matches!(node.due(), Due::NothingFor(_)));
    bundle.verify(&leaf.chain, instant(&served.clock), Expect::Workload).unwrap();
}

#[tokio::test]
async fn the_status_tells_whether_the_authority_is_there() {
    let mut served = Served::on("127.0.0.1").await;
    drop(served.member("a").await);
    let again = served.stranger("a");
    assert_eq!(again.contact(), Contact::None);
    let again = Arc::new(again);
    let following = follow(&again, served.link());
    until(|| again.contact() == Contact::Reached).await;
    served.stop().await;
    until(|| matches!(again.contact(), Contact::Failed(_))).await;
    served.start().await;
    until(|| again.contact() == Contact::Reached).await;
    following.abort();
}

#[tokio::test]
async fn a_membership_survives_a_restart_of_the_node() {
    let served = Served::on("127.0.0.1").await;
    let node = served.member("a").await;
    let (before, clock) = (node.member().unwrap(), served.clock.clone());
    drop(node);
    let again = NodeCa::open(setup(served.dir.path(), "a"), clock).unwrap();
    assert_eq!(again.member().unwrap().node_svid(), before.node_svid());
    again.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(&[])).unwrap();
    again.renew(&served.link()).await.unwrap();
}

#[tokio::test]
async fn an_expired_member_cannot_renew_but_joins_again_by_a_token_file() {
    let served = Served::on("127.0.0.1").await;
    let node = served.member("a").await;
    served.clock.forward(i64::from(INTERMEDIATE_TTL) + 1);
    let refused = node.renew(&served.link()).await.unwrap_err();
    assert!(matches!(&refused, MembershipError::Expired(_)), "{refused}");

    let file = served.dir.path().join("join.token");
    let source = TokenSource::File(file.clone());
    let missing = upkeep::step(&node, &served.link(), &source).await.unwrap_err();
    assert!(missing.to_string().contains("does not exist; make a token"), "{missing}");
    std::fs::write(&file, "no token").unwrap();
    let wrong = upkeep::step(&node, &served.link(), &source).await.unwrap_err();
    assert!(wrong.to_string().contains("no join token"), "{wrong}");
    std::fs::write(&file, served.token("a").await.reveal().as_bytes()).unwrap();
    upkeep::step(&node, &served.link(), &source).await.unwrap();
    assert!(!file.exists(), "the used token stays");
    node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(&[])).unwrap();
}

#[tokio::test]
async fn an_authority_that_lost_its_members_says_so() {
    let mut served = Served::on("127.0.0.1").await;
    let node = served.member("a").await;
    served.stop().await;
    std::fs::remove_dir_all(served.dir.path().join("authority")).unwrap();
    served.start().await;
    // It is another root now: the node does not even tell it its name.
    let refused = node.renew(&served.link()).await.unwrap_err();
    assert!(matches!(&refused, MembershipError::Link(LinkError::Distrust { .. })), "{refused}");
}

#[tokio::test]
async fn the_authority_replaces_its_own_svid_at_half_life() {
    let domain = Domain::new();
    let first = domain.authority.own_svid().unwrap();
    assert_eq!(first.cert, domain.authority.own_svid().unwrap().cert);
    domain.clock.forward(1801);
    let second = domain.authority.own_svid().unwrap();
    assert_ne!(first.cert, second.cert);
    let bundle = domain.authority.trust_bundle();
    bundle.verify(&second.cert, instant(&domain.clock), Expect::Authority).unwrap();
}
