//! The files that a process has mapped as code: which they are, and each of them open.
//!
//! Memory that belongs to no file (what a compiler put there while the program ran) is not seen here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use bonafide_proto::refusal::{AttestReason, AttestRefusal};

use crate::parse::maps::Mapping;
use crate::refuse::{exhausted, refuse, shown};
use crate::sys::executable::FileId;
use crate::sys::process::Process;
use crate::sys::regular::{OpenError, find_beneath, inside, reopen};

/// The longest list of mappings that is read, in bytes: some 500,000 of them.
const MAPS_MAX: u64 = 64 << 20;
/// The longest line of it: a path, escaped, and what comes before.
const LINE_MAX: usize = 32 << 10;
/// The most files that are looked at.
const FILES_MAX: usize = 4096;

/// What a process has mapped as code.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mapped {
    /// Each file, its executable aside, with one of its mappings.
    pub(crate) files: BTreeMap<FileId, Place>,
    /// Whether a file is mapped writable and executable at once.
    pub(crate) writable: bool,
    /// Whether there are more files than [`FILES_MAX`].
    pub(crate) too_many: bool,
}

/// Where a file is mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    range: (u64, u64),
    path: Vec<u8>,
}

impl Mapped {
    /// That of a process which runs the file `exe`.
    ///
    /// # Errors
    /// `evidence-unreadable`, also where there is too much of it; `process-gone`.
    pub(crate) fn by(process: &Process, exe: FileId) -> Result<Self, AttestRefusal> {
        let pid = process.execution().pid;
        let mut mapped = Self::default();
        let whole = process.each_line("maps", MAPS_MAX, LINE_MAX, |line| match Mapping::parse(line) {
            Some(mapping) => {
                mapped.add(&mapping, exe);
                Ok(())
            }
            None => refuse(AttestReason::Unreadable, format!("/proc/{pid}/maps has a malformed line")),
        })?;
        if !whole {
            return refuse(AttestReason::Unreadable, format!("process {pid} has more mappings than are looked at"));
        }
        Ok(mapped)
    }

    fn add(&mut self, mapping: &Mapping<'_>, exe: FileId) {
        let Some(file) = mapping.file.filter(|_| mapping.executable) else { return };
        self.writable |= mapping.writable;
        if file == exe || self.files.contains_key(&file) {
            return;
        }
        if self.files.len() >= FILES_MAX {
            self.too_many = true;
            return;
        }
        self.files.insert(file, Place { range: mapping.range, path: mapping.path.to_vec() });
    }

    /// Whether another look saw the same; where in memory is no matter.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.writable == other.writable && self.too_many == other.too_many && self.files.keys().eq(other.files.keys())
    }
}

/// Opens a mapped file: through the mapping itself, so that it is that very file, whatever its path leads to by now.
///
/// # Errors
/// The outer error refuses; the inner one is why there is no evidence.
pub(crate) fn open(process: &Process, file: FileId, place: &Place) -> Result<Result<File, String>, AttestRefusal> {
    let found = match process.mapped_file(place.range) {
        Ok(found) => Ok(found),
        Err(e) if exhausted(&e) => return Err(process.unread("a library", &e)),
        // Without CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, or where the mapping grew meanwhile.
        Err(_) => by_path(process, &place.path)?,
    };
    let opened = found.map_err(OpenError::from).and_then(|found| {
        if !is(&found, file)? {
            return Err(io::Error::other("its path leads to another file").into());
        }
        reopen(&found)
    });
    match opened {
        Ok(file) => Ok(Ok(file)),
        Err(OpenError::Io(e)) if exhausted(&e) => Err(process.unread("a library", &e)),
        Err(e) => Ok(Err(format!("{} is mapped as code, and cannot be opened: {e}", shown(&place.path)))),
    }
}

fn by_path(process: &Process, path: &[u8]) -> Result<io::Result<OwnedFd>, AttestRefusal> {
    let (root, root_path) = (process.open_dir("root")?, process.link("root")?);
    let found = match inside(path, &root_path) {
        Some(path) => find_beneath(&root, path),
        None => Err(io::Error::other("it is outside the root of its process")),
    };
    match found {
        Err(e) if exhausted(&e) => Err(process.unread("a library", &e)),
        found => Ok(found),
    }
}

/// On btrfs each subvolume has a device number of its own, which is not the one in the list of mappings.
fn is(found: &OwnedFd, file: FileId) -> io::Result<bool> {
    let stat = rustix::fs::fstat(found)?;
    let device = || Ok(stat.st_dev == file.dev || rustix::fs::fstatfs(found)?.f_type == BTRFS);
    if stat.st_ino == file.ino { device() } else { Ok(false) }
}

/// `BTRFS_SUPER_MAGIC` (statfs(2)).
const BTRFS: rustix::fs::FsWord = 0x9123_683e;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn own() -> Process {
        Process::pin(std::process::id()).unwrap()
    }

    fn id(path: &str) -> FileId {
        let metadata = std::fs::metadata(path).unwrap();
        FileId { dev: metadata.dev(), ino: metadata.ino() }
    }

    /// The C library of this very process.
    fn library() -> (FileId, Place) {
        let mapped = Mapped::by(&own(), id("/proc/self/exe")).unwrap();
        let is_libc = |place: &Place| String::from_utf8_lossy(&place.path).contains("libc.so");
        mapped.files.into_iter().find(|(_, place)| is_libc(place)).unwrap()
    }

    #[test]
    fn a_process_has_its_libraries_mapped_and_its_executable_does_not_count() {
        let mapped = Mapped::by(&own(), id("/proc/self/exe")).unwrap();
        assert!(!mapped.files.contains_key(&id("/proc/self/exe")));
        assert!(!mapped.writable && !mapped.too_many);
        let with_executable = Mapped::by(&own(), FileId { dev: 0, ino: 0 }).unwrap();
        assert_eq!(with_executable.files.len(), mapped.files.len() + 1);
        assert!(mapped.same(&Mapped::by(&own(), id("/proc/self/exe")).unwrap()));
        assert!(!mapped.same(&with_executable));
    }

    #[test]
    fn without_its_mapping_a_file_is_found_by_its_path_if_that_leads_to_it() {
        let (file, place) = library();
        let same = |opened: File| {
            let metadata = opened.metadata().unwrap();
            FileId { dev: metadata.dev(), ino: metadata.ino() } == file
        };
        assert!(same(open(&own(), file, &place).unwrap().unwrap()));
        let unmapped = Place { range: (0, 1), ..place.clone() };
        assert!(same(open(&own(), file, &unmapped).unwrap().unwrap()));
        for (path, because) in [
            (b"/bin/sh".as_slice(), "another file"),
            (b"/nowhere", "No such file"),
            (b"/dev/null", "another file"),
            (b"/libc.so (deleted)", "No such file"),
            (b"[vdso]", "outside the root"),
        ] {
            let elsewhere = Place { range: (0, 1), path: path.to_vec() };
            let why = open(&own(), file, &elsewhere).unwrap().unwrap_err();
            assert!(why.contains(because), "{why}");
        }
    }

    #[test]
    fn files_and_mappings_are_counted_and_bounded() {
        let mut mapped = Mapped::default();
        let exe = FileId { dev: 1, ino: 1 };
        for ino in 1..u64::try_from(FILES_MAX).unwrap() + 3 {
            let file = Some(FileId { dev: 1, ino });
            let mapping = Mapping { range: (0, 1), writable: false, executable: true, file, path: b"/x" };
            mapped.add(&mapping, exe);
            mapped.add(&Mapping { executable: false, writable: true, ..mapping }, exe);
        }
        assert_eq!((mapped.files.len(), mapped.too_many, mapped.writable), (FILES_MAX, true, false));
        let last = Mapping { range: (0, 1), writable: true, executable: true, file: Some(exe), path: b"/x" };
        mapped.add(&Mapping { file: None, ..last.clone() }, exe);
        assert!(!mapped.writable, "memory of no file is no file's");
        mapped.add(&last, exe);
        assert!(mapped.writable);
    }
}
