//! What an earlier daemon on this boot witnessed, so that a restart of this one turns no program into one that nobody saw
//! begin: a process that has executed nothing since is what it was seen to execute.
//!
//! A process is the same one by its number and its start, and has executed nothing since if the kernel counted no exec
//! (`self_exec_id`). Arguments are not kept, for they may hold secrets, only what tells whether those that are shown now
//! are the same. What is remembered is no evidence yet: its file is held against the one it runs, like any other.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bonafide_proto::fingerprint::{Digest, Execution};
use bonafide_proto::taint::{Taint, Taints};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::execs::{Arguments, AtExec, Counted, Execs};
use crate::store::{Kind, Lasts, Store};
use crate::sys::executable::FileId;
use crate::sys::process::Process;

/// Executions that are remembered.
const EXECUTIONS_MAX: usize = 65_536;
/// Whoever changes [`Memory`] counts the format up.
const EXECUTIONS: Kind = Kind {
    name: "executions",
    format: "1",
    most: EXECUTIONS_MAX,
    without: "programs without privileges are unwitnessed until they are restarted",
    lasts: Lasts::ThisBoot,
};
/// How often those that have ended are sought where there is no room.
const SWEEP: Duration = Duration::from_secs(60);

/// Knows what processes executed: from somebody who sees it, and from what was seen before.
#[derive(Debug)]
pub(crate) struct Earlier {
    execs: Arc<dyn Execs>,
    store: Option<Store>,
    /// By the numbers of images that are given now.
    recalled: HashMap<u64, Memory>,
    kept: Mutex<Kept>,
}

/// What is on disk, by process: when it started, and how often it had executed something.
#[derive(Debug, Default)]
struct Kept {
    processes: HashMap<u32, (u64, u64)>,
    swept: Option<Instant>,
}

/// What was witnessed of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    start_ticks: u64,
    execs: u64,
    file: FileId,
    /// When files were made tells them apart from those that have their numbers later.
    file_born: Option<i128>,
    size: u64,
    modified: i128,
    executed_ns: Option<u64>,
    directory: Option<FileId>,
    directory_born: Option<i128>,
    arguments: Digest,
    arguments_length: usize,
    arguments_whole: bool,
    taints: Taints,
}

impl Earlier {
    /// What `execs` sees, and what was kept in this directory if that can be told from anything else.
    pub(crate) fn open(execs: Arc<dyn Execs>, directory: Option<&Path>) -> Self {
        let (store, known) = match directory.filter(|_| execs.witnesses()) {
            Some(directory) => Store::open(directory, &EXECUTIONS, record),
            None => (None, Vec::new()),
        };
        let mut this = Self { execs, store, recalled: HashMap::new(), kept: Mutex::default() };
        for (pid, memory) in known {
            this.recall(pid, memory);
        }
        tracing::debug!(programs = this.recalled.len(), "witnessed by an earlier daemon");
        this
    }

    /// Remembers a process that is what was seen to be executed, with the evidence against it. May block as its files do.
    pub(crate) fn remember(self: &Arc<Self>, execution: Execution, seen: &AtExec, taints: &Taints) {
        let named = (execution.start_ticks, seen.execs);
        if self.store.is_some() && self.is_news(execution.pid, named) {
            self.keep(execution.pid, &Memory::of(execution, seen, taints));
        }
    }

    /// Whether this is to be kept: there is room, and it is not there yet.
    fn is_news(self: &Arc<Self>, pid: u32, named: (u64, u64)) -> bool {
        let mut kept = self.kept();
        if kept.processes.get(&pid) == Some(&named) {
            return false;
        }
        if kept.processes.len() < EXECUTIONS_MAX || kept.processes.contains_key(&pid) {
            kept.processes.insert(pid, named);
            return true;
        }
        // The next look at it comes within a minute.
        if kept.swept.is_none_or(|swept| swept.elapsed() >= SWEEP) {
            kept.swept = Some(Instant::now());
            let this = Arc::clone(self);
            tokio::task::spawn_blocking(move || this.sweep());
        }
        false
    }

    fn keep(&self, pid: u32, memory: &Memory) {
        let (Some(store), Ok(content)) = (&self.store, serde_json::to_vec(memory)) else { return };
        // Another one may have become news meanwhile.
        let kept = self.kept();
        if kept.processes.get(&pid) == Some(&(memory.start_ticks, memory.execs)) {
            store.add(&pid.to_be_bytes(), &content);
        }
    }

    /// Forgets those that have ended.
    fn sweep(&self) {
        let all: Vec<(u32, u64)> = self.kept().processes.iter().map(|(pid, (start, _))| (*pid, *start)).collect();
        for (pid, start_ticks) in all {
            if Process::has_ended(Execution { pid, start_ticks, image: 0 }) {
                self.forget(pid, start_ticks);
            }
        }
    }

    fn forget(&self, pid: u32, start_ticks: u64) {
        let mut kept = self.kept();
        if kept.processes.get(&pid).is_some_and(|(start, _)| *start == start_ticks) {
            kept.processes.remove(&pid);
            if let Some(store) = &self.store {
                store.remove(&pid.to_be_bytes());
            }
        }
    }

    /// Believes a memory of a process that is still the same; others are forgotten. Looks at no file, which could block.
    fn recall(&mut self, pid: u32, memory: Memory) {
        let counted = self.execs.counted(pid, memory.start_ticks);
        self.kept().processes.insert(pid, (memory.start_ticks, memory.execs));
        match counted {
            Some(counted) if !counted.witnessed && counted.execs == memory.execs => {
                self.recalled.insert(counted.image, memory);
            }
            _ => self.forget(pid, memory.start_ticks),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Execs for Earlier {
    fn executed(&self, pid: u32, start_ticks: u64) -> Option<AtExec> {
        let last = self.execs.executed(pid, start_ticks)?;
        match self.recalled.get(&last.image) {
            Some(memory) if !last.witnessed => Some(memory.in_place_of(last, born(pid))),
            _ => Some(last),
        }
    }

    fn counted(&self, pid: u32, start_ticks: u64) -> Option<Counted> {
        self.execs.counted(pid, start_ticks)
    }

    fn witnesses(&self) -> bool {
        self.execs.witnesses()
    }

    fn is_run(&self, image: u64) -> bool {
        self.execs.is_run(image)
    }

    fn is_still(&self, image: u64, last: &AtExec) -> bool {
        self.execs.is_still(image, last)
    }
}

impl Memory {
    /// What is kept of what was seen.
    pub(crate) fn of(execution: Execution, seen: &AtExec, taints: &Taints) -> Self {
        let (arguments, arguments_length, arguments_whole) = match &seen.arguments {
            Arguments::Recorded { bytes, whole } => (Digest::of(bytes), bytes.len(), *whole),
            Arguments::Remembered { digest, length, whole } => (*digest, *length, *whole),
        };
        let (file_born, directory_born) = born(execution.pid);
        Self {
            start_ticks: execution.start_ticks,
            execs: seen.execs,
            file: seen.file,
            file_born,
            size: seen.size,
            modified: seen.modified,
            executed_ns: seen.executed_ns,
            directory: seen.directory,
            directory_born,
            arguments,
            arguments_length,
            arguments_whole,
            taints: taints.intersection(&of_its_beginning()).copied().collect(),
        }
    }

    /// This, where only what was found later is known. What differs from that was never the same.
    fn in_place_of(&self, last: AtExec, (file_born, directory_born): Born) -> AtExec {
        let same = last.file == self.file && file_born == self.file_born;
        let there = last.directory == self.directory && directory_born == self.directory_born;
        AtExec {
            file: if same { self.file } else { no_file(self.file) },
            size: self.size,
            modified: self.modified,
            executed_ns: self.executed_ns,
            arguments: Arguments::Remembered {
                digest: self.arguments,
                length: self.arguments_length,
                whole: self.arguments_whole,
            },
            directory: self.directory.filter(|_| there),
            taints: self.taints.clone(),
            witnessed: true,
            ..last
        }
    }
}

/// The taints of what it was given when it began, which it could hide later.
fn of_its_beginning() -> Taints {
    [Taint::Preload, Taint::Audit].into()
}

/// The name of no file.
fn no_file(file: FileId) -> FileId {
    FileId { dev: 0, ..file }
}

/// When the executable and the working directory of a process were made, in nanoseconds since 1970, where the file system
/// says so.
type Born = (Option<i128>, Option<i128>);

fn born(pid: u32) -> Born {
    let born = |link| {
        let seen = rustix::fs::statx(CWD, format!("/proc/{pid}/{link}"), AtFlags::empty(), StatxFlags::BTIME).ok()?;
        let told = StatxFlags::from_bits_retain(seen.stx_mask).contains(StatxFlags::BTIME);
        told.then(|| i128::from(seen.stx_btime.tv_sec) * 1_000_000_000 + i128::from(seen.stx_btime.tv_nsec))
    };
    (born("exe"), born("cwd"))
}

/// None for what is no record.
/// One of the store, if it is one.
pub(crate) fn record(key: &[u8], content: &[u8]) -> Option<(u32, Memory)> {
    Some((u32::from_be_bytes(key.try_into().ok()?), serde_json::from_slice(content).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sees one process, this one, as a daemon does that began after it; or before it.
    #[derive(Debug)]
    struct Sees(AtExec);

    impl Execs for Sees {
        fn executed(&self, pid: u32, start_ticks: u64) -> Option<AtExec> {
            ((pid, start_ticks) == (this().pid, this().start_ticks)).then(|| self.0.clone())
        }

        fn counted(&self, pid: u32, start_ticks: u64) -> Option<Counted> {
            let AtExec { image, execs, witnessed, .. } = self.executed(pid, start_ticks)?;
            Some(Counted { image, execs, witnessed })
        }

        fn witnesses(&self) -> bool {
            true
        }
    }

    fn this() -> Execution {
        Process::pin(std::process::id()).unwrap().execution()
    }

    fn seen() -> AtExec {
        AtExec {
            image: 7,
            file: FileId { dev: 1, ino: 2 },
            size: 3,
            modified: 4,
            executed_ns: Some(8),
            execs: 5,
            arguments: Arguments::Recorded { bytes: b"a\0secret\0".to_vec(), whole: true },
            directory: Some(FileId { dev: 1, ino: 6 }),
            taints: Taints::new(),
            witnessed: true,
        }
    }

    /// What a daemon finds that begins later.
    fn found() -> AtExec {
        let arguments = Arguments::Recorded { bytes: Vec::new(), whole: false };
        AtExec { image: 99, executed_ns: None, arguments, witnessed: false, ..seen() }
    }

    fn recalled(execs: AtExec, directory: &Path) -> AtExec {
        let earlier = Earlier::open(Arc::new(Sees(execs)), Some(directory));
        earlier.executed(this().pid, this().start_ticks).unwrap()
    }

    /// A directory in which an earlier daemon remembered this process.
    fn remembered() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let earlier = Arc::new(Earlier::open(Arc::new(Sees(seen())), Some(dir.path())));
        earlier.remember(this(), &seen(), &[Taint::Preload, Taint::Traced].into());
        dir
    }

    #[test]
    fn what_executed_nothing_since_is_what_it_was_seen_to_execute() {
        let dir = remembered();
        let expected = AtExec {
            image: 99,
            arguments: Arguments::Remembered { digest: Digest::of(b"a\0secret\0"), length: 9, whole: true },
            // A tracer may have gone since; what it began with has not.
            taints: [Taint::Preload].into(),
            ..seen()
        };
        for _ in 0..2 {
            assert_eq!(recalled(found(), dir.path()), expected);
        }
    }

    #[test]
    fn what_executed_something_since_was_not_seen_and_is_forgotten() {
        let dir = remembered();
        let another = AtExec { execs: 6, ..found() };
        assert_eq!(recalled(another.clone(), dir.path()), another);
        assert_eq!(recalled(found(), dir.path()), found());
    }

    #[test]
    fn another_file_or_directory_than_the_one_that_was_seen_is_none() {
        let dir = remembered();
        let other = FileId { dev: 1, ino: 9 };
        let replaced = recalled(AtExec { file: other, ..found() }, dir.path());
        assert!(replaced.witnessed && ![other, seen().file].contains(&replaced.file));
        assert_eq!(recalled(AtExec { directory: Some(other), ..found() }, dir.path()).directory, None);
    }

    #[test]
    fn a_file_that_was_made_later_is_another_one() {
        let dir = remembered();
        {
            let (store, mut known) = Store::open(dir.path(), &EXECUTIONS, record);
            let (pid, mut memory) = known.pop().unwrap();
            memory.file_born = memory.file_born.map(|born| born - 1);
            memory.directory_born = Some(1);
            store.unwrap().add(&pid.to_be_bytes(), &serde_json::to_vec(&memory).unwrap());
        }
        let recalled = recalled(found(), dir.path());
        assert_ne!(recalled.file, seen().file);
        assert_eq!(recalled.directory, None);
    }

    #[test]
    fn arguments_are_not_on_disk() {
        let dir = remembered();
        let files = walk(dir.path());
        assert!(!files.is_empty());
        for file in files {
            let content = std::fs::read(&file).unwrap();
            assert!(!content.windows(6).any(|piece| piece == b"secret"), "{}", file.display());
        }
    }

    fn walk(directory: &Path) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn nothing_is_remembered_without_a_directory_or_a_witness() {
        let this_one = this();
        for (execs, directory) in [
            (Arc::new(Sees(seen())) as Arc<dyn Execs>, None),
            (Arc::new(crate::execs::NoExecs) as Arc<dyn Execs>, Some(tempfile::tempdir().unwrap())),
        ] {
            let earlier = Arc::new(Earlier::open(execs, directory.as_ref().map(|dir| dir.path())));
            earlier.remember(this_one, &seen(), &Taints::new());
            assert!(earlier.store.is_none() && earlier.kept().processes.is_empty());
        }
    }

    #[tokio::test]
    async fn what_has_ended_makes_room_and_only_then() {
        let dir = tempfile::tempdir().unwrap();
        let earlier = Arc::new(Earlier::open(Arc::new(Sees(seen())), Some(dir.path())));
        let living = this();
        {
            let mut kept = earlier.kept();
            // Nothing started before the machine did.
            let ended = (1..).filter(|pid| *pid != living.pid).map(|pid| (pid, (0, 0)));
            kept.processes.extend(ended.take(EXECUTIONS_MAX - 1));
            kept.processes.insert(living.pid, (living.start_ticks, 1));
        }
        assert!(!earlier.is_news(u32::MAX, (1, 1)));
        while earlier.kept().processes.len() > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(earlier.kept().processes.get(&living.pid), Some(&(living.start_ticks, 1)));
        assert!(earlier.is_news(u32::MAX, (1, 1)) && !earlier.is_news(u32::MAX, (1, 1)));
    }

    #[test]
    fn what_is_no_record_is_none() {
        let content = serde_json::to_vec(&Memory::of(this(), &seen(), &Taints::new())).unwrap();
        assert!(record(&7_u32.to_be_bytes(), &content).is_some());
        assert!(record(b"12345", &content).is_none());
        assert!(record(&7_u32.to_be_bytes(), content.get(1..).unwrap()).is_none());
    }
}
