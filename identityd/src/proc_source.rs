//! The source that works everywhere: sock_diag names the socket, a walk of `/proc` its holders.
//!
//! For a listener the question is put with the very addresses the enforcer is about to use, so the kernel picks the
//! member of an `SO_REUSEPORT` group. But a member may steer the group by a BPF program of its own, which sock_diag does not
//! run; so every listener that could be picked is held to the same program.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::flow::{FlowKey, NetNs, SocketRole, canonical};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use crate::refuse::refuse;
use crate::source::{HOLDERS_MAX, Held, SocketSource};
use crate::sys::diag::{Diag, Found};
use crate::sys::namespace::Namespace;
use crate::sys::process::Process;
use crate::sys::walk::{Sighting, Sightings, socket_inode};
use crate::walks::Walks;

/// Asks sock_diag and `/proc`.
#[derive(Debug)]
pub(crate) struct ProcSource {
    netns: NetNs,
    diag: Arc<Mutex<Diag>>,
    walks: Walks,
}

/// What sock_diag and one walk said.
#[derive(Debug)]
pub(crate) struct ProcHeld {
    key: FlowKey,
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
    /// Opens what it needs, in this daemon's own network namespace.
    ///
    /// # Errors
    /// The kernel has no sock_diag, or `/proc` is not mounted.
    pub(crate) fn open() -> io::Result<Self> {
        let netns = NetNs(Namespace::own("net")?.ino);
        Ok(Self { netns, diag: Arc::new(Mutex::new(Diag::open()?)), walks: Walks::start() })
    }

    async fn sockets(&self, key: FlowKey) -> Result<Vec<Found>, AttestRefusal> {
        let diag = Arc::clone(&self.diag);
        let asked = move || {
            let mut diag = diag.lock().unwrap_or_else(PoisonError::into_inner);
            match key.role {
                SocketRole::Connector => connector(&mut diag, key).map(|found| vec![found]),
                SocketRole::Listener => listeners(&mut diag, key),
            }
        };
        match tokio::task::spawn_blocking(asked).await {
            Ok(answer) => answer,
            Err(e) => refuse(AttestReason::Unavailable, format!("sock_diag: {e}")),
        }
    }

    async fn once(&self, key: FlowKey) -> Result<ProcHeld, AttestRefusal> {
        let sockets = self.sockets(key).await?;
        let seen = self.walks.seek(sockets.iter().map(|s| s.inode).collect()).await?;
        if key.role == SocketRole::Connector {
            no_twin(&sockets, &seen.device_bound)?;
        }
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

    async fn holders(&self, key: FlowKey) -> Result<ProcHeld, AttestRefusal> {
        if key.netns != self.netns {
            let detail = format!("the flow is in network namespace {}, this daemon in {}", key.netns.0, self.netns.0);
            return refuse(AttestReason::OtherNetns, detail);
        }
        self.once(key).await
    }

    async fn still_held(&self, held: &ProcHeld) -> Result<(), AttestRefusal> {
        if self.sockets(held.key).await? != held.sockets {
            return refuse(AttestReason::GenerationGone, "another socket took the place of the one that was attested");
        }
        let links = held.links.clone();
        let looked = tokio::task::spawn_blocking(move || links.iter().try_for_each(|(e, links)| still_open(*e, links)));
        looked.await.unwrap_or_else(|e| refuse(AttestReason::Unavailable, format!("/proc: {e}")))
    }
}

fn connector(diag: &mut Diag, key: FlowKey) -> Result<Found, AttestRefusal> {
    let (local, remote) = (canonical(key.local), canonical(key.remote));
    let found = exact(diag, local, remote)?;
    // sock_diag falls back to a listener on the local port: that is not who connected.
    if found.listens || !same(found.local, local) || !same(found.remote, remote) {
        return refuse(AttestReason::NoSocket, format!("no socket connects {local} to {remote}"));
    }
    with_file(found)
}

/// The kernel lets a socket bound to a device and one bound to none have the same four addresses. Which of them sent
/// the segment that was captured cannot be told here.
fn no_twin(sockets: &[Found], device_bound: &[Found]) -> Result<(), AttestRefusal> {
    let twin_of = |a: &Found, b: &Found| a.cookie != b.cookie && same(a.local, b.local) && same(a.remote, b.remote);
    match device_bound.iter().find(|bound| sockets.iter().any(|socket| twin_of(bound, socket))) {
        None => Ok(()),
        Some(twin) => {
            let detail = format!("another socket with the same addresses is bound to device {}", twin.interface);
            refuse(AttestReason::TwoPrograms, detail)
        }
    }
}

fn listeners(diag: &mut Diag, key: FlowKey) -> Result<Vec<Found>, AttestRefusal> {
    let (local, remote) = (canonical(key.local), canonical(key.remote));
    let picked = exact(diag, local, remote)?;
    let covers = picked.local.ip().is_unspecified() || same(picked.local, local);
    if !picked.listens || picked.local.port() != local.port() || !covers {
        let detail = format!("no socket listens on {local} for {remote}: the two are connected already");
        return refuse(AttestReason::NoSocket, detail);
    }
    let on_port = diag.listeners(local.port()).map_err(|e| unavailable(&e))?;
    let mut group = vec![with_file(picked)?];
    for other in on_port.into_iter().filter(|other| *other != picked && could_be_picked(other, &picked, local)) {
        group.push(with_file(other)?);
    }
    group.sort_by_key(|found| found.cookie);
    Ok(group)
}

/// Members of the picked one's reuseport group, and listeners that a device's own segments would reach first.
fn could_be_picked(other: &Found, picked: &Found, local: SocketAddr) -> bool {
    let same_group = other.local == picked.local && other.family6 == picked.family6;
    let covers = other.local.ip().is_unspecified() || same(other.local, local);
    let other_link = matches!((other.local, local), (SocketAddr::V6(a), SocketAddr::V6(b))
        if a.scope_id() != 0 && b.scope_id() != 0 && a.scope_id() != b.scope_id());
    !other_link && (same_group || (other.interface != 0 && covers))
}

fn exact(diag: &mut Diag, local: SocketAddr, remote: SocketAddr) -> Result<Found, AttestRefusal> {
    match diag.exact(local, remote) {
        Ok(Some(found)) => Ok(found),
        Ok(None) => refuse(AttestReason::NoSocket, format!("no socket has {local} here and {remote} as its peer")),
        Err(e) => Err(unavailable(&e)),
    }
}

fn unavailable(e: &io::Error) -> AttestRefusal {
    AttestRefusal::new(AttestReason::Unavailable, format!("sock_diag: {e}"))
}

fn with_file(found: Found) -> Result<Found, AttestRefusal> {
    if found.inode == 0 {
        return refuse(AttestReason::HolderUnseen, "no process has the socket open any more");
    }
    Ok(found)
}

/// Equal addresses; a scope counts where both have one.
fn same(a: SocketAddr, b: SocketAddr) -> bool {
    let scopes_agree = match (a, b) {
        (SocketAddr::V6(a), SocketAddr::V6(b)) => {
            a.scope_id() == b.scope_id() || a.scope_id() == 0 || b.scope_id() == 0
        }
        _ => true,
    };
    a.ip() == b.ip() && a.port() == b.port() && scopes_agree
}

/// Pins each holder and checks through the pin that it holds the socket, whoever had that PID during the walk.
fn pin(key: FlowKey, sockets: Vec<Found>, seen: &Sightings) -> Result<ProcHeld, AttestRefusal> {
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
        return refuse(AttestReason::Unavailable, format!("more than {HOLDERS_MAX} processes hold the socket"));
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
