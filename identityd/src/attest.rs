//! The story of one question: whose socket is it, what does that program run, and which workload has it earned?

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bonafide_policy::{Identified, Policy};
use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::{Evidence, Execution, Fingerprint};
use bonafide_proto::flow::{FlowKey, SocketRole};
use bonafide_proto::kernel::ConnectRecord;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::NearMiss;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use crate::in_force::InForce;
use crate::lookup;
use crate::observe::{Asked, Attests};
use crate::refuse::refuse;
use crate::releases::Newcomers;
use crate::source::{Held as _, Known, SocketSource};
use crate::sys::process::Process;
use crate::watch::Watch;
use crate::witness::{Witness, Witnessed};
use crate::workload_api::{Caller, Entitled, Entitlement, Entitles};

/// Waits before the next attempt where a moment may heal the doubt: a fork or a hand-over was under way.
const RETRIES: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(30)];

/// Answers questions.
#[derive(Debug)]
pub(crate) struct Attestor<S> {
    source: S,
    witness: Arc<Witness>,
    policy: InForce,
    watch: Watch,
    newcomers: Newcomers,
}

/// Whom an operator asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// A process.
    Process(u32),
    /// Whoever has a socket with this local address.
    Socket(SocketAddr),
    /// The first process of a container, by its name, or the beginning of its ID.
    Container(String),
}

/// What the evidence earned.
struct Earned {
    workload: Option<WorkloadName>,
    near_misses: Vec<NearMiss>,
}

impl<S: SocketSource> Attestor<S> {
    /// Answers by this source, this witness, and whatever policy is in force when asked; what it answers is watched.
    pub(crate) fn new(source: S, witness: Arc<Witness>, policy: InForce, watch: Watch, newcomers: Newcomers) -> Self {
        Self { source, witness, policy, watch, newcomers }
    }

    /// Where the answers come from.
    pub(crate) fn source(&self) -> &'static str {
        self.source.name()
    }

    /// Why they come from nowhere better; empty: there is nothing better.
    pub(crate) fn source_reason(&self) -> &str {
        self.source.reason()
    }

    /// Who looks at processes.
    pub(crate) fn witness(&self) -> &Witness {
        &self.witness
    }

    /// Whose socket is it? By the kernel's record of a connection, where the socket that accepted it has one.
    ///
    /// # Errors
    /// Any doubt, by name.
    pub(crate) async fn flow(&self, key: FlowKey, record: Option<ConnectRecord>) -> Result<Attestation, AttestRefusal> {
        self.policy.get()?;
        if key.role == SocketRole::Connector && record.is_none() && self.source.sees_connections() {
            // Whoever has these addresses now need not be who had them when the connection was accepted.
            let detail = format!("the kernel saw no program here connect {} to {}", key.local, key.remote);
            return refuse(AttestReason::NoRecord, detail);
        }
        self.holders(key, record).await
    }

    async fn holders(&self, key: FlowKey, record: Option<ConnectRecord>) -> Result<Attestation, AttestRefusal> {
        let mut retries = RETRIES.iter();
        loop {
            match (self.holders_now(key, record).await, retries.next()) {
                (Err(refusal), Some(wait)) if may_heal(refusal.reason) && !self.is_over(&refusal, record) => {
                    tokio::time::sleep(*wait).await;
                }
                (answer, _) => return answer,
            }
        }
    }

    /// Whether that connection has nobody any more, and never will.
    fn is_over(&self, refusal: &AttestRefusal, record: Option<ConnectRecord>) -> bool {
        refusal.reason == AttestReason::ProcessGone && record.is_some_and(|record| self.source.is_over(&record))
    }

    async fn holders_now(&self, key: FlowKey, record: Option<ConnectRecord>) -> Result<Attestation, AttestRefusal> {
        let held = self.source.holders(key, record).await?;
        self.of(held, key.role).await
    }

    async fn of(&self, held: S::Held, role: SocketRole) -> Result<Attestation, AttestRefusal> {
        let witnessed = self.witness.examine(held.executions()).await?;
        self.source.still_held(&held).await?;
        one_program(&witnessed, role)?;
        self.watch.attested(&witnessed)?;
        self.attestation(witnessed).await
    }

    /// The same question as an operator asks it; what it misses is told of this workload alone, if one is named.
    ///
    /// # Errors
    /// Any doubt, by name.
    pub(crate) async fn asked(&self, who: &Who, named: Option<&WorkloadName>) -> Result<Attestation, AttestRefusal> {
        self.policy.get()?;
        let mut attestation = match who {
            Who::Process(pid) => self.process(*pid).await?,
            Who::Socket(local) => self.socket(*local).await?,
            Who::Container(named) => self.container(named).await?,
        };
        if let Some(name) = named {
            let miss = self.policy.get()?.policy.miss_of(name, &attestation.fingerprint);
            attestation.near_misses = miss.into_iter().collect();
        }
        Ok(attestation)
    }

    async fn process(&self, pid: u32) -> Result<Attestation, AttestRefusal> {
        let execution = Process::pin(pid)?.execution();
        let witnessed = self.examined(&[execution]).await?;
        // People ask this: nobody remembers the answer, so it is not watched.
        self.watch.unquarantined(&witnessed)?;
        self.attestation(witnessed).await
    }

    /// Every socket with this local address must be one program's.
    async fn socket(&self, local: SocketAddr) -> Result<Attestation, AttestRefusal> {
        let keys = tokio::task::spawn_blocking(move || lookup::sockets(local)).await;
        let keys = keys.unwrap_or_else(|e| refuse(AttestReason::Unavailable, format!("sock_diag: {e}")))?;
        let mut all: Option<Attestation> = None;
        for key in keys {
            let one = self.holders(key, None).await?;
            match &mut all {
                None => all = Some(one),
                Some(all) if same_program(all, &one) => {
                    let new = one.executions.into_iter().filter(|e| !all.executions.contains(e));
                    let new: Vec<Execution> = new.collect();
                    all.executions.extend(new);
                }
                Some(_) => {
                    return refuse(AttestReason::TwoPrograms, format!("two programs have connections from {local}"));
                }
            }
        }
        all.map_or_else(|| refuse(AttestReason::NoSocket, format!("no socket has the address {local}")), Ok)
    }

    /// The container's first process, if its runtime confirms that it is in that one.
    async fn container(&self, named: &str) -> Result<Attestation, AttestRefusal> {
        let (id, first) = self.witness.runtimes().first_process(named).await?;
        let attestation = self.process(first).await?;
        match &attestation.fingerprint.container {
            Evidence::Known(container) if container.id == id => Ok(attestation),
            Evidence::Known(_) => refuse(AttestReason::GenerationGone, format!("process {first} went elsewhere")),
            Evidence::Absent(why) | Evidence::Unavailable(why) => {
                refuse(AttestReason::EvidenceUnavailable, format!("nobody confirms the container {id}: {why}"))
            }
        }
    }

    /// Whoever asks over a unix socket of this daemon: every process that could read the answer, and among them the very
    /// execution that had connected when it was accepted.
    ///
    /// # Errors
    /// `connector-differs` if that one has executed another program or handed the connection on; any doubt, by name.
    pub(crate) async fn caller(&self, caller: &Caller) -> Result<Attestation, AttestRefusal> {
        self.policy.get()?;
        let mut retries = RETRIES.iter();
        loop {
            match (self.caller_now(caller).await, retries.next()) {
                (Err(refusal), Some(wait)) if may_heal(refusal.reason) => tokio::time::sleep(*wait).await,
                (answer, _) => return answer,
            }
        }
    }

    async fn caller_now(&self, caller: &Caller) -> Result<Attestation, AttestRefusal> {
        let connected = caller.connected()?;
        let held = self.source.across(caller.cookie()).await?;
        if !held.executions().contains(&connected) {
            let detail =
                format!("process {} connected, and what it executed then does not have the connection", connected.pid);
            return refuse(AttestReason::ConnectorDiffers, detail);
        }
        self.of(held, SocketRole::Connector).await
    }

    /// The fingerprint of executions that were attested before, if all of them still earn this workload.
    ///
    /// # Errors
    /// `not-entitled`, or any doubt, by name.
    pub(crate) async fn entitled(
        &self,
        executions: &[Execution],
        workload: &WorkloadName,
    ) -> Result<Fingerprint, AttestRefusal> {
        self.policy.get()?;
        let witnessed = self.examined(executions).await?;
        one_program(&witnessed, SocketRole::Connector)?;
        self.watch.attested(&witnessed)?;
        let attestation = self.attestation(witnessed).await?;
        match attestation.workload {
            Some(earned) if earned == *workload => Ok(attestation.fingerprint),
            Some(earned) => refuse(AttestReason::NotEntitled, format!("the program is {earned}, not {workload}")),
            None => refuse(AttestReason::NotEntitled, format!("the program does not earn {workload} any more")),
        }
    }

    /// Another look at executions that were attested before; those that ended are left out.
    ///
    /// # Errors
    /// `process-gone` if all have ended, else any doubt, by name.
    pub(crate) async fn again(&self, executions: &[Execution]) -> Result<Attestation, AttestRefusal> {
        self.policy.get()?;
        let alive: Vec<Execution> = executions.iter().copied().filter(|e| !Process::has_ended(*e)).collect();
        if alive.is_empty() {
            return refuse(AttestReason::ProcessGone, "every process that was attested has ended");
        }
        let witnessed = self.examined(&alive).await?;
        one_program(&witnessed, SocketRole::Connector)?;
        self.watch.attested(&witnessed)?;
        self.attestation(witnessed).await
    }

    /// Whoever holds these sockets by now, of programs that were attested before.
    ///
    /// # Errors
    /// `process-gone` if nobody holds any of them, else any doubt, by name.
    pub(crate) async fn holders_again(&self, sockets: &[Known]) -> Result<Attestation, AttestRefusal> {
        self.policy.get()?;
        let mut retries = RETRIES.iter();
        loop {
            match (self.holders_by_now(sockets).await, retries.next()) {
                (Err(refusal), Some(wait)) if may_heal(refusal.reason) => tokio::time::sleep(*wait).await,
                (Ok(None), _) => return refuse(AttestReason::ProcessGone, "nobody has the sockets any more"),
                (Ok(Some(attestation)), _) => return Ok(attestation),
                (Err(refusal), _) => return Err(refusal),
            }
        }
    }

    async fn holders_by_now(&self, sockets: &[Known]) -> Result<Option<Attestation>, AttestRefusal> {
        match self.source.holders_by_now(sockets).await? {
            Some(held) => self.of(held, SocketRole::Connector).await.map(Some),
            None => Ok(None),
        }
    }

    /// The evidence about executions. A program that has just begun is still loading its libraries, and one that has
    /// just forked may be dropping privileges.
    async fn examined(&self, executions: &[Execution]) -> Result<Vec<Witnessed>, AttestRefusal> {
        let mut retries = RETRIES.iter();
        loop {
            match (self.witness.examine(executions).await, retries.next()) {
                (Err(refusal), Some(wait)) if refusal.reason == AttestReason::GenerationGone => {
                    tokio::time::sleep(*wait).await;
                }
                (answer, _) => return answer,
            }
        }
    }

    async fn attestation(&self, mut witnessed: Vec<Witnessed>) -> Result<Attestation, AttestRefusal> {
        let in_force = self.policy.get()?;
        let refused = self.vouched(&in_force.policy, &mut witnessed).await;
        let mut earned = earned(&in_force.policy, &witnessed)?;
        for miss in &mut earned.near_misses {
            if let Some((_, why)) = refused.iter().find(|(workload, _)| workload.as_str() == miss.of) {
                miss.seen = format!("{}, a new digest: {why}", miss.seen);
            }
        }
        let executions = witnessed.iter().map(|w| w.execution).collect();
        let Some(first) = witnessed.into_iter().next() else {
            return refuse(AttestReason::HolderUnseen, "nobody holds the socket");
        };
        Ok(Attestation {
            executions,
            account: first.account,
            fingerprint: first.fingerprint,
            workload: earned.workload,
            near_misses: earned.near_misses,
            source: self.source.name().to_owned(),
        })
    }
}

impl<S: SocketSource> Attestor<S> {
    /// Notes what speaks for digests that the policy does not list; and says for which workloads nothing does, and why.
    async fn vouched(&self, policy: &Policy, witnessed: &mut [Witnessed]) -> Vec<(WorkloadName, String)> {
        let mut refused = Vec::new();
        for one in witnessed {
            let Some(pending) = policy.pending(&one.fingerprint) else { continue };
            match self.newcomers.vouch(&pending, &one.fingerprint, one.execution).await {
                Ok(release) => one.fingerprint.release = Some(release),
                Err(why) => refused.push((pending.workload, why)),
            }
        }
        refused
    }

    /// Who knows the digests that nobody approved yet.
    pub(crate) fn newcomers(&self) -> &Newcomers {
        &self.newcomers
    }
}

impl<S: SocketSource> Attests for Attestor<S> {
    fn execution(&self, execution: Execution) -> Asked<'_> {
        Box::pin(async move { self.again(&[execution]).await })
    }
}

impl<S: SocketSource> Entitles for Attestor<S> {
    fn entitled<'c>(&'c self, caller: &'c Caller) -> Entitlement<'c> {
        Box::pin(async move {
            let Attestation { executions, fingerprint, workload, .. } = self.caller(caller).await?;
            match workload {
                Some(workload) if self.policy.get()?.policy.serves_workload_api(&workload) => {
                    Ok(Entitled { workload, fingerprint, executions })
                }
                Some(workload) => {
                    refuse(AttestReason::NotEntitled, format!("{workload} has not workload_api = true in the policy"))
                }
                None => refuse(AttestReason::NotEntitled, format!("{} earns no workload", fingerprint.exe.path)),
            }
        })
    }
}

/// As of the holders of one socket: users may differ, but what they earn may not.
fn same_program(a: &Attestation, b: &Attestation) -> bool {
    let (x, y) = (&a.fingerprint, &b.fingerprint);
    x.exe == y.exe && x.script == y.script && a.workload == b.workload
}

/// A child between fork and exec holds all its parent's sockets, and for an instant it does so as its new program:
/// close-on-exec comes after the executable has changed (`begin_new_exec`, fs/exec.c). And some other process of the
/// host that is just ending or changing its user can be unreadable for an instant.
fn may_heal(reason: AttestReason) -> bool {
    use AttestReason::{AmbiguousListener, GenerationGone, HolderUnseen, ProcessGone, TwoPrograms, Unreadable};
    matches!(reason, HolderUnseen | ProcessGone | GenerationGone | TwoPrograms | AmbiguousListener | Unreadable)
}

/// All holders run the same program, or it is not known who speaks.
fn one_program(witnessed: &[Witnessed], role: SocketRole) -> Result<(), AttestRefusal> {
    let Some((first, others)) = witnessed.split_first() else {
        return refuse(AttestReason::HolderUnseen, "nobody holds the socket");
    };
    let Some(other) = others.iter().find(|other| !other.same_program(first)) else { return Ok(()) };
    let reason = match role {
        SocketRole::Connector => AttestReason::TwoPrograms,
        SocketRole::Listener => AttestReason::AmbiguousListener,
    };
    let name = |w: &Witnessed| {
        let script = w.fingerprint.script_file().map(|s| format!(" {}", s.path)).unwrap_or_default();
        format!("{}{script} (process {}, uid {})", w.fingerprint.exe.path, w.execution.pid, w.fingerprint.uid)
    };
    refuse(reason, format!("held by {} and by {}", name(first), name(other)))
}

/// What every one of them earned: holders of one program can still differ in their unit.
fn earned(policy: &Policy, witnessed: &[Witnessed]) -> Result<Earned, AttestRefusal> {
    let mut distinct: Vec<&Fingerprint> = Vec::new();
    for one in witnessed {
        if !distinct.contains(&&one.fingerprint) {
            distinct.push(&one.fingerprint);
        }
    }
    let mut verdicts = distinct.into_iter().map(|fingerprint| judged(policy, fingerprint));
    let Some(first) = verdicts.next() else { return refuse(AttestReason::HolderUnseen, "nobody holds the socket") };
    let first = first?;
    for other in verdicts {
        let other = other?;
        if other.workload != first.workload {
            let name = |e: &Earned| e.workload.as_ref().map_or_else(|| "no workload".to_owned(), ToString::to_string);
            let detail = format!("its holders earn {} and {}", name(&first), name(&other));
            return refuse(AttestReason::AmbiguousWorkload, detail);
        }
    }
    Ok(first)
}

fn judged(policy: &Policy, fingerprint: &Fingerprint) -> Result<Earned, AttestRefusal> {
    match policy.identify(fingerprint) {
        Identified::Workload(name) => Ok(Earned { workload: Some(name), near_misses: Vec::new() }),
        Identified::Nothing { near } => Ok(Earned { workload: None, near_misses: near }),
        Identified::Unavailable { workload, field, why } => {
            refuse(AttestReason::EvidenceUnavailable, format!("{workload} requires {field}, and {why}"))
        }
        Identified::Ambiguous(names) => {
            let names: Vec<String> = names.iter().take(8).map(ToString::to_string).collect();
            refuse(AttestReason::AmbiguousWorkload, format!("the evidence fits {}", names.join(", ")))
        }
    }
}
