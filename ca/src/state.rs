//! The directory that holds keys and store: ours alone, mode 0700.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::key;

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system failed.
    #[error("state directory {}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could enter.
    #[error("state directory {} has mode {mode:04o} and owner {owner}; it must have mode 0700 and belong to uid {us}", path.display())]
    Exposed {
        /// Where.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        owner: u32,
        /// The uid of this daemon.
        us: u32,
    },
}

/// Makes the directory if it is missing; refuses one that others could enter.
///
/// # Errors
/// Any [`StateError`].
pub fn prepare(path: &Path) -> Result<(), StateError> {
    let failed = |source| StateError::Io { path: path.to_owned(), source };
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(path).map_err(failed)?;
    if !meta.is_dir() {
        return Err(failed(io::Error::new(io::ErrorKind::NotADirectory, "is not a directory")));
    }
    let us = rustix::process::geteuid().as_raw();
    if meta.mode() & 0o077 != 0 || meta.uid() != us {
        let (mode, owner) = (meta.mode() & 0o7777, meta.uid());
        return Err(StateError::Exposed { path: path.to_owned(), mode, owner, us });
    }
    Ok(())
}

/// Replaces a file that only this uid may read, durably: either the old content or the new one is there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    match std::fs::remove_file(&draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    key::write_secret(&draft, bytes)?;
    std::fs::rename(&draft, path)?;
    match path.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_directory_others_could_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        prepare(&path).unwrap();
        prepare(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(prepare(&path).unwrap_err().to_string().contains("mode 0750"));
        assert!(matches!(prepare(&dir.path().join("missing/state")), Err(StateError::Io { .. })));
    }
}
