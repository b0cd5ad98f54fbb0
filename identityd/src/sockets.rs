//! Which sockets a question is about, by sock_diag.
//!
//! For a listener the question is put with the very addresses the enforcer is about to use, so the kernel picks the
//! member of an `SO_REUSEPORT` group. But a member may steer the group by a BPF program of its own, which sock_diag does not
//! run; so every listener that could be picked is held to the same program.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::flow::{FlowKey, SocketRole, canonical};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use crate::refuse::refuse;
use crate::sys::diag::{Diag, Found};

/// Asks sock_diag in this daemon's network namespace.
#[derive(Debug, Clone)]
pub(crate) struct Sockets {
    diag: Arc<Mutex<Diag>>,
}

impl Sockets {
    /// Opens what it needs.
    ///
    /// # Errors
    /// The kernel has no sock_diag.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { diag: Arc::new(Mutex::new(Diag::open()?)) })
    }

    /// The sockets that this question is about: the one that connected, or every one that could accept.
    ///
    /// # Errors
    /// `no-socket`; `holder-unseen` if no file refers to one any more; `unavailable`.
    pub(crate) async fn of(&self, key: FlowKey) -> Result<Vec<Found>, AttestRefusal> {
        self.ask(move |diag| match key.role {
            SocketRole::Connector => connector(diag, key).map(|found| vec![found]),
            SocketRole::Listener => listeners(diag, key),
        })
        .await
    }

    /// What is left of the sockets that these questions were about, each once: a connection, or as long as nobody has
    /// accepted it, every listener that could. Such as no file refers to are left out: nobody can use them.
    ///
    /// # Errors
    /// `unavailable`.
    pub(crate) async fn left(&self, keys: Vec<FlowKey>) -> Result<Vec<Found>, AttestRefusal> {
        let mut all: Vec<Found> = self
            .ask(move |diag| {
                let each: Result<Vec<Vec<Found>>, _> = keys.into_iter().map(|key| left(diag, key)).collect();
                Ok(each?.concat())
            })
            .await?;
        all.sort_by_key(|found| found.cookie);
        all.dedup_by_key(|found| found.cookie);
        Ok(all)
    }

    /// One of the connections with these cookies, if a file refers to any.
    ///
    /// # Errors
    /// `unavailable`.
    pub(crate) async fn open_among(&self, cookies: HashSet<[u8; 8]>) -> Result<Option<Found>, AttestRefusal> {
        self.ask(move |diag| {
            let all = diag.connections(0).map_err(|e| unavailable(&e))?;
            Ok(all.into_iter().find(|found| found.inode != 0 && cookies.contains(&found.cookie)))
        })
        .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Diag) -> Result<T, AttestRefusal> + Send + 'static,
    ) -> Result<T, AttestRefusal> {
        let diag = Arc::clone(&self.diag);
        let asked = move || question(&mut diag.lock().unwrap_or_else(PoisonError::into_inner));
        match tokio::task::spawn_blocking(asked).await {
            Ok(answer) => answer,
            Err(e) => refuse(AttestReason::Unavailable, format!("sock_diag: {e}")),
        }
    }
}

fn left(diag: &mut Diag, key: FlowKey) -> Result<Vec<Found>, AttestRefusal> {
    let found = match (key.role, connector(diag, key)) {
        (SocketRole::Connector, connected) => connected.map(|found| vec![found]),
        (SocketRole::Listener, Ok(accepted)) => Ok(vec![accepted]),
        // Nobody has accepted it, or nobody has it any more. No connection has the port 0.
        (SocketRole::Listener, Err(_)) => {
            let mut remote = key.remote;
            remote.set_port(0);
            listeners(diag, FlowKey { remote, ..key })
        }
    };
    match found {
        Err(refusal) if refusal.reason == AttestReason::Unavailable => Err(refusal),
        found => Ok(found.unwrap_or_default()),
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
pub(crate) fn same(a: SocketAddr, b: SocketAddr) -> bool {
    let scopes_agree = match (a, b) {
        (SocketAddr::V6(a), SocketAddr::V6(b)) => {
            a.scope_id() == b.scope_id() || a.scope_id() == 0 || b.scope_id() == 0
        }
        _ => true,
    };
    a.ip() == b.ip() && a.port() == b.port() && scopes_agree
}
