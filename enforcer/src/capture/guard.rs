//! Takes the rules away when an enforcer dies that does not enforce, however it dies.
//!
//! One mechanism for both engines: a child process of the same program that does nothing but wait for the end of a
//! pipe. The kernel closes the pipe with the enforcer, whether it exits, panics or is killed.
//!
//! ```text
//!   enforcer ──"disarm\n"──► guard: exits, rules stay           (switched to enforce, or removed already)
//!            ──end of file─► guard: removes rules and routes    (the enforcer is gone)
//! ```
//!
//! The road not taken: an nftables table with `flags owner`, held by an `nft -i` child, vanishes with its holder even
//! if both are killed at once. But it knows no routes and no iptables, and such a table cannot lose its owner without
//! being renamed. What the guard does not survive is a SIGKILL of the whole cgroup (`cgroup.kill`, a group OOM kill):
//! a service manager runs `bonafide-enforcer remove-capture` after that (`ExecStopPost=`).

use std::io::{self, Read, Write};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::CaptureError;
use super::turn::Turn;
use super::{Backend, remove_leftovers};

const ARMED: &str = "armed\n";
const DISARM: &[u8] = b"disarm\n";
/// How long a guard may take to arm or to leave. It may have to wait its [`Turn`].
const PATIENCE: Duration = Duration::from_secs(15);
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(300);

/// The enforcer's end: dropping it is what the guard waits for.
#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
    pipe: ChildStdin,
}

impl Guard {
    /// Returns once the guard watches.
    pub(super) async fn arm(backend: Backend) -> Result<Self, CaptureError> {
        let mut child = spawn(backend).map_err(|e| CaptureError::Guard(format!("cannot be started: {e}")))?;
        let (Some(pipe), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(CaptureError::Guard("has no pipe".to_owned()));
        };
        let mut line = String::new();
        let mut said = BufReader::new(stdout.take(64));
        match tokio::time::timeout(PATIENCE, said.read_line(&mut line)).await {
            Ok(Ok(_)) if line == ARMED => Ok(Self { child, pipe }),
            _ => Err(CaptureError::Guard(format!("did not start watching (it said {line:?})"))),
        }
    }

    /// Lets the rules stay. Returns once the guard is gone.
    pub(super) async fn disarm(mut self) -> Result<(), CaptureError> {
        let told = async {
            self.pipe.write_all(DISARM).await?;
            self.pipe.flush().await?;
            self.child.wait().await
        };
        match tokio::time::timeout(PATIENCE, told).await {
            Ok(Ok(_)) => Ok(()),
            // It is gone already, and did not see an end of the pipe: nothing left to disarm.
            Ok(Err(_)) => Ok(()),
            Err(_) => Err(CaptureError::Guard("did not leave".to_owned())),
        }
    }

    /// Has somebody killed it?
    pub(super) fn is_gone(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

/// The same program, even if its file was replaced meanwhile.
fn spawn(backend: Backend) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["guard", "--backend", backend.as_str()]).env_clear().current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command.spawn()
}

/// What `bonafide-enforcer guard --backend X` runs: waits for the end of standard input, then removes everything.
///
/// It leaves the terminal's session and ignores SIGTERM, SIGINT and SIGHUP: the signals that end the enforcer must not
/// end its guard first.
///
/// # Errors
/// Where it cannot start watching, or where the rules cannot be removed.
pub async fn guard(backend: Backend) -> Result<(), CaptureError> {
    let _deaf = deaf().map_err(|e| CaptureError::Guard(format!("cannot ignore signals: {e}")))?;
    // Fails for the leader of a process group only, which a spawned child is not.
    let _ = rustix::process::setsid();
    let _turn = Turn::take().await;
    if watch().await {
        return Ok(());
    }
    remove_patiently(backend).await
}

/// A signal that has a listener does not end the process.
fn deaf() -> io::Result<[Signal; 3]> {
    Ok([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?])
}

/// True if told to leave the rules alone, false if the other end is gone.
async fn watch() -> bool {
    tokio::task::spawn_blocking(|| report().is_ok() && read_order().is_ok_and(|order| order == DISARM))
        .await
        .unwrap_or(false)
}

fn report() -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(ARMED.as_bytes())?;
    stdout.flush()
}

fn read_order() -> io::Result<Vec<u8>> {
    let mut order = Vec::new();
    io::stdin().take(DISARM.len() as u64).read_to_end(&mut order)?;
    Ok(order)
}

async fn remove_patiently(backend: Backend) -> Result<(), CaptureError> {
    for attempt in 1..ATTEMPTS {
        match remove_leftovers(backend).await {
            Ok(()) => return Ok(()),
            Err(e) => tracing::warn!(attempt, "cannot remove the rules of an enforcer that died: {e}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    remove_leftovers(backend).await
}
