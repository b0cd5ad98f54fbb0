//! The audit chain in a store: whole under concurrent writers, on both engines; what was taken out or back is noticed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bonafide_ca::store::engine::{Engine, Key, Tree, Write};
use bonafide_ca::store::{By, Embedded, Event, Store, StoreError, TokenRecord};
use bonafide_proto::audit::{Broken, Chain, Entry};
use bonafide_proto::clock::Clock;

use crate::cluster::Cluster;

#[derive(Debug)]
struct Travel(AtomicI64);

impl Clock for Travel {
    fn now(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.0.load(Ordering::SeqCst)).unwrap())
    }
}

const START: i64 = 1_800_000_000;

fn clock() -> Arc<Travel> {
    Arc::new(Travel(AtomicI64::new(START)))
}

pub(crate) fn verify(store: &Store) -> Result<Vec<Entry>, Broken> {
    let head = store.audit_head().unwrap();
    let mut chain = Chain::of(&head);
    let mut entries = Vec::new();
    let mut from = head.first;
    loop {
        let page = store.audit_entries(from, 7).unwrap();
        if page.is_empty() {
            chain.end(&head)?;
            return Ok(entries);
        }
        for bytes in page {
            entries.push(chain.take(&bytes)?);
            from += 1;
        }
    }
}

fn note(store: &Store, act: &'static str) {
    let mut change = store.change();
    change.note(Event::new(act, &By::Uid(0)));
    assert!(change.commit().unwrap().is_some());
}

/// A test on several stores, each with a mark of its own, that share an engine as far as they can.
fn on_each(test: impl Fn(&[Store], &dyn Engine, &Travel)) {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let engine = Arc::new(Embedded::open(&dir.path().join("store")).unwrap());
    let store = Store::open(engine.clone(), &dir.path().join("mark"), clock.clone()).unwrap();
    test(&[store], engine.as_ref(), &clock);

    let (cluster, clock) = (Cluster::of(1), self::clock());
    let store = |n: u32| {
        let mark = dir.path().join(format!("mark-{n}"));
        Store::open(cluster.engine("audit"), &mark, clock.clone()).unwrap()
    };
    test(&[store(1), store(2), store(3)], cluster.engine("audit").as_ref(), &clock);
}

#[test]
fn writers_that_share_a_store_write_one_chain() {
    on_each(|stores, _, _| {
        std::thread::scope(|scope| {
            for n in 0..12 {
                let store = &stores[n % stores.len()];
                scope.spawn(move || (0..10).for_each(|_| note(store, "tested")));
            }
        });
        for store in stores {
            let entries = verify(store).unwrap();
            assert_eq!(entries.iter().filter(|entry| entry.act == "tested").count(), 120);
        }
    });
}

#[test]
fn of_a_hundred_uses_of_one_token_exactly_one_wins_and_is_written_down() {
    on_each(|stores, _, _| {
        let fresh =
            TokenRecord { node: None, expires: START + 600, used: None, admitted: None, grant: None, bios_uuid: None };
        assert!(stores[0].swap_token(&[7; 32], None, &fresh).unwrap());
        let used = TokenRecord { used: Some(START), ..fresh.clone() };
        let won = std::thread::scope(|scope| {
            let uses = (0..100).map(|n| {
                let (store, fresh, used) = (&stores[n % stores.len()], &fresh, &used);
                scope.spawn(move || {
                    let mut change = store.change();
                    change.token(&[7; 32], Some(fresh), used).unwrap();
                    change.note(Event::new("admitted", &By::Daemon).with("use", n));
                    change.commit().unwrap().is_some()
                })
            });
            let uses: Vec<_> = uses.collect();
            uses.into_iter().map(|using| using.join().unwrap()).filter(|won| *won).count()
        });
        assert_eq!(won, 1);
        assert_eq!(verify(&stores[0]).unwrap().iter().filter(|entry| entry.act == "admitted").count(), 1);
    });
}

#[test]
fn what_is_older_than_is_kept_is_dropped_and_the_rest_still_fits() {
    on_each(|stores, _, clock| {
        let store = &stores[0];
        (0..150).for_each(|_| note(store, "old"));
        clock.0.fetch_add(1000, Ordering::SeqCst);
        note(store, "young");
        store.forget_before(START + 500).unwrap();
        for store in stores {
            let entries = verify(store).unwrap();
            assert!(entries.iter().all(|entry| entry.act != "old"), "{entries:?}");
            let dropped = entries.iter().rfind(|entry| entry.act == "audit-dropped").unwrap();
            assert_eq!(dropped.about["through"], "150");
            note(store, "later");
        }
        assert_eq!(verify(store).unwrap()[0].sequence, 151);
    });
}

#[test]
fn who_changes_an_entry_in_the_store_is_found_out() {
    on_each(|stores, engine, _| {
        (0..5).for_each(|_| note(&stores[0], "tested"));
        let key = Key::new(Tree::Audit, 3u64.to_be_bytes());
        let bytes = engine.get(&key).unwrap().unwrap();
        let forged = String::from_utf8(bytes).unwrap().replace("tested", "forged").into_bytes();
        engine.commit(&[], &[Write::Put(key.clone(), forged)]).unwrap();
        assert_eq!(verify(&stores[0]).unwrap_err().sequence, 4);
        engine.commit(&[], &[Write::Delete(key)]).unwrap();
        assert_eq!(verify(&stores[0]).unwrap_err().sequence, 3);
    });
}

fn open(engine: &Arc<dyn Engine>, mark: &Path) -> Result<Store, StoreError> {
    Store::open(engine.clone(), mark, clock())
}

#[test]
fn a_chain_that_was_cut_short_or_written_anew_does_not_open_where_it_was_seen() {
    let dir = tempfile::tempdir().unwrap();
    let engine: Arc<dyn Engine> = Arc::new(Embedded::open(&dir.path().join("store")).unwrap());
    let mark = dir.path().join("mark");
    let store = open(&engine, &mark).unwrap();
    (0..3).for_each(|_| note(&store, "tested"));
    let head = Key::new(Tree::Meta, "audit-head");
    let third = engine.get(&head).unwrap().unwrap();
    (0..2).for_each(|_| note(&store, "tested"));
    drop(store);
    drop(open(&engine, &mark).unwrap());

    // Whoever writes into the store alone takes the last two back; what is left fits.
    let last = [4u64, 5].map(|n| Write::Delete(Key::new(Tree::Audit, n.to_be_bytes())));
    engine.commit(&[], &last).unwrap();
    engine.commit(&[], &[Write::Put(head, third)]).unwrap();
    let refused = open(&engine, &mark).unwrap_err();
    assert!(refused.to_string().contains("entry 5 was written, and its last one now is 3"), "{refused}");

    // And puts others in their place.
    let elsewhere = dir.path().join("elsewhere");
    (0..4).for_each(|_| note(&open(&engine, &elsewhere).unwrap(), "forged"));
    let refused = open(&engine, &mark).unwrap_err();
    assert!(refused.to_string().contains("entry 5 is another one than was written"), "{refused}");
    std::fs::remove_file(&mark).unwrap();
    open(&engine, &mark).unwrap();
}
