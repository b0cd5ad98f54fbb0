//! The authority's list of digests in quarantine: every change is durable first and told to all followers then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::NodeName;
use bonafide_proto::revoked::Revoked;
use tokio::sync::watch;

use crate::mesh::{MeshState, QUARANTINE_MAX};
use crate::store::{By, Event, QuarantineRecord, Quarantined, Store, StoreError};

/// The longest reason, in bytes.
pub const REASON_MAX: usize = 256;

/// Why the list was not changed.
#[derive(Debug, thiserror::Error)]
pub enum QuarantineError {
    /// The list is full.
    #[error("{QUARANTINE_MAX} digests are in quarantine, which is the most; lift some first")]
    Full,
    /// As much is revoked as can be told.
    #[error("{0} {1} are revoked, which is the most; lift some first")]
    FullOf(usize, &'static str),
    /// The reason is no line of text.
    #[error("a reason is one line of at most {REASON_MAX} bytes, without control characters")]
    Reason,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The list, and its changes.
#[derive(Debug)]
pub struct Quarantine {
    store: Arc<Store>,
    clock: SharedClock,
    told: watch::Sender<Arc<MeshState>>,
    /// Nodes that are no members any more, and through which number.
    out: watch::Sender<Arc<Outs>>,
}

/// Those whose connections end, by the number of the certificates that opened them; and of which change that is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Outs {
    sequence: u64,
    nodes: BTreeMap<NodeName, u64>,
}

impl Quarantine {
    /// The list of this store.
    pub(crate) fn open(store: Arc<Store>, clock: SharedClock) -> Result<Self, StoreError> {
        let record = store.quarantine()?.unwrap_or_default();
        let (told, out) = (watch::Sender::new(Arc::new(state(&record))), watch::Sender::new(Arc::new(outs(&record))));
        Ok(Self { store, clock, told, out })
    }

    /// Puts a digest in; false if it was there before (its reason stays).
    ///
    /// # Errors
    /// Any [`QuarantineError`].
    pub fn add(&self, by: &By, digest: Digest, reason: &str) -> Result<bool, QuarantineError> {
        check_reason(reason)?;
        let new = Quarantined { since: self.clock.unix(), reason: reason.to_owned() };
        let event = Event::new("quarantined", by).with("digest", digest).with("reason", reason);
        self.change(&event, |list| {
            if list.digests.contains_key(&digest) {
                return Ok(false);
            }
            list.digests.insert(digest, new.clone());
            if list.digests.len() > QUARANTINE_MAX { Err(QuarantineError::Full) } else { Ok(true) }
        })
    }

    /// Takes a digest out; false if it was not in.
    ///
    /// # Errors
    /// [`QuarantineError::Store`].
    pub fn lift(&self, by: &By, digest: Digest) -> Result<bool, QuarantineError> {
        let event = Event::new("quarantine-lifted", by).with("digest", digest);
        self.change(&event, |list| Ok(list.digests.remove(&digest).is_some()))
    }

    /// After a restore: this list is all there is. Its number passes those that nodes know (`held`), so that they go by it.
    pub(crate) fn settle(&self, by: &By, held: u64) -> Result<bool, QuarantineError> {
        self.change(&Event::new("settled", by).with("known-by-nodes", held), |list| {
            list.sequence = list.sequence.max(held);
            Ok(std::mem::take(&mut list.restored))
        })
    }

    /// Every digest in it.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn list(&self) -> Result<Vec<(Digest, Quarantined)>, StoreError> {
        Ok(self.store.quarantine()?.unwrap_or_default().digests.into_iter().collect())
    }

    /// The state now, and after every change.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Arc<MeshState>> {
        self.told.subscribe()
    }

    /// The state now.
    #[must_use]
    pub fn now(&self) -> Arc<MeshState> {
        self.told.borrow().clone()
    }

    /// The clock that it goes by.
    pub(crate) fn now_unix(&self) -> i64 {
        self.clock.unix()
    }

    /// All of it, as it is stored.
    pub(crate) fn record(&self) -> Result<QuarantineRecord, StoreError> {
        Ok(self.store.quarantine()?.unwrap_or_default())
    }

    /// Done when the certificate of this number makes its node no member any more.
    pub(crate) async fn out(&self, node: NodeName, number: u64) {
        let mut outs = self.out.subscribe();
        // Its sender lives as long as this.
        let _ = outs.wait_for(|outs| outs.nodes.get(&node).is_some_and(|through| number <= *through)).await;
    }

    pub(crate) fn change(
        &self,
        event: &Event,
        edit: impl Fn(&mut QuarantineRecord) -> Result<bool, QuarantineError>,
    ) -> Result<bool, QuarantineError> {
        loop {
            let seen = self.store.quarantine()?;
            let mut new = seen.clone().unwrap_or_default();
            if !edit(&mut new)? {
                return Ok(false);
            }
            new.sequence = new.sequence.saturating_add(1);
            let mut change = self.store.change();
            change.quarantine(seen.as_ref(), &new)?;
            change.note(event.clone());
            if change.commit()?.is_some() {
                self.tell(&new);
                return Ok(true);
            }
        }
    }

    /// Changes after every change of the list in the store, by whichever authority.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.store.watch_quarantine()
    }

    /// Looks whether the store has a later one, and tells it. Fails in this time if the store does not answer.
    pub(crate) fn look(&self, patience: Duration) -> Result<(), StoreError> {
        if self.store.quarantine_sequence(patience)? <= self.now().sequence {
            return Ok(());
        }
        self.store.quarantine().map(|record| self.tell(&record.unwrap_or_default()))
    }

    /// Two changes at once may come here in either order: the later one stays.
    fn tell(&self, record: &QuarantineRecord) {
        let (state, outs) = (state(record), outs(record));
        self.out.send_if_modified(|out| {
            let later = outs.sequence > out.sequence;
            if later {
                *out = Arc::new(outs);
            }
            later
        });
        self.told.send_if_modified(|told| {
            let later = state.sequence > told.sequence;
            if later {
                *told = Arc::new(state);
            }
            later
        });
    }
}

fn state(record: &QuarantineRecord) -> MeshState {
    let revoked = Revoked {
        nodes: record.nodes.iter().map(|(node, revoked)| (node.clone(), revoked.through)).collect(),
        workloads: record.workloads.keys().cloned().collect(),
        serials: record.serials.keys().cloned().collect(),
    };
    let quarantine = record.digests.keys().copied().collect();
    MeshState { sequence: record.sequence, quarantine, revoked, restored: record.restored }
}

fn outs(record: &QuarantineRecord) -> Outs {
    let out = record.nodes.iter().filter(|(_, revoked)| revoked.out);
    Outs { sequence: record.sequence, nodes: out.map(|(node, revoked)| (node.clone(), revoked.through)).collect() }
}

pub(crate) fn check_reason(reason: &str) -> Result<(), QuarantineError> {
    match reason.len() <= REASON_MAX && !reason.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(QuarantineError::Reason),
    }
}
