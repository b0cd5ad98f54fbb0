//! How executions began: what they were given when they were executed, and what was seen of them early, before they
//! could hide it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::taint::Taints;

use crate::execs::{self, AtExec, Execs};
use crate::refuse::refuse;
use crate::sys::process::Process;
use crate::version::FileVersion;

/// Executions that are kept in mind.
const EXECUTIONS_MAX: usize = 32_768;

/// What an execution was given by what executed it, as far as somebody wrote it down.
#[derive(Debug, Clone)]
pub(crate) struct Beginning(Option<AtExec>);

impl Beginning {
    /// That of a process which is asked about as this execution.
    ///
    /// # Errors
    /// See [`execs::executed`].
    pub(crate) fn of(asked: Execution, process: &Process, execs: &dyn Execs) -> Result<Self, AttestRefusal> {
        Ok(Self(execs::executed(execs, asked, process)?))
    }

    /// The number of what was executed; 0 if nobody gave it one.
    pub(crate) fn image(&self) -> u64 {
        self.0.as_ref().map_or(0, |at_exec| at_exec.image)
    }

    /// What was executed, whether or not that was seen.
    pub(crate) fn at_exec(&self) -> Option<&AtExec> {
        self.0.as_ref()
    }

    /// What was executed, if that was seen. Of what ran before there is only what it shows now.
    pub(crate) fn seen(&self) -> Option<&AtExec> {
        self.0.as_ref().filter(|at_exec| at_exec.witnessed)
    }

    /// What its environment had the dynamic loader load, before that could hide it.
    pub(crate) fn taints(&self) -> Taints {
        self.seen().map(|seen| seen.taints.clone()).unwrap_or_default()
    }

    /// Whether this file has the content that was executed: not by its change time, which `chmod` changes too.
    ///
    /// # Errors
    /// `exe-replaced`.
    pub(crate) fn unchanged(&self, exe: &FileVersion, pid: u32) -> Result<(), AttestRefusal> {
        match self.seen() {
            Some(seen) if (seen.size, seen.modified) != (exe.size, exe.modified) => {
                let detail = format!("the file that process {pid} executed was changed since");
                refuse(AttestReason::ExeReplaced, detail)
            }
            _ => Ok(()),
        }
    }
}

/// What was seen of executions when they were first looked at; the least recently used are the first to be forgotten.
#[derive(Debug, Default)]
pub(crate) struct Early {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    images: HashMap<u64, First>,
    /// Counts uses.
    now: u64,
}

#[derive(Debug, Default, Clone)]
struct First {
    taints: Option<Taints>,
    script: Option<Vec<u8>>,
    used: u64,
}

impl Early {
    /// The taints of its environment, which is read only at the first look: a process can rewrite it.
    ///
    /// # Errors
    /// Those of reading it.
    pub(crate) fn taints(
        &self,
        image: u64,
        read: impl FnOnce() -> Result<Taints, AttestRefusal>,
    ) -> Result<Taints, AttestRefusal> {
        if let Some(taints) = self.first(image).and_then(|first| first.taints) {
            return Ok(taints);
        }
        let taints = read()?;
        self.note(image, |first| first.taints = Some(taints.clone()));
        Ok(taints)
    }

    /// The script's path from the root, found while the process was in the directory where it began.
    pub(crate) fn script(&self, image: u64) -> Option<Vec<u8>> {
        self.first(image)?.script
    }

    /// Keeps the script's path in mind.
    pub(crate) fn note_script(&self, image: u64, path: &[u8]) {
        self.note(image, |first| first.script = Some(path.to_vec()));
    }

    fn first(&self, image: u64) -> Option<First> {
        let mut seen = self.lock();
        seen.now += 1;
        let now = seen.now;
        let first = seen.images.get_mut(&image)?;
        first.used = now;
        Some(first.clone())
    }

    fn note(&self, image: u64, write: impl FnOnce(&mut First)) {
        if image == 0 {
            return;
        }
        let mut seen = self.lock();
        seen.now += 1;
        let now = seen.now;
        if seen.images.len() >= EXECUTIONS_MAX && !seen.images.contains_key(&image) {
            seen.forget_older_half();
        }
        let first = seen.images.entry(image).or_default();
        first.used = now;
        write(first);
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// Half of them at once, so that the search for the oldest is rare.
    fn forget_older_half(&mut self) {
        let mut uses: Vec<u64> = self.images.values().map(|first| first.used).collect();
        let middle = uses.len() / 2;
        let (_, median, _) = uses.select_nth_unstable(middle);
        let median = *median;
        self.images.retain(|_, first| first.used >= median);
    }
}

#[cfg(test)]
mod tests {
    use bonafide_proto::taint::Taint;

    use super::*;

    #[test]
    fn an_environment_is_read_once_for_each_execution_that_has_a_number() {
        let early = Early::default();
        let preload = || Ok(Taints::from([Taint::Preload]));
        assert_eq!(early.taints(7, preload).unwrap(), [Taint::Preload].into());
        assert_eq!(early.taints(7, || panic!("it was read before")).unwrap(), [Taint::Preload].into());
        assert_eq!(early.taints(8, || Ok(Taints::new())).unwrap(), Taints::new());
        assert_eq!(early.taints(0, preload).unwrap(), [Taint::Preload].into());
        assert_eq!(early.taints(0, || Ok(Taints::new())).unwrap(), Taints::new());
    }

    #[test]
    fn what_is_kept_in_mind_is_bounded_and_what_is_used_stays() {
        let early = Early::default();
        early.note_script(1, b"/srv/app.py");
        for image in 2..u64::try_from(3 * EXECUTIONS_MAX).unwrap() {
            early.note_script(image, b"/x");
            if image % 1000 == 0 {
                assert_eq!(early.script(1).as_deref(), Some(b"/srv/app.py".as_slice()));
            }
        }
        assert!(early.lock().images.len() <= EXECUTIONS_MAX);
        assert_eq!(early.script(2), None);
    }
}
