use bonafide_proto::kernel::{ConnectRecord, Doubts, RECORD_SIZE};
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::wire::node::lapse::Of;

use super::super::About;
use super::fake::{Answers, Fake};
use super::*;

fn record(doubts: Doubts) -> ConnectRecord {
    ConnectRecord {
        at_ns: 1,
        cookie: 2,
        start_ns: 990_000_000,
        image: 5,
        cgroup: 6,
        netns: 7,
        pid: 4711,
        tid: 4711,
        uid: 33,
        gid: 33,
        references: 1,
        isn: 9,
        doubts,
    }
}

fn about(doubts: Doubts) -> About {
    About { key: key(), record: Some(record(doubts)) }
}

fn execution() -> Execution {
    Execution { pid: 4711, start_ticks: 99, image: 5 }
}

fn answer(fake: &Fake, workload: &str) {
    let attestation = Attestation { executions: vec![execution()], ..attestation(Some(workload)) };
    fake.answer(Answers::With(Box::new(Ok(attestation))));
}

async fn listening() -> (Fake, Identity) {
    let fake = Fake::start();
    answer(&fake, "shop/web");
    let identity = client(&fake);
    until("it listens", async || identity.memory().as_of() != Default::default()).await;
    (fake, identity)
}

async fn workload(identity: &Identity, doubts: Doubts) -> Option<String> {
    let attested = identity.attest_recorded(about(doubts)).await.unwrap();
    attested.attestation.workload.as_ref().map(ToString::to_string)
}

#[tokio::test]
async fn a_known_program_is_attested_without_a_question() {
    let (fake, identity) = listening().await;
    let first = identity.attest_recorded(about(Doubts::default())).await.unwrap();
    let second = identity.attest_recorded(about(Doubts::default())).await.unwrap();
    assert!(Arc::ptr_eq(&first.attestation, &second.attestation));
    let asked = fake.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 1);
    assert_eq!(ConnectRecord::parse(&asked[0].kernel), Ok(record(Doubts::default())), "with what the kernel wrote");
    assert_eq!(asked[0].kernel.len(), RECORD_SIZE);
}

#[tokio::test]
async fn every_doubt_is_a_question_and_so_is_no_record() {
    let (fake, identity) = listening().await;
    workload(&identity, Doubts::default()).await;
    for (nth, doubts) in [Doubts::CREATOR_DIFFERS, Doubts::SHARED_FILE, Doubts(1 << 31)].into_iter().enumerate() {
        workload(&identity, doubts).await;
        assert_eq!(fake.asked(), nth + 2);
    }
    identity.attest_recorded(About::key(key())).await.unwrap();
    assert!(fake.asked.lock().unwrap().last().unwrap().kernel.is_empty());
    assert_eq!(fake.asked(), 5);
}

#[tokio::test]
async fn a_lapse_is_followed_by_a_question() {
    let (fake, identity) = listening().await;
    workload(&identity, Doubts::default()).await;
    let before = identity.memory().as_of();
    answer(&fake, "shop/db");
    fake.lapse(Of::Execution(execution().into()));
    until("it is heard", async || identity.memory().as_of() != before).await;
    assert_eq!(workload(&identity, Doubts::default()).await.as_deref(), Some("shop/db"));
    assert_eq!(fake.asked(), 2);
}

#[tokio::test]
async fn an_answer_that_a_lapse_has_overtaken_is_not_used_again() {
    let (fake, identity) = listening().await;
    fake.answer_gate.forget_permits(usize::MAX);
    let under_way = {
        let identity = identity.clone();
        tokio::spawn(async move { workload(&identity, Doubts::default()).await })
    };
    until("it is asked", async || fake.asked() == 1).await;
    let before = identity.memory().as_of();
    fake.lapse(Of::Execution(execution().into()));
    until("the lapse is heard", async || identity.memory().as_of() != before).await;
    fake.answer_gate.add_permits(1_000);
    assert_eq!(under_way.await.unwrap().as_deref(), Some("shop/web"), "the flow itself is asked about when it enters");
    answer(&fake, "shop/db");
    assert_eq!(workload(&identity, Doubts::default()).await.as_deref(), Some("shop/db"));
}

/// Whoever can make identityd go away must not be able to live on what it said before.
#[tokio::test]
async fn when_the_stream_breaks_the_next_connection_asks_again() {
    let (mut fake, identity) = listening().await;
    workload(&identity, Doubts::default()).await;
    let before = identity.memory().as_of();
    fake.stop();
    until("it is noticed", async || identity.memory().as_of() != before).await;
    let refused = identity.attest_recorded(about(Doubts::default())).await;
    assert_eq!(refused.unwrap_err().reason, AttestReason::Unavailable);
    answer(&fake, "shop/db");
    fake.resume();
    assert_eq!(workload(&identity, Doubts::default()).await.as_deref(), Some("shop/db"));
}

#[tokio::test]
async fn another_policy_is_followed_by_a_question() {
    let (fake, identity) = listening().await;
    workload(&identity, Doubts::default()).await;
    fake.set_policy("mode = 'enforce'\nmesh = ['10.77.0.0/16']\n");
    arrived(&mut identity.policy(), |_| true).await;
    answer(&fake, "shop/db");
    assert_eq!(workload(&identity, Doubts::default()).await.as_deref(), Some("shop/db"));
}
