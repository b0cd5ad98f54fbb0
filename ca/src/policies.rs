//! The policy that the authority publishes: signed, numbered, durable before anybody is told, and told to all followers.
//!
//! Each version has a signing key of its own, which is forgotten as soon as it has signed: there is none to keep, and none
//! to steal.

mod signing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::NodeName;
use bonafide_proto::signed_policy::{AUTHOR_MAX, PolicyRefusal, SignedPolicy, TEXT_MAX};
use bonafide_proto::svid::TrustBundle;
use bonafide_proto::wire::authority as wire;
use prost::Message as _;
use tokio::sync::watch;

use crate::authority::Authority;
use crate::certify::{IssueError, Signer};
use crate::csr::CsrError;
use crate::daemon::ended;
use crate::followers::{Followers, Place};
use crate::key::{KeyError, RootKey};
use crate::store::{By, EARLIER_MAX, EarlierPolicy, Event, PolicyRecord, Store, StoreError, Unconfirmed};
pub(crate) use signing::Draft;

/// How far ahead of all that is known a version may be that the operator chooses: a mistyped one would leave no higher.
const AHEAD_MAX: u64 = 1_000_000;
/// How often the store is looked at, although it says when it changes.
const LOOK: Duration = Duration::from_secs(2);
/// The shortest time, and the longest, that a version may wait to be confirmed, in seconds.
pub(crate) const CONFIRM_MIN: u32 = 5;
const CONFIRM_MAX: u32 = 86_400;
/// The longest reason for which a node refused a policy, in bytes.
const WHY_MAX: usize = 1024;

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The author is no line of text.
    #[error("an author is one line of at most {AUTHOR_MAX} bytes, without control characters")]
    Author,
    /// The policy is too long.
    #[error("the policy has {0} bytes; at most {TEXT_MAX} can be published")]
    Text(usize),
    /// Nodes hold what this authority never published.
    #[error(
        "policy-behind: node {node} holds version {holds}, and this authority published {last} last, as if restored \
         from a backup; look at what is in force there, then publish with --version {next} or a higher one"
    )]
    Behind {
        /// The node that holds the highest.
        node: NodeName,
        /// Which it holds.
        holds: u64,
        /// The last that was published here.
        last: u64,
        /// The lowest that every node takes.
        next: u64,
    },
    /// Another one was published while this one was signed; which of them shall be in force is for people to say.
    #[error(
        "policy-meanwhile: version {version} by {author:?} was published at this moment; look at it with `bonafide \
         policy status`, and publish again if this one shall replace it"
    )]
    Meanwhile {
        /// The one that was.
        version: u64,
        /// Whose it is.
        author: String,
    },
    /// The version that the operator chose.
    #[error("version {asked} cannot be published: {lowest} to {highest} can")]
    Version {
        /// What was asked for.
        asked: u64,
        /// The lowest.
        lowest: u64,
        /// The highest.
        highest: u64,
    },
    /// How long it may stay unconfirmed.
    #[error("a version may stay unconfirmed for {CONFIRM_MIN} to {CONFIRM_MAX} seconds, not {0}")]
    ConfirmWithin(u32),
    /// Nothing was published before.
    #[error("there is no earlier version to go back to")]
    NoEarlier,
    /// Not kept, or never was.
    #[error("version {asked} is not kept; of the earlier ones these are: {kept}")]
    NotKept {
        /// What was asked for.
        asked: u64,
        /// Those that are.
        kept: String,
    },
    /// Nothing waits to be confirmed, or another version.
    #[error("version {asked} does not wait to be confirmed: version {published} was published last, and {how}")]
    NotWaiting {
        /// What was asked for.
        asked: u64,
        /// The last.
        published: u64,
        /// Whether that one waits.
        how: &'static str,
    },
    /// No certificate for the signer.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// No key for the signer.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No request for its certificate.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// What was signed is not what any node would take.
    #[error("the policy that was signed is refused by its own verifier: {0}")]
    Refused(#[from] PolicyRefusal),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A policy as the operator hands it in.
#[derive(Debug, Clone)]
pub struct Publication {
    /// TOML; the operator's program has parsed it.
    pub text: String,
    /// For people; may be empty.
    pub author: String,
    /// Its number; `None`: the next.
    pub version: Option<u64>,
    /// Within so many seconds somebody has to confirm it, or the version before it comes back.
    pub confirm_within: Option<u32>,
}

impl Publication {
    /// Of this text, by this author, under the next number, for good.
    #[must_use]
    pub fn of(text: String, author: String) -> Self {
        Self { text, author, version: None, confirm_within: None }
    }
}

/// A policy that was published.
#[derive(Debug)]
pub struct Published {
    /// What is known of it.
    pub record: PolicyRecord,
    /// As it travels.
    pub signed: Vec<u8>,
}

/// What a node says about policies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyHeld {
    /// The highest version that it keeps; 0: none.
    pub kept: u64,
    /// SHA-256 of that as it travels.
    pub kept_signed: Option<Digest>,
    /// The version by which its programs are judged; 0: none, or a policy of its own.
    pub in_force: u64,
    /// What it refused last, and has not taken since: why.
    pub refused: Option<String>,
}

impl From<PolicyHeld> for wire::PolicyHeld {
    fn from(held: PolicyHeld) -> Self {
        Self {
            kept: held.kept,
            kept_signed: held.kept_signed.map(|digest| digest.0.to_vec()).unwrap_or_default(),
            in_force: held.in_force,
            refused: held.refused.unwrap_or_default(),
        }
    }
}

impl From<wire::PolicyHeld> for PolicyHeld {
    fn from(wire: wire::PolicyHeld) -> Self {
        Self {
            kept: wire.kept,
            kept_signed: Digest::try_from(wire.kept_signed.as_slice()).ok(),
            in_force: wire.in_force,
            refused: (!wire.refused.is_empty()).then(|| brief(wire.refused)),
        }
    }
}

/// The text of a policy that was verified when it was published.
pub(crate) fn policy_text(signed: &[u8]) -> Result<String, PolicyRefusal> {
    let unread = |_| PolicyRefusal::Malformed("it cannot be read".to_owned());
    bonafide_proto::wire::policy::SignedPolicy::decode(signed).map(|policy| policy.text).map_err(unread)
}

/// As much of a reason as is told on.
pub(crate) fn brief(mut why: String) -> String {
    why.truncate(why.floor_char_boundary(WHY_MAX));
    why
}

/// One that follows: what it is told, and the place where it says what it holds.
#[derive(Debug)]
pub struct PolicyFollower {
    /// The policy now, and after every publication.
    pub published: watch::Receiver<Option<Arc<Published>>>,
    /// Its place.
    pub place: Place<PolicyHeld>,
}

/// The published policy, and those that follow it.
#[derive(Debug)]
pub struct Policies {
    store: Arc<Store>,
    clock: SharedClock,
    told: watch::Sender<Option<Arc<Published>>>,
    followers: Arc<Followers<PolicyHeld>>,
}

impl Policies {
    /// The policy of this store.
    pub(crate) fn open(store: Arc<Store>, clock: SharedClock) -> Result<Self, StoreError> {
        let policies = Self { store, clock, told: watch::Sender::new(None), followers: Arc::default() };
        policies.look()?;
        Ok(policies)
    }

    /// Looks whether another authority published one, and tells those that follow.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub(crate) fn look(&self) -> Result<(), StoreError> {
        let record = self.store.policy()?;
        if self.told.borrow().as_ref().map(|told| &told.record) == record.as_ref() {
            return Ok(());
        }
        if let Some((record, signed)) = self.store.signed_policy()? {
            self.tell(Published { record, signed });
        }
        Ok(())
    }

    /// Changes after every publication, by whichever authority.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.store.watch_policy()
    }

    /// What was published last.
    #[must_use]
    pub fn now(&self) -> Option<Arc<Published>> {
        self.told.borrow().clone()
    }

    /// Those that follow.
    #[must_use]
    pub fn followers(&self) -> &Followers<PolicyHeld> {
        &self.followers
    }

    pub(crate) fn follow(&self, node: NodeName) -> PolicyFollower {
        PolicyFollower { published: self.told.subscribe(), place: self.followers.enter(node) }
    }

    /// Signs the next version, writes it down, and tells those that follow; provided that what was published last is `still`
    /// as the caller saw it.
    pub(crate) fn publish(
        &self,
        by: &By,
        publication: &Publication,
        root: &Signer<RootKey>,
        bundle: &TrustBundle,
        still: impl FnOnce(Option<&PolicyRecord>) -> bool,
    ) -> Result<PolicyRecord, PublishError> {
        let Publication { text, author, version, confirm_within } = publication;
        if author.len() > AUTHOR_MAX || author.chars().any(char::is_control) {
            return Err(PublishError::Author);
        }
        if text.len() > TEXT_MAX {
            return Err(PublishError::Text(text.len()));
        }
        let seen = self.store.policy()?;
        if !still(seen.as_ref()) {
            let (version, author) = seen.map_or_else(Default::default, |seen| (seen.version, seen.author));
            return Err(PublishError::Meanwhile { version, author });
        }
        let version = self.number(seen.as_ref(), *version)?;
        let created = self.clock.unix();
        let unconfirmed = unconfirmed(seen.as_ref(), *confirm_within, created)?;
        let draft = Draft { version, created, author, text };
        let signed = signing::sign(&draft, root, bundle, &self.store)?;
        let read = SignedPolicy::verify(&signed, bundle)?;
        debug_assert_eq!(read.version(), version);
        let record = PolicyRecord {
            version,
            created,
            author: author.clone(),
            text: Digest::of(text.as_bytes()),
            signed: Digest::of(&signed),
            size: signed.len() as u64,
            earlier: earlier(seen.as_ref()),
            unconfirmed,
        };
        if !self.put(by, seen.as_ref(), &record, &signed)? {
            let PolicyRecord { version, author, .. } = self.store.policy()?.unwrap_or(record);
            return Err(PublishError::Meanwhile { version, author });
        }
        self.tell(Published { record: record.clone(), signed });
        tracing::info!(version, author, text = %record.text, "policy published");
        Ok(record)
    }

    /// False if another one was published meanwhile.
    fn put(&self, by: &By, seen: Option<&PolicyRecord>, new: &PolicyRecord, signed: &[u8]) -> Result<bool, StoreError> {
        self.store.lay_policy(signed)?;
        let mut change = self.store.change();
        change.policy(seen, new)?;
        let event = Event::new("policy-published", by).with("version", new.version).with("author", &new.author);
        change.note(event.with("text", new.text));
        let won = change.commit()?.is_some();
        let forgotten = seen.and_then(|seen| seen.earlier.get(EARLIER_MAX - 1)).map(EarlierPolicy::laid);
        let over = if won { forgotten } else { Some(new.laid()) };
        if let Some(Err(e)) = over.map(|over| self.store.clear_policy(over)) {
            tracing::warn!(error = %e, "parts of a policy that is kept no longer stay in the store");
        }
        Ok(won)
    }

    /// The version that was published last stays for good.
    pub(crate) fn confirm(&self, by: &By, asked: u64) -> Result<PolicyRecord, PublishError> {
        let seen = self.store.policy()?.ok_or(PublishError::NoEarlier)?;
        if seen.version != asked || seen.unconfirmed.is_none() {
            let how = if seen.unconfirmed.is_some() { "waits" } else { "does not wait" };
            return Err(PublishError::NotWaiting { asked, published: seen.version, how });
        }
        let new = PolicyRecord { unconfirmed: None, ..seen.clone() };
        let mut change = self.store.change();
        change.policy(Some(&seen), &new)?;
        change.note(Event::new("policy-confirmed", by).with("version", asked));
        if change.commit()?.is_none() {
            return Err(PublishError::Meanwhile { version: seen.version, author: seen.author });
        }
        self.look()?;
        tracing::info!(version = asked, "policy confirmed");
        Ok(new)
    }

    /// The text of an earlier version, to be published again; without a number of the last one that is another.
    pub(crate) fn back_to(&self, asked: Option<u64>) -> Result<Publication, PublishError> {
        let record = self.store.policy()?.ok_or(PublishError::NoEarlier)?;
        let wanted = |earlier: &&EarlierPolicy| match asked {
            Some(asked) => earlier.version == asked,
            None => earlier.text != record.text,
        };
        let Some(earlier) = record.earlier.iter().find(wanted) else {
            let kept = record.earlier.iter().map(|earlier| earlier.version.to_string()).collect::<Vec<_>>().join(", ");
            return Err(asked.map_or(PublishError::NoEarlier, |asked| PublishError::NotKept { asked, kept }));
        };
        let author = format!("version {} of {}, again", earlier.version, earlier.author);
        let author = author.get(..author.floor_char_boundary(AUTHOR_MAX)).unwrap_or_default().to_owned();
        Ok(Publication::of(self.text_of(earlier)?, author))
    }

    /// The text of a version that was replaced.
    pub(crate) fn text_of(&self, earlier: &EarlierPolicy) -> Result<String, PublishError> {
        let gone =
            || PublishError::NotKept { asked: earlier.version, kept: "it was replaced at this moment".to_owned() };
        Ok(policy_text(&self.store.earlier_policy(earlier)?.ok_or_else(gone)?)?)
    }

    /// The version that was published last and the one to go back to by now, because nobody confirmed it.
    pub(crate) fn due(&self) -> Option<(u64, u64)> {
        let told = self.now()?;
        let Unconfirmed { until, back_to } = told.record.unconfirmed?;
        (self.clock.unix() >= until).then_some((told.record.version, back_to))
    }

    /// The number of the next version: above all that was published here, and all that is held.
    fn number(&self, seen: Option<&PolicyRecord>, asked: Option<u64>) -> Result<u64, PublishError> {
        let last = seen.map_or(0, |seen| seen.version);
        let held = highest(self.followers.all());
        let lowest = held.as_ref().map_or(0, |(_, holds)| *holds).max(last).saturating_add(1);
        let highest = lowest.saturating_add(AHEAD_MAX);
        match (asked, held) {
            (Some(asked), _) if (lowest..=highest).contains(&asked) => Ok(asked),
            (Some(asked), _) => Err(PublishError::Version { asked, lowest, highest }),
            (None, Some((node, holds))) if holds > last => {
                Err(PublishError::Behind { node, holds, last, next: lowest })
            }
            (None, _) => Ok(lowest),
        }
    }

    /// Two publications at once may come here in either order: the later one stays.
    fn tell(&self, published: Published) {
        let published = Arc::new(published);
        self.told.send_if_modified(|told| {
            let newer = |told: &Arc<Published>| {
                let (told, new) = (&told.record, &published.record);
                told.version < new.version || (told.version == new.version && told != new)
            };
            let later = told.as_ref().is_none_or(newer);
            if later {
                *told = Some(published);
            }
            later
        });
    }
}

/// Looks what other authorities published, until the daemon stops: as soon as the store says so, and now and then.
pub(crate) async fn keep_told(authority: &Arc<Authority>, stopped: watch::Receiver<()>) {
    let mut changes = authority.policies().changes();
    loop {
        let looking = authority.clone();
        if let Ok(Err(e)) = tokio::task::spawn_blocking(move || looking.policies().look()).await {
            tracing::error!(error = %e, "the store does not say which policy was published last");
        }
        let taking_back = authority.clone();
        if let Ok(Err(e)) = tokio::task::spawn_blocking(move || taking_back.take_back_unconfirmed()).await {
            tracing::error!(error = %e, "a policy that nobody confirmed cannot be taken back yet");
        }
        // It may have no sender any more; then there is still the clock.
        let changed = async {
            if changes.changed().await.is_err() {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(LOOK) => {}
            () = ended(stopped.clone()) => return,
        }
    }
}

/// Those before the next version.
fn earlier(seen: Option<&PolicyRecord>) -> Vec<EarlierPolicy> {
    let Some(seen) = seen else { return Vec::new() };
    std::iter::once(seen.replaced()).chain(seen.earlier.iter().cloned()).take(EARLIER_MAX).collect()
}

/// What is unconfirmed already leads back to what was confirmed last.
fn unconfirmed(
    seen: Option<&PolicyRecord>,
    within: Option<u32>,
    now: i64,
) -> Result<Option<Unconfirmed>, PublishError> {
    let Some(within) = within else { return Ok(None) };
    if !(CONFIRM_MIN..=CONFIRM_MAX).contains(&within) {
        return Err(PublishError::ConfirmWithin(within));
    }
    let seen = seen.ok_or(PublishError::NoEarlier)?;
    let back_to = seen.unconfirmed.map_or(seen.version, |unconfirmed| unconfirmed.back_to);
    Ok(Some(Unconfirmed { until: now.saturating_add(i64::from(within)), back_to }))
}

/// The highest version that a node holds, and which node.
fn highest(held: BTreeMap<NodeName, PolicyHeld>) -> Option<(NodeName, u64)> {
    let held = held.into_iter().map(|(node, held)| (node, held.kept.max(held.in_force)));
    held.max_by_key(|(_, version)| *version)
}
