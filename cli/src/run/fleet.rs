//! The three daemons of a node, started in the order in which they need each other and stopped in the reverse.

use std::path::Path;
use std::time::{Duration, Instant};

use bonafide_proto::wire::node::{EnforcementStatus, IssuanceStatus};

use super::daemon::{Daemon, Ending, News, wait, words};
use super::log;
use crate::ask::{self, NoAnswer};
use crate::exit::Failure;
use crate::node::{DaemonCommand, Layout, PreparedNode};
use crate::printable::printable;
use crate::screen::tell;

/// How long a daemon may take until it answers.
const UP: Duration = Duration::from_secs(20);
/// How long it may take to stop.
const DOWN: Duration = Duration::from_secs(10);
/// Between two questions whether it is up.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Lines of its log shown when a daemon fails.
const LOG_LINES: usize = 5;
/// The end of a log that is looked at, in bytes.
const LOG_TAIL: u64 = 4096;

/// The daemons of one node.
#[derive(Debug)]
pub(super) struct Fleet {
    daemons: [Daemon; 3],
    remove_capture: DaemonCommand,
    layout: Layout,
}

impl Fleet {
    pub(super) fn new(node: &PreparedNode) -> Self {
        let daemons = [
            Daemon::new("ca", &node.ca),
            Daemon::new("identityd", &node.identityd),
            Daemon::new("enforcer", &node.enforcer),
        ];
        Self { daemons, remove_capture: node.remove_capture.clone(), layout: node.layout.clone() }
    }

    /// Starts one after the other, each when the one before answers.
    pub(super) async fn start(&mut self) -> Result<(), Failure> {
        for daemon in &mut self.daemons {
            let begun = log::begin(&daemon.command.log).and_then(|()| daemon.start(Instant::now()));
            begun.map_err(|e| Failure::Failed(format!("{}: {e}", daemon.name)))?;
            until_up(daemon, &self.layout).await?;
        }
        Ok(())
    }

    /// Looks after each of them once.
    pub(super) fn tend(&mut self, now: Instant) {
        for daemon in &mut self.daemons {
            let name = daemon.name;
            match daemon.tend(now) {
                Some(News::Died(status, rest)) => {
                    tell(&format!("{name} died ({}); restarting it in {} ms", words(status), rest.as_millis()));
                    tell(&last_words(&daemon.command.log));
                }
                Some(News::Restarted) => tell(&format!("{name} restarted")),
                Some(News::NotStarted(e)) => tell(&format!("{name} cannot be restarted: {e}")),
                None => {}
            }
        }
    }

    /// Stops them, the enforcer first, so that nothing is captured that nobody can judge.
    pub(super) fn stop(&mut self) -> Result<(), Failure> {
        for daemon in self.daemons.iter_mut().rev() {
            if daemon.stop(DOWN) == Ending::Killed {
                tell(&format!("{} did not stop within {} s and was killed", daemon.name, DOWN.as_secs()));
            }
        }
        self.remove_capture()
    }

    /// The enforcer does it when it stops; this is for one that could not.
    fn remove_capture(&self) -> Result<(), Failure> {
        let failed = |why: String| Failure::Failed(format!("capture rules may be left: {why}"));
        let mut child =
            self.remove_capture.to_command().and_then(|mut c| c.spawn()).map_err(|e| failed(e.to_string()))?;
        match wait(&mut child, DOWN) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(failed(format!("{}\n{}", words(status), last_words(&self.remove_capture.log)))),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                Err(failed(format!("removing them took longer than {} s", DOWN.as_secs())))
            }
        }
    }
}

/// Waits until it answers. One that ends meanwhile is a failure, not something to restart: its input is wrong.
async fn until_up(daemon: &mut Daemon, layout: &Layout) -> Result<(), Failure> {
    let give_up = Instant::now() + UP;
    loop {
        let answered = match daemon.name {
            "ca" => ask::issuance_status(&layout.ca_socket()).await.and_then(|s| member(&s)),
            "identityd" => ask::attestation_status(&layout.identityd_socket()).await.map(drop),
            _ => ask::enforcement_status(&layout.enforcer_socket()).await.and_then(|s| captures(&s)),
        };
        let Err(e) = answered else { return Ok(()) };
        let name = daemon.name;
        if let Some(News::Died(status, _)) = daemon.tend(Instant::now()) {
            let why = format!("{name} could not start ({})\n{}", words(status), last_words(&daemon.command.log));
            // The daemons' exit codes mean what ours do: 2 is for what an operator gave, e.g. a used join token.
            return Err(if status.code() == Some(2) { Failure::BadInput(why) } else { Failure::Failed(why) });
        }
        if Instant::now() > give_up {
            return Err(Failure::Failed(format!("{name} is not ready: {e}\n{}", last_words(&daemon.command.log))));
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Until its rules are in place connections pass it by.
fn captures(status: &EnforcementStatus) -> Result<(), NoAnswer> {
    match status.mode.as_str() {
        "none" => Err(NoAnswer::Said("its capture rules are not in place yet".to_owned())),
        _ => Ok(()),
    }
}

/// A CA that never joined has nothing to issue with.
fn member(status: &IssuanceStatus) -> Result<(), NoAnswer> {
    if status.intermediate_not_after > 0 {
        return Ok(());
    }
    let why = format!("this node is not a member of the trust domain yet: {}", status.authority_error);
    Err(NoAnswer::Said(printable(&why).into_owned()))
}

/// The end of a daemon's log, indented.
fn last_words(log: &Path) -> String {
    let text = tail(log).unwrap_or_else(|e| format!("(no log: {e})"));
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.iter().skip(lines.len().saturating_sub(LOG_LINES));
    last.map(|line| format!("  | {}", printable(line))).collect::<Vec<_>>().join("\n")
}

fn tail(log: &Path) -> std::io::Result<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = std::fs::File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
