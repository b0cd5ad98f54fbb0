//! From one root to the next, in four steps, each of them an operator's: nobody is dropped on the way.
//!
//! ```text
//! prepare   the next root has a key; nobody is told
//! publish   every node trusts both roots, and says so
//! activate  nodes renew at once, under the next root; what was issued before stays good
//! retire    once nothing depends on the old root, nobody trusts it any more
//! ```
//! Until it is active, the next root can be abandoned: every node that was told of it forgets it, and so does whoever comes later.
//!
//! A step that was made is not made again; one that comes too early is refused, and names whom it would cut off.

pub mod issuing;
pub mod next;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::NodeName;
use rcgen::PublicKeyData as _;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::certify::{self, IssueError};
use crate::checker;
use crate::founding::{self, Charter, OpenError};
use crate::issuers::{Issuer, Issuers};
use crate::key::{KeyError, RootKeyHome as _};
use crate::policies::PublishError;
use crate::roots::Roots;
use crate::store::{By, Event, NodeRecord, RootRecord, RootsRecord, Stage, Store, StoreError};

/// How often it is said that an issuing certificate ends, seconds.
const REMIND_EVERY: i64 = 6 * 3600;
/// Nodes that are named in one refusal.
const NAMED_MAX: usize = 16;

/// One step of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Makes the next root.
    Prepare,
    /// Tells it to every node.
    Publish,
    /// Certifies nodes by it.
    Activate,
    /// Tells every node to trust the one before no longer.
    Retire,
    /// Goes back before the first step, as long as the next one is not active.
    Abandon,
}

/// Why a step was not made. Nothing was changed then, if it is not [`RotationError::Policy`].
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// Nodes may know later roots than the store.
    #[error("this authority was restored from a backup; `bonafide-ca settle` comes first")]
    Restored,
    /// There is a next one.
    #[error("root {0} is {stage} already; it has to be active, and the one before retired, before another is made", stage = .1.as_str())]
    UnderWay(u64, Stage),
    /// There is no next one.
    #[error("no root is prepared; `bonafide-ca rotate prepare` comes first")]
    NotPrepared,
    /// Nobody was told of the next one.
    #[error("no root is published that could become active; `bonafide-ca rotate publish` comes first")]
    NotPublished,
    /// The next one is not active.
    #[error("no root is outgoing that could be retired; `bonafide-ca rotate activate` comes first")]
    NotActivated,
    /// The next one is made where the root is.
    #[error(
        "offline-root: the key of this trust domain's root is kept elsewhere, and so is the next one's: make a request by \
         `bonafide-ca issuing request --next`, a root that certifies it by `bonafide-ca issuing sign --new-root`, and prepare \
         that by `bonafide-ca rotate prepare --issuing FILE`"
    )]
    Offline,
    /// What was made elsewhere is no next root.
    #[error("wrong-root: {0}")]
    NextRoot(String),
    /// It certified another key.
    #[error("another-key: the next root did not certify the key in {}, which `bonafide-ca issuing request --next` makes", .0.display())]
    NextKey(std::path::PathBuf),
    /// Nodes are certified by the next one.
    #[error("root {0} is active, and nodes are certified by it: it can be replaced by another one, but not abandoned")]
    Activated(u64),
    /// Not every node knows the next one.
    #[error(
        "too early: these nodes have not said that they trust the next root: {0}; wait for them, or leave them behind by --leave-behind {0}: until they have come back, they take nobody for a member that has renewed"
    )]
    Awaited(Names),
    /// Some nodes live by the old one.
    #[error(
        "too early: until unix time {until} these nodes have certificates of the outgoing root: {nodes}; wait, or leave them behind by --leave-behind {nodes}: those that have not renewed by then have to join with a new token"
    )]
    Depended {
        /// Those nodes.
        nodes: Names,
        /// When the last of those certificates expires.
        until: i64,
    },
    /// Its key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Its certificate.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The step was made, but the policy does not name the roots as they are now.
    #[error("the step is made, but the published policy could not be signed anew: {0}; make the step again")]
    Policy(#[from] PublishError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Some nodes, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(pub BTreeSet<NodeName>);

impl std::fmt::Display for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named: Vec<&str> = self.0.iter().take(NAMED_MAX).map(NodeName::as_str).collect();
        f.write_str(&named.join(","))?;
        match self.0.len().saturating_sub(NAMED_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// A root, as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Counts the roots that were ever made.
    pub number: u64,
    /// How far it has come.
    pub stage: Stage,
    /// Since when, unix seconds.
    pub since: i64,
    /// Of its certificate.
    pub digest: Digest,
    /// Unix seconds.
    pub not_after: i64,
    /// Whether this authority has the key by which it certifies in its name.
    pub key_here: bool,
    /// The root is offline: since when what is used instead is used, when another should be asked for, and until when it lasts.
    pub issuing: Option<[i64; 3]>,
    /// Nodes with a certificate of it that has not expired, and when the last of each expires.
    pub depend: BTreeMap<String, i64>,
}

/// The roots of a trust domain.
#[derive(Debug)]
pub struct Rotation {
    charter: Charter,
    store: Arc<Store>,
    clock: SharedClock,
    issuers: watch::Sender<Arc<Issuers>>,
    told: watch::Sender<Arc<Roots>>,
    /// When it was last said that the issuing certificate ends.
    reminded: AtomicI64,
    stepping: Mutex<()>,
}

/// Who signs what has to be believed by nodes that were away, too: see [`Issuers::presiding`].
pub(crate) struct Presiding {
    pub(crate) number: u64,
    /// The root's certificate.
    pub(crate) root: CertificateDer<'static>,
    pub(crate) signer: Arc<Signer>,
}

impl Rotation {
    /// Those of this charter, found again or founded.
    pub(crate) fn open(charter: &Charter, store: Arc<Store>, clock: SharedClock) -> Result<Self, OpenError> {
        let issuers = founding::issuers(charter, store.as_ref(), clock.unix())?;
        let told = watch::Sender::new(Arc::new(issuers.told()));
        let (issuers, reminded) = (watch::Sender::new(Arc::new(issuers)), AtomicI64::new(i64::MIN));
        Ok(Self { charter: charter.clone(), store, clock, issuers, told, reminded, stepping: Mutex::default() })
    }

    /// As they were when they were last looked at.
    pub(crate) fn now(&self) -> Arc<Issuers> {
        self.issuers.borrow().clone()
    }

    /// What nodes are told, now and after every change.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Arc<Roots>> {
        self.told.subscribe()
    }

    /// Done when the root of this number is trusted no longer.
    pub(crate) async fn retired(&self, number: u64) {
        let mut issuers = self.issuers.subscribe();
        // Its sender lives as long as this.
        let _ = issuers.wait_for(|now| !now.trusted().any(|root| root.number == number)).await;
    }

    /// As they are in the store this moment, by whichever authority.
    pub(crate) fn fresh(&self) -> Result<Arc<Issuers>, IssueError> {
        let (now, stored) = (self.now(), self.store.roots()?);
        match stored {
            Some(stored) if stored != *now.record() || now.lack_what_is_here() => {
                let issuers = Issuers::open(&self.charter, stored, Some(&now));
                self.replace(issuers.map_err(|e| IssueError::Roots(e.to_string()))?);
                Ok(self.now())
            }
            _ => Ok(now),
        }
    }

    /// The active root, and its signer.
    pub(crate) fn active(&self) -> Result<(Arc<Issuers>, Arc<Signer>), IssueError> {
        let issuers = self.fresh()?;
        let signer = issuers.active().signer()?.clone();
        Ok((issuers, signer))
    }

    /// The oldest trusted root, and its signer.
    pub(crate) fn presiding(&self) -> Result<Presiding, IssueError> {
        let issuers = self.fresh()?;
        let presiding = issuers.presiding(self.clock.unix());
        let (number, root) = (presiding.number, presiding.certificate.clone());
        Ok(Presiding { number, root, signer: presiding.signer()?.clone() })
    }

    /// Says now and then that an issuing certificate should be renewed, from two thirds of its life on.
    pub(crate) fn remind(&self) {
        let (now, before) = (self.clock.unix(), self.reminded.load(Ordering::Relaxed));
        if now.saturating_sub(before) < REMIND_EVERY && before <= now {
            return;
        }
        for why in self.due(now) {
            self.reminded.store(now, Ordering::Relaxed);
            tracing::error!("{why}");
        }
    }

    /// Which issuing certificates should be renewed, for a person.
    pub(crate) fn due(&self, now: i64) -> Vec<String> {
        let issuers = self.now();
        let due = issuers.all().iter().filter_map(|issuer| Some((issuer.number, issuer.issuing.as_ref()?)));
        let due = due.filter(|(_, issuing)| now >= issuing.due());
        due.map(|(root, issuing)| {
            let left = issuing.validity.until.saturating_sub(now);
            let ends = match left {
                ..0 => format!("has expired {} s ago", left.saturating_neg()),
                _ => format!("expires in {} days", left / 86_400),
            };
            format!(
                "the certificate by which this authority certifies below root {root} {ends}: renew it by `bonafide-ca \
                 issuing request`, `sign` and `install`"
            )
        })
        .collect()
    }

    /// Two changes at once may come here in either order: the later one stays.
    fn replace(&self, issuers: Issuers) {
        let told = issuers.told();
        let age = |issuers: &Issuers| (issuers.record().sequence, issuers.record().last);
        self.issuers.send_if_modified(|now| {
            // The same, if a key was brought.
            let later = age(&issuers) >= age(now);
            if later {
                *now = Arc::new(issuers);
            }
            later
        });
        self.told.send_if_modified(|now| {
            let later = told.sequence > now.sequence;
            if later {
                *now = Arc::new(told);
            }
            later
        });
    }

    /// Keys are made and taken away beside the store: one step of this authority after the other.
    fn stepping(&self) -> MutexGuard<'_, ()> {
        self.stepping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a step; false if it was made before.
    pub(crate) fn step(&self, by: &By, step: Step, leave: &BTreeSet<NodeName>) -> Result<bool, RotationError> {
        let _one = self.stepping();
        loop {
            let issuers = self.fresh()?;
            let made = match step {
                Step::Prepare => self.prepare(by, &issuers)?,
                Step::Publish => self.publish(by, issuers.record())?,
                Step::Activate => self.activate(by, &issuers, leave)?,
                Step::Retire => self.retire(by, issuers.record(), leave)?,
                Step::Abandon => self.abandon(by, &issuers)?,
            };
            match made {
                Made::Before => return Ok(false),
                Made::Now => return self.fresh().map(|_| true).map_err(RotationError::from),
                // Another authority was faster; what it did is looked at.
                Made::Lost => {}
            }
        }
    }

    fn prepare(&self, by: &By, issuers: &Issuers) -> Result<Made, RotationError> {
        let seen = issuers.record();
        match seen.roots.iter().find(|root| root.stage != Stage::Active) {
            Some(root) if root.stage == Stage::Prepared => return Ok(Made::Before),
            Some(root) => return Err(RotationError::UnderWay(root.number, root.stage)),
            None => {}
        }
        if issuers.active().issuing.is_some() {
            return Err(RotationError::Offline);
        }
        let (now, number) = (self.clock.unix(), seen.last.saturating_add(1));
        let home = self.charter.key_of(number);
        // It may be there from an attempt that was interrupted; nothing was signed by it.
        let key = if home.is_there() { home.open()? } else { home.create()? };
        let order = founding::root_order(&self.charter.trust_domain, now);
        let root = certify::found(&order, &key)?;
        let certificate = root.der().to_vec();
        let mut new = RootsRecord { last: number, ..seen.clone() };
        let event = stepped("root-prepared", by, number, &certificate);
        new.roots.push(RootRecord { number, stage: Stage::Prepared, since: now, certificate, issuing: None });
        let mut change = self.store.change();
        change.roots(Some(seen), &new)?;
        change.note(event);
        change.enter(by, root.serial(), &certify::entry(&order, None, now))?;
        match change.commit()? {
            Some(_) => Ok(Made::Now),
            None => {
                // Unless it is the one that was faster's, which somebody brought here.
                let brought = |issuer: &Issuer| {
                    checker::read_root(&issuer.certificate).is_ok_and(|root| root.spki == key.subject_public_key_info())
                };
                if !self.fresh()?.all().iter().any(brought) {
                    home.discard()?;
                }
                Ok(Made::Lost)
            }
        }
    }

    fn publish(&self, by: &By, seen: &RootsRecord) -> Result<Made, RotationError> {
        let Some(next) = seen.at(Stage::Prepared) else {
            return match seen.at(Stage::Published) {
                Some(_) => Ok(Made::Before),
                None => Err(RotationError::NotPrepared),
            };
        };
        let new = seen.moved(self.clock.unix(), |stage| match stage {
            Stage::Prepared => Some(Stage::Published),
            other => Some(other),
        });
        self.write(seen, &new, stepped("root-published", by, next.number, &next.certificate))
    }

    fn activate(&self, by: &By, issuers: &Issuers, leave: &BTreeSet<NodeName>) -> Result<Made, RotationError> {
        let seen = issuers.record();
        let Some(next) = issuers.all().iter().find(|issuer| issuer.stage == Stage::Published) else {
            return match seen.at(Stage::Outgoing) {
                Some(_) => Ok(Made::Before),
                None => Err(RotationError::NotPublished),
            };
        };
        next.signer()?;
        let awaited = self.awaited(seen.sequence)?;
        if !awaited.is_subset(leave) {
            return Err(RotationError::Awaited(Names(awaited.difference(leave).cloned().collect())));
        }
        let new = seen.moved(self.clock.unix(), |stage| match stage {
            Stage::Published => Some(Stage::Active),
            Stage::Active => Some(Stage::Outgoing),
            other => Some(other),
        });
        let event = stepped("root-activated", by, next.number, &next.certificate);
        self.write(seen, &new, left_behind(event, awaited))
    }

    fn retire(&self, by: &By, seen: &RootsRecord, leave: &BTreeSet<NodeName>) -> Result<Made, RotationError> {
        let Some(old) = seen.at(Stage::Outgoing) else {
            return match seen.roots.as_slice() {
                [RootRecord { number: 2.., .. }] => Ok(Made::Before),
                _ => Err(RotationError::NotActivated),
            };
        };
        let depend = self.depend()?.remove(&old.number).unwrap_or_default();
        let names: BTreeSet<NodeName> = depend.keys().filter_map(|name| name.parse().ok()).collect();
        if !names.is_subset(leave) {
            let until = depend.into_values().max().unwrap_or(0);
            return Err(RotationError::Depended { nodes: Names(names.difference(leave).cloned().collect()), until });
        }
        let new = seen.moved(self.clock.unix(), |stage| match stage {
            Stage::Outgoing => None,
            other => Some(other),
        });
        self.write(seen, &new, left_behind(stepped("root-retired", by, old.number, &old.certificate), names))
    }

    fn abandon(&self, by: &By, issuers: &Issuers) -> Result<Made, RotationError> {
        let (seen, active) = (issuers.record(), issuers.active().number);
        let is_next = |stage| matches!(stage, Stage::Prepared | Stage::Published);
        let Some(next) = issuers.all().iter().find(|issuer| is_next(issuer.stage)) else {
            return match seen.at(Stage::Outgoing) {
                Some(_) => Err(RotationError::Activated(active)),
                None if seen.last > active => Ok(Made::Before),
                None => Err(RotationError::NotPrepared),
            };
        };
        let new = seen.moved(self.clock.unix(), |stage| (!is_next(stage)).then_some(stage));
        let event = stepped("root-abandoned", by, next.number, &next.certificate).with("stage", next.stage.as_str());
        let made = self.write(seen, &new, event)?;
        if matches!(made, Made::Now) && next.home.exists() {
            // Nobody trusts it. Where it cannot be removed, the operator is told where it is.
            if let Err(e) = std::fs::remove_file(&next.home) {
                tracing::error!(key = %next.home.display(), error = %e, "remove the key of the abandoned root yourself");
            }
        }
        Ok(made)
    }

    fn write(&self, seen: &RootsRecord, new: &RootsRecord, event: Event) -> Result<Made, RotationError> {
        let mut change = self.store.change();
        change.roots(Some(seen), new)?;
        change.note(event);
        Ok(if change.commit()?.is_some() { Made::Now } else { Made::Lost })
    }

    /// Members that have not said that the roots of this number are in force there.
    fn awaited(&self, sequence: u64) -> Result<BTreeSet<NodeName>, StoreError> {
        let now = self.clock.unix();
        let lives = |record: &NodeRecord| record.evicted.is_none() && record.not_after >= now;
        let nodes = self.store.nodes()?.into_iter();
        Ok(nodes.filter(|(_, node)| lives(node) && node.roots < sequence).map(|(name, _)| name).collect())
    }

    /// By the number of a root: nodes with a certificate of it that has not expired, and when the last of each does.
    fn depend(&self) -> Result<BTreeMap<u64, BTreeMap<String, i64>>, StoreError> {
        let mut depend = BTreeMap::<u64, BTreeMap<String, i64>>::new();
        self.store.node_certificates(self.clock.unix(), |node, root, until| {
            let last = depend.entry(root).or_default().entry(node).or_default();
            *last = until.max(*last);
        })?;
        Ok(depend)
    }

    /// How far they have come; their number; and the members that have not said that they have these.
    pub(crate) fn show(&self) -> Result<(Vec<Shown>, u64, BTreeSet<NodeName>), RotationError> {
        let (issuers, mut depend) = (self.fresh()?, self.depend()?);
        let record = issuers.record();
        let since = |issuer: &Issuer| record.roots.iter().find(|root| root.number == issuer.number).map(|r| r.since);
        let shown = issuers.all().iter().map(|issuer| Shown {
            number: issuer.number,
            stage: issuer.stage,
            since: since(issuer).unwrap_or_default(),
            digest: Digest::of(&issuer.certificate),
            not_after: issuer.validity.until,
            key_here: issuer.signer.is_some(),
            issuing: issuer.issuing.as_ref().map(|issuing| [issuing.since, issuing.due(), issuing.validity.until]),
            depend: depend.remove(&issuer.number).unwrap_or_default(),
        });
        Ok((shown.collect(), record.sequence, self.awaited(record.sequence)?))
    }
}

pub(crate) type Signer = certify::Signer<crate::key::RootKey>;

enum Made {
    Now,
    Before,
    Lost,
}

fn stepped(act: &'static str, by: &By, number: u64, certificate: &[u8]) -> Event {
    Event::new(act, by).with("root", number).with("certificate", Digest::of(certificate))
}

fn left_behind(event: Event, nodes: BTreeSet<NodeName>) -> Event {
    if nodes.is_empty() { event } else { event.with("left-behind", Names(nodes)) }
}

/// The digests by which a policy names these roots.
pub(crate) fn digests(roots: &[CertificateDer<'static>]) -> BTreeSet<Digest> {
    roots.iter().map(|root| Digest::of(root)).collect()
}
