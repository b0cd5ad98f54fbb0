//! What this node knows of the mesh, on disk: cut off from its authority, it keeps to that, also after a restart.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::TrustDomain;
use bonafide_proto::revoked::Revoked;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::mesh::{MeshState, QUARANTINE_MAX};
use crate::state;

/// The largest file that is read, in bytes: a digest takes fewer than 100, a node or a workload fewer than 300.
const FILE_MAX: u64 = 4 * 1024 * 1024;

/// What is on disk cannot be believed.
#[derive(Debug, thiserror::Error)]
#[error("{} is damaged: {why}; remove it, and the authority will tell what is in quarantine", path.display())]
pub struct KnownError {
    path: PathBuf,
    why: String,
}

/// What the authority told last, and who watches it.
#[derive(Debug)]
pub(crate) struct Known {
    path: PathBuf,
    /// Of which trust domain it is; `None`: nothing was ever told.
    of: Mutex<Option<TrustDomain>>,
    state: watch::Sender<Arc<MeshState>>,
}

impl Known {
    /// What the file holds; nothing if there is none.
    pub(crate) fn load(path: PathBuf) -> Result<Self, KnownError> {
        let file = read(&path).map_err(|why| KnownError { path: path.clone(), why })?;
        let (of, state) = match file {
            None => (None, MeshState::default()),
            Some(KnownFile { trust_domain, sequence, quarantine, revoked }) => {
                let quarantine = quarantine.into_iter().collect();
                (Some(trust_domain), MeshState { sequence, quarantine, revoked, restored: false })
            }
        };
        Ok(Self { path, of: Mutex::new(of), state: watch::Sender::new(Arc::new(state)) })
    }

    /// Now, and after every change.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<MeshState>> {
        self.state.subscribe()
    }

    /// Now.
    pub(crate) fn now(&self) -> Arc<MeshState> {
        self.state.borrow().clone()
    }

    /// The authority of this trust domain, now, says this.
    pub(crate) fn told(&self, of: &TrustDomain, now: &MeshState) {
        self.replace(of, |before| {
            if now.sequence < before.sequence {
                let (theirs, ours) = (now.sequence, before.sequence);
                tracing::error!(
                    theirs,
                    ours,
                    "the authority knows less than it did, as if restored from a backup: \
                    what was in quarantine stays in until the authority has made more changes than this node knows"
                );
            }
            before.told(now)
        });
    }

    /// The authority said this a while ago: it counts if nothing later is known.
    pub(crate) fn told_earlier(&self, of: &TrustDomain, then: &MeshState) {
        self.replace(of, |before| if then.sequence > before.sequence { before.told(then) } else { before.clone() });
    }

    fn replace(&self, of: &TrustDomain, next: impl FnOnce(&MeshState) -> MeshState) {
        let mut domain = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let same_domain = domain.as_ref() == Some(of);
        let before = if same_domain { self.now() } else { Arc::default() };
        let next = next(&before);
        if same_domain && next == *before {
            return;
        }
        // In force even if it cannot be kept: what is on disk would only be less.
        if let Err(e) = self.save(of, &next) {
            tracing::error!(path = %self.path.display(), error = %e, "the quarantine cannot be kept for a restart");
        }
        tracing::info!(
            sequence = next.sequence,
            digests = next.quarantine.len(),
            revoked = next.revoked.len(),
            "quarantine and revocations in force"
        );
        *domain = Some(of.clone());
        self.state.send_replace(Arc::new(next));
    }

    fn save(&self, of: &TrustDomain, state: &MeshState) -> std::io::Result<()> {
        let quarantine = state.quarantine.iter().copied().collect();
        let revoked = state.revoked.clone();
        let file = KnownFile { trust_domain: of.clone(), sequence: state.sequence, quarantine, revoked };
        state::replace(&self.path, &serde_json::to_vec_pretty(&file)?)
    }
}

fn read(path: &Path) -> Result<Option<KnownFile>, String> {
    use std::io::Read as _;
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|e| e.to_string())?,
    };
    let mut text = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut text).map_err(|e| e.to_string())?;
    let file: KnownFile = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    if file.quarantine.len() > QUARANTINE_MAX {
        return Err(format!("it names more than {QUARANTINE_MAX} digests"));
    }
    if !file.revoked.is_bounded() {
        return Err("it revokes more than an authority tells".to_owned());
    }
    Ok(Some(file))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownFile {
    trust_domain: TrustDomain,
    sequence: u64,
    quarantine: Vec<Digest>,
    #[serde(default)]
    revoked: Revoked,
}
