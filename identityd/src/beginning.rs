//! How executions began: what they were given when they were executed, and what was seen of them early, before they
//! could hide it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bonafide_proto::clock::Clock;
use bonafide_proto::fingerprint::{Execution, HashedFile};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::taint::Taints;

use crate::execs::{self, AtExec, Execs};
use crate::refuse::refuse;
use crate::sys::process::Process;
use crate::sys::uptime;
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

    /// What was executed, if that was seen. Of what ran before anybody watched there is only what
    /// it shows now.
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

impl Beginning {
    /// Whether something that was changed last at this time, in nanoseconds since 1970, may be another thing than it was
    /// at exec. Of what nobody saw begin it cannot be told.
    ///
    /// # Errors
    /// The time cannot be told.
    pub(crate) fn is_before(&self, changed: i128, clock: &dyn Clock) -> std::io::Result<bool> {
        let Some(executed_ns) = self.seen().and_then(|seen| seen.executed_ns) else { return Ok(false) };
        Ok(uptime::booted(clock)? + i128::from(executed_ns) < changed)
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
    /// Locked while they are read.
    taints: Arc<Mutex<Option<Taints>>>,
    /// Where its script was looked for.
    script: Option<Vec<u8>>,
    /// The script it began with.
    began_with: Option<HashedFile>,
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
        let Some(known) = self.note(image, |first| Arc::clone(&first.taints)) else { return read() };
        // Whoever comes meanwhile waits for the same.
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(taints) => Ok(taints.clone()),
            None => Ok(known.insert(read()?).clone()),
        }
    }

    /// The script's path from the root, found while the process was in the directory where it began.
    pub(crate) fn script(&self, image: u64) -> Option<Vec<u8>> {
        self.first(image)?.script
    }

    /// Keeps the script's path in mind.
    pub(crate) fn note_script(&self, image: u64, path: &[u8]) {
        self.note(image, |first| first.script = Some(path.to_vec()));
    }

    /// The script that an execution began with, if this file still has its content: a process runs what it read then. The
    /// first that is found is that one, unless it is `late`: it may have been changed after the exec.
    ///
    /// # Errors
    /// In words: it was changed since.
    pub(crate) fn began_with(&self, image: u64, found: HashedFile, late: bool) -> Result<HashedFile, String> {
        let path = &found.path;
        match self.first(image).and_then(|first| first.began_with) {
            // Another file of this content is nothing else; but where it was counts, for what it imports.
            Some(began) if began.digest == found.digest => Ok(began),
            Some(began) => Err(format!(
                "the script was changed since its process began with {} ({}): {path} is {} now; restart the process",
                began.path, began.digest, found.digest
            )),
            None if late => {
                let what = format!(
                    "the script {path}, or a link or directory that leads to it, was changed after its process began"
                );
                Err(format!("{what}, before anybody looked ({} now); restart the process", found.digest))
            }
            None => {
                self.note(image, |first| first.began_with = Some(found.clone()));
                Ok(found)
            }
        }
    }

    fn first(&self, image: u64) -> Option<First> {
        let mut seen = self.lock();
        seen.now += 1;
        let now = seen.now;
        let first = seen.images.get_mut(&image)?;
        first.used = now;
        Some(first.clone())
    }

    /// `None` where there is no number to remember it by.
    fn note<T>(&self, image: u64, write: impl FnOnce(&mut First) -> T) -> Option<T> {
        if image == 0 {
            return None;
        }
        let mut seen = self.lock();
        seen.now += 1;
        let now = seen.now;
        if seen.images.len() >= EXECUTIONS_MAX && !seen.images.contains_key(&image) {
            seen.forget_older_half();
        }
        let first = seen.images.entry(image).or_default();
        first.used = now;
        Some(write(first))
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
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bonafide_proto::clock::SystemClock;
    use bonafide_proto::fingerprint::Digest;
    use bonafide_proto::taint::Taint;

    use super::*;
    use crate::execs::Arguments;
    use crate::sys::executable::FileId;

    fn seen(executed_ns: Option<u64>) -> Beginning {
        let file = FileId { dev: 1, ino: 2 };
        let (arguments, directory) = (Arguments::Recorded { bytes: Vec::new(), whole: true }, None);
        let (size, modified, execs, witnessed) = (0, 0, 1, executed_ns.is_some());
        Beginning(Some(AtExec {
            image: 1,
            file,
            size,
            modified,
            executed_ns,
            execs,
            arguments,
            directory,
            taints: Taints::new(),
            witnessed,
        }))
    }

    #[test]
    fn what_is_written_before_the_exec_is_not_late_and_what_is_written_after_it_is() {
        use std::os::unix::fs::MetadataExt as _;
        let now = || {
            let file = tempfile::NamedTempFile::new().unwrap();
            let stat = file.as_file().metadata().unwrap();
            i128::from(stat.ctime()) * 1_000_000_000 + i128::from(stat.ctime_nsec())
        };
        let since_boot = |at: i128| u64::try_from(at - uptime::booted(&SystemClock).unwrap()).unwrap();
        let written = now();
        let executed = since_boot(SystemClock.now().as_nanos().try_into().unwrap());
        assert!(!seen(Some(executed)).is_before(written, &SystemClock).unwrap());
        std::thread::sleep(2 * uptime::TICK);
        assert!(seen(Some(executed)).is_before(now(), &SystemClock).unwrap());
        assert!(!seen(None).is_before(now(), &SystemClock).unwrap());
    }

    #[test]
    fn an_environment_is_read_by_one_however_many_ask_and_by_the_next_if_it_cannot_be() {
        let (early, readings) = (Early::default(), AtomicUsize::new(0));
        let together = Barrier::new(8);
        let ask = || {
            together.wait();
            let read = || match readings.fetch_add(1, Ordering::SeqCst) {
                0 => refuse(AttestReason::Unreadable, "not now"),
                _ => Ok(Taints::from([Taint::Preload])),
            };
            early.taints(7, read).ok()
        };
        let told: Vec<Option<Taints>> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            asking.into_iter().map(|asked| asked.join().unwrap()).collect()
        });
        assert_eq!(told.iter().filter(|told| told.is_none()).count(), 1);
        assert_eq!(readings.into_inner(), 2);
    }

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
    fn a_script_is_the_one_its_process_began_with_or_none() {
        let early = Early::default();
        let file = |path: &str, content: &[u8]| HashedFile { path: path.into(), digest: Digest::of(content) };
        let began = file("/srv/app.py", b"a");
        assert_eq!(early.began_with(7, began.clone(), false).unwrap(), began);
        // Another file of the same content, wherever it is; also one that was just written.
        assert_eq!(early.began_with(7, file("/tmp/app.py", b"a"), true).unwrap(), began);
        let changed = early.began_with(7, file("/srv/app.py", b"b"), false).unwrap_err();
        for told in ["was changed since", "restart", &began.digest.to_string(), &Digest::of(b"b").to_string()] {
            assert!(changed.contains(told), "{changed}");
        }
        assert!(early.began_with(8, began.clone(), true).unwrap_err().contains("before anybody looked"));
        assert!(early.began_with(8, began.clone(), true).is_err());
        // What has no number has nothing to be remembered by.
        assert!(early.began_with(0, began, false).is_ok());
        assert!(early.began_with(0, file("/srv/app.py", b"b"), false).is_ok());
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
