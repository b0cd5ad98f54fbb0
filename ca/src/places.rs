//! Room for so many connections, so that strangers can hold no place that a node needs. Performs no I/O.
//!
//! ```text
//! accepted ─► a handshake's place ─┬─ showed a node SVID ─► a member's place
//!      (few per source, seconds)   └─ showed nothing ─────► a stranger's place
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Handshakes at once.
const HANDSHAKES: usize = 256;
/// Connections at once that showed no certificate: each is a node that joins, or nobody.
const STRANGERS: usize = 64;
/// Connections at once that showed a node SVID.
const MEMBERS: usize = 128;
/// Connections at once from one source. A node needs one.
const PER_SOURCE: usize = 8;

/// All places there are.
#[derive(Debug)]
pub(crate) struct Places {
    handshakes: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    members: Arc<Semaphore>,
    sources: Arc<Sources>,
}

/// A place for a handshake.
#[derive(Debug)]
pub(crate) struct Greeted {
    source: SourcePlace,
    _handshake: OwnedSemaphorePermit,
}

/// A place for a connection; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _source: SourcePlace,
    _room: OwnedSemaphorePermit,
}

impl Places {
    pub(crate) fn new() -> Self {
        Self {
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            members: Arc::new(Semaphore::new(MEMBERS)),
            sources: Arc::default(),
        }
    }

    /// Waits until there is room for a handshake.
    pub(crate) async fn for_handshake(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        self.handshakes.clone().acquire_owned().await
    }

    /// The place of a handshake with this peer; none if its source has as many as it gets.
    pub(crate) fn greet(&self, from: IpAddr, handshake: OwnedSemaphorePermit) -> Option<Greeted> {
        Some(Greeted { source: self.sources.take(source(from))?, _handshake: handshake })
    }

    /// The place after the handshake; none if all of its kind are taken.
    pub(crate) fn seat(&self, greeted: Greeted, is_member: bool) -> Option<Place> {
        let rooms = if is_member { &self.members } else { &self.strangers };
        let room = rooms.clone().try_acquire_owned().ok()?;
        Some(Place { _source: greeted.source, _room: room })
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 /64, of which every host has all addresses (RFC 7934).
fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// How many places each source has.
#[derive(Debug, Default)]
struct Sources(Mutex<BTreeMap<IpAddr, usize>>);

impl Sources {
    fn take(self: &Arc<Self>, source: IpAddr) -> Option<SourcePlace> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(source).or_default();
        if *count >= PER_SOURCE {
            return None;
        }
        *count += 1;
        Some(SourcePlace { source, of: self.clone() })
    }
}

/// One of its source's places.
#[derive(Debug)]
struct SourcePlace {
    source: IpAddr,
    of: Arc<Sources>,
}

impl Drop for SourcePlace {
    fn drop(&mut self) {
        let mut taken = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn greet(places: &Places, from: &str) -> Option<Greeted> {
        places.greet(from.parse().unwrap(), places.for_handshake().await.unwrap())
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
            assert!(places.sources.0.lock().unwrap().is_empty());
        }
    }

    #[tokio::test]
    async fn strangers_leave_room_for_members() {
        let places = Places::new();
        let mut held = Vec::new();
        for n in 0..STRANGERS {
            let greeted = greet(&places, &format!("10.0.0.{n}")).await.unwrap();
            held.push(places.seat(greeted, false).unwrap());
        }
        let late = greet(&places, "10.0.1.1").await.unwrap();
        assert!(places.seat(late, false).is_none());
        let member = greet(&places, "10.0.1.1").await.unwrap();
        assert!(places.seat(member, true).is_some());
        assert_eq!(places.handshakes.available_permits(), HANDSHAKES, "a seated one still holds its first place");
    }
}
