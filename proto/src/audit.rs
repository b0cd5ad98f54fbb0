//! An audit chain: what an entry says, and the check that none was changed, taken out or put in.
//!
//! An entry is one line of JSON with its fields in this order. Its digest is over exactly the bytes that are kept and
//! shown, so that anybody can follow a chain with `sha256sum`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::fingerprint::Digest;

/// The largest entry, in bytes.
pub const ENTRY_MAX: usize = 16 * 1024;

/// What happened, and after what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Counts from one, without a gap.
    pub sequence: u64,
    /// Unix seconds, by the writer's clock.
    pub time: i64,
    /// Digest of the entry before; of nothing, all zeros, in the very first.
    pub previous: Digest,
    /// Which run of which daemon wrote it: no two write the same bytes.
    pub writer: String,
    /// What was done, or refused.
    pub act: String,
    /// Who had it done.
    pub by: String,
    /// To what, and how.
    pub about: BTreeMap<String, String>,
}

impl Entry {
    /// The bytes that are kept.
    ///
    /// # Errors
    /// Never for strings and numbers; JSON's own.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

/// Where a chain ends, and where what is kept of it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The last entry's number; zero: there is none.
    pub sequence: u64,
    /// The last entry's digest.
    pub digest: Digest,
    /// The first kept entry's number.
    pub first: u64,
    /// The digest of the one before it, which was dropped for its age; all zeros: none was.
    pub before: Digest,
}

impl Default for Head {
    fn default() -> Self {
        Self { sequence: 0, digest: NOTHING, first: 1, before: NOTHING }
    }
}

/// The digest before the first entry.
pub const NOTHING: Digest = Digest([0; 32]);

/// The first entry that does not fit, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {sequence} {why}")]
pub struct Broken {
    /// Its number; the one that was to come, if it has none.
    pub sequence: u64,
    /// What does not fit.
    pub why: String,
}

/// A chain that is being followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    next: u64,
    previous: Digest,
}

impl Chain {
    /// Begins where what is kept begins.
    #[must_use]
    pub fn of(head: &Head) -> Self {
        Self { next: head.first, previous: head.before }
    }

    /// How many entries came before `head.first` and so far.
    #[must_use]
    pub fn reached(&self) -> u64 {
        self.next.saturating_sub(1)
    }

    /// Takes the next entry's bytes.
    ///
    /// # Errors
    /// [`Broken`], which says what does not fit.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Entry, Broken> {
        if bytes.len() > ENTRY_MAX {
            return Err(self.broken(format!("is larger than {ENTRY_MAX} bytes")));
        }
        let entry: Entry = serde_json::from_slice(bytes).map_err(|e| self.broken(format!("cannot be read: {e}")))?;
        if entry.encode().ok().as_deref() != Some(bytes) {
            return Err(self.broken("is not written as entries are".to_owned()));
        }
        if entry.sequence != self.next {
            return Err(self.broken(format!("is missing; number {} stands in its place", entry.sequence)));
        }
        if entry.previous != self.previous {
            return Err(self.broken("does not continue the one before it: one of the two was changed".to_owned()));
        }
        self.next = self.next.saturating_add(1);
        self.previous = Digest::of(bytes);
        Ok(entry)
    }

    /// All entries were taken.
    ///
    /// # Errors
    /// [`Broken`] if some are missing at the end, or the last one is not the one that was written.
    pub fn end(&self, head: &Head) -> Result<(), Broken> {
        if self.reached() != head.sequence {
            return Err(self.broken(format!("is missing, and so is all up to {}", head.sequence)));
        }
        if self.previous != head.digest {
            return Err(Broken { sequence: head.sequence, why: "is not the one that was written last".to_owned() });
        }
        Ok(())
    }

    fn broken(&self, why: String) -> Broken {
        Broken { sequence: self.next, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many entries after those that were dropped.
    fn written(before: &Head, count: u64) -> (Vec<Vec<u8>>, Head) {
        let mut head = before.clone();
        let mut all = Vec::new();
        for _ in 0..count {
            let entry = Entry {
                sequence: head.sequence + 1,
                time: 1_800_000_000,
                previous: head.digest,
                writer: "0011223344556677".into(),
                act: "issued".into(),
                by: "uid 0".into(),
                about: BTreeMap::from([("serial".to_owned(), "7f".to_owned())]),
            };
            let bytes = entry.encode().unwrap();
            head = Head { sequence: entry.sequence, digest: Digest::of(&bytes), ..head };
            all.push(bytes);
        }
        (all, head)
    }

    fn verify(all: &[Vec<u8>], head: &Head) -> Result<(), Broken> {
        let mut chain = Chain::of(head);
        for bytes in all {
            chain.take(bytes)?;
        }
        chain.end(head)
    }

    #[test]
    fn a_chain_fits_whole_and_after_old_entries_were_dropped() {
        let (all, head) = written(&Head::default(), 5);
        assert_eq!(verify(&all, &head), Ok(()));
        let kept = Head { first: 3, before: Digest::of(&all[1]), ..head };
        assert_eq!(verify(&all[2..], &kept), Ok(()));
        assert_eq!(verify(&[], &Head::default()), Ok(()));
    }

    #[test]
    fn the_first_entry_that_does_not_fit_is_named() {
        let (all, head) = written(&Head::default(), 5);
        let broken = |all: &[Vec<u8>]| verify(all, &head).unwrap_err().sequence;
        let mut changed = all.clone();
        changed[2] = String::from_utf8(all[2].clone()).unwrap().replace("\"7f\"", "\"80\"").into_bytes();
        assert_eq!(broken(&changed), 4, "what was changed is told by the next one");
        let mut spaced = all.clone();
        spaced[2].push(b' ');
        assert_eq!(broken(&spaced), 3);
        assert_eq!(broken(&[&all[..2], &all[3..]].concat()), 3);
        assert_eq!(broken(&[&all[..3], &all[2..]].concat()), 4);
        assert_eq!(broken(&all[..4]), 5, "the last one is missing");
        assert_eq!(broken(&all[1..]), 1);
        let mut last = all.clone();
        last[4] = String::from_utf8(all[4].clone()).unwrap().replace("\"7f\"", "\"80\"").into_bytes();
        assert_eq!(broken(&last), 5);
        assert_eq!(broken(&[all[0].clone(), vec![b'x'; ENTRY_MAX + 1]]), 2);
    }
}
