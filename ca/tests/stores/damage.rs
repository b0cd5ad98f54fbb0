//! Records that are not what was written: whoever reads them says which, and goes by none of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_ca::store::engine::{Engine, Key, Tree, Write};
use bonafide_ca::{Authority, Charter};
use bonafide_proto::clock::SystemClock;
use bonafide_proto::fingerprint::Digest;

use crate::backups::{all, fill};
use crate::cluster::Cluster;
use crate::replicas::{Authorities, join, knows, node, quarantine};

fn open(cluster: &Cluster, dir: &Path) -> Result<Authority, String> {
    let charter = Charter {
        state: dir.join("authority"),
        trust_domain: "example.org".parse().unwrap(),
        intermediate_ttl: 3600,
        shared: Some(cluster.place("damaged")),
        passphrase: None,
    };
    Authority::open(&charter, Arc::new(SystemClock)).map_err(|e| e.to_string())
}

/// Starts an authority and reads all that it has.
fn reads_all(cluster: &Cluster, dir: &Path) -> Result<(), String> {
    let authority = open(cluster, dir)?;
    authority.nodes().map_err(|e| e.to_string())?;
    crate::audit::verify(authority.store()).map(drop).map_err(|broken| format!("audit: {broken}"))
}

#[test]
fn garbage_in_the_place_of_any_record_is_named() {
    let (cluster, dir) = (Cluster::of(1), tempfile::tempdir().unwrap());
    fill(&open(&cluster, dir.path()).unwrap());
    reads_all(&cluster, dir.path()).unwrap();
    let engine = cluster.engine("damaged");
    // One of each kind, and of what there is one of, all.
    let mut kinds = BTreeMap::new();
    for ((tree, name), value) in all(engine.as_ref()) {
        let kind = match tree {
            "meta" => String::from_utf8(name.clone()).unwrap(),
            "revoked" => String::from_utf8_lossy(&name).split_once('/').unwrap().0.to_owned(),
            _ => String::new(),
        };
        kinds.insert((tree, kind), (Key::new(Tree::named(tree).unwrap(), name), value));
    }
    assert!(kinds.len() >= 14, "{:?}", kinds.keys());
    for ((tree, kind), (key, value)) in kinds {
        let half = value[..value.len() / 2].to_vec();
        for garbage in [Vec::new(), b"\xff\xfe\0".to_vec(), b"{}".to_vec(), half, vec![b'['; 100_000]] {
            engine.commit(&[], &[Write::Put(key.clone(), garbage)]).unwrap();
            let said = reads_all(&cluster, dir.path()).unwrap_err();
            let named = said.contains(&format!("{tree}/")) || said.contains("audit") || said.contains("policies:");
            assert!(named && said.len() < 1000, "{tree}/{kind}: {said}");
        }
        engine.commit(&[], &[Write::Put(key, value)]).unwrap();
        reads_all(&cluster, dir.path()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_whose_store_says_garbage_lets_its_nodes_go_until_it_does_not() {
    let cluster = Cluster::of(1);
    let authorities = Authorities::on(&cluster.configured("garbled"), 1).await;
    let dir = tempfile::tempdir().unwrap();
    let follower = Arc::new(node(dir.path(), "a"));
    join(&follower, &authorities.link(), &[authorities.socket(0)]).await;
    let (follows, link) = (follower.clone(), authorities.link());
    let following = tokio::spawn(async move { match bonafide_ca::upkeep::follow(&follows, &link).await {} });
    quarantine(&authorities, 0, Digest([1; 32])).await;
    knows(&follower, Digest([1; 32])).await;
    assert_eq!(authorities.followed_by(follower.name()).await, 0);

    let (engine, key) = (cluster.engine("garbled"), Key::new(Tree::Meta, "quarantine"));
    let whole = engine.get(&key).unwrap().unwrap();
    engine.commit(&[], &[Write::Put(key.clone(), b"garbage".to_vec())]).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !authorities.log(0).contains("meta/quarantine: a record cannot be read") {
        assert!(Instant::now() < until, "{}", authorities.log(0));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let refused = follower.renew(&authorities.link()).await.unwrap_err().to_string();
    assert!(refused.contains("authority-failed"), "{refused}");
    engine.commit(&[], &[Write::Put(key, whole)]).unwrap();
    assert_eq!(authorities.followed_by(follower.name()).await, 0);
    quarantine(&authorities, 0, Digest([2; 32])).await;
    knows(&follower, Digest([2; 32])).await;
    following.abort();
}
