//! A disk that is full: what was acknowledged stays, what could not be written is an error that says so.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bonafide_ca::authority::TokenTerms;
use bonafide_ca::key::Key;
use bonafide_ca::store::{By, Event, Store, StoreError};
use bonafide_ca::{Authority, Charter, Embedded, csr, upkeep};
use bonafide_proto::clock::SystemClock;
use bonafide_proto::fingerprint::{Digest, Evidence, Fingerprint, HashedFile, Host};
use bonafide_proto::grant::Grant;
use bonafide_proto::refusal::AttestReason;

use crate::cluster::Cluster;

/// A file system of its own, and small.
struct Small {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Small {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("small");
        std::fs::create_dir(&path).unwrap();
        mount(&["-t", "tmpfs", "-o", "size=6m", "bonafide-test"], &path);
        Self { _dir: dir, path }
    }

    fn grow(&self) {
        mount(&["-o", "remount,size=64m"], &self.path);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l".as_ref(), self.path.as_os_str()]).status();
    }
}

fn mount(arguments: &[&str], path: &Path) {
    let output = Command::new("mount").args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn open(path: &Path) -> Result<Store, StoreError> {
    Store::embedded(&path.join("store"), Arc::new(SystemClock))
}

fn note(store: &Store, n: usize) -> Result<(), StoreError> {
    let mut change = store.change();
    change.note(Event::new("tested", &By::Daemon).with("number", n).with("filling", "x".repeat(500)));
    change.commit().map(drop)
}

#[test]
fn a_full_disk_is_an_error_and_what_was_acknowledged_stays() {
    let small = Small::new();
    let store = open(&small.path).unwrap();
    let mut acknowledged = 0;
    let refused = loop {
        match note(&store, acknowledged) {
            Ok(()) => acknowledged += 1,
            Err(e) => break e,
        }
        assert!(acknowledged < 100_000, "the disk never filled");
    };
    assert!(acknowledged > 10, "{acknowledged}: {refused}");
    assert!(refused.to_string().contains("No space left on device"), "{refused}");
    note(&store, acknowledged).unwrap_err();
    drop(store);
    small.grow();
    let store = open(&small.path).unwrap();
    let entries = crate::audit::verify(&store).unwrap();
    let kept = entries.iter().filter(|entry| entry.act == "tested").count();
    assert!(kept >= acknowledged, "{acknowledged} were acknowledged, {kept} are there");
    note(&store, kept).unwrap();
}

#[test]
fn a_store_that_is_opened_on_a_full_disk_loses_nothing() {
    let small = Small::new();
    let store = open(&small.path).unwrap();
    (0..50).for_each(|n| note(&store, n).unwrap());
    drop(store);
    let filling = fill(&small.path);
    let refused = open(&small.path).unwrap_err();
    assert!(refused.to_string().contains("No space left on device"), "{refused}");
    std::fs::remove_file(filling).unwrap();
    let entries = crate::audit::verify(&open(&small.path).unwrap()).unwrap();
    assert_eq!(entries.iter().filter(|entry| entry.act == "tested").count(), 50);
}

fn fingerprint() -> Fingerprint {
    let absent = || Evidence::Absent("not looked for".into());
    let exe = HashedFile { path: "/usr/bin/python3".into(), digest: Digest([1; 32]) };
    Fingerprint::of(exe, (33, 33), Host { bios_uuid: absent(), machine_id: absent(), node: None })
}

/// Until nothing more fits.
fn fill(path: &Path) -> PathBuf {
    let filling = path.join("filling");
    let mut file = std::fs::File::create(&filling).unwrap();
    let mut size = 1 << 20;
    while size > 0 {
        match file.write_all(&vec![0; size]) {
            Ok(()) => {}
            Err(_) => size /= 2,
        }
    }
    filling
}

#[tokio::test]
async fn a_node_whose_disk_is_full_issues_nothing_that_it_cannot_write_down_and_goes_by_what_it_is_told() {
    let (small, dir) = (Small::new(), tempfile::tempdir().unwrap());
    let charter = Charter {
        state: dir.path().join("authority"),
        trust_domain: "example.org".parse().unwrap(),
        intermediate_ttl: 3600,
        shared: None,
        passphrase: None,
    };
    let authority = Arc::new(Authority::open(&charter, Arc::new(SystemClock)).unwrap());
    let (link, node) = (Embedded(authority.clone()), Arc::new(crate::replicas::node(&small.path, "a")));
    let terms = TokenTerms { ttl: 600, grant: Some(Grant::everything()), ..TokenTerms::default() };
    node.join(&link, &authority.create_token(terms).unwrap().0).await.unwrap();
    let csr = csr::request(&Key::generate().unwrap()).unwrap();
    let issue = || node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr);
    issue().unwrap();

    let filling = fill(&small.path);
    let refused = loop {
        // What sled has set aside may still take some.
        match issue() {
            Ok(_) => {}
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.reason, AttestReason::Unavailable, "{refused:?}");
    let before = node.member().unwrap();
    let unkept = node.renew(&link).await.unwrap_err().to_string();
    assert!(unkept.contains("No space left on device"), "{unkept}");
    assert_eq!(node.member().unwrap().not_after(), before.not_after(), "what cannot be kept is not used");
    let (follows, told) = (node.clone(), Digest([7; 32]));
    let following = tokio::spawn(async move { match upkeep::follow(&follows, &link).await {} });
    authority.quarantine().add(&By::Uid(0), told, "tested").unwrap();
    crate::replicas::knows(&node, told).await;
    following.abort();

    std::fs::remove_file(filling).unwrap();
    node.renew(&Embedded(authority)).await.unwrap();
    drop(node);
    let again = crate::replicas::node(&small.path, "a");
    assert!(again.member().is_some());
    again.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr).unwrap();
    crate::audit::verify(again.store()).unwrap();
}

#[test]
fn an_etcd_whose_room_is_used_up_says_what_helps_and_what_was_acknowledged_stays() {
    let (cluster, dir) = (Cluster::of_room(4 << 20), tempfile::tempdir().unwrap());
    let store = Store::open(cluster.engine("full"), &dir.path().join("mark"), Arc::new(SystemClock)).unwrap();
    let mut acknowledged = 0;
    let refused = loop {
        // What takes room is what nobody reads: parts of a policy that is never published.
        match note(&store, acknowledged)
            .and_then(|()| store.lay_policy(&vec![u8::try_from(acknowledged).unwrap(); 400_000]))
        {
            Ok(()) => acknowledged += 1,
            Err(e) => break e,
        }
        assert!(acknowledged < 100, "it was never full");
    };
    assert!(refused.to_string().contains("compact and defragment it, or raise its quota"), "{refused}");
    note(&store, 0).unwrap_err();
    let entries = crate::audit::verify(&store).unwrap();
    assert!(entries.iter().filter(|entry| entry.act == "tested").count() >= acknowledged, "{acknowledged}");
}
