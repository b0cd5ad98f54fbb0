//! The authority's list of digests in quarantine: every change is durable first and told to all followers then.

use std::sync::Arc;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Digest;
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
}

impl Quarantine {
    /// The list of this store.
    pub(crate) fn open(store: Arc<Store>, clock: SharedClock) -> Result<Self, StoreError> {
        let record = store.quarantine()?.unwrap_or_default();
        Ok(Self { store, clock, told: watch::Sender::new(Arc::new(state(&record))) })
    }

    /// Puts a digest in; false if it was there before (its reason stays).
    ///
    /// # Errors
    /// Any [`QuarantineError`].
    pub fn add(&self, by: &By, digest: Digest, reason: &str) -> Result<bool, QuarantineError> {
        if reason.len() > REASON_MAX || reason.chars().any(char::is_control) {
            return Err(QuarantineError::Reason);
        }
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

    fn change(
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
                self.tell(state(&new));
                return Ok(true);
            }
        }
    }

    /// Changes after every change of the list in the store, by whichever authority.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.store.watch_quarantine()
    }

    /// Looks what the store has, and tells it.
    pub(crate) fn look(&self) -> Result<(), StoreError> {
        self.store.quarantine().map(|record| self.tell(state(&record.unwrap_or_default())))
    }

    /// Two changes at once may come here in either order: the later one stays.
    fn tell(&self, state: MeshState) {
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
    MeshState { sequence: record.sequence, quarantine: record.digests.keys().copied().collect() }
}
