//! What every engine promises, asked of each by one body.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_ca::store::engine::{Condition, Engine, Key, Tree, Write};
use bonafide_ca::store::{Embedded, StoreError};

use crate::cluster::Cluster;

/// Each engine, new.
fn each(test: impl Fn(&dyn Engine)) {
    let dir = tempfile::tempdir().unwrap();
    test(&Embedded::open(&dir.path().join("store")).unwrap());
    let cluster = Cluster::of(1);
    test(cluster.engine("test").as_ref());
}

fn key(n: u64) -> Key {
    let tree = if n.is_multiple_of(2) { Tree::Tokens } else { Tree::Nodes };
    // Bytes that are special somewhere: separators, ends, and one name that begins another.
    Key::new(tree, [&b"a/\xff\0"[..usize::try_from(n % 4).unwrap()], &n.to_be_bytes()[6..]].concat())
}

/// A generator whose failures can be told again by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn all(engine: &dyn Engine, tree: Tree, most: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    loop {
        let page = engine.page(tree, all.last().map(|(name, _)| name.as_slice()), most).unwrap();
        let last = page.len() < most;
        all.extend(page);
        if last {
            return all;
        }
    }
}

#[test]
fn any_sequence_of_commits_is_as_in_a_map() {
    each(|engine| {
        let mut model: BTreeMap<Key, Vec<u8>> = BTreeMap::new();
        let mut dice = Dice(7);
        for turn in 0..300u64 {
            let mut touched: Vec<Key> = (0..=dice.roll(3)).map(|_| key(dice.roll(24))).collect();
            touched.sort();
            touched.dedup();
            let conditions: Vec<Condition> = touched
                .iter()
                .map(|key| {
                    let right = dice.roll(5) > 0;
                    let holds = if right { model.get(key).cloned() } else { Some(b"never".to_vec()) };
                    Condition { key: key.clone(), holds }
                })
                .collect();
            let writes: Vec<Write> = touched
                .iter()
                .map(|key| match dice.roll(4) {
                    0 => Write::Delete(key.clone()),
                    _ => Write::Put(key.clone(), turn.to_be_bytes().to_vec()),
                })
                .collect();
            let wins = conditions.iter().all(|c| model.get(&c.key) == c.holds.as_ref());
            assert_eq!(engine.commit(&conditions, &writes).unwrap(), wins, "turn {turn}");
            for write in writes.iter().filter(|_| wins) {
                match write {
                    Write::Put(key, value) => drop(model.insert(key.clone(), value.clone())),
                    Write::Delete(key) => drop(model.remove(key)),
                }
            }
            let looked = key(dice.roll(24));
            assert_eq!(engine.get(&looked).unwrap(), model.get(&looked).cloned(), "turn {turn}");
        }
        for tree in [Tree::Tokens, Tree::Nodes, Tree::Ledger] {
            let of = model.iter().filter(|(key, _)| key.tree == tree);
            let expected: Vec<_> = of.map(|(key, value)| (key.name.clone(), value.clone())).collect();
            for most in [1, 2, 7, 1000] {
                assert_eq!(all(engine, tree, most), expected, "by {most}");
            }
        }
    });
}

#[test]
fn of_many_at_once_exactly_one_wins() {
    each(|engine| {
        let key = Key::new(Tree::Tokens, "one");
        let won: usize = std::thread::scope(|scope| {
            let uses = (0..100u32).map(|n| {
                let key = &key;
                scope.spawn(move || {
                    let condition = Condition { key: key.clone(), holds: None };
                    engine.commit(&[condition], &[Write::Put(key.clone(), n.to_be_bytes().to_vec())]).unwrap()
                })
            });
            uses.collect::<Vec<_>>().into_iter().map(|using| usize::from(using.join().unwrap())).sum()
        });
        assert_eq!(won, 1);
    });
}

#[test]
fn a_full_commit_fits() {
    each(|engine| {
        let room = engine.room();
        let value = vec![7; 512];
        let keys: Vec<Key> = (0..room).map(|n| Key::new(Tree::Ledger, n.to_be_bytes())).collect();
        let conditions: Vec<_> = keys.iter().map(|key| Condition { key: key.clone(), holds: None }).collect();
        let writes: Vec<_> = keys.iter().map(|key| Write::Put(key.clone(), value.clone())).collect();
        assert!(engine.commit(&conditions, &writes).unwrap());
        assert!(!engine.commit(&conditions, &writes).unwrap());
        assert_eq!(all(engine, Tree::Ledger, 1000).len(), room);
    });
}

#[test]
fn who_watches_is_told_of_every_change() {
    each(|engine| {
        let key = Key::new(Tree::Meta, "watched");
        let mut watch = engine.watch(&key);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for n in 0..5u8 {
            engine.commit(&[], &[Write::Put(key.clone(), vec![n])]).unwrap();
            // Told before is told as well: what counts is that the newest value is looked for once it is there.
            let told = async {
                loop {
                    watch.changed().await.unwrap();
                    if engine.get(&key).unwrap() == Some(vec![n]) {
                        return;
                    }
                }
            };
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), told).await }).unwrap();
        }
    });
}

#[test]
fn what_was_written_is_there_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::of(1);
    let open: [&dyn Fn() -> Arc<dyn Engine>; 2] =
        [&|| Arc::new(Embedded::open(&dir.path().join("store")).unwrap()), &|| cluster.engine("again")];
    for open in open {
        let key = Key::new(Tree::Meta, "kept");
        open().commit(&[], &[Write::Put(key.clone(), b"yes".to_vec())]).unwrap();
        assert_eq!(open().get(&key).unwrap(), Some(b"yes".to_vec()));
    }
}

#[test]
fn prefixes_share_nothing() {
    let cluster = Cluster::of(1);
    let (one, other) = (cluster.engine("a"), cluster.engine("a-b"));
    let key = Key::new(Tree::Meta, "k");
    one.commit(&[], &[Write::Put(key.clone(), b"v".to_vec())]).unwrap();
    assert_eq!(other.get(&key).unwrap(), None);
    assert_eq!(other.page(Tree::Meta, None, 10).unwrap(), vec![]);
}

#[test]
fn a_cluster_without_a_majority_says_so_in_time_and_comes_back() {
    let mut cluster = Cluster::of(3);
    let engine = cluster.engine("majority");
    let key = Key::new(Tree::Meta, "k");
    let put = |n: u8| engine.commit(&[], &[Write::Put(key.clone(), vec![n])]);
    assert!(put(1).unwrap());
    for n in 0..2 {
        cluster.kill(n);
    }
    let began = Instant::now();
    for refused in [put(2).map(drop), engine.get(&key).map(drop)] {
        assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    cluster.start(0);
    let until = Instant::now() + Duration::from_secs(60);
    while put(3).is_err() {
        assert!(Instant::now() < until, "it never came back");
    }
    assert_eq!(engine.get(&key).unwrap(), Some(vec![3]));
}
