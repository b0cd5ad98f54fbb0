//! An SVID as files: a directory for each, and a link to the present one that is exchanged in one step.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use bonafide_proto::fetched::FetchedSvid;
use bonafide_proto::pem::pem;

use crate::exit::Failure;

/// The link.
const CURRENT: &str = "current";
/// Directories of ours begin so: nothing else is ever removed.
const OURS: &str = "svid-";

/// Where they are written.
#[derive(Debug)]
pub(super) struct Files {
    below: PathBuf,
}

impl Files {
    /// Makes the directory if it is not there.
    pub(super) fn below(below: PathBuf) -> Result<Self, Failure> {
        match fs::DirBuilder::new().mode(0o700).create(&below) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failed("cannot be made", &below)(e)),
            _ => Ok(Self { below }),
        }
    }

    /// Writes one, and then takes the earlier ones away. Where it is.
    pub(super) fn write(&mut self, svid: &FetchedSvid) -> Result<PathBuf, Failure> {
        let new = format!("{OURS}{}", svid.svid.serial());
        let dir = self.below.join(&new);
        clear(&dir)?;
        fs::DirBuilder::new().mode(0o700).create(&dir).map_err(failed("cannot be made", &dir))?;
        let key = zeroize::Zeroizing::new(pem("PRIVATE KEY", &[svid.key.as_slice()]));
        file(&dir.join("svid.pem"), &pem("CERTIFICATE", &svid.chain))?;
        file(&dir.join("svid_key.pem"), &key)?;
        file(&dir.join("bundle.pem"), &pem("CERTIFICATE", &svid.roots))?;
        self.point_to(&new)?;
        self.clear_all_but(Some(&new))?;
        Ok(self.below.join(CURRENT))
    }

    /// Takes all of them away.
    pub(super) fn remove(&mut self) -> Result<(), Failure> {
        let link = self.below.join(CURRENT);
        match fs::remove_file(&link) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("cannot be removed", &link)(e)),
            _ => {}
        }
        self.clear_all_but(None)
    }

    fn point_to(&self, new: &str) -> Result<(), Failure> {
        let (link, next) = (self.below.join(CURRENT), self.below.join(".next"));
        let _ = fs::remove_file(&next);
        symlink(new, &next).map_err(failed("cannot be made", &next))?;
        fs::rename(&next, &link).map_err(failed("cannot be exchanged", &link))
    }

    fn clear_all_but(&self, kept: Option<&str>) -> Result<(), Failure> {
        let entries = fs::read_dir(&self.below).map_err(failed("cannot be read", &self.below))?;
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let ours = name.to_str().is_some_and(|name| name.starts_with(OURS) && Some(name) != kept);
            if ours {
                clear(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn clear(dir: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("cannot be removed", dir)(e)),
        _ => Ok(()),
    }
}

fn file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.and_then(|mut file| file.write_all(bytes)).map_err(failed("cannot be written", path))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.display().to_string();
    move |e| Failure::Failed(format!("{path}: {what}: {e}"))
}
