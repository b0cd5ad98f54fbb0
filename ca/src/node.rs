//! The node role: holds this node's intermediate and issues leaves, also while the authority is away.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Fingerprint;
use bonafide_proto::jwt::JwtKey;
use bonafide_proto::name::{NodeName, TrustDomain, WorkloadName};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::svid::{CertifiedProgram, TrustBundle};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;

use crate::attestor::Prover;
use crate::authority::Application;
use crate::certify::IssueError;
use crate::checker::{self, CheckError};
use crate::csr::{CsrError, PublicKey};
use crate::jwt::JwtOrder;
use crate::jwt_keys;
use crate::kept_policy::KeptPolicy;
pub use crate::kept_policy::{InForce, Kept};
use crate::key::KeyError;
use crate::known::{Known, KnownError};
use crate::link::{AuthorityLink, LinkError, SignedPolicies, Told};
use crate::machine::Machine;
use crate::member::{Candidate, Member, MemberError};
use crate::mesh::{Held, MeshState};
use crate::order::{Holder, Order};
use crate::policies::PolicyHeld;
use crate::retention;
use crate::roots::Roots;
use crate::state::{self, StateError};
use crate::store::{By, Event, Store, StoreError};
use bonafide_proto::token::JoinToken;

/// Why the node role cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum NodeOpenError {
    /// The directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The membership file.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// What was known of the mesh.
    #[error(transparent)]
    Known(#[from] KnownError),
}

/// Why the node did not become, or stay, a member.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The authority gave nothing.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// What it gave was refused, or could not be kept.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// The token's root is no root.
    #[error("the join token carries no valid root certificate: {0}")]
    TokenRoot(CheckError),
    /// The root of the token is not among those the authority gave.
    #[error("the authority did not confirm the root certificate that the join token carries")]
    PinMissing,
    /// Too late to renew.
    #[error("the membership expired at unix time {0}; this node must join with a new token")]
    Expired(i64),
    /// There is nothing to renew.
    #[error("this node is not a member yet")]
    NotAMember,
}

impl From<KeyError> for MembershipError {
    fn from(e: KeyError) -> Self {
        Self::Member(e.into())
    }
}

impl From<CsrError> for MembershipError {
    fn from(e: CsrError) -> Self {
        Self::Member(e.into())
    }
}

/// What a node role is made of.
#[derive(Debug, Clone)]
pub struct NodeSetup {
    /// Directory for keys, certificates and ledger; made if missing, mode 0700.
    pub state: PathBuf,
    /// The node's name.
    pub name: NodeName,
    /// Lifetime of leaves, seconds.
    pub leaf_ttl: u32,
    /// The SMBIOS system UUID, for a daemon that may not read it itself.
    pub bios_uuid: Option<String>,
}

/// A leaf, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Leaf first, then the node's intermediate; the root is not in it.
    pub chain: Vec<CertificateDer<'static>>,
    /// First second of its validity, unix.
    pub not_before: i64,
    /// Last second of its validity, unix.
    pub not_after: i64,
}

/// How the last talk with the authority went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contact {
    /// There was none since the start.
    None,
    /// It answered.
    Reached,
    /// It did not, or it refused.
    Failed(String),
}

/// What the node should do about its membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It is no member, or no longer one: join.
    Join,
    /// Half of the time is over: renew.
    Renew,
    /// Nothing for so many seconds.
    NothingFor(i64),
}

/// What a membership is to the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// An operator's proof brought the node here, whatever it knew before.
    First,
    /// It continues.
    Renewal,
}

/// The CA of one node.
#[derive(Debug)]
pub struct NodeCa {
    setup: NodeSetup,
    /// What this machine calls itself, as read at the start.
    machine: Machine,
    store: Arc<Store>,
    clock: SharedClock,
    /// Watched by those who want the bundle.
    member: watch::Sender<Option<Arc<Member>>>,
    /// What the authority told of the mesh.
    known: Known,
    /// By which tokens are checked.
    jwt_keys: watch::Sender<Arc<Vec<JwtKey>>>,
    /// The policy that the authority told.
    policy: KeptPolicy,
    contact: watch::Sender<Contact>,
    issued: AtomicU64,
    /// The membership changes one change after the other.
    changing: Mutex<()>,
    roots_refused: watch::Sender<Option<String>>,
}

impl NodeCa {
    /// Opens the node's state; it may not be a member yet.
    ///
    /// # Errors
    /// Any [`NodeOpenError`]; nothing that exists is changed then.
    pub fn open(setup: NodeSetup, clock: SharedClock) -> Result<Self, NodeOpenError> {
        state::prepare(&setup.state)?;
        let store = Store::embedded(&setup.state.join("store"), clock.clone())?;
        retention::clear(&store, clock.unix())?;
        let member = Member::load(&setup.state.join(MEMBER_FILE), &setup.name)?;
        let bundle = member.as_ref().map(|member| member.bundle().clone());
        Ok(Self {
            machine: Machine::read(setup.bios_uuid.as_deref()),
            store: Arc::new(store),
            clock,
            member: watch::Sender::new(member.map(Arc::new)),
            known: Known::load(setup.state.join(KNOWN_FILE))?,
            jwt_keys: watch::Sender::new(Arc::new(jwt_keys::load(&setup.state.join(JWT_KEYS_FILE)))),
            policy: KeptPolicy::load(setup.state.join(POLICY_FILE), bundle.as_ref()),
            contact: watch::Sender::new(Contact::None),
            issued: AtomicU64::new(0),
            changing: Mutex::default(),
            roots_refused: watch::Sender::default(),
            setup,
        })
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        &self.setup.name
    }

    /// What this machine calls itself.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The membership, if there is one.
    #[must_use]
    pub fn member(&self) -> Option<Arc<Member>> {
        self.member.borrow().clone()
    }

    /// The membership now and after every change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Member>>> {
        self.member.subscribe()
    }

    /// The trust domain and its roots, once it is a member.
    #[must_use]
    pub fn trust_bundle(&self) -> Option<TrustBundle> {
        self.member().map(|m| m.bundle().clone())
    }

    /// What is known of the mesh, now and after every change.
    #[must_use]
    pub fn mesh(&self) -> watch::Receiver<Arc<MeshState>> {
        self.known.watch()
    }

    /// The newest policy that the authority published and this node knows.
    #[must_use]
    pub fn policy(&self) -> watch::Receiver<Option<Arc<Kept>>> {
        self.policy.watch()
    }

    /// What the authority is told about policies.
    #[must_use]
    pub fn policy_held(&self) -> PolicyHeld {
        self.policy.held()
    }

    /// Why the last policy that the authority told was not taken.
    #[must_use]
    pub fn policy_refused(&self) -> Option<String> {
        self.policy.refused()
    }

    /// identityd says by which policy programs are judged.
    pub fn policy_in_force(&self, in_force: InForce) {
        self.policy.is_in_force(in_force);
    }

    /// How the last talk with the authority went.
    #[must_use]
    pub fn contact(&self) -> Contact {
        self.contact.borrow().clone()
    }

    /// Leaves issued since the start.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }

    /// Issues a leaf for a program that earned a workload. Names inside the request are ignored.
    ///
    /// Blocks until the ledger has it.
    ///
    /// # Errors
    /// `no-intermediate`, `not-granted`, `node-revoked`, `workload-revoked`, `quarantined`, `bad-request`, `checker-refused`, or `unavailable` if the ledger cannot be written.
    pub fn issue_leaf(
        &self,
        workload: &WorkloadName,
        fingerprint: &Fingerprint,
        csr: &[u8],
    ) -> Result<Leaf, AttestRefusal> {
        self.try_issue(workload, fingerprint, csr).inspect_err(|refusal| {
            let event = Event::new("issuance-refused", &By::Daemon).with("workload", workload);
            self.store.refused(event.with("reason", refusal.reason).with("exe", fingerprint.exe.digest));
        })
    }

    /// The time by which it goes.
    #[must_use]
    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// The audit chain of what this node issued.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn try_issue(&self, workload: &WorkloadName, fingerprint: &Fingerprint, csr: &[u8]) -> Result<Leaf, AttestRefusal> {
        let no_intermediate = |why: &str| AttestRefusal::new(AttestReason::NoIntermediate, why);
        let member = self.member().ok_or_else(|| no_intermediate("this node has not joined the trust domain yet"))?;
        if member.is_of_retired_root() {
            return Err(no_intermediate(
                "the root that certified this node was retired; it must join with a new token",
            ));
        }
        self.not_quarantined(fingerprint)?;
        granted(&member, workload)?;
        self.not_revoked(&member, workload)?;
        let key = PublicKey::of_csr(csr).map_err(|e| AttestRefusal::new(AttestReason::BadRequest, e.to_string()))?;
        let now = self.clock.unix();
        let validity = member.signer().validity.within(now, i64::from(self.setup.leaf_ttl));
        let order = Order {
            trust_domain: member.bundle().trust_domain().clone(),
            holder: Holder::Workload(workload.clone(), Box::new(certified(fingerprint, &self.machine))),
            validity,
        };
        let leaf = member.signer().issue(&order, &key, None, self.store.as_ref(), now).map_err(refusal)?;
        self.issued.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(%workload, serial = leaf.serial(), until = validity.until, "leaf issued");
        let chain = std::iter::once(leaf.der().clone()).chain(member.signer().shown_with()).collect();
        Ok(Leaf { chain, not_before: validity.from, not_after: validity.until })
    }

    /// What should be done now.
    #[must_use]
    pub fn due(&self) -> Due {
        let now = self.clock.unix();
        match self.member() {
            None => Due::Join,
            Some(member) if now > member.not_after() || member.is_of_retired_root() => Due::Join,
            Some(member) if now >= member.renew_at() || self.is_revoked(&member) => Due::Renew,
            Some(member) if member.is_of_older_root() => Due::Renew,
            Some(member) => Due::NothingFor(member.renew_at() - now),
        }
    }

    /// Becomes a member: new keys, certified by the authority that the token names.
    ///
    /// # Errors
    /// Any [`MembershipError`]; the membership there was, if any, stays.
    pub async fn join(&self, link: &dyn AuthorityLink, token: &JoinToken) -> Result<(), MembershipError> {
        let outcome = self.try_join(link, token).await;
        self.note(&outcome);
        outcome
    }

    async fn try_join(&self, link: &dyn AuthorityLink, token: &JoinToken) -> Result<(), MembershipError> {
        let (candidate, application) = self.application()?;
        let issued = link.join(token, &application).await?;
        self.take_first(candidate, issued, token.root())
    }

    /// Becomes a member by another proof than a token, at the authority of this root.
    ///
    /// # Errors
    /// Any [`MembershipError`]; the membership there was, if any, stays.
    pub async fn enrol(
        &self,
        link: &dyn AuthorityLink,
        root: &CertificateDer<'static>,
        prover: &dyn Prover,
    ) -> Result<(), MembershipError> {
        let outcome = self.try_enrol(link, root, prover).await;
        self.note(&outcome);
        outcome
    }

    async fn try_enrol(
        &self,
        link: &dyn AuthorityLink,
        root: &CertificateDer<'static>,
        prover: &dyn Prover,
    ) -> Result<(), MembershipError> {
        let (candidate, application) = self.application()?;
        let issued = link.enrol(root, prover, &application).await?;
        self.take_first(candidate, issued, root)
    }

    fn application(&self) -> Result<(Candidate, Application), MembershipError> {
        let candidate = Candidate::generate()?;
        let (signing_csr, authentication_csr) = candidate.requests()?;
        let Machine { bios_uuid, machine_id } = self.machine.clone();
        let node = self.setup.name.clone();
        Ok((candidate, Application { node, signing_csr, authentication_csr, bios_uuid, machine_id }))
    }

    /// The first membership is that of the root by which the authority is known.
    fn take_first(
        &self,
        candidate: Candidate,
        issued: crate::authority::Membership,
        root: &CertificateDer<'static>,
    ) -> Result<(), MembershipError> {
        let expected = checker::read_root(root).map_err(MembershipError::TokenRoot)?.trust_domain;
        if !issued.roots.contains(root) {
            return Err(MembershipError::PinMissing);
        }
        self.take(candidate, issued, &expected, Takes::First)
    }

    /// Renews both certificates, with new keys.
    ///
    /// # Errors
    /// Any [`MembershipError`]; the membership there was stays.
    pub async fn renew(&self, link: &dyn AuthorityLink) -> Result<(), MembershipError> {
        let outcome = self.try_renew(link).await;
        self.note(&outcome);
        outcome
    }

    /// Listens to what the authority tells every member, until it goes away. Returns at once if it is no member.
    ///
    /// # Errors
    /// How it went away, if not in order; what was told stays in force.
    pub async fn follow(&self, link: &dyn AuthorityLink) -> Result<(), MembershipError> {
        let outcome = self.try_follow(link).await;
        if outcome.is_err() {
            self.note(&outcome);
        }
        outcome
    }

    async fn try_follow(&self, link: &dyn AuthorityLink) -> Result<(), MembershipError> {
        let Some(member) = self.member() else { return Ok(()) };
        let roots = member.sequence();
        let (held, says) = watch::channel(Held { told: 0, holds: self.known.now().sequence, roots });
        let mut states = link.follow(&member, &self.machine, says).await?;
        let take = |Told { mesh, roots: told }| {
            self.known.told(member.bundle().trust_domain(), &mesh);
            held.send_replace(Held { told: mesh.sequence, holds: self.known.now().sequence, roots });
            // Whoever takes others follows anew, and says then that they are in force.
            told.iter().for_each(|told| self.take_roots(told));
        };
        // What was taken back while this node was away is in force before anything else is learned or said.
        let Some(first) = states.next().await else { return Ok(()) };
        take(first?);
        self.note(&Ok(()));
        let policy = self.follow_policy(link, &member);
        let states = async {
            while let Some(state) = states.next().await {
                take(state?);
            }
            Ok(())
        };
        tokio::select! {
            ended = states => ended,
            never = policy => match never {},
        }
    }

    /// The authority says these are the roots.
    fn take_roots(&self, told: &Roots) {
        let _one_by_one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(member) = self.member() else { return };
        let member = match member.under(told) {
            Ok(None) => return drop(self.roots_refused.send_replace(None)),
            Ok(Some(member)) => member,
            Err(refusal) => {
                tracing::error!(%refusal, "the roots that the authority told are refused; those that were known stay");
                self.roots_refused.send_replace(Some(refusal.to_string()));
                return;
            }
        };
        // In force even if they cannot be kept: what is on disk would only be older.
        if let Err(e) = member.save(&self.setup.state.join(MEMBER_FILE)) {
            tracing::error!(error = %e, "the roots cannot be kept for a restart");
        }
        tracing::warn!(sequence = told.sequence, roots = told.certificates.len(), "the roots have changed");
        self.roots_refused.send_replace(None);
        self.member.send_replace(Some(Arc::new(member)));
    }

    /// Why the roots that the authority told last were not taken.
    #[must_use]
    pub fn roots_refused(&self) -> Option<String> {
        self.roots_refused.borrow().clone()
    }

    /// Beside all else that the authority tells: without a policy from it, nothing else is missed.
    async fn follow_policy(&self, link: &dyn AuthorityLink, member: &Member) -> std::convert::Infallible {
        let (held, says) = watch::channel(self.policy.held());
        match link.follow_policy(member, says).await {
            Ok(told) => self.take_policies(member.bundle(), told, &held).await,
            Err(e) => tracing::warn!(error = %e, "the authority tells no policy; the last one stays in force"),
        }
        std::future::pending().await
    }

    async fn take_policies(&self, bundle: &TrustBundle, mut told: SignedPolicies, held: &watch::Sender<PolicyHeld>) {
        loop {
            let changes = self.policy.changes();
            held.send_replace(self.policy.held());
            tokio::select! {
                signed = told.next() => match signed {
                    // Verifying and writing it takes milliseconds, and it is rare.
                    Some(Ok(signed)) => self.policy.told(bundle, signed),
                    Some(Err(e)) => {
                        tracing::warn!(error = %e, "the authority tells its policy no longer; it is asked again");
                        return;
                    }
                    None => return,
                },
                () = changes => {}
            }
        }
    }

    fn not_revoked(&self, member: &Member, workload: &WorkloadName) -> Result<(), AttestRefusal> {
        let revoked = &self.known.now().revoked;
        if let Some((_, why)) = revoked.workload(workload) {
            return Err(AttestRefusal::new(AttestReason::WorkloadRevoked, why));
        }
        match member.issuer().and_then(|issuer| revoked.issuer(&issuer)) {
            Some((_, why)) => Err(AttestRefusal::new(AttestReason::NodeRevoked, why)),
            None => Ok(()),
        }
    }

    fn is_revoked(&self, member: &Member) -> bool {
        member.issuer().is_some_and(|issuer| self.known.now().revoked.issuer(&issuer).is_some())
    }

    /// The keys by which tokens are checked, now and after every change.
    #[must_use]
    pub fn jwt_keys(&self) -> watch::Receiver<Arc<Vec<JwtKey>>> {
        self.jwt_keys.subscribe()
    }

    /// Asks the authority for those keys.
    ///
    /// # Errors
    /// It gave none; those that were known stay.
    pub async fn refresh_jwt_keys(&self, link: &dyn AuthorityLink) -> Result<(), MembershipError> {
        let member = self.member().ok_or(MembershipError::NotAMember)?;
        let keys = link.jwt_keys(&member).await?;
        if **self.jwt_keys.borrow() == keys {
            return Ok(());
        }
        if let Err(e) = jwt_keys::save(&self.setup.state.join(JWT_KEYS_FILE), &keys) {
            tracing::error!(error = %e, "the keys of JWT-SVIDs cannot be kept for a restart");
        }
        self.jwt_keys.send_replace(Arc::new(keys));
        Ok(())
    }

    /// A token for a program that earned a workload, which the authority signs.
    ///
    /// # Errors
    /// `no-intermediate`, `not-granted`, `quarantined`, `bad-request`, or `unavailable` while the authority is away.
    pub async fn issue_jwt(
        &self,
        link: &dyn AuthorityLink,
        workload: &WorkloadName,
        fingerprint: &Fingerprint,
        audiences: Vec<String>,
    ) -> Result<String, AttestRefusal> {
        let no_member = || AttestRefusal::new(AttestReason::NoIntermediate, "this node has not joined yet");
        let member = self.member().ok_or_else(no_member)?;
        granted(&member, workload)?;
        self.not_revoked(&member, workload)?;
        self.not_quarantined(fingerprint)?;
        let order = JwtOrder { workload: workload.clone(), audiences, digests: fingerprint.digests().collect() };
        link.sign_jwt(&member, &order).await.map_err(|e| {
            let reason = match &e {
                LinkError::Refused { reason, .. } => match reason.as_str() {
                    "not-granted" => AttestReason::NotGranted,
                    "quarantined" => AttestReason::Quarantined,
                    "workload-revoked" => AttestReason::WorkloadRevoked,
                    "bad-request" => AttestReason::BadRequest,
                    _ => AttestReason::Unavailable,
                },
                _ => AttestReason::Unavailable,
            };
            AttestRefusal::new(reason, format!("no token is signed: {e}"))
        })
    }

    fn not_quarantined(&self, fingerprint: &Fingerprint) -> Result<(), AttestRefusal> {
        let mesh = self.known.now();
        match fingerprint.digests().find(|digest| mesh.quarantine.contains(digest)) {
            Some(digest) => Err(AttestRefusal::new(AttestReason::Quarantined, format!("{digest} is in quarantine"))),
            None => Ok(()),
        }
    }

    async fn try_renew(&self, link: &dyn AuthorityLink) -> Result<(), MembershipError> {
        let member = self.member().ok_or(MembershipError::NotAMember)?;
        if self.clock.unix() > member.not_after() {
            return Err(MembershipError::Expired(member.not_after()));
        }
        let candidate = Candidate::generate()?;
        let (signing_csr, authentication_csr) = candidate.requests()?;
        let issued = link.renew(&member, &self.machine, signing_csr, authentication_csr).await?;
        let expected = member.bundle().trust_domain().clone();
        self.take(candidate, issued, &expected, Takes::Renewal)
    }

    /// Checked, kept on disk, and only then used.
    fn take(
        &self,
        candidate: Candidate,
        issued: crate::authority::Membership,
        expected: &TrustDomain,
        takes: Takes,
    ) -> Result<(), MembershipError> {
        let _one_by_one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mesh = issued.mesh.clone();
        // Inside: what was told while this was asked counts.
        let before = self.member().filter(|_| takes == Takes::Renewal);
        let member = Member::take(&self.setup.name, candidate, issued, expected, before.as_deref())?;
        self.known.told_earlier(expected, &mesh);
        member.save(&self.setup.state.join(MEMBER_FILE))?;
        self.member.send_replace(Some(Arc::new(member)));
        Ok(())
    }

    fn note(&self, outcome: &Result<(), MembershipError>) {
        self.contact.send_replace(match outcome {
            Ok(()) => Contact::Reached,
            Err(e) => Contact::Failed(e.to_string()),
        });
    }
}

const MEMBER_FILE: &str = "membership.json";
const KNOWN_FILE: &str = "mesh.json";
const JWT_KEYS_FILE: &str = "jwt-keys.json";
const POLICY_FILE: &str = "policy.signed";

/// Which program: as identityd saw it. On which host: as this process read it, whatever identityd says.
fn certified(fingerprint: &Fingerprint, machine: &Machine) -> CertifiedProgram {
    let filled = |text: &String| (!text.is_empty()).then(|| text.clone());
    CertifiedProgram {
        bios_uuid: filled(&machine.bios_uuid),
        machine_id: filled(&machine.machine_id),
        ..CertifiedProgram::of(fingerprint)
    }
}

fn granted(member: &Member, workload: &WorkloadName) -> Result<(), AttestRefusal> {
    match member.mandate() {
        Some(mandate) if mandate.grant.allows(workload) => Ok(()),
        _ => {
            let node = member.name();
            let detail = format!(
                "node {node} was not granted to issue {workload}; where the authority runs: \
                 bonafide node grant {node} --workloads …"
            );
            Err(AttestRefusal::new(AttestReason::NotGranted, detail))
        }
    }
}

fn refusal(e: IssueError) -> AttestRefusal {
    let reason = match &e {
        IssueError::IssuerExpired(_) => AttestReason::NoIntermediate,
        IssueError::Check(CheckError::NotGranted(_)) => AttestReason::NotGranted,
        IssueError::Check(_) => AttestReason::CheckerRefused,
        IssueError::Mint(_) | IssueError::Store(_) | IssueError::KeyAway(_) | IssueError::Roots(_) => {
            AttestReason::Unavailable
        }
    };
    tracing::warn!(error = %e, %reason, "no leaf issued");
    AttestRefusal::new(reason, e.to_string())
}
