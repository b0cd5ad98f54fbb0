//! The source that cannot be fooled about who connected: the record that the kernel programs wrote at `connect()`, and
//! a walk in the kernel for whoever else holds the socket.
//!
//! A record without doubts is the whole answer: the process that it names made the socket, asked for the connection and
//! held it alone. If it hands the socket on later, that is told as soon as somebody else uses it ([`Event::Used`]).
//!
//! [`Event::Used`]: crate::events::Event::Used

use std::io;
use std::sync::Arc;

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::flow::{FlowKey, NetNs, SocketRole};
use bonafide_proto::kernel::{ConnectRecord, Doubts};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use super::execs::KernelExecs;
use super::load::Programs;
use super::walk::{Calls, Seen, walk};
use crate::execs::Execs as _;
use crate::refuse::refuse;
use crate::sockets::Sockets;
use crate::source::{Held, Known, SocketSource};
use crate::sys::diag::Found;
use crate::sys::namespace::Namespace;
use crate::walks::Walks;

/// Asks the kernel programs.
#[derive(Debug)]
pub(crate) struct KernelSource {
    netns: NetNs,
    sockets: Sockets,
    walks: Walks<Seen>,
    execs: Arc<KernelExecs>,
    uses_are_told: bool,
}

/// What the programs said.
#[derive(Debug)]
pub(crate) struct KernelHeld {
    /// The question, and the sockets that were found by their addresses; none where they are known for sure.
    question: Option<(FlowKey, Vec<Found>)>,
    executions: Vec<Execution>,
}

impl Held for KernelHeld {
    fn executions(&self) -> &[Execution] {
        &self.executions
    }
}

impl KernelSource {
    /// Opens what it needs besides, in this daemon's own network namespace.
    ///
    /// # Errors
    /// The kernel has no sock_diag, or `/proc` is not mounted.
    pub(super) fn open(programs: &Arc<Programs>, execs: Arc<KernelExecs>) -> io::Result<Self> {
        let netns = NetNs(Namespace::own("net")?.ino);
        let uses_are_told = programs.uses_are_told;
        let programs = Arc::clone(programs);
        let walks = Walks::with(move |sought| walk(&programs, sought));
        Ok(Self { netns, sockets: Sockets::open()?, walks, execs, uses_are_told })
    }

    async fn connector(&self, record: ConnectRecord) -> Result<KernelHeld, AttestRefusal> {
        named_by(&record)?;
        let connector = connector_of(&record);
        let executions = match self.unchanged(connector) {
            Ok(()) if alone(record.doubts) => vec![connector],
            // A child of it runs what it did, and may have the socket.
            Err(refusal) if refusal.reason != AttestReason::ProcessGone || self.is_over(&record) => {
                return Err(refusal);
            }
            _ => self.holders(&[record.cookie], SocketRole::Connector).await?,
        };
        if !executions.iter().any(|holder| self.execs.is_same(record.image, holder.image)) {
            let detail = format!("process {} connected the socket, and only another program holds it", record.pid);
            return refuse(AttestReason::ConnectorDiffers, detail);
        }
        Ok(KernelHeld { question: None, executions })
    }

    async fn by_addresses(&self, key: FlowKey) -> Result<KernelHeld, AttestRefusal> {
        let sockets = self.sockets.of(key).await?;
        let cookies: Vec<u64> = sockets.iter().map(|found| number(found.cookie)).collect();
        let executions = self.holders(&cookies, key.role).await?;
        Ok(KernelHeld { question: Some((key, sockets)), executions })
    }

    async fn holders(&self, cookies: &[u64], role: SocketRole) -> Result<Vec<Execution>, AttestRefusal> {
        let calls = match (self.uses_are_told, role) {
            (false, _) => Calls::NotBelieved,
            (true, SocketRole::Connector) => Calls::OfThreads,
            (true, SocketRole::Listener) => Calls::OfPollers,
        };
        self.walks.seek(cookies.to_vec()).await?.holders(cookies, calls)
    }

    /// Nobody has these connections any more, not even where no walk comes.
    async fn are_closed(&self, cookies: Vec<u64>) -> Result<(), AttestRefusal> {
        if cookies.is_empty() {
            return Ok(());
        }
        let open = self.sockets.open_among(cookies.into_iter().map(as_told).collect()).await?;
        open.map_or(Ok(()), |open| {
            let detail =
                format!("the socket {} to {} is open, and in no process's file table", open.local, open.remote);
            refuse(AttestReason::HolderUnseen, detail)
        })
    }

    fn is_here(&self, key: FlowKey) -> Result<(), AttestRefusal> {
        if key.netns == self.netns {
            return Ok(());
        }
        let detail = format!("the flow is in network namespace {}, this daemon in {}", key.netns.0, self.netns.0);
        refuse(AttestReason::OtherNetns, detail)
    }

    /// Whether the process still runs what it did.
    fn unchanged(&self, execution: Execution) -> Result<(), AttestRefusal> {
        let pid = execution.pid;
        match self.execs.image(pid, execution.start_ticks) {
            Some(image) if self.execs.is_same(execution.image, image) => Ok(()),
            Some(_) => refuse(AttestReason::GenerationGone, format!("process {pid} executed another program since")),
            None => refuse(AttestReason::ProcessGone, format!("process {pid} ended")),
        }
    }
}

impl SocketSource for KernelSource {
    type Held = KernelHeld;

    fn name(&self) -> &'static str {
        "kernel"
    }

    fn reason(&self) -> &str {
        ""
    }

    fn sees_connections(&self) -> bool {
        true
    }

    async fn holders(&self, key: FlowKey, record: Option<ConnectRecord>) -> Result<KernelHeld, AttestRefusal> {
        self.is_here(key)?;
        match record {
            Some(record) if key.role == SocketRole::Connector => self.connector(record).await,
            _ => self.by_addresses(key).await,
        }
    }

    async fn holders_by_now(&self, sockets: &[Known]) -> Result<Option<KernelHeld>, AttestRefusal> {
        sockets.iter().try_for_each(|known| self.is_here(known.key))?;
        let (recorded, unrecorded): (Vec<&Known>, Vec<&Known>) =
            sockets.iter().partition(|known| known.record.is_some());
        let left = self.sockets.left(unrecorded.iter().map(|known| known.key).collect()).await?;
        let found = left.iter().map(|found| number(found.cookie));
        let cookies: Vec<u64> = found.chain(recorded.iter().filter_map(|known| Some(known.record?.cookie))).collect();
        if cookies.is_empty() {
            return Ok(None);
        }
        let seen = self.walks.seek(cookies.clone()).await?;
        let (held, unheld) = seen.parted(&cookies);
        self.are_closed(unheld).await?;
        // Who is not believed to poll would lose every connection on which they wait for an answer.
        let executions = seen.holders(&held, Calls::OfPollers)?;
        Ok((!executions.is_empty()).then_some(KernelHeld { question: None, executions }))
    }

    async fn across(&self, cookie: u64) -> Result<KernelHeld, AttestRefusal> {
        // Nobody tells who uses a unix socket, so a reference that is not explained may be anybody's.
        let executions = self.walks.seek(vec![cookie]).await?.holders(&[cookie], Calls::NotBelieved)?;
        Ok(KernelHeld { question: None, executions })
    }

    fn is_over(&self, record: &ConnectRecord) -> bool {
        let ended = self.execs.image(record.pid, record.start_ticks()).is_none();
        ended && !self.execs.is_run(record.image)
    }

    async fn still_held(&self, held: &KernelHeld) -> Result<(), AttestRefusal> {
        if let Some((key, sockets)) = &held.question
            && self.sockets.of(*key).await? != *sockets
        {
            return refuse(AttestReason::GenerationGone, "another socket took the place of the one that was attested");
        }
        held.executions.iter().try_for_each(|execution| self.unchanged(*execution))
    }
}

/// Whether the record names a program at all.
fn named_by(record: &ConnectRecord) -> Result<(), AttestRefusal> {
    let (pid, doubts) = (record.pid, record.doubts);
    let (reason, detail) = if doubts.contains(Doubts::KERNEL_TASK) {
        (AttestReason::KernelTask, format!("the kernel itself connected, as process {pid}"))
    } else if doubts.contains(Doubts::NO_FILE) && record.references == 0 {
        (AttestReason::HolderUnseen, "the connection is behind no open file, as one of MPTCP's is".to_owned())
    } else if record.image == 0 {
        (AttestReason::ExeUnwitnessed, format!("nothing is recorded of what process {pid} executed"))
    } else if doubts.contains(Doubts::EXE_REPLACED) {
        (AttestReason::ExeReplaced, format!("process {pid} claims to run another file than the one it executed"))
    } else if doubts.contains(Doubts::ASKER_DIFFERS) {
        (AttestReason::ConnectorDiffers, format!("process {pid} began the connection that another program asked for"))
    } else {
        return Ok(());
    };
    refuse(reason, detail)
}

/// Whether nobody else can have had the socket when it was connected.
fn alone(doubts: Doubts) -> bool {
    doubts.0 & !Doubts::UNWITNESSED.0 == 0
}

/// Who connected.
fn connector_of(record: &ConnectRecord) -> Execution {
    Execution { pid: record.pid, start_ticks: record.start_ticks(), image: record.image }
}

/// A cookie as the kernel counts them: sock_diag tells the lower half first, whatever the byte order.
fn number(cookie: [u8; 8]) -> u64 {
    let [a, b, c, d, e, f, g, h] = cookie;
    u64::from(u32::from_ne_bytes([e, f, g, h])) << 32 | u64::from(u32::from_ne_bytes([a, b, c, d]))
}

/// A cookie as sock_diag tells it.
fn as_told(number: u64) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
    let [lower, upper] = [[a, b, c, d], [e, f, g, h]].map(|half| u32::from_le_bytes(half).to_ne_bytes());
    let ([a, b, c, d], [e, f, g, h]) = (lower, upper);
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_told_as_it_is_read() {
        for cookie in [1, 0x0102_0304_0506_0708, u64::MAX] {
            assert_eq!(number(as_told(cookie)), cookie);
        }
    }

    fn record(doubts: u32, references: u32, image: u64) -> ConnectRecord {
        let mut record = ConnectRecord::parse(&[1; 80]).unwrap();
        (record.doubts, record.references, record.image) = (Doubts(doubts), references, image);
        record
    }

    #[test]
    fn doubts_about_the_connector_itself_are_refusals() {
        use AttestReason::{ConnectorDiffers, ExeReplaced, ExeUnwitnessed, HolderUnseen, KernelTask};
        let reason = |record: ConnectRecord| named_by(&record).err().map(|refusal| refusal.reason);
        assert_eq!(reason(record(0, 1, 5)), None);
        assert_eq!(reason(record(Doubts::KERNEL_TASK.0, 0, 0)), Some(KernelTask));
        assert_eq!(reason(record(Doubts::NO_FILE.0, 0, 5)), Some(HolderUnseen));
        assert_eq!(reason(record(Doubts::NO_FILE.0, 1, 5)), None);
        assert_eq!(reason(record(Doubts::UNWITNESSED.0, 1, 0)), Some(ExeUnwitnessed));
        assert_eq!(reason(record(Doubts::EXE_REPLACED.0, 1, 5)), Some(ExeReplaced));
        assert_eq!(reason(record(Doubts::ASKER_DIFFERS.0, 1, 5)), Some(ConnectorDiffers));
    }

    #[test]
    fn only_a_process_that_nobody_witnessed_is_alone_in_spite_of_a_doubt() {
        assert!(alone(Doubts(0)) && alone(Doubts::UNWITNESSED));
        for bit in [0, 2, 3, 7] {
            assert!(!alone(Doubts(1 << bit | Doubts::UNWITNESSED.0)));
        }
    }
}
