//! The leaves this enforcer holds: ordered once however many flows wait, renewed while they are used.
//!
//! ```text
//!            first use               published              half-life + jitter, when used
//!  (nothing) ---------> [on order] ------------> [in use] ---------------------------> [in use, on order]
//!                           | refused: every waiter hears it; the next use orders again      |
//!                           +------------------------- expired, or other roots <-------------+
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::clock::SharedClock;
use bonafide_proto::refusal::AttestRefusal;
use bonafide_proto::revoked::Revoked;
use ring::rand::SecureRandom as _;
use tokio::sync::watch::{Receiver, Sender, channel};

use super::ask::{Daemon, unavailable};
use super::order::{Order, Subject};
use super::{NodeTrust, Quarantine, TrustInForce};
use crate::tunnel::Leaf;

/// The most leaves held at once. A host runs far fewer programs that talk.
const LEAVES_MAX: usize = 1024;
/// After a renewal that failed, this many seconds pass before the next attempt.
const RENEWAL_PAUSE: i64 = 10;

type Outcome = Result<Arc<Leaf>, AttestRefusal>;

/// All leaves, by what they stand for.
#[derive(Debug, Clone)]
pub(super) struct Leaves {
    slots: Arc<Mutex<HashMap<Subject, Slot>>>,
    daemon: Daemon,
    trust: TrustInForce,
    clock: SharedClock,
    barred: Receiver<Arc<Quarantine>>,
}

#[derive(Debug, Default)]
struct Slot {
    published: Option<Published>,
    on_order: Option<Receiver<Option<Outcome>>>,
    last_used: i64,
}

#[derive(Debug)]
struct Published {
    leaf: Arc<Leaf>,
    /// The trust it was checked against; under another one it is not known to be good.
    under: Arc<NodeTrust>,
    renew_at: i64,
}

/// What a look into the cache found.
enum Found {
    Ready(Arc<Leaf>),
    OnOrder(Receiver<Option<Outcome>>),
}

impl Leaves {
    pub(super) fn new(
        daemon: Daemon,
        trust: TrustInForce,
        barred: Receiver<Arc<Quarantine>>,
        clock: SharedClock,
    ) -> Self {
        Self { slots: Arc::default(), daemon, trust, clock, barred }
    }

    pub(super) async fn leaf(&self, order: Order) -> Outcome {
        let mut on_order = match self.find(order)? {
            Found::Ready(leaf) => return Ok(leaf),
            Found::OnOrder(outcome) => outcome,
        };
        match on_order.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(interrupted())),
            Err(_) => Err(interrupted()),
        }
    }

    fn find(&self, order: Order) -> Result<Found, AttestRefusal> {
        let (now, trust) = (self.clock.unix(), self.trust.borrow().clone());
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        make_room(&mut slots, &order.subject, now)?;
        let slot = slots.entry(order.subject.clone()).or_default();
        slot.last_used = now;
        let barred = self.barred.borrow().clone();
        let usable = slot.published.as_ref().filter(|p| p.usable(now, trust.as_ref(), &barred.revoked));
        Ok(match (usable, slot.running()) {
            (Some(p), Some(_)) => Found::Ready(Arc::clone(&p.leaf)),
            (Some(p), None) => {
                let leaf = Arc::clone(&p.leaf);
                if now >= p.renew_at {
                    slot.on_order = Some(self.place(order));
                }
                Found::Ready(leaf)
            }
            (None, Some(outcome)) => Found::OnOrder(outcome),
            (None, None) => {
                let outcome = self.place(order);
                slot.on_order = Some(outcome.clone());
                Found::OnOrder(outcome)
            }
        })
    }

    /// Orders in a task of its own: a flow that is given up does not take the order with it.
    fn place(&self, order: Order) -> Receiver<Option<Outcome>> {
        let (done, outcome) = channel(None);
        tokio::spawn(self.clone().fill(order, done));
        outcome
    }

    async fn fill(self, order: Order, done: Sender<Option<Outcome>>) {
        let filled = order.fill(&self.daemon, self.trust.clone()).await;
        let outcome = self.publish(&order.subject, filled);
        if let Err(refusal) = &outcome {
            tracing::warn!(subject = ?order.subject, %refusal, "no certificate");
        }
        done.send_replace(Some(outcome));
    }

    fn publish(&self, subject: &Subject, filled: Result<(Leaf, Arc<NodeTrust>), AttestRefusal>) -> Outcome {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.entry(subject.clone()).or_default();
        match filled {
            Ok((leaf, under)) => {
                let leaf = Arc::new(leaf);
                if leaf.svid().program().is_none_or(|program| subject.is_told_by(program)) {
                    slot.published = Some(Published { renew_at: renewal_time(&leaf), leaf: Arc::clone(&leaf), under });
                } else {
                    // Good for those who wait, and not kept for others.
                    slot.renew_later(self.clock.unix());
                }
                Ok(leaf)
            }
            Err(refusal) => {
                slot.renew_later(self.clock.unix());
                Err(refusal)
            }
        }
    }
}

impl Slot {
    fn renew_later(&mut self, now: i64) {
        if let Some(published) = &mut self.published {
            published.renew_at = now + RENEWAL_PAUSE;
        }
    }

    /// The order that is being filled, if one is.
    fn running(&self) -> Option<Receiver<Option<Outcome>>> {
        self.on_order.as_ref().filter(|o| o.borrow().is_none() && o.has_changed().is_ok()).cloned()
    }
}

impl Published {
    fn usable(&self, now: i64, trust: Option<&Arc<NodeTrust>>, revoked: &Revoked) -> bool {
        let svid = self.leaf.svid();
        let is_revoked = revoked.serial(svid.serial()).is_some()
            || svid.issuer().is_some_and(|issuer| revoked.issuer(issuer).is_some());
        !is_revoked && now < self.leaf.not_after() && trust.is_some_and(|t| Arc::ptr_eq(t, &self.under))
    }
}

/// Drops what has expired, then what was not used for longest, where a new subject would exceed the bound.
fn make_room(slots: &mut HashMap<Subject, Slot>, newcomer: &Subject, now: i64) -> Result<(), AttestRefusal> {
    if slots.len() < LEAVES_MAX || slots.contains_key(newcomer) {
        return Ok(());
    }
    slots.retain(|_, s| s.running().is_some() || s.published.as_ref().is_some_and(|p| now < p.leaf.not_after()));
    if slots.len() < LEAVES_MAX {
        return Ok(());
    }
    let idle = slots.iter().filter(|(_, s)| s.running().is_none());
    match idle.min_by_key(|(_, s)| s.last_used).map(|(subject, _)| subject.clone()) {
        Some(oldest) => drop(slots.remove(&oldest)),
        None => return Err(unavailable(format!("{LEAVES_MAX} certificates are on order already"))),
    }
    Ok(())
}

/// Half-life, and up to an eighth of the life later, so that programs started together do not renew together.
fn renewal_time(leaf: &Leaf) -> i64 {
    let spread = (leaf.not_after() - leaf.half_life()) / 4;
    let mut random = [0; 2];
    // Without random numbers they renew together, no more.
    let part = ring::rand::SystemRandom::new().fill(&mut random).map_or(0, |()| u16::from_be_bytes(random));
    leaf.half_life() + spread * i64::from(part) / i64::from(u16::MAX)
}

fn interrupted() -> AttestRefusal {
    unavailable("the order for the certificate was interrupted")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::testing::{LEAF_TTL, Mesh, T0};

    fn subject(uid: u32) -> Subject {
        Subject::of_uid(uid)
    }

    #[test]
    fn the_cache_is_bounded_and_forgets_what_was_not_used_for_longest() {
        let mesh = Mesh::new("example.org");
        let leaf = Arc::new(mesh.leaf("shop/web"));
        let under = Arc::new(NodeTrust { trust: mesh.trust(), node: "a".parse().unwrap() });
        let (_running, on_order) = channel(None);
        let mut slots = HashMap::new();
        for uid in 0..3000_u32 {
            make_room(&mut slots, &subject(uid), T0).unwrap();
            let published = Some(Published { leaf: Arc::clone(&leaf), under: Arc::clone(&under), renew_at: 0 });
            // Every tenth is on order, and must not be forgotten.
            let on_order = (uid % 10 == 0).then(|| on_order.clone());
            slots.insert(subject(uid), Slot { published, on_order, last_used: uid.into() });
            assert!(slots.len() <= LEAVES_MAX);
        }
        assert!(slots.contains_key(&subject(0)) && slots.contains_key(&subject(1990)), "on order");
        assert!(slots.contains_key(&subject(2999)) && slots.contains_key(&subject(2501)), "used of late");
        assert!(!slots.contains_key(&subject(1)) && !slots.contains_key(&subject(1001)), "not used for longest");

        make_room(&mut slots, &subject(3001), T0 + LEAF_TTL).unwrap();
        assert_eq!(slots.len(), 300, "what has expired goes first");
    }

    #[test]
    fn a_full_cache_of_orders_takes_no_more() {
        let (_running, on_order) = channel(None);
        let slot = || Slot { published: None, on_order: Some(on_order.clone()), last_used: 0 };
        let full = 0..u32::try_from(LEAVES_MAX).unwrap();
        let mut slots: HashMap<_, _> = full.map(|uid| (subject(uid), slot())).collect();
        assert!(make_room(&mut slots, &subject(5), 0).is_ok(), "one that is there already");
        assert!(make_room(&mut slots, &subject(9_999_999), 0).is_err());
    }
}
