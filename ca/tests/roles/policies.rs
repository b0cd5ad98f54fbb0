//! The authority's policy: signed, told to every node, kept by those that are cut off; whatever is older, or not the
//! authority's own, replaces nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use bonafide_ca::authority::Application;
use bonafide_ca::jwt::JwtOrder;
use bonafide_ca::link::{Halves, MeshStates, SignedPolicies};
use bonafide_ca::member::Member;
use bonafide_ca::mesh::Held;
use bonafide_ca::node::InForce;
use bonafide_ca::policies::{PolicyHeld, Publication, PublishError};
use bonafide_ca::store::By;
use bonafide_ca::{Authority, AuthorityLink, Charter, Embedded, JoinToken, LinkError, Machine, Membership, NodeCa};
use bonafide_proto::jwt::JwtKey;
use bonafide_proto::signed_policy::{SignedPolicy, TEXT_MAX};
use bonafide_proto::svid::TrustBundle;
use bonafide_proto::wire::authority as wire;
use bonafide_proto::wire::node as local;
use bonafide_proto::wire::policy as signed;
use prost::Message as _;
use tokio::sync::{mpsc, watch};

use crate::bench::{Domain, LOOPBACKS, Served, charter, follow, setup, until};
use crate::program;

const OBSERVE: &str = "mode = \"observe\"\n";
const ENFORCE: &str = "mode = \"enforce\"\n";

fn publication(text: &str) -> Publication {
    Publication { text: text.to_owned(), author: "Ada".to_owned(), version: None, confirm_within: None }
}

fn publish(authority: &Authority, text: &str) -> u64 {
    authority.publish(&By::Uid(0), &publication(text)).unwrap().version
}

/// As it travels.
fn published(authority: &Authority) -> Vec<u8> {
    authority.policies().now().unwrap().signed.clone()
}

async fn order(served: &Served, text: &str) -> wire::PublishPolicyResponse {
    let request = wire::PublishPolicyRequest { text: text.to_owned(), author: "Ada".to_owned(), ..Default::default() };
    served.admin().publish_policy(request).await.unwrap().into_inner()
}

fn version(node: &NodeCa) -> u64 {
    node.policy_held().kept
}

fn text(node: &NodeCa, bundle: &TrustBundle) -> String {
    let kept = node.policy().borrow().clone().unwrap();
    SignedPolicy::verify(&kept.signed, bundle).unwrap().text().to_owned()
}

/// What identityd does: it puts into force whatever the CA hands on.
fn obey(node: &Arc<NodeCa>) -> tokio::task::JoinHandle<()> {
    let node = node.clone();
    tokio::spawn(async move {
        let mut policies = node.policy();
        loop {
            let version = policies.borrow_and_update().as_ref().map_or(0, |kept| kept.mark.version);
            node.policy_in_force(InForce { version, refused: None });
            if policies.changed().await.is_err() {
                return;
            }
        }
    })
}

#[tokio::test]
async fn a_policy_reaches_every_follower_and_the_answer_says_where_it_is_in_force() {
    for ip in LOOPBACKS {
        let served = Served::on(ip).await;
        let [a, b, c] = ["a", "b", "c"].map(|name| (name, &served));
        let nodes = [Arc::new(a.1.member(a.0).await), Arc::new(b.1.member(b.0).await), Arc::new(c.1.member(c.0).await)];
        let mut tasks: Vec<_> = nodes.iter().map(|node| follow(node, served.link())).collect();
        tasks.push(obey(&nodes[0]));
        // The second one cannot read it, the third one has a policy of its own.
        nodes[1].policy_in_force(InForce { version: 0, refused: Some("unreadable-policy: line 1".into()) });
        let first = order(&served, OBSERVE).await.published.unwrap();
        assert_eq!((first.version, first.author.as_str()), (1, "Ada"));
        for node in &nodes {
            until(|| version(node) == 1).await;
        }
        let large = format!("{ENFORCE}{}", "#".repeat(TEXT_MAX - ENFORCE.len()));
        let told = order(&served, &large).await;
        assert_eq!(told.published.unwrap().version, 2);
        for node in &nodes {
            until(|| version(node) == 2).await;
            assert_eq!(text(node, &node.trust_bundle().unwrap()), large);
        }
        let ask = async || {
            let asked = wire::PublishedPolicyRequest { with_text: true };
            served.admin().max_decoding_message_size(5 << 20).published_policy(asked).await.unwrap().into_inner()
        };
        let mut said = ask().await;
        for _ in 0..1000 {
            if said.nodes[0].in_force == 2 && said.nodes.iter().all(|at| at.kept == 2) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            said = ask().await;
        }
        assert_eq!(said.text, large);
        let at: Vec<_> =
            said.nodes.iter().map(|at| (at.node.as_str(), at.following, at.in_force, at.refused.as_str())).collect();
        let unreadable = "unreadable-policy: line 1";
        assert_eq!(at, [("a", true, 2, ""), ("b", true, 0, unreadable), ("c", true, 0, "")]);
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

#[tokio::test]
async fn a_node_cut_off_keeps_it_across_restarts_and_learns_the_next_on_return() {
    let mut served = Served::on("127.0.0.1").await;
    let node = Arc::new(served.member("a").await);
    let following = follow(&node, served.link());
    order(&served, OBSERVE).await;
    until(|| version(&node) == 1).await;
    served.stop().await;
    following.abort();
    let _ = following.await;
    drop(node);

    let file = setup(served.dir.path(), "a").state.join("policy.signed");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // Long after its signer's certificate has expired.
    served.clock.forward(500);
    let again = Arc::new(NodeCa::open(setup(served.dir.path(), "a"), served.clock.clone()).unwrap());
    assert_eq!(text(&again, &again.trust_bundle().unwrap()), OBSERVE);
    served.start().await;
    assert_eq!(order(&served, ENFORCE).await.published.unwrap().version, 2, "the authority counts on, too");
    let following = follow(&again, served.link());
    until(|| version(&again) == 2).await;
    following.abort();
    let _ = following.await;
    drop(again);

    // What was damaged on disk is not believed, and told again.
    std::fs::write(&file, b"\x12\x01a").unwrap();
    let again = Arc::new(NodeCa::open(setup(served.dir.path(), "a"), served.clock.clone()).unwrap());
    assert_eq!(version(&again), 0);
    let following = follow(&again, served.link());
    until(|| version(&again) == 2).await;
    following.abort();
}

/// The way to an authority that somebody else stands in: all is as it was, but for the policy.
#[derive(Debug)]
struct Forger(Embedded, watch::Receiver<Vec<u8>>);

#[tonic::async_trait]
impl AuthorityLink for Forger {
    async fn join(&self, token: &JoinToken, application: &Application) -> Result<Membership, LinkError> {
        self.0.join(token, application).await
    }
    async fn renew(
        &self,
        member: &Member,
        machine: &Machine,
        signing: Vec<u8>,
        auth: Vec<u8>,
    ) -> Result<Membership, LinkError> {
        self.0.renew(member, machine, signing, auth).await
    }
    async fn follow(
        &self,
        member: &Member,
        machine: &Machine,
        held: watch::Receiver<Held>,
    ) -> Result<MeshStates, LinkError> {
        self.0.follow(member, machine, held).await
    }
    async fn sign_jwt(&self, member: &Member, order: &JwtOrder) -> Result<String, LinkError> {
        self.0.sign_jwt(member, order).await
    }
    async fn jwt_keys(&self, member: &Member) -> Result<Vec<JwtKey>, LinkError> {
        self.0.jwt_keys(member).await
    }
    async fn follow_policy(&self, _: &Member, _: watch::Receiver<PolicyHeld>) -> Result<SignedPolicies, LinkError> {
        use tokio_stream::StreamExt as _;
        Ok(Box::pin(tokio_stream::wrappers::WatchStream::new(self.1.clone()).map(Ok)))
    }
    async fn share_flows(&self, member: &Member, flows: mpsc::Receiver<Vec<u8>>) -> Result<Halves, LinkError> {
        self.0.share_flows(member, flows).await
    }
}

/// The authority of another trust domain.
fn foreign(dir: &std::path::Path, domain: &Domain, trust_domain: &str) -> Authority {
    let charter = Charter { trust_domain: trust_domain.parse().unwrap(), ..charter(dir) };
    Authority::open(&charter, domain.clock.clone()).unwrap()
}

#[tokio::test]
async fn an_older_an_unsigned_a_forged_and_a_foreign_one_replace_nothing_and_are_named() {
    let domain = Domain::new();
    let node = Arc::new(domain.member("a").await);
    publish(&domain.authority, OBSERVE);
    let first = published(&domain.authority);
    publish(&domain.authority, ENFORCE);
    let second = published(&domain.authority);
    let decoded = signed::SignedPolicy::decode(second.as_slice()).unwrap();
    let unsigned = signed::SignedPolicy { signature: Vec::new(), ..decoded.clone() };
    let raised = signed::SignedPolicy { version: 9, ..decoded.clone() };

    let elsewhere = tempfile::tempdir().unwrap();
    let other = foreign(elsewhere.path(), &domain, "other.org");
    publish(&other, OBSERVE);
    // Of the same name, but it is another root.
    let elsewhere = tempfile::tempdir().unwrap();
    let impostor = foreign(elsewhere.path(), &domain, "example.org");
    publish(&impostor, OBSERVE);
    publish(&impostor, OBSERVE);
    publish(&impostor, OBSERVE);

    let (tell, told) = watch::channel(second.clone());
    let following = follow(&node, Forger(domain.link(), told));
    until(|| version(&node) == 2).await;
    for (bytes, name) in [
        (first, "older-policy"),
        (unsigned.encode_to_vec(), "unsigned-policy"),
        (raised.encode_to_vec(), "wrong-signature"),
        (published(&other), "foreign-policy"),
        (published(&impostor), "wrong-signer"),
        (b"\xff".to_vec(), "malformed-policy"),
    ] {
        tell.send_replace(bytes);
        let refused = || node.policy_held().refused.is_some_and(|why| why.starts_with(name));
        until(refused).await;
        assert_eq!((version(&node), text(&node, &domain.authority.trust_bundle()).as_str()), (2, ENFORCE), "{name}");
        tell.send_replace(second.clone());
        until(|| node.policy_held().refused.is_none()).await;
    }
    following.abort();
}

#[tokio::test]
async fn an_authority_from_a_backup_publishes_nothing_that_nodes_would_refuse() {
    let domain = Domain::new();
    let node = Arc::new(domain.member("a").await);
    let following = follow(&node, domain.link());
    for _ in 0..3 {
        publish(&domain.authority, OBSERVE);
    }
    until(|| version(&node) == 3).await;
    following.abort();
    let _ = following.await;

    let Domain { dir, clock, authority } = domain;
    drop(authority);
    // What it knew of policies is gone.
    let store = bonafide_ca::store::Embedded::open(&charter(dir.path()).state.join("store")).unwrap();
    forget(&store);
    drop(store);
    let authority = Arc::new(Authority::open(&charter(dir.path()), clock.clone()).unwrap());
    assert!(authority.policies().now().is_none());
    let following = follow(&node, Embedded(authority.clone()));
    until(|| authority.policies().followers().all().values().any(|held| held.kept == 3)).await;
    let behind = authority.publish(&By::Uid(0), &publication(ENFORCE)).unwrap_err();
    assert!(behind.to_string().starts_with("policy-behind: node a holds version 3"), "{behind}");
    assert!(behind.to_string().contains("--version 4"), "{behind}");
    let chosen = |version| Publication { version: Some(version), ..publication(ENFORCE) };
    for version in [1, 3, 2_000_000] {
        let refused = authority.publish(&By::Uid(0), &chosen(version)).unwrap_err();
        assert!(matches!(refused, PublishError::Version { lowest: 4, .. }), "{refused}");
    }
    assert_eq!(authority.publish(&By::Uid(0), &chosen(7)).unwrap().version, 7);
    until(|| version(&node) == 7).await;
    assert_eq!(publish(&authority, OBSERVE), 8);
    following.abort();
}

fn forget(store: &dyn bonafide_ca::store::engine::Engine) {
    use bonafide_ca::store::engine::{Key, Tree, Write};
    assert!(store.commit(&[], &[Write::Delete(Key::new(Tree::Meta, "policy"))]).unwrap());
}

/// It published while nobody followed, and another one than some node holds under that number.
#[tokio::test]
async fn another_policy_under_a_number_that_was_used_is_refused_by_its_own_name() {
    let domain = Domain::new();
    let node = Arc::new(domain.member("a").await);
    let following = follow(&node, domain.link());
    publish(&domain.authority, OBSERVE);
    until(|| version(&node) == 1).await;
    following.abort();
    let _ = following.await;

    let Domain { dir, clock, authority } = domain;
    drop(authority);
    forget(&bonafide_ca::store::Embedded::open(&charter(dir.path()).state.join("store")).unwrap());
    let authority = Arc::new(Authority::open(&charter(dir.path()), clock).unwrap());
    assert_eq!(publish(&authority, ENFORCE), 1);
    let following = follow(&node, Embedded(authority.clone()));
    until(|| node.policy_held().refused.is_some_and(|why| why.starts_with("changed-policy"))).await;
    let says = || authority.policies().followers().all().into_values().next().and_then(|held| held.refused);
    until(|| says().is_some_and(|why| why.starts_with("changed-policy"))).await;
    assert_eq!(text(&node, &authority.trust_bundle()), OBSERVE);
    // The next one is above all that is held.
    assert_eq!(publish(&authority, ENFORCE), 2);
    until(|| version(&node) == 2 && node.policy_held().refused.is_none()).await;
    following.abort();
}

#[tokio::test]
async fn what_cannot_be_published_is_refused_and_what_was_is_in_the_audit_chain() {
    let mut served = Served::on("127.0.0.1").await;
    let code = async |request| served.admin().publish_policy(request).await.unwrap_err().code();
    let long = wire::PublishPolicyRequest { text: "#".repeat(TEXT_MAX + 1), ..Default::default() };
    assert_eq!(code(long).await, tonic::Code::InvalidArgument);
    let author = wire::PublishPolicyRequest { author: "two\nlines".into(), ..Default::default() };
    assert_eq!(code(author).await, tonic::Code::InvalidArgument);
    let nothing = served.admin().published_policy(wire::PublishedPolicyRequest::default()).await.unwrap();
    assert!(nothing.into_inner().published.is_none());
    order(&served, OBSERVE).await;
    served.stop().await;

    let state = charter(served.dir.path()).state.join("store");
    let mut store = None;
    // A look at it may be under way yet.
    until(|| {
        store = bonafide_ca::store::Store::embedded(&state, served.clock.clone()).ok();
        store.is_some()
    })
    .await;
    let store = store.unwrap();
    let entries = store.audit_entries(1, 100).unwrap();
    let said: Vec<String> = entries.into_iter().map(|entry| String::from_utf8(entry).unwrap()).collect();
    let entry = said.iter().find(|entry| entry.contains("policy-published")).expect("it is in the chain");
    assert!(entry.contains("\"version\":\"1\"") && entry.contains("\"author\":\"Ada\""), "{entry}");
    assert!(said.iter().any(|entry| entry.contains("policy-signer")), "its signer's certificate is in the ledger");
}

#[tokio::test]
async fn one_host_alone_has_published_policies_too() {
    let dir = tempfile::tempdir().unwrap();
    let config = program::local(dir.path());
    let daemon = program::program().arg("--config").arg(&config).spawn().unwrap();
    let mut ca = program::ask(dir.path()).await;
    let says = watch::Sender::new(local::PolicyInForce::default());
    let held = tokio_stream::wrappers::WatchStream::new(says.subscribe());
    let mut told = ca.follow_policy(held).await.unwrap().into_inner();
    let socket = bonafide_proto::endpoint::channel(dir.path().join("authority.sock"));
    let mut admin = wire::admission_client::AdmissionClient::new(socket);
    let request = wire::PublishPolicyRequest { text: OBSERVE.into(), ..Default::default() };
    let (answer, first) = tokio::join!(admin.publish_policy(request), async {
        let first = told.message().await.unwrap().unwrap();
        says.send_replace(local::PolicyInForce { version: 1, refused: String::new() });
        first
    });
    assert_eq!(answer.unwrap().into_inner().nodes[0].in_force, 1);
    assert_eq!(signed::SignedPolicy::decode(first.signed.as_slice()).unwrap().text, OBSERVE);
    assert_eq!(program::end(daemon, rustix::process::Signal::TERM).await, 0);
}

fn on_trial(text: &str) -> Publication {
    Publication { confirm_within: Some(60), ..publication(text) }
}

#[test]
fn what_nobody_confirms_is_taken_back_also_after_a_restart() {
    let Domain { dir, clock, authority } = Domain::new();
    let refused = authority.publish(&By::Uid(0), &on_trial(ENFORCE)).unwrap_err();
    assert!(matches!(refused, PublishError::NoEarlier), "{refused}");
    assert_eq!(publish(&authority, OBSERVE), 1);
    assert_eq!(authority.publish(&By::Uid(0), &on_trial(ENFORCE)).unwrap().version, 2);
    // Another one on trial leads back to what was confirmed last.
    let twice = authority.publish(&By::Uid(0), &on_trial(&format!("{ENFORCE}# again\n"))).unwrap();
    assert_eq!(twice.unconfirmed.map(|unconfirmed| unconfirmed.back_to), Some(1));
    clock.forward(59);
    authority.take_back_unconfirmed().unwrap();
    assert_eq!(authority.policies().now().unwrap().record.version, 3);
    drop(authority);

    clock.forward(1);
    let authority = Authority::open(&charter(dir.path()), clock).unwrap();
    authority.take_back_unconfirmed().unwrap();
    let now = authority.policies().now().unwrap();
    assert_eq!((now.record.version, now.record.unconfirmed), (4, None));
    assert_eq!(now.record.text, bonafide_proto::fingerprint::Digest::of(OBSERVE.as_bytes()));
    authority.take_back_unconfirmed().unwrap();
    assert_eq!(authority.policies().now().unwrap().record.version, 4, "once is enough");
}

#[test]
fn what_is_confirmed_stays_and_only_what_waits_can_be() {
    let Domain { dir: _dir, clock, authority } = Domain::new();
    publish(&authority, OBSERVE);
    authority.publish(&By::Uid(0), &on_trial(ENFORCE)).unwrap();
    let wrong = authority.confirm_policy(&By::Uid(0), 1).unwrap_err().to_string();
    assert_eq!(wrong, "version 1 does not wait to be confirmed: version 2 was published last, and waits");
    assert_eq!(authority.confirm_policy(&By::Uid(0), 2).unwrap().unconfirmed, None);
    let again = authority.confirm_policy(&By::Uid(0), 2).unwrap_err().to_string();
    assert!(again.ends_with("version 2 was published last, and does not wait"), "{again}");
    clock.forward(3600);
    authority.take_back_unconfirmed().unwrap();
    assert_eq!(authority.policies().now().unwrap().record.version, 2);
    for within in [0, 4, 86_401] {
        let asked = Publication { confirm_within: Some(within), ..publication(OBSERVE) };
        assert!(matches!(authority.publish(&By::Uid(0), &asked), Err(PublishError::ConfirmWithin(_))));
    }
}

#[tokio::test]
async fn twenty_earlier_versions_are_kept_and_any_of_them_comes_back() {
    let served = Served::on("127.0.0.1").await;
    for n in 1..=23 {
        order(&served, &format!("{OBSERVE}# {n}\n")).await;
    }
    let mut admin = served.admin();
    let history = admin.policy_history(wire::PolicyHistoryRequest { text_of: 3 }).await.unwrap().into_inner();
    assert_eq!(history.text, format!("{OBSERVE}# 3\n"));
    assert_eq!(history.versions.iter().map(|v| v.version).collect::<Vec<_>>(), (3..=23).rev().collect::<Vec<_>>());
    let gone = admin.policy_history(wire::PolicyHistoryRequest { text_of: 2 }).await.unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound);
    let to = |version| wire::RollBackPolicyRequest { version };
    assert_eq!(admin.roll_back_policy(to(2)).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    for (asked, comes) in [(5, "# 5\n"), (0, "# 23\n"), (0, "# 5\n")] {
        admin.roll_back_policy(to(asked)).await.unwrap();
        let now = admin.published_policy(wire::PublishedPolicyRequest { with_text: true }).await.unwrap().into_inner();
        assert!(now.text.ends_with(comes), "{asked}: {}", now.text);
    }
    let author = admin.policy_history(wire::PolicyHistoryRequest::default()).await.unwrap().into_inner().versions[2]
        .author
        .clone();
    assert_eq!(author, "version 5 of Ada, again");
}
