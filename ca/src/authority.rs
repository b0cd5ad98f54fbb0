//! The root role: holds the trust domain's root key, admits nodes by token, renews them, and lists them.

use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::grant::{Grant, Mandate};
use bonafide_proto::name::{NodeName, TrustDomain};
use bonafide_proto::svid::{PeerSvid, TrustBundle};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::certify::{Entered, IssueError, Place, Signer};
use crate::csr::{self, CsrError, PublicKey};
use crate::followers::{Follower, Followers};
use crate::founding::{self, Charter, OpenError};
use crate::key::{Key, KeyError};
use crate::mesh::MeshState;
use crate::order::{Holder, Order, Validity};
use crate::quarantine::Quarantine;
use crate::refusal::MembershipRefusal;
use crate::sharing::{Exchange, Seat};
use crate::state;
use crate::store::engine::Engine;
use crate::store::{
    Admitted, By, Change, Committed, Embedded, Etcd, Event, NodeRecord, Store, StoreError, TokenRecord,
};
use bonafide_proto::token::{JoinToken, Secret, TokenError};

/// Lifetime of the authority's own SVID, seconds; replaced at half of it.
const OWN_TTL: i64 = 3600;
/// The longest life of a join token, seconds.
pub const TOKEN_TTL_MAX: u32 = 600;
/// The longest machine identifier a node may state, in bytes.
const MACHINE_TEXT_MAX: usize = 128;
/// How long used and expired tokens and expired certificates are remembered, seconds.
const REMEMBER: i64 = 90 * 86_400;

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
    /// The roots.
    pub roots: Vec<CertificateDer<'static>>,
    /// What every member must know.
    pub mesh: MeshState,
}

/// The trust domain's authority.
#[derive(Debug)]
pub struct Authority {
    trust_domain: TrustDomain,
    signer: Signer,
    bundle: TrustBundle,
    store: Arc<Store>,
    clock: SharedClock,
    intermediate_ttl: i64,
    own: Mutex<Option<OwnSvid>>,
    quarantine: Quarantine,
    followers: Arc<Followers>,
    exchange: Arc<Exchange>,
    /// False while the store does not answer.
    able: watch::Sender<bool>,
}

#[derive(Debug)]
struct OwnSvid {
    certified: Arc<CertifiedKey>,
    validity: Validity,
}

impl Authority {
    /// Opens the authority of this directory, founding it in an empty one.
    ///
    /// # Errors
    /// Any [`OpenError`]; nothing that exists is changed then.
    pub fn open(charter: &Charter, clock: SharedClock) -> Result<Self, OpenError> {
        state::prepare(&charter.state)?;
        let store = Arc::new(open_store(charter, &clock)?);
        let signer = founding::root_signer(charter, store.as_ref(), clock.unix())?;
        store.forget_before(clock.unix().saturating_sub(REMEMBER))?;
        Ok(Self {
            trust_domain: charter.trust_domain.clone(),
            bundle: TrustBundle::new(charter.trust_domain.clone(), vec![signer.certificate.clone()])?,
            signer,
            quarantine: Quarantine::open(store.clone(), clock.clone())?,
            store,
            clock,
            intermediate_ttl: i64::from(charter.intermediate_ttl),
            own: Mutex::new(None),
            followers: Arc::default(),
            exchange: Arc::default(),
            able: watch::Sender::new(true),
        })
    }

    /// The trust domain and its roots.
    #[must_use]
    pub fn trust_bundle(&self) -> &TrustBundle {
        &self.bundle
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
        let TokenTerms { node, ttl, grant, by } = terms;
        if !(1..=TOKEN_TTL_MAX).contains(&ttl) {
            return Err(TokenCreationError::Ttl(ttl));
        }
        let expires = self.clock.unix().saturating_add(i64::from(ttl));
        let secret = Secret::generate()?;
        let record = TokenRecord { node, expires, used: None, admitted: None, grant };
        let mut change = self.store.change();
        change.token(&secret.id(), None, &record)?;
        change.note(token_event("token-created", &by, secret.id(), &record));
        match change.commit()? {
            Some(_) => Ok((JoinToken::new(secret, self.signer.certificate.clone()), expires)),
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
            let seen = self.store.node(&application.node)?;
            if let Some(admitted) = &token.admitted {
                return self.admitted_before(application, admitted, seen, &keys, now);
            }
            // Only the operator, by a token bound to the name, lets a machine take over a name in use.
            if seen.is_some() && token.node.is_none() {
                return Err(MembershipRefusal::NameTaken(application.node.clone()));
            }
            let record = self.place(application, seen.as_ref(), &token, now);
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
                return Ok(self.membership(certified, &done));
            }
        }
    }

    /// Certificates for keys that were admitted, unless another machine has taken the name since.
    fn admitted_before(
        &self,
        application: &Application,
        admitted: &Admitted,
        seen: Option<NodeRecord>,
        keys: &NodeKeys,
        now: i64,
    ) -> Result<Membership, MembershipRefusal> {
        let record = seen.filter(|record| record.membership == admitted.membership);
        let record = record.ok_or_else(|| MembershipRefusal::Replaced(application.node.clone()))?;
        self.recertify(&application.node, keys, &record, now)
    }

    /// The next certificates of a member.
    fn recertify(
        &self,
        node: &NodeName,
        keys: &NodeKeys,
        record: &NodeRecord,
        now: i64,
    ) -> Result<Membership, MembershipRefusal> {
        let not_after = self.node_validity(now).until.max(record.not_after);
        let number = record.number.saturating_add(1);
        let renewed = NodeRecord { last_renewed: now, not_after, number, ..record.clone() };
        let mut change = self.store.change();
        change.node(node, Some(record), &renewed)?;
        change.note(Event::new("renewed", &By::Node(node.clone())).with("number", number));
        let certified = self.certify(node, keys, &renewed, &mut change, now)?;
        match change.commit()? {
            Some(done) => Ok(self.membership(certified, &done)),
            // It joined or renewed at the same moment elsewhere; the node asks again.
            None => Err(MembershipRefusal::BadRequest("the node is being changed at this moment; try again".into())),
        }
    }

    /// Renews a member's certificates. `peer` is what its connection proved.
    ///
    /// # Errors
    /// The named refusal.
    pub fn renew(
        &self,
        peer: &PeerSvid,
        signing_csr: &[u8],
        authentication_csr: &[u8],
    ) -> Result<Membership, MembershipRefusal> {
        let now = self.clock.unix();
        let (node, record) = self.current(peer, now)?;
        let keys = NodeKeys::of(signing_csr, authentication_csr)?;
        self.recertify(&node, &keys, &record, now)
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

    /// From its next renewal on a node may issue this; false if it was so before.
    ///
    /// # Errors
    /// [`GrantNodeError`].
    pub fn grant(&self, by: &By, node: &NodeName, grant: &Grant) -> Result<bool, GrantNodeError> {
        loop {
            let seen = self.store.node(node)?.ok_or_else(|| GrantNodeError::Unknown(node.clone()))?;
            if seen.grant == *grant {
                return Ok(false);
            }
            let new = NodeRecord { grant: grant.clone(), ..seen.clone() };
            let mut change = self.store.change();
            change.node(node, Some(&seen), &new)?;
            change.note(Event::new("granted", by).with("node", node).with("grant", grant));
            if change.commit()?.is_some() {
                tracing::info!(%node, %grant, "granted");
                return Ok(true);
            }
        }
    }

    /// What every member must know, now and after every change. `peer` is what its connection proved.
    ///
    /// # Errors
    /// The named refusal.
    pub fn follow(&self, peer: &PeerSvid) -> Result<Follower, MembershipRefusal> {
        self.check_able()?;
        let (node, _) = self.current(peer, self.clock.unix())?;
        Ok(Follower { states: self.quarantine.follow(), place: self.followers.enter(node) })
    }

    /// Looks what changed in the store, and tells those that follow.
    ///
    /// # Errors
    /// Any [`StoreError`]; then nobody follows until it has succeeded.
    pub fn look(&self) -> Result<(), StoreError> {
        let looked = self.quarantine.look();
        self.able.send_if_modified(|able| std::mem::replace(able, looked.is_ok()) != looked.is_ok());
        looked
    }

    /// Done when it can no longer say what is so.
    pub async fn unable(&self) {
        // Its sender is the authority itself.
        let _ = self.able.subscribe().wait_for(|able| !able).await;
    }

    fn check_able(&self) -> Result<(), StoreError> {
        match *self.able.borrow() {
            true => Ok(()),
            false => Err(StoreError::Unavailable { path: "of the authority".into(), why: "for a while now".into() }),
        }
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
    pub fn share_flows(&self, peer: &PeerSvid) -> Result<Seat, MembershipRefusal> {
        self.check_able()?;
        let (node, _) = self.current(peer, self.clock.unix())?;
        Ok(self.exchange.enter(node))
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
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = own.as_ref().filter(|o| o.validity.covers(now) && now < o.validity.half()) {
            return Ok(current.certified.clone());
        }
        match (self.issue_own(now), own.as_ref().filter(|o| o.validity.covers(now))) {
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
        let validity = self.signer.validity.within(now, OWN_TTL);
        let order = Order { trust_domain: self.trust_domain.clone(), holder: Holder::Authority, validity };
        let issued = self.signer.issue(&order, &public, None, self.store.as_ref(), now)?;
        let certified = Arc::new(CertifiedKey::new(vec![issued.der().clone()], key.for_tls()?));
        Ok(OwnSvid { certified, validity })
    }

    /// The member that this peer is, unless another machine took its place.
    fn current(&self, peer: &PeerSvid, now: i64) -> Result<(NodeName, NodeRecord), MembershipRefusal> {
        let node = peer.id().node_name().filter(|_| peer.not_after() >= now).ok_or(MembershipRefusal::NoSvid)?;
        let record = self.store.node(&node)?.ok_or_else(|| MembershipRefusal::NotAMember(node.clone()))?;
        let shown = self.store.entry(peer.serial())?.ok_or_else(|| MembershipRefusal::NotAMember(node.clone()))?;
        if shown.membership != Some(record.membership) {
            return Err(MembershipRefusal::Replaced(node));
        }
        Ok((node, record))
    }

    /// The node under its name, after whoever had it.
    fn place(&self, application: &Application, seen: Option<&NodeRecord>, token: &TokenRecord, now: i64) -> NodeRecord {
        NodeRecord {
            membership: seen.map_or(1, |s| s.membership.saturating_add(1)),
            bios_uuid: application.bios_uuid.clone(),
            machine_id: application.machine_id.clone(),
            joined: now,
            last_renewed: now,
            not_after: self.node_validity(now).until.max(seen.map_or(0, |s| s.not_after)),
            number: seen.map_or(1, |s| s.number.saturating_add(1)),
            grant: token.grant.clone().or_else(|| Some(seen?.grant.clone())).unwrap_or_default(),
        }
    }

    fn node_validity(&self, now: i64) -> Validity {
        self.signer.validity.within(now, self.intermediate_ttl)
    }

    fn certify(
        &self,
        node: &NodeName,
        keys: &NodeKeys,
        record: &NodeRecord,
        change: &mut Change<'_>,
        now: i64,
    ) -> Result<[Entered; 2], IssueError> {
        let validity = self.node_validity(now);
        let place = Place { membership: record.membership, number: record.number };
        let by = By::Node(node.clone());
        let mut enter = |holder, key| {
            let order = Order { trust_domain: self.trust_domain.clone(), holder, validity };
            self.signer.enter(&order, key, Some(place), &by, change, now)
        };
        let mandate = Mandate { number: record.number, grant: record.grant.clone() };
        Ok([
            enter(Holder::Intermediate(node.clone(), mandate), &keys.signing)?,
            enter(Holder::Node(node.clone()), &keys.authentication)?,
        ])
    }

    fn membership(&self, [intermediate, node_svid]: [Entered; 2], done: &Committed) -> Membership {
        Membership {
            trust_domain: self.trust_domain.clone(),
            intermediate: intermediate.hand_out(done).der().clone(),
            node_svid: node_svid.hand_out(done).der().clone(),
            roots: self.bundle.roots().to_vec(),
            mesh: MeshState::clone(&self.quarantine.now()),
        }
    }
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
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a grant was not changed.
#[derive(Debug, thiserror::Error)]
pub enum GrantNodeError {
    /// Nobody joined under this name.
    #[error("no node named {0} ever joined; a new one is granted what its token says")]
    Unknown(NodeName),
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
    for text in [&application.bios_uuid, &application.machine_id] {
        if text.len() > MACHINE_TEXT_MAX || text.chars().any(|c| !c.is_ascii_graphic()) {
            return Err(MembershipRefusal::BadRequest("a machine identifier is too long or not plain ASCII".into()));
        }
    }
    Ok(())
}
