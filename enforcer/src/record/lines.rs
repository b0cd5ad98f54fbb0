//! The record file: whole lines only, bounded in size.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bonafide_proto::record::FlowRecord;

/// The size at which the file becomes `<name>.1`, in bytes.
const ROTATE_AT: u64 = 128 * 1024 * 1024;
/// How many older files are kept: `.1` is the newest of them.
const KEPT: u32 = 4;

/// The open record file.
#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    file: File,
    size: u64,
    rotate_at: u64,
    /// A write failed half-way: the next one starts a line of its own.
    torn: bool,
}

impl Lines {
    /// Opens or creates the file. A line that a crash or a full disk cut off is ended first.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, ROTATE_AT)
    }

    fn open_with(path: &Path, rotate_at: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).append(true).read(true).mode(0o640).open(path)?;
        let size = file.metadata()?.len();
        let mut last = *b"\n";
        if size > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        Ok(Self { path: path.to_owned(), file, size, rotate_at, torn: last != *b"\n" })
    }

    /// Appends one record. What is written before it may be rotated away, never the record itself.
    pub(super) fn write(&mut self, record: &FlowRecord) -> io::Result<()> {
        if self.size >= self.rotate_at {
            self.rotate()?;
        }
        let mut line = if self.torn { b"\n".to_vec() } else { Vec::new() };
        serde_json::to_writer(&mut line, record)?;
        line.push(b'\n');
        // Until it is there as a whole, the file may end in a part of it.
        self.torn = true;
        // One write of one whole line: with O_APPEND, lines of two writers never mix.
        self.file.write_all(&line)?;
        self.torn = false;
        self.size += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for older in (1..KEPT).rev() {
            rename_if_there(&self.numbered(older), &self.numbered(older + 1))?;
        }
        rename_if_there(&self.path, &self.numbered(1))?;
        *self = Self::open_with(&self.path, self.rotate_at)?;
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Account, Records, Why};
    use bonafide_proto::clock::SystemClock;
    use bonafide_proto::record::{End, Reason};
    use std::sync::Arc;

    fn some_record(dir: &Path) -> FlowRecord {
        let records = Records::open(&dir.join("one.jsonl"), dir, Arc::new(SystemClock)).unwrap();
        Account::open(&records, End::Source, "enforce").refused(&Why::new(Reason::NoRule, "none"));
        serde_json::from_str(std::fs::read_to_string(dir.join("one.jsonl")).unwrap().trim()).unwrap()
    }

    #[test]
    fn the_file_is_rotated_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let record = some_record(dir.path());
        let path = dir.path().join("flows.jsonl");
        let mut lines = Lines::open_with(&path, 1).unwrap();
        for _ in 0..10 {
            lines.write(&record).unwrap();
        }
        let count = |p: PathBuf| std::fs::read_to_string(p).unwrap().lines().count();
        assert_eq!((count(path.clone()), count(lines.numbered(1)), count(lines.numbered(KEPT))), (1, 1, 1));
        assert!(!lines.numbered(KEPT + 1).exists());
    }

    #[test]
    fn a_torn_line_costs_itself_alone() {
        let dir = tempfile::tempdir().unwrap();
        let record = some_record(dir.path());
        let path = dir.path().join("flows.jsonl");
        std::fs::write(&path, b"{\"v\":1,").unwrap();
        Lines::open(&path).unwrap().write(&record).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|l| serde_json::from_str::<FlowRecord>(l).is_ok()).count(), 1);
    }
}
