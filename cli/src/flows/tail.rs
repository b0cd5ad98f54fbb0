//! Reads a file that grows, is truncated, or is replaced, line by line and never more than it can hold.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The longest line kept, in bytes; a flow record is far shorter.
const LINE_MAX: usize = 64 * 1024;
/// Read at once.
const CHUNK: usize = 256 * 1024;

/// A line, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Counted from 1 in the present file.
    pub number: u64,
    /// Its bytes; none if it was too long to be kept.
    pub bytes: Option<Vec<u8>>,
}

/// A reader that remembers where it was.
#[derive(Debug)]
pub struct Tail {
    /// None: what is open is all there is.
    path: Option<PathBuf>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    read: u64,
    lines: u64,
    partial: Vec<u8>,
    too_long: bool,
}

impl Tail {
    /// Reads this file from its beginning; it need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), open: None }
    }

    /// Reads what comes from there, to its end.
    pub fn of(file: File) -> Self {
        Self { path: None, open: Some(Open::of(file)) }
    }

    /// Opens the file now.
    ///
    /// # Errors
    /// The file system's, `NotFound` among them.
    pub fn must_exist(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.open = Some(Open::of(File::open(path)?));
        }
        Ok(())
    }

    /// The next complete lines; none at the end of the file. A file that is not there has no lines.
    ///
    /// # Errors
    /// The file system's.
    pub fn read(&mut self) -> io::Result<Vec<Line>> {
        loop {
            let Some(open) = &mut self.open else {
                let Some(path) = &self.path else { return Ok(Vec::new()) };
                match File::open(path) {
                    Ok(file) => self.open = Some(Open::of(file)),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                    Err(e) => return Err(e),
                }
                continue;
            };
            let (lines, at_end) = open.read()?;
            if !lines.is_empty() {
                return Ok(lines);
            }
            if !at_end {
                continue;
            }
            // Only a file that was read to its end may be left for its successor.
            let Some(path) = &self.path else { return Ok(lines) };
            if !replaced(path, &open.file)? {
                return Ok(lines);
            }
            self.open = None;
        }
    }

    /// What stands behind the last complete line.
    #[must_use]
    pub fn rest(&mut self) -> Option<Line> {
        let open = self.open.as_mut()?;
        let unread = !open.partial.is_empty() || open.too_long;
        unread.then(|| open.line())
    }
}

fn replaced(path: &Path, file: &File) -> io::Result<bool> {
    let (ours, theirs) = match fs::metadata(path) {
        Ok(theirs) => (file.metadata()?, theirs),
        // Moved away and not yet created anew: more may still come into the old one.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    Ok((ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino()))
}

impl Open {
    fn of(file: File) -> Self {
        Self { file, read: 0, lines: 0, partial: Vec::new(), too_long: false }
    }

    /// The lines of the next chunk, and whether the end was reached.
    fn read(&mut self) -> io::Result<(Vec<Line>, bool)> {
        let meta = self.file.metadata()?;
        if meta.is_file() && meta.len() < self.read {
            self.start_over()?;
        }
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = (&self.file).take(CHUNK as u64).read_to_end(&mut chunk)?;
        self.read += read as u64;
        Ok((self.split(&chunk), read == 0))
    }

    fn start_over(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        (self.read, self.lines, self.too_long) = (0, 0, false);
        self.partial.clear();
        Ok(())
    }

    fn split(&mut self, chunk: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        for piece in chunk.split_inclusive(|b| *b == b'\n') {
            let (text, ends) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            if self.partial.len() + text.len() > LINE_MAX {
                self.too_long = true;
                self.partial.clear();
            }
            if !self.too_long {
                self.partial.extend_from_slice(text);
            }
            if ends {
                lines.push(self.line());
            }
        }
        lines
    }

    fn line(&mut self) -> Line {
        self.lines += 1;
        let bytes = std::mem::take(&mut self.partial);
        let too_long = std::mem::take(&mut self.too_long);
        Line { number: self.lines, bytes: (!too_long).then_some(bytes) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn texts(tail: &mut Tail) -> Vec<String> {
        let text = |l: Line| l.bytes.map_or("(too long)".into(), |b| String::from_utf8(b).unwrap());
        tail.read().unwrap().into_iter().map(text).collect()
    }

    fn append(path: &Path, text: &str) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn lines_come_once_and_only_when_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut tail = Tail::new(&path);
        assert!(texts(&mut tail).is_empty(), "a missing file has no lines");
        append(&path, "one\ntw");
        assert_eq!(texts(&mut tail), ["one"]);
        assert!(texts(&mut tail).is_empty());
        append(&path, "o\n\nfo");
        assert_eq!(texts(&mut tail), ["two", ""]);
        assert_eq!(tail.rest(), Some(Line { number: 4, bytes: Some(b"fo".to_vec()) }));
        assert_eq!(tail.rest(), None);
    }

    #[test]
    fn truncation_starts_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        append(&path, "one\ntwo\nhal");
        let mut tail = Tail::new(&path);
        assert_eq!(texts(&mut tail), ["one", "two"]);
        fs::write(&path, "new\n").unwrap();
        assert_eq!(texts(&mut tail), ["new"]);
    }

    #[test]
    fn rotation_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("f"), dir.path().join("f.1"));
        append(&path, "one\n");
        let mut tail = Tail::new(&path);
        assert_eq!(texts(&mut tail), ["one"]);
        fs::rename(&path, &old).unwrap();
        append(&old, "two\n");
        assert_eq!(texts(&mut tail), ["two"]);
        append(&old, "three\n");
        append(&path, "four\n");
        assert_eq!(texts(&mut tail), ["three"]);
        assert_eq!(texts(&mut tail), ["four"]);
    }

    #[test]
    fn an_endless_line_is_dropped_and_the_next_one_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        append(&path, &"x".repeat(3 * CHUNK));
        append(&path, "\nnext\n");
        let mut tail = Tail::new(&path);
        assert_eq!(texts(&mut tail), ["(too long)", "next"]);
    }
}
