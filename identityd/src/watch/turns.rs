//! Whose process is looked at next: users take turns, so that whoever makes noise keeps only themselves waiting, and
//! whoever gave cause for a look comes before whoever is only looked at again. [`super::table`] sees to it that
//! nobody waits twice in one lane; that bounds it. Nobody but root is looked at by more than a share of those who look:
//! whoever keeps them waiting does not keep all of them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use bonafide_proto::fingerprint::Execution;
use tokio::sync::Notify;

/// Looks at one user's executions at once.
const EACH_USER: usize = 2;

/// How soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// Nothing happened; it is time again.
    Patient,
    /// Something happened.
    Urgent,
}

/// Executions that wait for their look.
#[derive(Debug)]
pub(crate) struct Turns {
    lanes: Mutex<Lanes>,
    /// Somebody may be looked at who could not be before.
    more: Notify,
}

#[derive(Debug, Default)]
struct Lanes {
    patient: Users,
    urgent: Users,
    /// Looks under way.
    begun: HashMap<u32, usize>,
}

/// Whose turn it is; they have to be told when it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) struct Turn {
    /// Which execution.
    pub(crate) execution: Execution,
    /// Of which lane.
    pub(crate) lane: Lane,
    user: u32,
}

#[derive(Debug, Default)]
struct Users {
    queues: HashMap<u32, VecDeque<Execution>>,
    /// Users with a queue, in the order of their turns.
    turn: VecDeque<u32>,
}

impl Turns {
    /// Nobody waits.
    pub(crate) fn new() -> Self {
        Self { lanes: Mutex::default(), more: Notify::new() }
    }

    /// This execution is to be looked at, on this user's account.
    pub(crate) fn put(&self, user: u32, execution: Execution, lane: Lane) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.of(lane).put(user, execution);
        self.more.notify_one();
    }

    /// The next one, of this lane if there is any.
    pub(crate) async fn next(&self, preferred: Lane) -> Turn {
        loop {
            let more = self.more.notified();
            if let Some(next) = self.take(preferred) {
                // There may be one for somebody else, too.
                self.more.notify_one();
                return next;
            }
            more.await;
        }
    }

    fn take(&self, preferred: Lane) -> Option<Turn> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let order =
            if preferred == Lane::Urgent { [Lane::Urgent, Lane::Patient] } else { [Lane::Patient, Lane::Urgent] };
        order.into_iter().find_map(|lane| lanes.take(lane))
    }

    /// A turn is over.
    pub(crate) fn over(&self, turn: Turn) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(begun) = lanes.begun.get_mut(&turn.user) {
            *begun -= 1;
            if *begun == 0 {
                lanes.begun.remove(&turn.user);
            }
        }
        self.more.notify_one();
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn size(&self) -> usize {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        [&lanes.urgent, &lanes.patient].iter().flat_map(|users| users.queues.values()).map(VecDeque::len).sum()
    }
}

impl Lanes {
    fn of(&mut self, lane: Lane) -> &mut Users {
        match lane {
            Lane::Patient => &mut self.patient,
            Lane::Urgent => &mut self.urgent,
        }
    }

    fn take(&mut self, lane: Lane) -> Option<Turn> {
        let Self { patient, urgent, begun } = self;
        let users = if lane == Lane::Urgent { urgent } else { patient };
        let (user, execution) =
            users.take(|user| user == 0 || begun.get(&user).is_none_or(|begun| *begun < EACH_USER))?;
        *begun.entry(user).or_default() += 1;
        Some(Turn { execution, lane, user })
    }
}

impl Users {
    fn put(&mut self, user: u32, execution: Execution) {
        let queue = self.queues.entry(user).or_default();
        queue.push_back(execution);
        if queue.len() == 1 {
            self.turn.push_back(user);
        }
    }

    /// The next one whose turn it is, and may be.
    fn take(&mut self, may: impl Fn(u32) -> bool) -> Option<(u32, Execution)> {
        let user = self.turn.remove(self.turn.iter().position(|user| may(*user))?)?;
        let queue = self.queues.get_mut(&user)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&user);
        } else {
            self.turn.push_back(user);
        }
        Some((user, next?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(waiting: &[(u32, u32, Lane)]) -> Turns {
        let turns = Turns::new();
        for (user, pid, lane) in waiting {
            turns.put(*user, Execution { pid: *pid, start_ticks: 1, image: 2 }, *lane);
        }
        turns
    }

    async fn order(turns: &Turns, preferred: Lane) -> Vec<u32> {
        let mut order = Vec::new();
        while turns.size() > 0 {
            let turn = turns.next(preferred).await;
            order.push(turn.execution.pid);
            turns.over(turn);
        }
        order
    }

    #[tokio::test]
    async fn users_take_turns() {
        let turns = turns(&[(7, 1, Lane::Urgent), (7, 2, Lane::Urgent), (7, 3, Lane::Urgent), (8, 9, Lane::Urgent)]);
        assert_eq!(order(&turns, Lane::Urgent).await, [1, 9, 2, 3]);
        assert!(turns.lanes.lock().unwrap().urgent.queues.is_empty());
    }

    #[tokio::test]
    async fn who_gave_cause_comes_first_for_those_who_prefer_so() {
        let waiting = [(7, 1, Lane::Patient), (7, 2, Lane::Urgent), (8, 3, Lane::Patient)];
        assert_eq!(order(&turns(&waiting), Lane::Urgent).await, [2, 1, 3]);
        assert_eq!(order(&turns(&waiting), Lane::Patient).await, [1, 3, 2]);
    }

    #[tokio::test]
    async fn who_takes_long_leaves_others_to_look_at_others() {
        let turns = turns(&[(7, 1, Lane::Urgent), (7, 2, Lane::Urgent), (7, 3, Lane::Urgent), (7, 4, Lane::Patient)]);
        let (first, second) = (turns.next(Lane::Urgent).await, turns.next(Lane::Patient).await);
        assert_eq!((first.execution.pid, second.execution.pid), (1, 4));
        assert_eq!(turns.take(Lane::Urgent), None);
        turns.put(8, Execution { pid: 9, ..first.execution }, Lane::Urgent);
        assert_eq!(turns.next(Lane::Urgent).await.execution.pid, 9);
        for pid in 10..20 {
            turns.put(0, Execution { pid, ..first.execution }, Lane::Urgent);
            assert_eq!(turns.next(Lane::Patient).await.execution.pid, pid);
        }
        let next = turns.next(Lane::Urgent);
        turns.over(second);
        assert_eq!(next.await.execution.pid, 2);
    }
}
