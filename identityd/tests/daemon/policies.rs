//! What did it earn, by which policy?

use bonafide_policy::Policy;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::wire::node as wire;

use crate::node::{NOBODY, Node, PATIENCE, own_exe};

fn earns(name: &str) -> String {
    format!("mode = \"enforce\"\n[[workload]]\nname = \"{name}\"\nexe = \"{}\"\n", own_exe())
}

#[tokio::test]
async fn without_a_policy_nobody_is_anybody() {
    let node = Node::start("mode = \"no such\"\n").await;
    let refusal = node.process(std::process::id()).await.unwrap_err();
    assert_eq!(refusal.reason, AttestReason::NoPolicy);
    let status = node.status().await;
    assert!(status.policy_sha256.is_empty() && status.policy_error.contains("policy.toml:1:"), "{status:?}");
    assert!(!status.ca_connected);
    assert_eq!((status.source.as_str(), status.host.unwrap().node.as_str()), ("kernel", "a"));
}

#[tokio::test]
async fn a_program_earns_its_workload_and_a_new_policy_counts_at_once() {
    let node = Node::start(&earns("one")).await;
    let mut updates = node.client.clone().watch_policy(wire::WatchPolicyRequest {}).await.unwrap().into_inner();
    let first = updates.message().await.unwrap().unwrap();
    assert_eq!(first.text, earns("one"));
    assert_eq!(first.sha256, Policy::parse("x", &first.text).unwrap().digest().0);
    let found = node.process(std::process::id()).await.unwrap();
    assert_eq!(found.workload.unwrap().as_str(), "one");

    // A broken version in between is not pushed.
    std::fs::write(node.path("policy.toml"), "broken").unwrap();
    while node.status().await.policy_error.is_empty() {
        tokio::task::yield_now().await;
    }
    std::fs::write(node.path("policy.toml"), earns("two")).unwrap();
    let second = tokio::time::timeout(PATIENCE, updates.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(second.text, earns("two"));
    let found = node.process(std::process::id()).await.unwrap();
    assert_eq!(found.workload.unwrap().as_str(), "two");
    assert_eq!(node.status().await.policy_error, "");
    node.stop().await;
}

#[tokio::test]
async fn evidence_that_fits_two_workloads_earns_neither() {
    let digest = Digest::of(&std::fs::read(own_exe()).unwrap());
    let both = format!("{}[[workload]]\nname = \"two\"\nsha256 = \"{digest}\"\n", earns("one"));
    let node = Node::start(&both).await;
    let refusal = node.process(std::process::id()).await.unwrap_err();
    assert_eq!(refusal.reason, AttestReason::AmbiguousWorkload);
    assert!(refusal.detail.contains("one") && refusal.detail.contains("two"), "{refusal}");
}

async fn whois(node: &Node, workload: &str) -> Result<wire::AttestResponse, tonic::Status> {
    let request =
        wire::AttestProcessRequest { pid: std::process::id(), workload: workload.into(), ..Default::default() };
    Ok(node.client.clone().attest_process(request).await?.into_inner())
}

fn misses(answer: wire::AttestResponse) -> Vec<String> {
    let Some(wire::attest_response::Of::Attested(attested)) = answer.of else { panic!("{answer:?}") };
    attested.near_misses.into_iter().map(|miss| miss.workload).collect()
}

#[tokio::test]
async fn whois_can_ask_about_one_workload_however_many_are_nearer() {
    let mut policy = "mode = \"observe\"\n".to_owned();
    for uid in 1..=20 {
        policy.push_str(&format!("[[workload]]\nname = \"near{uid}\"\nexe = \"{}\"\nuid = {uid}\n", own_exe()));
    }
    policy.push_str("[[workload]]\nname = \"far\"\nexe = \"/elsewhere\"\n");
    let node = Node::start(&policy).await;
    assert!(!misses(whois(&node, "").await.unwrap()).contains(&"far".to_owned()));
    assert_eq!(misses(whois(&node, "far").await.unwrap()), ["far"]);

    let unknown = whois(&node, "no/such").await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    assert!(unknown.message().contains("no workload no/such"), "{unknown}");
    assert_eq!(whois(&node, "No Name").await.unwrap_err().code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn whois_tells_what_another_workload_misses_than_the_one_earned() {
    let node = Node::start(&format!("{}[[workload]]\nname = \"two\"\nexe = \"/elsewhere\"\n", earns("one"))).await;
    assert_eq!(misses(whois(&node, "one").await.unwrap()), [""; 0]);
    assert_eq!(misses(whois(&node, "two").await.unwrap()), ["two"]);
}

#[tokio::test]
async fn malformed_questions_are_invalid_and_answered() {
    let node = Node::start(NOBODY).await;
    let no_role = wire::AttestFlowRequest { netns: 1, local: None, remote: None, role: 0, kernel: vec![] };
    let status = node.client.clone().attest_flow(no_role).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}
