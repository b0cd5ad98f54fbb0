//! Quarantine: told to every node at once, kept by those that are cut off, and obeyed by each.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bonafide_ca::mesh::{Held, QUARANTINE_MAX};
use bonafide_ca::node::MembershipError;
use bonafide_ca::store::{By, QuarantineRecord, Quarantined, Store};
use bonafide_ca::{Authority, AuthorityLink as _, LinkError, NodeCa};
use bonafide_proto::container::Container;
use bonafide_proto::endpoint;
use bonafide_proto::fingerprint::{Digest, Evidence, Fingerprint, Libraries, Script};
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::wire::authority as wire;
use bonafide_proto::wire::authority::admission_client::AdmissionClient;
use bonafide_proto::wire::node as local;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;

use crate::bench::{Domain, INTERMEDIATE_TTL, LOOPBACKS, Served, charter, csr, fingerprint, follow, setup, until};
use crate::program;

const BAD: Digest = Digest([0xbb; 32]);

async fn order(served: &Served, digest: Digest, lift: bool) -> wire::QuarantineResponse {
    let reason = if lift { "" } else { "CVE-2026-1" }.to_owned();
    let request = wire::QuarantineRequest { sha256: digest.0.to_vec(), lift, reason };
    served.admin().quarantine(request).await.unwrap().into_inner()
}

fn knows(node: &NodeCa) -> BTreeSet<Digest> {
    node.mesh().borrow().quarantine.clone()
}

fn issue(node: &NodeCa, fingerprint: &Fingerprint) -> Result<(), AttestReason> {
    node.issue_leaf(&"shop/web".parse().unwrap(), fingerprint, &csr(&[])).map(drop).map_err(|r| r.reason)
}

fn bad() -> Fingerprint {
    let mut bad = fingerprint();
    bad.exe.digest = BAD;
    bad
}

#[tokio::test]
async fn every_node_is_told_at_once_and_told_when_it_is_lifted() {
    for ip in LOOPBACKS {
        let served = Served::on(ip).await;
        let nodes = [Arc::new(served.member("a").await), Arc::new(served.member("b").await)];
        let following: Vec<_> = nodes.iter().map(|node| follow(node, served.link())).collect();
        // Followers that are still on their way are waited for; what is said to be in force is.
        let told = order(&served, Digest([1; 32]), false).await;
        assert_eq!((told.changed, told.told, told.nodes), (true, 2, 2), "{told:?}");
        for node in &nodes {
            assert!(knows(node).contains(&Digest([1; 32])));
            assert_eq!(issue(node, &bad()), Ok(()));
        }

        let told = order(&served, BAD, false).await;
        assert_eq!((told.changed, told.told, told.nodes), (true, 2, 2));
        assert!(!order(&served, BAD, false).await.changed, "it was in before");
        for node in &nodes {
            assert_eq!(issue(node, &bad()), Err(AttestReason::Quarantined));
        }
        assert!(order(&served, BAD, true).await.changed);
        assert!(!order(&served, BAD, true).await.changed, "it was out before");
        for node in &nodes {
            assert_eq!(issue(node, &bad()), Ok(()));
        }
        following.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// A member that is connected, and has something else in force than it was told.
struct Deaf(Held);

impl Deaf {
    /// It says this as soon as it is told something, and is a follower until what this returns is dropped.
    async fn follow(self, served: &Served, node: &NodeCa) -> tokio::task::JoinHandle<()> {
        let (held, says) = watch::channel(Held::default());
        let mut states = served.link().follow(&node.member().unwrap(), node.machine(), says).await.unwrap();
        tokio::spawn(async move {
            while states.next().await.is_some() {
                held.send_replace(self.0);
            }
        })
    }
}

#[tokio::test]
async fn who_is_connected_and_does_not_say_that_it_is_in_force_is_named() {
    let served = Served::on("127.0.0.1").await;
    let (a, b) = (Arc::new(served.member("a").await), served.member("b").await);
    let following = follow(&a, served.link());
    let deaf = Deaf(Held::default()).follow(&served, &b).await;
    let told = order(&served, BAD, false).await;
    assert_eq!((told.told, told.nodes, told.untold), (1, 2, vec!["b".to_owned()]));
    let listed = served.admin().list_nodes(wire::ListNodesRequest {}).await.unwrap().into_inner();
    assert!(listed.nodes.iter().all(|node| node.following), "{listed:?}");
    deaf.abort();
    let _ = deaf.await;

    // One whose authority was restored from a backup has it in force, and has lifted nothing.
    let ahead = Deaf(Held { told: 1, holds: 9, roots: 1 }).follow(&served, &b).await;
    let again = order(&served, BAD, false).await;
    assert_eq!((again.changed, again.told, again.untold), (false, 2, vec![]));
    let lifted = order(&served, BAD, true).await;
    assert_eq!((lifted.told, lifted.untold), (1, vec!["b".to_owned()]));
    ahead.abort();
    let _ = ahead.await;

    served.clock.forward(i64::from(INTERMEDIATE_TTL) + 1);
    let nobody = order(&served, BAD, false).await;
    assert_eq!((nobody.told, nobody.nodes), (0, 0), "who can have no certificate is not waited for");
    following.abort();
}

#[tokio::test]
async fn the_list_says_since_when_and_why_and_survives_a_restart() {
    let mut served = Served::on("127.0.0.1").await;
    order(&served, BAD, false).await;
    served.clock.forward(5);
    order(&served, Digest([1; 32]), false).await;
    order(&served, BAD, false).await;
    let list = async |served: &Served| {
        let listed = served.admin().list_quarantine(wire::ListQuarantineRequest {}).await.unwrap();
        listed.into_inner().quarantined
    };
    let before = list(&served).await;
    assert_eq!(before.iter().map(|q| q.sha256[0]).collect::<Vec<_>>(), [1, 0xbb]);
    assert_eq!((before[0].since - before[1].since, before[1].reason.as_str()), (5, "CVE-2026-1"));
    served.stop().await;
    served.start().await;
    assert_eq!(list(&served).await, before);
    let node = served.member("a").await;
    assert_eq!(knows(&node), [Digest([1; 32]), BAD].into(), "who joins knows it from the first moment");
}

#[tokio::test]
async fn a_node_cut_off_keeps_it_across_restarts_and_learns_the_rest_on_return() {
    let mut served = Served::on("127.0.0.1").await;
    let node = Arc::new(served.member("a").await);
    let following = follow(&node, served.link());
    order(&served, BAD, false).await;
    until(|| knows(&node).contains(&BAD)).await;
    served.stop().await;
    following.abort();
    let _ = following.await;
    let clock = served.clock.clone();
    drop(node);

    let again = Arc::new(NodeCa::open(setup(served.dir.path(), "a"), clock).unwrap());
    assert_eq!(knows(&again), [BAD].into());
    assert_eq!(issue(&again, &bad()), Err(AttestReason::Quarantined));
    served.start().await;
    order(&served, Digest([1; 32]), false).await;
    order(&served, BAD, true).await;
    assert_eq!(knows(&again), [BAD].into(), "nobody told it yet");
    let following = follow(&again, served.link());
    until(|| knows(&again) == [Digest([1; 32])].into()).await;

    served.stop().await;
    served.start().await;
    order(&served, BAD, false).await;
    until(|| knows(&again).len() == 2).await;
    following.abort();
}

#[tokio::test]
async fn every_digest_of_a_program_counts() {
    let domain = Domain::new();
    let node = domain.member("a").await;
    domain.authority.quarantine().add(&By::Uid(0), BAD, "").unwrap();
    node.renew(&domain.link()).await.unwrap();
    assert_eq!(knows(&node), [BAD].into(), "a renewal tells it, too");
    assert_eq!(issue(&node, &fingerprint()), Ok(()));

    let container = |image, manifest| {
        Evidence::Known(Container {
            runtime: "docker".into(),
            id: "c".into(),
            name: None,
            image,
            image_name: None,
            manifests: vec![manifest],
            labels: Default::default(),
            pod: None,
        })
    };
    let other = Digest([7; 32]);
    let mut script = fingerprint();
    script.script = Evidence::Known(Script::Inline(BAD));
    let mut libraries = fingerprint();
    libraries.libraries = Evidence::Known(Libraries { digest: BAD, count: 3 });
    let mut image = fingerprint();
    image.container = container(BAD, other);
    let mut manifest = fingerprint();
    manifest.container = container(other, BAD);
    for bad in [bad(), script, libraries, image, manifest] {
        assert_eq!(issue(&node, &bad), Err(AttestReason::Quarantined));
    }
    let mut clean = fingerprint();
    clean.container = container(other, other);
    assert_eq!(issue(&node, &clean), Ok(()));
}

/// The domain after its authority's list was replaced, as by a backup.
fn restored(Domain { dir, clock, authority }: Domain, list: &QuarantineRecord) -> Domain {
    drop(authority);
    let store = Store::embedded(&charter(dir.path()).state.join("store"), clock.clone()).unwrap();
    assert!(store.swap_quarantine(store.quarantine().unwrap().as_ref(), list).unwrap());
    drop(store);
    let authority = Arc::new(Authority::open(&charter(dir.path()), clock.clone()).unwrap());
    Domain { dir, clock, authority }
}

#[tokio::test]
async fn an_authority_from_a_backup_lifts_nothing() {
    let domain = Domain::new();
    let node = Arc::new(domain.member("a").await);
    let list = domain.authority.quarantine();
    list.add(&By::Uid(0), Digest([1; 32]), "").unwrap();
    list.add(&By::Uid(0), BAD, "").unwrap();
    node.renew(&domain.link()).await.unwrap();
    assert_eq!(node.mesh().borrow().sequence, 2);
    let domain = restored(domain, &QuarantineRecord::default());
    let authority = &domain.authority;
    authority.quarantine().add(&By::Uid(0), Digest([3; 32]), "").unwrap();

    let following = follow(&node, domain.link());
    until(|| knows(&node).len() == 3).await;
    assert_eq!(node.mesh().borrow().sequence, 2);
    authority.quarantine().add(&By::Uid(0), Digest([4; 32]), "").unwrap();
    authority.quarantine().add(&By::Uid(0), Digest([5; 32]), "").unwrap();
    until(|| knows(&node) == [Digest([3; 32]), Digest([4; 32]), Digest([5; 32])].into()).await;
    following.abort();
}

#[tokio::test]
async fn only_current_members_are_told() {
    let served = Served::on("127.0.0.1").await;
    let node = served.member("a").await;
    let usurper = served.stranger_elsewhere("a");
    usurper.join(&served.link(), &served.token("a").await).await.unwrap();
    let refused = node.follow(&served.link()).await.unwrap_err();
    let MembershipError::Link(LinkError::Refused { reason, .. }) = &refused else { panic!("{refused}") };
    assert_eq!(reason, "membership-replaced");

    served.clock.forward(i64::from(INTERMEDIATE_TTL) + 1);
    let expired = usurper.follow(&served.link()).await.unwrap_err();
    assert!(matches!(expired, MembershipError::Link(LinkError::Distrust { .. } | LinkError::Unreachable { .. })));
    served.stranger("b").follow(&served.link()).await.unwrap();
}

#[tokio::test]
async fn the_list_and_its_reasons_have_bounds() {
    let domain = Domain::new();
    let list = domain.authority.quarantine();
    for reason in ["two\nlines", &"x".repeat(257)] {
        list.add(&By::Uid(0), BAD, reason).unwrap_err();
    }
    assert!(list.list().unwrap().is_empty());
    let numbered = |n: usize| Digest::of(&n.to_be_bytes());
    let full = (0..QUARANTINE_MAX).map(|n| (numbered(n), Quarantined { since: 0, reason: String::new() }));
    let domain =
        restored(domain, &QuarantineRecord { sequence: 9, digests: full.collect(), ..QuarantineRecord::default() });
    let list = domain.authority.quarantine();
    assert!(list.add(&By::Uid(0), BAD, "").unwrap_err().to_string().contains("lift some first"));
    assert!(list.lift(&By::Uid(0), numbered(0)).unwrap());
    assert!(list.add(&By::Uid(0), BAD, "").unwrap());
    let node = domain.member("a").await;
    assert_eq!(knows(&node).len(), QUARANTINE_MAX);
}

/// The digests of the next bundle.
async fn told(bundles: &mut tonic::Streaming<local::Bundle>) -> (u64, Vec<u8>) {
    let bundle = bundles.message().await.unwrap().unwrap();
    (bundle.sequence, bundle.quarantine.iter().map(|digest| digest[0]).collect())
}

#[tokio::test]
async fn one_host_alone_has_a_quarantine_too_and_tells_it_beside_unchanged_roots() {
    let dir = tempfile::tempdir().unwrap();
    let config = program::local(dir.path());
    let start = || program::program().arg("--config").arg(&config).spawn().unwrap();
    let daemon = start();
    let mut bundles =
        program::ask(dir.path()).await.watch_bundle(local::WatchBundleRequest {}).await.unwrap().into_inner();
    assert_eq!(told(&mut bundles).await, (1, vec![]));
    let mut admin = AdmissionClient::new(endpoint::channel(dir.path().join("authority.sock")));
    for (n, lift, then) in [(2, false, vec![2]), (1, false, vec![1, 2]), (2, true, vec![1])] {
        let request = wire::QuarantineRequest { sha256: vec![n; 32], lift, reason: String::new() };
        admin.quarantine(request).await.unwrap();
        // The keys of tokens, which come by the same stream, may come in between.
        let told = async { while told(&mut bundles).await != (1, then.clone()) {} };
        tokio::time::timeout(Duration::from_secs(30), told).await.unwrap();
    }
    let short = wire::QuarantineRequest { sha256: vec![1; 31], ..Default::default() };
    assert_eq!(admin.quarantine(short).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    assert_eq!(program::end(daemon, rustix::process::Signal::TERM).await, 0);

    let daemon = start();
    let mut bundles =
        program::ask(dir.path()).await.watch_bundle(local::WatchBundleRequest {}).await.unwrap().into_inner();
    assert_eq!(told(&mut bundles).await, (1, vec![1]));
    assert_eq!(program::end(daemon, rustix::process::Signal::TERM).await, 0);
}

#[tokio::test]
async fn a_damaged_file_of_what_is_known_is_refused_by_name() {
    let domain = Domain::new();
    drop(domain.member("a").await);
    let file = setup(domain.dir.path(), "a").state.join("mesh.json");
    assert!(file.exists());
    std::fs::write(&file, "{}").unwrap();
    let refused = NodeCa::open(setup(domain.dir.path(), "a"), domain.clock.clone()).unwrap_err();
    assert!(refused.to_string().contains("mesh.json is damaged"), "{refused}");
}
