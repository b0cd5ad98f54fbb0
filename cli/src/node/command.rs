//! How one daemon is started: through `bonafide launch`, which gives it its place and its privileges.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A daemon's start, as data: the harness puts `nsenter` before it.
///
/// A daemon outlives whoever started it (there is no `PR_SET_PDEATHSIG`): a supervisor that was killed must not
/// open or close the host. Its cgroup is where a daemon is found again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonCommand {
    /// `bonafide`.
    pub program: PathBuf,
    /// `launch …  -- /path/bonafide-X --config …`.
    pub args: Vec<OsString>,
    /// Where its stderr goes.
    pub log: PathBuf,
}

/// Where a daemon lives and what it may do.
pub(super) struct Place<'a> {
    pub(super) cgroup: &'a Path,
    pub(super) uid: u32,
    pub(super) capabilities: &'a [&'a str],
    /// Sockets to which it may speak as those do who are in their groups.
    pub(super) sockets: Vec<PathBuf>,
}

impl Place<'_> {
    /// The capability that opens any socket would open any file, too.
    fn groups(&self) -> BTreeSet<u32> {
        let group = |socket: &PathBuf| fs::metadata(socket).ok().map(|socket| socket.gid());
        self.sockets.iter().filter_map(group).collect()
    }
}

impl DaemonCommand {
    pub(super) fn launch<const N: usize>(
        binaries: &Path,
        place: &Place<'_>,
        daemon: &str,
        args: [OsString; N],
        log: PathBuf,
    ) -> Self {
        let mut all: Vec<OsString> = vec!["launch".into(), "--cgroup".into(), place.cgroup.into()];
        for (flag, id) in [("--uid", place.uid), ("--gid", place.uid)] {
            all.extend([flag.into(), id.to_string().into()]);
        }
        for group in place.groups() {
            all.extend(["--group".into(), group.to_string().into()]);
        }
        for capability in place.capabilities {
            all.extend(["--cap".into(), (*capability).into()]);
        }
        all.extend(["--".into(), binaries.join(format!("bonafide-{daemon}")).into()]);
        all.extend(args);
        Self { program: binaries.join("bonafide"), args: all, log }
    }

    /// The command, in this process's network namespace.
    ///
    /// # Errors
    /// The log file cannot be opened.
    pub fn to_command(&self) -> io::Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        self.redirect(command)
    }

    /// The command, in the network namespace behind this file, e.g. `/run/netns/a`.
    ///
    /// # Errors
    /// The log file cannot be opened.
    pub fn to_command_in(&self, netns: &Path) -> io::Result<Command> {
        // Not `ip netns exec`: that one remounts /sys, and the cgroups are gone.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", netns.display())).arg("--").arg(&self.program).args(&self.args);
        self.redirect(command)
    }

    fn redirect(&self, mut command: Command) -> io::Result<Command> {
        let log = self.open_log()?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A Ctrl-C at the terminal is for whoever supervises the daemon; it knows the order of stopping.
        command.process_group(0);
        Ok(command)
    }

    fn open_log(&self) -> io::Result<File> {
        fs::OpenOptions::new().create(true).append(true).mode(0o640).open(&self.log)
    }
}
