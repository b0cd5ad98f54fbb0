//! A whole store as one file, to keep or to bring to another engine. Without the root key, which never changes.
//!
//! Lines of JSON: what it is, a line for each record, and at the end their number and the digest of all that came
//! before. What belongs to the store comes last into the new one, so that half of a store is none.

use std::io::{self, BufRead, Write as _};
use std::path::{Path, PathBuf};

use bonafide_proto::audit::Head;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::TrustDomain;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::committer::{HEAD_KEY, Mark};
use super::engine::{Engine, Key, Tree, Write};
use super::{
    By, Event, META_KEY, PAGE, QUARANTINE_KEY, QuarantineRecord, Store, StoreError, TokenRecord, base64_bytes,
};
use crate::key::create_secret;

/// The version of the format.
const VERSION: u32 = 1;
/// The longest line that is read, in bytes: a record has fewer.
const LINE_MAX: u64 = 1024 * 1024;
/// Bytes of values in one commit; etcd takes a mebibyte and a half where nobody told it otherwise.
const COMMIT_MAX: usize = 512 * 1024;
/// How often a store that changes meanwhile is begun anew.
const TRIES: usize = 20;

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file.
    #[error("backup {}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("backup {}, line {line}: {why}; nothing of it can be trusted", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// What does not fit.
        why: String,
    },
    /// Nothing to keep.
    #[error("store {} is empty; there is nothing to back up", .0.display())]
    Nothing(PathBuf),
    /// It would be mixed up with what is there.
    #[error("store {} is not empty; restore into an empty directory, or under a prefix of etcd that nobody used", .0.display())]
    NotEmpty(PathBuf),
    /// It never stood still.
    #[error("store {} changes all the time; stop the authorities for a moment", .0.display())]
    Busy(PathBuf),
    /// A record that is whole, and no such record.
    #[error("a record in the backup cannot be read: {0}")]
    Record(String),
    /// Something was done since.
    #[error(
        "backup {} is not the newest state: it ends with entry {last} of the audit chain, and this host has seen entry \
         {seen}; restore it without --newest, and settle what is missing", path.display()
    )]
    NotNewest {
        /// Which file.
        path: PathBuf,
        /// The last entry in it.
        last: u64,
        /// The last one that was seen.
        seen: u64,
    },
    /// It is of another trust domain.
    #[error("the backup is of trust domain {seen}, but the configuration says {configured}")]
    TrustDomain {
        /// What the backup says.
        seen: TrustDomain,
        /// What the configuration says.
        configured: TrustDomain,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "lowercase", deny_unknown_fields)]
enum Line {
    Bonafide {
        version: u32,
        trust_domain: TrustDomain,
        taken: i64,
    },
    Record {
        tree: String,
        #[serde(with = "base64_bytes")]
        name: Vec<u8>,
        #[serde(with = "base64_bytes")]
        value: Vec<u8>,
    },
    End {
        records: u64,
        sha256: Digest,
    },
}

impl Store {
    /// Writes the whole store to a new file, mode 0600; returns the number of its records.
    ///
    /// # Errors
    /// Any [`BackupError`]; the file is removed again.
    pub fn back_up(&self, by: &By, path: &Path) -> Result<u64, BackupError> {
        let meta = self.meta()?.ok_or_else(|| BackupError::Nothing(self.engine.place()))?;
        let mut change = self.change();
        change.note(Event::new("backed-up", by));
        change.commit()?;
        for _ in 0..TRIES {
            let seen = self.audit_head()?;
            let outcome = self.write_backup(meta.trust_domain.clone(), path);
            // Page by page is no snapshot: it is one only if no act came between.
            let still = outcome.is_ok() && self.audit_head()? == seen;
            match outcome {
                Ok(records) if still => return Ok(records),
                // Somebody else's file stays.
                Err(BackupError::File { path, source }) if source.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(BackupError::File { path, source });
                }
                other => {
                    std::fs::remove_file(path).map_err(|e| at(path, e))?;
                    other?;
                }
            }
        }
        Err(BackupError::Busy(self.engine.place()))
    }

    fn write_backup(&self, trust_domain: TrustDomain, path: &Path) -> Result<u64, BackupError> {
        let failed = |e| at(path, e);
        let file = create_secret(path).map_err(failed)?;
        let mut out = Summed { to: io::BufWriter::new(file), digest: Sha256::new() };
        let taken = self.clock.unix();
        out.line(&Line::Bonafide { version: VERSION, trust_domain, taken }).map_err(failed)?;
        let mut records = 0;
        for tree in Tree::ALL {
            let mut after: Option<Vec<u8>> = None;
            loop {
                let page = self.engine.page(tree, after.as_deref(), PAGE)?;
                let whole = page.len() >= PAGE;
                for (name, value) in page {
                    after = Some(name.clone());
                    records += 1;
                    out.line(&Line::Record { tree: tree.name().to_owned(), name, value }).map_err(failed)?;
                }
                if !whole {
                    break;
                }
            }
        }
        let sha256 = Digest(out.digest.clone().finalize().into());
        out.line(&Line::End { records, sha256 }).map_err(failed)?;
        let file = out.to.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)?;
        Ok(records)
    }
}

/// A file, and the digest of what went into it.
struct Summed {
    to: io::BufWriter<std::fs::File>,
    digest: Sha256,
}

impl Summed {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.digest.update(&bytes);
        self.to.write_all(&bytes)
    }
}

/// What became of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// How many of its records are in the store.
    pub records: u64,
    /// Join tokens that nobody had used, and that are not: somebody may have, since.
    pub tokens: u64,
    /// When it was taken, unix seconds.
    pub taken: i64,
}

/// Whether anything was done after the backup was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Nobody can say. So nodes lift nothing and nobody joins or renews, until the operator settles it.
    Perhaps,
    /// The operator says that there was nothing; this host has seen the audit chain up to this number.
    Nothing(u64),
}

/// Puts a backup into an empty store. The file is read to its end first.
///
/// # Errors
/// Any [`BackupError`]; nothing is written unless the file is whole.
pub fn restore(
    path: &Path,
    engine: &dyn Engine,
    configured: &TrustDomain,
    since: Since,
) -> Result<Restored, BackupError> {
    for tree in Tree::ALL {
        if !engine.page(tree, None, 1)?.is_empty() {
            return Err(BackupError::NotEmpty(engine.place()));
        }
    }
    let mut sieve = Sieve { last: 0, tokens: 0, numbered: false, since };
    let mut unread = None;
    let whole = read(path, configured, |write| {
        // Whether the file is what was written comes first.
        unread = unread.take().or(sieve.take(write).err());
        Ok(())
    })?;
    if let Some(e) = unread {
        return Err(e);
    }
    if let Since::Nothing(seen) = since
        && seen > sieve.last
    {
        return Err(BackupError::NotNewest { path: path.to_owned(), last: sieve.last, seen });
    }
    let mut sieve = Sieve { last: 0, tokens: 0, numbered: false, since };
    let mut writes: Vec<Write> = Vec::new();
    let (mut bytes, mut meta) = (0, None);
    read(path, configured, |write| {
        let Some(write) = sieve.take(write)? else { return Ok(()) };
        if write.key() == &Key::new(Tree::Meta, META_KEY) {
            meta = Some(write);
            return Ok(());
        }
        let size = if let Write::Put(_, value) = &write { value.len() } else { 0 };
        if writes.len() >= engine.room() || bytes + size > COMMIT_MAX {
            engine.commit(&[], &writes)?;
            writes.clear();
            bytes = 0;
        }
        bytes += size;
        writes.push(write);
        Ok(())
    })?;
    engine.commit(&[], &writes)?;
    // What makes it a store comes last, and not without what holds nodes back.
    let last: Vec<Write> = sieve.number().into_iter().chain(meta).collect();
    engine.commit(&[], &last)?;
    let (_, taken) = whole;
    let records = whole.0.saturating_sub(sieve.tokens);
    Ok(Restored { records, tokens: sieve.tokens, taken })
}

/// What of a backup goes into a store: no token that somebody may have used since, and what is revoked only with the
/// mark that there may be more.
struct Sieve {
    /// The last entry of its audit chain.
    last: u64,
    tokens: u64,
    /// It has a record of what is revoked.
    numbered: bool,
    since: Since,
}

impl Sieve {
    fn take(&mut self, write: Write) -> Result<Option<Write>, BackupError> {
        let Write::Put(key, value) = &write else { return Ok(None) };
        let name = key.name.as_slice();
        match key.tree {
            Tree::Tokens if parsed::<TokenRecord>(value)?.used.is_none() => {
                self.tokens += 1;
                Ok(None)
            }
            Tree::Meta if name == HEAD_KEY => {
                self.last = parsed::<Head>(value)?.sequence;
                Ok(Some(write))
            }
            Tree::Meta if name == QUARANTINE_KEY => {
                self.numbered = true;
                Ok(Some(self.marked(parsed(value)?)))
            }
            _ => Ok(Some(write)),
        }
    }

    fn marked(&self, record: QuarantineRecord) -> Write {
        let restored = record.restored || self.since == Since::Perhaps;
        let value = serde_json::to_vec(&QuarantineRecord { restored, ..record }).unwrap_or_default();
        Write::Put(Key::new(Tree::Meta, QUARANTINE_KEY), value)
    }

    /// For a backup in which nothing was ever revoked: that may have changed, too.
    fn number(&self) -> Option<Write> {
        (!self.numbered && self.since == Since::Perhaps).then(|| self.marked(QuarantineRecord::default()))
    }
}

fn parsed<T: serde::de::DeserializeOwned>(value: &[u8]) -> Result<T, BackupError> {
    serde_json::from_slice(value).map_err(|e| BackupError::Record(e.to_string()))
}

/// Takes every record of a file, and only then says whether the file is whole: how many they are, and when it was taken.
fn read(
    path: &Path,
    configured: &TrustDomain,
    mut take: impl FnMut(Write) -> Result<(), BackupError>,
) -> Result<(u64, i64), BackupError> {
    let file = std::fs::File::open(path).map_err(|e| at(path, e))?;
    let mut lines = io::BufReader::new(file);
    let (mut number, mut records, mut sum, mut began) = (0, 0u64, Sha256::new(), None);
    loop {
        number += 1;
        let damaged = |why: String| BackupError::Damaged { path: path.to_owned(), line: number, why };
        let mut bytes = Vec::new();
        io::Read::take(&mut lines, LINE_MAX).read_until(b'\n', &mut bytes).map_err(|e| at(path, e))?;
        let line: Line = serde_json::from_slice(&bytes).map_err(|e| damaged(format!("cannot be read: {e}")))?;
        match line {
            Line::Bonafide { version, trust_domain, taken } if began.is_none() => {
                began = Some(taken);
                if version != VERSION {
                    return Err(damaged(format!("it is of version {version}, and this program reads {VERSION}")));
                }
                if trust_domain != *configured {
                    let configured = configured.clone();
                    return Err(BackupError::TrustDomain { seen: trust_domain, configured });
                }
            }
            Line::Record { tree, name, value } if began.is_some() => {
                let tree = Tree::named(&tree).ok_or_else(|| damaged(format!("there is no {tree:?} in a store")))?;
                records += 1;
                take(Write::Put(Key::new(tree, name), value))?;
            }
            Line::End { records: written, sha256 } if began.is_some() => {
                let whole = written == records && sha256 == Digest(sum.finalize().into());
                let last = lines.fill_buf().map_err(|e| at(path, e))?.is_empty();
                let why = "what came before is not what was written".to_owned();
                return if whole && last { Ok((records, began.unwrap_or(0))) } else { Err(damaged(why)) };
            }
            _ => return Err(damaged("stands where it does not belong".to_owned())),
        }
        sum.update(&bytes);
    }
}

/// How far this host has seen the audit chain of its store, by the file in which it keeps that.
///
/// # Errors
/// [`BackupError::File`].
pub fn seen(mark: &Path) -> Result<u64, BackupError> {
    if !mark.exists() {
        return Ok(0);
    }
    Ok(Mark::open(mark).map_err(|e| at(mark, e))?.sequence)
}

fn at(path: &Path, source: io::Error) -> BackupError {
    BackupError::File { path: path.to_owned(), source }
}
