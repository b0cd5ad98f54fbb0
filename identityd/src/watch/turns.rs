//! Whose process is looked at next: users take turns, so that whoever makes noise keeps only themselves waiting, and
//! whoever gave cause for a look comes before whoever is only looked at again. [`super::table`] sees to it that
//! nobody waits twice in one lane; that bounds it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use bonafide_proto::fingerprint::Execution;
use tokio::sync::Semaphore;

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
    waiting: Semaphore,
}

#[derive(Debug, Default)]
struct Lanes {
    patient: Users,
    urgent: Users,
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
        Self { lanes: Mutex::default(), waiting: Semaphore::new(0) }
    }

    /// This execution is to be looked at, on this user's account.
    pub(crate) fn put(&self, user: u32, execution: Execution, lane: Lane) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.of(lane).put(user, execution);
        self.waiting.add_permits(1);
    }

    /// The next one, of this lane if there is any, and of which lane it is.
    pub(crate) async fn next(&self, preferred: Lane) -> (Execution, Lane) {
        loop {
            // It is never closed.
            if let Ok(permit) = self.waiting.acquire().await {
                permit.forget();
            }
            if let Some(next) = self.take(preferred) {
                return next;
            }
        }
    }

    fn take(&self, preferred: Lane) -> Option<(Execution, Lane)> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let order =
            if preferred == Lane::Urgent { [Lane::Urgent, Lane::Patient] } else { [Lane::Patient, Lane::Urgent] };
        order.into_iter().find_map(|lane| Some((lanes.of(lane).take()?, lane)))
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
}

impl Users {
    fn put(&mut self, user: u32, execution: Execution) {
        let queue = self.queues.entry(user).or_default();
        queue.push_back(execution);
        if queue.len() == 1 {
            self.turn.push_back(user);
        }
    }

    fn take(&mut self) -> Option<Execution> {
        let user = self.turn.pop_front()?;
        let queue = self.queues.get_mut(&user)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&user);
        } else {
            self.turn.push_back(user);
        }
        next
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
            order.push(turns.next(preferred).await.0.pid);
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
}
