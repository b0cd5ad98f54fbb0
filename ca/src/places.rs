//! Room for so many connections, so that strangers can hold no place that a node needs. Performs no I/O.
//!
//! ```text
//! accepted ─► a handshake's place ─┬─ showed a node SVID ─────────────────► a member's place (few per node)
//!      (few per source, seconds)   └─ showed nothing ─► waits (seconds) ─► a stranger's place (few per source)
//! ```
//!
//! Who showed nothing waits in turn: when a mesh is started, all of its nodes join at once.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bonafide_proto::name::NodeName;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Handshakes at once.
const HANDSHAKES: usize = 256;
/// Connections at once that showed no certificate: each is a node that joins, or nobody.
const STRANGERS: usize = 64;
/// Connections at once that wait for a stranger's place.
const WAITING: usize = 8192;
/// How long they wait: less than a node waits for its answer.
const TURN: Duration = Duration::from_secs(15);
/// Connections at once that showed a node SVID: two by which each node follows and shares, and those that renew.
const MEMBERS: usize = 16_384;
/// Connections at once from one source that showed no certificate yet. A node needs one.
const PER_SOURCE: usize = 8;
/// Connections at once of one node. It needs three, and as many again while the other end of an old one is not gone.
const PER_NODE: usize = 6;

/// All places there are.
#[derive(Debug)]
pub(crate) struct Places {
    handshakes: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    members: Arc<Semaphore>,
    sources: Arc<Shares<IpAddr>>,
    nodes: Arc<Shares<NodeName>>,
}

/// A place for a handshake.
#[derive(Debug)]
pub(crate) struct Greeted {
    source: Share<IpAddr>,
    handshake: OwnedSemaphorePermit,
}

/// A place for a connection; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _share: Whose,
    _room: OwnedSemaphorePermit,
}

/// On whose account a place is.
#[derive(Debug)]
enum Whose {
    Stranger(#[expect(dead_code, reason = "held")] Share<IpAddr>),
    Member(#[expect(dead_code, reason = "held")] Share<NodeName>),
}

impl Places {
    pub(crate) fn new() -> Self {
        Self {
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            members: Arc::new(Semaphore::new(MEMBERS)),
            sources: Arc::new(Shares::of(PER_SOURCE)),
            nodes: Arc::new(Shares::of(PER_NODE)),
        }
    }

    /// Waits until there is room for a handshake.
    pub(crate) async fn for_handshake(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        self.handshakes.clone().acquire_owned().await
    }

    /// The place of a handshake with this peer; none if its source has as many as it gets.
    pub(crate) fn greet(&self, from: IpAddr, handshake: OwnedSemaphorePermit) -> Option<Greeted> {
        Some(Greeted { source: self.sources.take(source(from))?, handshake })
    }

    /// The place after the handshake; none if all of its kind are taken, for a stranger: for too long. A member's source
    /// is free again: hundreds of nodes may come from one.
    pub(crate) async fn seat(&self, greeted: Greeted, member: Option<NodeName>) -> Option<Place> {
        match member {
            Some(node) => {
                let share = Whose::Member(self.nodes.take(node)?);
                Some(Place { _share: share, _room: self.members.clone().try_acquire_owned().ok()? })
            }
            None => {
                let room = self.stranger(greeted.handshake).await?;
                Some(Place { _share: Whose::Stranger(greeted.source), _room: room })
            }
        }
    }

    /// While it waits, others shake hands.
    async fn stranger(&self, handshake: OwnedSemaphorePermit) -> Option<OwnedSemaphorePermit> {
        let _waits = self.waiting.try_acquire().ok()?;
        drop(handshake);
        tokio::time::timeout(TURN, self.strangers.clone().acquire_owned()).await.ok()?.ok()
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 /64, of which every host has all addresses (RFC 7934).
fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// How many places each has; no more than a few.
#[derive(Debug)]
struct Shares<K> {
    each: usize,
    taken: Mutex<BTreeMap<K, usize>>,
}

impl<K: Ord + Clone> Shares<K> {
    fn of(each: usize) -> Self {
        Self { each, taken: Mutex::default() }
    }

    fn take(self: &Arc<Self>, whose: K) -> Option<Share<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(whose.clone()).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        Some(Share { whose, of: self.clone() })
    }
}

/// One of somebody's places.
#[derive(Debug)]
struct Share<K: Ord> {
    whose: K,
    of: Arc<Shares<K>>,
}

impl<K: Ord> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.whose) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.whose)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn greet(places: &Places, from: &str) -> Option<Greeted> {
        places.greet(from.parse().unwrap(), places.for_handshake().await.unwrap())
    }

    fn node(name: &str) -> Option<NodeName> {
        Some(name.parse().unwrap())
    }

    #[tokio::test]
    async fn a_source_is_shared_by_any_number_of_nodes_and_a_node_gets_so_many_places() {
        let places = Places::new();
        let mut held = Vec::new();
        for n in 0..4 * PER_SOURCE {
            let greeted = greet(&places, "2001:db8::1").await.unwrap();
            held.push(places.seat(greeted, node(&format!("n{n}"))).await.unwrap());
        }
        for _ in 0..PER_NODE {
            let greeted = greet(&places, "10.0.0.1").await.unwrap();
            held.push(places.seat(greeted, node("a")).await.unwrap());
        }
        let more = greet(&places, "10.0.0.2").await.unwrap();
        assert!(places.seat(more, node("a")).await.is_none());
        let other = greet(&places, "10.0.0.2").await.unwrap();
        assert!(places.seat(other, node("b")).await.is_some());
        drop(held);
        assert!(places.nodes.taken.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_source_gets_so_many_and_has_them_again_when_they_end() {
        for (one, same, other) in
            [("10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::ffff:0:0:1", "2001:db8:0:1::1")]
        {
            let places = Places::new();
            let mut held = Vec::new();
            for _ in 0..PER_SOURCE {
                held.push(greet(&places, one).await.unwrap());
            }
            assert!(greet(&places, one).await.is_none() && greet(&places, same).await.is_none());
            assert!(greet(&places, other).await.is_some());
            held.pop();
            assert!(greet(&places, same).await.is_some());
            drop(held);
            assert!(places.sources.taken.lock().unwrap().is_empty());
        }
    }

    async fn full_of_strangers(places: &Places) -> Vec<Place> {
        let mut held = Vec::new();
        for n in 0..STRANGERS {
            let greeted = greet(places, &format!("10.0.0.{n}")).await.unwrap();
            held.push(places.seat(greeted, None).await.unwrap());
        }
        held
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_leave_room_for_members() {
        let places = Places::new();
        let _held = full_of_strangers(&places).await;
        let late = greet(&places, "10.0.1.1").await.unwrap();
        assert!(places.seat(late, None).await.is_none());
        let member = greet(&places, "10.0.1.1").await.unwrap();
        assert!(places.seat(member, node("a")).await.is_some());
        assert_eq!(places.handshakes.available_permits(), HANDSHAKES, "a seated one still holds its first place");
    }

    #[tokio::test]
    async fn strangers_wait_in_turn_and_keep_nobody_from_a_handshake() {
        let places = Places::new();
        let mut held = full_of_strangers(&places).await;
        let mut waiting = Vec::new();
        for n in 0..3 * HANDSHAKES {
            let greeted = greet(&places, &format!("10.1.{}.{}", n / 256, n % 256)).await.unwrap();
            let mut seat = Box::pin(places.seat(greeted, None));
            assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(seat.as_mut().poll(cx).is_pending())).await);
            waiting.push(seat);
        }
        assert_eq!(places.handshakes.available_permits(), HANDSHAKES);
        for seat in waiting {
            held.pop();
            held.push(seat.await.unwrap());
        }
        drop(held);
        assert_eq!((places.waiting.available_permits(), places.strangers.available_permits()), (WAITING, STRANGERS));
    }
}
