//! From executions to fingerprints: look, hash, look again. What changed in between is no evidence.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::container::Container;
use bonafide_proto::fingerprint::{Digest, Evidence, Execution, Fingerprint, HashedFile, Host, Script, Unit};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::taint::Taints;

use rustix::process::Resource;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::config::RuntimeConfig;
use crate::container::Containers;
use crate::execs::{self, AtExec, Execs};
use crate::hash::{Digests, HashError};
use crate::parse::cgroup::{NamedUnit, Placement};
use crate::patience::Patience;
use crate::refuse::{refuse, unread};
use crate::script;
use crate::sys::executable::FileId;
use crate::sys::hierarchy::Hierarchies;
use crate::sys::namespace::Home;
use crate::sys::process::{Look, Process};
use crate::sys::regular;
use crate::unit;
use crate::version::FileVersion;

/// Takes fingerprints.
#[derive(Debug)]
pub(crate) struct Witness {
    digests: Digests,
    patience: Arc<Patience>,
    host: Host,
    home: Home,
    execs: Arc<dyn Execs>,
    hierarchies: Hierarchies,
    containers: Containers,
    /// Executions that may be examined at once.
    room: Semaphore,
    room_max: usize,
}

/// The evidence about one execution.
#[derive(Debug, Clone)]
pub(crate) struct Witnessed {
    /// Which execution.
    pub(crate) execution: Execution,
    /// The file it runs.
    pub(crate) exe: FileId,
    /// The evidence.
    pub(crate) fingerprint: Fingerprint,
    /// Every file whose content is evidence, each once and still open, so that it can be watched.
    pub(crate) files: HashMap<FileVersion, Arc<File>>,
}

impl Witnessed {
    /// Whether two executions run the same program: the same file with the same content, and the same script.
    ///
    /// Users may differ: a server's master keeps root while its workers do not. What each of them earns by its
    /// own evidence is compared afterwards.
    pub(crate) fn same_program(&self, other: &Self) -> bool {
        let (a, b) = (&self.fingerprint, &other.fingerprint);
        self.exe == other.exe && a.exe == b.exe && a.script == b.script
    }
}

/// A process after the first look.
struct Seen {
    process: Process,
    look: Look,
    last: Option<AtExec>,
    exe_path: String,
    exe: FileVersion,
    script: Evidence<(String, FileVersion)>,
    /// The files of those versions.
    open: HashMap<FileVersion, Arc<File>>,
}

/// The files to be hashed, each once, and a user who runs it.
type Files = HashMap<FileVersion, (Arc<File>, u32)>;

impl Witness {
    /// A witness on this host, in this daemon's own namespaces, that keeps digests in the directory `state`, and asks
    /// these container runtimes.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub(crate) fn new(
        host: Host,
        clock: SharedClock,
        execs: Arc<dyn Execs>,
        state: Option<&Path>,
        runtimes: &[RuntimeConfig],
    ) -> std::io::Result<Self> {
        let room_max = room();
        let at_once = std::thread::available_parallelism().map_or(1, usize::from).min(4);
        let patience = Arc::new(Patience::default());
        let digests = Digests::new(at_once, clock, Arc::clone(&patience))?;
        let hierarchies = Hierarchies::read();
        Ok(Self {
            digests: match state {
                Some(directory) => digests.kept_in(directory),
                None => digests,
            },
            patience,
            host,
            home: Home::own()?,
            execs,
            containers: Containers::new(runtimes, hierarchies.clone()),
            hierarchies,
            room: Semaphore::new(room_max),
            room_max,
        })
    }

    /// The host.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// Who knows containers.
    pub(crate) fn runtimes(&self) -> &Containers {
        &self.containers
    }

    /// The evidence about each execution, in their order.
    ///
    /// # Errors
    /// The first doubt about any of them, by name.
    pub(crate) async fn examine(&self, executions: &[Execution]) -> Result<Vec<Witnessed>, AttestRefusal> {
        let _room = self.enter(executions.len()).await?;
        let (seen, files) = self.first_looks(executions).await?;
        let digests = self.hash(files).await?;
        let containers = self.containers(&seen).await;
        let seen = self.second_looks(seen).await?;
        let each = seen.iter().zip(containers);
        each.map(|(seen, container)| self.fingerprint(seen, container, &digests)).collect()
    }

    async fn first_looks(&self, executions: &[Execution]) -> Result<(Vec<Seen>, Files), AttestRefusal> {
        let asked = executions.to_vec();
        let users = blocking(move || users(&asked)).await?;
        let (mut all, mut files) = (Vec::with_capacity(executions.len()), Files::new());
        for (execution, user) in executions.iter().copied().zip(users) {
            let (home, execs) = (self.home, Arc::clone(&self.execs));
            let first = move || first_look(&[execution], home, &*execs);
            let (seen, its_files) = self.look(user, execution, first).await?;
            all.extend(seen);
            files.extend(its_files);
        }
        Ok((all, files))
    }

    async fn second_looks(&self, seen: Vec<Seen>) -> Result<Vec<Seen>, AttestRefusal> {
        let mut all = Vec::with_capacity(seen.len());
        for one in seen {
            let (home, execs) = (self.home, Arc::clone(&self.execs));
            let (user, execution) = (one.look.owner.uid, one.process.execution());
            all.extend(self.look(user, execution, move || second_look(vec![one], home, &*execs)).await?);
        }
        Ok(all)
    }

    /// The container of each. The second look tells whether they still are the same processes, in the same cgroups.
    async fn containers(&self, seen: &[Seen]) -> Vec<Evidence<Container>> {
        let mut containers = Vec::with_capacity(seen.len());
        for one in seen {
            let execution = one.process.execution();
            containers.push(self.containers.of(execution.pid, execution.start_ticks, &one.look.cgroup).await);
        }
        containers
    }

    fn unit(&self, named: &Evidence<NamedUnit>) -> Evidence<Unit> {
        match named {
            Evidence::Known(named) => unit::unit(&self.hierarchies, named),
            Evidence::Absent(why) => Evidence::Absent(why.clone()),
            Evidence::Unavailable(why) => Evidence::Unavailable(why.clone()),
        }
    }

    /// Looks at a process, and is not kept waiting by it: its files can be served by a program, its memory too.
    async fn look<T: Send + 'static>(
        &self,
        user: u32,
        execution: Execution,
        work: impl FnOnce() -> Result<T, AttestRefusal> + Send + 'static,
    ) -> Result<T, AttestRefusal> {
        match self.patience.wait(user, LOOK_MAX, move |_| work()).await {
            Ok(looked) => looked,
            Err(e) => refuse(AttestReason::Unhashable, format!("looking at process {}: {e}", execution.pid)),
        }
    }

    /// Waits until there are descriptors for so many executions.
    async fn enter(&self, executions: usize) -> Result<SemaphorePermit<'_>, AttestRefusal> {
        let wanted = u32::try_from(executions).ok().filter(|_| executions <= self.room_max);
        let Some(wanted) = wanted else {
            let detail = format!("{executions} processes; the limit of open files lets {} be examined", self.room_max);
            return refuse(AttestReason::Unavailable, detail);
        };
        let entered = self.room.acquire_many(wanted).await;
        entered.or_else(|e| refuse(AttestReason::Unavailable, format!("no process is examined any more: {e}")))
    }

    async fn hash(&self, files: Files) -> Result<HashMap<FileVersion, Digest>, AttestRefusal> {
        let mut digests = HashMap::with_capacity(files.len());
        for (version, (file, user)) in files {
            digests.insert(version, self.digests.digest(&file, user).await.map_err(unhashed)?);
        }
        Ok(digests)
    }

    fn fingerprint(
        &self,
        seen: &Seen,
        container: Evidence<Container>,
        digests: &HashMap<FileVersion, Digest>,
    ) -> Result<Witnessed, AttestRefusal> {
        let hashed = |path: &String, version: &FileVersion| match digests.get(version) {
            Some(digest) => Ok(HashedFile { path: path.clone(), digest: *digest }),
            None => refuse(AttestReason::Unreadable, format!("{path} was not hashed")),
        };
        let script = match &seen.script {
            Evidence::Known((path, version)) => Evidence::Known(Script::File(hashed(path, version)?)),
            Evidence::Absent(why) => Evidence::Absent(why.clone()),
            Evidence::Unavailable(why) => Evidence::Unavailable(why.clone()),
        };
        let placement = Placement::parse(&seen.look.cgroup);
        let fingerprint = Fingerprint {
            exe: hashed(&seen.exe_path, &seen.exe)?,
            script,
            uid: seen.look.owner.uid,
            gid: seen.look.owner.gid,
            cgroup: placement.cgroup,
            unit: self.unit(&placement.unit),
            libraries: Evidence::Absent("not looked at yet".to_owned()),
            container,
            taints: Taints::new(),
            host: self.host.clone(),
        };
        let image = seen.last.as_ref().map_or(0, |last| last.image);
        let execution = Execution { image, ..seen.process.execution() };
        let files = seen.open.clone();
        Ok(Witnessed { execution, exe: seen.look.exe.id, fingerprint, files })
    }
}

/// How long one look at a process may take. Only a hostile process takes longer, or a machine that stands still.
const LOOK_MAX: Duration = Duration::from_secs(3);

/// For how many executions there are descriptors: directory, pidfd and files of each; and some for all else.
fn room() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / DESCRIPTORS_EACH).unwrap_or(usize::MAX).clamp(1, ROOM_MAX)
}

/// Descriptors that one execution may take while it is examined.
const DESCRIPTORS_EACH: u64 = 6;
/// Executions that are examined at once, whatever the limit of open files.
const ROOM_MAX: usize = 65_536;

fn unhashed(e: HashError) -> AttestRefusal {
    let reason = match e {
        HashError::TooLarge { .. } => AttestReason::TooLarge,
        HashError::Unhashable(_) | HashError::Endless(_) => AttestReason::Unhashable,
        HashError::RateLimited(_) => AttestReason::RateLimited,
        HashError::Busy(_) => AttestReason::Unavailable,
        HashError::Changed | HashError::Io(_) => AttestReason::Unreadable,
    };
    AttestRefusal::new(reason, format!("a file cannot be hashed: {e}"))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AttestRefusal> + Send + 'static,
) -> Result<T, AttestRefusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => refuse(AttestReason::Unavailable, format!("looking at processes failed: {e}")),
    }
}

/// On whose account each of them is looked at. Nothing that is read here depends on the process.
fn users(executions: &[Execution]) -> Result<Vec<u32>, AttestRefusal> {
    executions.iter().map(|execution| Ok(Process::pin_execution(*execution)?.owner()?.uid)).collect()
}

fn first_look(executions: &[Execution], home: Home, execs: &dyn Execs) -> Result<(Vec<Seen>, Files), AttestRefusal> {
    let mut files = Files::new();
    let seen = executions.iter().map(|execution| see(*execution, home, execs, &mut files)).collect::<Result<_, _>>()?;
    Ok((seen, files))
}

fn see(execution: Execution, home: Home, execs: &dyn Execs, files: &mut Files) -> Result<Seen, AttestRefusal> {
    let process = Process::pin_execution(execution)?;
    let last = execs::executed(execs, execution, &process)?;
    let look = process.look(home)?;
    execs::unreplaced(execs, process.execution(), last.as_ref(), look.exe.id)?;
    let exe_path = script::printable(&look.exe_path, "the executable's path")?;
    let exe = process.open_exe()?;
    regular::stored(&exe).or_else(|e| refuse(AttestReason::Unhashable, format!("the executable {exe_path}: {e}")))?;
    let exe = keep(exe, execution.pid, look.owner.uid, files)?;
    if exe.id != look.exe.id {
        let detail = format!("process {} changed its program while it was looked at", execution.pid);
        return refuse(AttestReason::GenerationGone, detail);
    }
    let script = match script::open(&process, &exe_path)? {
        Evidence::Known(open) => Evidence::Known((open.path, keep(open.file, execution.pid, look.owner.uid, files)?)),
        Evidence::Absent(why) => Evidence::Absent(why),
        Evidence::Unavailable(why) => Evidence::Unavailable(why),
    };
    let versions = std::iter::once(exe).chain(script.known().map(|(_, version)| *version));
    let open = versions.filter_map(|version| Some((version, Arc::clone(&files.get(&version)?.0)))).collect();
    Ok(Seen { process, look, last, exe_path, exe, script, open })
}

fn keep(file: File, pid: u32, user: u32, files: &mut Files) -> Result<FileVersion, AttestRefusal> {
    let version = FileVersion::of(&file).map_err(|e| unread(pid, "a file", &e))?;
    files.entry(version).or_insert_with(|| (Arc::new(file), user));
    Ok(version)
}

/// Everything must be as it was, and alive.
fn second_look(seen: Vec<Seen>, home: Home, execs: &dyn Execs) -> Result<Vec<Seen>, AttestRefusal> {
    for one in &seen {
        let pid = one.process.execution().pid;
        let image = |last: &Option<AtExec>| last.as_ref().map(|last| last.image);
        let last = execs::executed(execs, one.process.execution(), &one.process)?;
        if image(&last) != image(&one.last) || one.process.look(home)? != one.look {
            return refuse(AttestReason::GenerationGone, format!("process {pid} changed while it was looked at"));
        }
        let script = match script::open(&one.process, &one.exe_path)? {
            Evidence::Known(open) => {
                let version = FileVersion::of(&open.file).map_err(|e| unread(pid, "the script", &e))?;
                Evidence::Known((open.path, version))
            }
            Evidence::Absent(why) => Evidence::Absent(why),
            Evidence::Unavailable(why) => Evidence::Unavailable(why),
        };
        if script != one.script {
            return refuse(AttestReason::GenerationGone, format!("the script of process {pid} changed meanwhile"));
        }
    }
    Ok(seen)
}
