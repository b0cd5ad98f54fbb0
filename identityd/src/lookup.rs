//! From a local address to the sockets that have it, for an operator who asks whose it is: the listener that a stranger
//! would reach there, else every connection from it.

use std::io;
use std::net::SocketAddr;

use bonafide_proto::flow::{FlowKey, NetNs, SocketRole, canonical};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use crate::refuse::refuse;
use crate::sys::diag::{Diag, Found};
use crate::sys::namespace::Namespace;

/// The most connections from one address that are looked at.
const CONNECTIONS_MAX: usize = 16;

/// What to ask about a local address; never empty. Blocks.
///
/// # Errors
/// `no-socket`, or `bad-request` for what is nobody's address, or that of too many connections.
pub(crate) fn sockets(local: SocketAddr) -> Result<Vec<FlowKey>, AttestRefusal> {
    let local = canonical(local);
    if local.ip().is_unspecified() || local.port() == 0 {
        let detail = format!("{local} is not one socket's address; name one that is, with its port");
        return refuse(AttestReason::BadRequest, detail);
    }
    keys(local).unwrap_or_else(|e| refuse(AttestReason::Unavailable, format!("sock_diag: {e}")))
}

fn keys(local: SocketAddr) -> io::Result<Result<Vec<FlowKey>, AttestRefusal>> {
    let netns = NetNs(Namespace::own("net")?.ino);
    let mut diag = Diag::open()?;
    // A stranger: port 1 is nobody's.
    let stranger = SocketAddr::new(local.ip(), 1);
    let key = |remote, role| FlowKey { netns, local, remote, role };
    if diag.exact(local, stranger)?.is_some_and(|found| found.listens) {
        return Ok(Ok(vec![key(stranger, SocketRole::Listener)]));
    }
    let from = |found: &Found| !found.listens && found.inode != 0 && found.local == local;
    let connections: Vec<Found> = diag.connections(local.port())?.into_iter().filter(from).collect();
    Ok(match connections.len() {
        0 => refuse(AttestReason::NoSocket, format!("no socket listens on {local}, and none is connected from it")),
        1..=CONNECTIONS_MAX => Ok(connections.iter().map(|c| key(c.remote, SocketRole::Connector)).collect()),
        many => refuse(AttestReason::BadRequest, format!("{many} connections come from {local}; name a process")),
    })
}
