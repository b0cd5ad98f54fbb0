//! One supervised daemon: started, restarted with growing patience, stopped by SIGTERM and then by SIGKILL.
//!
//! ```text
//! Idle ──start──► Running ──exits──► Resting ──until──► Running
//!                    └───────────────────┴───stop────► Idle
//! ```

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::log;
use crate::node::DaemonCommand;

/// Before the first restart, and the least there ever is.
const REST: Duration = Duration::from_millis(200);
/// Before any restart.
const REST_MAX: Duration = Duration::from_secs(2);
/// A daemon that lived this long died of something new.
const LIVED: Duration = Duration::from_secs(10);
/// Between two looks at a process that should end.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A daemon and what it does at the moment.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) name: &'static str,
    pub(super) command: DaemonCommand,
    state: State,
    rest: Duration,
}

#[derive(Debug)]
enum State {
    Idle,
    Running { child: Child, since: Instant },
    Resting { until: Instant },
}

/// Something worth telling.
#[derive(Debug)]
pub(super) enum News {
    Died(ExitStatus, Duration),
    Restarted,
    NotStarted(io::Error),
}

/// How it ended when it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// By itself.
    Clean,
    /// Only SIGKILL helped.
    Killed,
}

impl Daemon {
    pub(super) fn new(name: &'static str, command: &DaemonCommand) -> Self {
        Self { name, command: command.clone(), state: State::Idle, rest: REST }
    }

    pub(super) fn start(&mut self, now: Instant) -> io::Result<()> {
        let child = self.command.to_command()?.spawn()?;
        self.state = State::Running { child, since: now };
        Ok(())
    }

    /// Looks after it, and its log, once.
    pub(super) fn tend(&mut self, now: Instant) -> Option<News> {
        log::bound(&self.command.log);
        match &mut self.state {
            State::Running { child, since } => {
                let status = child.try_wait().ok().flatten()?;
                let lived = now.duration_since(*since);
                Some(self.died(status, lived, now))
            }
            State::Resting { until } if *until <= now => Some(match self.start(now) {
                Ok(()) => News::Restarted,
                Err(e) => {
                    self.rest(now);
                    News::NotStarted(e)
                }
            }),
            State::Resting { .. } | State::Idle => None,
        }
    }

    fn died(&mut self, status: ExitStatus, lived: Duration, now: Instant) -> News {
        if lived >= LIVED {
            self.rest = REST;
        }
        News::Died(status, self.rest(now))
    }

    fn rest(&mut self, now: Instant) -> Duration {
        let rest = self.rest;
        self.state = State::Resting { until: now + rest };
        self.rest = (rest * 2).min(REST_MAX);
        rest
    }

    /// Stops it, within `patience` and a little.
    pub(super) fn stop(&mut self, patience: Duration) -> Ending {
        let State::Running { mut child, .. } = std::mem::replace(&mut self.state, State::Idle) else {
            return Ending::Clean;
        };
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            // Its PID cannot be another's: nobody else waits for it.
            let _ = kill_process(pid, Signal::TERM);
        }
        if wait(&mut child, patience).is_some() {
            return Ending::Clean;
        }
        let _ = child.kill();
        let _ = child.wait();
        Ending::Killed
    }
}

/// Waits for the end of a process, but not longer than this.
pub(super) fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let give_up = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < give_up => std::thread::sleep(LOOK_AGAIN),
            Ok(None) | Err(_) => return None,
        }
    }
}

/// An exit status in words.
pub(super) fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn daemon(script: &str, dir: &tempfile::TempDir) -> Daemon {
        let args = ["-c".into(), script.into()].to_vec();
        Daemon::new("x", &DaemonCommand { program: "/bin/sh".into(), args, log: dir.path().join("log") })
    }

    fn until_news(daemon: &mut Daemon, now: Instant) -> News {
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(news) = daemon.tend(now) {
                return news;
            }
            assert!(Instant::now() < give_up, "no news");
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    #[test]
    fn restarts_come_slower_until_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = daemon("exit 7", &dir);
        let mut now = Instant::now();
        daemon.start(now).unwrap();
        for rest in [200, 400, 800, 1600, 2000, 2000] {
            let rest = Duration::from_millis(rest);
            assert!(matches!(until_news(&mut daemon, now), News::Died(s, r) if r == rest && s.code() == Some(7)));
            assert!(daemon.tend(now + rest - Duration::from_millis(1)).is_none(), "restarted too early");
            now += rest;
            assert!(matches!(daemon.tend(now), Some(News::Restarted)));
        }
        now += LIVED;
        assert!(matches!(until_news(&mut daemon, now), News::Died(_, REST)));
    }

    #[test]
    fn a_daemon_that_will_not_stop_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready");
        let script = format!("trap '' TERM; : > {}; while :; do sleep 0.1; done", ready.display());
        let mut deaf = daemon(&script, &dir);
        deaf.start(Instant::now()).unwrap();
        let give_up = Instant::now() + Duration::from_secs(20);
        while !ready.exists() {
            assert!(Instant::now() < give_up, "it never became ready");
            std::thread::sleep(LOOK_AGAIN);
        }
        assert_eq!(deaf.stop(Duration::from_millis(100)), Ending::Killed);
        let mut polite = daemon("exec sleep 60", &dir);
        polite.start(Instant::now()).unwrap();
        assert_eq!(polite.stop(Duration::from_secs(20)), Ending::Clean);
    }
}
