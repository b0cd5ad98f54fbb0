//! What is on disk: damage, foreign state, a second daemon and open permissions are refused by name.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bonafide_ca::key::{self, Key, KeyError, PassphraseAt, RootKeyHome as _};
use bonafide_ca::store::StoreError;
use bonafide_ca::{Authority, Charter, NodeCa, OpenError};

use crate::bench::{Domain, Travel, charter, setup};

fn reopen(dir: &Path) -> Result<Authority, OpenError> {
    Authority::open(&charter(dir), Travel::new())
}

/// An authority that ran, with one member.
async fn used() -> tempfile::TempDir {
    let domain = Domain::new();
    domain.member("a").await;
    let Domain { dir, authority, .. } = domain;
    drop(authority);
    dir
}

#[tokio::test]
async fn the_trust_domain_survives_a_restart() {
    let domain = Domain::new();
    domain.member("a").await;
    let root = domain.authority.trust_bundle().roots().to_vec();
    let Domain { dir, authority, .. } = domain;
    drop(authority);
    let again = reopen(dir.path()).unwrap();
    assert_eq!(again.trust_bundle().roots(), root);
    assert_eq!(again.nodes().unwrap().len(), 1);
}

#[test]
fn a_second_daemon_on_one_state_is_refused() {
    let domain = Domain::new();
    let second = reopen(domain.dir.path()).unwrap_err();
    assert!(matches!(second, OpenError::Store(StoreError::InUse(_))), "{second}");
}

#[tokio::test]
async fn another_trust_domain_is_refused() {
    let dir = used().await;
    let other = Charter { trust_domain: "example.com".parse().unwrap(), ..charter(dir.path()) };
    let refused = Authority::open(&other, Travel::new()).unwrap_err();
    assert!(matches!(refused, OpenError::TrustDomain { .. }), "{refused}");
}

#[tokio::test]
async fn half_a_state_never_founds_a_new_root() {
    let dir = used().await;
    let state = charter(dir.path()).state;
    std::fs::rename(state.join("root.key"), dir.path().join("away")).unwrap();
    let refused = reopen(dir.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Half { lacks: "root.key", .. }), "{refused}");

    std::fs::rename(dir.path().join("away"), state.join("root.key")).unwrap();
    std::fs::remove_dir_all(state.join("store")).unwrap();
    for kept in ["store.changes", "store.audit"] {
        std::fs::remove_file(state.join(kept)).unwrap();
    }
    let refused = reopen(dir.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Half { has: "a root key", .. }), "{refused}");
}

#[tokio::test]
async fn a_key_of_another_root_is_refused() {
    let dir = used().await;
    let path = charter(dir.path()).state.join("root.key");
    std::fs::remove_file(&path).unwrap();
    bonafide_ca::key::Key::generate().unwrap().create_file(&path).unwrap();
    let refused = reopen(dir.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Mismatch(_)), "{refused}");
}

#[tokio::test]
async fn an_exposed_key_is_refused() {
    let dir = used().await;
    let path = charter(dir.path()).state.join("root.key");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = reopen(dir.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Key(KeyError::Exposed { mode: 0o644, .. })), "{refused}");
}

/// The files of a store, without its directories.
fn files(store: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let paths = std::fs::read_dir(store).unwrap().map(|f| f.unwrap().path()).filter(|p| p.is_file());
    paths.map(|p| (p.clone(), std::fs::read(p).unwrap())).collect()
}

#[tokio::test]
async fn damage_anywhere_in_the_store_loses_nothing_unnoticed() {
    let domain = Domain::new();
    for name in ["a", "b", "c"] {
        domain.member(name).await;
    }
    let Domain { dir, authority, .. } = domain;
    drop(authority);
    let store = charter(dir.path()).state.join("store");
    let whole = files(&store);
    let (_, log) = whole.iter().find(|(path, _)| path.ends_with("db")).unwrap();
    let written = log.iter().rposition(|b| *b != 0).unwrap();
    let mut noticed = 0;
    for at in (0..written).step_by(written / 40) {
        for (path, _) in files(&store) {
            std::fs::remove_file(path).unwrap();
        }
        for (path, bytes) in &whole {
            std::fs::write(path, bytes).unwrap();
        }
        let mut damaged = log.clone();
        damaged[at..].iter_mut().take(8).for_each(|b| *b ^= 0x5a);
        std::fs::write(store.join("db"), damaged).unwrap();
        match reopen(dir.path()) {
            Err(refused) => {
                assert!(refused.to_string().contains("is damaged"), "damage at {at}: {refused}");
                noticed += 1;
            }
            // What sled writes after our last change may go: nothing of ours is in it.
            Ok(authority) => assert_eq!(authority.nodes().unwrap().len(), 3, "damage at {at}"),
        }
    }
    assert!(noticed > 30, "only {noticed} damages were noticed");
}

#[tokio::test]
async fn a_store_that_was_cut_short_is_refused() {
    let dir = used().await;
    let store = charter(dir.path()).state.join("store");
    let whole = files(&store);
    let (path, log) = whole.iter().find(|(path, _)| path.ends_with("db")).unwrap();
    let written = log.iter().rposition(|b| *b != 0).unwrap();
    let put_back = || {
        files(&store).into_iter().for_each(|(path, _)| std::fs::remove_file(path).unwrap());
        whole.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    };
    for at in [0, 1, written / 4, written / 2, written * 3 / 4] {
        put_back();
        std::fs::write(path, &log[..at]).unwrap();
        let refused = reopen(dir.path()).unwrap_err();
        assert!(refused.to_string().contains("is damaged"), "cut at {at}: {refused}");
    }
    put_back();
    assert_eq!(reopen(dir.path()).unwrap().nodes().unwrap().len(), 1);
}

#[tokio::test]
async fn a_store_taken_back_to_an_older_state_is_refused() {
    let domain = Domain::new();
    let token = domain.token(None);
    let Domain { dir, clock, authority } = domain;
    drop(authority);
    let store = charter(dir.path()).state.join("store");
    let before = files(&store);
    let authority = std::sync::Arc::new(reopen(dir.path()).unwrap());
    let again = Domain { dir, clock, authority };
    again.stranger("a").join(&again.link(), &token).await.unwrap();
    let Domain { dir, authority, .. } = again;
    drop(authority);
    // With the old files the token would be fresh again.
    for (path, bytes) in before {
        std::fs::write(path, bytes).unwrap();
    }
    let refused = reopen(dir.path()).unwrap_err();
    assert!(refused.to_string().contains("is damaged"), "{refused}");
}

#[tokio::test]
async fn a_membership_of_another_node_or_a_damaged_one_is_refused() {
    let domain = Domain::new();
    drop(domain.member("a").await);
    let setup_a = setup(domain.dir.path(), "a");
    let file = setup_a.state.join("membership.json");

    let as_b = bonafide_ca::NodeSetup { name: "b".parse().unwrap(), ..setup_a.clone() };
    let refused = NodeCa::open(as_b, domain.clock.clone()).unwrap_err();
    assert!(refused.to_string().contains("belongs to node a"), "{refused}");

    let whole = std::fs::read_to_string(&file).unwrap();
    for damaged in [whole[..whole.len() / 2].to_owned(), String::new(), whole.replace("\"a\"", "\"a/b\"")] {
        std::fs::write(&file, damaged).unwrap();
        let refused = NodeCa::open(setup_a.clone(), domain.clock.clone()).unwrap_err();
        assert!(refused.to_string().contains("is damaged"), "{refused}");
    }
    std::fs::write(&file, whole).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let refused = NodeCa::open(setup_a, domain.clock.clone()).unwrap_err();
    assert!(refused.to_string().contains("mode 0640"), "{refused}");
}

#[test]
fn a_sealed_key_needs_its_passphrase_and_a_bare_one_is_sealed_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        Some(PassphraseAt::File(path))
    };
    let (right, wrong) = (file("right", "correct horse battery\n"), file("wrong", "incorrect horse battery"));
    let bare = charter(dir.path());
    let with = |passphrase: &Option<PassphraseAt>| Charter { passphrase: passphrase.clone(), ..bare.clone() };
    let open = |charter: &Charter| Authority::open(charter, Travel::new());
    let root = open(&bare).unwrap().trust_bundle().roots().to_vec();
    let said = |charter: &Charter| open(charter).unwrap_err().to_string();
    assert!(said(&with(&right)).contains("is not sealed"), "{}", said(&with(&right)));
    let seal = || key::seal(&with(&right).keys());
    assert_eq!(seal().unwrap(), [bare.key_of(1).path]);
    assert!(seal().unwrap_err().to_string().contains("sealed already"));
    assert!(matches!(key::seal(&bare.keys()), Err(KeyError::Sealing { .. })), "there is no passphrase");
    assert!(said(&bare).contains("it is sealed, and"), "{}", said(&bare));
    assert!(said(&with(&wrong)).contains("is not the one"), "{}", said(&with(&wrong)));
    assert_eq!(open(&with(&right)).unwrap().trust_bundle().roots(), root);

    // Keys of other roots are sealed beside one that is, and others' files are left alone.
    let others = [bare.key_of(2), bare.issuing_key_of(3)];
    others.iter().for_each(|other| drop(other.create().unwrap()));
    std::fs::write(bare.state.join("root-x.key"), "none of ours").unwrap();
    assert_eq!(seal().unwrap(), others.map(|other| other.path));
    for key in with(&right).keys() {
        key.open().unwrap();
    }
    assert_eq!(with(&right).keys().len(), 3);
    assert_eq!(std::fs::read(bare.state.join("root-x.key")).unwrap(), b"none of ours");

    // A new one is sealed from its first moment.
    let founded = Charter { state: dir.path().join("founded"), ..with(&right) };
    drop(open(&founded).unwrap());
    let key = std::fs::read(founded.state.join("root.key")).unwrap();
    assert!(
        key.starts_with(b"{")
            && KeyError::Malformed.to_string()
                == Key::open_file(&founded.state.join("root.key")).unwrap_err().to_string()
    );
    open(&founded).unwrap();
}
