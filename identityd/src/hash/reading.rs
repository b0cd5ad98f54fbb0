//! One reading of a file, from its first byte to its last.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use bonafide_proto::fingerprint::Digest;
use sha2::Digest as _;

use super::HashError;
use crate::patience::Wanted;
use crate::version::FileVersion;

/// Read at once, in bytes: it stays in the processor's cache until it is hashed.
const READ: usize = 256 << 10;
/// How long a reading may take at least, however small the file.
const LEAST: Duration = Duration::from_secs(4);
/// And how many bytes it has to read a second beyond that. What a slow disk has read is in memory for the next attempt.
const PACE: u64 = 16 << 20;

/// How long a file of this size may take.
pub(super) fn time_for(size: u64) -> Duration {
    LEAST + Duration::from_secs(size / PACE)
}

/// The digest of this version of the file.
///
/// # Errors
/// [`HashError::Changed`] if it is another version by now, [`HashError::Io`].
pub(super) fn read_all(file: &File, version: FileVersion, wanted: &Wanted) -> Result<Digest, HashError> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; buffer_size(version.size)];
    let mut at = 0;
    while wanted.still() {
        let read = match file.read_at(&mut buffer, at) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        hasher.update(buffer.get(..read).unwrap_or_default());
        at += read as u64;
        // A file that grows faster than it is read would never end.
        if at > version.size {
            return Err(HashError::Changed);
        }
    }
    if at != version.size || FileVersion::of(file)? != version {
        return Err(HashError::Changed);
    }
    Ok(Digest(hasher.finalize().into()))
}

/// Enough to see that a small file has ended.
fn buffer_size(size: u64) -> usize {
    usize::try_from(size).unwrap_or(READ).saturating_add(1).min(READ)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_has_more_time() {
        assert_eq!(time_for(0), LEAST);
        assert_eq!(time_for(160 << 20), LEAST + Duration::from_secs(10));
        assert!(time_for(u64::MAX) > Duration::from_secs(1 << 30));
    }

    #[test]
    fn a_small_file_takes_a_small_buffer() {
        assert_eq!((buffer_size(0), buffer_size(100), buffer_size(u64::MAX)), (1, 101, READ));
    }
}
