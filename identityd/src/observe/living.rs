//! Our halves of connections that live, and what came of their other ends meanwhile. Pure; without room the oldest goes,
//! and its halves can meet only when both are over.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use bonafide_proto::name::NodeName;
use bonafide_proto::observed::{Ending, FlowName, ObservedFlow};

/// Connections that are remembered.
const LIVING_MAX: usize = 1 << 13;

/// Which half: the source's, or not.
pub(super) type Key = (FlowName, bool);

/// The name of a half.
pub(super) fn key(flow: &ObservedFlow) -> Key {
    (flow.name(), flow.source)
}

/// A connection that lives.
#[derive(Debug)]
pub(super) struct Alive {
    pub(super) ours: ObservedFlow,
    /// When its beginning was shared.
    pub(super) since: Instant,
    /// The other half, and whose it is; this node may have no name yet.
    pub(super) there: Option<(ObservedFlow, Option<NodeName>)>,
}

impl Alive {
    /// Whether this says nothing more than what was shared: what was an attempt may be a connection by now.
    pub(super) fn is_told(&self, flow: &ObservedFlow) -> bool {
        let was_attempt = self.ours.ending == Ending::Unanswered && flow.ending != Ending::Unanswered;
        self.ours.id == flow.id && !was_attempt
    }
}

/// Connections that live.
#[derive(Debug, Default)]
pub(super) struct Living {
    alive: HashMap<Key, (u64, Alive)>,
    /// In the order in which they came.
    order: BTreeMap<u64, Key>,
    next: u64,
}

impl Living {
    pub(super) fn begin(&mut self, alive: Alive) {
        let key = key(&alive.ours);
        self.end(&key);
        if self.alive.len() >= LIVING_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.alive.remove(&oldest);
        }
        self.next += 1;
        self.order.insert(self.next, key);
        self.alive.insert(key, (self.next, alive));
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Alive> {
        self.alive.get(key).map(|(_, alive)| alive)
    }

    pub(super) fn end(&mut self, key: &Key) -> Option<Alive> {
        let (number, alive) = self.alive.remove(key)?;
        self.order.remove(&number);
        Some(alive)
    }

    /// Ours, to the other half of the same connection.
    pub(super) fn other_of(&mut self, flow: &ObservedFlow) -> Option<&mut Alive> {
        let (_, alive) = self.alive.get_mut(&(flow.name(), !flow.source))?;
        alive.ours.overlaps(flow).then_some(alive)
    }

    /// Nothing is heard of them any more.
    pub(super) fn clear(&mut self) {
        self.alive.clear();
        self.order.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bonafide_proto::observed::Protocol;
    use bonafide_proto::refusal::{AttestReason, AttestRefusal};

    fn alive(number: u32) -> Alive {
        let [high, a, b, c] = number.to_be_bytes();
        let ours = ObservedFlow {
            id: "aa".to_owned(),
            protocol: Protocol::Tcp,
            source: true,
            local: ([10 + high, a, b, c], 4000).into(),
            remote: "10.0.0.2:80".parse().unwrap(),
            started_ns: 0,
            ended_ns: 0,
            sent: 0,
            received: 0,
            ending: Ending::Closed,
            here: Err(AttestRefusal::new(AttestReason::ProcessGone, "it ended")),
            there: None,
        };
        Alive { ours, since: Instant::now(), there: None }
    }

    #[test]
    fn without_room_the_oldest_goes() {
        let mut living = Living::default();
        let many = u32::try_from(LIVING_MAX).unwrap();
        (0..=many).for_each(|number| living.begin(alive(number)));
        assert!(living.get(&key(&alive(0).ours)).is_none());
        assert!(living.get(&key(&alive(1).ours)).is_some() && living.get(&key(&alive(many).ours)).is_some());
        for number in 0..=many {
            living.begin(alive(number));
            living.end(&key(&alive(number).ours));
        }
        assert!(living.order.len() == living.alive.len() && living.alive.len() < LIVING_MAX);
    }
}
