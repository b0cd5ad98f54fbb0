use std::sync::Arc;

use bonafide_proto::clock::Clock as _;
use bonafide_proto::fingerprint::Libraries;
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::taint::Taint;

use super::fake::{Fake, Issues, bundle};
use super::*;
use crate::tunnel::testing::{LEAF_TTL, Mesh};

#[tokio::test]
async fn however_many_flows_wait_one_certificate_is_ordered() {
    let fake = Fake::start();
    let identity = client(&fake);
    fake.gate.forget_permits(usize::MAX);
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let identity = identity.clone();
            tokio::spawn(async move { identity.leaf(&attestation(Some("shop/web"))).await })
        })
        .collect();
    until("the order reaches identityd", async || fake.orders() > 0).await;
    fake.gate.add_permits(1_000);
    let mut leaves = Vec::new();
    for waiter in waiting {
        leaves.push(waiter.await.unwrap().unwrap());
    }
    assert!(leaves.iter().all(|l| Arc::ptr_eq(l, &leaves[0])));
    assert_eq!(leaves[0].workload(), &fake.mesh.id("shop/web"));
    assert_eq!(fake.orders(), 1);

    let mut another_build = attestation(Some("shop/web"));
    another_build.fingerprint.exe.digest = Digest::of(b"a new release");
    let mut another_user = attestation(Some("shop/web"));
    another_user.fingerprint.uid += 1;
    let mut tainted = attestation(Some("shop/web"));
    tainted.fingerprint.taints.insert(Taint::Preload);
    let mut with_libraries = attestation(Some("shop/web"));
    with_libraries.fingerprint.libraries = Evidence::Known(Libraries { digest: Digest::of(b"libraries"), count: 1 });
    let others = [another_build, another_user, tainted, with_libraries, attestation(Some("shop/db"))];
    for (i, other) in others.iter().enumerate() {
        identity.leaf(other).await.unwrap();
        assert_eq!(fake.orders(), 2 + i, "another subject, another certificate");
    }
}

#[tokio::test]
async fn a_certificate_that_says_more_of_its_program_than_was_asked_is_kept_for_nobody() {
    let fake = Fake::start();
    let identity = client(&fake);
    let mut before = attestation(Some("shop/web"));
    before.fingerprint.taints.insert(Taint::Traced);
    for orders in 1..4 {
        identity.leaf(&before).await.unwrap();
        assert_eq!(fake.orders(), orders);
    }
}

#[tokio::test]
async fn an_order_outlives_the_flow_that_placed_it() {
    let fake = Fake::start();
    let identity = client(&fake);
    fake.gate.forget_permits(usize::MAX);
    let of = attestation(Some("shop/web"));
    let given_up = {
        let (identity, of) = (identity.clone(), of.clone());
        tokio::spawn(async move { identity.leaf(&of).await })
    };
    until("the order reaches identityd", async || fake.orders() == 1).await;
    given_up.abort();
    fake.gate.add_permits(1_000);
    identity.leaf(&of).await.unwrap();
    assert_eq!(fake.orders(), 1);
}

#[tokio::test]
async fn a_used_leaf_is_renewed_after_its_half_life_and_flows_do_not_wait() {
    let fake = Fake::start();
    let identity = client(&fake);
    let of = attestation(Some("shop/web"));
    let first = identity.leaf(&of).await.unwrap();
    fake.mesh.hand.advance(LEAF_TTL / 2 - 1);
    assert!(Arc::ptr_eq(&first, &identity.leaf(&of).await.unwrap()));
    assert_eq!(fake.orders(), 1, "too early to renew");

    fake.gate.forget_permits(usize::MAX);
    fake.mesh.hand.advance(LEAF_TTL / 8 + 2);
    for _ in 0..5 {
        assert!(Arc::ptr_eq(&first, &identity.leaf(&of).await.unwrap()), "the old one serves meanwhile");
    }
    fake.gate.add_permits(1_000);
    until("the new leaf is handed out", async || !Arc::ptr_eq(&first, &identity.leaf(&of).await.unwrap())).await;
    assert_eq!(fake.orders(), 2);
    assert_eq!(identity.leaf(&of).await.unwrap().not_after(), fake.mesh.hand.unix() + LEAF_TTL);
}

#[tokio::test]
async fn a_failed_renewal_waits_before_the_next_and_no_leaf_outlives_its_expiry() {
    let fake = Fake::start();
    let identity = client(&fake);
    let of = attestation(Some("shop/web"));
    let first = identity.leaf(&of).await.unwrap();
    fake.issue(Issues::Refusal);
    fake.mesh.hand.advance(LEAF_TTL / 2 + LEAF_TTL / 8 + 1);
    identity.leaf(&of).await.unwrap();
    until("the renewal is refused", async || fake.orders() == 2).await;
    // The refusal is written down a moment after it was sent.
    until("the pause begins", async || {
        let before = fake.orders();
        let same = Arc::ptr_eq(&first, &identity.leaf(&of).await.unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
        same && fake.orders() == before
    })
    .await;
    let orders = fake.orders();
    for _ in 0..20 {
        identity.leaf(&of).await.unwrap();
    }
    assert_eq!(fake.orders(), orders, "no order within the pause");

    fake.mesh.hand.advance(first.not_after() - fake.mesh.hand.unix() - 1);
    assert!(Arc::ptr_eq(&first, &identity.leaf(&of).await.unwrap()), "good for one more second");
    fake.mesh.hand.advance(1);
    assert_eq!(identity.leaf(&of).await.unwrap_err().reason, AttestReason::NotEntitled);
    fake.issue(Issues::Well);
    identity.leaf(&of).await.unwrap();
}

#[tokio::test]
async fn what_is_not_fit_to_be_shown_is_not_published() {
    let fake = Fake::start();
    let identity = client(&fake);
    let of = attestation(Some("shop/web"));
    for (bad, says) in
        [(Issues::InAnothersName, "shop/db"), (Issues::FromAnotherRoot, "root"), (Issues::ForAnotherKey, "our key")]
    {
        fake.issue(bad);
        let refusal = identity.leaf(&of).await.unwrap_err();
        assert_eq!(refusal.reason, AttestReason::CheckerRefused, "{bad:?}");
        assert!(refusal.detail.contains(says), "{bad:?}: {}", refusal.detail);
    }
    fake.issue(Issues::Nothing);
    assert_eq!(identity.leaf(&of).await.unwrap_err().reason, AttestReason::Unavailable);
    fake.issue(Issues::Refusal);
    assert_eq!(identity.leaf(&of).await.unwrap_err().reason, AttestReason::NotEntitled);
    fake.issue(Issues::Well);
    identity.leaf(&of).await.unwrap();
}

#[tokio::test]
async fn who_earned_nothing_gets_nothing() {
    let fake = Fake::start();
    let identity = client(&fake);
    assert_eq!(identity.leaf(&attestation(None)).await.unwrap_err().reason, AttestReason::NotEntitled);
    assert_eq!(fake.orders(), 0);
}

#[tokio::test]
async fn a_leaf_serves_on_while_identityd_is_away_and_is_replaced_when_the_roots_are() {
    let mut fake = Fake::start();
    let identity = client(&fake);
    let of = attestation(Some("shop/web"));
    let first = identity.leaf(&of).await.unwrap();
    let mut trust = identity.trust();
    fake.stop();
    assert!(Arc::ptr_eq(&first, &identity.leaf(&of).await.unwrap()));

    // Back with the same bundle: nothing changes. Then with one root more: the leaf is checked anew.
    trust.borrow_and_update();
    fake.resume();
    let mut more = bundle(&fake.mesh);
    more.roots.push(Mesh::new("example.org").root.to_vec());
    more.sequence = 2;
    fake.bundle.send_replace(Some(more));
    arrived(&mut trust, |t| t.trust.bundle.roots().len() == 2).await;
    assert!(!Arc::ptr_eq(&first, &identity.leaf(&of).await.unwrap()));
    assert_eq!(fake.orders(), 2);
}
