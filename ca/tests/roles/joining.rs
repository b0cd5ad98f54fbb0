//! Joining: over TLS on both loopbacks, once per token, under a name of one's own.

use std::sync::Arc;

use bonafide_ca::authority::TokenTerms;
use bonafide_ca::jwt::JwtOrder;
use bonafide_ca::link::{Halves, MeshStates, SignedPolicies};
use bonafide_ca::member::Member;
use bonafide_ca::mesh::Held;
use bonafide_ca::node::MembershipError;
use bonafide_ca::policies::PolicyHeld;
use bonafide_ca::{Application, AuthorityLink, Embedded, JoinToken, LinkError, Machine, Membership, NodeCa};
use bonafide_proto::jwt::JwtKey;
use bonafide_proto::record::Reason;
use bonafide_proto::svid::Expect;
use bonafide_proto::token::Secret;
use bonafide_proto::wire::authority as wire;
use tokio::sync::{mpsc, watch};

use crate::bench::{Domain, LOOPBACKS, Served, csr, fingerprint, instant, refusal};

#[tokio::test]
async fn a_node_joins_by_token_over_tls_and_issues() {
    for ip in LOOPBACKS {
        let served = Served::on(ip).await;
        let node = served.member("a").await;
        let leaf = node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(&[])).unwrap();
        let bundle = node.trust_bundle().unwrap();
        bundle.verify(&leaf.chain, instant(&served.clock), Expect::Workload).unwrap();
        let svid = [node.member().unwrap().node_svid().clone()];
        let peer = bundle.verify(&svid, instant(&served.clock), Expect::Node).unwrap();
        assert_eq!(peer.id().to_string(), "spiffe://example.org/bonafide/node/a");

        let listed = served.admin().list_nodes(wire::ListNodesRequest {}).await.unwrap().into_inner().nodes;
        assert_eq!(listed.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["a"]);
    }
}

#[tokio::test]
async fn each_bad_token_is_refused_by_its_name() {
    let served = Served::on("127.0.0.1").await;
    let link = served.link();

    let used = served.token("").await;
    served.stranger("a").join(&link, &used).await.unwrap();
    let node = served.stranger("b");
    assert_eq!(refusal(&node.join(&link, &used).await.unwrap_err()), "token-used");

    let unknown = JoinToken::new(Secret::generate().unwrap(), used.root().clone());
    assert_eq!(refusal(&node.join(&link, &unknown).await.unwrap_err()), "token-unknown");

    let for_c = served.token("c").await;
    assert_eq!(refusal(&node.join(&link, &for_c).await.unwrap_err()), "token-for-another-node");

    let expired = served.token("").await;
    served.clock.forward(601);
    assert_eq!(refusal(&node.join(&link, &expired).await.unwrap_err()), "token-expired");
    assert!(node.member().is_none());
}

#[tokio::test]
async fn an_unknown_secret_learns_nothing_about_names() {
    let domain = Domain::new();
    domain.member("a").await;
    let unknown = JoinToken::new(Secret::generate().unwrap(), domain.token(None).root().clone());
    let apply = |node: &str| Application {
        node: node.parse().unwrap(),
        signing_csr: b"not even a request".to_vec(),
        authentication_csr: Vec::new(),
        bios_uuid: String::new(),
        machine_id: String::new(),
    };
    let taken = domain.authority.join(unknown.secret(), &apply("a")).unwrap_err();
    let free = domain.authority.join(unknown.secret(), &apply("b")).unwrap_err();
    assert_eq!((taken.as_str(), taken.to_string()), ("token-unknown", free.to_string()));
}

#[tokio::test]
async fn a_token_of_another_authority_makes_the_node_refuse() {
    let ours = Served::on("127.0.0.1").await;
    let theirs = Served::on("127.0.0.1").await;
    let node = ours.stranger("a");
    let refused = node.join(&ours.link(), &theirs.token("").await).await.unwrap_err();
    assert!(matches!(&refused, MembershipError::Link(LinkError::Distrust { .. })), "{refused}");
    assert!(node.member().is_none());
}

#[tokio::test]
async fn a_refused_name_does_not_cost_the_token() {
    let served = Served::on("127.0.0.1").await;
    served.member("a").await;
    let token = served.token("").await;
    let impostor = served.stranger_elsewhere("a");
    assert_eq!(refusal(&impostor.join(&served.link(), &token).await.unwrap_err()), "name-taken");
    served.stranger("b").join(&served.link(), &token).await.unwrap();
}

#[tokio::test]
async fn a_token_bound_to_the_name_lets_a_machine_come_back_and_shuts_the_old_one_out() {
    let served = Served::on("127.0.0.1").await;
    let before = served.member("a").await;
    let after = served.stranger_elsewhere("a");
    after.join(&served.link(), &served.token("a").await).await.unwrap();
    assert_eq!(refusal(&before.renew(&served.link()).await.unwrap_err()), "membership-replaced");
    after.renew(&served.link()).await.unwrap();
    // What the old one still issues is worth nothing, and what the new one issues is.
    let issued = |node: &NodeCa| {
        let leaf = node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(&[])).unwrap();
        let proven = after.trust_bundle().unwrap().verify(&leaf.chain, instant(&served.clock), Expect::Workload);
        let revoked = after.mesh().borrow().revoked.clone();
        revoked.issuer(proven.unwrap().issuer().unwrap()).map(|(reason, _)| reason)
    };
    assert_eq!((issued(&before), issued(&after)), (Some(Reason::NodeRevoked), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_hundred_uses_of_one_token_exactly_one_wins() {
    let domain = Domain::new();
    let token = domain.token(None);
    let barrier = Arc::new(std::sync::Barrier::new(100));
    let attempts: Vec<_> = (0..100)
        .map(|n| {
            let (authority, token, barrier) = (domain.authority.clone(), token.clone(), barrier.clone());
            let application = Application {
                node: format!("n{n}").parse().unwrap(),
                signing_csr: csr(&[]),
                authentication_csr: csr(&[]),
                bios_uuid: String::new(),
                machine_id: String::new(),
            };
            std::thread::spawn(move || {
                barrier.wait();
                authority.join(token.secret(), &application).map_err(|e| e.as_str())
            })
        })
        .collect();
    let outcomes: Vec<_> = attempts.into_iter().map(|a| a.join().unwrap()).collect();
    assert_eq!(outcomes.iter().filter(|o| o.is_ok()).count(), 1);
    assert!(outcomes.iter().all(|o| o.is_ok() || matches!(o, Err("token-used"))));
    assert_eq!(domain.authority.nodes().unwrap().len(), 1);
}

#[tokio::test]
async fn two_requests_for_one_key_are_refused_and_cost_nothing() {
    let domain = Domain::new();
    let (token, same) = (domain.token(None), csr(&[]));
    let apply = |signing_csr: Vec<u8>, authentication_csr: Vec<u8>, machine_id: &str| Application {
        node: "a".parse().unwrap(),
        signing_csr,
        authentication_csr,
        bios_uuid: String::new(),
        machine_id: machine_id.into(),
    };
    for bad in [
        apply(same.clone(), same.clone(), ""),
        apply(vec![0x30; 5000], csr(&[]), ""),
        apply(csr(&[]), csr(&[]), "line\nbreak"),
        apply(csr(&[]), csr(&[]), &"x".repeat(129)),
    ] {
        assert_eq!(domain.authority.join(token.secret(), &bad).unwrap_err().as_str(), "bad-request");
    }
    domain.authority.join(token.secret(), &apply(same, csr(&[]), "")).unwrap();
}

#[test]
fn tokens_live_ten_minutes_at_most() {
    let domain = Domain::new();
    for ttl in [0, 601, u32::MAX] {
        assert!(domain.authority.create_token(TokenTerms { ttl, ..TokenTerms::default() }).is_err());
    }
}

/// The real authority, with one lie told on the way.
#[derive(Debug)]
struct Liar {
    honest: Embedded,
    lie: fn(&mut Membership, &Membership),
    other: Membership,
}

#[tonic::async_trait]
impl AuthorityLink for Liar {
    async fn join(&self, token: &JoinToken, application: &Application) -> Result<Membership, LinkError> {
        let mut issued = self.honest.join(token, application).await?;
        (self.lie)(&mut issued, &self.other);
        Ok(issued)
    }
    async fn renew(
        &self,
        member: &Member,
        machine: &Machine,
        signing: Vec<u8>,
        own: Vec<u8>,
    ) -> Result<Membership, LinkError> {
        let mut issued = self.honest.renew(member, machine, signing, own).await?;
        (self.lie)(&mut issued, &self.other);
        Ok(issued)
    }
    async fn follow(
        &self,
        member: &Member,
        machine: &Machine,
        held: watch::Receiver<Held>,
    ) -> Result<MeshStates, LinkError> {
        self.honest.follow(member, machine, held).await
    }
    async fn follow_policy(
        &self,
        member: &Member,
        held: watch::Receiver<PolicyHeld>,
    ) -> Result<SignedPolicies, LinkError> {
        self.honest.follow_policy(member, held).await
    }
    async fn share_flows(&self, member: &Member, flows: mpsc::Receiver<Vec<u8>>) -> Result<Halves, LinkError> {
        self.honest.share_flows(member, flows).await
    }
    async fn sign_jwt(&self, member: &Member, order: &JwtOrder) -> Result<String, LinkError> {
        self.honest.sign_jwt(member, order).await
    }
    async fn jwt_keys(&self, member: &Member) -> Result<Vec<JwtKey>, LinkError> {
        self.honest.jwt_keys(member).await
    }
}

fn membership_of(domain: &Domain, node: &str) -> Membership {
    let application = Application {
        node: node.parse().unwrap(),
        signing_csr: csr(&[]),
        authentication_csr: csr(&[]),
        bios_uuid: String::new(),
        machine_id: String::new(),
    };
    domain.authority.join(domain.token(None).secret(), &application).unwrap()
}

#[tokio::test]
async fn a_node_takes_nothing_but_what_it_asked_for() {
    let (domain, foreign) = (Domain::new(), Domain::new());
    let lies: Vec<fn(&mut Membership, &Membership)> = vec![
        |m, _| std::mem::swap(&mut m.intermediate, &mut m.node_svid),
        |m, _| m.intermediate = m.node_svid.clone(),
        |m, other| m.intermediate = other.intermediate.clone(),
        |m, other| m.node_svid = other.node_svid.clone(),
        |m, _| m.trust_domain = "example.com".parse().unwrap(),
        |m, _| m.roots.clear(),
        |m, _| m.roots = vec![m.roots[0].clone(); 17],
        |m, _| m.roots.push(b"garbage".to_vec().into()),
        |m, _| m.roots.push(m.intermediate.clone()),
    ];
    let other = membership_of(&domain, "other");
    for (n, lie) in lies.into_iter().enumerate() {
        let liar = Liar { honest: domain.link(), lie, other: other.clone() };
        let name = format!("n{n}");
        let node = domain.stranger(&name);
        let refused = node.join(&liar, &domain.token(None)).await.unwrap_err();
        assert!(matches!(&refused, MembershipError::Member(_) | MembershipError::PinMissing), "{n}: {refused}");
        assert!(node.member().is_none(), "lie {n}");

        node.join(&domain.link(), &domain.token(Some(&name))).await.unwrap();
        let before = node.member().unwrap();
        node.renew(&liar).await.unwrap_err();
        assert_eq!(node.member().unwrap().node_svid(), before.node_svid(), "lie {n}");
    }

    let theirs = membership_of(&foreign, "other");
    let lie: fn(&mut Membership, &Membership) = |m, other| m.roots = other.roots.clone();
    let liar = Liar { honest: domain.link(), lie, other: theirs };
    let refused = domain.stranger("z").join(&liar, &domain.token(None)).await.unwrap_err();
    assert!(matches!(&refused, MembershipError::PinMissing), "{refused}");
}
