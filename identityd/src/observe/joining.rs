//! The two halves of a flow, joined so that one record names both ends. Pure; bounded; nobody waits long.
//!
//! Halves of connections meet when these begin: one end may stay half-open long after the other one is over. Where that
//! failed, and those of datagrams, meet when they are over.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use bonafide_proto::name::NodeName;
use bonafide_proto::observed::{Ending, ObservedFlow, Protocol, There};

use super::living::{Alive, Key, Living, key};

/// How long a half waits for the other one.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long another node's half is kept for one of ours that comes later.
const KEPT: Duration = Duration::from_secs(10);
/// Halves that wait, and halves that are kept.
const HALVES_MAX: usize = 1 << 14;

/// Another node's half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Theirs {
    /// Whose it is, as the authority knows it.
    pub(super) node: NodeName,
    pub(super) flow: ObservedFlow,
}

impl Borrow<ObservedFlow> for Theirs {
    fn borrow(&self) -> &ObservedFlow {
        &self.flow
    }
}

/// Halves without the other one.
#[derive(Debug)]
pub(super) struct Joining {
    node: Option<NodeName>,
    ours: HashMap<Key, (ObservedFlow, Instant)>,
    theirs: HashMap<Key, (Theirs, Instant)>,
    living: Living,
}

impl Joining {
    /// On this node.
    pub(super) fn new(node: Option<NodeName>) -> Self {
        Self { node, ours: HashMap::new(), theirs: HashMap::new(), living: Living::default() }
    }

    /// One of ours begins: what can be told now, which is that of the other end if it is over already.
    pub(super) fn begins(&mut self, flow: &ObservedFlow, now: Instant) -> Vec<ObservedFlow> {
        if flow.protocol != Protocol::Tcp {
            return Vec::new();
        }
        let over = take(&mut self.ours, flow);
        let there = match &over {
            Some(other) => Some((other.clone(), self.node.clone())),
            None => take(&mut self.theirs, flow).map(|theirs| (theirs.flow, Some(theirs.node))),
        };
        // While it was an attempt, it was another one's half.
        let before = self.living.end(&key(flow)).and_then(|alive| alive.there);
        let there = there.or(before.filter(|(other, _)| other.overlaps(flow)));
        self.living.begin(Alive { ours: flow.clone(), since: now, there });
        over.map(|other| joined(other, flow, self.node.as_ref())).into_iter().collect()
    }

    /// Whether the other end's node was told of it just now: it need not hear of it again.
    pub(super) fn has_told_of(&self, flow: &ObservedFlow, now: Instant) -> bool {
        let before = self.living.get(&key(flow));
        before.is_some_and(|alive| alive.is_told(flow) && now.saturating_duration_since(alive.since) < KEPT)
    }

    /// What lives is not heard of any more.
    pub(super) fn forget_living(&mut self) {
        self.living.clear();
    }

    /// One of ours is over: what can be told now.
    pub(super) fn ours(&mut self, flow: ObservedFlow, now: Instant) -> Vec<ObservedFlow> {
        let lived = self.living.end(&key(&flow)).filter(|alive| alive.ours.id == flow.id);
        if let Some((there, node)) = lived.and_then(|alive| alive.there) {
            return vec![joined(flow, &there, node.as_ref())];
        }
        // The other end is here, too, and goes on.
        if let Some(other) = self.living.other_of(&flow) {
            let whole = joined(flow.clone(), &other.ours, self.node.as_ref());
            other.there = Some((flow, self.node.clone()));
            return vec![whole];
        }
        if let Some(theirs) = take(&mut self.theirs, &flow) {
            return vec![joined(flow, &theirs.flow, Some(&theirs.node))];
        }
        if let Some(other) = take(&mut self.ours, &flow) {
            let node = self.node.as_ref();
            return vec![joined(other.clone(), &flow, node), joined(flow, &other, node)];
        }
        // A datagram that nobody reads has no other end.
        let alone = flow.protocol == Protocol::Udp && matches!(flow.ending, Ending::Refused | Ending::Unanswered);
        if alone || self.ours.len() >= HALVES_MAX {
            return vec![flow];
        }
        let before = self.ours.insert(key(&flow), (flow, now));
        before.map(|(before, _)| before).into_iter().collect()
    }

    /// Another node's: what can be told now.
    pub(super) fn theirs(&mut self, theirs: Theirs, now: Instant) -> Option<ObservedFlow> {
        if let Some(ours) = take(&mut self.ours, &theirs.flow) {
            return Some(joined(ours, &theirs.flow, Some(&theirs.node)));
        }
        if let Some(alive) = self.living.other_of(&theirs.flow) {
            // What was an attempt may be a connection by now, and another program's.
            let better = alive.there.as_ref().is_none_or(|(before, _)| before.ending == Ending::Unanswered);
            if better {
                alive.there = Some((theirs.flow, Some(theirs.node)));
            }
            return None;
        }
        if self.theirs.len() < HALVES_MAX {
            self.theirs.insert(key(&theirs.flow), (theirs, now));
        }
        None
    }

    /// Those of ours that have waited long enough.
    pub(super) fn alone(&mut self, now: Instant) -> Vec<ObservedFlow> {
        self.theirs.retain(|_, (_, since)| now.saturating_duration_since(*since) < KEPT);
        let late = |since: Instant| now.saturating_duration_since(since) >= PATIENCE;
        self.ours.extract_if(|_, (_, since)| late(*since)).map(|(_, (flow, _))| flow).collect()
    }
}

/// The other half of the same flow.
fn take<T: Borrow<ObservedFlow>>(from: &mut HashMap<Key, (T, Instant)>, other: &ObservedFlow) -> Option<T> {
    let key = (other.name(), !other.source);
    if !from.get(&key)?.0.borrow().overlaps(other) {
        return None;
    }
    from.remove(&key).map(|(flow, _)| flow)
}

/// Both call it by the source's name for it.
fn joined(mut half: ObservedFlow, other: &ObservedFlow, node: Option<&NodeName>) -> ObservedFlow {
    if !half.source {
        half.id.clone_from(&other.id);
    }
    half.there = Some(There { node: node.cloned(), attested: other.here.clone() });
    half
}

#[cfg(test)]
mod tests {
    use super::*;
    use bonafide_proto::observed::Protocol;
    use bonafide_proto::refusal::{AttestReason, AttestRefusal};

    fn flow(source: bool, ending: Ending, started_ns: i64) -> ObservedFlow {
        let (a, b) = ("10.0.0.1:4000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
        let (local, remote) = if source { (a, b) } else { (b, a) };
        ObservedFlow {
            id: if source { "aa" } else { "bb" }.to_owned(),
            protocol: Protocol::Tcp,
            source,
            local,
            remote,
            started_ns,
            ended_ns: started_ns + 1,
            sent: 0,
            received: 0,
            ending,
            here: Err(AttestRefusal::new(AttestReason::ProcessGone, if source { "source" } else { "destination" })),
            there: None,
        }
    }

    fn theirs(started_ns: i64) -> Theirs {
        Theirs { node: "b".parse().unwrap(), flow: flow(false, Ending::Closed, started_ns) }
    }

    fn there(flow: &ObservedFlow) -> String {
        flow.there.as_ref().unwrap().attested.as_ref().unwrap_err().detail.clone()
    }

    #[test]
    fn two_halves_of_one_host_name_each_other_whichever_comes_first() {
        for first in [true, false] {
            let mut joining = Joining::new(Some("a".parse().unwrap()));
            let now = Instant::now();
            assert!(joining.ours(flow(first, Ending::Closed, 7), now).is_empty());
            let both = joining.ours(flow(!first, Ending::Closed, 8), now);
            assert_eq!(both.len(), 2);
            for half in &both {
                assert_eq!(half.id, "aa");
                assert_eq!(there(half), if half.source { "destination" } else { "source" });
                assert_eq!(half.there.as_ref().unwrap().node, Some("a".parse().unwrap()));
            }
            assert!(joining.alone(now + PATIENCE).is_empty());
        }
    }

    #[test]
    fn another_node_s_half_is_waited_for_and_kept() {
        let now = Instant::now();
        let mut joining = Joining::new(None);
        assert!(joining.ours(flow(true, Ending::Closed, 7), now).is_empty());
        let whole = joining.theirs(theirs(9), now).unwrap();
        assert_eq!(there(&whole), "destination");
        assert_eq!(whole.there.unwrap().node, Some("b".parse().unwrap()));
        assert_eq!(joining.theirs(theirs(9), now), None);
        assert_eq!(there(&joining.ours(flow(true, Ending::Closed, 9), now)[0]), "destination");
    }

    #[test]
    fn a_connection_whose_other_end_lingers_names_it_however_late_that_closes() {
        let now = Instant::now();
        let (later, ended) = (now + Duration::from_secs(3600), 3_600_000_000_000);
        for source in [true, false] {
            let mut joining = Joining::new(None);
            assert!(joining.begins(&flow(source, Ending::Closed, 7), now).is_empty());
            assert!(joining.has_told_of(&flow(source, Ending::Closed, 7), now));
            let theirs = Theirs { node: "b".parse().unwrap(), flow: flow(!source, Ending::Closed, 9) };
            assert_eq!(joining.theirs(theirs, now), None);
            assert!(joining.alone(later).is_empty());
            let over = ObservedFlow { ended_ns: ended, ..flow(source, Ending::Closed, 7) };
            assert!(!joining.has_told_of(&over, later), "it was long ago");
            let whole = joining.ours(over, later);
            assert_eq!(there(&whole[0]), if source { "destination" } else { "source" });
            assert_eq!(whole[0].there.as_ref().unwrap().node, Some("b".parse().unwrap()));
            assert!(joining.alone(later + PATIENCE).is_empty());
        }
    }

    #[test]
    fn of_one_host_too_and_whatever_is_known_first() {
        let now = Instant::now();
        let later = now + Duration::from_secs(3600);
        let mut joining = Joining::new(Some("a".parse().unwrap()));
        for half in [true, false] {
            assert!(joining.begins(&flow(half, Ending::Closed, 7), now).is_empty());
        }
        assert_eq!(there(&joining.ours(flow(true, Ending::Closed, 7), now)[0]), "destination");
        assert_eq!(there(&joining.ours(flow(false, Ending::Closed, 7), later)[0]), "source");

        // Who uses it is found out when the client is gone already.
        assert!(joining.ours(flow(true, Ending::Closed, 7), now).is_empty());
        assert_eq!(there(&joining.begins(&flow(false, Ending::Closed, 7), now)[0]), "destination");
        assert_eq!(there(&joining.ours(flow(false, Ending::Closed, 7), later)[0]), "source");
        assert!(joining.alone(later).is_empty());
    }

    #[test]
    fn an_attempt_names_both_ends_and_so_does_the_connection_that_it_becomes() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let late = |source| flow(source, Ending::Unanswered, 7);
        let theirs = |flow| Theirs { node: "b".parse().unwrap(), flow };
        for source in [true, false] {
            let mut joining = Joining::new(None);
            assert!(joining.begins(&late(source), now).is_empty());
            assert_eq!(joining.theirs(theirs(late(!source)), now), None);
            let over = joining.ours(late(source), at(60));
            assert_eq!(there(&over[0]), if source { "destination" } else { "source" });

            assert!(joining.begins(&late(source), now).is_empty());
            assert!(!joining.has_told_of(&flow(source, Ending::Closed, 7), now), "the connection is news");
            assert_eq!(joining.theirs(theirs(late(!source)), now), None);
            let connected = ObservedFlow { id: "cc".to_owned(), ..flow(source, Ending::Closed, 8) };
            assert!(joining.begins(&connected, at(3)).is_empty());
            let kept = &joining.living.get(&key(&connected)).unwrap().there;
            assert!(kept.is_some(), "what was said of the attempt holds");
            let taker = AttestRefusal::new(AttestReason::ProcessGone, "taker");
            let other = ObservedFlow { here: Err(taker), ..flow(!source, Ending::Closed, 8) };
            assert_eq!(joining.theirs(theirs(other), at(4)), None);
            assert_eq!(there(&joining.ours(connected, at(60))[0]), "taker");
        }
    }

    #[test]
    fn nobody_waits_long_or_for_nothing() {
        let now = Instant::now();
        let mut joining = Joining::new(None);
        let datagrams = ObservedFlow { protocol: Protocol::Udp, ..flow(true, Ending::Refused, 7) };
        assert_eq!(joining.ours(datagrams, now).len(), 1);
        assert!(joining.ours(flow(true, Ending::Closed, 7), now).is_empty());
        assert!(joining.alone(now).is_empty());
        assert_eq!(joining.alone(now + PATIENCE).len(), 1);
    }

    #[test]
    fn a_port_that_is_used_again_is_another_flow() {
        let now = Instant::now();
        let mut joining = Joining::new(None);
        assert!(joining.ours(flow(true, Ending::Closed, 0), now).is_empty());
        let later = 10_000_000_000;
        assert_eq!(joining.theirs(theirs(later), now), None);
        let earlier = joining.ours(flow(true, Ending::Closed, later + 1), now);
        assert_eq!(there(&earlier[0]), "destination", "the half that was kept is the later one's");
        assert_eq!(joining.alone(now + PATIENCE).len(), 1);
    }
}
