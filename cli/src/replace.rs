//! Files that people edit, replaced in one step: a reader sees the old one or the new one, and no edit of somebody else is lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::Path;

use crate::exit::Failure;
use crate::printable::printable;

/// Replaces the file that `path` leads to in one step, if it still is what it was. Owner and mode stay.
pub(crate) fn replace(path: &Path, before: &str, after: &str) -> Result<(), Failure> {
    let failed =
        |e: io::Error| Failure::Failed(format!("{}: not changed: {e}", printable(&path.display().to_string())));
    let path = std::fs::canonicalize(path).map_err(failed)?;
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let written = write(&draft, &path, after).and_then(|()| {
        if std::fs::read(&path)? != before.as_bytes() {
            return Err(io::Error::other("somebody else changed it at this moment; try again"));
        }
        std::fs::rename(&draft, &path)
    });
    if let Err(e) = written {
        // It may not even have been made.
        let _ = std::fs::remove_file(&draft);
        return Err(failed(e));
    }
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all()).map_err(failed)
}

fn write(draft: &Path, like: &Path, text: &str) -> io::Result<()> {
    let owner = std::fs::metadata(like)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    file.write_all(text.as_bytes())?;
    fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    file.set_permissions(owner.permissions())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_owner_and_mode_and_through_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("p.toml"), dir.path().join("link.toml"));
        std::fs::write(&file, "old").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(&file, Some(65534), Some(65534)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        replace(&link, "old", "new").unwrap();
        let now = std::fs::metadata(&file).unwrap();
        assert_eq!((now.mode() & 0o7777, now.uid(), now.gid()), (0o640, 65534, 65534));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());

        let why = replace(&file, "old", "newer").unwrap_err().to_string();
        assert!(why.contains("not changed: somebody else changed it"), "{why}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left behind");
    }
}
