//! The sentry that works everywhere: it glances at every watched process every 50 ms.
//!
//! A glance costs some 40 µs and looking for its children some 20 µs. A round may take a tenth of the time until the
//! next one: up to about 80 processes are seen every 50 ms, 1,000 every 0.6 s; it says so when it slows down.
//!
//! Weaker than the kernel's own word: it does not see a process that executes another program and the first one again
//! between two rounds, nor what the grandchildren of a watched process execute whose own parent has ended, nor who
//! uses a socket; and what changes and changes back in between.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bonafide_proto::fingerprint::Execution;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::events::{Change, Event, Sentry};
use crate::sys::glance::{Child, Glance, Glimpse, ImageSign, children, glance};
use crate::sys::process::Process;

/// Between the beginnings of two rounds.
const INTERVAL: Duration = Duration::from_millis(50);
/// Of the time between two rounds, a round may take one in so many parts.
const SHARE: u32 = 10;
/// Events that may wait to be heard.
const WAITING_MAX: usize = 4096;
/// Descendants of one process that are looked at in a round.
const DESCENDANTS_MAX: usize = 1024;

/// Polls.
#[derive(Debug)]
pub(crate) struct ProcSentry {
    watched: Mutex<HashMap<Execution, Known>>,
}

/// What was seen of a process.
#[derive(Debug, Clone)]
struct Known {
    glance: Box<Glance>,
    /// Its descendants that were told to have executed something.
    told: HashSet<Execution>,
}

impl ProcSentry {
    /// Starts; it ends when nobody hears it any more.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start() -> io::Result<(Arc<Self>, mpsc::Receiver<Event>)> {
        let (to, events) = mpsc::channel(WAITING_MAX);
        let sentry = Arc::new(Self { watched: Mutex::default() });
        let rounds = Arc::clone(&sentry);
        std::thread::Builder::new().name("sentry".to_owned()).spawn(move || rounds.go(&mut Voice::new(to)))?;
        Ok((sentry, events))
    }

    fn go(&self, voice: &mut Voice) {
        let mut pace = Pace::default();
        while !voice.unheard() {
            let began = Instant::now();
            voice.tell_losses();
            for execution in self.executions() {
                self.look(execution, voice);
            }
            std::thread::sleep(pace.wait(began.elapsed()));
        }
    }

    fn executions(&self) -> Vec<Execution> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    fn look(&self, execution: Execution, voice: &mut Voice) {
        let Some(known) = self.known(execution) else { return };
        let now = match glance(execution) {
            Ok(Glimpse::Lives(now)) => now,
            Ok(Glimpse::Headless) if !Process::has_ended(execution) => {
                return voice.tell(Event::Changed(execution, Change::Executable));
            }
            Ok(Glimpse::Ended | Glimpse::Headless) => {
                self.forget(execution);
                return voice.tell(Event::Ended(execution));
            }
            // What cannot be read now must be looked at with more patience.
            Err(_) => return voice.tell(Event::Changed(execution, Change::Executable)),
        };
        if now.image != known.glance.image {
            self.forget(execution);
            return voice.tell(Event::Executed { before: execution, now: 0, parent: 0 });
        }
        for change in changes(&known.glance, &now) {
            voice.tell(Event::Changed(execution, change));
        }
        let told = heirs(execution, now.image, &known.told, voice);
        self.learn(execution, Known { glance: now, told });
    }

    fn known(&self, execution: Execution) -> Option<Known> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).get(&execution).cloned()
    }

    /// Unless it was forgotten meanwhile.
    fn learn(&self, execution: Execution, seen: Known) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = watched.get_mut(&execution) {
            *known = seen;
        }
    }

    #[cfg(test)]
    pub(crate) fn size(&self) -> usize {
        self.executions().len()
    }
}

impl Sentry for ProcSentry {
    fn watch(&self, executions: &[Execution]) {
        for execution in executions {
            // What changes from here on differs from this glance.
            let Ok(Glimpse::Lives(glance)) = glance(*execution) else { continue };
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            watched.entry(*execution).or_insert_with(|| Known { glance, told: HashSet::new() });
        }
    }

    fn forget(&self, execution: Execution) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(&execution);
    }
}

fn changes(before: &Glance, now: &Glance) -> impl Iterator<Item = Change> + use<> {
    let all = [
        (before.owner != now.owner, Change::Owner),
        (before.cgroup != now.cgroup, Change::Cgroup),
        (before.signs.tracer != now.signs.tracer, Change::Tracer),
        (before.signs.code != now.signs.code, Change::Code),
    ];
    all.into_iter().filter(|(changed, _)| *changed).map(|(_, change)| change)
}

/// Tells of descendants that executed something else, each once; those that were told and live.
fn heirs(parent: Execution, image: ImageSign, told: &HashSet<Execution>, voice: &mut Voice) -> HashSet<Execution> {
    let mut still = HashSet::new();
    let mut parents = vec![parent.pid];
    let mut room = DESCENDANTS_MAX;
    while let Some(pid) = parents.pop() {
        for Child { execution, image: runs } in children(pid).unwrap_or_default() {
            if room == 0 {
                return still;
            }
            room -= 1;
            if runs == image {
                parents.push(execution.pid);
                continue;
            }
            if !told.contains(&execution) {
                voice.tell(Event::Executed { before: execution, now: 0, parent: parent.pid });
            }
            still.insert(execution);
        }
    }
    still
}

/// How long it rests between rounds.
#[derive(Debug, Default)]
struct Pace {
    slow: bool,
}

impl Pace {
    fn wait(&mut self, round: Duration) -> Duration {
        let needed = round.saturating_mul(SHARE);
        // Said once for each time: around the limit it would be said all the time.
        if needed > INTERVAL * 2 && !self.slow {
            self.slow = true;
            tracing::warn!(every = ?needed, "many processes are watched: changes are seen later");
        } else if needed <= INTERVAL && self.slow {
            self.slow = false;
            tracing::info!(every = ?INTERVAL, "changes are seen in time again");
        }
        needed.max(INTERVAL).saturating_sub(round)
    }
}

/// Tells events, and how many were lost.
#[derive(Debug)]
struct Voice {
    to: mpsc::Sender<Event>,
    lost: u64,
}

impl Voice {
    fn new(to: mpsc::Sender<Event>) -> Self {
        Self { to, lost: 0 }
    }

    fn unheard(&self) -> bool {
        self.to.is_closed()
    }

    fn tell_losses(&mut self) {
        if self.lost > 0 && self.to.try_send(Event::Lost(self.lost)).is_ok() {
            self.lost = 0;
        }
    }

    fn tell(&mut self, event: Event) {
        self.tell_losses();
        if let Err(TrySendError::Full(_)) = self.to.try_send(event) {
            self.lost += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child as Process, Command, Stdio};

    use super::*;

    /// A shell, after it has said that it runs.
    struct Running(Process, Execution);

    impl Running {
        fn start(script: &str) -> Self {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("echo; read -r _; {script}")]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut byte = [0];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
            let execution = crate::sys::process::Process::pin(child.id()).unwrap().execution();
            Self(child, execution)
        }

        fn go_on(&mut self) {
            std::io::Write::write_all(self.0.stdin.as_mut().unwrap(), b"go\n").unwrap();
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[tokio::test]
    async fn an_end_is_told_and_forgotten() {
        let (sentry, mut events) = ProcSentry::start().unwrap();
        let mut running = Running::start("");
        sentry.watch(&[running.1, running.1]);
        running.go_on();
        assert_eq!(events.recv().await, Some(Event::Ended(running.1)));
        assert_eq!(sentry.size(), 0);
        sentry.watch(&[running.1]);
        assert_eq!(sentry.size(), 0, "who ended already is not watched");
    }

    #[tokio::test]
    async fn an_exec_is_told_even_of_the_same_file() {
        let (sentry, mut events) = ProcSentry::start().unwrap();
        let mut running = Running::start("exec sh -c 'read -r _'");
        sentry.watch(&[running.1]);
        running.go_on();
        assert_eq!(events.recv().await, Some(Event::Executed { before: running.1, now: 0, parent: 0 }));
    }

    #[tokio::test]
    async fn a_child_s_exec_is_told_once() {
        let (sentry, mut events) = ProcSentry::start().unwrap();
        // The subshell forks and executes nothing by itself; its own child does.
        let mut running = Running::start("(sleep 1000; :) & read -r _");
        sentry.watch(&[running.1]);
        running.go_on();
        let told = events.recv().await;
        let Some(Event::Executed { before, now: 0, parent }) = told else { panic!("{told:?}") };
        assert_eq!(parent, running.1.pid);
        assert!(std::fs::read_link(format!("/proc/{}/exe", before.pid)).unwrap().ends_with("sleep"));
        let child = rustix::process::Pid::from_raw(i32::try_from(before.pid).unwrap()).unwrap();
        let execution = running.1;
        drop(running);
        assert_eq!(events.recv().await, Some(Event::Ended(execution)), "and nothing in between");
        rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
    }

    #[test]
    fn a_round_takes_a_tenth_of_the_time_and_no_more() {
        let mut pace = Pace::default();
        assert_eq!(pace.wait(Duration::ZERO), INTERVAL);
        assert_eq!(pace.wait(Duration::from_millis(5)), Duration::from_millis(45));
        assert_eq!(pace.wait(Duration::from_millis(60)), Duration::from_millis(540));
        assert!(pace.slow);
        pace.wait(Duration::ZERO);
        assert!(!pace.slow);
    }

    #[tokio::test]
    async fn what_nobody_hears_in_time_is_counted() {
        let (to, mut events) = mpsc::channel(2);
        let mut voice = Voice::new(to);
        let ended = |pid| Event::Ended(Execution { pid, start_ticks: 1, image: 0 });
        (1..5).for_each(|pid| voice.tell(ended(pid)));
        assert_eq!(events.recv().await, Some(ended(1)));
        assert_eq!(events.recv().await, Some(ended(2)));
        voice.tell(ended(5));
        assert_eq!(events.recv().await, Some(Event::Lost(2)));
        assert_eq!(events.recv().await, Some(ended(5)));
    }
}
