//! A change of the store that is being put together: all of it is done at once, with its audit entries, or nothing.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::NodeName;

use super::audit::{By, Event};
use super::committer::Act;
use super::engine::{Condition, Key, Tree, Write};
use super::{
    BANNED_NODE, LedgerEntry, META_KEY, Meta, NodeRecord, QUARANTINE_KEY, QuarantineRecord, REVOKED_NODE,
    REVOKED_SERIAL, REVOKED_WORKLOAD, Store, StoreError, TokenRecord, within,
};

/// See the module.
#[derive(Debug)]
#[must_use = "nothing is written before it is committed"]
pub struct Change<'a> {
    store: &'a Store,
    act: Act,
    /// Something is not any more as it was seen.
    lost: bool,
}

fn revoked(kind: &str, name: impl std::fmt::Display) -> Key {
    Key::new(Tree::Revoked, format!("{kind}/{name}"))
}

/// Shows that a change was made, durably.
#[derive(Debug)]
pub struct Committed(());

impl<'a> Change<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self { store, act: Act::default(), lost: false }
    }

    /// The store belongs to this; once.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn found(&mut self, meta: &Meta) -> Result<(), StoreError> {
        self.swap(Key::new(Tree::Meta, META_KEY), None, meta)
    }

    /// Replaces a token as it was `seen` (`None`: absent).
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn token(&mut self, id: &[u8; 32], seen: Option<&TokenRecord>, new: &TokenRecord) -> Result<(), StoreError> {
        self.swap(Key::new(Tree::Tokens, *id), seen, new)
    }

    /// Replaces a member as it was `seen` (`None`: absent).
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn node(&mut self, name: &NodeName, seen: Option<&NodeRecord>, new: &NodeRecord) -> Result<(), StoreError> {
        self.swap(Key::new(Tree::Nodes, name.as_str()), seen, new)
    }

    /// Writes down one certificate, and that it was issued for `by`. Its serial number must not be in the ledger.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn enter(&mut self, by: &By, serial: &str, entry: &LedgerEntry) -> Result<(), StoreError> {
        self.put(Key::new(Tree::Ledger, serial), None, self.store.encode(entry)?);
        self.note(Event::issued(by, serial, entry));
        Ok(())
    }

    /// Replaces the quarantine as it was `seen`.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn quarantine(&mut self, seen: Option<&QuarantineRecord>, new: &QuarantineRecord) -> Result<(), StoreError> {
        let number = QuarantineRecord::without_entries;
        self.swap(Key::new(Tree::Meta, QUARANTINE_KEY), seen.map(number).as_ref(), &number(new))?;
        let digest = |digest: &Digest| Key::new(Tree::Quarantine, digest.0);
        self.spread(seen.map(|seen| &seen.digests), &new.digests, digest)?;
        self.spread(seen.map(|seen| &seen.nodes), &new.nodes, |node| revoked(REVOKED_NODE, node))?;
        self.spread(seen.map(|seen| &seen.workloads), &new.workloads, |name| revoked(REVOKED_WORKLOAD, name))?;
        self.spread(seen.map(|seen| &seen.serials), &new.serials, |serial| revoked(REVOKED_SERIAL, serial))?;
        self.spread(seen.map(|seen| &seen.banned), &new.banned, |node| revoked(BANNED_NODE, node))
    }

    /// Writes each record that is new or another one, and deletes each that is gone.
    fn spread<K: Ord, V: Serialize + PartialEq>(
        &mut self,
        before: Option<&BTreeMap<K, V>>,
        new: &BTreeMap<K, V>,
        key: impl Fn(&K) -> Key,
    ) -> Result<(), StoreError> {
        for (name, value) in new {
            if before.and_then(|before| before.get(name)) != Some(value) {
                self.act.writes.push(Write::Put(key(name), self.store.encode(value)?));
            }
        }
        let gone = before.into_iter().flatten().filter(|(name, _)| !new.contains_key(*name));
        self.act.writes.extend(gone.map(|(name, _)| Write::Delete(key(name))));
        Ok(())
    }

    /// Writes an entry into the audit chain.
    pub fn note(&mut self, event: Event) {
        self.act.events.push(event);
    }

    /// Makes the change; `None` if something has changed since it was seen.
    ///
    /// # Errors
    /// Any [`StoreError`]; the change may nevertheless have been made then.
    pub fn commit(self) -> Result<Option<Committed>, StoreError> {
        let won = !self.lost && self.store.committer.commit(self.act)?;
        Ok(won.then_some(Committed(())))
    }

    /// Compares meanings, not bytes: a record that an earlier version wrote with fewer fields is as it was seen.
    pub(super) fn swap<T>(&mut self, key: Key, seen: Option<&T>, new: &T) -> Result<(), StoreError>
    where
        T: Serialize + DeserializeOwned + PartialEq,
    {
        let bytes = self.store.engine.get(&key)?;
        let found = bytes.as_deref().map(|bytes| self.store.decode::<T>(bytes)).transpose();
        let found = found.map_err(|e| within(key.tree, &key.name, e))?;
        self.lost |= found.as_ref() != seen;
        self.put(key, bytes, self.store.encode(new)?);
        Ok(())
    }

    fn put(&mut self, key: Key, holds: Option<Vec<u8>>, value: Vec<u8>) {
        self.act.conditions.push(Condition { key: key.clone(), holds });
        self.act.writes.push(Write::Put(key, value));
    }
}
