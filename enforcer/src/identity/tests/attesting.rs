use std::time::Instant;

use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use super::fake::{Answers, Fake};
use super::*;

#[tokio::test]
async fn the_answer_arrives_as_it_was_given() {
    let fake = Fake::start();
    let identity = client(&fake);
    assert_eq!(*identity.attest(key()).await.unwrap().attestation, attestation(Some("shop/web")));
    for reason in AttestReason::ALL {
        let refusal = AttestRefusal::new(*reason, "pid 4711");
        fake.answer(Answers::With(Box::new(Err(refusal.clone()))));
        assert_eq!(identity.attest(key()).await.unwrap_err(), refusal);
    }
}

#[tokio::test]
async fn no_answer_is_a_refusal() {
    let mut fake = Fake::start();
    let identity = client(&fake);
    fake.answer(Answers::Nonsense);
    assert_eq!(identity.attest(key()).await.unwrap_err().reason, AttestReason::Unavailable, "nonsense");

    fake.answer(Answers::Never);
    let asked = Instant::now();
    assert_eq!(identity.attest(key()).await.unwrap_err().reason, AttestReason::Unavailable, "never");
    let bound = 2 * crate::identity::ask::ATTEST_PATIENCE;
    assert!(asked.elapsed() < bound, "bounded: {:?}", asked.elapsed());

    fake.stop();
    assert_eq!(identity.attest(key()).await.unwrap_err().reason, AttestReason::Unavailable, "stopped");
}

#[tokio::test]
async fn a_daemon_that_comes_later_or_again_is_found() {
    let mut fake = Fake::stopped();
    let identity = client(&fake);
    assert_eq!(identity.attest(key()).await.unwrap_err().reason, AttestReason::Unavailable);
    for _ in 0..3 {
        fake.resume();
        assert!(identity.attest(key()).await.is_ok(), "the first question after a start is answered");
        fake.stop();
    }
}
