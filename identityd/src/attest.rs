//! The story of one question: whose socket is it, what does that program run, and which workload has it earned?

use std::time::Duration;

use bonafide_policy::{Identified, Policy};
use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::{Execution, Fingerprint};
use bonafide_proto::flow::{FlowKey, SocketRole};
use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::NearMiss;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use crate::policy_file::InForce;
use crate::refuse::refuse;
use crate::source::{Held as _, SocketSource};
use crate::sys::process::Process;
use crate::witness::{Witness, Witnessed};

/// Waits before the next attempt where a moment may heal the doubt: a fork or a hand-over was under way.
const RETRIES: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(30)];

/// Answers questions.
#[derive(Debug)]
pub(crate) struct Attestor<S> {
    source: S,
    witness: Witness,
    policy: InForce,
}

/// What the evidence earned.
struct Earned {
    workload: Option<WorkloadName>,
    near_misses: Vec<NearMiss>,
}

impl<S: SocketSource> Attestor<S> {
    /// Answers by this source, this witness, and whatever policy is in force when asked.
    pub(crate) fn new(source: S, witness: Witness, policy: InForce) -> Self {
        Self { source, witness, policy }
    }

    /// Where the answers come from.
    pub(crate) fn source(&self) -> &'static str {
        self.source.name()
    }

    /// Who looks at processes.
    pub(crate) fn witness(&self) -> &Witness {
        &self.witness
    }

    /// Whose socket is it?
    ///
    /// # Errors
    /// Any doubt, by name.
    pub(crate) async fn flow(&self, key: FlowKey) -> Result<Attestation, AttestRefusal> {
        self.policy.get()?;
        let mut retries = RETRIES.iter();
        loop {
            match (self.flow_once(key).await, retries.next()) {
                (Err(refusal), Some(wait)) if may_heal(refusal.reason) => tokio::time::sleep(*wait).await,
                (answer, _) => return answer,
            }
        }
    }

    async fn flow_once(&self, key: FlowKey) -> Result<Attestation, AttestRefusal> {
        let held = self.source.holders(key).await?;
        let witnessed = self.witness.examine(held.executions()).await?;
        self.source.still_held(&held).await?;
        one_program(&witnessed, key.role)?;
        self.attestation(witnessed)
    }

    /// The same question about a process; what it misses is told of this workload alone, if one is named.
    ///
    /// # Errors
    /// Any doubt, by name.
    pub(crate) async fn process(&self, pid: u32, named: Option<&WorkloadName>) -> Result<Attestation, AttestRefusal> {
        self.policy.get()?;
        let execution = Process::pin(pid)?.execution();
        let mut attestation = self.attestation(self.witness.examine(&[execution]).await?)?;
        if let Some(name) = named {
            let miss = self.policy.get()?.policy.miss_of(name, &attestation.fingerprint);
            attestation.near_misses = miss.into_iter().collect();
        }
        Ok(attestation)
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
        let witnessed = self.witness.examine(executions).await?;
        one_program(&witnessed, SocketRole::Connector)?;
        let attestation = self.attestation(witnessed)?;
        match attestation.workload {
            Some(earned) if earned == *workload => Ok(attestation.fingerprint),
            Some(earned) => refuse(AttestReason::NotEntitled, format!("the program is {earned}, not {workload}")),
            None => refuse(AttestReason::NotEntitled, format!("the program does not earn {workload} any more")),
        }
    }

    fn attestation(&self, witnessed: Vec<Witnessed>) -> Result<Attestation, AttestRefusal> {
        let in_force = self.policy.get()?;
        let earned = earned(&in_force.policy, &witnessed)?;
        let executions = witnessed.iter().map(|w| w.execution).collect();
        let Some(first) = witnessed.into_iter().next() else {
            return refuse(AttestReason::HolderUnseen, "nobody holds the socket");
        };
        Ok(Attestation {
            executions,
            fingerprint: first.fingerprint,
            workload: earned.workload,
            near_misses: earned.near_misses,
            source: self.source.name().to_owned(),
        })
    }
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
        let script = w.fingerprint.script.known().map(|s| format!(" {}", s.path)).unwrap_or_default();
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
        Identified::Ambiguous(names) => {
            let names: Vec<String> = names.iter().take(8).map(ToString::to_string).collect();
            refuse(AttestReason::AmbiguousWorkload, format!("the evidence fits {}", names.join(", ")))
        }
    }
}
