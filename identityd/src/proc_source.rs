//! The source that works everywhere: sock_diag names the socket, a walk of `/proc` its holders.

use std::collections::BTreeMap;
use std::io;

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::flow::{FlowKey, NetNs};
use bonafide_proto::kernel::ConnectRecord;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use crate::refuse::refuse;
use crate::sockets::{Sockets, same};
use crate::source::{HOLDERS_MAX, Held, Known, SocketSource, too_many};
use crate::sys::diag::Found;
use crate::sys::namespace::Namespace;
use crate::sys::process::Process;
use crate::sys::walk::{Sighting, Sightings, socket_inode};
use crate::walks::{Walk, Walks};

/// Asks sock_diag and `/proc`.
#[derive(Debug)]
pub(crate) struct ProcSource {
    netns: NetNs,
    sockets: Sockets,
    walks: Walks<Walk>,
    reason: String,
}

/// What sock_diag and one walk said.
#[derive(Debug)]
pub(crate) struct ProcHeld {
    /// The question; none if it was about several sockets, which were found before.
    key: Option<FlowKey>,
    sockets: Vec<Found>,
    links: Vec<(Execution, Vec<(String, u64)>)>,
    executions: Vec<Execution>,
}

impl Held for ProcHeld {
    fn executions(&self) -> &[Execution] {
        &self.executions
    }
}

impl ProcSource {
    /// Opens what it needs, in this daemon's own network namespace; `reason` says why it is this source.
    ///
    /// # Errors
    /// The kernel has no sock_diag, or `/proc` is not mounted.
    pub(crate) fn open(reason: String) -> io::Result<Self> {
        let netns = NetNs(Namespace::own("net")?.ino);
        Ok(Self { netns, sockets: Sockets::open()?, walks: Walks::start(), reason })
    }

    fn is_here(&self, key: FlowKey) -> Result<(), AttestRefusal> {
        if key.netns == self.netns {
            return Ok(());
        }
        let detail = format!("the flow is in network namespace {}, this daemon in {}", key.netns.0, self.netns.0);
        refuse(AttestReason::OtherNetns, detail)
    }

    async fn once(&self, key: FlowKey) -> Result<ProcHeld, AttestRefusal> {
        let sockets = self.sockets.of(key).await?;
        self.of(sockets, Some(key)).await
    }

    async fn of(&self, sockets: Vec<Found>, key: Option<FlowKey>) -> Result<ProcHeld, AttestRefusal> {
        let seen = self.walks.seek(sockets.iter().map(|s| s.inode).collect()).await?;
        no_twin(sockets.iter().filter(|socket| !socket.listens), &seen.device_bound)?;
        if let Some(pid) = seen.sightings.blind() {
            let detail = format!("the open files of process {pid} cannot be listed, and it might hold the socket");
            return refuse(AttestReason::Unreadable, detail);
        }
        let pinned = tokio::task::spawn_blocking(move || pin(key, sockets, &seen.sightings)).await;
        pinned.unwrap_or_else(|e| refuse(AttestReason::Unavailable, format!("/proc: {e}")))
    }
}

impl SocketSource for ProcSource {
    type Held = ProcHeld;

    fn name(&self) -> &'static str {
        "proc"
    }

    fn reason(&self) -> &str {
        &self.reason
    }

    fn sees_connections(&self) -> bool {
        false
    }

    async fn holders(&self, key: FlowKey, _: Option<ConnectRecord>) -> Result<ProcHeld, AttestRefusal> {
        self.is_here(key)?;
        self.once(key).await
    }

    async fn holders_by_now(&self, sockets: &[Known]) -> Result<Option<ProcHeld>, AttestRefusal> {
        let keys: Vec<FlowKey> = sockets.iter().map(|known| known.key).collect();
        keys.iter().try_for_each(|key| self.is_here(*key))?;
        let left = self.sockets.left(keys).await?;
        if left.is_empty() {
            return Ok(None);
        }
        self.of(left, None).await.map(Some)
    }

    async fn across(&self, _: u64) -> Result<ProcHeld, AttestRefusal> {
        let detail = format!("only the kernel programs tell who has the other end of a unix socket: {}", self.reason);
        refuse(AttestReason::Unavailable, detail)
    }

    fn is_over(&self, _: &ConnectRecord) -> bool {
        // Nobody recorded who has what of whom.
        false
    }

    async fn still_held(&self, held: &ProcHeld) -> Result<(), AttestRefusal> {
        if let Some(key) = held.key
            && self.sockets.of(key).await? != held.sockets
        {
            return refuse(AttestReason::GenerationGone, "another socket took the place of the one that was attested");
        }
        let links = held.links.clone();
        let looked = tokio::task::spawn_blocking(move || links.iter().try_for_each(|(e, links)| still_open(*e, links)));
        looked.await.unwrap_or_else(|e| refuse(AttestReason::Unavailable, format!("/proc: {e}")))
    }
}

/// The kernel lets a socket bound to a device and one bound to none have the same four addresses. Which of them sent
/// the segment that was captured cannot be told here.
fn no_twin<'a>(mut connections: impl Iterator<Item = &'a Found>, device_bound: &[Found]) -> Result<(), AttestRefusal> {
    let twin_of = |a: &Found, b: &Found| a.cookie != b.cookie && same(a.local, b.local) && same(a.remote, b.remote);
    let twin = connections.find_map(|socket| device_bound.iter().find(|bound| twin_of(bound, socket)));
    match twin {
        None => Ok(()),
        Some(twin) => {
            let detail = format!("another socket with the same addresses is bound to device {}", twin.interface);
            refuse(AttestReason::TwoPrograms, detail)
        }
    }
}

/// Pins each holder and checks through the pin that it holds the socket, whoever had that PID during the walk.
fn pin(key: Option<FlowKey>, sockets: Vec<Found>, seen: &Sightings) -> Result<ProcHeld, AttestRefusal> {
    let mut by_pid: BTreeMap<u32, Vec<(String, u64)>> = BTreeMap::new();
    for socket in &sockets {
        let sightings = seen.of(socket.inode);
        if sightings.is_empty() {
            let detail = format!("the socket on {} is in no process's file table", socket.local);
            return refuse(AttestReason::HolderUnseen, detail);
        }
        for Sighting { pid, link } in sightings {
            by_pid.entry(*pid).or_default().push((link.clone(), socket.inode));
        }
    }
    if by_pid.len() > HOLDERS_MAX {
        return refuse(AttestReason::HolderUnseen, too_many(by_pid.len()));
    }
    let mut links = Vec::with_capacity(by_pid.len());
    for (pid, held) in by_pid {
        match holder(pid, held) {
            Ok(holder) => links.push(holder),
            // It held the socket for a moment: a child between fork and exec, whose copies close at exec.
            Err(AttestRefusal { reason: AttestReason::ProcessGone | AttestReason::GenerationGone, .. }) => {}
            Err(e) => return Err(e),
        }
    }
    let held = |socket: &Found| links.iter().any(|(_, links)| links.iter().any(|(_, inode)| *inode == socket.inode));
    if !sockets.iter().all(held) {
        return refuse(AttestReason::HolderUnseen, "whoever held the socket let go of it while it was looked at");
    }
    let executions = links.iter().map(|(execution, _)| *execution).collect();
    Ok(ProcHeld { key, sockets, links, executions })
}

/// Pins a process that was seen with these descriptors, and keeps those that still are what they were.
fn holder(pid: u32, mut links: Vec<(String, u64)>) -> Result<(Execution, Vec<(String, u64)>), AttestRefusal> {
    let process = Process::pin(pid)?;
    links.retain(|link| open(&process, link));
    if links.is_empty() {
        return closed(&process);
    }
    Ok((process.execution(), links))
}

fn still_open(execution: Execution, links: &[(String, u64)]) -> Result<(), AttestRefusal> {
    let process = Process::pin_execution(execution)?;
    if links.iter().all(|link| open(&process, link)) { Ok(()) } else { closed(&process) }
}

fn open(process: &Process, (link, inode): &(String, u64)) -> bool {
    process.link(link).is_ok_and(|target| socket_inode(&target) == Some(*inode))
}

fn closed<T>(process: &Process) -> Result<T, AttestRefusal> {
    process.alive()?;
    let detail = format!("process {} closed the socket while it was looked at", process.execution().pid);
    refuse(AttestReason::GenerationGone, detail)
}
