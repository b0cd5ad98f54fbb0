//! Programs that a scenario starts: some run to their end, some stay and write a log.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::wait::wait_until;

/// How long a program that should end by itself may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A program that ran to its end.
#[derive(Debug)]
pub struct Finished {
    /// How it ended; `None` if it had to be killed because it took longer than it may.
    pub status: Option<ExitStatus>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Finished {
    /// Its exit code; `None` if it was killed.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// Standard output of a program that succeeded.
    ///
    /// # Panics
    /// If it failed or hung.
    #[must_use]
    pub fn success(self) -> String {
        assert!(self.code() == Some(0), "the program failed: {self:#?}");
        self.stdout
    }

    /// Asserts that it failed by itself, at once: refused, and not left hanging.
    ///
    /// # Panics
    /// If it succeeded, hung, or was slow to fail.
    #[track_caller]
    pub fn failed_at_once(self) -> Self {
        assert!(self.code().is_some_and(|code| code != 0), "the program should have failed by itself: {self:#?}");
        assert!(self.took < Duration::from_secs(3), "it failed, but not at once: {self:#?}");
        self
    }

    /// Asserts that its connection was reset, at once: an end of stream could pass for an empty answer.
    ///
    /// # Panics
    /// If it failed otherwise, or did not, or hung.
    #[track_caller]
    pub fn was_reset(self) -> Self {
        let finished = self.failed_at_once();
        // `say.py` prints the error's name, curl the system's words for it.
        let words = ["ECONNRESET\n", "Connection reset by peer"];
        let said = [&finished.stdout, &finished.stderr];
        let reset = words.iter().any(|word| said.iter().any(|text| text.contains(word)));
        assert!(reset, "it failed, but not by a reset: {finished:#?}");
        finished
    }
}

/// Runs a command to its end, or kills it after [`PATIENCE`].
pub fn run(command: &mut Command) -> Finished {
    run_within(command, PATIENCE)
}

/// Runs a command to its end, or kills it after `limit`.
///
/// # Panics
/// If it cannot be started.
pub fn run_within(command: &mut Command, limit: Duration) -> Finished {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = wait_at_most(&mut child, limit);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let took = start.elapsed();
    Finished { status, stdout: stdout.join().unwrap_or_default(), stderr: stderr.join().unwrap_or_default(), took }
}

/// Runs a command that must succeed and returns what it printed.
///
/// # Panics
/// If it fails.
pub fn must_run(command: &mut Command) -> String {
    let finished = run(command);
    assert!(finished.code() == Some(0), "{command:?} failed: {finished:#?}");
    finished.stdout
}

/// Writes a file.
///
/// # Panics
/// If it cannot be written.
pub fn must_write(file: &Path, text: &str) {
    let written = std::fs::write(file, text);
    assert!(written.is_ok(), "{} cannot be written: {written:?}", file.display());
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait_at_most(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A program that stays. Dropping it kills it.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
    /// Whether what it started dies with it.
    with_children: bool,
}

impl Program {
    /// Starts it; its output is appended to `log`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("the log can be written");
        let errors = output.try_clone().expect("a file can be shared");
        let command = command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let mut started = Self::start_logging(name, command, log);
        started.with_children = true;
        started
    }

    /// Starts it; its output goes to `log` already, and what it starts outlives it.
    ///
    /// It gets a process group of its own: Ctrl-C is for whoever started it.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start_logging(name: &str, command: &mut Command, log: &Path) -> Self {
        let child = command.process_group(0).spawn();
        let child = child.unwrap_or_else(|e| panic!("cannot start {name} ({command:?}): {e}"));
        Self { name: name.to_owned(), child, log: log.to_owned(), with_children: false }
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        if self.with_children && self.is_running() {
            let _ = kill_process_group(self.id(), Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to stop with SIGTERM and waits until it has.
    ///
    /// # Panics
    /// If it does not stop within five seconds.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(Duration::from_secs(5))
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// If it does not within `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        wait_at_most(&mut self.child, limit)
            .unwrap_or_else(|| panic!("{} still runs after {limit:?}; it printed:\n{}", self.name, self.output()))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(self.id(), signal);
    }

    fn id(&self) -> Pid {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child has a process ID")
    }

    /// Waits until it has printed `text`.
    ///
    /// # Panics
    /// If it ends, or ten seconds pass, before that.
    pub fn wait_for_output(&mut self, text: &str) {
        let name = self.name.clone();
        wait_until(&format!("{name} to print {text:?}"), Duration::from_secs(10), || {
            let printed = self.output();
            assert!(printed.contains(text) || self.is_running(), "{name} ended early; it printed:\n{}", self.output());
            printed.contains(text)
        });
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !crate::kept_for_inspection() {
            self.kill();
        }
    }
}
