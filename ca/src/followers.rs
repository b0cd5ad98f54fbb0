//! Which members follow what they are told, and what each says it has in force. Nobody is counted on trust in a
//! connection: one that was cut off looks open for a while, and a state on its way is not in force.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::name::NodeName;
use tokio::sync::watch;

use crate::mesh::{Held, MeshState};
use crate::roots::Roots;

/// Those that follow this moment.
#[derive(Debug, Default)]
pub struct Followers<H = Held>(watch::Sender<Places<H>>);

#[derive(Debug, Default)]
struct Places<H> {
    next: u64,
    nodes: BTreeMap<NodeName, (u64, H)>,
}

/// One that follows: what it is told, and the place where it says what it holds. It has one, the newest.
#[derive(Debug)]
pub struct Follower {
    /// The state now, and after every change.
    pub states: watch::Receiver<Arc<MeshState>>,
    /// The roots now, and after every change.
    pub roots: watch::Receiver<Arc<Roots>>,
    /// Its place.
    pub place: Place,
    /// Who it is.
    pub node: NodeName,
    /// The certificate that it showed.
    pub came_by: CameBy,
}

/// By which certificate a member came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CameBy {
    /// Which of the node's it is.
    pub number: u64,
    /// The number of the root that signed it.
    pub root: u64,
}

/// A follower's place, until this is dropped.
#[derive(Debug)]
pub struct Place<H = Held> {
    followers: Arc<Followers<H>>,
    node: NodeName,
    number: u64,
}

impl<H> Place<H> {
    /// The node says what it has in force.
    pub fn holds(&self, held: H) {
        self.followers.0.send_modify(|places| {
            if let Some((_, before)) = places.nodes.get_mut(&self.node).filter(|(number, _)| *number == self.number) {
                *before = held;
            }
        });
    }
}

impl<H> Drop for Place<H> {
    fn drop(&mut self) {
        self.followers.0.send_modify(|places| {
            if places.nodes.get(&self.node).is_some_and(|(number, _)| *number == self.number) {
                places.nodes.remove(&self.node);
            }
        });
    }
}

impl<H: Default + Clone> Followers<H> {
    /// A place for a node.
    #[must_use]
    pub(crate) fn enter(self: &Arc<Self>, node: NodeName) -> Place<H> {
        let mut number = 0;
        self.0.send_modify(|places| {
            places.next += 1;
            number = places.next;
            places.nodes.insert(node.clone(), (number, H::default()));
        });
        Place { followers: Arc::clone(self), node, number }
    }

    /// Those that have a place.
    #[must_use]
    pub fn present(&self) -> BTreeSet<NodeName> {
        self.0.borrow().nodes.keys().cloned().collect()
    }

    /// What each of them says.
    #[must_use]
    pub fn all(&self) -> BTreeMap<NodeName, H> {
        self.0.borrow().nodes.iter().map(|(node, (_, held))| (node.clone(), held.clone())).collect()
    }

    /// Which of these nodes do not say, within this time, that they hold what `holds` asks for.
    pub async fn without(
        &self,
        nodes: &BTreeSet<NodeName>,
        patience: Duration,
        holds: impl Fn(&H) -> bool,
    ) -> BTreeSet<NodeName> {
        let lacks = |places: &Places<H>, node: &NodeName| !places.nodes.get(node).is_some_and(|(_, held)| holds(held));
        let mut places = self.0.subscribe();
        // The one that lacked it last comes first: to look at all of them at each word of each would take their square.
        let mut order: VecDeque<_> = nodes.iter().collect();
        let all = places.wait_for(|places| match order.iter().position(|node| lacks(places, node)) {
            Some(lacking) => {
                order.rotate_left(lacking);
                false
            }
            None => true,
        });
        if tokio::time::timeout(patience, all).await.is_ok() {
            return BTreeSet::new();
        }
        let places = self.0.borrow();
        nodes.iter().filter(|node| lacks(&places, node)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<NodeName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn held(told: u64) -> Held {
        Held { told, holds: told, roots: 1 }
    }

    #[tokio::test]
    async fn who_follows_and_says_nothing_does_not_count() {
        let followers = Arc::<Followers>::default();
        let [a, _b] = ["a", "b"].map(|name| followers.enter(name.parse().unwrap()));
        a.holds(held(5));
        assert_eq!(followers.present(), names(&["a", "b"]));
        let of = names(&["a", "b", "c"]);
        let lacking = async |n| followers.without(&of, Duration::ZERO, |held| held.has(n, true)).await;
        assert_eq!(lacking(5).await, names(&["b", "c"]));
        assert_eq!(lacking(6).await, of);
    }

    #[tokio::test]
    async fn the_last_one_to_say_so_ends_the_wait() {
        let followers = Arc::<Followers>::default();
        let b = followers.enter("b".parse().unwrap());
        let of = names(&["b"]);
        let waiting = followers.without(&of, Duration::from_secs(600), |held| held.has(5, true));
        let ((), lacking) = tokio::join!(async { b.holds(held(5)) }, waiting);
        assert_eq!(lacking, BTreeSet::new());
    }

    #[tokio::test]
    async fn the_newest_place_of_a_node_is_its_place() {
        let followers = Arc::<Followers>::default();
        let old = followers.enter("a".parse().unwrap());
        let new = followers.enter("a".parse().unwrap());
        old.holds(held(5));
        let lacking = async || followers.without(&names(&["a"]), Duration::ZERO, |held| held.has(5, true)).await;
        assert_eq!(lacking().await, names(&["a"]));
        drop(old);
        new.holds(held(5));
        assert_eq!(lacking().await, names(&[]));
        drop(new);
        assert_eq!(followers.present(), names(&[]));
    }
}
