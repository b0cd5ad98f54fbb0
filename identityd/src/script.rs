//! The code that an interpreter runs: found in its command line, opened as the process itself would open it.
//!
//! The command line is the one recorded at exec, where somebody recorded it. Elsewhere it is what the process shows
//! now (after a restart, if its digest is the one that an earlier daemon remembered): it can rewrite that, and change its working directory. It then shows another script, but never one whose content
//! it could not have run in the first place.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bonafide_proto::fingerprint::{Digest, Evidence};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use crate::beginning::{Beginning, Early};
use crate::execs::{Arguments, AtExec};
use crate::parse::cmdline::{CMDLINE_MAX, arguments};
use crate::parse::grammar::Grammar;
use crate::parse::interpreter::{Interpreter, Named, interpreter};
use crate::refuse::{exhausted, refuse, shown};
use crate::sys::executable::FileId;
use crate::sys::process::{Look, Process, UNPROVEN};
use crate::sys::regular::{OpenError, follow_beneath, inside, path_of, plainly_below};

/// What an interpreter runs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Code<F> {
    /// A file: where it is as the process sees it, links resolved; and the file.
    File(String, F),
    /// Text in its command line.
    Inline(Digest),
    /// What comes in through its standard input.
    Stdin,
}

/// The code of one process.
#[derive(Debug)]
pub(crate) struct Interpreted<F> {
    /// The code.
    pub(crate) code: Evidence<Code<F>>,
    /// When the way to its file was changed last, in nanoseconds since 1970: links, and directories that users can exchange.
    pub(crate) way_changed: Option<i128>,
    /// How its interpreter reads command lines; none if it is no interpreter.
    pub(crate) grammar: Option<&'static Grammar>,
}

/// Finds the code of a process that runs `exe_path`, and opens it.
///
/// # Errors
/// `evidence-unreadable` for paths that are no printable UTF-8; `process-gone`.
pub(crate) fn find(
    process: &Process,
    look: &Look,
    beginning: &Beginning,
    early: &Early,
) -> Result<Interpreted<File>, AttestRefusal> {
    let program = program(look);
    let Some(line) = CommandLine::of(process, beginning)? else {
        let code = Evidence::Absent("its command line was rewritten since it began".into());
        return Ok(Interpreted { code, way_changed: None, grammar: Grammar::at_worst(program) });
    };
    let read = interpreter(program, &arguments(&line.bytes, line.whole), line.whole);
    let Some(Interpreter { grammar, code }) = read else {
        let code = Evidence::Absent("the program is no interpreter".into());
        return Ok(Interpreted { code, way_changed: None, grammar: None });
    };
    let mut latest = None;
    let code = match code {
        Named::Nothing(why) => Evidence::Absent(why),
        Named::Stdin => Evidence::Known(Code::Stdin),
        Named::Inline(code) => Evidence::Known(Code::Inline(Digest::of(code))),
        Named::Script(path) => {
            printable(path, "the script's path")?;
            let search = Search { process, beginning, early };
            match search.open(path)? {
                Ok((found, file, changed)) => {
                    latest = changed;
                    Evidence::Known(Code::File(named(found, look)?, file))
                }
                Err(e) => Evidence::Absent(format!("the script {} cannot be opened: {e}", shown(path))),
            }
        }
    };
    Ok(Interpreted { code, way_changed: latest, grammar: Some(grammar) })
}

/// The name of the file that a process runs.
pub(crate) fn program(look: &Look) -> &[u8] {
    let name = Path::new(std::ffi::OsStr::from_bytes(&look.exe_path)).file_name().unwrap_or_default();
    name.as_encoded_bytes()
}

/// A path as text.
///
/// # Errors
/// `evidence-unreadable` for what is no UTF-8, has control characters, or is longer than `PATH_MAX`.
pub(crate) fn printable(path: &[u8], what: &str) -> Result<String, AttestRefusal> {
    match std::str::from_utf8(path) {
        Ok(text) if text.len() <= PATH_MAX && !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => refuse(AttestReason::Unreadable, format!("{what} is no printable text: {}", shown(path))),
    }
}

/// `PATH_MAX` (include/uapi/linux/limits.h).
const PATH_MAX: usize = 4096;

/// A process outside the initial user namespace puts what it likes at any path of its root.
fn named(found: Vec<u8>, look: &Look) -> Result<String, AttestRefusal> {
    let path = if look.foreign { [UNPROVEN, &found].concat() } else { found };
    printable(&path, "the script's path")
}

/// What a process was called with.
struct CommandLine<'b> {
    bytes: Cow<'b, [u8]>,
    whole: bool,
}

impl<'b> CommandLine<'b> {
    /// None: it is another one now than it was.
    fn of(process: &Process, beginning: &'b Beginning) -> Result<Option<Self>, AttestRefusal> {
        if let Some(AtExec { arguments: Arguments::Recorded { bytes, whole }, .. }) = beginning.seen() {
            return Ok(Some(Self { bytes: Cow::Borrowed(bytes), whole: *whole }));
        }
        let bytes = process.content("cmdline", CMDLINE_MAX as u64)?;
        let shown = Self { whole: bytes.len() < CMDLINE_MAX, bytes: Cow::Owned(bytes) };
        match beginning.seen() {
            Some(AtExec { arguments: Arguments::Remembered { digest, length, whole }, .. }) => {
                Ok(shown.if_it_is(*digest, *length, *whole))
            }
            _ => Ok(Some(shown)),
        }
    }

    /// As much of it as was remembered, if that is the same.
    fn if_it_is(mut self, digest: Digest, length: usize, whole: bool) -> Option<Self> {
        let fits = if whole { self.whole && self.bytes.len() == length } else { self.bytes.len() >= length };
        self.bytes.to_mut().truncate(length);
        self.whole = whole;
        (fits && Digest::of(&self.bytes) == digest).then_some(self)
    }
}

/// Where a script is looked for.
struct Search<'p> {
    process: &'p Process,
    beginning: &'p Beginning,
    early: &'p Early,
}

/// Its path from the process's root, links resolved; the script; and when the way there was changed last.
type Found = (Vec<u8>, File, Option<i128>);

impl Search<'_> {
    /// The outer error refuses; the inner one is the absence of the script.
    fn open(&self, path: &[u8]) -> Result<Result<Found, OpenError>, AttestRefusal> {
        let root = self.process.open_dir("root")?;
        let root_path = self.process.link("root")?;
        let opened = if path.starts_with(b"/") {
            follow_beneath(&root, path)
        } else {
            self.open_relative(path, &root, &root_path)?
        };
        let (file, changed) = match opened {
            Ok(opened) => opened,
            Err(OpenError::Io(e)) if exhausted(&e) => return Err(self.process.unread("the script", &e)),
            Err(e) => return Ok(Err(e)),
        };
        let resolved = match path_of(&file) {
            Ok(path) => path,
            Err(e) => return Ok(Err(e.into())),
        };
        Ok(Ok((inside(&resolved, &root_path).unwrap_or(&resolved).to_vec(), file, changed)))
    }

    /// One that is relative to the directory in which the process began.
    fn open_relative(
        &self,
        path: &[u8],
        root: &impl AsFd,
        root_path: &[u8],
    ) -> Result<Result<(File, Option<i128>), OpenError>, AttestRefusal> {
        let here = WorkingDirectory::of(self.process, root, root_path)?;
        if self.beginning.seen().is_some_and(|seen| seen.directory != Some(here.id)) {
            let lost = || io::Error::other("its process left the directory in which it began");
            let known = self.early.script(self.beginning.image()).ok_or_else(lost);
            return Ok(known.map_err(OpenError::from).and_then(|whole| follow_beneath(root, &whole)));
        }
        let at = match here.path {
            Ok(at) => at,
            Err(e) => return Ok(Err(e.into())),
        };
        let whole = [at.as_slice(), b"/", path].concat();
        self.early.note_script(self.beginning.image(), &whole);
        Ok(match plainly_below(&here.directory, path) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => follow_beneath(root, &whole),
            Err(e) => Err(e),
        })
    }
}

/// The directory in which a process is.
struct WorkingDirectory {
    directory: OwnedFd,
    id: FileId,
    /// Inside the process's root.
    path: io::Result<Vec<u8>>,
}

impl WorkingDirectory {
    fn of(process: &Process, root: &impl AsFd, root_path: &[u8]) -> Result<Self, AttestRefusal> {
        use rustix::fs::{Mode, OFlags, ResolveFlags};
        let directory = process.open_dir("cwd")?;
        let shown = process.link("cwd")?;
        let id = |fd: &OwnedFd| {
            let stat = rustix::fs::fstat(fd).map_err(io::Error::from);
            stat.map(|s| FileId { dev: s.st_dev, ino: s.st_ino })
                .map_err(|e| process.unread("the working directory", &e))
        };
        let here = id(&directory)?;
        let outside = || Err(io::Error::other("its working directory is removed or outside its root"));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = match inside(&shown, root_path) {
            None => outside(),
            Some(path) => match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).map_err(io::Error::from)
            {
                Ok(again) if id(&again)? == here => Ok(path.to_vec()),
                Err(e) if exhausted(&e) => return Err(process.unread("the working directory", &e)),
                Ok(_) | Err(_) => outside(),
            },
        };
        Ok(Self { directory, id: here, path })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::{Child, Command};

    use super::*;
    use crate::execs::Execs;
    use crate::sys::namespace::Home;
    use crate::version::FileVersion;

    /// A shell in its directory, that runs `app.sh` there.
    struct Shell {
        child: Child,
        directory: tempfile::TempDir,
    }

    impl Shell {
        fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join("app.sh"), "read -r _\n").unwrap();
            let mut command = Command::new("bash");
            let child = command.arg("app.sh").current_dir(&directory).stdin(std::process::Stdio::piped()).spawn();
            Self { child: child.unwrap(), directory }
        }

        /// Its code, if it began in this directory.
        fn found(&self, began: &Path, early: &Early) -> Evidence<Code<File>> {
            let process = Process::pin(self.child.id()).unwrap();
            let began = Began(FileVersion::of(&File::open(began).unwrap()).unwrap().id);
            let beginning = Beginning::of(process.execution(), &process, &began).unwrap();
            let look = process.look(Home::own().unwrap(), true).unwrap();
            find(&process, &look, &beginning, early).unwrap().code
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            drop((self.child.kill(), self.child.wait()));
        }
    }

    /// Saw a shell execute `app.sh` in this directory.
    #[derive(Debug)]
    struct Began(FileId);

    impl Execs for Began {
        fn executed(&self, pid: u32, _: u64) -> Option<AtExec> {
            let exe = File::open(format!("/proc/{pid}/exe")).unwrap();
            Some(AtExec {
                image: 7,
                file: FileVersion::of(&exe).unwrap().id,
                size: 0,
                modified: 0,
                executed_ns: None,
                execs: 1,
                arguments: Arguments::Recorded { bytes: b"bash\0app.sh\0".to_vec(), whole: true },
                directory: Some(self.0),
                taints: [].into(),
                witnessed: true,
            })
        }

        fn witnesses(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_relative_path_leads_from_where_the_process_began_or_nowhere() {
        let shell = Shell::start();
        let (early, script) = (Early::default(), shell.directory.path().join("app.sh"));
        let elsewhere = shell.found(Path::new("/"), &early);
        assert!(matches!(&elsewhere, Evidence::Absent(why) if why.contains("left the directory")), "{elsewhere:?}");
        // Once it was seen where it began, that is known when it is gone from there.
        for began in [shell.directory.path(), Path::new("/")] {
            match shell.found(began, &early) {
                Evidence::Known(Code::File(path, _)) => assert_eq!(PathBuf::from(path), script),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_command_line_that_was_remembered_counts_while_it_is_the_same() {
        let shown = |bytes: &[u8], whole| CommandLine { bytes: Cow::Owned(bytes.to_vec()), whole };
        let is = |now: CommandLine<'_>, then: &[u8], whole| {
            now.if_it_is(Digest::of(then), then.len(), whole).map(|line| (line.bytes.into_owned(), line.whole))
        };
        let line = b"python3\0app.py\0".as_slice();
        assert_eq!(is(shown(line, true), line, true), Some((line.to_vec(), true)));
        assert_eq!(is(shown(b"python3\0bad.py\0", true), line, true), None);
        // It grew or shrank; it was longer than what was recorded.
        assert_eq!(is(shown(b"python3\0app.py\0-x\0", true), line, true), None);
        assert_eq!(is(shown(b"python3\0", true), line, true), None);
        assert_eq!(is(shown(line, false), line, true), None);
        assert_eq!(is(shown(b"python3\0app.py\0-x\0", true), line, false), Some((line.to_vec(), false)));
        assert_eq!(is(shown(b"python3\0", true), line, false), None);
    }

    #[test]
    fn hostile_paths_are_refused_and_shown_escaped() {
        assert_eq!(printable("/srv/ä.py".as_bytes(), "x").unwrap(), "/srv/ä.py");
        for hostile in [b"/a\xff".as_slice(), b"/a\nb", b"/a\x1b[2J", "/a\u{9b}".as_bytes(), &[b'a'; PATH_MAX + 1]] {
            let refusal = printable(hostile, "the path").unwrap_err();
            assert_eq!(refusal.reason, AttestReason::Unreadable);
            assert!(refusal.detail.is_ascii() || refusal.detail.ends_with('…'));
            assert!(!refusal.detail.chars().any(char::is_control));
        }
    }
}
