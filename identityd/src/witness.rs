//! From executions to fingerprints: look, hash, look again. What changed in between is no evidence.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::{Digest, Evidence, Execution, Fingerprint, HashedFile, Host};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use rustix::process::Resource;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::hash::{Digests, HashError};
use crate::parse::cgroup::Placement;
use crate::refuse::{refuse, unread};
use crate::script;
use crate::sys::executable::FileId;
use crate::sys::namespace::Home;
use crate::sys::process::{Look, Process};
use crate::sys::regular;
use crate::version::FileVersion;

/// Takes fingerprints.
#[derive(Debug)]
pub(crate) struct Witness {
    digests: Digests,
    host: Host,
    home: Home,
    /// Executions that may be examined at once.
    room: Semaphore,
    room_max: usize,
}

/// The evidence about one execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Witnessed {
    /// Which execution.
    pub(crate) execution: Execution,
    /// The file it runs.
    pub(crate) exe: FileId,
    /// The evidence.
    pub(crate) fingerprint: Fingerprint,
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
    exe_path: String,
    exe: FileVersion,
    script: Evidence<(String, FileVersion)>,
}

/// The files to be hashed, each once, and a user who runs it.
type Files = HashMap<FileVersion, (Arc<File>, u32)>;

impl Witness {
    /// A witness on this host, in this daemon's own namespaces.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub(crate) fn new(host: Host, clock: SharedClock) -> std::io::Result<Self> {
        let room_max = room();
        let at_once = std::thread::available_parallelism().map_or(1, usize::from).min(4);
        Ok(Self {
            digests: Digests::new(at_once, clock),
            host,
            home: Home::own()?,
            room: Semaphore::new(room_max),
            room_max,
        })
    }

    /// The host.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// The evidence about each execution, in their order.
    ///
    /// # Errors
    /// The first doubt about any of them, by name.
    pub(crate) async fn examine(&self, executions: &[Execution]) -> Result<Vec<Witnessed>, AttestRefusal> {
        let _room = self.enter(executions.len()).await?;
        let (executions, home) = (executions.to_vec(), self.home);
        let (seen, files) = blocking(move || first_look(&executions, home)).await?;
        let digests = self.hash(files).await?;
        let seen = blocking(move || second_look(seen, home)).await?;
        seen.iter().map(|seen| self.fingerprint(seen, &digests)).collect()
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

    fn fingerprint(&self, seen: &Seen, digests: &HashMap<FileVersion, Digest>) -> Result<Witnessed, AttestRefusal> {
        let hashed = |path: &String, version: &FileVersion| match digests.get(version) {
            Some(digest) => Ok(HashedFile { path: path.clone(), digest: *digest }),
            None => refuse(AttestReason::Unreadable, format!("{path} was not hashed")),
        };
        let script = match &seen.script {
            Evidence::Known((path, version)) => Evidence::Known(hashed(path, version)?),
            Evidence::Absent(why) => Evidence::Absent(why.clone()),
        };
        let placement = Placement::parse(&seen.look.cgroup);
        let fingerprint = Fingerprint {
            exe: hashed(&seen.exe_path, &seen.exe)?,
            script,
            uid: seen.look.owner.uid,
            gid: seen.look.owner.gid,
            cgroup: placement.cgroup,
            unit: placement.unit,
            host: self.host.clone(),
        };
        Ok(Witnessed { execution: seen.process.execution(), exe: seen.look.exe.id, fingerprint })
    }
}

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

fn first_look(executions: &[Execution], home: Home) -> Result<(Vec<Seen>, Files), AttestRefusal> {
    let mut files = Files::new();
    let seen = executions.iter().map(|execution| see(*execution, home, &mut files)).collect::<Result<_, _>>()?;
    Ok((seen, files))
}

fn see(execution: Execution, home: Home, files: &mut Files) -> Result<Seen, AttestRefusal> {
    let process = Process::pin_execution(execution)?;
    let look = process.look(home)?;
    let exe_path = script::printable(&look.exe_path, "the executable's path")?;
    let exe = process.open_exe()?;
    regular::stored(&exe).or_else(|e| refuse(AttestReason::Unreadable, format!("the executable {exe_path}: {e}")))?;
    let exe = keep(exe, execution.pid, look.owner.uid, files)?;
    if exe.id != look.exe.id {
        let detail = format!("process {} changed its program while it was looked at", execution.pid);
        return refuse(AttestReason::GenerationGone, detail);
    }
    let script = match script::open(&process, &exe_path)? {
        Evidence::Known(open) => Evidence::Known((open.path, keep(open.file, execution.pid, look.owner.uid, files)?)),
        Evidence::Absent(why) => Evidence::Absent(why),
    };
    Ok(Seen { process, look, exe_path, exe, script })
}

fn keep(file: File, pid: u32, user: u32, files: &mut Files) -> Result<FileVersion, AttestRefusal> {
    let version = FileVersion::of(&file).map_err(|e| unread(pid, "a file", &e))?;
    files.entry(version).or_insert_with(|| (Arc::new(file), user));
    Ok(version)
}

/// Everything must be as it was, and alive.
fn second_look(seen: Vec<Seen>, home: Home) -> Result<Vec<Seen>, AttestRefusal> {
    for one in &seen {
        let pid = one.process.execution().pid;
        if one.process.look(home)? != one.look {
            return refuse(AttestReason::GenerationGone, format!("process {pid} changed while it was looked at"));
        }
        let script = match script::open(&one.process, &one.exe_path)? {
            Evidence::Known(open) => {
                let version = FileVersion::of(&open.file).map_err(|e| unread(pid, "the script", &e))?;
                Evidence::Known((open.path, version))
            }
            Evidence::Absent(why) => Evidence::Absent(why),
        };
        if script != one.script {
            return refuse(AttestReason::GenerationGone, format!("the script of process {pid} changed meanwhile"));
        }
    }
    Ok(seen)
}
