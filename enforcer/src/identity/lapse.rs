//! Lapses as identityd tells them: what must be asked again. What is not understood concerns everything.

use std::net::{IpAddr, SocketAddr};

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::flow::{FlowKey, canonical};
use bonafide_proto::revoked::Barred;
use bonafide_proto::wire::node as wire;

/// A process, whatever it executes: of what it did, an execution of it that was attested is not to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pid: u32,
    start_ticks: u64,
}

impl From<Execution> for Process {
    fn from(execution: Execution) -> Self {
        Self { pid: execution.pid, start_ticks: execution.start_ticks }
    }
}

/// A program's own socket, by its addresses without IPv6 scopes, which not everybody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Socket {
    local: (IpAddr, u16),
    remote: (IpAddr, u16),
}

impl Socket {
    pub(crate) fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        let plain = |addr: SocketAddr| (canonical(addr).ip(), addr.port());
        Self { local: plain(local), remote: plain(remote) }
    }
}

impl From<FlowKey> for Socket {
    fn from(key: FlowKey) -> Self {
        Self::new(key.local, key.remote)
    }
}

/// What was attested before and may be so no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lapsed {
    /// The evidence about this process changed.
    Process(Process),
    /// This socket was used by another program than the one that was attested; by whom, where that is known for sure.
    Socket(Socket, Option<Execution>),
    /// Another process of the same program used this socket.
    Kin(Socket, Execution),
    /// Others may hold the sockets of this process by now.
    Holders(Process),
    /// All of it: nobody knows what changed.
    Everything,
}

/// A lapse, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lapse {
    /// What must be asked again.
    pub(crate) what: Lapsed,
    /// What changed, in words.
    pub(crate) why: String,
    /// When a socket was used, in nanoseconds since boot; 0 if that is not known.
    pub(crate) at_ns: u64,
}

impl Lapse {
    /// Everything must be asked again.
    pub(super) fn of_everything(why: impl Into<String>) -> Self {
        Self { what: Lapsed::Everything, why: why.into(), at_ns: 0 }
    }

    /// Whether an answer about these executions may be another one now. A socket's lapse is no word about who a program
    /// is.
    pub(crate) fn concerns(&self, executions: &[Execution]) -> bool {
        match self.what {
            Lapsed::Process(process) | Lapsed::Holders(process) => {
                executions.iter().any(|execution| process == (*execution).into())
            }
            Lapsed::Socket(..) | Lapsed::Kin(..) => false,
            Lapsed::Everything => true,
        }
    }

    /// The socket that it is about.
    pub(super) fn socket(&self) -> Option<Socket> {
        match self.what {
            Lapsed::Socket(socket, _) | Lapsed::Kin(socket, _) => Some(socket),
            Lapsed::Process(_) | Lapsed::Holders(_) | Lapsed::Everything => None,
        }
    }

    /// Who of the same program used this socket, besides these.
    pub(crate) fn kin(&self, socket: Socket, executions: &[Execution]) -> Option<Execution> {
        match self.what {
            Lapsed::Kin(used, by) if used == socket && !executions.contains(&by) => Some(by),
            _ => None,
        }
    }

    /// Whether it is to be asked who holds the sockets, and not only who the holders are that are known.
    pub(crate) fn concerns_holders(&self) -> bool {
        matches!(self.what, Lapsed::Holders(_) | Lapsed::Everything)
    }

    /// Whether a flow of these executions through this socket must end: somebody else used it.
    pub(crate) fn ends(&self, socket: Socket, executions: &[Execution]) -> bool {
        let Lapsed::Socket(used, by) = self.what else { return false };
        used == socket && by.is_none_or(|by| !executions.contains(&by))
    }
}

/// What is in quarantine, or revoked.
pub(crate) type Quarantine = Barred;

/// What identityd tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// From now on lapses are told.
    Ready,
    /// Something lapsed.
    Lapse(Lapse),
    /// All that is in quarantine, or revoked.
    Quarantine(Quarantine),
}

impl From<wire::Lapse> for Told {
    fn from(told: wire::Lapse) -> Self {
        use wire::lapse::Of;
        let why = words(&told.reason, told.detail);
        let at_ns = match &told.of {
            Some(Of::Flow(flow) | Of::Kin(flow)) => flow.at_ns,
            _ => 0,
        };
        let what = match told.of {
            Some(Of::Ready(_)) => return Self::Ready,
            Some(Of::Quarantine(quarantine)) => {
                return Barred::try_from(quarantine).map_or_else(|_| Self::garbled(), Self::Quarantine);
            }
            Some(Of::Execution(execution)) => Execution::try_from(execution).ok().map(|e| Lapsed::Process(e.into())),
            Some(Of::Flow(flow)) => {
                let by = flow.used_by.and_then(|by| Execution::try_from(by).ok());
                // Without its number it may have been another program when it was attested.
                socket(flow).map(|socket| Lapsed::Socket(socket, by.filter(|by| by.image != 0)))
            }
            Some(Of::Kin(flow)) => {
                let by = flow.used_by.and_then(|by| Execution::try_from(by).ok());
                socket(flow).zip(by).map(|(socket, by)| Lapsed::Kin(socket, by))
            }
            Some(Of::Holders(execution)) => Execution::try_from(execution).ok().map(|e| Lapsed::Holders(e.into())),
            Some(Of::Everything(_)) => Some(Lapsed::Everything),
            None => None,
        };
        what.map_or_else(Self::garbled, |what| Self::Lapse(Lapse { what, why, at_ns }))
    }
}

impl Told {
    fn garbled() -> Self {
        Self::Lapse(Lapse::of_everything("identityd told of a change that this version does not understand"))
    }
}

fn words(reason: &str, detail: String) -> String {
    match (reason, detail.as_str()) {
        ("", _) => detail,
        (reason, "") => reason.to_owned(),
        (reason, detail) => format!("{reason}: {detail}"),
    }
}

fn socket(flow: wire::lapse::Flow) -> Option<Socket> {
    let (local, remote) = (flow.local?.try_into().ok()?, flow.remote?.try_into().ok()?);
    Some(Socket::new(local, remote))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(of: Option<wire::lapse::Of>) -> Told {
        wire::Lapse { of, reason: "generation-gone".into(), detail: "it ran /x".into() }.into()
    }

    #[test]
    fn a_lapse_names_what_must_be_asked_again() {
        use wire::lapse::{Flow, Of};
        let execution = Execution { pid: 7, start_ticks: 8, image: 9 };
        let what = |told: Told| match told {
            Told::Lapse(lapse) => (lapse.what, lapse.why),
            other => panic!("{other:?}"),
        };
        let why = "generation-gone: it ran /x".to_owned();
        assert_eq!(what(told(Some(Of::Execution(execution.into())))), (Lapsed::Process(execution.into()), why.clone()));
        assert_eq!(what(told(Some(Of::Holders(execution.into())))), (Lapsed::Holders(execution.into()), why.clone()));
        assert_eq!(what(told(Some(Of::Everything(true)))), (Lapsed::Everything, why.clone()));
        let (local, remote): (SocketAddr, SocketAddr) =
            ("[::ffff:10.0.0.1]:4000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
        let socket = Socket::new("10.0.0.1:4000".parse().unwrap(), remote);
        let unwitnessed = Execution { image: 0, ..execution };
        for (by, known) in [(None, None), (Some(execution), Some(execution)), (Some(unwitnessed), None)] {
            let used_by = by.map(Into::into);
            let flow = Flow { local: Some(local.into()), remote: Some(remote.into()), used_by, at_ns: 5 };
            assert_eq!(what(told(Some(Of::Flow(flow)))), (Lapsed::Socket(socket, known), why.clone()));
        }
        assert_eq!(told(Some(Of::Ready(true))), Told::Ready);
    }

    #[test]
    fn a_socket_that_its_own_program_uses_ends_no_flow() {
        let ends = ["10.0.0.1:4000".parse().unwrap(), "10.0.0.2:80".parse().unwrap(), "10.0.0.3:80".parse().unwrap()];
        let (socket, other) = (Socket::new(ends[0], ends[1]), Socket::new(ends[0], ends[2]));
        let [one, two] = [7, 8].map(|pid| Execution { pid, start_ticks: 8, image: 9 });
        let lapse = |by| Lapse { what: Lapsed::Socket(socket, by), why: String::new(), at_ns: 0 };
        assert!(lapse(Some(one)).ends(socket, &[two]));
        assert!(!lapse(Some(one)).ends(socket, &[two, one]));
        assert!(lapse(None).ends(socket, &[two, one]));
        assert!(!lapse(None).ends(other, &[two]));
        assert!(!Lapse::of_everything("").ends(socket, &[two]));
    }

    #[test]
    fn what_is_not_understood_concerns_everything() {
        use wire::lapse::{Flow, Of};
        let no_pid = wire::Execution { pid: 0, start_ticks: 1, image: 1 };
        let no_address = Flow { local: None, remote: None, used_by: None, at_ns: 0 };
        let no_digest = wire::Quarantine { sha256: vec![vec![1; 31]], revoked: None };
        for of in [
            None,
            Some(Of::Execution(no_pid)),
            Some(Of::Flow(no_address.clone())),
            Some(Of::Kin(no_address)),
            Some(Of::Quarantine(no_digest)),
        ] {
            let Told::Lapse(lapse) = told(of) else { panic!("no lapse") };
            assert_eq!(lapse.what, Lapsed::Everything);
        }
    }
}
