//! The script of an interpreter: found in its command line, opened as the process itself would open it.
//!
//! The weakness of this evidence: a process can rewrite its command line and change its working directory after it
//! started. It then shows another script, but never one whose content it could not have run in the first place.

use std::fs::File;
use std::io;
use std::path::Path;

use bonafide_proto::fingerprint::Evidence;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use crate::parse::cmdline::{CMDLINE_MAX, arguments};
use crate::parse::interpreter::{Named, script};
use crate::refuse::{exhausted, refuse, shown, unread};
use crate::sys::executable::FileId;
use crate::sys::process::Process;
use crate::sys::regular::{OpenError, inside, open_beneath, path_of};

/// A script, open.
#[derive(Debug)]
pub(crate) struct OpenScript {
    /// Its path as the process sees it, links resolved.
    pub(crate) path: String,
    /// The file.
    pub(crate) file: File,
}

/// Finds and opens the script of a process that runs `exe_path`.
///
/// # Errors
/// `evidence-unreadable` for paths that are no printable UTF-8; `process-gone`.
pub(crate) fn open(process: &Process, exe_path: &str) -> Result<Evidence<OpenScript>, AttestRefusal> {
    let program = Path::new(exe_path).file_name().unwrap_or_default();
    let cmdline = process.content("cmdline", CMDLINE_MAX as u64)?;
    let path = match script(program.as_encoded_bytes(), &arguments(&cmdline)) {
        None => return Ok(Evidence::Absent("the program is no interpreter".into())),
        Some(Named::Nothing(why)) => return Ok(Evidence::Absent(why)),
        Some(Named::Script(path)) => path,
    };
    printable(path, "the script's path")?;
    match opened(process, path)? {
        Ok(script) => Ok(Evidence::Known(script)),
        Err(e) => Ok(Evidence::Absent(format!("the script {} cannot be opened: {e}", shown(path)))),
    }
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

/// The outer error refuses; the inner one is the absence of the script.
fn opened(process: &Process, path: &[u8]) -> Result<Result<OpenScript, OpenError>, AttestRefusal> {
    let root = process.open_dir("root")?;
    let root_path = process.link("root")?;
    let whole = if path.starts_with(b"/") {
        path.to_vec()
    } else {
        match working_directory(process, &root, &root_path)? {
            Ok(directory) => [directory.as_slice(), b"/", path].concat(),
            Err(e) => return Ok(Err(e.into())),
        }
    };
    let file = match open_beneath(&root, &whole) {
        Ok(file) => file,
        Err(OpenError::Io(e)) if exhausted(&e) => return Err(unread(process.execution().pid, "the script", &e)),
        Err(e) => return Ok(Err(e)),
    };
    let resolved = match path_of(&file) {
        Ok(path) => path,
        Err(e) => return Ok(Err(e.into())),
    };
    let path = printable(inside(&resolved, &root_path).unwrap_or(&resolved), "the script's path")?;
    Ok(Ok(OpenScript { path, file }))
}

/// The working directory as a path inside the process's root. Resolving from the directory itself would let `..` and
/// absolute links end there instead of at the root.
fn working_directory(
    process: &Process,
    root: &impl std::os::fd::AsFd,
    root_path: &[u8],
) -> Result<io::Result<Vec<u8>>, AttestRefusal> {
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    let directory = process.open_dir("cwd")?;
    let directory_path = process.link("cwd")?;
    let outside = || Ok(Err(io::Error::other("its working directory is removed or outside its root")));
    let Some(path) = inside(&directory_path, root_path) else { return outside() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let id = |fd: &std::os::fd::OwnedFd| rustix::fs::fstat(fd).map(|s| FileId { dev: s.st_dev, ino: s.st_ino });
    let again = match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).map_err(io::Error::from) {
        Ok(again) => again,
        Err(e) if exhausted(&e) => return Err(unread(process.execution().pid, "the working directory", &e)),
        Err(_) => return outside(),
    };
    match (id(&directory), id(&again)) {
        (Ok(a), Ok(b)) if a == b => Ok(Ok(path.to_vec())),
        _ => outside(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
