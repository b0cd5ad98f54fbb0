//! Connections that were there before the rules, and go on as they were when the mode changes to enforce.
//!
//! Enforcing refuses what has no mark and is no first packet: it could be a forgery. So the older connections get a mark
//! of their own, in the one place that both engines look at and that no workload can write: connection tracking.
//!
//! ```text
//!   observing ──load the rules that let older connections be──► every new connection is marked by its first packet
//!             ──list the sockets, mark what has none──────────► what lives without a mark is older than those rules
//!             ──load the rules of enforce─────────────────────► what has no mark now is no connection of this host
//! ```
//!
//! There is no moment in between at which a connection can begin unseen. A mark is given only where the kernel shows a
//! socket with exactly these addresses, and never in place of another one: a captured connection stays captured. It
//! lets pass no first packet. It is taken back within a refresh of the socket's end, so that a program that can write
//! raw packets has no more use of it than the connection's own program had.
//!
//! The roads not taken: an nftables set of addresses does not exist for iptables without ipset, which may be missing,
//! and a FIN or an answer that was translated is no member of it. Marking the packets that pass meanwhile misses every
//! connection that is idle. A connection whose SYN was not answered yet gets no mark: its next SYN is captured.

use std::collections::HashSet;
use std::io;

use super::mark::{MASK, OLDER};
use crate::sys::connections::{self, Connection};
use crate::sys::conntrack::{Conntrack, Tuple};

/// More ends of connections than this are not spared: the table of connection tracking has its own limit.
const ENDS_MAX: usize = 262_144;

/// The connections that were spared and have not ended.
#[derive(Debug, Default)]
pub(super) struct Older {
    ends: HashSet<Tuple>,
}

impl Older {
    /// Marks every connection that lives and that no rule has marked. To be called while rules are loaded that capture
    /// what is new and let be what is older.
    pub(super) async fn spare() -> io::Result<Self> {
        blocking(mark_unmarked).await
    }

    /// Takes back the marks of connections that have ended.
    pub(super) async fn forget_ended(&mut self) -> io::Result<()> {
        if self.ends.is_empty() {
            return Ok(());
        }
        let ends = std::mem::take(&mut self.ends);
        let (alive, outcome) = blocking(move || Ok(without_ended(ends))).await?;
        self.ends = alive;
        outcome
    }

    /// How many ends of connections were spared.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

/// Takes back all such marks, also those of an enforcer that is gone.
pub(super) async fn forget() -> io::Result<()> {
    blocking(|| Conntrack::open()?.clear(OLDER, MASK)).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn mark_unmarked() -> io::Result<Older> {
    let mut conntrack = Conntrack::open()?;
    let mut older = Older::default();
    for end in connections::list()?.iter().map(tuple) {
        if older.ends.len() == ENDS_MAX {
            tracing::warn!("more than {ENDS_MAX} ends of connections are older than the rules; the others are reset");
            break;
        }
        if mark(&mut conntrack, end)? {
            older.ends.insert(end);
        }
    }
    Ok(older)
}

/// Returns whether it is an older connection.
fn mark(conntrack: &mut Conntrack, end: Tuple) -> io::Result<bool> {
    match conntrack.mark(end)? {
        None => conntrack.remember(end, OLDER)?,
        Some(mark) if mark & MASK == 0 => conntrack.set_mark(end, OLDER, MASK)?,
        Some(mark) => return Ok(mark & MASK == OLDER),
    }
    Ok(true)
}

/// Those that live; and what went wrong, in which case the others are tried again.
fn without_ended(mut ends: HashSet<Tuple>) -> (HashSet<Tuple>, io::Result<()>) {
    let outcome = (|| {
        let alive: HashSet<Tuple> = connections::list()?.iter().map(tuple).collect();
        let ended: Vec<Tuple> = ends.iter().copied().filter(|end| !is_alive(&alive, *end)).collect();
        let mut conntrack = Conntrack::open()?;
        for end in ended {
            if conntrack.mark(end)?.is_some_and(|mark| mark & MASK == OLDER) {
                conntrack.set_mark(end, 0, MASK)?;
            }
            ends.remove(&end);
        }
        Ok(())
    })();
    (ends, outcome)
}

/// Both ends of a connection inside this host share one mark.
fn is_alive(alive: &HashSet<Tuple>, end: Tuple) -> bool {
    alive.contains(&end) || alive.contains(&Tuple { from: end.to, to: end.from })
}

fn tuple(connection: &Connection) -> Tuple {
    Tuple { from: connection.local, to: connection.remote }
}
