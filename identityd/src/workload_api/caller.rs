//! Who asks over a connection: the execution that had it when it was accepted, and the cookie by which its other end is
//! found.
//!
//! A process number alone would be worth nothing: it can be another process by now, or the same one that executed another
//! program with the connection still open. Who connected may have done so even before the connection was accepted, and
//! left a copy with an accomplice. So the answer goes by who *has* the other end at that moment, every process
//! ([`crate::source::SocketSource::across`]); what is kept here only refuses more.

use std::os::fd::AsFd;

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::net::UnixStream;

use crate::execs::Execs;
use crate::refuse::refuse;
use crate::sys::process::Process;

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    cookie: u64,
    connected: Result<Execution, AttestRefusal>,
}

impl Caller {
    /// Of a connection that was just accepted.
    pub(super) fn of(stream: &UnixStream, execs: &dyn Execs) -> Self {
        let cookie = rustix::net::sockopt::socket_cookie(stream.as_fd());
        Self { cookie: cookie.unwrap_or_default(), connected: connected(stream, execs) }
    }

    /// Of this end of the connection; no socket has 0.
    pub(crate) fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The execution that had the other end.
    ///
    /// # Errors
    /// Why it is not known.
    pub(crate) fn connected(&self) -> Result<Execution, AttestRefusal> {
        self.connected.clone()
    }
}

fn connected(stream: &UnixStream, execs: &dyn Execs) -> Result<Execution, AttestRefusal> {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(|pid| u32::try_from(pid).ok());
    let Some(pid) = pid.filter(|pid| *pid != 0) else {
        return refuse(AttestReason::HolderUnseen, "the kernel does not say which process connected");
    };
    let execution = Process::pin(pid)?.execution();
    match execs.counted(pid, execution.start_ticks) {
        Some(counted) => Ok(Execution { image: counted.image, ..execution }),
        None if execs.witnesses() => {
            refuse(AttestReason::ExeUnwitnessed, format!("nothing is recorded of what process {pid} executed"))
        }
        None => Ok(execution),
    }
}
