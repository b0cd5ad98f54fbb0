//! The lines of a file that a process may make as long as it likes: each is bounded, and all of them together.

use std::io::{BufRead as _, BufReader, Error, Read};

/// Read at once, in bytes.
const AT_ONCE: usize = 64 << 10;

/// Why not every line was shown.
#[derive(Debug)]
pub(crate) enum Stopped<E> {
    /// The file cannot be read.
    Unread(Error),
    /// A line is longer than may be, or has no end.
    Endless,
    /// Whoever it was shown to wants no more.
    By(E),
}

/// Shows every line, without its newline. False if there are more than `max` bytes.
///
/// # Errors
/// Any [`Stopped`]; a line may have `line_max` bytes, the newline among them.
pub(crate) fn each<E>(
    file: impl Read,
    max: u64,
    line_max: usize,
    mut show: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<bool, Stopped<E>> {
    let mut lines = BufReader::with_capacity(AT_ONCE, file.take(max));
    let (mut line, mut total) = (Vec::new(), 0_u64);
    let limit = u64::try_from(line_max).unwrap_or(u64::MAX);
    loop {
        line.clear();
        let read = lines.by_ref().take(limit).read_until(b'\n', &mut line).map_err(Stopped::Unread)?;
        total = total.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        match line.strip_suffix(b"\n") {
            Some(line) => show(line).map_err(Stopped::By)?,
            None if line.is_empty() => return Ok(total < max),
            None if total >= max => return Ok(false),
            None => return Err(Stopped::Endless),
        }
    }
}
