//! Attempts that are no connection yet: who waits for an answer here, and whose answer is waited for. Pure; bounded;
//! without room, an attempt is told of only when it is over.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bonafide_proto::fingerprint::Execution;

use super::layout::StepEvent;

/// Attempts that are remembered, by either end.
const ATTEMPTS_MAX: usize = 1 << 13;
/// When a handshake is late: the kernel says everything again after a second.
const LATE: Duration = Duration::from_secs(1);

/// Attempts of this host's programs, and those that came to it.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    asked: HashMap<u64, (StepEvent, Instant)>,
    /// Who listens.
    came: HashMap<u64, Option<Execution>>,
}

impl Attempts {
    /// A program here asks for a connection.
    pub(super) fn ask(&mut self, step: &StepEvent, now: Instant) {
        if self.asked.len() < ATTEMPTS_MAX {
            self.asked.insert(step.cookie, (*step, now));
        }
    }

    /// It has an answer, or needs none any more.
    pub(super) fn answered(&mut self, cookie: u64) {
        self.asked.remove(&cookie);
    }

    /// Those that should have been answered, each once.
    pub(super) fn late(&mut self, now: Instant) -> Vec<StepEvent> {
        let is_late = |since: Instant| now.saturating_duration_since(since) >= LATE;
        self.asked.extract_if(|_, (_, since)| is_late(*since)).map(|(_, (step, _))| step).collect()
    }

    /// One that came does not go on. `false`: it is not remembered.
    pub(super) fn came(&mut self, step: &StepEvent) -> bool {
        let room = self.came.len() < ATTEMPTS_MAX;
        if room {
            self.came.insert(step.cookie, step.who);
        }
        room
    }

    /// It is over. `false`: it was not remembered.
    pub(super) fn over(&mut self, cookie: u64) -> bool {
        self.came.remove(&cookie).is_some()
    }

    /// Only these wait still. Who listened for the others, which are connections by now?
    pub(super) fn keep(&mut self, waiting: impl Fn(u64) -> bool) -> Vec<Option<Execution>> {
        self.came.extract_if(|cookie, _| !waiting(*cookie)).map(|(_, who)| who).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::Step;
    use super::*;

    fn step(cookie: u64) -> StepEvent {
        let addr = "10.0.0.1:1".parse().unwrap();
        StepEvent {
            at_ns: 1,
            began_ns: 1,
            cookie,
            sent: 0,
            received: 0,
            who: Some(Execution { pid: u32::try_from(cookie).unwrap(), start_ticks: 1, image: 1 }),
            local: addr,
            remote: addr,
            step: Step::Opened,
            error: 0,
            datagrams: false,
            source: true,
            state: 7,
            established: false,
            talk: [0; 32],
        }
    }

    #[test]
    fn who_is_not_answered_in_time_is_told_of_once() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        attempts.ask(&step(1), now);
        attempts.ask(&step(2), now);
        attempts.answered(1);
        assert!(attempts.late(now).is_empty());
        assert_eq!(attempts.late(now + LATE), [step(2)]);
        assert!(attempts.late(now + LATE).is_empty());
    }

    #[test]
    fn what_became_a_connection_is_left() {
        let mut attempts = Attempts::default();
        for cookie in 1..=3 {
            assert!(attempts.came(&step(cookie)));
        }
        assert!(attempts.over(1) && !attempts.over(1));
        assert_eq!(attempts.keep(|cookie| cookie == 2), [step(3).who]);
        assert!(attempts.keep(|cookie| cookie == 2).is_empty());
    }

    #[test]
    fn there_is_an_end_to_what_is_remembered() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        for cookie in 0..u64::try_from(ATTEMPTS_MAX).unwrap() {
            attempts.ask(&step(cookie), now);
            assert!(attempts.came(&step(cookie)));
        }
        attempts.ask(&step(1 << 20), now);
        assert!(!attempts.came(&step(1 << 20)) && !attempts.over(1 << 20));
        assert_eq!(attempts.late(now + LATE).len(), ATTEMPTS_MAX);
    }
}
