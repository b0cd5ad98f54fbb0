//! Who has sockets of a program that was attested, and is another program: a descendant that executed something else
//! and kept them, or somebody to whom they were handed.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Eyes;
use super::changes::Believed;
use super::shares::{Limits, Shares, Ticket};
use super::table::Program;
use crate::events::Use;
use crate::refuse::refuse;
use crate::sys::diag::{Diag, Found};
use crate::sys::glance::{Glimpse, glance};
use crate::sys::uptime;
use crate::sys::walk;
use crate::witness::Witnessed;

/// Doubts that are looked into at once, and that may wait for it.
const LIMITS: Limits = Limits { each: 16, all: 64, each_admitted: 1024, all_admitted: 4096 };
/// A program that takes longer to be looked at is not known to be the same; nor is one whose turn does not come.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// How long until one that changes is looked at again, and how often. It has the socket meanwhile.
const BEGINS: Duration = Duration::from_millis(10);
const BEGINNINGS: u32 = 6;

/// Whether a socket is still in the right hands.
#[derive(Debug, Clone)]
pub(crate) enum Doubt {
    /// Somebody who had the sockets of this program executed something.
    Heir {
        /// What runs now.
        now: Execution,
        /// What ran before.
        program: Program,
        /// Who had them.
        owners: Vec<Execution>,
    },
    /// A socket was used by somebody else.
    Stranger {
        /// The use.
        used: Use,
        /// Whose it is; pid 0 if that is not known.
        owner: Execution,
        /// What that is, if it is or was watched.
        program: Option<Program>,
    },
}

/// Whose socket, and who used it.
type Stranger = (SocketAddr, SocketAddr, Execution);

/// Doubts, until they are looked into.
#[derive(Debug)]
pub(crate) struct Heirs {
    shares: Arc<Shares>,
    /// Who waits to be looked at.
    strangers: Mutex<HashSet<Stranger>>,
    to: mpsc::Sender<(Ticket, Doubt)>,
    doubts: Mutex<Option<mpsc::Receiver<(Ticket, Doubt)>>>,
    diag: Arc<Mutex<Diag>>,
}

impl Heirs {
    /// None yet.
    pub(crate) fn new() -> io::Result<Self> {
        let (to, doubts) = mpsc::channel(LIMITS.all_admitted);
        let (doubts, diag) = (Mutex::new(Some(doubts)), Arc::new(Mutex::new(Diag::open()?)));
        Ok(Self { shares: Shares::new(LIMITS), strangers: Mutex::default(), to, doubts, diag })
    }

    /// To be looked into; handed back if too many wait.
    pub(crate) fn put(&self, account: u32, doubt: Doubt) -> Result<(), Doubt> {
        if !self.is_new(&doubt) {
            return Ok(());
        }
        match self.shares.admit(account) {
            Some(ticket) => self.to.try_send((ticket, doubt)).map_err(|full| full.into_inner().1),
            None => {
                self.begin(&doubt);
                Err(doubt)
            }
        }
    }

    /// A stranger is told of as long as he goes on: he is looked at once for all that is waiting.
    fn is_new(&self, doubt: &Doubt) -> bool {
        doubt.stranger().is_none_or(|stranger| self.strangers().insert(stranger))
    }

    /// It does not wait any more.
    fn begin(&self, doubt: &Doubt) {
        if let Some(stranger) = doubt.stranger() {
            self.strangers().remove(&stranger);
        }
    }

    fn strangers(&self) -> MutexGuard<'_, HashSet<Stranger>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Doubt {
    /// Whom it is about.
    pub(crate) fn about(&self) -> Execution {
        match self {
            Self::Heir { now, .. } => *now,
            Self::Stranger { used, .. } => used.by,
        }
    }

    fn stranger(&self) -> Option<Stranger> {
        match self {
            Self::Heir { .. } => None,
            Self::Stranger { used, .. } => Some((used.local, used.remote, used.by)),
        }
    }
}

/// Looks into doubts as they come, each on the account of whom it is about.
pub(crate) async fn run(eyes: Arc<Eyes>) {
    let doubts = eyes.heirs.doubts.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(mut doubts) = doubts else { return };
    let (found, heirs) = mpsc::channel(LIMITS.all_admitted);
    let mut under_way = JoinSet::new();
    under_way.spawn(disinherit(Arc::clone(&eyes), heirs));
    while let Some((ticket, doubt)) = doubts.recv().await {
        while let Some(ended) = under_way.try_join_next() {
            if let Err(e) = ended {
                eyes.everything(format!("a doubt was not looked into: {e}"));
            }
        }
        let (eyes, found) = (Arc::clone(&eyes), found.clone());
        under_way.spawn(async move {
            if let Some(heir) = eyes.look_into(&ticket, doubt).await {
                // Nobody takes them any more: the daemon stops.
                let _ = found.send(heir).await;
            }
        });
    }
}

/// Tells of the connections of heirs, with one list of the machine's for all who wait.
async fn disinherit(eyes: Arc<Eyes>, mut heirs: mpsc::Receiver<Heir>) {
    let mut some = Vec::new();
    while heirs.recv_many(&mut some, LIMITS.all_admitted).await > 0 {
        eyes.disinherit(std::mem::take(&mut some)).await;
    }
}

/// Another program, and the sockets it has.
struct Heir {
    now: Execution,
    sockets: HashSet<u64>,
}

impl Eyes {
    async fn look_into(&self, ticket: &Ticket, doubt: Doubt) -> Option<Heir> {
        self.heirs.begin(&doubt);
        match doubt {
            Doubt::Heir { now, program, owners } => self.heir(ticket, now, program, &owners).await,
            Doubt::Stranger { used, owner, program } => {
                match self.is_same(ticket, used.by, owner, program).await {
                    true => self.kin(used),
                    false => self.flow(used, "which runs another program"),
                }
                None
            }
        }
    }

    /// Whether it runs the program that the owner ran when it was attested, or runs now.
    async fn is_same(&self, ticket: &Ticket, by: Execution, owner: Execution, program: Option<Program>) -> bool {
        let Ok(_turn) = timeout(LOOK_MAX, ticket.turn()).await else { return false };
        let program = match program {
            Some(program) => program,
            None if owner.pid == 0 => return false,
            None => match self.program(owner).await {
                Ok(program) => program,
                Err(_) => return false,
            },
        };
        self.runs(by, program).await.unwrap_or(false)
    }

    /// The sockets that somebody has who executed something, if it is not the same program again.
    async fn heir(&self, ticket: &Ticket, now: Execution, program: Program, owners: &[Execution]) -> Option<Heir> {
        let Ok(_turn) = timeout(LOOK_MAX, ticket.turn()).await else {
            // Whoever holds what it should not is found by the sockets.
            self.everything(format!("process {} executed a program, and there was no time to look at it", now.pid));
            return None;
        };
        let listed = tokio::task::spawn_blocking(move || walk::sockets_of(now.pid)).await;
        let sockets = match listed.unwrap_or_else(|e| Err(io::Error::other(e))) {
            Ok(sockets) => sockets,
            Err(e) => {
                self.everything(format!("the open files of process {} cannot be listed: {e}", now.pid));
                return None;
            }
        };
        // Who ended has no sockets either.
        if sockets.is_empty() {
            return None;
        }
        if self.runs(now, program).await? {
            for owner in owners.iter().filter(|owner| owner.pid != now.pid) {
                self.shared(*owner, format!("process {} runs the same program, and has its sockets", now.pid));
            }
            return None;
        }
        Some(Heir { now, sockets })
    }

    /// Whether it runs this program; `None` if it ended.
    async fn runs(&self, execution: Execution, program: Program) -> Option<bool> {
        let glanced = tokio::task::spawn_blocking(move || glance(execution)).await;
        match glanced {
            Ok(Ok(Glimpse::Ended)) => return None,
            // Another file is another program: nothing has to be hashed to see that.
            Ok(Ok(Glimpse::Lives(glance))) if glance.image.exe != program.exe => return Some(false),
            _ => {}
        }
        match self.program(execution).await {
            Ok(runs) if runs == program => {
                // What it executes next counts too.
                self.known().table.inherit(execution, program);
                Some(true)
            }
            Err(refusal) if refusal.reason == AttestReason::ProcessGone => None,
            Ok(_) | Err(_) => Some(false),
        }
    }

    async fn program(&self, execution: Execution) -> Result<Program, AttestRefusal> {
        let looked = timeout(LOOK_MAX, self.looked_at(&[execution])).await;
        let seen = looked.unwrap_or_else(|_| refuse(AttestReason::Unavailable, "no answer in time"))?;
        let program = seen.first().map(|seen| Program::of(&Believed::of(seen)));
        program.ok_or_else(|| AttestRefusal::new(AttestReason::Unavailable, "nothing was looked at"))
    }

    /// A program that has just begun changes while it is looked at: it loads its libraries, and drops its privileges.
    async fn looked_at(&self, executions: &[Execution]) -> Result<Vec<Witnessed>, AttestRefusal> {
        for _ in 0..BEGINNINGS {
            match self.witness.examine(executions).await {
                Err(refusal) if refusal.reason == AttestReason::GenerationGone => tokio::time::sleep(BEGINS).await,
                answer => return answer,
            }
        }
        self.witness.examine(executions).await
    }

    /// Tells of every connection among the sockets of these.
    async fn disinherit(&self, heirs: Vec<Heir>) {
        let diag = Arc::clone(&self.heirs.diag);
        let listed =
            tokio::task::spawn_blocking(move || diag.lock().unwrap_or_else(PoisonError::into_inner).connections(0));
        let connections: Vec<Found> = match listed.await.unwrap_or_else(|e| Err(io::Error::other(e))) {
            Ok(connections) => connections,
            Err(e) => return self.everything(format!("the machine's connections cannot be listed: {e}")),
        };
        let Ok(at_ns) = uptime::at_most() else {
            return self.everything("the time since boot cannot be read".to_owned());
        };
        for found in connections {
            for heir in heirs.iter().filter(|heir| heir.sockets.contains(&found.inode)) {
                let used = Use { local: found.local, remote: found.remote, by: heir.now, at_ns };
                self.flow(used, "which executed another program and kept it");
            }
        }
    }
}
