//! Halves of flows that nobody stands in: where both ends are in the mesh, each node is given the other's half, so that
//! one record names both programs.
//!
//! Nothing depends on it but records. Everything is bounded, each node by itself, and what finds no room is dropped.
//! A half is believed to be whose certificate brought it. That this node has such a flow is its own word: another member
//! that guesses the four numbers of a flow in time can have its own half put beside it, and see that flow's other one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bonafide_proto::convert::Malformed;
use bonafide_proto::name::NodeName;
use bonafide_proto::observed::{FlowName, ObservedFlow};
use tokio::sync::mpsc;

/// How long a half waits for the other one. A server's half of a flow of datagrams comes with the first of them.
const WINDOW: Duration = Duration::from_secs(10);
/// Halves of one node that wait.
const PER_NODE: usize = 1 << 14;
/// Halves that wait, and their bytes.
const HALVES_MAX: usize = 100_000;
const BYTES_MAX: usize = 64 << 20;
/// Halves that may be on their way to one node.
const ON_THE_WAY: usize = 1024;

/// A half of a flow, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Half {
    /// The node, by its certificate.
    pub node: NodeName,
    /// An [`ObservedFlow`], as it travels.
    pub flow: Vec<u8>,
}

/// Where halves meet.
#[derive(Debug, Default)]
pub struct Exchange(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    seats: HashMap<NodeName, (u64, mpsc::Sender<Half>)>,
    waiting: HashMap<(FlowName, bool), Waiting>,
    /// In the order in which they came.
    order: VecDeque<(Instant, (FlowName, bool))>,
    counts: HashMap<NodeName, usize>,
    bytes: usize,
}

#[derive(Debug)]
struct Waiting {
    half: Half,
    flow: ObservedFlow,
    since: Instant,
}

/// A node's place: here it is given the other halves of its own.
#[derive(Debug)]
pub struct Seat {
    exchange: Arc<Exchange>,
    node: NodeName,
    number: u64,
    left_out: u64,
    /// The others' halves.
    pub given: mpsc::Receiver<Half>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.exchange.inner();
        if inner.seats.get(&self.node).is_some_and(|(number, _)| *number == self.number) {
            inner.seats.remove(&self.node);
        }
    }
}

impl Seat {
    /// A half of this node's. What is none, or names another node, is left out: one flow must not cost all others of the
    /// node their other halves.
    pub fn offer(&mut self, flow: Vec<u8>) {
        let half = Half { node: self.node.clone(), flow };
        let Err(why) = self.exchange.offer(half, Instant::now()) else { return };
        self.left_out = self.left_out.saturating_add(1);
        if self.left_out.is_power_of_two() {
            tracing::warn!(node = %self.node, left_out = self.left_out, "half of a flow was not shared: {why}");
        }
    }
}

impl Exchange {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a node; it has one, the newest.
    #[must_use]
    pub fn enter(self: &Arc<Self>, node: NodeName) -> Seat {
        let (give, given) = mpsc::channel(ON_THE_WAY);
        let mut inner = self.inner();
        inner.next += 1;
        let number = inner.next;
        inner.seats.insert(node.clone(), (number, give));
        Seat { exchange: Arc::clone(self), node, number, left_out: 0, given }
    }

    fn offer(&self, half: Half, now: Instant) -> Result<(), Malformed> {
        let flow = ObservedFlow::from_bytes(&half.flow)?;
        if flow.here_node().is_some_and(|named| *named != half.node) {
            return Err(Malformed(format!("node {} shared another node's half", half.node)));
        }
        self.inner().offer(half, flow, now);
        Ok(())
    }
}

impl Inner {
    fn offer(&mut self, half: Half, flow: ObservedFlow, now: Instant) {
        self.forget_before(now.checked_sub(WINDOW));
        let (name, source) = (flow.name(), flow.source);
        let other = self.waiting.get(&(name, !source));
        if other.is_some_and(|other| other.half.node != half.node && other.flow.overlaps(&flow)) {
            if let Some(other) = self.take(&(name, !source)) {
                self.give(&other.node, half.clone());
                self.give(&half.node, other);
            }
            return;
        }
        self.keep((name, source), Waiting { half, flow, since: now });
    }

    fn keep(&mut self, key: (FlowName, bool), waiting: Waiting) {
        let count = self.counts.get(&waiting.half.node).copied().unwrap_or_default();
        let bytes = self.bytes.saturating_add(waiting.half.flow.len());
        // A half that waits is not put out of its place by another one of the same name.
        if count >= PER_NODE || self.waiting.len() >= HALVES_MAX || bytes > BYTES_MAX || self.waiting.contains_key(&key)
        {
            return;
        }
        self.counts.insert(waiting.half.node.clone(), count + 1);
        self.bytes = bytes;
        self.order.push_back((waiting.since, key));
        self.waiting.insert(key, waiting);
    }

    fn take(&mut self, key: &(FlowName, bool)) -> Option<Half> {
        let Waiting { half, .. } = self.waiting.remove(key)?;
        self.bytes = self.bytes.saturating_sub(half.flow.len());
        if let Some(count) = self.counts.get_mut(&half.node) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&half.node);
            }
        }
        Some(half)
    }

    fn forget_before(&mut self, then: Option<Instant>) {
        let Some(then) = then else { return };
        while let Some((since, key)) = self.order.front().copied() {
            if since >= then {
                return;
            }
            self.order.pop_front();
            // The name may be that of a later half by now.
            if self.waiting.get(&key).is_some_and(|waiting| waiting.since == since) {
                self.take(&key);
            }
        }
    }

    /// A node that does not take what it is given goes without.
    fn give(&self, to: &NodeName, half: Half) {
        if let Some((_, seat)) = self.seats.get(to) {
            let _ = seat.try_send(half);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bonafide_proto::observed::{Ending, HALF_MAX, Protocol};
    use bonafide_proto::refusal::{AttestReason, AttestRefusal};

    fn flow(source: bool, port: u16, started_ns: i64) -> Vec<u8> {
        let (a, b) = (format!("10.0.0.1:{port}").parse().unwrap(), "10.0.0.2:80".parse().unwrap());
        let (local, remote) = if source { (a, b) } else { (b, a) };
        let here = Err(AttestRefusal::new(AttestReason::ProcessGone, "it ended"));
        let (id, protocol, ending) = ("ab".to_owned(), Protocol::Tcp, Ending::Closed);
        let (sent, received, there, ended_ns) = (0, 0, None, started_ns);
        ObservedFlow { id, protocol, source, local, remote, started_ns, ended_ns, sent, received, ending, here, there }
            .to_bytes()
    }

    fn seats() -> (Arc<Exchange>, Seat, Seat) {
        let exchange = Arc::<Exchange>::default();
        let [a, b] = ["a", "b"].map(|name| exchange.enter(name.parse().unwrap()));
        (exchange, a, b)
    }

    #[test]
    fn each_node_is_given_the_other_s_half_and_nobody_anything_else() {
        let (_exchange, mut a, mut b) = seats();
        a.offer(flow(true, 1, 7));
        b.offer(flow(false, 2, 7));
        assert!(a.given.try_recv().is_err() && b.given.try_recv().is_err());
        b.offer(flow(false, 1, 7));
        let (at_a, at_b) = (a.given.try_recv().unwrap(), b.given.try_recv().unwrap());
        assert_eq!((at_a.node.as_str(), at_a.flow), ("b", flow(false, 1, 7)));
        assert_eq!((at_b.node.as_str(), at_b.flow), ("a", flow(true, 1, 7)));
        assert!(a.given.try_recv().is_err() && b.given.try_recv().is_err());
    }

    #[test]
    fn one_node_s_two_halves_and_other_times_do_not_meet() {
        let (_exchange, mut a, mut b) = seats();
        a.offer(flow(true, 1, 0));
        a.offer(flow(false, 1, 0));
        assert!(a.given.try_recv().is_err());
        a.offer(flow(true, 2, 0));
        b.offer(flow(false, 2, 60_000_000_000));
        assert!(a.given.try_recv().is_err());
    }

    #[test]
    fn what_is_no_half_is_left_out_and_the_next_one_is_shared() {
        let (_exchange, mut a, mut b) = seats();
        a.offer(vec![0xff; 9]);
        a.offer(vec![0; HALF_MAX + 1]);
        assert_eq!((a.left_out, b.left_out), (2, 0));
        a.offer(flow(true, 1, 7));
        b.offer(flow(false, 1, 7));
        assert!(a.given.try_recv().is_ok() && b.given.try_recv().is_ok());
    }

    #[test]
    fn halves_wait_for_a_while_and_a_node_has_so_many() {
        let (exchange, mut a, _b) = seats();
        let now = Instant::now();
        let half = |node: &str, port| Half { node: node.parse().unwrap(), flow: flow(node == "a", port, 7) };
        exchange.offer(half("a", 1), now).unwrap();
        exchange.offer(half("b", 1), now + WINDOW + Duration::from_millis(1)).unwrap();
        assert!(a.given.try_recv().is_err(), "it waited too long");
        let mut inner = exchange.inner();
        assert_eq!((inner.waiting.len(), inner.counts.len()), (1, 1));
        inner.counts.insert("a".parse().unwrap(), PER_NODE);
        drop(inner);
        exchange.offer(half("a", 3), now + WINDOW * 2).unwrap();
        assert_eq!(exchange.inner().waiting.len(), 1);
    }

    #[test]
    fn the_newest_place_of_a_node_is_its_place() {
        let (exchange, mut old, mut b) = seats();
        let mut new = exchange.enter("a".parse().unwrap());
        new.offer(flow(true, 1, 7));
        b.offer(flow(false, 1, 7));
        assert!(old.given.try_recv().is_err() && new.given.try_recv().is_ok());
        drop(old);
        new.offer(flow(true, 2, 7));
        b.offer(flow(false, 2, 7));
        assert!(new.given.try_recv().is_ok());
    }
}
