//! From what an operator calls a container to its first process. Cgroups tell where to look; whether the process is in
//! that container is for its runtime to confirm, when the process is attested.

use std::collections::BTreeMap;
use std::time::Duration;

use bonafide_proto::fingerprint::Evidence;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use super::Containers;
use crate::parse::container_id::candidates;
use crate::refuse::refuse;
use crate::sys::process::Process;

/// The fewest digits of an ID that stand for the whole.
const PREFIX_MIN: usize = 12;
/// The longest name or ID, in bytes.
const ASKED_MAX: usize = 128;
/// How long the runtimes may take to say how their containers are called.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest `/proc/PID/cgroup` that is read, in bytes.
const CGROUP_MAX: u64 = 64 << 10;
/// The most containers that are named in a refusal.
const SHOWN_MAX: usize = 4;

/// A process, and why it is thought to be in a container. The first one of a container started before all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Inmate {
    start_ticks: u64,
    pid: u32,
    cgroup: Vec<u8>,
}

impl Containers {
    /// The container's ID and its first process, by its ID, at least the first 12 digits of it, or its name.
    ///
    /// # Errors
    /// `process-gone` if nobody is in such a container, `bad-request` if there are several, `evidence-unavailable` if a
    /// runtime does not say how its containers are called, `unavailable`.
    pub(crate) async fn first_process(&self, asked: &str) -> Result<(String, u32), AttestRefusal> {
        if asked.is_empty() || asked.len() > ASKED_MAX {
            return refuse(AttestReason::BadRequest, format!("a container is named by 1 to {ASKED_MAX} bytes"));
        }
        let namespaces: Vec<String> = self.runtimes.iter().flat_map(|r| r.namespaces()).cloned().collect();
        let surveyed = tokio::task::spawn_blocking(move || survey(&namespaces)).await;
        let first = surveyed.unwrap_or_else(|e| refuse(AttestReason::Unavailable, format!("/proc: {e}")))?;
        let prefix = asked.len() >= PREFIX_MIN && asked.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut meant: Vec<(&String, &Inmate)> =
            first.iter().filter(|(id, _)| *id == asked || (prefix && id.starts_with(asked))).collect();
        if meant.is_empty() {
            let silent =
                |_| AttestRefusal::new(AttestReason::Unavailable, "the container runtimes do not answer in time");
            meant = tokio::time::timeout(PATIENCE, self.called(asked, &first)).await.map_err(silent)??;
        }
        match meant.as_slice() {
            [(id, inmate)] => Ok(((*id).clone(), inmate.pid)),
            [] => refuse(AttestReason::ProcessGone, "no process of this host is in such a container"),
            several => {
                let ids: Vec<&str> = several.iter().take(SHOWN_MAX).map(|(id, _)| id.as_str()).collect();
                let detail = format!("{} containers are called so, such as {}", several.len(), ids.join(" and "));
                refuse(AttestReason::BadRequest, detail)
            }
        }
    }

    /// Those of this name, as their runtimes say. One that cannot be asked about might be called so, too.
    async fn called<'a>(
        &self,
        name: &str,
        first: &'a BTreeMap<String, Inmate>,
    ) -> Result<Vec<(&'a String, &'a Inmate)>, AttestRefusal> {
        let mut called = Vec::new();
        for (id, inmate) in first {
            match self.of(inmate.pid, inmate.start_ticks, &inmate.cgroup).await {
                Evidence::Known(container) if container.name.as_deref() == Some(name) => called.push((id, inmate)),
                Evidence::Known(_) | Evidence::Absent(_) => {}
                Evidence::Unavailable(why) => {
                    let detail = format!("the container {id} might be called so, too: {why}; ask by the ID");
                    return refuse(AttestReason::EvidenceUnavailable, detail);
                }
            }
        }
        Ok(called)
    }
}

/// The first process in each container, by the container's ID. Processes that end meanwhile are left out.
fn survey(namespaces: &[String]) -> Result<BTreeMap<String, Inmate>, AttestRefusal> {
    let namespaces: Vec<&str> = namespaces.iter().map(String::as_str).collect();
    let unlisted = |e: std::io::Error| AttestRefusal::new(AttestReason::Unavailable, format!("/proc: {e}"));
    let mut first: BTreeMap<String, Inmate> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").map_err(unlisted)? {
        let entry = entry.map_err(unlisted)?;
        let Some((id, inmate)) = entry.file_name().to_str().and_then(|pid| inmate(pid.parse().ok()?, &namespaces))
        else {
            continue;
        };
        match first.get_mut(&id) {
            Some(known) if *known <= inmate => {}
            Some(known) => *known = inmate,
            None => drop(first.insert(id, inmate)),
        }
    }
    Ok(first)
}

/// A process in a container, if it is in one: the innermost counts.
fn inmate(pid: u32, namespaces: &[&str]) -> Option<(String, Inmate)> {
    let process = Process::pin(pid).ok()?;
    let cgroup = process.content("cgroup", CGROUP_MAX).ok()?;
    let innermost = candidates(&cgroup, namespaces).ok()?.into_iter().next()?;
    Some((innermost.id, Inmate { start_ticks: process.execution().start_ticks, pid, cgroup }))
}
