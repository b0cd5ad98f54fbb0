//! The root role: holds the trust domain's root key, admits nodes by token, renews them, and lists them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::grant::{Grant, Mandate};
use bonafide_proto::jwt::{JwtKey, check_audiences};
use bonafide_proto::name::{NodeName, TrustDomain};
use bonafide_proto::revoked::Serial;
use bonafide_proto::signed_policy::SignedPolicy;
use bonafide_proto::svid::{PeerSvid, TrustBundle};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::attestor::x509pop::X509Pop;
use crate::attestor::{self, Attestors, Claim, Evidence, Proof};
use crate::certify::{Entered, IssueError, Place};
use crate::csr::{self, CsrError, PublicKey};
use crate::followers::{CameBy, Follower, Followers};
use crate::founding::{Charter, OpenError};
use crate::jwt::{self, JwtOrder};
use crate::key::{Key, KeyError};
use crate::machine::Machine;
use crate::mesh::{Held, MeshState};
use crate::order::{Holder, Order, Validity};
use crate::policies::{CONFIRM_MIN, Policies, PolicyFollower, Publication, PublishError, policy_text};
use crate::quarantine::{Quarantine, QuarantineError, check_reason};
use crate::refusal::MembershipRefusal;
use crate::retention;
use crate::rotation::issuing::InstallError;
use crate::rotation::next::NextRoot;
use crate::rotation::{Presiding, Rotation, RotationError, Step, digests};
use crate::sharing::{Exchange, Seat};
use crate::state;
use crate::store::engine::Engine;
use crate::store::{
    Admitted, By, Change, Committed, Embedded, Etcd, Event, NodeRecord, PolicyRecord, Store, StoreError, TokenRecord,
    Unconfirmed,
};
use bonafide_proto::token::{JoinToken, Secret, TokenError};

/// Lifetime of the authority's own SVID, seconds; replaced at half of it.
const OWN_TTL: i64 = 3600;
/// The longest life of a join token, seconds.
pub const TOKEN_TTL_MAX: u32 = 600;
/// How long after the first use of a renewed certificate the one before is still taken, seconds.
const HANDOVER: i64 = 60;
/// How often it is written down that a node was seen, seconds.
const SEEN_EVERY: i64 = 60;

/// What a node says about itself when it joins.
#[derive(Debug, Clone)]
pub struct Application {
    /// The name it wants.
    pub node: NodeName,
    /// PKCS#10 DER for its intermediate.
    pub signing_csr: Vec<u8>,
    /// PKCS#10 DER for its own SVID.
    pub authentication_csr: Vec<u8>,
    /// Empty: the machine has none.
    pub bios_uuid: String,
    /// Empty: the machine has none.
    pub machine_id: String,
}

/// What a join token shall be good for.
#[derive(Debug, Clone, Default)]
pub struct TokenTerms {
    /// The only name it admits; `None`: any that is new.
    pub node: Option<NodeName>,
    /// Seconds until it expires.
    pub ttl: u32,
    /// What the node may issue; `None`: what that name was granted before, else nothing.
    pub grant: Option<Grant>,
    /// Who asks for it.
    pub by: By,
    /// The only machine it admits, by its SMBIOS system UUID; `None`: any.
    pub bios_uuid: Option<String>,
}

/// What a member holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Signs leaves.
    pub intermediate: CertificateDer<'static>,
    /// Authenticates the node.
    pub node_svid: CertificateDer<'static>,
    /// Stands between both and the root, where that is offline.
    pub issuing: Option<CertificateDer<'static>>,
    /// The roots; the first is the one that certifies nodes.
    pub roots: Vec<CertificateDer<'static>>,
    /// Counts the changes of the roots.
    pub sequence: u64,
    /// What every member must know.
    pub mesh: MeshState,
}

/// The trust domain's authority.
#[derive(Debug)]
pub struct Authority {
    trust_domain: TrustDomain,
    rotation: Rotation,
    store: Arc<Store>,
    clock: SharedClock,
    intermediate_ttl: i64,
    own: Mutex<Option<OwnSvid>>,
    quarantine: Quarantine,
    policies: Policies,
    followers: Arc<Followers>,
    exchange: Arc<Exchange>,
    attestors: Attestors,
    /// False while the store does not answer.
    able: watch::Sender<bool>,
}

#[derive(Debug)]
struct OwnSvid {
    certified: Arc<CertifiedKey>,
    validity: Validity,
    /// The number of the root that signed it.
    root: u64,
}

impl Authority {
    /// Opens the authority of this directory, founding it in an empty one.
    ///
    /// # Errors
    /// Any [`OpenError`]; nothing that exists is changed then.
    pub fn open(charter: &Charter, clock: SharedClock) -> Result<Self, OpenError> {
        state::prepare(&charter.state)?;
        let store = Arc::new(open_store(charter, &clock)?);
        let rotation = Rotation::open(charter, store.clone(), clock.clone())?;
        retention::clear(&store, clock.unix())?;
        let quarantine = Quarantine::open(store.clone(), clock.clone())?;
        if quarantine.now().restored {
            tracing::error!("the store is from a backup: nobody joins or renews before `bonafide-ca settle`");
        }
        Ok(Self {
            trust_domain: charter.trust_domain.clone(),
            rotation,
            quarantine,
            policies: Policies::open(store.clone(), clock.clone())?,
            store,
            clock,
            intermediate_ttl: i64::from(charter.intermediate_ttl),
            own: Mutex::new(None),
            followers: Arc::default(),
            exchange: Arc::default(),
            attestors: Attestors::default(),
            able: watch::Sender::new(true),
        })
    }

    /// The trust domain and its roots.
    #[must_use]
    pub fn trust_bundle(&self) -> TrustBundle {
        self.rotation.now().bundle().clone()
    }

    /// The roots, and their changes.
    #[must_use]
    pub fn rotation(&self) -> &Rotation {
        &self.rotation
    }

    /// Makes a step from one root to the next; false if it was made before. `leave`: nodes that need not be waited for.
    ///
    /// # Errors
    /// Any [`RotationError`].
    pub fn rotate(&self, by: &By, step: Step, leave: &BTreeSet<NodeName>) -> Result<bool, RotationError> {
        if self.quarantine.now().restored {
            return Err(RotationError::Restored);
        }
        let made = self.rotation.step(by, step, leave)?;
        if made {
            tracing::warn!(?step, "the roots have changed");
        }
        self.name_roots_in_policy(by)?;
        Ok(made)
    }

    /// Makes the first step by a root whose key is kept elsewhere; false if it was made before.
    ///
    /// # Errors
    /// Any [`RotationError`].
    pub fn prepare_offline(&self, by: &By, next: &NextRoot) -> Result<bool, RotationError> {
        match self.quarantine.now().restored {
            true => Err(RotationError::Restored),
            false => self.rotation.prepare_offline(by, next),
        }
    }

    /// Certifies by this certificate from now on, whose root is offline; false if it does.
    ///
    /// # Errors
    /// Any [`InstallError`].
    pub fn install_issuing(&self, by: &By, certificate: &CertificateDer<'static>) -> Result<bool, InstallError> {
        if self.quarantine.now().restored {
            return Err(InstallError::Restored);
        }
        let installed = self.rotation.install(by, certificate)?;
        if installed {
            tracing::warn!("this authority certifies by a later issuing certificate");
        }
        Ok(installed)
    }

    /// Which issuing certificates should be renewed by now, for a person.
    #[must_use]
    pub fn reminders(&self) -> Vec<String> {
        self.rotation.due(self.clock.unix())
    }

    /// A policy names the roots by which nodes shall verify the next one.
    fn name_roots_in_policy(&self, by: &By) -> Result<(), RotationError> {
        self.policies.look()?;
        let Some(published) = self.policies.now() else { return Ok(()) };
        let bundle = self.trust_bundle();
        let known = SignedPolicy::verify(&published.signed, &bundle).ok();
        if known
            .is_some_and(|policy| policy.roots().iter().copied().collect::<BTreeSet<_>>() == digests(bundle.roots()))
        {
            return Ok(());
        }
        let text = policy_text(&published.signed).map_err(PublishError::from)?;
        let author = published.record.author.clone();
        // What waits to be confirmed goes on waiting.
        let left =
            |unconfirmed: Unconfirmed| unconfirmed.until.saturating_sub(self.clock.unix()).max(i64::from(CONFIRM_MIN));
        let confirm_within = published.record.unconfirmed.map(left).and_then(|left| u32::try_from(left).ok());
        self.publish(by, &Publication { confirm_within, ..Publication::of(text, author) })?;
        Ok(())
    }

    /// Makes the policy that was published last one that stays.
    ///
    /// # Errors
    /// [`PublishError::NotWaiting`], or the store's.
    pub fn confirm_policy(&self, by: &By, version: u64) -> Result<PolicyRecord, PublishError> {
        self.policies.confirm(by, version)
    }

    /// Publishes an earlier version again; without a number the last one that was another.
    ///
    /// # Errors
    /// Any [`PublishError`].
    pub fn roll_policy_back(&self, by: &By, to: Option<u64>) -> Result<PolicyRecord, PublishError> {
        self.publish(by, &self.policies.back_to(to)?)
    }

    /// Publishes the version before the last one again, if nobody confirmed that in its time. Asked now and then.
    ///
    /// # Errors
    /// Any [`PublishError`].
    pub fn take_back_unconfirmed(&self) -> Result<(), PublishError> {
        let Some((waiting, version)) = self.policies.due() else { return Ok(()) };
        let publication = self.policies.back_to(Some(version))?;
        let still = |seen: Option<&PolicyRecord>| {
            seen.is_some_and(|seen| seen.version == waiting && seen.unconfirmed.is_some())
        };
        let back = match self.publish_if(&By::Daemon, &publication, still) {
            // It was confirmed at this moment, or another authority of the same store did it.
            Err(PublishError::Meanwhile { .. }) => return Ok(()),
            other => other?,
        };
        tracing::warn!(
            version = back.version,
            of = version,
            "nobody confirmed the policy: the one before is in force again"
        );
        Ok(())
    }

    /// The digests in quarantine.
    #[must_use]
    pub fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    /// The clock it goes by.
    #[must_use]
    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// A new single-use token, and when it expires (unix seconds).
    ///
    /// # Errors
    /// [`TokenCreationError`].
    pub fn create_token(&self, terms: TokenTerms) -> Result<(JoinToken, i64), TokenCreationError> {
        let TokenTerms { node, ttl, grant, by, bios_uuid } = terms;
        let bios_uuid = bios_uuid.map(|uuid| uuid.to_ascii_lowercase());
        if !(1..=TOKEN_TTL_MAX).contains(&ttl) {
            return Err(TokenCreationError::Ttl(ttl));
        }
        let expires = self.clock.unix().saturating_add(i64::from(ttl));
        let secret = Secret::generate()?;
        let root = self.rotation.presiding().map_err(TokenCreationError::Root)?.root;
        let record = TokenRecord { node, expires, used: None, admitted: None, bios_uuid, grant };
        let mut change = self.store.change();
        change.token(&secret.id(), None, &record)?;
        change.note(token_event("token-created", &by, secret.id(), &record));
        match change.commit()? {
            Some(_) => Ok((JoinToken::new(secret, root), expires)),
            None => Err(TokenCreationError::Token(TokenError::Random)),
        }
    }

    /// Admits a node: the token is spent, the name taken, both certificates entered in the ledger, all at once.
    ///
    /// # Errors
    /// The named refusal. A token is spent only when everything it could be refused for was checked. The very
    /// application that it admitted is answered again while it lives: the first answer may have been lost.
    pub fn join(&self, secret: &Secret, application: &Application) -> Result<Membership, MembershipRefusal> {
        loop {
            let now = self.clock.unix();
            // First: who does not know a secret learns nothing, and has nothing of theirs looked at.
            let token = self.store.token(&secret.id())?.ok_or(MembershipRefusal::TokenUnknown)?;
            let keys = NodeKeys::of(&application.signing_csr, &application.authentication_csr)?;
            check_token(&token, application, &keys, now)?;
            check_machine(application)?;
            self.check_settled()?;
            self.not_banned(application)?;
            let seen = self.store.node(&application.node)?;
            if let Some(admitted) = &token.admitted {
                match self.admitted_before(application, admitted, seen, &keys, now)? {
                    Some(membership) => return Ok(membership),
                    None => continue,
                }
            }
            // Only the operator, by a token bound to the name, lets a machine take over a name in use.
            if seen.is_some() && token.node.is_none() {
                return Err(MembershipRefusal::NameTaken(application.node.clone()));
            }
            let record = self.place(application, seen.as_ref(), token.grant.as_ref(), now);
            let admitted = Admitted { application: keys.digest(application), membership: record.membership };
            let used = TokenRecord { used: Some(now), admitted: Some(admitted), ..token.clone() };
            let mut change = self.store.change();
            change.token(&secret.id(), Some(&token), &used)?;
            change.node(&application.node, seen.as_ref(), &record)?;
            let by = By::Node(application.node.clone());
            change.note(token_event("admitted", &by, secret.id(), &used).with("membership", record.membership));
            let certified = self.certify(&application.node, &keys, &record, &mut change, now)?;
            // Who came first this very moment is seen, and refused or not, when looking again.
            if let Some(done) = change.commit()? {
                // A ban of this very moment revokes what has a record; one that came before the record is seen now.
                self.not_banned(application)?;
                self.replaced(&application.node, seen.as_ref(), now);
                return Ok(self.membership(certified, &done));
            }
        }
    }

    /// Judges what a node shows first.
    ///
    /// # Errors
    /// The named refusal.
    pub fn attest(&self, claim: &Claim, evidence: Evidence) -> Result<attestor::Step, MembershipRefusal> {
        self.attestors.begin(claim, evidence)
    }

    /// Admits a node that proved who it is.
    ///
    /// # Errors
    /// The named refusal.
    pub fn enrol(&self, application: &Application, proof: Proof) -> Result<Membership, MembershipRefusal> {
        match proof {
            Proof::Token(secret) => self.join(&secret, application),
            Proof::Certified(grant) => self.admit_certified(application, grant.as_ref()),
        }
    }

    /// The PKI says whose the name is, also if it is in use; who was sent away or is suspect comes again when the operator says
    /// so. A copy of the certificate's key alone is no reason to believe that a member's name has moved to another machine.
    fn admit_certified(
        &self,
        application: &Application,
        grant: Option<&Grant>,
    ) -> Result<Membership, MembershipRefusal> {
        let keys = NodeKeys::of(&application.signing_csr, &application.authentication_csr)?;
        check_machine(application)?;
        self.check_settled()?;
        loop {
            let now = self.clock.unix();
            self.not_banned(application)?;
            let seen = self.store.node(&application.node)?;
            if seen.as_ref().is_some_and(|seen| seen.evicted.is_some()) {
                return Err(MembershipRefusal::Evicted(application.node.clone()));
            }
            if let Some(member) = seen.as_ref().filter(|seen| now <= seen.not_after) {
                self.may_come_again(application, member)?;
            }
            let record = self.place(application, seen.as_ref(), grant, now);
            let mut change = self.store.change();
            change.node(&application.node, seen.as_ref(), &record)?;
            let by = By::Node(application.node.clone());
            let event = Event::new("admitted", &by).with("proof", "x509pop").with("grant", &record.grant);
            change.note(event.with("membership", record.membership));
            let certified = self.certify(&application.node, &keys, &record, &mut change, now)?;
            if let Some(done) = change.commit()? {
                self.not_banned(application)?;
                self.replaced(&application.node, seen.as_ref(), now);
                return Ok(self.membership(certified, &done));
            }
        }
    }

    /// A member whose certificates last may have lost its state, or have been set up anew, on the same machine.
    fn may_come_again(&self, application: &Application, member: &NodeRecord) -> Result<(), MembershipRefusal> {
        let Application { node, bios_uuid, machine_id, .. } = application;
        let now = Machine { bios_uuid: bios_uuid.clone(), machine_id: machine_id.clone() };
        let joined = Machine { bios_uuid: member.bios_uuid.clone(), machine_id: member.machine_id.clone() };
        if now.hardware() != joined.hardware() {
            self.same_machine(node, member, &now)?;
        }
        match &member.suspect {
            Some(why) => Err(MembershipRefusal::Suspect(node.clone(), why.clone())),
            None => Ok(()),
        }
    }

    /// From now on nodes are admitted by certificates of an existing PKI, too.
    #[must_use]
    pub fn accepting(mut self, x509pop: X509Pop) -> Self {
        self.attestors.accept(x509pop);
        self
    }

    /// The certificate of the root by which nodes that join know this authority, DER.
    #[must_use]
    pub fn root(&self) -> CertificateDer<'static> {
        let issuers = self.rotation.now();
        issuers.presiding(self.clock.unix()).certificate.clone()
    }

    /// Certificates for keys that were admitted, unless another machine has taken the name since; `None` if something
    /// changed at this moment.
    fn admitted_before(
        &self,
        application: &Application,
        admitted: &Admitted,
        seen: Option<NodeRecord>,
        keys: &NodeKeys,
        now: i64,
    ) -> Result<Option<Membership>, MembershipRefusal> {
        let record = seen.filter(|record| record.membership == admitted.membership);
        let record = record.ok_or_else(|| MembershipRefusal::Replaced(application.node.clone()))?;
        self.not_banned(application)?;
        if record.evicted.is_some() {
            return Err(MembershipRefusal::Evicted(application.node.clone()));
        }
        self.recertify(&application.node, keys, &record, now)
    }

    /// The next certificates of a member; `None` if its record is another one by now.
    fn recertify(
        &self,
        node: &NodeName,
        keys: &NodeKeys,
        record: &NodeRecord,
        now: i64,
    ) -> Result<Option<Membership>, MembershipRefusal> {
        let not_after = self.node_validity(now).until.max(record.not_after);
        let number = record.number.saturating_add(1);
        let renewed = NodeRecord { last_renewed: now, last_seen: now, not_after, number, ..record.clone() };
        let mut change = self.store.change();
        change.node(node, Some(record), &renewed)?;
        change.note(Event::new("renewed", &By::Node(node.clone())).with("number", number));
        let certified = self.certify(node, keys, &renewed, &mut change, now)?;
        Ok(change.commit()?.map(|done| self.membership(certified, &done)))
    }

    /// Renews a member's certificates. `peer` is what its connection proved. The new ones are pending until the member
    /// comes by one of them; until then it may come by the old one, and ask again.
    ///
    /// # Errors
    /// The named refusal.
    pub fn renew(
        &self,
        peer: &PeerSvid,
        machine: &Machine,
        signing_csr: &[u8],
        authentication_csr: &[u8],
    ) -> Result<Membership, MembershipRefusal> {
        let keys = NodeKeys::of(signing_csr, authentication_csr)?;
        loop {
            let now = self.clock.unix();
            let (node, record) = self.current(peer, now)?;
            self.same_machine(&node, &record, machine)?;
            self.check_settled()?;
            // Nobody who has a newer one renews by an older one, not even while what was on its way is taken.
            let shown = self.store.entry(peer.serial())?.and_then(|entry| entry.number).unwrap_or(0);
            if shown < record.active {
                return Err(self.superseded(&node, &record, shown)?);
            }
            // It joined, renewed, or said what it holds at this very moment: it is judged by that.
            if let Some(membership) = self.recertify(&node, &keys, &record, now)? {
                return Ok(membership);
            }
        }
    }

    /// Writes down whom it refused, and why.
    pub fn note_refused(&self, act: &'static str, by: &By, node: &str, refusal: &MembershipRefusal) {
        if !matches!(refusal, MembershipRefusal::Internal(_)) {
            self.store.refused(Event::new(act, by).with("node", node).with("reason", refusal.as_str()));
        }
    }

    /// Its store: whose audit chain says what it did.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// From its next renewal on a node may issue this. If that is less than before, what it issued until now is revoked,
    /// and the node, as soon as it is told so, renews.
    ///
    /// # Errors
    /// [`EvictError`].
    pub fn grant(&self, by: &By, node: &NodeName, grant: &Grant) -> Result<Granted, EvictError> {
        loop {
            let seen = self.store.node(node)?.ok_or_else(|| EvictError::Unknown(node.clone()))?;
            let new = NodeRecord { grant: grant.clone(), ..seen.clone() };
            // The revocation of a smaller grant may be what failed before: it is tried again.
            if seen != new {
                let mut change = self.store.change();
                change.node(node, Some(&seen), &new)?;
                change.note(Event::new("granted", by).with("node", node).with("grant", grant));
                if change.commit()?.is_none() {
                    continue;
                }
            }
            tracing::info!(%node, %grant, before = %seen.grant, "granted");
            if grant.covers(&seen.grant) {
                return Ok(if seen == new { Granted::Already } else { Granted::AtRenewal });
            }
            let until = seen.not_after;
            self.quarantine.revoke_node(by, node, seen.number, until, false, "it may issue less than before")?;
            return Ok(Granted::AtOnce);
        }
    }

    /// What every member must know, now and after every change. `peer` is what its connection proved, `held` what it says
    /// to have in force.
    ///
    /// # Errors
    /// The named refusal.
    pub fn follow(&self, peer: &PeerSvid, machine: &Machine, held: Held) -> Result<Follower, MembershipRefusal> {
        self.check_able()?;
        let now = self.clock.unix();
        let (node, record) = self.current(peer, now)?;
        self.same_machine(&node, &record, machine)?;
        self.seen(&node, record, held.roots, now)?;
        let came_by = self.came_by(peer)?;
        let (states, roots) = (self.quarantine.follow(), self.rotation.follow());
        let place = self.followers.enter(node.clone());
        place.holds(held);
        Ok(Follower { states, roots, place, node, came_by })
    }

    /// Looks what changed in the store, and tells those that follow: then it can say what is so.
    ///
    /// # Errors
    /// Any [`StoreError`]; [`StoreError::Unavailable`] says nothing yet: the store may answer the next time.
    pub fn look(&self, patience: Duration) -> Result<(), StoreError> {
        let looked = self.quarantine.look(patience);
        if looked.is_ok()
            && let Err(e) = self.rotation.fresh()
        {
            tracing::error!(error = %e, "the roots that the store has are not known");
        }
        self.rotation.remind();
        if !matches!(looked, Err(StoreError::Unavailable { .. })) {
            self.is_able(looked.is_ok());
        }
        looked
    }

    /// The store did not say for too long whether anything changed: nobody follows until it does.
    pub fn lapse(&self) {
        self.is_able(false);
    }

    /// The operator of a restored authority says that it lacks nothing more; false if it was not restored.
    ///
    /// # Errors
    /// [`EvictError`].
    pub fn settle(&self, by: &By) -> Result<bool, EvictError> {
        let held = self.followers.all().into_values().map(|held| held.holds).max().unwrap_or(0);
        Ok(self.quarantine.settle(by, held)?)
    }

    /// From a backup it may have members that were sent away since, and their certificates.
    fn check_settled(&self) -> Result<(), MembershipRefusal> {
        if self.quarantine.now().restored { Err(MembershipRefusal::Restored) } else { Ok(()) }
    }

    fn is_able(&self, now: bool) {
        self.able.send_if_modified(|able| std::mem::replace(able, now) != now);
    }

    /// Done when it can no longer say what is so.
    pub async fn unable(&self) {
        // Its sender is the authority itself.
        let _ = self.able.subscribe().wait_for(|able| !able).await;
    }

    /// Whether it can say what is so.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub fn check_able(&self) -> Result<(), StoreError> {
        match *self.able.borrow() {
            true => Ok(()),
            false => Err(StoreError::Unavailable { path: "of the authority".into(), why: "for seconds now".into() }),
        }
    }

    /// The policy that was published last, and those that follow it.
    #[must_use]
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Publishes a policy.
    ///
    /// # Errors
    /// Any [`PublishError`]; nobody is told anything then.
    pub fn publish(&self, by: &By, publication: &Publication) -> Result<PolicyRecord, PublishError> {
        self.publish_if(by, publication, |_| true)
    }

    fn publish_if(
        &self,
        by: &By,
        publication: &Publication,
        still: impl FnOnce(Option<&PolicyRecord>) -> bool,
    ) -> Result<PolicyRecord, PublishError> {
        // Who was away while the roots changed believes the oldest of them.
        let root = self.rotation.presiding()?;
        self.policies.publish(by, publication, &root.signer, &self.trust_bundle(), still)
    }

    /// The policy that was published last, now and after every publication; and the certificate by which the member
    /// came. `peer` is what its connection proved.
    ///
    /// # Errors
    /// The named refusal.
    pub fn follow_policy(&self, peer: &PeerSvid) -> Result<(PolicyFollower, CameBy), MembershipRefusal> {
        self.check_able()?;
        let (node, _) = self.current(peer, self.clock.unix())?;
        Ok((self.policies.follow(node), self.came_by(peer)?))
    }

    /// Those that follow.
    #[must_use]
    pub fn followers(&self) -> &Followers {
        &self.followers
    }

    /// A place where this member's halves of flows meet the others'. `peer` is what its connection proved.
    ///
    /// # Errors
    /// The named refusal.
    pub fn share_flows(&self, peer: &PeerSvid) -> Result<(Seat, CameBy), MembershipRefusal> {
        self.check_able()?;
        let (node, _) = self.current(peer, self.clock.unix())?;
        Ok((self.exchange.enter(node), self.came_by(peer)?))
    }

    /// Done when the node is no member any more that came by this certificate.
    pub async fn out(&self, node: NodeName, came_by: CameBy) {
        tokio::select! {
            () = self.quarantine.out(node, came_by.number) => {}
            () = self.rotation.retired(came_by.root) => {}
        }
    }

    /// The node has to join anew, and what it issued is revoked; false if so before.
    ///
    /// # Errors
    /// [`EvictError`].
    pub fn evict(&self, by: &By, node: &NodeName, reason: &str) -> Result<bool, EvictError> {
        check_reason(reason)?;
        let now = self.clock.unix();
        let event = Event::new("node-evicted", by).with("node", node).with("reason", reason);
        let record = self.change_node(node, Some(event), |record| record.evicted = record.evicted.or(Some(now)))?;
        let record = record.ok_or_else(|| EvictError::Unknown(node.clone()))?;
        let changed = self.quarantine.revoke_node(by, node, record.number, record.not_after, true, reason)?;
        tracing::warn!(%node, reason, changed, "evicted");
        Ok(changed)
    }

    /// An evicted node is a member again, false if it was: it renews as soon as it is told. What it issued before stays
    /// revoked.
    ///
    /// # Errors
    /// [`EvictError`].
    pub fn readmit(&self, by: &By, node: &NodeName) -> Result<bool, EvictError> {
        if let Some(banned) = self.quarantine.record()?.banned.keys().find(|banned| *banned == node) {
            return Err(EvictError::Banned(banned.clone()));
        }
        let was = self.store.node(node)?.is_some_and(|record| record.evicted.is_some());
        let event = Event::new("node-readmitted", by).with("node", node);
        let changed = self.change_node(node, Some(event), |record| record.evicted = None)?;
        changed.ok_or_else(|| EvictError::Unknown(node.clone()))?;
        let lifted = self.quarantine.lift_node(by, node)?;
        tracing::warn!(%node, "readmitted");
        Ok(was || lifted)
    }

    /// Nobody is a member by this name or machine any more; false if so before.
    ///
    /// # Errors
    /// [`EvictError`]; a name that never joined can be banned, too.
    pub fn ban(&self, by: &By, node: &NodeName, reason: &str) -> Result<bool, EvictError> {
        let changed = self.quarantine.ban(by, node, self.store.node(node)?.as_ref(), reason)?;
        tracing::warn!(%node, reason, changed, "banned");
        match self.evict(by, node, reason) {
            Ok(evicted) => Ok(changed || evicted),
            Err(EvictError::Unknown(_)) => Ok(changed),
            Err(e) => Err(e),
        }
    }

    /// It may join again; false if it might.
    ///
    /// # Errors
    /// [`EvictError`].
    pub fn unban(&self, by: &By, node: &NodeName) -> Result<bool, EvictError> {
        tracing::warn!(%node, "unbanned");
        Ok(self.quarantine.unban(by, node)?)
    }

    /// An operator has looked at a suspect node, and says that it is what it should be; why it was suspect, if it was. What was
    /// revoked meanwhile stays so.
    ///
    /// # Errors
    /// [`EvictError`].
    pub fn clear_suspicion(&self, by: &By, node: &NodeName, reason: &str) -> Result<Option<String>, EvictError> {
        check_reason(reason)?;
        let record = self.store.node(node)?.ok_or_else(|| EvictError::Unknown(node.clone()))?;
        let Some(why) = record.suspect else { return Ok(None) };
        let event = Event::new("suspicion-cleared", by).with("node", node).with("why", &why).with("reason", reason);
        self.change_node(node, Some(event), |record| record.suspect = None)?;
        tracing::warn!(%node, why, reason, "suspect no longer");
        Ok(Some(why))
    }

    /// The leaf of this serial number is worth nothing any more; false if so before.
    ///
    /// # Errors
    /// [`EvictError`].
    pub fn revoke_serial(&self, by: &By, serial: &Serial, reason: &str) -> Result<bool, EvictError> {
        // Nodes keep the ledgers of what they issue; no leaf outlives the intermediate that issued it.
        let last = self.store.nodes()?.into_iter().map(|(_, record)| record.not_after).max();
        let until = last.unwrap_or_else(|| self.node_validity(self.clock.unix()).until);
        Ok(self.quarantine.revoke_serial(by, serial, until, reason)?)
    }

    /// Changes a node's record, whoever else does at this moment; `None`: it has none.
    fn change_node(
        &self,
        node: &NodeName,
        event: Option<Event>,
        edit: impl Fn(&mut NodeRecord),
    ) -> Result<Option<NodeRecord>, StoreError> {
        loop {
            let Some(seen) = self.store.node(node)? else { return Ok(None) };
            let mut new = seen.clone();
            edit(&mut new);
            if new == seen {
                return Ok(Some(new));
            }
            let mut change = self.store.change();
            change.node(node, Some(&seen), &new)?;
            event.iter().cloned().for_each(|event| change.note(event));
            if change.commit()?.is_some() {
                return Ok(Some(new));
            }
        }
    }

    fn seen(&self, node: &NodeName, record: NodeRecord, roots: u64, now: i64) -> Result<(), MembershipRefusal> {
        // It cannot know of more than it was told.
        let roots = roots.min(self.rotation.now().record().sequence);
        if now.saturating_sub(record.last_seen) >= SEEN_EVERY || record.roots != roots {
            self.change_node(node, None, |record| (record.last_seen, record.roots) = (now, roots))?;
        }
        Ok(())
    }

    fn came_by(&self, peer: &PeerSvid) -> Result<CameBy, MembershipRefusal> {
        let (number, root) = self.store.entry(peer.serial())?.map_or((None, None), |entry| (entry.number, entry.root));
        Ok(CameBy { number: number.unwrap_or(0), root: root.unwrap_or(1) })
    }

    fn not_banned(&self, application: &Application) -> Result<(), MembershipRefusal> {
        let Application { node, bios_uuid, machine_id, .. } = application;
        match self.quarantine.record()?.ban_of(node, bios_uuid, machine_id) {
            Some(banned) => Err(MembershipRefusal::Banned(node.clone(), banned.clone())),
            None => Ok(()),
        }
    }

    /// A token for a workload that this member may issue, by this moment's key. `peer` is what its connection proved.
    ///
    /// # Errors
    /// The named refusal.
    pub fn sign_jwt(&self, peer: &PeerSvid, order: &JwtOrder) -> Result<String, MembershipRefusal> {
        self.check_able()?;
        let now = self.clock.unix();
        let (node, record) = self.current(peer, now)?;
        check_audiences(&order.audiences).map_err(|e| MembershipRefusal::BadRequest(e.to_string()))?;
        if !record.grant.allows(&order.workload) {
            return Err(MembershipRefusal::NotGranted(node, order.workload.clone()));
        }
        self.check_settled()?;
        let mesh = self.quarantine.now();
        if mesh.revoked.workload(&order.workload).is_some() {
            return Err(MembershipRefusal::WorkloadRevoked(order.workload.clone()));
        }
        if let Some(digest) = order.digests.iter().find(|digest| mesh.quarantine.contains(digest)) {
            return Err(MembershipRefusal::Quarantined(*digest));
        }
        let (_, signer) = self.rotation.active()?;
        let token = jwt::sign(signer.key.tokens(), &self.trust_domain, order, now)
            .map_err(|e| MembershipRefusal::BadRequest(e.to_string()))?;
        let event = Event::new("jwt-signed", &By::Node(node)).with("to", &order.workload);
        let event =
            event.with("audiences", order.audiences.join(" ")).with("not-after", now.saturating_add(jwt::JWT_TTL));
        let mut change = self.store.change();
        change.note(event);
        change.commit()?;
        Ok(token)
    }

    /// The keys by which such tokens are checked. `peer` is what its connection proved.
    ///
    /// # Errors
    /// The named refusal.
    pub fn jwt_keys(&self, peer: &PeerSvid) -> Result<Vec<JwtKey>, MembershipRefusal> {
        let now = self.clock.unix();
        self.current(peer, now)?;
        let issuers = self.rotation.fresh()?;
        let mut keys = Vec::new();
        for signer in issuers.trusted().filter_map(|issuer| issuer.signer.as_ref()) {
            let of_root = jwt::published(signer.key.tokens(), &self.trust_domain, now);
            keys.extend(of_root.map_err(|e| MembershipRefusal::BadRequest(e.to_string()))?);
        }
        Ok(keys)
    }

    /// Every member, by name.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn nodes(&self) -> Result<Vec<(NodeName, NodeRecord)>, StoreError> {
        self.store.nodes()
    }

    /// The authority's own SVID for its server, replaced when half of its life is over.
    ///
    /// # Errors
    /// [`OwnSvidError`], once the one in use has expired as well.
    pub fn own_svid(&self) -> Result<Arc<CertifiedKey>, OwnSvidError> {
        let now = self.clock.unix();
        let root = self.rotation.now().presiding(now).number;
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let valid = |own: &&OwnSvid| own.validity.covers(now);
        if let Some(current) = own.as_ref().filter(valid).filter(|o| o.root == root && now < o.validity.half()) {
            return Ok(current.certified.clone());
        }
        match (self.issue_own(now), own.as_ref().filter(valid)) {
            (Ok(fresh), _) => Ok(own.insert(fresh).certified.clone()),
            (Err(e), Some(old)) => {
                tracing::warn!(error = %e, "own SVID not replaced yet");
                Ok(old.certified.clone())
            }
            (Err(e), None) => Err(e),
        }
    }

    fn issue_own(&self, now: i64) -> Result<OwnSvid, OwnSvidError> {
        let key = Key::generate()?;
        let public = PublicKey::of_csr(&csr::request(&key)?)?;
        let Presiding { number: root, signer, .. } = self.rotation.presiding()?;
        let validity = signer.validity.within(now, OWN_TTL);
        let order = Order { trust_domain: self.trust_domain.clone(), holder: Holder::Authority, validity };
        let issued = signer.issue(&order, &public, None, self.store.as_ref(), now)?;
        let chain = std::iter::once(issued.der().clone()).chain(signer.shown_with()).collect();
        let certified = Arc::new(CertifiedKey::new(chain, key.for_tls()?));
        Ok(OwnSvid { certified, validity, root })
    }

    /// The member that this peer is, unless another machine took its place.
    fn current(&self, peer: &PeerSvid, now: i64) -> Result<(NodeName, NodeRecord), MembershipRefusal> {
        let node = peer.id().node_name().filter(|_| peer.not_after() >= now).ok_or(MembershipRefusal::NoSvid)?;
        let record = self.store.node(&node)?.ok_or_else(|| MembershipRefusal::NotAMember(node.clone()))?;
        let shown = self.store.entry(peer.serial())?.ok_or_else(|| MembershipRefusal::NotAMember(node.clone()))?;
        if shown.membership != Some(record.membership) {
            return Err(MembershipRefusal::Replaced(node));
        }
        let root = shown.root.unwrap_or(1);
        if !self.rotation.fresh()?.trusted().any(|issuer| issuer.number == root) {
            return Err(MembershipRefusal::RootRetired(node));
        }
        if record.evicted.is_some() {
            let banned = self.quarantine.record()?.banned.contains_key(&node);
            return Err(match banned {
                true => MembershipRefusal::Banned(node.clone(), node),
                false => MembershipRefusal::Evicted(node),
            });
        }
        let record = self.activated(&node, record, shown.number.unwrap_or(0), now)?;
        Ok((node, record))
    }

    /// The first use of a renewed certificate makes it the active one. One that is older shows that two have the node's
    /// keys; but what was on its way when a newer one came is taken for a while.
    fn activated(
        &self,
        node: &NodeName,
        record: NodeRecord,
        number: u64,
        now: i64,
    ) -> Result<NodeRecord, MembershipRefusal> {
        if number < record.active && now.saturating_sub(record.activated) > HANDOVER {
            return Err(self.superseded(node, &record, number)?);
        }
        if number <= record.active {
            return Ok(record);
        }
        let activate = |record: &mut NodeRecord| {
            if number > record.active {
                (record.active, record.activated) = (number, now);
            }
        };
        let event = Event::new("activated", &By::Node(node.clone())).with("number", number);
        let changed = self.change_node(node, Some(event), activate)?;
        tracing::info!(%node, number, "its renewed certificate is in use");
        changed.ok_or_else(|| MembershipRefusal::NotAMember(node.clone()))
    }

    /// Two have the node's keys.
    fn superseded(
        &self,
        node: &NodeName,
        record: &NodeRecord,
        number: u64,
    ) -> Result<MembershipRefusal, MembershipRefusal> {
        let active = record.active;
        let why = format!("it showed its certificate {number} after its certificate {active} was in use");
        self.suspect(node, &why)?;
        let older = "a newer one was in use when an older one was shown";
        self.revoke_through(node, active.saturating_sub(1), record.not_after, older);
        Ok(MembershipRefusal::Superseded(node.clone()))
    }

    /// Whoever had the name before has it no longer, nor do its programs.
    fn replaced(&self, node: &NodeName, before: Option<&NodeRecord>, now: i64) {
        if let Some(before) = before.filter(|before| now <= before.not_after) {
            self.revoke_through(node, before.number, before.not_after, "it was admitted anew");
        }
    }

    /// What was issued to a node up to this number is worth nothing any more, nor what it issued by that.
    fn revoke_through(&self, node: &NodeName, through: u64, until: i64, reason: &str) {
        if let Err(e) = self.quarantine.revoke_node(&By::Daemon, node, through, until, false, reason) {
            tracing::error!(%node, through, error = %e, "what was issued to the node before is not revoked");
        }
    }

    /// The identifiers of its machine are those of the one that joined. Where there was none, there is none.
    fn same_machine(&self, node: &NodeName, record: &NodeRecord, now: &Machine) -> Result<(), MembershipRefusal> {
        let differs = match (now.bios_uuid == record.bios_uuid, now.machine_id == record.machine_id) {
            (true, true) => return Ok(()),
            (false, _) => "BIOS UUID",
            (true, false) => "machine ID",
        };
        self.suspect(node, &format!("its {differs} is not that of the machine that joined"))?;
        Err(MembershipRefusal::MachineChanged(node.clone(), differs))
    }

    fn suspect(&self, node: &NodeName, why: &str) -> Result<(), MembershipRefusal> {
        // Whoever has a copy can come as often as he likes; it is written down once.
        if self.store.node(node)?.is_some_and(|record| record.suspect.as_deref() == Some(why)) {
            return Ok(());
        }
        tracing::warn!(%node, why, "suspect");
        let event = Event::new("suspect", &By::Daemon).with("node", node).with("why", why);
        self.change_node(node, Some(event), |record| record.suspect = Some(why.to_owned()))?;
        Ok(())
    }

    /// The node under its name, after whoever had it.
    fn place(
        &self,
        application: &Application,
        seen: Option<&NodeRecord>,
        grant: Option<&Grant>,
        now: i64,
    ) -> NodeRecord {
        NodeRecord {
            membership: seen.map_or(1, |s| s.membership.saturating_add(1)),
            bios_uuid: application.bios_uuid.clone(),
            machine_id: application.machine_id.clone(),
            joined: now,
            last_renewed: now,
            not_after: self.node_validity(now).until.max(seen.map_or(0, |s| s.not_after)),
            number: seen.map_or(1, |s| s.number.saturating_add(1)),
            evicted: None,
            active: seen.map_or(1, |s| s.number.saturating_add(1)),
            activated: now,
            suspect: None,
            last_seen: now,
            // Without these it has no membership.
            roots: self.rotation.now().record().sequence,
            grant: grant.or_else(|| Some(&seen?.grant)).cloned().unwrap_or_default(),
        }
    }

    fn node_validity(&self, now: i64) -> Validity {
        self.rotation.now().active().certifies_within().within(now, self.intermediate_ttl)
    }

    fn certify(
        &self,
        node: &NodeName,
        keys: &NodeKeys,
        record: &NodeRecord,
        change: &mut Change<'_>,
        now: i64,
    ) -> Result<Certified, IssueError> {
        let (issuers, signer) = self.rotation.active()?;
        let validity = signer.validity.within(now, self.intermediate_ttl);
        let place = Place { membership: record.membership, number: record.number, root: issuers.active().number };
        let by = By::Node(node.clone());
        let mut enter = |holder, key| {
            let order = Order { trust_domain: self.trust_domain.clone(), holder, validity };
            signer.enter(&order, key, Some(place), &by, change, now)
        };
        let mandate = Mandate { number: record.number, grant: record.grant.clone() };
        Ok(Certified {
            intermediate: enter(Holder::Intermediate(node.clone(), mandate), &keys.signing)?,
            node_svid: enter(Holder::Node(node.clone()), &keys.authentication)?,
            issuing: signer.shown_with().into_iter().next(),
        })
    }

    fn membership(&self, certified: Certified, done: &Committed) -> Membership {
        let Certified { intermediate, node_svid, issuing } = certified;
        let roots = self.rotation.now().told();
        Membership {
            trust_domain: self.trust_domain.clone(),
            intermediate: intermediate.hand_out(done).der().clone(),
            node_svid: node_svid.hand_out(done).der().clone(),
            issuing,
            roots: roots.certificates,
            sequence: roots.sequence,
            mesh: MeshState::clone(&self.quarantine.now()),
        }
    }
}

/// A node's certificates, which nobody may have yet, and what stands between them and the root.
struct Certified {
    intermediate: Entered,
    node_svid: Entered,
    issuing: Option<CertificateDer<'static>>,
}

/// What happened to a token, which is told from others by the beginning of its digest.
fn token_event(act: &'static str, by: &By, id: [u8; 32], token: &TokenRecord) -> Event {
    let event = Event::new(act, by).with("token", hex::encode(id.get(..8).unwrap_or_default()));
    let event = event.with("for", token.node.as_ref().map_or("any", NodeName::as_str)).with("expires", token.expires);
    match &token.grant {
        Some(grant) => event.with("grant", grant),
        None => event,
    }
}

pub(crate) fn open_store(charter: &Charter, clock: &SharedClock) -> Result<Store, StoreError> {
    Store::open(open_engine(charter, clock)?, &charter.audit_mark(), clock.clone())
}

pub(crate) fn open_engine(charter: &Charter, clock: &SharedClock) -> Result<Arc<dyn Engine>, StoreError> {
    Ok(match &charter.shared {
        None => Arc::new(Embedded::open(&charter.state.join("store"))?),
        Some(place) => Arc::new(Etcd::open(place, clock)?),
    })
}

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
pub enum TokenCreationError {
    /// Out of range.
    #[error("a token lives 1 to {TOKEN_TTL_MAX} s, not {0}")]
    Ttl(u32),
    /// The random source.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The root that it carries.
    #[error(transparent)]
    Root(IssueError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Since when a grant counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    /// It was so before.
    Already,
    /// From the node's next renewal on.
    AtRenewal,
    /// At once: what the node issued before is revoked.
    AtOnce,
}

/// Why nothing was changed about a node.
#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    /// Nobody joined under this name.
    #[error("no node named {0} ever joined here; `bonafide node list` lists those that did")]
    Unknown(NodeName),
    /// It is banned.
    #[error("node {0} is banned; `bonafide node unban {0}` comes first")]
    Banned(NodeName),
    /// The list.
    #[error(transparent)]
    List(#[from] QuarantineError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why the authority has no SVID for its server.
#[derive(Debug, thiserror::Error)]
pub enum OwnSvidError {
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No request.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// No certificate.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// The two keys of a node; never the same one (X509-SVID.md §3.2: what signs does not authenticate).
struct NodeKeys {
    signing: PublicKey,
    authentication: PublicKey,
}

impl NodeKeys {
    fn of(signing_csr: &[u8], authentication_csr: &[u8]) -> Result<Self, MembershipRefusal> {
        let (signing, authentication) = (PublicKey::of_csr(signing_csr)?, PublicKey::of_csr(authentication_csr)?);
        if signing == authentication {
            return Err(MembershipRefusal::BadRequest("the two certificate requests are for the same key".into()));
        }
        Ok(Self { signing, authentication })
    }
}

fn check_token(
    token: &TokenRecord,
    application: &Application,
    keys: &NodeKeys,
    now: i64,
) -> Result<(), MembershipRefusal> {
    let again = token.admitted.as_ref().is_some_and(|admitted| admitted.application == keys.digest(application));
    if token.used.is_some() && !again {
        return Err(MembershipRefusal::TokenUsed);
    }
    if now > token.expires {
        return Err(MembershipRefusal::TokenExpired(now - token.expires));
    }
    if token.bios_uuid.as_ref().is_some_and(|uuid| *uuid != application.bios_uuid) {
        return Err(MembershipRefusal::TokenForAnotherMachine(application.bios_uuid.clone()));
    }
    match &token.node {
        Some(bound) if *bound != application.node => Err(MembershipRefusal::TokenForAnotherNode(bound.clone())),
        _ => Ok(()),
    }
}

impl NodeKeys {
    /// Tells this application from every other one.
    fn digest(&self, application: &Application) -> Digest {
        let node = application.node.as_str().as_bytes();
        Digest::of(&[node, b"\0", self.signing.spki(), self.authentication.spki()].concat())
    }
}

fn check_machine(application: &Application) -> Result<(), MembershipRefusal> {
    let Application { bios_uuid, machine_id, .. } = application.clone();
    match (Machine { bios_uuid, machine_id }).is_plain() {
        true => Ok(()),
        false => Err(MembershipRefusal::BadRequest("a machine identifier is too long or not plain ASCII".into())),
    }
}
