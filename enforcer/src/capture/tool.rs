//! Runs the program that loads rules: by absolute path, without an environment, bounded in time and output.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::error::CaptureError;

const SEARCHED: &str = "/usr/sbin:/sbin:/usr/bin:/bin";
/// How long a tool may take. Loading takes some 20 ms; a host with many thousand rules of others takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most that is kept of either output, in bytes.
const KEPT: u64 = 64 * 1024;

/// What a tool said.
pub(super) struct Said {
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// A program that loads rules.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
}

impl Tool {
    /// Feeds `input` to the tool, which must succeed. `doing` is for the error.
    pub(super) async fn load(self, doing: &'static str, args: &[&str], input: &str) -> Result<(), CaptureError> {
        let said = self.run(args, input).await?;
        if said.status.success() {
            return Ok(());
        }
        Err(CaptureError::ToolFailed { tool: self.name, doing, stderr: said.stderr.trim().to_owned() })
    }

    /// Runs the tool to its end, whatever it returns.
    pub(super) async fn run(self, args: &[&str], input: &str) -> Result<Said, CaptureError> {
        let mut child = self.spawn(args)?;
        let ended = tokio::time::timeout(PATIENCE, talk(&mut child, input)).await;
        let stuck = CaptureError::ToolStuck { tool: self.name, seconds: PATIENCE.as_secs() };
        ended.map_err(|_| stuck)?.map_err(|source| CaptureError::ToolBroken { tool: self.name, source })
    }

    fn spawn(self, args: &[&str]) -> Result<Child, CaptureError> {
        let mut command = Command::new(self.path()?);
        command.args(args).env_clear().current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map_err(|source| CaptureError::ToolBroken { tool: self.name, source })
    }

    fn path(self) -> Result<PathBuf, CaptureError> {
        let found = std::env::split_paths(SEARCHED).map(|dir| dir.join(self.name)).find(|path| path.is_file());
        found.ok_or(CaptureError::ToolMissing { tool: self.name, searched: SEARCHED, package: self.package })
    }
}

async fn talk(child: &mut Child, input: &str) -> std::io::Result<Said> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A tool that stops reading says why on stderr.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let ((), stdout, stderr) = tokio::join!(feed, keep(stdout), keep(stderr));
    Ok(Said { status: child.wait().await?, stdout: stdout?, stderr: stderr? })
}

/// Reads to the end, keeps the beginning.
async fn keep(output: Option<impl AsyncRead + Unpin>) -> std::io::Result<String> {
    let Some(mut output) = output else { return Ok(String::new()) };
    let mut kept = Vec::new();
    (&mut output).take(KEPT).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut output, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&kept).into_owned())
}
