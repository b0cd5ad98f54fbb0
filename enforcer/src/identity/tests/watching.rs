use bonafide_proto::revoked::Revoked;
use bonafide_proto::wire::node as wire;

use super::fake::{Fake, bundle};
use super::*;
use crate::tunnel::testing::{Mesh, T0};

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
async fn a_rule_that_expires_is_gone_from_the_policy_in_force_when_its_time_has_come() {
    let mut fake = Fake::stopped();
    let identity = client(&fake);
    let mut policy = identity.policy();
    // A minute and then two after the tests' beginning.
    let rule = |name, expires| {
        format!(
            "[[rule]]\nname = '{name}'\nfrom = 'a'\nto = 'a'\nports = [{name}]\naction = 'allow'\nexpires = {expires}\n"
        )
    };
    let rules = format!("{}{}", rule("1", "2027-01-15T08:01:00Z"), rule("2", "2027-01-15T08:02:00Z"));
    fake.set_policy(&format!("{ENFORCE}[[workload]]\nname = 'a'\nexe = '/a'\n{rules}"));
    fake.resume();
    let a = "a".parse().unwrap();
    let expected_on = |policy: &bonafide_policy::Policy| [1, 2].map(|port| policy.expects_on(&a, port));
    let first = arrived(&mut policy, |_| true).await;
    assert_eq!((expected_on(&first), first.next_change()), ([true, true], Some(T0 + 60)));
    fake.mesh.hand.advance(60);
    let second = arrived(&mut policy, |p| p.next_change() != Some(T0 + 60)).await;
    assert_eq!((expected_on(&second), second.next_change()), ([false, true], Some(T0 + 120)));
    // As after a long sleep of the machine.
    fake.mesh.hand.advance(6000);
    let third = arrived(&mut policy, |p| p.next_change().is_none()).await;
    assert_eq!((expected_on(&third), third.digest()), ([false, false], first.digest()));
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

#[tokio::test]
async fn what_is_revoked_is_known_before_anybody_is_trusted() {
    let fake = Fake::stopped();
    let revoked = Revoked { workloads: ["shop/web".parse().unwrap()].into(), ..Revoked::default() };
    // The stream that tells of changes says nothing yet.
    fake.bundle.send_replace(Some(wire::Bundle { revoked: Some((&revoked).into()), ..bundle(&fake.mesh) }));
    let mut fake = fake;
    let identity = client(&fake);
    fake.resume();
    arrived(&mut identity.trust(), |_| true).await;
    assert_eq!(identity.quarantined().revoked, revoked);

    // What is told of changes counts from then on, whatever an older bundle says.
    let told = |revoked: &Revoked| wire::Quarantine { sha256: Vec::new(), revoked: Some(revoked.into()) };
    until("it listens", async || fake.lapses.receiver_count() > 0).await;
    fake.lapse(wire::lapse::Of::Quarantine(told(&Revoked::default())));
    until("it is lifted", async || identity.quarantined().revoked.is_empty()).await;
    let mut more = bundle(&fake.mesh);
    more.roots.push(Mesh::new("example.org").root.to_vec());
    more.revoked = Some((&revoked).into());
    fake.bundle.send_replace(Some(more));
    arrived(&mut identity.trust(), |trust| trust.trust.bundle.roots().len() == 2).await;
    assert!(identity.quarantined().revoked.is_empty());
}

#[tokio::test]
async fn an_identityd_that_was_told_nothing_yet_lifts_nothing() {
    let mut fake = Fake::start();
    let identity = client(&fake);
    until("it listens", async || fake.lapses.receiver_count() > 0).await;
    let revoked = Revoked { workloads: ["shop/web".parse().unwrap()].into(), ..Revoked::default() };
    let told = wire::Quarantine { sha256: Vec::new(), revoked: Some((&revoked).into()) };
    fake.lapse(wire::lapse::Of::Quarantine(told));
    until("it is known", async || !identity.quarantined().revoked.is_empty()).await;
    fake.stop();
    fake.resume();
    until("it listens again", async || fake.lapses.receiver_count() > 0).await;
    fake.lapse(wire::lapse::Of::Everything(true));
    until("it hears", async || identity.memory().as_of() != Default::default()).await;
    assert_eq!(identity.quarantined().revoked, revoked);
}
