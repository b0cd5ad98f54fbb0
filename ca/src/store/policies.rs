//! The policy that was published last. It is longer than every engine has room for at once: so it lies in parts, which
//! nobody sees before the record that names them is committed.

use bonafide_proto::fingerprint::Digest;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::engine::{Key, Tree, Write};
use super::{Change, Store, StoreError};

/// One part, in bytes: etcd takes requests of 1.5 MiB.
const PART: usize = 512 * 1024;
const POLICY_KEY: &[u8] = b"policy";
/// How often it may be replaced while it is read.
const TRIES: usize = 8;

/// The policy that was published last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// Counts up.
    pub version: u64,
    /// Unix seconds.
    pub created: i64,
    /// For people.
    pub author: String,
    /// SHA-256 of the text.
    pub text: Digest,
    /// SHA-256 of the signed policy; its parts lie under it.
    pub signed: Digest,
    /// Bytes of the signed policy.
    pub size: u64,
}

impl PolicyRecord {
    fn parts(&self) -> u64 {
        self.size.div_ceil(PART as u64)
    }
}

fn part(signed: Digest, number: u64) -> Key {
    Key::new(Tree::Policies, [&signed.0[..], &number.to_be_bytes()].concat())
}

impl Store {
    /// Which policy was published last; `None`: none ever was.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn policy(&self) -> Result<Option<PolicyRecord>, StoreError> {
        self.get(&Key::new(Tree::Meta, POLICY_KEY))
    }

    /// The same, and the signed policy itself.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn signed_policy(&self) -> Result<Option<(PolicyRecord, Vec<u8>)>, StoreError> {
        for _ in 0..TRIES {
            let Some(record) = self.policy()? else { return Ok(None) };
            match self.parts(&record)? {
                Some(signed) => return Ok(Some((record, signed))),
                // It was replaced meanwhile, and its parts are gone.
                None if self.policy()?.as_ref() != Some(&record) => {}
                None => return Err(self.damaged(&"policies: parts of the published policy are missing or changed")),
            }
        }
        Err(self.damaged(&"the published policy is replaced faster than it can be read"))
    }

    fn parts(&self, record: &PolicyRecord) -> Result<Option<Vec<u8>>, StoreError> {
        let mut signed = Vec::new();
        for number in 0..record.parts() {
            match self.engine.get(&part(record.signed, number))? {
                Some(bytes) if bytes.len() <= PART => signed.extend(bytes),
                _ => return Ok(None),
            }
        }
        Ok((Digest::of(&signed) == record.signed).then_some(signed))
    }

    /// Lays the parts of a signed policy down, for a record that is to be committed.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn lay_policy(&self, signed: &[u8]) -> Result<(), StoreError> {
        let of = Digest::of(signed);
        for (number, bytes) in (0..).zip(signed.chunks(PART)) {
            self.engine.commit(&[], &[Write::Put(part(of, number), bytes.to_vec())])?;
        }
        Ok(())
    }

    /// Takes the parts of a policy away that is published no longer, or never was.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn clear_policy(&self, record: &PolicyRecord) -> Result<(), StoreError> {
        let gone: Vec<Write> = (0..record.parts()).map(|number| Write::Delete(part(record.signed, number))).collect();
        for writes in gone.chunks(self.engine.room()) {
            self.engine.commit(&[], writes)?;
        }
        Ok(())
    }

    /// Changes after every publication, by whomever.
    #[must_use]
    pub fn watch_policy(&self) -> watch::Receiver<u64> {
        self.engine.watch(&Key::new(Tree::Meta, POLICY_KEY))
    }
}

impl Change<'_> {
    /// Replaces the published policy as it was `seen` (`None`: there was none); its parts were laid down before.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn policy(&mut self, seen: Option<&PolicyRecord>, new: &PolicyRecord) -> Result<(), StoreError> {
        self.swap(Key::new(Tree::Meta, POLICY_KEY), seen, new)
    }
}
