//! One process, looked at twice: what was the same both times is evidence.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::{Evidence, Execution, HashedFile};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::taint::{Taint, Taints};

use crate::accounts::Accounts;
use crate::beginning::{Beginning, Early};
use crate::earlier::Earlier;
use crate::execs;
use crate::mapped::Mapped;
use crate::parse::environ::{self, ENVIRON_MAX};
use crate::parse::grammar::Grammar;
use crate::refuse::{refuse, unread};
use crate::script::{self, Code, Interpreted};
use crate::sys::executable::Kept;
use crate::sys::namespace::{Home, users_can_make_user_namespaces};
use crate::sys::process::{Look, Process};
use crate::sys::regular;
use crate::version::FileVersion;

/// What it takes to look at a process.
#[derive(Debug, Clone)]
pub(crate) struct Eyes {
    /// This daemon's own namespaces.
    pub(crate) home: Home,
    /// Who knows what was executed.
    pub(crate) execs: Arc<Earlier>,
    /// What was seen early.
    pub(crate) early: Arc<Early>,
    /// That files' times are held against.
    pub(crate) clock: SharedClock,
    /// Who pays.
    pub(crate) accounts: Arc<Accounts>,
}

/// A process after the first look.
#[derive(Debug)]
pub(crate) struct Seen {
    /// It.
    pub(crate) process: Arc<Process>,
    /// How it began.
    pub(crate) beginning: Beginning,
    /// On whose account it is looked at.
    pub(crate) account: u32,
    /// The cheap evidence.
    pub(crate) look: Look,
    /// The executable's path, fit to be shown.
    pub(crate) exe_path: String,
    /// The executable.
    pub(crate) exe: FileVersion,
    /// The code it interprets.
    pub(crate) script: Evidence<Code<FileVersion>>,
    /// Whether that may have been changed after it was executed.
    pub(crate) late: bool,
    /// Whether its file may be an interpreter: one of many programs in one file may be another one the next time.
    pub(crate) interprets: bool,
    /// What else it has mapped as code.
    pub(crate) mapped: Mapped,
    /// Evidence against it.
    pub(crate) taints: Taints,
    /// The files of those versions.
    pub(crate) open: HashMap<FileVersion, Arc<File>>,
}

/// The script of a process that has just begun, not hashed yet.
#[derive(Debug)]
pub(crate) struct Noted {
    /// What was executed.
    pub(crate) image: u64,
    /// Where it is.
    pub(crate) path: String,
    /// It.
    pub(crate) file: Arc<File>,
    /// Whether it may have been changed after it was executed.
    pub(crate) late: bool,
}

/// The files to be hashed, each once, and the account of a user who runs it.
pub(crate) type Files = HashMap<FileVersion, (Arc<File>, u32)>;

impl Eyes {
    /// The first look.
    ///
    /// # Errors
    /// Any doubt about it, by name.
    pub(crate) fn first(&self, execution: Execution) -> Result<(Seen, Files), AttestRefusal> {
        let mut files = Files::new();
        Ok((self.see(execution, &mut files)?, files))
    }

    /// Keeps in mind what an interpreter could hide later: its environment, and where the name of its script leads. Its
    /// script is for the caller to hash, and then to be noted too.
    ///
    /// # Errors
    /// Any doubt about it, by name.
    pub(crate) fn note(&self, execution: Execution) -> Result<Option<Noted>, AttestRefusal> {
        let process = Process::pin_execution(execution)?;
        let beginning = Beginning::of(execution, &process, &*self.execs)?;
        let look = process.look(self.home, beginning.seen().is_some())?;
        let found = script::find(&process, &look, &beginning, &self.early)?;
        self.early.taints(beginning.image(), || environment(&process, found.grammar))?;
        let Evidence::Known(Code::File(path, file)) = found.code else { return Ok(None) };
        let version = FileVersion::of(&file).map_err(|e| unread(execution.pid, "the script", &e))?;
        let late = self.late(&beginning, Some(version.changed).max(found.way_changed), execution.pid)?;
        Ok(Some(Noted { image: beginning.image(), path, file: Arc::new(file), late }))
    }

    /// Whether what was changed last at this time may have been changed after it was executed.
    fn late(&self, beginning: &Beginning, changed: Option<i128>, pid: u32) -> Result<bool, AttestRefusal> {
        let late = changed.map_or(Ok(false), |changed| beginning.is_before(changed, &*self.clock));
        late.map_err(|e| unread(pid, "the time at which it was executed", &e))
    }

    /// The script that it began with, if this is still that one.
    ///
    /// # Errors
    /// In words: it was changed since.
    pub(crate) fn began_with(&self, seen: &Seen, script: HashedFile) -> Result<HashedFile, String> {
        self.early.began_with(seen.beginning.image(), script, seen.late)
    }

    /// The second look: everything must be as it was, and alive. What was witnessed is remembered.
    ///
    /// # Errors
    /// `generation-gone` where something changed; any doubt.
    pub(crate) fn second(&self, seen: Seen) -> Result<Seen, AttestRefusal> {
        self.same(&seen)?;
        if let Some(at_exec) = seen.beginning.seen() {
            self.execs.remember(seen.process.execution(), at_exec, &seen.taints);
        }
        Ok(seen)
    }

    /// On whose account this execution is looked at. Nothing that is read here depends on the process.
    ///
    /// # Errors
    /// `process-gone`, `evidence-unreadable`.
    pub(crate) fn account(&self, execution: Execution) -> Result<u32, AttestRefusal> {
        let process = Process::pin_execution(execution)?;
        Ok(self.accounts.of(process.owner()?.uid, process.is_foreign(self.home)?))
    }

    fn see(&self, execution: Execution, files: &mut Files) -> Result<Seen, AttestRefusal> {
        let process = Process::pin_execution(execution)?;
        let (pid, beginning) = (execution.pid, Beginning::of(execution, &process, &*self.execs)?);
        let look = process.look(self.home, beginning.seen().is_some())?;
        let account = self.accounts.of(look.owner.uid, look.foreign);
        execs::unreplaced(&*self.execs, process.execution(), beginning.at_exec(), look.exe.id)?;
        let exe_path = script::printable(&look.exe_path, "the executable's path")?;
        let exe = process.open_exe()?;
        regular::stored(&exe)
            .or_else(|e| refuse(AttestReason::Unhashable, format!("the executable {exe_path}: {e}")))?;
        let exe = keep(exe, pid, account, files)?;
        if exe.id != look.exe.id {
            return refuse(AttestReason::GenerationGone, format!("process {pid} changed its program meanwhile"));
        }
        beginning.unchanged(&exe, pid)?;
        let Interpreted { code: script, way_changed, grammar } =
            self.code(&process, &look, &beginning, |file| keep(file, pid, account, files))?;
        let changed = version_of(&script).map(|version| version.changed).max(way_changed);
        let late = self.late(&beginning, changed, pid)?;
        let mapped = Mapped::by(&process, look.exe.id)?;
        let environment = || environment(&process, grammar);
        let mut taints = self.early.taints(beginning.image(), environment)?;
        taints.extend(beginning.taints());
        taints.extend(visible_taints(&look, &mapped, &script, grammar));
        let versions = std::iter::once(exe).chain(version_of(&script));
        let open = versions.filter_map(|version| Some((version, Arc::clone(&files.get(&version)?.0)))).collect();
        let interprets = grammar.is_some() || Grammar::at_worst(script::program(&look)).is_some();
        let process = Arc::new(process);
        Ok(Seen { process, beginning, account, look, exe_path, exe, script, late, interprets, mapped, taints, open })
    }

    fn code(
        &self,
        process: &Process,
        look: &Look,
        beginning: &Beginning,
        mut version: impl FnMut(File) -> Result<FileVersion, AttestRefusal>,
    ) -> Result<Interpreted<FileVersion>, AttestRefusal> {
        let found = script::find(process, look, beginning, &self.early)?;
        let code = match found.code {
            Evidence::Known(Code::File(path, file)) => Evidence::Known(Code::File(path, version(file)?)),
            Evidence::Known(Code::Inline(digest)) => Evidence::Known(Code::Inline(digest)),
            Evidence::Known(Code::Stdin) => Evidence::Known(Code::Stdin),
            Evidence::Absent(why) => Evidence::Absent(why),
            Evidence::Unavailable(why) => Evidence::Unavailable(why),
        };
        Ok(Interpreted { code, way_changed: found.way_changed, grammar: found.grammar })
    }

    fn same(&self, one: &Seen) -> Result<(), AttestRefusal> {
        let execution = one.process.execution();
        let pid = execution.pid;
        let changed = |what| refuse(AttestReason::GenerationGone, format!("{what} process {pid} changed meanwhile"));
        if Beginning::of(execution, &one.process, &*self.execs)?.image() != one.beginning.image() {
            return changed("what was executed by");
        }
        if one.process.look(self.home, one.beginning.seen().is_some())? != one.look {
            return changed("the state of");
        }
        let version = |file: File| FileVersion::of(&file).map_err(|e| unread(pid, "the script", &e));
        if self.code(&one.process, &one.look, &one.beginning, version)?.code != one.script {
            return changed("the script of");
        }
        if !Mapped::by(&one.process, one.look.exe.id)?.same(&one.mapped) {
            return changed("the code mapped by");
        }
        Ok(())
    }
}

fn keep(file: File, pid: u32, user: u32, files: &mut Files) -> Result<FileVersion, AttestRefusal> {
    let version = FileVersion::of(&file).map_err(|e| unread(pid, "a file", &e))?;
    files.entry(version).or_insert_with(|| (Arc::new(file), user));
    Ok(version)
}

fn version_of(script: &Evidence<Code<FileVersion>>) -> Option<FileVersion> {
    match script.known()? {
        Code::File(_, version) => Some(*version),
        Code::Inline(_) | Code::Stdin => None,
    }
}

/// The taints of what it was started with.
fn environment(process: &Process, grammar: Option<&Grammar>) -> Result<Taints, AttestRefusal> {
    let most = ENVIRON_MAX as u64;
    let environ = process.content("environ", most)?;
    if environ.len() >= ENVIRON_MAX {
        let detail = format!("process {} shows a larger environment than there can be", process.execution().pid);
        return refuse(AttestReason::Unreadable, detail);
    }
    Ok(environ::taints(&environ, grammar))
}

/// The taints of what it is now.
fn visible_taints(
    look: &Look,
    mapped: &Mapped,
    script: &Evidence<Code<FileVersion>>,
    grammar: Option<&Grammar>,
) -> impl Iterator<Item = Taint> {
    let file = matches!(script, Evidence::Known(Code::File(..)));
    let kept = match look.exe_kept {
        Kept::OnDisk => None,
        Kept::Deleted => Some(Taint::Deleted),
        Kept::InMemory => Some(Taint::Memfd),
    };
    let others = [
        (Taint::Traced, look.traced),
        (Taint::WritableCode, mapped.writable),
        (Taint::NoScript, grammar.is_some() && !file),
        (Taint::Unwitnessed, look.forgeable && users_can_make_user_namespaces()),
    ];
    kept.into_iter().chain(others.into_iter().filter(|(_, is)| *is).map(|(taint, _)| taint))
}
