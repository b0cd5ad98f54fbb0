//! The newest policy that the authority published, as this node keeps it: an older one, or one that it cannot verify,
//! never replaces it.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::signed_policy::{Mark, SIGNED_MAX, SignedPolicy};
use bonafide_proto::svid::TrustBundle;
use tokio::sync::watch;

use crate::policies::{PolicyHeld, brief};
use crate::state;

/// A policy that was verified, as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// By what it is told from others.
    pub mark: Mark,
    /// Its bytes.
    pub signed: Vec<u8>,
}

/// What this node's programs are judged by, as identityd says it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InForce {
    /// Of the authority's versions; 0: none of them.
    pub version: u64,
    /// Why the newest one is not; `None`: it is.
    pub refused: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct KeptPolicy {
    path: PathBuf,
    /// One after the other.
    telling: Mutex<()>,
    kept: watch::Sender<Option<Arc<Kept>>>,
    refused: watch::Sender<Option<String>>,
    in_force: watch::Sender<InForce>,
}

impl KeptPolicy {
    /// What the file holds. What cannot be believed is not, and the authority will tell it again.
    pub(crate) fn load(path: PathBuf, bundle: Option<&TrustBundle>) -> Self {
        let loaded = bundle.and_then(|bundle| match read(&path) {
            Ok(signed) => {
                let signed = signed?;
                match SignedPolicy::verify(&signed, bundle) {
                    Ok(policy) => Some(Arc::new(Kept { mark: policy.mark().clone(), signed })),
                    Err(e) => unbelieved(&path, &e),
                }
            }
            Err(e) => unbelieved(&path, &e),
        });
        Self {
            path,
            telling: Mutex::default(),
            kept: watch::Sender::new(loaded),
            refused: watch::Sender::default(),
            in_force: watch::Sender::default(),
        }
    }

    /// Now, and after every change.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Arc<Kept>>> {
        self.kept.subscribe()
    }

    /// Why the last one that the authority told was not taken.
    pub(crate) fn refused(&self) -> Option<String> {
        self.refused.borrow().clone()
    }

    /// The authority says this is the policy. Blocks until it is durable.
    pub(crate) fn told(&self, bundle: &TrustBundle, signed: Vec<u8>) {
        let _one_by_one = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.kept.borrow().as_ref().map(|kept| kept.mark.clone());
        let verified = SignedPolicy::verify(&signed, bundle);
        match verified.and_then(|policy| Ok((policy.succeeds(known.as_ref())?, policy.mark().clone()))) {
            Ok((true, mark)) => self.keep(Kept { mark, signed }),
            Ok((false, _)) => self.accept(),
            Err(refusal) => {
                tracing::error!(reason = refusal.as_str(), %refusal, "the policy that the authority told is refused");
                self.refused.send_replace(Some(brief(refusal.to_string())));
            }
        }
    }

    /// identityd says what is in force.
    pub(crate) fn is_in_force(&self, in_force: InForce) {
        self.in_force.send_if_modified(|now| {
            let differs = *now != in_force;
            *now = in_force;
            differs
        });
    }

    /// What the authority is told about this, and changes whenever that may have changed.
    pub(crate) fn held(&self) -> PolicyHeld {
        let kept = self.kept.borrow().clone();
        let InForce { version, refused } = self.in_force.borrow().clone();
        PolicyHeld {
            kept: kept.as_ref().map_or(0, |kept| kept.mark.version),
            kept_signed: kept.map(|kept| Digest::of(&kept.signed)),
            in_force: version,
            refused: self.refused().or(refused),
        }
    }

    /// Done when what is held may have changed.
    pub(crate) fn changes(&self) -> impl Future<Output = ()> + use<> {
        let (mut kept, mut refused) = (self.kept.subscribe(), self.refused.subscribe());
        let mut in_force = self.in_force.subscribe();
        async move {
            tokio::select! {
                _ = kept.changed() => {}
                _ = refused.changed() => {}
                _ = in_force.changed() => {}
            }
        }
    }

    fn keep(&self, kept: Kept) {
        // Passed on even if it cannot be kept: what is on disk would only be older.
        if let Err(e) = state::replace(&self.path, &kept.signed) {
            tracing::error!(path = %self.path.display(), error = %e, "the policy cannot be kept for a restart");
        }
        tracing::info!(version = kept.mark.version, "policy received");
        self.kept.send_replace(Some(Arc::new(kept)));
        self.accept();
    }

    fn accept(&self) {
        self.refused.send_if_modified(|refused| refused.take().is_some());
    }
}

fn unbelieved(path: &Path, why: &dyn std::fmt::Display) -> Option<Arc<Kept>> {
    tracing::error!(path = %path.display(), %why, "the policy that was kept is not believed; the authority is asked");
    None
}

fn read(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut signed = Vec::new();
    // One byte more, so that too much is noticed.
    file.take(SIGNED_MAX as u64 + 1).read_to_end(&mut signed)?;
    Ok(Some(signed))
}
