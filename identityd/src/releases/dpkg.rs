//! Whether a file is the one that dpkg recorded for a package of this host (deb-md5sums(5)).
//!
//! dpkg records nothing better than MD5. What that is good for here: nobody can make a second file of the same digest as a
//! given one; and whoever could make two at once is the package's maker, whom the host trusts already.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use bonafide_proto::fingerprint::Digest;
use md5::Md5;
use sha2::{Digest as _, Sha256};

use crate::sys::regular;

const RECORDS: &str = "var/lib/dpkg/info";
/// The most that is read of dpkg's records: of one package, and of all, in bytes.
const PACKAGE_MAX: u64 = 16 << 20;
const ALL_MAX: u64 = 256 << 20;
/// The largest file that is read, in bytes, and how much at once.
const FILE_MAX: u64 = 4 << 30;
const READ: usize = 256 << 10;
/// Directories that are links to those below `/usr` (hier(7)): dpkg knows their files by the old names.
const MERGED: [&str; 4] = ["bin/", "sbin/", "lib/", "lib64/"];

/// Why it is not.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unrecorded {
    #[error("no package of dpkg has {0}")]
    Unknown(String),
    #[error("it is not what dpkg recorded for {0}")]
    Differs(String),
    #[error("{0} has changed since")]
    Changed(String),
    #[error("dpkg's records cannot be trusted: others than root can write {0}")]
    Shared(String),
    #[error("dpkg's records cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// The package whose file at this path has this content, in `root`.
pub(super) fn recorded(root: &Path, path: &str, digest: Digest) -> Result<String, Unrecorded> {
    let (package, expected) = find(root, path)?;
    // Both digests are of the same bytes, whatever happens to the file.
    let (sha256, md5) = digests(root, path)?;
    if sha256 != digest {
        return Err(Unrecorded::Changed(path.to_owned()));
    }
    if md5 == expected { Ok(package) } else { Err(Unrecorded::Differs(package)) }
}

/// The package that has a file at this path, and its MD5, 32 hex digits.
fn find(root: &Path, path: &str) -> Result<(String, String), Unrecorded> {
    let records = root.join(RECORDS);
    roots_alone(&records, &std::fs::metadata(&records)?)?;
    let known: Vec<&str> = names(path).collect();
    let mut left = ALL_MAX;
    for entry in std::fs::read_dir(&records)? {
        let file = entry?.path();
        let Some(package) = file.file_name().and_then(|name| name.to_str()?.strip_suffix(".md5sums")) else { continue };
        let text = record(&file, left)?;
        left = left.saturating_sub(text.len() as u64);
        let line = text.lines().filter_map(|line| line.split_once("  ")).find(|(_, name)| known.contains(name));
        if let Some((md5, _)) = line {
            return Ok((package.to_owned(), md5.to_owned()));
        }
    }
    Err(Unrecorded::Unknown(path.to_owned()))
}

/// The names under which dpkg may know a path.
fn names(path: &str) -> impl Iterator<Item = &str> {
    let name = path.trim_start_matches('/');
    let merged = name.strip_prefix("usr/").filter(|rest| MERGED.iter().any(|directory| rest.starts_with(directory)));
    [Some(name), merged].into_iter().flatten()
}

fn record(file: &Path, left: u64) -> Result<String, Unrecorded> {
    let flags = i32::try_from((rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW).bits()).unwrap_or(0);
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(file)?;
    let metadata = opened.metadata()?;
    roots_alone(file, &metadata)?;
    let most = PACKAGE_MAX.min(left);
    if !metadata.is_file() || metadata.len() > most {
        return Err(io::Error::other(format!("{} is no file of at most {most} bytes", file.display())).into());
    }
    let mut bytes = Vec::new();
    opened.take(most).read_to_end(&mut bytes)?;
    // Names need not be UTF-8; such a one is none that is looked for.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whoever could write there could approve what they like.
fn roots_alone(path: &Path, metadata: &Metadata) -> Result<(), Unrecorded> {
    let owners = [0, rustix::process::geteuid().as_raw()];
    if owners.contains(&metadata.uid()) && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(Unrecorded::Shared(path.display().to_string()))
}

/// SHA-256 and MD5 of the same reading.
fn digests(root: &Path, path: &str) -> Result<(Digest, String), Unrecorded> {
    let root = File::open(root)?;
    let (file, _) = regular::follow_beneath(&root, path.as_bytes()).map_err(io::Error::other)?;
    let (mut sha256, mut md5, mut buffer) = (Sha256::new(), Md5::new(), vec![0; READ]);
    let mut file = file.take(FILE_MAX);
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        sha256.update(bytes);
        md5.update(bytes);
    }
    Ok((Digest(sha256.finalize().into()), hex::encode(md5.finalize())))
}

#[cfg(test)]
pub(super) fn md5(bytes: &[u8]) -> String {
    hex::encode(Md5::digest(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn host(records: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in [RECORDS, "usr/bin"] {
            std::fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        std::fs::write(root.path().join("usr/bin/w"), "w").unwrap();
        std::fs::write(root.path().join(RECORDS).join("other.md5sums"), "0  usr/bin/other\nno line\n").unwrap();
        std::fs::write(root.path().join(RECORDS).join("w:amd64.md5sums"), records).unwrap();
        root
    }

    fn outcome(root: &tempfile::TempDir, content: &str) -> Result<String, String> {
        recorded(root.path(), "/usr/bin/w", Digest::of(content.as_bytes())).map_err(|e| e.to_string())
    }

    #[test]
    fn what_dpkg_recorded_is_told_from_what_it_did_not() {
        for name in ["usr/bin/w", "bin/w"] {
            assert_eq!(outcome(&host(&format!("{}  {name}\n", md5(b"w"))), "w"), Ok("w:amd64".into()));
        }
        let other = host(&format!("{}  usr/bin/w\n", md5(b"v")));
        assert_eq!(outcome(&other, "w"), Err("it is not what dpkg recorded for w:amd64".into()));
        assert_eq!(outcome(&host(""), "w"), Err("no package of dpkg has /usr/bin/w".into()));
        let changed = host(&format!("{}  usr/bin/w\n", md5(b"w")));
        assert_eq!(outcome(&changed, "attested"), Err("/usr/bin/w has changed since".into()));
    }

    #[test]
    fn records_that_others_can_write_prove_nothing() {
        let root = host(&format!("{}  usr/bin/w\n", md5(b"w")));
        let shared = root.path().join(RECORDS).join("w:amd64.md5sums");
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(outcome(&root, "w").unwrap_err().contains("others than root can write"));
        std::fs::remove_file(&shared).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &shared).unwrap();
        assert!(outcome(&root, "w").unwrap_err().contains("cannot be read"));
        std::fs::remove_file(&shared).unwrap();
        std::fs::set_permissions(root.path().join(RECORDS), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(outcome(&root, "w").unwrap_err().contains("others than root can write"));
    }

    #[test]
    fn this_hosts_own_records_are_read() {
        let path = "/usr/bin/dpkg";
        let digest = Digest::of(&std::fs::read(path).unwrap());
        assert_eq!(recorded(Path::new("/"), path, digest).map_err(|e| e.to_string()), Ok("dpkg".into()));
    }
}
