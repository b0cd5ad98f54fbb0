use bonafide_proto::wire::node as wire;

use super::fake::{Fake, bundle};
use super::*;
use crate::tunnel::testing::Mesh;

const ENFORCE: &str = "mode = \"enforce\"\nmesh = [\"10.77.0.0/16\"]\n";
const OBSERVE: &str = "mode = \"observe\"\nmesh = [\"10.77.0.0/16\"]\n";
const OTHER: &str = "mode = \"observe\"\nmesh = [\"fd77::/16\"]\n";
const BROKEN: &str = "mode = \"enforce\"\nmesh = [\"10.77.0.0/33\"]\n";

#[tokio::test]
async fn the_policy_follows_and_a_broken_one_never_replaces_it() {
    let mut fake = Fake::stopped();
    let identity = client(&fake);
    let mut policy = identity.policy();
    assert!(policy.borrow().is_none(), "no policy is no permission");
    fake.set_policy(ENFORCE);
    fake.resume();
    let enforce = arrived(&mut policy, |p| p.digest() == Digest::of(ENFORCE.as_bytes())).await;
    assert_eq!(enforce.mode().as_str(), "enforce");

    fake.set_policy(BROKEN);
    let damaged = wire::PolicyUpdate { file: "p".into(), text: OBSERVE.into(), sha256: vec![0; 32] };
    fake.policy.send_replace(Some(damaged));
    fake.stop();
    assert_eq!(policy.borrow().as_ref().unwrap().digest(), enforce.digest(), "away");
    fake.set_policy(BROKEN);
    fake.resume();
    fake.set_policy(OBSERVE);
    arrived(&mut policy, |p| p.digest() == Digest::of(OBSERVE.as_bytes())).await;
    fake.set_policy(BROKEN);
    fake.set_policy(OTHER);
    arrived(&mut policy, |p| p.digest() == Digest::of(OTHER.as_bytes())).await;
}

#[tokio::test]
async fn the_same_again_after_a_restart_wakes_nobody() {
    let mut fake = Fake::start();
    fake.set_policy(ENFORCE);
    let identity = client(&fake);
    let (mut policy, mut trust) = (identity.policy(), identity.trust());
    arrived(&mut policy, |_| true).await;
    let node = arrived(&mut trust, |_| true).await;
    assert_eq!((node.node.as_str(), node.trust.bundle.roots().len()), ("node-a", 1));
    let changes = {
        let mut trust = trust.clone();
        tokio::spawn(async move {
            let mut seen = Vec::new();
            while !seen.contains(&2) {
                trust.changed().await.unwrap();
                seen.push(trust.borrow_and_update().as_ref().unwrap().trust.bundle.roots().len());
            }
            seen
        })
    };
    fake.stop();
    fake.resume();
    until("the client watches again", async || fake.bundle.receiver_count() > 0).await;
    let unusable = wire::Bundle { roots: vec![b"no certificate".to_vec()], ..bundle(&fake.mesh) };
    fake.bundle.send_replace(Some(unusable));
    let mut more = bundle(&fake.mesh);
    more.roots.push(Mesh::new("example.org").root.to_vec());
    fake.bundle.send_replace(Some(more));
    assert_eq!(timeout(LONG, changes).await.unwrap().unwrap(), [2], "only what is new and sound is a change");
}

#[tokio::test]
async fn the_watching_ends_with_the_last_client() {
    let fake = Fake::start();
    fake.set_policy(ENFORCE);
    let identity = client(&fake);
    let mut policy = identity.policy();
    arrived(&mut policy, |_| true).await;
    let clone = identity.clone();
    drop(identity);
    fake.set_policy(OTHER);
    arrived(&mut policy, |p| p.digest() == Digest::of(OTHER.as_bytes())).await;
    drop(clone);
    assert!(timeout(LONG, policy.changed()).await.unwrap().is_err(), "the sender is gone");
}
