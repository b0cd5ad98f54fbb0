//! The journal of live flows: a draft when a flow begins or becomes better known, a note when its record is written.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bonafide_proto::record::{End, FlowRecord};
use serde::{Deserialize, Serialize};

/// The longest line that is taken back from a journal, in bytes.
const LINE_MAX: u64 = 64 * 1024;
/// How far back in the records a duplicate is looked for, in bytes.
const LOOK_BACK: u64 = 4 * 1024 * 1024;
/// The journal is written anew with only the live flows when it has grown to this, in bytes.
const REWRITE_AT: u64 = 8 * 1024 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    n: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    draft: Option<FlowRecord>,
    /// The ends for which a record is owed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ends: Vec<End>,
}

/// The open journal and what is live in it.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    live: BTreeMap<u64, Vec<u8>>,
    size: u64,
    /// A write failed half-way: the next one starts a line of its own.
    torn: bool,
}

impl Journal {
    /// An empty journal in place of the one that was there.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: empty(path)?, live: BTreeMap::new(), size: 0, torn: false })
    }

    /// Notes what is known of flow `number` by now.
    pub(super) fn draft(&mut self, number: u64, draft: &FlowRecord, ends: &[End]) -> io::Result<()> {
        let line = line(&Entry { n: number, draft: Some(draft.clone()), ends: ends.to_vec() })?;
        self.append(&line)?;
        self.live.insert(number, line);
        Ok(())
    }

    /// Notes that the record of flow `number` is written.
    pub(super) fn closed(&mut self, number: u64) -> io::Result<()> {
        self.live.remove(&number);
        self.append(&line(&Entry { n: number, draft: None, ends: Vec::new() })?)?;
        if self.size > REWRITE_AT { self.rewrite() } else { Ok(()) }
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.size += line.len() as u64;
        if self.torn {
            self.file.write_all(b"\n")?;
        }
        self.torn = true;
        self.file.write_all(line)?;
        self.torn = false;
        Ok(())
    }

    /// Writes a new file beside the old one and renames it over: a kill in between loses neither.
    fn rewrite(&mut self) -> io::Result<()> {
        let beside = self.path.with_extension("new");
        let mut file = empty(&beside)?;
        for line in self.live.values() {
            file.write_all(line)?;
        }
        std::fs::rename(&beside, &self.path)?;
        (self.file, self.torn) = (file, false);
        // Counted from here, so that many live flows do not make every note a rewrite.
        self.size = 0;
        Ok(())
    }
}

/// The drafts whose record was never written.
pub(super) fn orphans(journal: &Path, records: &Path) -> io::Result<Vec<FlowRecord>> {
    let file = match File::open(journal) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut live = BTreeMap::new();
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? > 0 {
        // A line that a kill or a full disk cut off costs itself alone: its flow has no earlier draft or an older one.
        if let Ok(entry) = serde_json::from_slice::<Entry>(&line) {
            match entry.draft {
                Some(draft) => live.insert(entry.n, (draft, entry.ends)),
                None => live.remove(&entry.n),
            };
        }
        line.clear();
    }
    if live.is_empty() {
        return Ok(Vec::new());
    }
    let written = recently_written(records)?;
    let owed = live
        .into_values()
        .flat_map(|(draft, ends)| ends.into_iter().map(move |end| FlowRecord { end, ..draft.clone() }));
    Ok(owed.filter(|d| !written.contains(&Seen::of(d))).collect())
}

/// What tells one flow's record from another's, by what only this enforcer wrote: a peer can choose the ID.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Seen {
    end: End,
    started: String,
    source: Option<SocketAddr>,
}

impl Seen {
    fn of(record: &FlowRecord) -> Self {
        Self { end: record.end, started: record.started.clone(), source: record.source.addr }
    }
}

fn recently_written(records: &Path) -> io::Result<HashSet<Seen>> {
    let mut file = File::open(records)?;
    let start = file.metadata()?.len().saturating_sub(LOOK_BACK);
    file.seek(SeekFrom::Start(start))?;
    let mut found = HashSet::new();
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? > 0 {
        if let Ok(record) = serde_json::from_slice::<FlowRecord>(&line) {
            found.insert(Seen::of(&record));
        }
        line.clear();
    }
    Ok(found)
}

fn empty(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    file.set_len(0)?;
    Ok(file)
}

fn line(entry: &Entry) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    Ok(line)
}
