//! Containers: a process is in one if its runtime says so. The name of a cgroup is only the reason to ask.
//!
//! ```text
//! /proc/PID/cgroup ─► candidates ─► made by root? ─► could this runtime have made it? ─► does it hold this process?
//!   none: not in a container, nobody is asked      no: not believed, nobody is asked     bounded in time and number
//! ```

pub(crate) mod config;

pub(crate) mod bounded;
mod channel;
pub(crate) mod circuit;
pub(crate) mod containerd;
mod dial;
pub(crate) mod docker;
mod hear;
pub(crate) mod http;
pub(crate) mod image;
mod lookup;
mod remembered;
pub(crate) mod rootless;
mod runtime;
pub(crate) mod told;
pub(crate) mod wire;

use std::sync::Arc;

use bonafide_proto::container::Container;
use bonafide_proto::fingerprint::Evidence;
use tokio::sync::mpsc;

use self::circuit::AskError;
use self::config::RuntimeConfig;
use self::remembered::{Line, Remembered, Subject};
use self::runtime::{Answer, Question, Runtime};
use crate::parse::container_id::{Candidate, candidates};
use crate::sys::hierarchy::{Hierarchies, Owned};

/// The runtimes of this host, and what they confirmed.
#[derive(Debug)]
pub(crate) struct Containers {
    runtimes: Vec<Arc<Runtime>>,
    hierarchies: Hierarchies,
    remembered: Remembered,
}

/// What is known about one candidate.
enum Asked {
    /// The process is in it.
    In(Box<Container>, Line),
    /// It is in something that cannot be named.
    Nameless(String),
    /// It is not in it.
    Not(String),
    /// Nobody says.
    Unknown(String),
}

impl Containers {
    /// These runtimes; nothing is connected yet.
    pub(crate) fn new(runtimes: &[RuntimeConfig], hierarchies: Hierarchies) -> Self {
        let runtimes = runtimes.iter().map(|config| Arc::new(Runtime::new(config.clone()))).collect();
        Self { runtimes, hierarchies, remembered: Remembered::default() }
    }

    /// The container that this process is in, which started at that time (clock ticks since boot) and has this
    /// `/proc/PID/cgroup`. That it is still the same process afterwards is for the caller to check.
    pub(crate) async fn of(&self, pid: u32, start_ticks: u64, cgroup: &[u8]) -> Evidence<Container> {
        let namespaces: Vec<&str> = self.runtimes.iter().flat_map(|r| r.namespaces()).map(String::as_str).collect();
        let candidates = match candidates(cgroup, &namespaces) {
            Ok(candidates) if candidates.is_empty() => return Evidence::Absent("it is in no container".to_owned()),
            Ok(candidates) => candidates,
            Err(why) => return Evidence::Absent(why.to_owned()),
        };
        let subject = Subject { pid, start_ticks, cgroup };
        let lasts = |line: Line| self.runtimes.get(line.runtime).is_some_and(|r| r.generation() == line.generation);
        if let Some(container) = self.remembered.get(subject, lasts) {
            return Evidence::Known(container);
        }
        let mut nowhere = Evidence::Absent("it is in no container".to_owned());
        // The innermost first: what nobody confirms there may be a name that was made inside the next one.
        for candidate in candidates {
            match self.ask(pid, Arc::new(candidate)).await {
                Asked::In(container, line) => {
                    self.remembered.put(subject, (*container).clone(), line);
                    return Evidence::Known(*container);
                }
                Asked::Nameless(why) => return Evidence::Absent(why),
                Asked::Unknown(why) => return Evidence::Unavailable(why),
                Asked::Not(why) => nowhere = Evidence::Absent(why),
            }
        }
        nowhere
    }

    /// Asks whoever may have made this candidate, all at once; the first who confirms it is believed: no two runtimes
    /// have the same container.
    async fn ask(&self, pid: u32, candidate: Arc<Candidate>) -> Asked {
        let able = || self.runtimes.iter().enumerate().filter(|(_, runtime)| runtime.makes(&candidate.maker));
        if able().next().is_none() {
            return Asked::Unknown(format!("no runtime is configured that could know the container {}", candidate.id));
        }
        let (answers, mut answered) = mpsc::channel(self.runtimes.len().max(1));
        let mut refused = String::new();
        for (place, runtime) in able() {
            match self.may_be_of(runtime, pid, &candidate) {
                Ok(()) => {
                    let changes = self.remembered.changes(place);
                    ask_apart((place, changes), runtime, pid, &candidate, &answers);
                }
                Err(why) => refused = why,
            }
        }
        drop(answers);
        let mut best = Asked::Not(refused);
        while let Some((line, answer)) = answered.recv().await {
            let name = self.runtimes.get(line.runtime).map_or("", |runtime| runtime.name());
            best = match (answer, best) {
                (Ok(Answer::Holds(container)), _) => return Asked::In(container, line),
                (Ok(Answer::Nameless(why)), _) => return Asked::Nameless(why),
                (Err(AskError::NotHere), best) => best,
                (Err(e), _) => Asked::Unknown(format!("the runtime {name} cannot be asked for its container: {e}")),
                (Ok(Answer::Not(_)), best @ Asked::Unknown(_)) => best,
                (Ok(Answer::Not(why)), _) => Asked::Not(why),
            };
        }
        match best {
            Asked::Not(why) if why.is_empty() => {
                Asked::Unknown(format!("no runtime is here that could know the container {}", candidate.id))
            }
            best => best,
        }
    }

    /// Whether the cgroups are of this runtime's making: then only it puts processes into them.
    fn may_be_of(&self, runtime: &Runtime, pid: u32, candidate: &Candidate) -> Result<(), String> {
        for seat in &candidate.seats {
            match self.hierarchies.owned(seat, runtime.user()) {
                // Seen from inside another cgroup namespace, it is for the runtime alone to tell.
                Owned::AsExpected | Owned::Unseen(_) => {}
                Owned::By(user) => {
                    return Err(format!("its cgroup is called like a container's, but user {user} may fill it"));
                }
            }
        }
        if runtime.user() != 0 && !rootless::is_of(pid, runtime.user()) {
            return Err(format!("the runtime {} is asked only about its user's processes", runtime.name()));
        }
        Ok(())
    }
}

/// In a task of its own, which ends by itself: another runtime's answer is not waited with.
fn ask_apart(
    (place, changes): (usize, u64),
    runtime: &Arc<Runtime>,
    pid: u32,
    candidate: &Arc<Candidate>,
    answers: &mpsc::Sender<(Line, Result<Answer, AskError>)>,
) {
    let (runtime, answers) = (Arc::clone(runtime), answers.clone());
    let question = Question { pid, candidate: Arc::clone(candidate) };
    tokio::spawn(async move {
        let line = Line { runtime: place, generation: runtime.generation(), changes };
        let answer = runtime.ask(&question).await;
        // Nobody waits any more if another runtime was faster.
        let _ = answers.send((line, answer)).await;
    });
}
