//! From executions to fingerprints: look, hash, look again. What changed in between is no evidence.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::container::Container;
use bonafide_proto::fingerprint::{
    Digest, Evidence, Execution, Fingerprint, HashedFile, Host, Libraries, Script, Unit,
};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::taint::Taint;

use rustix::process::Resource;
use tokio::sync::Semaphore;

use crate::config::RuntimeConfig;
use crate::container::Containers;
use crate::earlier::Earlier;
use crate::execs::Execs;
use crate::hash::{Digests, HashError};
use crate::library;
use crate::looks::Looks;
use crate::mapped::Place;
use crate::parse::cgroup::{NamedUnit, Placement};
use crate::patience::Patience;
use crate::refuse::refuse;
use crate::script::Code;
use crate::seen::{Eyes, Files, Seen};
use crate::shares::{Bounds, Share, Shares};
use crate::sys::executable::FileId;
use crate::sys::hierarchy::Hierarchies;
use crate::sys::namespace::Home;
use crate::sys::process::Process;
use crate::unit;
use crate::version::FileVersion;

/// Takes fingerprints.
#[derive(Debug)]
pub(crate) struct Witness {
    digests: Digests,
    patience: Arc<Patience>,
    host: Host,
    eyes: Eyes,
    hierarchies: Hierarchies,
    containers: Containers,
    looks: Looks<Result<Vec<Witnessed>, AttestRefusal>>,
    /// Executions that may be examined at once.
    room: Shares,
    room_max: usize,
    /// Who asks on whose account: these questions never wait for anybody, and are few at once all the same.
    lookups: Semaphore,
}

/// The evidence about one execution.
#[derive(Debug, Clone)]
pub(crate) struct Witnessed {
    /// Which execution.
    pub(crate) execution: Execution,
    /// The file it runs.
    pub(crate) exe: FileId,
    /// On whose account it was looked at.
    pub(crate) account: u32,
    /// The evidence.
    pub(crate) fingerprint: Fingerprint,
    /// The digests of its libraries, one by one. They stay on this host.
    pub(crate) members: Arc<[Digest]>,
    /// Every file whose content is evidence, each once and still open, so that it can be watched.
    pub(crate) files: HashMap<FileVersion, Arc<File>>,
    /// The files of its libraries, so that they can be opened and watched; none where they are no evidence.
    pub(crate) mapped: BTreeMap<FileId, Place>,
    /// Whether its file may be an interpreter: one of many programs in one file may be another one the next time.
    pub(crate) interprets: bool,
    /// It, pinned.
    pub(crate) process: Arc<Process>,
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

/// Evidence that others have to be asked for, or much has to be read for.
struct Learned {
    libraries: Evidence<Libraries>,
    members: Arc<[Digest]>,
    container: Evidence<Container>,
}

impl Witness {
    /// A witness on this host, in this daemon's own namespaces, that keeps digests and what it
    /// witnessed in the directory `state`, and asks these container runtimes.
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
        let digests = Digests::new(at_once, Arc::clone(&clock), Arc::clone(&patience))?;
        let hierarchies = Hierarchies::read();
        let execs = Arc::new(Earlier::open(execs, state));
        Ok(Self {
            digests: match state {
                Some(directory) => digests.kept_in(directory),
                None => digests,
            },
            patience,
            host,
            eyes: Eyes { home: Home::own()?, execs, early: Arc::default(), clock, accounts: Arc::default() },
            containers: Containers::new(runtimes, hierarchies.clone()),
            looks: Looks::default(),
            hierarchies,
            room: Shares::new(Bounds {
                all: room_max,
                each: (room_max / 4).max(1),
                waiting: room_max,
                most: ROOM_PATIENCE,
            }),
            room_max,
            lookups: Semaphore::new(LOOKUPS),
        })
    }

    /// How many files were hashed so far.
    #[cfg(test)]
    pub(crate) fn hashed(&self) -> u64 {
        self.digests.hashed()
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
        self.looks.share(executions, || self.examine_now(executions)).await
    }

    /// Keeps in mind what an interpreter that has just begun could hide later.
    ///
    /// # Errors
    /// Any doubt about it, by name.
    pub(crate) async fn note(&self, execution: Execution) -> Result<(), AttestRefusal> {
        let eyes = self.eyes.clone();
        let user = self.users(&[execution]).await?.first().copied().unwrap_or_default();
        let Some(noted) = self.look(user, execution, move || eyes.note(execution)).await? else { return Ok(()) };
        let digest = self.digests.digest(&noted.file, user).await.map_err(unhashed)?;
        // What was changed already is said to whoever asks.
        let _ = self.eyes.early.began_with(noted.image, HashedFile { path: noted.path, digest }, noted.late);
        Ok(())
    }

    async fn examine_now(&self, executions: &[Execution]) -> Result<Vec<Witnessed>, AttestRefusal> {
        let users = self.users(executions).await?;
        let _room = self.enter(&users).await?;
        let (seen, files) = self.first_looks(executions, users).await?;
        let digests = self.hash(files).await?;
        let learned = self.learn(&seen).await?;
        let seen = self.second_looks(seen).await?;
        let each = seen.into_iter().zip(learned);
        each.map(|(seen, learned)| self.fingerprint(seen, &digests, learned)).collect()
    }

    /// On whose account each of them is looked at.
    async fn users(&self, executions: &[Execution]) -> Result<Vec<u32>, AttestRefusal> {
        let (asked, eyes) = (executions.to_vec(), self.eyes.clone());
        let _lookup = self.lookups.acquire().await;
        blocking(move || asked.into_iter().map(|execution| eyes.account(execution)).collect()).await
    }

    async fn first_looks(
        &self,
        executions: &[Execution],
        users: Vec<u32>,
    ) -> Result<(Vec<Seen>, Files), AttestRefusal> {
        let (mut all, mut files) = (Vec::with_capacity(executions.len()), Files::new());
        for (execution, user) in executions.iter().copied().zip(users) {
            let eyes = self.eyes.clone();
            let (seen, its_files) = self.look(user, execution, move || eyes.first(execution)).await?;
            all.push(seen);
            files.extend(its_files);
        }
        Ok((all, files))
    }

    async fn second_looks(&self, seen: Vec<Seen>) -> Result<Vec<Seen>, AttestRefusal> {
        let mut all = Vec::with_capacity(seen.len());
        for one in seen {
            let (eyes, user, execution) = (self.eyes.clone(), one.account, one.process.execution());
            all.push(self.look(user, execution, move || eyes.second(one)).await?);
        }
        Ok(all)
    }

    /// What takes more than a look at each of them. The second look tells whether they still are the same processes, in
    /// the same cgroups, with the same code. Programs of one house share most of their libraries.
    async fn learn(&self, seen: &[Seen]) -> Result<Vec<Learned>, AttestRefusal> {
        let (mut known, mut learned) = (HashMap::new(), Vec::with_capacity(seen.len()));
        for one in seen {
            let execution = one.process.execution();
            let libraries = library::libraries(one, self, &mut known).await?;
            let container = self.containers.of(execution.pid, execution.start_ticks, &one.look.cgroup).await;
            learned.push(Learned { libraries, members: library::members(one, &known), container });
        }
        Ok(learned)
    }

    fn unit(&self, named: &Evidence<NamedUnit>) -> Evidence<Unit> {
        match named {
            Evidence::Known(named) => unit::unit(&self.hierarchies, named),
            Evidence::Absent(why) => Evidence::Absent(why.clone()),
            Evidence::Unavailable(why) => Evidence::Unavailable(why.clone()),
        }
    }

    /// Looks at a process, and is not kept waiting by it: its files can be served by a program, its memory too.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        user: u32,
        execution: Execution,
        work: impl FnOnce() -> Result<T, AttestRefusal> + Send + 'static,
    ) -> Result<T, AttestRefusal> {
        match self.patience.wait(user, LOOK_MAX, move |_| work()).await {
            Ok(looked) => looked,
            Err(e) => refuse(e.reason(), format!("looking at process {}: {e}", execution.pid)),
        }
    }

    /// On whose account work about this execution is. Who is gone is nobody's, and costs nothing.
    pub(crate) fn account(&self, execution: Execution) -> u32 {
        self.eyes.account(execution).unwrap_or(0)
    }

    /// Waits until there are descriptors for so many executions, on the accounts of these users.
    async fn enter(&self, users: &[u32]) -> Result<Vec<Share>, AttestRefusal> {
        if users.len() > self.room_max {
            let (wanted, most) = (users.len(), self.room_max);
            let detail = format!("{wanted} processes; the limit of open files lets {most} be examined");
            return refuse(AttestReason::Unavailable, detail);
        }
        let mut wanted: BTreeMap<u32, usize> = BTreeMap::new();
        users.iter().for_each(|user| *wanted.entry(*user).or_default() += 1);
        let mut room = Vec::with_capacity(wanted.len());
        for (user, many) in wanted {
            let share = self.room.take_many(user, many).await;
            room.push(share.or_else(|full| refuse(full.reason(), format!("too many processes are examined: {full}")))?);
        }
        Ok(room)
    }

    /// The digest of an open file, read on this user's account if it must be read.
    ///
    /// # Errors
    /// See [`HashError`].
    pub(crate) async fn digest(&self, file: &Arc<File>, user: u32) -> Result<Digest, HashError> {
        self.digests.digest(file, user).await
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
        seen: Seen,
        digests: &HashMap<FileVersion, Digest>,
        learned: Learned,
    ) -> Result<Witnessed, AttestRefusal> {
        let hashed = |path: &String, version: &FileVersion| match digests.get(version) {
            Some(digest) => Ok(HashedFile { path: path.clone(), digest: *digest }),
            None => refuse(AttestReason::Unreadable, format!("{path} was not hashed")),
        };
        let script = match &seen.script {
            Evidence::Known(Code::File(path, version)) => match self.eyes.began_with(&seen, hashed(path, version)?) {
                Ok(script) => Evidence::Known(Script::File(script)),
                Err(why) => Evidence::Absent(why),
            },
            Evidence::Known(Code::Inline(digest)) => Evidence::Known(Script::Inline(*digest)),
            Evidence::Known(Code::Stdin) => Evidence::Known(Script::Stdin),
            Evidence::Absent(why) => Evidence::Absent(why.clone()),
            Evidence::Unavailable(why) => Evidence::Unavailable(why.clone()),
        };
        let mut taints = seen.taints;
        if matches!((&seen.script, &script), (Evidence::Known(Code::File(..)), Evidence::Absent(_))) {
            taints.insert(Taint::NoScript);
        }
        let placement = Placement::parse(&seen.look.cgroup);
        let fingerprint = Fingerprint {
            root: seen.look.root,
            exe: hashed(&seen.exe_path, &seen.exe)?,
            script,
            uid: seen.look.owner.uid,
            gid: seen.look.owner.gid,
            cgroup: placement.cgroup,
            unit: self.unit(&placement.unit),
            libraries: learned.libraries,
            container: learned.container,
            taints,
            release: None,
            host: self.host.clone(),
        };
        let execution = Execution { image: seen.beginning.image(), ..seen.process.execution() };
        let members = learned.members;
        let mapped = fingerprint.libraries.known().map(|_| seen.mapped.files).unwrap_or_default();
        let (exe, account, interprets) = (seen.look.exe.id, seen.account, seen.interprets);
        let (files, process) = (seen.open, seen.process);
        Ok(Witnessed { execution, exe, account, fingerprint, members, files, mapped, interprets, process })
    }
}

/// How long a question waits until its processes may be examined; the enforcer waits a little longer for its answer.
const ROOM_PATIENCE: Duration = Duration::from_secs(4);
/// Questions for the accounts of processes that are under way at once, each on a thread.
const LOOKUPS: usize = 32;

/// How long one look at a process may take. Only a hostile process takes longer, or a machine that stands still.
const LOOK_MAX: Duration = Duration::from_secs(3);

/// For how many executions there are descriptors: directory, pidfd, files and some libraries of each; and some for all
/// else.
fn room() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / DESCRIPTORS_EACH).unwrap_or(usize::MAX).clamp(1, ROOM_MAX)
}

/// Descriptors that one execution may take while it is examined.
const DESCRIPTORS_EACH: u64 = 6 + library::OPEN_MAX as u64;
/// Executions that are examined at once, whatever the limit of open files.
const ROOM_MAX: usize = 65_536;

fn unhashed(e: HashError) -> AttestRefusal {
    let reason = match e {
        HashError::TooLarge { .. } => AttestReason::TooLarge,
        HashError::Unhashable(_) => AttestReason::Unhashable,
        HashError::Endless(ref endless) => endless.reason(),
        HashError::RateLimited(_) => AttestReason::RateLimited,
        HashError::Busy(full) => full.reason(),
        HashError::Changed | HashError::Io(_) => AttestReason::Unreadable,
    };
    AttestRefusal::new(reason, format!("a file cannot be hashed: {e}"))
}

/// Work that may wait for a disk, on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AttestRefusal> + Send + 'static,
) -> Result<T, AttestRefusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => refuse(AttestReason::Unavailable, format!("looking at processes failed: {e}")),
    }
}
