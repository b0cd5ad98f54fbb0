//! Directories and files with owners and modes, made so that nobody but root and their owner has a say in them.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::Path;

use super::error::{NodeError, io_at};

/// Makes a directory, or takes one that is there, and gives it this owner and mode. Its parent must be root's.
pub(super) fn directory(path: &Path, owner: u32, mode: u32) -> Result<(), NodeError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => check(path, owner)?,
        Err(e) => return Err(io_at("create this directory", path)(e)),
    }
    chown(path, Some(owner), Some(owner)).map_err(io_at("change the owner", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io_at("change the mode", path))
}

/// A directory that somebody else prepared could hold links that lead our writes astray.
fn check(path: &Path, owner: u32) -> Result<(), NodeError> {
    let meta = fs::symlink_metadata(path).map_err(io_at("look at", path))?;
    if !meta.is_dir() {
        return Err(NodeError::Directory(path.to_owned(), "is there and is no directory; move it away"));
    }
    if meta.uid() != owner && meta.uid() != 0 {
        return Err(NodeError::Directory(path.to_owned(), "belongs to another user; choose another directory"));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(NodeError::Directory(path.to_owned(), "is writable by others; choose another directory"));
    }
    Ok(())
}

/// Writes a file anew. Never through a link that is in its place.
pub(super) fn file(path: &Path, owner: u32, mode: u32, text: &str) -> Result<(), NodeError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_at("replace", path)(e)),
        _ => {}
    }
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io_at("create", path))?;
    file.write_all(text.as_bytes()).map_err(io_at("write", path))?;
    std::os::unix::fs::fchown(&file, Some(owner), Some(owner)).map_err(io_at("change the owner", path))?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(io_at("change the mode", path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_never_written_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (precious, path) = (dir.path().join("precious"), dir.path().join("join.token"));
        fs::write(&precious, "x").unwrap();
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        file(&path, 74701, 0o600, "s3cret").unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "x");
        let meta = fs::symlink_metadata(&path).unwrap();
        assert!(meta.is_file());
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (74701, 74701, 0o600));
    }

    #[test]
    fn a_directory_that_others_have_a_say_in_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let (link, open, foreign) = (parent.path().join("l"), parent.path().join("o"), parent.path().join("f"));
        std::os::unix::fs::symlink(parent.path(), &link).unwrap();
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        fs::create_dir(&foreign).unwrap();
        chown(&foreign, Some(65534), None).unwrap();
        for path in [&link, &open, &foreign] {
            assert!(matches!(directory(path, 74701, 0o700), Err(NodeError::Directory(..))), "{path:?} was taken");
        }
    }

    #[test]
    fn a_directory_can_be_prepared_again() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("ca");
        for _ in 0..2 {
            directory(&path, 74701, 0o700).unwrap();
            let meta = fs::metadata(&path).unwrap();
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (74701, 74701, 0o700));
        }
    }
}
