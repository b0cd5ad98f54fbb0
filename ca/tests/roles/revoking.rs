//! Revocation: told to every node at once, learnt first by those that come back, and obeyed by each.

use std::sync::Arc;

use bonafide_ca::node::{Due, MembershipError};
use bonafide_ca::store::By;
use bonafide_ca::upkeep::{self, TokenSource};
use bonafide_ca::{LinkError, NodeCa};
use bonafide_proto::record::Reason;
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::svid::{Expect, PeerSvid, TrustBundle};
use bonafide_proto::wire::authority as wire;
use bonafide_proto::wire::authority::revoke_request::What;

use crate::bench::{
    Domain, INTERMEDIATE_TTL, LOOPBACKS, Served, Travel, csr, fingerprint, follow, instant, refusal, setup, until,
};

async fn revoke(served: &Served, what: What, lift: bool) -> wire::QuarantineResponse {
    let reason = if lift { "" } else { "stolen" }.to_owned();
    let request = wire::RevokeRequest { what: Some(what), lift, reason };
    served.admin().revoke(request).await.unwrap().into_inner()
}

async fn ban(served: &Served, node: &str, lift: bool) -> wire::QuarantineResponse {
    let request = wire::BanRequest { node: node.into(), lift, reason: String::new() };
    served.admin().ban(request).await.unwrap().into_inner()
}

fn issue(node: &NodeCa, workload: &str, clock: &Travel, bundle: &TrustBundle) -> Result<PeerSvid, AttestReason> {
    let leaf = node.issue_leaf(&workload.parse().unwrap(), &fingerprint(), &csr(&[])).map_err(|e| e.reason)?;
    Ok(bundle.verify(&leaf.chain, instant(clock), Expect::Workload).unwrap())
}

fn issued(node: &NodeCa, served: &Served) -> Result<PeerSvid, AttestReason> {
    issue(node, "shop/web", &served.clock, &node.trust_bundle().unwrap())
}

/// What this node makes of a certificate.
fn objection(at: &NodeCa, svid: &PeerSvid) -> Option<Reason> {
    let known = at.mesh().borrow().clone();
    known.revoked.issuer(svid.issuer().unwrap()).map(|(reason, _)| reason)
}

async fn state_of(served: &Served, node: &str) -> String {
    let listed = served.admin().list_nodes(wire::ListNodesRequest {}).await.unwrap().into_inner().nodes;
    listed.into_iter().find(|n| n.name == node).unwrap().state
}

#[tokio::test]
async fn an_evicted_node_is_out_at_once_everywhere_and_comes_back_by_a_new_token() {
    for ip in LOOPBACKS {
        let served = Served::on(ip).await;
        let [a, b] = [Arc::new(served.member("a").await), Arc::new(served.member("b").await)];
        let following = [follow(&a, served.link()), follow(&b, served.link())];
        let before = issued(&b, &served).unwrap();
        assert_eq!((objection(&a, &before), state_of(&served, "b").await.as_str()), (None, "member"));

        let told = revoke(&served, What::Node("b".into()), false).await;
        assert_eq!((told.changed, told.told, told.nodes), (true, 1, 1), "b is none of those that are waited for");
        assert_eq!(objection(&a, &before), Some(Reason::NodeRevoked));
        // It is told itself before its connection ends, and issues nothing more.
        until(|| issued(&b, &served).is_err()).await;
        assert_eq!(issued(&b, &served), Err(AttestReason::NodeRevoked));
        assert_eq!(state_of(&served, "b").await, "evicted");
        for refused in [b.renew(&served.link()).await, b.follow(&served.link()).await] {
            assert_eq!(refusal(&refused.unwrap_err()), "evicted");
        }
        let connected = async || {
            let listed = served.admin().list_nodes(wire::ListNodesRequest {}).await.unwrap().into_inner().nodes;
            listed.into_iter().filter(|node| node.following).map(|node| node.name).collect::<Vec<_>>()
        };
        // It may listen for half a second more.
        while connected().await != ["a"] {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(!revoke(&served, What::Node("b".into()), false).await.changed);

        // A token that its operator puts there lets it in again, and what it issues now counts.
        let file = served.dir.path().join("join.token");
        std::fs::write(&file, served.token("b").await.reveal().as_bytes()).unwrap();
        assert_eq!(b.due(), Due::Renew);
        upkeep::step(&b, &served.link(), &TokenSource::File(file)).await.unwrap();
        let after = issued(&b, &served).unwrap();
        assert_eq!((objection(&a, &after), objection(&a, &before)), (None, Some(Reason::NodeRevoked)));
        following.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

#[tokio::test]
async fn a_lifted_node_renews_and_what_it_issued_stays_revoked() {
    let served = Served::on("127.0.0.1").await;
    let node = Arc::new(served.member("a").await);
    let before = issued(&node, &served).unwrap();
    revoke(&served, What::Node("a".into()), false).await;
    assert_eq!(refusal(&node.renew(&served.link()).await.unwrap_err()), "evicted");
    let following = follow(&node, served.link());
    assert!(revoke(&served, What::Node("a".into()), true).await.changed);
    assert!(!revoke(&served, What::Node("a".into()), true).await.changed);
    until(|| node.due() == Due::Renew).await;
    let none = TokenSource::File(served.dir.path().join("none"));
    upkeep::step(&node, &served.link(), &none).await.unwrap();
    assert_eq!(objection(&node, &issued(&node, &served).unwrap()), None);
    assert_eq!(objection(&node, &before), Some(Reason::NodeRevoked));
    following.abort();
}

#[tokio::test]
async fn a_banned_node_joins_by_no_token_until_it_is_unbanned() {
    let served = Served::on("127.0.0.1").await;
    let node = served.member("a").await;
    assert!(ban(&served, "a", false).await.changed);
    assert!(!ban(&served, "a", false).await.changed);
    assert_eq!(state_of(&served, "a").await, "banned");
    assert_eq!(refusal(&node.renew(&served.link()).await.unwrap_err()), "banned");
    let again = served.stranger_elsewhere("a");
    let join = async |node: &NodeCa, token| node.join(&served.link(), &token).await;
    assert_eq!(refusal(&join(&again, served.token("a").await).await.unwrap_err()), "banned");
    // The same machine, by its identifiers, under another name.
    if std::fs::read_to_string("/etc/machine-id").is_ok_and(|id| !id.trim().is_empty()) {
        let renamed = served.stranger("other");
        assert_eq!(refusal(&join(&renamed, served.token("").await).await.unwrap_err()), "banned");
    }
    let readmit = wire::RevokeRequest { what: Some(What::Node("a".into())), lift: true, reason: String::new() };
    assert_eq!(served.admin().revoke(readmit).await.unwrap_err().code(), tonic::Code::FailedPrecondition);

    assert!(ban(&served, "a", true).await.changed);
    assert_eq!(refusal(&node.renew(&served.link()).await.unwrap_err()), "evicted");
    join(&again, served.token("a").await).await.unwrap();
    assert_eq!(objection(&again, &issued(&again, &served).unwrap()), None);
    assert_eq!(state_of(&served, "a").await, "member");
    // A name that nobody had can be kept free, too.
    assert!(ban(&served, "never", false).await.changed);
    assert_eq!(refusal(&join(&served.stranger("never"), served.token("").await).await.unwrap_err()), "banned");
}

#[tokio::test]
async fn a_smaller_grant_counts_at_once() {
    let served = Served::on("127.0.0.1").await;
    let [a, b] = [Arc::new(served.member("a").await), Arc::new(served.member("b").await)];
    let following = [follow(&a, served.link()), follow(&b, served.link())];
    let before = issued(&a, &served).unwrap();
    let order = |workloads: &[&str]| wire::GrantNodeRequest {
        node: "a".into(),
        grant: Some(wire::Grant { workloads: workloads.iter().map(ToString::to_string).collect() }),
    };
    let told = served.admin().grant_node(order(&["shop/web"])).await.unwrap().into_inner().revoked.unwrap();
    assert_eq!((told.told, told.nodes), (2, 2));
    assert_eq!(objection(&b, &before), Some(Reason::NodeRevoked));
    assert_eq!((a.due(), issued(&a, &served)), (Due::Renew, Err(AttestReason::NodeRevoked)));
    let none = TokenSource::File(served.dir.path().join("none"));
    upkeep::step(&a, &served.link(), &none).await.unwrap();
    assert_eq!(objection(&b, &issued(&a, &served).unwrap()), None);
    let bundle = a.trust_bundle().unwrap();
    assert_eq!(issue(&a, "shop/db", &served.clock, &bundle), Err(AttestReason::NotGranted));
    assert!(matches!(a.due(), Due::NothingFor(_)), "it renews once");

    let wider = served.admin().grant_node(order(&["shop/*"])).await.unwrap().into_inner();
    assert!(wider.changed && wider.revoked.is_none(), "{wider:?}");
    assert_eq!(objection(&b, &issued(&a, &served).unwrap()), None);
    following.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_node_renews_by_itself_as_soon_as_it_is_told() {
    let domain = Domain::new();
    let node = Arc::new(domain.member("a").await);
    let (following, link, keeper) = (follow(&node, domain.link()), domain.link(), Arc::clone(&node));
    let tokens = TokenSource::File(domain.dir.path().join("none"));
    let keeping = tokio::spawn(async move { upkeep::keep(&keeper, &link, &tokens).await.map(|_| ()) });
    let before = node.member().unwrap().issuer().unwrap().number;
    domain.authority.grant(&By::Daemon, &"a".parse().unwrap(), &"x".parse().unwrap()).unwrap();
    until(|| node.member().unwrap().issuer().unwrap().number > before).await;
    assert_eq!(node.member().unwrap().mandate().unwrap().grant.to_string(), "x");
    following.abort();
    keeping.abort();
}

#[tokio::test]
async fn nobody_is_a_revoked_workload_until_it_is_lifted() {
    let served = Served::on("127.0.0.1").await;
    let node = Arc::new(served.member("a").await);
    let following = follow(&node, served.link());
    let bundle = node.trust_bundle().unwrap();
    let told = revoke(&served, What::Workload("shop/web".into()), false).await;
    assert_eq!((told.changed, told.told), (true, 1));
    assert_eq!(issued(&node, &served), Err(AttestReason::WorkloadRevoked));
    issue(&node, "shop/db", &served.clock, &bundle).unwrap();
    // It stays so, however long: it names certificates of the future, too.
    served.clock.forward(i64::from(INTERMEDIATE_TTL) / 2);
    node.renew(&served.link()).await.unwrap();
    assert_eq!(issued(&node, &served), Err(AttestReason::WorkloadRevoked));
    assert!(revoke(&served, What::Workload("shop/web".into()), true).await.changed);
    until(|| issued(&node, &served).is_ok()).await;
    following.abort();
}

#[tokio::test]
async fn entries_go_when_what_they_name_has_expired() {
    let served = Served::on("127.0.0.1").await;
    let node = served.member("a").await;
    let serial = issued(&node, &served).unwrap().serial().to_owned();
    revoke(&served, What::Serial(hex(&serial)), false).await;
    revoke(&served, What::Node("a".into()), false).await;
    revoke(&served, What::Workload("w".into()), false).await;
    let list = async || {
        let listed = served.admin().list_revoked(wire::ListRevokedRequest {}).await.unwrap().into_inner().revoked;
        listed.into_iter().map(|one| (one.kind, one.what, one.until > 0)).collect::<Vec<_>>()
    };
    let entry = |kind: &str, what: &str, ends| (kind.to_owned(), what.to_owned(), ends);
    let all = [entry("node", "a", true), entry("workload", "w", false), entry("serial", &serial, true)];
    assert_eq!(list().await, all);
    served.clock.forward(i64::from(INTERMEDIATE_TTL) + 1);
    assert_eq!(list().await, [entry("workload", "w", false)]);
    // The next change drops them from what is told.
    revoke(&served, What::Workload("x".into()), false).await;
    let joined = served.stranger("b");
    joined.join(&served.link(), &served.token("").await).await.unwrap();
    let known = joined.mesh().borrow().revoked.clone();
    assert_eq!((known.nodes.len(), known.serials.len(), known.workloads.len()), (0, 0, 2));
}

#[tokio::test]
async fn who_follows_is_told_no_longer_of_what_has_expired() {
    let served = Served::on("127.0.0.1").await;
    let (a, b) = (Arc::new(served.member("a").await), served.member("b").await);
    let following = follow(&a, served.link());
    revoke(&served, What::Node("b".into()), false).await;
    revoke(&served, What::Workload("w".into()), false).await;
    drop(b);
    let known = || a.mesh().borrow().revoked.clone();
    until(|| known().len() == 2).await;
    for _ in 0..2 {
        served.clock.forward(i64::from(INTERMEDIATE_TTL) / 2 + 1);
        // It may be written down at this very moment that it was seen.
        while a.renew(&served.link()).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    until(|| known().nodes.is_empty()).await;
    assert_eq!(known().workloads.len(), 1, "that stays until it is lifted");
    following.abort();
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[tokio::test]
async fn a_node_that_was_away_learns_it_before_it_issues_by_its_old_word_and_keeps_it_across_restarts() {
    let mut served = Served::on("127.0.0.1").await;
    let away = served.member("away").await;
    let gone = issued(&served.member("gone").await, &served).unwrap();
    revoke(&served, What::Node("gone".into()), false).await;
    revoke(&served, What::Workload("shop/web".into()), false).await;
    assert_eq!((objection(&away, &gone), issued(&away, &served).err()), (None, None), "nobody told it yet");
    // The very first thing that a connection brings.
    let (_held, says) = tokio::sync::watch::channel(bonafide_ca::mesh::Held::default());
    let member = away.member().unwrap();
    let mut states = bonafide_ca::AuthorityLink::follow(&served.link(), &member, away.machine(), says).await.unwrap();
    let first = tokio_stream::StreamExt::next(&mut states).await.unwrap().unwrap();
    assert!(first.mesh.revoked.nodes.contains_key(&"gone".parse().unwrap()), "{first:?}");

    let away = Arc::new(away);
    let following = follow(&away, served.link());
    until(|| objection(&away, &gone).is_some()).await;
    served.stop().await;
    following.abort();
    let _ = following.await;
    let clock = served.clock.clone();
    drop((away, states));
    let again = NodeCa::open(setup(served.dir.path(), "away"), clock).unwrap();
    assert_eq!(objection(&again, &gone), Some(Reason::NodeRevoked));
    assert_eq!(issued(&again, &served), Err(AttestReason::WorkloadRevoked));
}

#[tokio::test]
async fn what_cannot_be_revoked_is_refused() {
    let served = Served::on("127.0.0.1").await;
    let code = async |what: Option<What>, reason: &str| {
        let request = wire::RevokeRequest { what, lift: false, reason: reason.into() };
        served.admin().revoke(request).await.unwrap_err().code()
    };
    assert_eq!(code(Some(What::Node("nobody".into())), "").await, tonic::Code::NotFound);
    for (what, reason) in [
        (None, ""),
        (Some(What::Node("a/b".into())), ""),
        (Some(What::Workload("bonafide/x".into())), ""),
        (Some(What::Serial(vec![])), ""),
        (Some(What::Serial(vec![1; 21])), ""),
        (Some(What::Workload("x".into())), "two\nlines"),
    ] {
        assert_eq!(code(what, reason).await, tonic::Code::InvalidArgument);
    }
}

#[tokio::test]
async fn strangers_and_the_evicted_are_told_nothing() {
    let domain = Domain::new();
    let node = domain.member("a").await;
    domain.authority.evict(&By::Daemon, &"a".parse().unwrap(), "").unwrap();
    let refused = node.follow(&domain.link()).await.unwrap_err();
    assert!(matches!(&refused, MembershipError::Link(LinkError::Refused { reason, .. }) if reason == "evicted"));
}
