//! Who holds a socket: one walk of every table of open files, in the kernel.
//!
//! A walk also tells whether that is everybody. Each descriptor is one reference to the open file; references that no
//! descriptor explains are a copy in flight in a unix socket, or in the hands of io_uring, where no walk comes; or a
//! thread that sits in a call on it, of which there is at most one for each thread of the holders.
//!
//! A thread that waits for a socket in poll(2) keeps a reference for each entry (`__pollwait`, fs/select.c), even if it is its
//! process's only one; some, sshd(8) among them, have two entries, to read from it and to write to it. For listeners that is the rule, and for connections that were attested before; where somebody
//! else may have had a new one from the beginning it is a doubt.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use libbpf_rs::{MapCore as _, MapFlags};

use super::layout::Holder;
use super::load::{Programs, run};
use crate::refuse::refuse;
use crate::source::{HOLDERS_MAX, too_many};

/// What one walk saw.
#[derive(Debug, Default)]
pub(super) struct Seen(Vec<Holder>);

impl Seen {
    /// Everybody who holds all these sockets between them; each once.
    ///
    /// # Errors
    /// `holder-unseen` if nobody holds one of them, or somebody may whom the walk does not see.
    pub(super) fn holders(&self, cookies: &[u64], calls: Calls) -> Result<Vec<Execution>, AttestRefusal> {
        let mut rows: HashMap<u64, Vec<&Holder>> = cookies.iter().map(|cookie| (*cookie, Vec::new())).collect();
        for row in &self.0 {
            rows.entry(row.cookie).and_modify(|rows| rows.push(row));
        }
        let mut executions = BTreeMap::new();
        for cookie in cookies {
            let rows = rows.get(cookie).map(Vec::as_slice).unwrap_or_default();
            everybody(rows, calls)?;
            executions.extend(rows.iter().map(|row| (row.execution.pid, row.execution)));
        }
        if executions.len() > HOLDERS_MAX {
            return refuse(AttestReason::HolderUnseen, too_many(executions.len()));
        }
        Ok(executions.into_values().collect())
    }

    /// Those of these sockets that somebody holds, and those that nobody does.
    pub(super) fn parted(&self, cookies: &[u64]) -> (Vec<u64>, Vec<u64>) {
        let held: HashSet<u64> = self.0.iter().map(|row| row.cookie).collect();
        cookies.iter().partition(|cookie| held.contains(cookie))
    }
}

/// Whether these descriptors are all that there is of one socket.
fn everybody(rows: &[&Holder], calls: Calls) -> Result<(), AttestRefusal> {
    let Some(references) = rows.iter().map(|row| row.references).max() else {
        return refuse(AttestReason::HolderUnseen, "the socket is in no process's file table");
    };
    // Processes may share a table, and the walk's own reference is among them.
    let descriptors: HashSet<(u64, u32)> = rows.iter().map(|row| (row.table, row.fd)).collect();
    let explained = u32::try_from(descriptors.len()).unwrap_or(u32::MAX).saturating_add(1);
    let unexplained = references.saturating_sub(explained);
    if unexplained > in_calls(rows, calls) {
        let detail = format!("{unexplained} references to the socket are in no process's file table");
        return refuse(AttestReason::HolderUnseen, detail);
    }
    Ok(())
}

/// Which references may be those of calls under way. One that hides among them is told of as soon as it is used; where
/// that is not told, none is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calls {
    /// None.
    NotBelieved,
    /// One of each thread, of processes that have several.
    OfThreads,
    /// Two of each thread: it may wait to read and to write.
    OfPollers,
}

fn in_calls(rows: &[&Holder], believed: Calls) -> u32 {
    if believed == Calls::NotBelieved {
        return 0;
    }
    let processes: BTreeMap<u32, u32> = rows.iter().map(|row| (row.execution.pid, calls(row, believed))).collect();
    processes.values().fold(0, |sum, calls| sum.saturating_add(*calls))
}

/// A process with one thread takes no reference of its own for a call (`fdget`, fs/file.c), except by io_uring and to poll.
fn calls(row: &Holder, believed: Calls) -> u32 {
    let threads = row.threads.max(1);
    let in_calls = match (threads, believed) {
        (threads, Calls::OfPollers) => threads.saturating_mul(POLLED),
        (1, Calls::OfThreads) if !row.uses_io_uring => 0,
        (threads, Calls::OfThreads) => threads,
        (_, Calls::NotBelieved) => 0,
    };
    if row.uses_io_uring { in_calls.saturating_add(IN_RING) } else { in_calls }
}

/// Entries for one socket in one poll(2).
const POLLED: u32 = 2;

/// Requests on one socket that may be under way in a ring.
const IN_RING: u32 = 64;

/// Walks.
///
/// # Errors
/// Why it could not, in words.
pub(super) fn walk(programs: &Arc<Programs>, sought: &HashSet<u64>) -> Result<Seen, String> {
    for cookie in sought {
        let sought = programs.sought.update(&cookie.to_ne_bytes(), &[1], MapFlags::ANY);
        sought.map_err(|e| format!("too many sockets are sought: {e}"))?;
    }
    let said = run(&programs.holders).map_err(|e| format!("the kernel's walk failed: {e}"));
    for cookie in sought {
        // It was entered above.
        let _ = programs.sought.delete(&cookie.to_ne_bytes());
    }
    Ok(Seen(rows(&said?)?))
}

/// What it said.
///
/// # Errors
/// It ends in the middle of a row: nobody knows what else was in it.
pub(crate) fn rows(said: &[u8]) -> Result<Vec<Holder>, String> {
    let whole = said.len().is_multiple_of(Holder::SIZE);
    let rows = said.chunks(Holder::SIZE).map(Holder::read).collect::<Option<_>>();
    rows.filter(|_| whole).ok_or_else(|| "the kernel's walk was cut off".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: u32, table: u64, fd: u32, references: u32) -> Holder {
        let execution = Execution { pid, start_ticks: 1, image: 1 };
        Holder { cookie: 7, table, execution, fd, references, threads: 1, uses_io_uring: false }
    }

    fn holders(rows: &[Holder]) -> Result<Vec<u32>, AttestReason> {
        let held = Seen(rows.to_vec()).holders(&[7], Calls::OfThreads);
        held.map(|held| held.iter().map(|e| e.pid).collect()).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn descriptors_that_explain_every_reference_are_everybody() {
        assert_eq!(holders(&[row(1, 1, 3, 2)]), Ok(vec![1]));
        assert_eq!(holders(&[row(2, 2, 3, 4), row(1, 1, 3, 4), row(1, 1, 4, 4)]), Ok(vec![1, 2]));
        // One table, shared by two processes.
        assert_eq!(holders(&[row(1, 1, 3, 2), row(2, 1, 3, 2)]), Ok(vec![1, 2]));
    }

    #[test]
    fn a_reference_that_nothing_explains_is_a_holder_unseen() {
        assert_eq!(holders(&[row(1, 1, 3, 3)]), Err(AttestReason::HolderUnseen));
        assert_eq!(holders(&[row(1, 1, 3, 3), row(2, 1, 3, 3)]), Err(AttestReason::HolderUnseen));
        assert_eq!(holders(&[]), Err(AttestReason::HolderUnseen));
    }

    #[test]
    fn threads_may_sit_in_calls_where_uses_are_told() {
        let threads = Holder { threads: 2, ..row(1, 1, 3, 4) };
        assert_eq!(holders(&[threads]), Ok(vec![1]));
        assert_eq!(holders(&[Holder { references: 5, ..threads }]), Err(AttestReason::HolderUnseen));
        assert!(Seen(vec![threads]).holders(&[7], Calls::NotBelieved).is_err());
    }

    #[test]
    fn who_polls_a_listener_keeps_a_reference_to_it() {
        let polled = |references| Seen(vec![row(1, 1, 3, references)]).holders(&[7], Calls::OfPollers);
        assert!(polled(2).is_ok() && polled(3).is_ok(), "one to read");
        assert!(polled(4).is_ok(), "and one to write");
        assert!(polled(5).is_err());
    }
}
