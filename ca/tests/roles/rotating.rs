//! From one root to the next: every step and every refusal, nobody dropped, and nothing of the old root left.

use std::collections::BTreeSet;
use std::sync::Arc;

use bonafide_ca::node::{Due, MembershipError};
use bonafide_ca::rotation::{RotationError, Step};
use bonafide_ca::store::{By, Stage};
use bonafide_ca::upkeep::{self, TokenSource};
use bonafide_ca::{Authority, Leaf, LinkError, NodeCa};
use bonafide_proto::name::NodeName;
use bonafide_proto::svid::{Expect, TrustBundle};
use bonafide_proto::wire::authority as wire;

use crate::bench::{
    Domain, INTERMEDIATE_TTL, LOOPBACKS, START, Served, csr, fingerprint, follow, instant, setup, until,
};

fn names(names: &[&str]) -> BTreeSet<NodeName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn step(authority: &Authority, step: Step) -> Result<bool, RotationError> {
    authority.rotate(&By::Uid(0), step, &BTreeSet::new())
}

fn stages(authority: &Authority) -> Vec<(u64, Stage)> {
    let store = authority.store().roots().unwrap().unwrap();
    store.roots.iter().map(|root| (root.number, root.stage)).collect()
}

fn leaf(node: &NodeCa) -> Leaf {
    node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(&[])).unwrap()
}

fn accepts(bundle: &TrustBundle, leaf: &Leaf, domain: &Domain) -> bool {
    bundle.verify(&leaf.chain, instant(&domain.clock), Expect::Workload).is_ok()
}

fn nowhere(domain: &Domain) -> TokenSource {
    TokenSource::File(domain.dir.path().join("no.token"))
}

/// Both follow until the number of their roots is this.
async fn know(nodes: &[&Arc<NodeCa>], sequence: u64) {
    until(|| nodes.iter().all(|node| node.member().unwrap().sequence() == sequence)).await;
}

/// The authority has heard of each that it has the newest roots.
async fn acknowledged(domain: &Domain, sequence: u64) {
    until(|| domain.authority.nodes().unwrap().iter().all(|(_, record)| record.roots == sequence)).await;
}

#[tokio::test]
async fn a_root_is_replaced_and_nobody_is_dropped() {
    let domain = Domain::new();
    let (a, b) = (Arc::new(domain.member("a").await), Arc::new(domain.member("b").await));
    let following = [follow(&a, domain.link()), follow(&b, domain.link())];
    acknowledged(&domain, 1).await;
    let old = a.trust_bundle().unwrap();
    let before = leaf(&a);

    assert!(step(&domain.authority, Step::Prepare).unwrap());
    assert!(!step(&domain.authority, Step::Prepare).unwrap(), "one is prepared");
    assert_eq!(a.trust_bundle().unwrap().roots(), old.roots(), "nobody is told");
    assert!(step(&domain.authority, Step::Publish).unwrap());
    assert!(!step(&domain.authority, Step::Publish).unwrap());
    know(&[&a, &b], 2).await;
    acknowledged(&domain, 2).await;
    assert_eq!(a.trust_bundle().unwrap().roots().len(), 2);
    assert!(matches!(a.due(), Due::NothingFor(_)), "the old one certifies as ever");
    assert!(accepts(&old, &leaf(&a), &domain));

    assert!(step(&domain.authority, Step::Activate).unwrap());
    assert!(!step(&domain.authority, Step::Activate).unwrap());
    know(&[&a, &b], 3).await;
    assert_eq!((a.due(), b.due()), (Due::Renew, Due::Renew), "at once");
    a.renew(&domain.link()).await.unwrap();
    assert!(matches!(a.due(), Due::NothingFor(_)));
    let (after, of_b) = (leaf(&a), leaf(&b));
    assert!(!accepts(&old, &after, &domain), "it is of the next root");
    for node in [&a, &b] {
        let bundle = node.trust_bundle().unwrap();
        assert!([&before, &after, &of_b].into_iter().all(|leaf| accepts(&bundle, leaf, &domain)), "both are trusted");
    }

    b.renew(&domain.link()).await.unwrap();
    let early = step(&domain.authority, Step::Retire).unwrap_err();
    assert!(
        matches!(&early, RotationError::Depended { nodes, until } if nodes.0 == names(&["a", "b"])
        && *until == START + i64::from(INTERMEDIATE_TTL)),
        "{early}"
    );
    domain.clock.forward(i64::from(INTERMEDIATE_TTL) / 2);
    a.renew(&domain.link()).await.unwrap();
    b.renew(&domain.link()).await.unwrap();
    domain.clock.forward(i64::from(INTERMEDIATE_TTL) / 2 + 1);
    a.renew(&domain.link()).await.unwrap();
    b.renew(&domain.link()).await.unwrap();
    assert!(step(&domain.authority, Step::Retire).unwrap());
    assert!(!step(&domain.authority, Step::Retire).unwrap());
    know(&[&a, &b], 4).await;
    let new = a.trust_bundle().unwrap();
    assert_eq!((new.roots().len(), stages(&domain.authority)), (1, vec![(2, Stage::Active)]));
    assert!(!new.roots().contains(&old.roots()[0]));
    assert!(accepts(&new, &leaf(&b), &domain));
    acknowledged(&domain, 4).await;
    domain.member("c").await;

    let entries = domain.authority.store().audit_entries(1, 100).unwrap();
    let acts: Vec<String> = entries.iter().map(|entry| String::from_utf8_lossy(entry).into_owned()).collect();
    for act in ["root-prepared", "root-published", "root-activated", "root-retired"] {
        assert_eq!(acts.iter().filter(|entry| entry.contains(act)).count(), 1, "{act}");
    }
    following.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_step_out_of_order_or_too_early_is_refused_by_name() {
    let domain = Domain::new();
    assert!(matches!(step(&domain.authority, Step::Publish), Err(RotationError::NotPrepared)));
    assert!(matches!(step(&domain.authority, Step::Activate), Err(RotationError::NotPublished)));
    assert!(matches!(step(&domain.authority, Step::Retire), Err(RotationError::NotActivated)));
    let (a, b) = (Arc::new(domain.member("a").await), domain.member("b").await);
    step(&domain.authority, Step::Prepare).unwrap();
    assert!(matches!(step(&domain.authority, Step::Activate), Err(RotationError::NotPublished)));
    step(&domain.authority, Step::Publish).unwrap();
    assert!(matches!(step(&domain.authority, Step::Prepare), Err(RotationError::UnderWay(2, Stage::Published))));
    let following = follow(&a, domain.link());
    know(&[&a], 2).await;
    let awaited = || match step(&domain.authority, Step::Activate) {
        Err(RotationError::Awaited(nodes)) => nodes.0,
        other => panic!("{other:?}"),
    };
    until(|| awaited() == names(&["b"])).await;
    let refused = domain.authority.rotate(&By::Uid(0), Step::Activate, &names(&["a"])).unwrap_err();
    assert!(refused.to_string().contains("--leave-behind b"), "{refused}");

    // Who is no member is not waited for.
    domain.authority.ban(&By::Uid(0), &"b".parse().unwrap(), "lost").unwrap();
    assert!(step(&domain.authority, Step::Activate).unwrap());
    assert!(matches!(step(&domain.authority, Step::Prepare), Err(RotationError::UnderWay(1, Stage::Outgoing))));
    assert!(matches!(step(&domain.authority, Step::Publish), Err(RotationError::NotPrepared)));
    following.abort();
    drop(b);
}

#[tokio::test]
async fn a_node_that_was_away_learns_of_the_next_root_or_is_told_what_to_do() {
    for ip in LOOPBACKS {
        let mut served = Served::on(ip).await;
        let (slow, lost) = (served.member("slow").await, served.member("lost").await);
        let order = async |step: wire::RotationStep, leave: &[&str]| {
            let leave_behind = leave.iter().map(ToString::to_string).collect();
            served.admin().rotate_root(wire::RotateRootRequest { step: step.into(), leave_behind }).await
        };
        order(wire::RotationStep::Prepare, &[]).await.unwrap();
        order(wire::RotationStep::Publish, &[]).await.unwrap();
        let early = order(wire::RotationStep::Activate, &["slow"]).await.unwrap_err();
        assert!(early.message().contains("--leave-behind lost"), "{early}");
        let active = order(wire::RotationStep::Activate, &["slow", "lost"]).await.unwrap().into_inner();
        assert_eq!(active.awaited, ["lost", "slow"]);
        assert!(active.roots.iter().all(|root| root.key_here));

        // It knows the old root alone, and the authority shows itself by that.
        slow.renew(&served.link()).await.unwrap();
        assert_eq!((slow.member().unwrap().sequence(), slow.trust_bundle().unwrap().roots().len()), (3, 2));

        let early = order(wire::RotationStep::Retire, &["slow"]).await.unwrap_err();
        assert!(early.message().contains("--leave-behind lost"), "{early}");
        order(wire::RotationStep::Retire, &["slow", "lost"]).await.unwrap();
        slow.renew(&served.link()).await.unwrap();
        assert_eq!(slow.trust_bundle().unwrap().roots().len(), 1);

        // The certificate of a retired root opens no door, and the node says what helps.
        let refused = lost.renew(&served.link()).await.unwrap_err();
        assert!(matches!(&refused, MembershipError::Link(LinkError::Distrust { .. })), "{refused}");
        assert!(refused.to_string().contains("join with a new token"), "{refused}");
        served.clock.forward(i64::from(INTERMEDIATE_TTL) / 2 + 200);
        let file = served.dir.path().join("join.token");
        std::fs::write(&file, served.token("lost").await.reveal().as_bytes()).unwrap();
        upkeep::step(&lost, &served.link(), &TokenSource::File(file)).await.unwrap();
        assert_eq!(lost.trust_bundle().unwrap().roots(), slow.trust_bundle().unwrap().roots());

        // All of it is there after a restart, without the old key.
        served.stop().await;
        std::fs::remove_file(served.dir.path().join("authority/root.key")).unwrap();
        served.start().await;
        slow.renew(&served.link()).await.unwrap();
        let shown = served.admin().show_roots(wire::ShowRootsRequest {}).await.unwrap().into_inner();
        assert_eq!((shown.sequence, shown.roots.len(), shown.roots[0].stage.as_str()), (4, 1, "active"));
        served.stop().await;
    }
}

#[tokio::test]
async fn a_root_that_is_not_active_is_abandoned_and_nodes_forget_it() {
    let domain = Domain::new();
    let (key, abandon) = (|n| crate::bench::charter(domain.dir.path()).key_of(n).path, Step::Abandon);
    assert!(matches!(step(&domain.authority, abandon), Err(RotationError::NotPrepared)));
    let node = Arc::new(domain.member("a").await);
    let following = follow(&node, domain.link());
    acknowledged(&domain, 1).await;
    let old = node.trust_bundle().unwrap();
    let publication = bonafide_ca::policies::Publication {
        text: "mode = \"observe\"\n".into(),
        author: String::new(),
        version: None,
        confirm_within: None,
    };
    domain.authority.publish(&By::Uid(0), &publication).unwrap();

    step(&domain.authority, Step::Prepare).unwrap();
    assert!(key(2).exists());
    assert!(step(&domain.authority, abandon).unwrap());
    assert!(!step(&domain.authority, abandon).unwrap(), "it is");
    assert!(!key(2).exists() && key(1).exists());
    assert_eq!(stages(&domain.authority), [(1, Stage::Active)]);
    assert!(matches!(step(&domain.authority, Step::Retire), Err(RotationError::NotActivated)));

    step(&domain.authority, Step::Prepare).unwrap();
    assert_eq!(stages(&domain.authority), [(1, Stage::Active), (3, Stage::Prepared)], "no number is given again");
    step(&domain.authority, Step::Publish).unwrap();
    until(|| node.trust_bundle().unwrap().roots().len() == 2).await;
    assert_eq!(domain.authority.policies().now().unwrap().record.version, 2, "a policy that names both");
    assert!(step(&domain.authority, abandon).unwrap());
    until(|| node.trust_bundle().unwrap().roots() == old.roots()).await;
    assert_eq!(domain.authority.policies().now().unwrap().record.version, 3, "and one that does not");
    assert!(matches!(step(&domain.authority, Step::Activate), Err(RotationError::NotPublished)));
    assert!(accepts(&old, &leaf(&node), &domain) && matches!(node.due(), Due::NothingFor(_)));
    assert!(!key(3).exists());

    step(&domain.authority, Step::Prepare).unwrap();
    step(&domain.authority, Step::Publish).unwrap();
    until(|| node.trust_bundle().unwrap().roots().len() == 2).await;
    let sequence = node.member().unwrap().sequence();
    acknowledged(&domain, sequence).await;
    step(&domain.authority, Step::Activate).unwrap();
    assert!(matches!(step(&domain.authority, abandon), Err(RotationError::Activated(4))));
    let entries = domain.authority.store().audit_entries(1, 100).unwrap();
    let acts = entries.iter().filter(|entry| String::from_utf8_lossy(entry).contains("root-abandoned")).count();
    assert_eq!(acts, 2);
    following.abort();
}

#[tokio::test]
async fn a_node_that_was_left_behind_by_retirement_issues_nothing_and_survives_a_restart() {
    let domain = Domain::new();
    let node = Arc::new(domain.member("a").await);
    let following = follow(&node, domain.link());
    acknowledged(&domain, 1).await;
    let stolen = leaf(&node);
    for (each, leave) in [(Step::Prepare, vec![]), (Step::Publish, vec![])] {
        domain.authority.rotate(&By::Uid(0), each, &names(&leave)).unwrap();
    }
    acknowledged(&domain, 2).await;
    step(&domain.authority, Step::Activate).unwrap();
    domain.authority.rotate(&By::Uid(0), Step::Retire, &names(&["a"])).unwrap();
    know(&[&node], 4).await;
    following.abort();
    assert!(!accepts(&node.trust_bundle().unwrap(), &stolen, &domain), "the retired root's certificates are worthless");
    let issue = |node: &NodeCa| node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(&[]));
    assert!(issue(&node).unwrap_err().to_string().contains("retired"));
    assert_eq!(node.due(), Due::Join);
    let refused = upkeep::step(&node, &domain.link(), &nowhere(&domain)).await.unwrap_err();
    assert!(refused.to_string().contains("make a token"), "{refused}");

    let _ = following.await;
    drop(node);
    let again = NodeCa::open(setup(domain.dir.path(), "a"), domain.clock.clone()).unwrap();
    assert_eq!((again.due(), again.member().unwrap().sequence()), (Due::Join, 4));
    again.join(&domain.link(), &domain.token(Some("a"))).await.unwrap();
    issue(&again).unwrap();
}

#[tokio::test]
async fn roots_that_were_replaced_are_not_taken_back() {
    let domain = Domain::new();
    let node = Arc::new(domain.member("a").await);
    let following = follow(&node, domain.link());
    acknowledged(&domain, 1).await;
    step(&domain.authority, Step::Prepare).unwrap();
    step(&domain.authority, Step::Publish).unwrap();
    know(&[&node], 2).await;
    following.abort();
    let _ = following.await;

    // An authority from a backup of before, with the same first root.
    let Domain { dir, clock, authority } = domain;
    drop(authority);
    forget(&bonafide_ca::store::Embedded::open(&crate::bench::charter(dir.path()).state.join("store")).unwrap());
    let authority = Arc::new(Authority::open(&crate::bench::charter(dir.path()), clock.clone()).unwrap());
    let domain = Domain { dir, clock, authority };
    assert_eq!(stages(&domain.authority), [(1, Stage::Active)]);
    let following = follow(&node, domain.link());
    until(|| node.roots_refused().is_some_and(|why| why.starts_with("older-roots"))).await;
    assert_eq!(node.member().unwrap().sequence(), 2);
    node.renew(&domain.link()).await.unwrap();
    assert_eq!((node.member().unwrap().sequence(), node.trust_bundle().unwrap().roots().len()), (2, 2));
    following.abort();
}

fn forget(store: &dyn bonafide_ca::store::engine::Engine) {
    use bonafide_ca::store::engine::{Key, Tree, Write};
    assert!(store.commit(&[], &[Write::Delete(Key::new(Tree::Meta, "roots"))]).unwrap());
}

#[tokio::test]
async fn the_policy_names_the_roots_that_nodes_trust() {
    use bonafide_ca::policies::Publication;
    use bonafide_proto::fingerprint::Digest;
    use bonafide_proto::signed_policy::SignedPolicy;
    let domain = Domain::new();
    let node = Arc::new(domain.member("a").await);
    let following = follow(&node, domain.link());
    acknowledged(&domain, 1).await;
    let publication =
        Publication { text: "mode = \"observe\"\n".into(), author: "Ada".into(), version: None, confirm_within: None };
    domain.authority.publish(&By::Uid(0), &publication).unwrap();
    let roots_of = |bundle: &TrustBundle| {
        let signed = domain.authority.policies().now().unwrap().signed.clone();
        let policy = SignedPolicy::verify(&signed, bundle).unwrap();
        assert_eq!((policy.text(), policy.author()), (publication.text.as_str(), "Ada"));
        policy.roots().iter().copied().collect::<BTreeSet<_>>()
    };
    let digests = |bundle: &TrustBundle| bundle.roots().iter().map(|root| Digest::of(root)).collect::<BTreeSet<_>>();
    let old = domain.authority.trust_bundle();
    step(&domain.authority, Step::Prepare).unwrap();
    assert_eq!(domain.authority.policies().now().unwrap().record.version, 1, "nothing is to be named yet");
    step(&domain.authority, Step::Publish).unwrap();
    let both = domain.authority.trust_bundle();
    assert_eq!(roots_of(&old), digests(&both), "who knows the old root alone learns of the next one");
    acknowledged(&domain, 2).await;
    step(&domain.authority, Step::Activate).unwrap();
    domain.authority.rotate(&By::Uid(0), Step::Retire, &names(&["a"])).unwrap();
    let new = domain.authority.trust_bundle();
    assert_eq!(roots_of(&new), digests(&new));
    assert!(SignedPolicy::verify(&domain.authority.policies().now().unwrap().signed, &old).is_err());
    following.abort();
}

#[tokio::test]
async fn a_join_token_of_the_time_between_admits_until_the_old_root_is_retired() {
    let domain = Domain::new();
    step(&domain.authority, Step::Prepare).unwrap();
    step(&domain.authority, Step::Publish).unwrap();
    step(&domain.authority, Step::Activate).unwrap();
    let (first, second) = (domain.token(None), domain.token(None));
    let node = domain.stranger("a");
    node.join(&domain.link(), &first).await.unwrap();
    assert!(accepts(&domain.authority.trust_bundle(), &leaf(&node), &domain));
    domain.authority.rotate(&By::Uid(0), Step::Retire, &BTreeSet::new()).unwrap();
    let refused = domain.stranger("b").join(&domain.link(), &second).await.unwrap_err();
    assert!(matches!(refused, MembershipError::PinMissing), "{refused}");
    assert_eq!(domain.token(None).root(), &domain.authority.trust_bundle().roots()[0]);
}

#[tokio::test]
async fn who_prepares_at_the_same_moment_takes_nobodys_key_away() {
    let domain = Domain::new();
    for round in 0..8 {
        let made = std::thread::scope(|scope| {
            let preparing: Vec<_> =
                (0..8).map(|_| scope.spawn(|| step(&domain.authority, Step::Prepare).unwrap())).collect();
            preparing.into_iter().map(|thread| thread.join().unwrap()).filter(|made| *made).count()
        });
        assert_eq!(made, 1, "in round {round}");
        let number = stages(&domain.authority).last().unwrap().0;
        let key = domain.dir.path().join(format!("authority/root-{number}.key"));
        assert!(key.exists(), "{}", key.display());
        assert!(step(&domain.authority, Step::Abandon).unwrap());
    }
}

#[tokio::test]
async fn tokens_of_both_roots_are_believed_between_activation_and_retirement() {
    use bonafide_ca::AuthorityLink as _;
    use bonafide_ca::jwt::JwtOrder;
    use bonafide_proto::jwt::JwtBundle;
    let domain = Domain::new();
    let node = domain.member("a").await;
    let order = JwtOrder { workload: "shop/web".parse().unwrap(), audiences: vec!["db".into()], digests: Vec::new() };
    let member = node.member().unwrap();
    let before = domain.link().sign_jwt(&member, &order).await.unwrap();
    step(&domain.authority, Step::Prepare).unwrap();
    step(&domain.authority, Step::Publish).unwrap();
    let known = domain.link().jwt_keys(&member).await.unwrap();
    domain.authority.rotate(&By::Uid(0), Step::Activate, &names(&["a"])).unwrap();
    let after = domain.link().sign_jwt(&member, &order).await.unwrap();
    let bundle = JwtBundle::new(crate::bench::trust_domain(), known).unwrap();
    for token in [before, after] {
        bundle.verify(&token, "db", START).unwrap();
    }
}
