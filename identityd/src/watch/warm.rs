//! New programs are hashed before their first connection, so that it need not wait; and what an interpreter was given is
//! read before it can hide that.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::fingerprint::Execution;
use tokio::sync::Notify;

use super::Eyes;
use crate::execs::Execs;
use crate::sys::executable::FileId;

/// Programs that may wait; beyond that the oldest is not hashed before somebody asks.
const WAITING_MAX: usize = 1024;
/// Files that were hashed already, as far as is kept in mind.
const SEEN_MAX: usize = 8192;

/// A file as it was when it was executed: identity, size, last change.
type Executed = (FileId, u64, i128);

/// Executions whose programs are to be hashed.
#[derive(Debug)]
pub(crate) struct Warm {
    execs: Arc<dyn Execs>,
    queue: Mutex<VecDeque<Execution>>,
    more: Notify,
}

impl Warm {
    /// None.
    pub(crate) fn new(execs: Arc<dyn Execs>) -> Self {
        Self { execs, queue: Mutex::default(), more: Notify::new() }
    }

    /// Somebody executed something.
    pub(crate) fn put(&self, execution: Execution) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= WAITING_MAX {
            queue.pop_front();
        }
        queue.push_back(execution);
        self.more.notify_one();
    }

    fn take(&self) -> Option<Execution> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    async fn next(&self) -> Execution {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            self.more.notified().await;
        }
    }

    fn executed(&self, execution: Execution) -> Option<Executed> {
        let at_exec = self.execs.executed(execution.pid, execution.start_ticks)?;
        Some((at_exec.file, at_exec.size, at_exec.modified))
    }
}

/// Looks at one program after the other. Who is gone by now, or may not be looked at, is none of our business here.
pub(crate) async fn run(eyes: Arc<Eyes>) {
    // Whether they are interpreters. Who executes the same file over and over costs one look at it.
    let mut seen: HashMap<Executed, bool> = HashMap::new();
    loop {
        let execution = eyes.warm.next().await;
        let Some(executed) = eyes.warm.executed(execution) else { continue };
        if seen.get(&executed) == Some(&false) {
            continue;
        }
        if seen.contains_key(&executed) {
            drop(eyes.witness.note(execution).await);
            continue;
        }
        if seen.len() >= SEEN_MAX {
            seen.clear();
        }
        if let Ok(witnessed) = eyes.witness.examine(&[execution]).await {
            seen.insert(executed, witnessed.iter().any(|one| one.interprets));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execs::NoExecs;

    #[tokio::test]
    async fn the_oldest_gives_way() {
        let warm = Warm::new(Arc::new(NoExecs));
        let execution = |pid| Execution { pid, start_ticks: 1, image: 2 };
        for pid in 0..=u32::try_from(WAITING_MAX).unwrap() {
            warm.put(execution(pid));
        }
        assert_eq!(warm.next().await, execution(1));
        assert_eq!(warm.queue.lock().unwrap().len(), WAITING_MAX - 1);
    }
}
