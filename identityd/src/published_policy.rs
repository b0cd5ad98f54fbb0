//! The policy that the authority publishes, as the node's CA hands it on. Believed for its signature alone: an earlier
//! version, or one by an unknown root, replaces nothing, whatever the CA says; and what is in force is kept, so that it
//! is in force from the first moment of the next start.
//!
//! The first policy is verified by the roots that the CA tells. From then on those count that the policy in force names
//! itself: a root that comes later must have been named by one that was there before.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bonafide_policy::Policy;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::TrustDomain;
use bonafide_proto::signed_policy::{Mark, PolicyRefusal, ROOTS_MAX, SIGNED_MAX, SignedPolicy};
use bonafide_proto::svid::{CERTIFICATE_MAX, TrustBundle};
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::policy::KeptPolicy;
use prost::Message as _;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use crate::bundle::Authority;
use crate::in_force::{InForce, Loaded, State};
use crate::store::this_daemons_alone;

/// The largest file that is read, in bytes.
const FILE_MAX: usize = SIGNED_MAX + ROOTS_MAX * (CERTIFICATE_MAX + 16) + 64;
/// The longest reason that the CA is told, in bytes.
const WHY_MAX: usize = 1024;
/// Waits between attempts to reach the CA: doubled each time.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// Takes what the authority publishes; `run` it.
#[derive(Debug)]
pub(crate) struct PublishedPolicy {
    authority: Authority,
    keeper: Keeper,
    says: watch::Sender<wire::PolicyInForce>,
}

/// What is in force, and what the next one is held against.
#[derive(Debug)]
struct Keeper {
    file: PathBuf,
    known: Option<Known>,
    /// Why what the CA told last was not taken.
    refused: Option<String>,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone)]
struct Known {
    mark: Mark,
    /// By which the next one is verified.
    bundle: TrustBundle,
}

/// Why a policy is not in force.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Policy(#[from] PolicyRefusal),
    #[error("{0}; if the root was replaced while this node was away, remove {1}")]
    Rooted(PolicyRefusal, String),
    #[error("{0}; if this node has come from {1}, remove {2}")]
    Moved(PolicyRefusal, TrustDomain, String),
    #[error("unreadable-policy: version {0}: {1}")]
    Language(u64, String),
    #[error("the CA's trust bundle: {0}")]
    Bundle(String),
}

impl PublishedPolicy {
    /// What was kept in this directory is in force.
    pub(crate) fn open(state: &Path, authority: Authority) -> (Self, InForce) {
        let (sender, watched) = watch::channel(State::default());
        let keeper = Keeper::open(state.join("policy.kept"), sender);
        let says = watch::Sender::new(keeper.says());
        (Self { authority, keeper, says }, InForce::new("of the authority".to_owned(), watched))
    }

    /// Takes one after the other.
    pub(crate) async fn run(mut self) {
        let mut wait = BACK_OFF.0;
        let mut issuance = self.authority.issuance().max_decoding_message_size(SIGNED_MAX + 1024);
        loop {
            match issuance.follow_policy(WatchStream::new(self.says.subscribe())).await {
                Ok(told) => {
                    wait = BACK_OFF.0;
                    match self.take(told.into_inner()).await {
                        Some(again) => self = again,
                        None => return,
                    }
                }
                Err(status) => tracing::debug!(%status, "the CA tells no policy"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACK_OFF.1);
        }
    }

    /// Until the CA goes away; `None`: nothing can be taken any more.
    async fn take(mut self, mut told: tonic::Streaming<wire::PolicyTold>) -> Option<Self> {
        loop {
            let signed = match told.message().await {
                Ok(Some(told)) => told.signed,
                Ok(None) => return Some(self),
                Err(status) => {
                    tracing::warn!(%status, "the CA tells its policy no longer; the last one stays in force");
                    return Some(self);
                }
            };
            // The CA is a member where it tells policies: its bundle comes as well.
            let bundle = match self.authority.bundle().wait_for(Option::is_some).await {
                Ok(bundle) => bundle.clone()?,
                Err(_) => return Some(self),
            };
            // Parsing and writing take milliseconds, and are rare.
            let taken = tokio::task::spawn_blocking(move || {
                self.keeper.told(&signed, &bundle);
                self
            });
            match taken.await {
                Ok(again) => self = again,
                Err(e) => {
                    tracing::error!(error = %e, "no policy is taken any more; the last one stays in force");
                    return None;
                }
            }
            self.says.send_replace(self.keeper.says());
        }
    }
}

impl Keeper {
    fn open(file: PathBuf, state: watch::Sender<State>) -> Self {
        let mut keeper = Self { file, known: None, refused: None, state };
        match keeper.load() {
            Ok(true) => {}
            Ok(false) => {
                let awaited = Some("the authority's policy has not come yet".to_owned());
                keeper.state.send_modify(|state| state.error = awaited);
            }
            Err(why) => keeper.fail(format!("{}: {why}; the authority's policy is awaited", keeper.file.display())),
        }
        keeper
    }

    fn load(&mut self) -> Result<bool, String> {
        let Some(kept) = read(&self.file).map_err(|e| e.to_string())? else { return Ok(false) };
        let roots = kept.roots.into_iter().map(Into::into).collect::<Vec<_>>();
        let bundle = |trust_domain| TrustBundle::new(trust_domain, roots).map_err(|e| e.to_string());
        let of = bonafide_proto::wire::policy::SignedPolicy::decode(kept.signed.as_slice());
        let of = of.map_err(|_| "it is damaged".to_owned())?.trust_domain.parse();
        let bundle = bundle(of.map_err(|_| "it is damaged".to_owned())?)?;
        let policy = SignedPolicy::verify(&kept.signed, &bundle).map_err(|e| e.to_string())?;
        self.known = Some(Known { mark: policy.mark().clone(), bundle });
        self.enforce(&policy).map(|()| true).map_err(|e| e.to_string())
    }

    /// The CA says this is the policy, and these are the roots.
    fn told(&mut self, signed: &[u8], roots: &wire::Bundle) {
        self.refused = self.judge(signed, roots).err().map(|refusal| refusal.to_string());
        match self.refused.clone() {
            Some(why) => self.fail(why),
            None => drop(self.state.send_if_modified(|state| state.error.take().is_some())),
        }
    }

    fn judge(&mut self, signed: &[u8], told: &wire::Bundle) -> Result<(), Refusal> {
        let told = read_bundle(told).map_err(Refusal::Bundle)?;
        let bundle = self.known.as_ref().map_or_else(|| told.clone(), |known| known.bundle.clone());
        let policy = SignedPolicy::verify(signed, &bundle).map_err(|refusal| self.explained(refusal))?;
        let later = policy.succeeds(self.known.as_ref().map(|known| &known.mark))?;
        if later || self.state.borrow().loaded.is_none() {
            self.enforce(&policy)?;
        }
        let known = Known { mark: policy.mark().clone(), bundle: anchors(&policy, &bundle, &told) };
        let anchored = self.known.as_ref().is_some_and(|before| before.bundle.roots() == known.bundle.roots());
        if later || !anchored {
            self.keep(signed, &known);
        }
        self.known = Some(known);
        Ok(())
    }

    fn explained(&self, refusal: PolicyRefusal) -> Refusal {
        match refusal {
            PolicyRefusal::Signer(_) if self.known.is_some() => {
                Refusal::Rooted(refusal, self.file.display().to_string())
            }
            PolicyRefusal::Foreign { ref expected, .. } if self.known.is_some() => {
                let (expected, file) = (expected.clone(), self.file.display().to_string());
                Refusal::Moved(refusal, expected, file)
            }
            refusal => refusal.into(),
        }
    }

    fn enforce(&self, signed: &SignedPolicy) -> Result<(), Refusal> {
        let (version, text) = (signed.version(), signed.text().to_owned());
        let policy = Policy::parse(&format!("policy version {version}"), &text)
            .map_err(|e| Refusal::Language(version, e.to_string()))?;
        tracing::info!(version, digest = %policy.digest(), mode = policy.mode().as_str(), "policy in force");
        self.state.send_replace(State { loaded: Some(Arc::new(Loaded { policy, text, version })), error: None });
        Ok(())
    }

    fn keep(&self, signed: &[u8], known: &Known) {
        let roots = known.bundle.roots().iter().map(|root| root.to_vec()).collect();
        let kept = KeptPolicy { signed: signed.to_vec(), roots }.encode_to_vec();
        // In force even if it cannot be kept: what is on disk would only be older.
        if let Err(e) = replace(&self.file, &kept) {
            tracing::error!(file = %self.file.display(), error = %e, "the policy cannot be kept for a restart");
        }
    }

    /// Keeps the policy that was in force; says why.
    fn fail(&self, error: String) {
        let kept = self.state.borrow().loaded.is_some();
        tracing::error!(%error, kept, "the authority's policy is not in force");
        self.state.send_modify(|state| state.error = Some(error));
    }

    fn says(&self) -> wire::PolicyInForce {
        let loaded = self.state.borrow().loaded.clone();
        let mut refused = self.refused.clone().unwrap_or_default();
        refused.truncate(refused.floor_char_boundary(WHY_MAX));
        wire::PolicyInForce { version: loaded.map_or(0, |loaded| loaded.version), refused }
    }
}

fn read_bundle(told: &wire::Bundle) -> Result<TrustBundle, String> {
    let trust_domain = told.trust_domain.parse().map_err(|e| format!("the trust domain {e}"))?;
    let roots = told.roots.iter().map(|root| root.clone().into()).collect();
    TrustBundle::new(trust_domain, roots).map_err(|e| e.to_string())
}

/// The roots that this policy names, of those that are known.
fn anchors(policy: &SignedPolicy, before: &TrustBundle, told: &TrustBundle) -> TrustBundle {
    let mut named = Vec::new();
    for root in before.roots().iter().chain(told.roots()) {
        if policy.roots().contains(&Digest::of(root)) && !named.contains(root) {
            named.push(root.clone());
        }
    }
    // The one that verified it is known, but the policy need not name it.
    TrustBundle::new(before.trust_domain().clone(), named).unwrap_or_else(|_| before.clone())
}

fn read(file: &Path) -> io::Result<Option<KeptPolicy>> {
    if let Some(directory) = file.parent() {
        this_daemons_alone(directory).map_err(io::Error::other)?;
    }
    let opened = match fs::File::open(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    opened.take(FILE_MAX as u64 + 1).read_to_end(&mut bytes)?;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged");
    if bytes.len() > FILE_MAX {
        return Err(damaged());
    }
    KeptPolicy::decode(bytes.as_slice()).map(Some).map_err(|_| damaged())
}

/// Replaces the file, durably: either the old content or the new one is there.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = file.with_extension("new");
    match fs::remove_file(&draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    written.write_all(bytes)?;
    written.sync_all()?;
    fs::rename(&draft, file)?;
    match file.parent() {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
