//! Who has sockets of a program that was attested, and is another program: a descendant that executed something else
//! and kept them, or somebody to whom they were handed.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Eyes;
use super::changes::Believed;
use super::table::Program;
use crate::refuse::refuse;
use crate::sys::diag::{Diag, Found};
use crate::sys::glance::{Glimpse, glance};
use crate::sys::walk;
use crate::witness::Witnessed;

/// Doubts that may wait.
const WAITING_MAX: usize = 4096;
/// Doubts that are looked into at once, with one list of the machine's connections for all of them.
const AT_ONCE: usize = 64;
/// A program that takes longer to be looked at is not known to be the same.
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
    },
    /// A socket was used by somebody else.
    Stranger {
        /// Of the program's socket.
        local: SocketAddr,
        /// Of the program's socket.
        remote: SocketAddr,
        /// Whose it is; pid 0 if that is not known.
        owner: Execution,
        /// What that is, if it is or was watched.
        program: Option<Program>,
        /// Who used it.
        by: Execution,
    },
}

/// Doubts, until they are looked into.
#[derive(Debug)]
pub(crate) struct Heirs {
    to: mpsc::Sender<Doubt>,
    doubts: Mutex<Option<mpsc::Receiver<Doubt>>>,
    diag: Arc<Mutex<Diag>>,
}

impl Heirs {
    /// None yet.
    pub(crate) fn new() -> io::Result<Self> {
        let (to, doubts) = mpsc::channel(WAITING_MAX);
        Ok(Self { to, doubts: Mutex::new(Some(doubts)), diag: Arc::new(Mutex::new(Diag::open()?)) })
    }

    /// To be looked into; handed back if too many wait.
    pub(crate) fn put(&self, doubt: Doubt) -> Result<(), Doubt> {
        self.to.try_send(doubt).map_err(|full| full.into_inner())
    }
}

/// Looks into one doubt after the other.
pub(crate) async fn run(eyes: Arc<Eyes>) {
    let doubts = eyes.heirs.doubts.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(mut doubts) = doubts else { return };
    let mut some = Vec::with_capacity(AT_ONCE);
    while doubts.recv_many(&mut some, AT_ONCE).await > 0 {
        let mut under_way = JoinSet::new();
        for doubt in once(some.drain(..)) {
            let eyes = Arc::clone(&eyes);
            under_way.spawn(async move { eyes.look_into(doubt).await });
        }
        let heirs: Vec<Heir> = under_way.join_all().await.into_iter().flatten().collect();
        if !heirs.is_empty() {
            eyes.disinherit(heirs).await;
        }
    }
}

/// A stranger is told of as long as he goes on: he is looked at once for all that is waiting.
fn once(doubts: impl Iterator<Item = Doubt>) -> impl Iterator<Item = Doubt> {
    let mut seen = HashSet::new();
    doubts.filter(move |doubt| match doubt {
        Doubt::Stranger { local, remote, by, .. } => seen.insert((*local, *remote, *by)),
        Doubt::Heir { .. } => true,
    })
}

/// Another program, and the sockets it has.
struct Heir {
    now: Execution,
    sockets: HashSet<u64>,
}

impl Eyes {
    async fn look_into(&self, doubt: Doubt) -> Option<Heir> {
        match doubt {
            Doubt::Heir { now, program } => self.heir(now, program).await,
            Doubt::Stranger { local, remote, owner, program, by } => {
                let program = match program {
                    Some(program) => Some(program),
                    None if owner.pid == 0 => None,
                    None => self.program(owner).await.ok(),
                };
                let same = match program {
                    Some(program) => self.runs(by, program).await.unwrap_or(false),
                    None => false,
                };
                if !same {
                    self.flow(local, remote, by, "which runs another program");
                }
                None
            }
        }
    }

    /// The sockets that somebody has who executed something, if it is not the same program again.
    async fn heir(&self, now: Execution, program: Program) -> Option<Heir> {
        let listed = tokio::task::spawn_blocking(move || walk::sockets_of(now.pid)).await;
        let sockets = match listed.unwrap_or_else(|e| Err(io::Error::other(e))) {
            Ok(sockets) => sockets,
            Err(e) => {
                self.everything(format!("the open files of process {} cannot be listed: {e}", now.pid));
                return None;
            }
        };
        // Who ended has no sockets either.
        if sockets.is_empty() || self.runs(now, program).await? {
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
                self.known().table.inherit(execution.image, program);
                Some(true)
            }
            Err(refusal) if refusal.reason == AttestReason::ProcessGone => None,
            Ok(_) | Err(_) => Some(false),
        }
    }

    async fn program(&self, execution: Execution) -> Result<Program, AttestRefusal> {
        let looked = tokio::time::timeout(LOOK_MAX, self.looked_at(&[execution])).await;
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
        for found in connections {
            for heir in heirs.iter().filter(|heir| heir.sockets.contains(&found.inode)) {
                self.flow(found.local, found.remote, heir.now, "which executed another program and kept it");
            }
        }
    }
}
