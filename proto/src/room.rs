//! Room on a disk, asked for before something is opened that would be harmed by having none.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// The room that an embedded store needs to be opened, in bytes: some of its segments. One that finds none while it looks
/// through its log takes the log's end for damaged.
pub const OF_STORE: u64 = 2 << 20;

/// Whether so many bytes can be written in this directory now.
///
/// # Errors
/// `StorageFull` or `QuotaExceeded` if not; whatever else the file system says to a file there.
pub fn check(directory: &Path, bytes: u64) -> io::Result<()> {
    let probe = directory.join(".room");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&probe)?;
    let fits = match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        // This file system cannot say.
        Err(Errno::OPNOTSUPP) => Ok(()),
        fits => fits.map_err(io::Error::from),
    };
    std::fs::remove_file(&probe)?;
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_told_from_what_does_not_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path(), OF_STORE).unwrap();
        assert!(check(dir.path(), 1 << 60).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
