//! What live flows depend on, and which of them are in doubt until identityd has been asked again.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

use bonafide_proto::fingerprint::Execution;

use super::question::{Program, Side};
use crate::identity::{AsOf, Process, Socket};

/// A side of a flow that is a program of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Stake {
    pub(super) flow: u64,
    pub(super) side: Side,
}

/// Stakes by what they depend on.
#[derive(Debug, Default)]
pub(super) struct Stakes {
    of_process: HashMap<Process, BTreeSet<Stake>>,
    of_socket: HashMap<Socket, BTreeSet<Stake>>,
}

impl Stakes {
    pub(super) fn insert(&mut self, stake: Stake, program: &Program) {
        for execution in &program.attestation.executions {
            self.of_process.entry((*execution).into()).or_default().insert(stake);
        }
        self.of_socket.entry(program.socket()).or_default().insert(stake);
    }

    pub(super) fn remove(&mut self, stake: Stake, program: &Program) {
        for execution in &program.attestation.executions {
            take(&mut self.of_process, &(*execution).into(), stake);
        }
        take(&mut self.of_socket, &program.socket(), stake);
    }

    pub(super) fn of_process(&self, process: Process) -> Vec<Stake> {
        self.of_process.get(&process).into_iter().flatten().copied().collect()
    }

    pub(super) fn of_socket(&self, socket: Socket) -> Vec<Stake> {
        self.of_socket.get(&socket).into_iter().flatten().copied().collect()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.of_process.is_empty() && self.of_socket.is_empty()
    }
}

fn take<K: Eq + Hash>(index: &mut HashMap<K, BTreeSet<Stake>>, key: &K, stake: Stake) {
    if let Some(stakes) = index.get_mut(key) {
        stakes.remove(&stake);
        if stakes.is_empty() {
            index.remove(key);
        }
    }
}

/// One question that settles the doubt about all stakes in the same executions.
#[derive(Debug, Clone)]
pub(crate) struct Doubt {
    /// Who they were.
    pub(crate) executions: Vec<Execution>,
    /// When it arose.
    pub(crate) raised: AsOf,
    /// Whether others may have the sockets: then it is asked who holds them, and not only who they were.
    pub(crate) of_holders: bool,
    pub(super) stakes: BTreeSet<Stake>,
    /// What raised it, in words.
    pub(super) why: String,
}

impl Doubt {
    /// One question for both.
    pub(crate) fn join(&mut self, other: Self) {
        self.stakes.extend(other.stakes);
        self.of_holders |= other.of_holders;
    }

    /// How many flows it is about.
    pub(crate) fn flows(&self) -> usize {
        self.stakes.len()
    }

    /// Questions about at most so many flows each.
    pub(crate) fn split(&self, most: usize) -> Vec<Self> {
        let stakes: Vec<Stake> = self.stakes.iter().copied().collect();
        let of = |some: &[Stake]| Self {
            executions: self.executions.clone(),
            stakes: some.iter().copied().collect(),
            why: self.why.clone(),
            ..*self
        };
        stakes.chunks(most).map(of).collect()
    }
}

/// Doubts about which nobody was asked yet, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    order: VecDeque<Vec<Execution>>,
    about: HashMap<Vec<Execution>, Doubt>,
}

impl Doubts {
    pub(super) fn raise(&mut self, doubt: Doubt) {
        match self.about.entry(doubt.executions.clone()) {
            Entry::Occupied(mut raised) => raised.get_mut().join(doubt),
            Entry::Vacant(none) => {
                self.order.push_back(doubt.executions.clone());
                none.insert(doubt);
            }
        }
    }

    pub(super) fn pop(&mut self) -> Option<Doubt> {
        self.about.remove(&self.order.pop_front()?)
    }
}
