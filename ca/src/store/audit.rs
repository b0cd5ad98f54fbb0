//! What goes into the audit chain, and what leaves it for its age.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use bonafide_proto::audit::{Entry, Head};
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::NodeName;

use super::committer::{Act, audit_key};
use super::engine::{Tree, Write};
use super::{LedgerEntry, Store, StoreError};

/// Who had something done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum By {
    /// Who asked on a unix socket, by the kernel's word.
    Uid(u32),
    /// A member, by its certificate or its token.
    Node(NodeName),
    /// Somebody without a certificate.
    Stranger(SocketAddr),
    /// The daemon itself.
    #[default]
    Daemon,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid {uid}"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::Stranger(address) => write!(f, "stranger {address}"),
            Self::Daemon => f.write_str("daemon"),
        }
    }
}

/// Something that was done or refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub(super) act: &'static str,
    pub(super) by: String,
    of_stranger: bool,
    pub(super) about: BTreeMap<String, String>,
}

/// The longest value that is written, in bytes: what strangers say is in some.
const VALUE_MAX: usize = 512;

impl Event {
    /// An act, such as `token-created`.
    #[must_use]
    pub fn new(act: &'static str, by: &By) -> Self {
        Self { act, by: by.to_string(), of_stranger: matches!(by, By::Stranger(_)), about: BTreeMap::new() }
    }

    /// To what it was done, or how; never a secret.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        let mut value = value.to_string();
        if value.len() > VALUE_MAX {
            value.truncate(value.floor_char_boundary(VALUE_MAX));
        }
        self.about.insert(key.to_owned(), value);
        self
    }

    pub(super) fn issued(by: &By, serial: &str, entry: &LedgerEntry) -> Self {
        let issued = Self::new("issued", by).with("serial", serial).with("kind", &entry.kind).with("to", &entry.who);
        let issued = issued.with("not-after", entry.not_after);
        let evidence = [("exe", &entry.exe), ("script", &entry.script)];
        evidence.into_iter().fold(issued, |event, (key, value)| match value {
            Some(value) => event.with(key, value),
            None => event,
        })
    }
}

/// Anybody can be refused as often as he likes: so many refusals are written in a minute, the others counted.
const REFUSALS: u32 = 120;

/// The refusals of this minute: of strangers, and of all others, so that strangers cannot hide what members are refused.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    strangers: Kind,
    others: Kind,
}

#[derive(Debug, Default)]
struct Kind(Mutex<Minute>);

#[derive(Debug, Default)]
struct Minute {
    number: i64,
    written: u32,
    left_out: u64,
}

impl Refusals {
    fn due(&self, of_stranger: bool, unix: i64) -> Option<u64> {
        let kind = if of_stranger { &self.strangers } else { &self.others };
        kind.due(unix)
    }
}

impl Kind {
    /// How many were left out before the one that is written now; `None`: it is left out, too.
    fn due(&self, unix: i64) -> Option<u64> {
        let mut minute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if minute.number != unix.div_euclid(60) {
            *minute = Minute { number: unix.div_euclid(60), written: 0, left_out: minute.left_out };
        }
        if minute.written >= REFUSALS {
            minute.left_out = minute.left_out.saturating_add(1);
            return None;
        }
        minute.written += 1;
        Some(std::mem::take(&mut minute.left_out))
    }
}

impl Store {
    /// Writes down that something was refused. What cannot be written is logged: the refusal stands all the same.
    pub fn refused(&self, event: Event) {
        let Some(left_out) = self.refusals.due(event.of_stranger, self.clock.unix()) else { return };
        let mut change = self.change();
        change.note(if left_out == 0 { event } else { event.with("not-written-before", left_out) });
        if let Err(e) = change.commit() {
            tracing::error!(error = %e, "a refusal is not in the audit chain");
        }
    }

    /// Where the audit chain ends, and where what is kept of it begins.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn audit_head(&self) -> Result<Head, StoreError> {
        self.committer.head()
    }

    /// Up to so many entries of the audit chain, as they are kept, from this number on.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn audit_entries(&self, from: u64, most: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let before = audit_key(from.saturating_sub(1));
        let page = self.engine.page(Tree::Audit, Some(&before.name), most)?;
        Ok(page.into_iter().map(|(_, entry)| entry).collect())
    }

    /// Drops entries from before this unix second. What is kept begins with the digest of the last one dropped, which
    /// is also written into the chain itself.
    pub(super) fn forget_audit(&self, unix: i64) -> Result<(), StoreError> {
        let most = self.engine.room() / 2;
        loop {
            let head = self.audit_head()?;
            let mut begins = head.clone();
            let mut act = Act::default();
            for bytes in self.audit_entries(head.first, most)? {
                let entry: Entry = self.decode(&bytes)?;
                if entry.time >= unix || entry.sequence != begins.first || entry.sequence >= head.sequence {
                    break;
                }
                begins = Head { first: entry.sequence.saturating_add(1), before: Digest::of(&bytes), ..begins };
                act.writes.push(Write::Delete(audit_key(entry.sequence)));
            }
            if act.writes.is_empty() {
                return Ok(());
            }
            let dropped = Event::new("audit-dropped", &By::Daemon).with("through", begins.first.saturating_sub(1));
            act.events.push(dropped.with("digest", begins.before));
            act.begins = Some((begins.first, begins.before));
            self.committer.commit(act)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_counted() {
        let refusals = Refusals::default();
        let due = |unix| refusals.due(true, unix);
        let written = (0..1000).filter(|_| due(1_800_000_000).is_some()).count();
        assert_eq!(written, 120);
        assert_eq!(refusals.due(false, 1_800_000_000), Some(0), "hidden by strangers");
        assert_eq!(due(1_800_000_060), Some(880));
        assert_eq!(due(1_800_000_060), Some(0));
    }

    #[test]
    fn what_strangers_say_is_cut_short() {
        let event = Event::new("tested", &By::Daemon).with("node", "\u{fc}".repeat(1000));
        assert!(event.about["node"].len() <= VALUE_MAX);
    }
}
