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

/// The most versions that are kept besides the last.
pub const EARLIER_MAX: usize = 20;

/// A version that was replaced; its parts stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierPolicy {
    /// Its number.
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

/// A version that is taken back unless somebody confirms it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed {
    /// From then on, unix seconds.
    pub until: i64,
    /// The version whose text comes back.
    pub back_to: u64,
}

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
    /// Those before it, the newest first; at most [`EARLIER_MAX`].
    #[serde(default)]
    pub earlier: Vec<EarlierPolicy>,
    /// It is on trial.
    #[serde(default)]
    pub unconfirmed: Option<Unconfirmed>,
}

impl PolicyRecord {
    /// Where its parts lie.
    #[must_use]
    pub fn laid(&self) -> Laid {
        Laid { signed: self.signed, size: self.size }
    }

    /// As it is once another one was published.
    pub(crate) fn replaced(&self) -> EarlierPolicy {
        let Self { version, created, author, text, signed, size, .. } = self;
        let (version, created, author, text) = (*version, *created, author.clone(), *text);
        EarlierPolicy { version, created, author, text, signed: *signed, size: *size }
    }
}

impl EarlierPolicy {
    /// Where its parts lie.
    #[must_use]
    pub fn laid(&self) -> Laid {
        Laid { signed: self.signed, size: self.size }
    }
}

/// A signed policy in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Laid {
    signed: Digest,
    size: u64,
}

impl Laid {
    fn parts(self) -> u64 {
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
            match self.parts(record.laid())? {
                Some(signed) => return Ok(Some((record, signed))),
                // It was replaced meanwhile, and its parts are gone.
                None if self.policy()?.as_ref() != Some(&record) => {}
                None => return Err(self.damaged(&"policies: parts of the published policy are missing or changed")),
            }
        }
        Err(self.damaged(&"the published policy is replaced faster than it can be read"))
    }

    /// A version that was replaced, as it travelled; `None`: it is not kept any more.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn earlier_policy(&self, earlier: &EarlierPolicy) -> Result<Option<Vec<u8>>, StoreError> {
        self.parts(earlier.laid())
    }

    fn parts(&self, laid: Laid) -> Result<Option<Vec<u8>>, StoreError> {
        let mut signed = Vec::new();
        for number in 0..laid.parts() {
            match self.engine.get(&part(laid.signed, number))? {
                Some(bytes) if bytes.len() <= PART => signed.extend(bytes),
                _ => return Ok(None),
            }
        }
        Ok((Digest::of(&signed) == laid.signed).then_some(signed))
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
    pub fn clear_policy(&self, laid: Laid) -> Result<(), StoreError> {
        let gone: Vec<Write> = (0..laid.parts()).map(|number| Write::Delete(part(laid.signed, number))).collect();
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
