//! The authority's policy: in force only by the authority's signature, whatever the node's CA says, and kept.

use std::path::Path;
use std::sync::Arc;

use bonafide_ca::policies::Publication;
use bonafide_ca::store::By;
use bonafide_ca::{Authority, Charter};
use bonafide_proto::clock::SystemClock;
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::policy::SignedPolicy;
use prost::Message as _;
use tokio::task::JoinHandle;

use crate::node::{Node, PATIENCE, own_exe};
use crate::svids::{Notary, serve};

fn earns(name: &str) -> String {
    format!("mode = \"enforce\"\n[[workload]]\nname = \"{name}\"\nexe = \"{}\"\n", own_exe())
}

/// The authority of example.org in a directory of its own: each directory makes another root.
struct Publisher {
    _dir: tempfile::TempDir,
    authority: Authority,
}

impl Publisher {
    fn found() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let charter = Charter {
            state: dir.path().join("authority"),
            trust_domain: "example.org".parse().unwrap(),
            intermediate_ttl: 3600,
            shared: None,
            passphrase: None,
        };
        Self { authority: Authority::open(&charter, Arc::new(SystemClock)).unwrap(), _dir: dir }
    }

    fn publish(&self, text: &str) -> Vec<u8> {
        let publication =
            Publication { text: text.to_owned(), author: "Ada".to_owned(), version: None, confirm_within: None };
        self.authority.publish(&By::Uid(0), &publication).unwrap();
        self.authority.policies().now().unwrap().signed.clone()
    }

    fn roots(&self) -> Vec<Vec<u8>> {
        self.authority.trust_bundle().roots().iter().map(|root| root.to_vec()).collect()
    }

    /// The CA of a node of this trust domain, which can say what it likes.
    fn ca(&self, at: &Path) -> (Notary, JoinHandle<()>) {
        let mut notary = Notary::default();
        notary.roots = self.roots();
        let serving = serve(&notary, at);
        (notary, serving)
    }
}

/// A daemon that has its policy from the authority.
async fn start(dir: tempfile::TempDir) -> Node {
    Node::start_published(dir).await
}

/// Waits until the daemon says to the CA what is in force, and why the newest is not.
async fn says(ca: &Notary, so: impl Fn(&wire::PolicyInForce) -> bool) -> wire::PolicyInForce {
    let mut said = ca.in_force.subscribe();
    let waiting = tokio::time::timeout(PATIENCE, said.wait_for(|said| so(said))).await;
    waiting.unwrap_or_else(|_| panic!("it says {:?}", ca.in_force.borrow())).unwrap().clone()
}

async fn workload(node: &Node) -> String {
    node.process(std::process::id()).await.unwrap().workload.unwrap().to_string()
}

#[tokio::test]
async fn what_the_authority_publishes_is_in_force_and_kept() {
    let publisher = Publisher::found();
    let node = start(tempfile::tempdir().unwrap()).await;
    assert_eq!(node.process(std::process::id()).await.unwrap_err().reason, AttestReason::NoPolicy);
    let (ca, serving) = publisher.ca(&node.path("ca.sock"));
    let mut updates = node.client.clone().watch_policy(wire::WatchPolicyRequest {}).await.unwrap().into_inner();
    ca.policy.send_replace(publisher.publish(&earns("one")));
    let first = tokio::time::timeout(PATIENCE, updates.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.text, earns("one"));
    says(&ca, |said| said.version == 1 && said.refused.is_empty()).await;
    assert_eq!(workload(&node).await, "one");
    ca.policy.send_replace(publisher.publish(&earns("two")));
    says(&ca, |said| said.version == 2).await;
    assert_eq!(workload(&node).await, "two");
    let status = node.status().await;
    assert_eq!((status.policy_version, status.policy_error.as_str()), (2, ""));

    // Nobody is there to tell it anything.
    drop(updates);
    serving.abort();
    let dir = node.stopped().await;
    let _ = std::fs::remove_file(dir.path().join("ca.sock"));
    let node = start(dir).await;
    assert_eq!(workload(&node).await, "two");
    assert_eq!(node.status().await.policy_version, 2);
    node.stop().await;
}

#[tokio::test]
async fn a_ca_that_was_taken_over_puts_nothing_of_its_own_into_force() {
    let publisher = Publisher::found();
    let node = start(tempfile::tempdir().unwrap()).await;
    let (ca, serving) = publisher.ca(&node.path("ca.sock"));
    let first = publisher.publish(&earns("one"));
    let second = publisher.publish(&earns("two"));
    ca.policy.send_replace(second.clone());
    says(&ca, |said| said.version == 2).await;

    let decoded = SignedPolicy::decode(second.as_slice()).unwrap();
    let forged = SignedPolicy { version: 3, text: earns("evil"), ..decoded.clone() };
    let unsigned = SignedPolicy { signature: Vec::new(), ..forged.clone() };
    let impostor = Publisher::found();
    let theirs = (0..3).map(|_| impostor.publish(&earns("evil"))).next_back().unwrap();
    for (signed, name) in [
        (first.clone(), "older-policy"),
        (forged.encode_to_vec(), "wrong-signature"),
        (unsigned.encode_to_vec(), "unsigned-policy"),
        (theirs.clone(), "wrong-signer"),
        (vec![0xff], "malformed-policy"),
    ] {
        ca.policy.send_replace(signed);
        let said = says(&ca, |said| said.refused.starts_with(name)).await;
        assert_eq!((said.version, workload(&node).await.as_str()), (2, "two"), "{name}");
        assert!(node.status().await.policy_error.starts_with(name));
        ca.policy.send_replace(second.clone());
        says(&ca, |said| said.refused.is_empty()).await;
    }

    // Roots of its own do not help it, nor does a restart.
    serving.abort();
    let dir = node.stopped().await;
    let socket = dir.path().join("ca.sock");
    let _ = std::fs::remove_file(&socket);
    let (ca, serving) = impostor.ca(&socket);
    ca.policy.send_replace(theirs);
    let node = start(dir).await;
    says(&ca, |said| said.version == 2 && said.refused.starts_with("wrong-signer")).await;
    ca.policy.send_replace(first);
    says(&ca, |said| said.refused.starts_with("older-policy")).await;
    assert_eq!(workload(&node).await, "two");
    serving.abort();
    node.stop().await;
}

#[tokio::test]
async fn a_policy_in_a_language_that_it_does_not_know_replaces_nothing_and_is_told_of() {
    let publisher = Publisher::found();
    let node = start(tempfile::tempdir().unwrap()).await;
    let (ca, serving) = publisher.ca(&node.path("ca.sock"));
    ca.policy.send_replace(publisher.publish("mode = \"dream\"\n"));
    let said = says(&ca, |said| !said.refused.is_empty()).await;
    assert!(said.refused.starts_with("unreadable-policy: version 1: policy version 1:1:"), "{}", said.refused);
    assert_eq!(said.version, 0);
    ca.policy.send_replace(publisher.publish(&earns("one")));
    says(&ca, |said| said.version == 2 && said.refused.is_empty()).await;
    ca.policy.send_replace(publisher.publish("mode = \"dream\"\n"));
    says(&ca, |said| said.version == 2 && said.refused.starts_with("unreadable-policy: version 3")).await;
    assert_eq!(workload(&node).await, "one");
    serving.abort();
    node.stop().await;
}

#[tokio::test]
async fn what_was_damaged_on_disk_is_not_believed_and_comes_again() {
    let publisher = Publisher::found();
    let node = start(tempfile::tempdir().unwrap()).await;
    let (ca, serving) = publisher.ca(&node.path("ca.sock"));
    ca.policy.send_replace(publisher.publish(&earns("one")));
    says(&ca, |said| said.version == 1).await;
    serving.abort();
    let dir = node.stopped().await;
    let _ = std::fs::remove_file(dir.path().join("ca.sock"));
    let file = dir.path().join("policy.kept");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(3).position(|three| three == b"one").unwrap();
    bytes[at] = b'x';
    std::fs::write(&file, bytes).unwrap();
    let node = start(dir).await;
    let error = node.status().await.policy_error;
    assert!(error.contains("policy.kept: wrong-signature"), "{error}");
    let (ca, serving) = publisher.ca(&node.path("ca.sock"));
    ca.policy.send_replace(publisher.authority.policies().now().unwrap().signed.clone());
    says(&ca, |said| said.version == 1 && said.refused.is_empty()).await;
    assert_eq!(workload(&node).await, "one");
    serving.abort();
    node.stop().await;
}
