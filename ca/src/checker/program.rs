//! Compares the bytes of the fingerprint extension with the program that was ordered.
//!
//! Works along the order and takes from the bytes what it expects next: what it does not expect stays and is refused.

use bonafide_proto::fingerprint::Script;
use bonafide_proto::svid::CertifiedProgram;

/// Whether these bytes name exactly this program, in canonical DER; else which item does not.
pub(super) fn same(der: &[u8], ordered: &CertifiedProgram) -> Result<(), &'static str> {
    bounds(ordered)?;
    let mut outer = Rest(der);
    let mut inner = Rest(outer.take(0x30).ok_or("it is not one sequence")?);
    outer.nothing("it is not one sequence")?;
    inner.expect(0x04, &ordered.exe.0, "another executable's digest")?;
    inner.expect(0x0c, ordered.program.as_bytes(), "another executable's path")?;
    user(inner.take(0x02), ordered.uid)?;
    let mut names = Rest(inner.take(0x30).ok_or("the taints are missing")?);
    for taint in &ordered.taints {
        names.expect(0x0c, taint.as_str().as_bytes(), "other taints")?;
    }
    names.nothing("other taints")?;
    code(&mut inner, ordered.script.as_ref())?;
    if let Some(libraries) = &ordered.libraries {
        inner.expect(0x83, &libraries.0, "other libraries")?;
    }
    if let Some(image) = &ordered.image {
        inner.expect(0x84, &image.0, "another image")?;
    }
    for (tag, host) in [(0x85, &ordered.bios_uuid), (0x86, &ordered.machine_id)] {
        if let Some(host) = host {
            inner.expect(tag, host.as_bytes(), "another host")?;
        }
    }
    if let Some(release) = ordered.release {
        inner.expect(0x87, release.as_str().as_bytes(), "another release")?;
    }
    inner.nothing("it says more than was ordered")
}

/// What no verifier would read is not handed out.
fn bounds(ordered: &CertifiedProgram) -> Result<(), &'static str> {
    let paths = [Some(ordered.program.len()), ordered.script_file().map(|script| script.path.len())];
    let hosts = [&ordered.bios_uuid, &ordered.machine_id];
    let plain = |text: &String| matches!(text.len(), 1..=128) && text.chars().all(|c| c.is_ascii_graphic());
    if !paths.into_iter().flatten().all(|length| matches!(length, 1..=4096)) {
        return Err("a path is empty, or longer than 4096 bytes");
    }
    if !hosts.into_iter().flatten().all(plain) {
        return Err("a host's name is empty, longer than 128 bytes, or not plain ASCII");
    }
    Ok(())
}

fn code(inner: &mut Rest<'_>, ordered: Option<&Script>) -> Result<(), &'static str> {
    match ordered {
        None => Ok(()),
        Some(Script::Inline(digest)) => inner.expect(0x81, &digest.0, "other code"),
        Some(Script::Stdin) => inner.expect(0x82, &[], "other code"),
        Some(Script::File(file)) => {
            let mut items = Rest(inner.take(0xa0).ok_or("the script is missing")?);
            items.expect(0x04, &file.digest.0, "another script's digest")?;
            items.expect(0x0c, file.path.as_bytes(), "another script's path")?;
            items.nothing("the script has more than digest and path")
        }
    }
}

/// An INTEGER in its shortest form (X.690 §8.3.2) that is this number.
fn user(content: Option<&[u8]>, ordered: u32) -> Result<(), &'static str> {
    let content = content.ok_or("the user is missing")?;
    let bits = 33 - ordered.leading_zeros();
    let read = content.iter().fold(0u64, |number, byte| (number << 8) | u64::from(*byte));
    let right = content.len() == usize::try_from(bits.div_ceil(8)).unwrap_or(0) && read == u64::from(ordered);
    if right { Ok(()) } else { Err("another user") }
}

/// What was not compared yet.
pub(super) struct Rest<'a>(pub(super) &'a [u8]);

impl<'a> Rest<'a> {
    pub(super) fn expect(&mut self, tag: u8, ordered: &[u8], otherwise: &'static str) -> Result<(), &'static str> {
        if self.take(tag) == Some(ordered) { Ok(()) } else { Err(otherwise) }
    }

    pub(super) fn nothing(&self, otherwise: &'static str) -> Result<(), &'static str> {
        if self.0.is_empty() { Ok(()) } else { Err(otherwise) }
    }

    /// The content of the next element, if it has this tag and the shortest length (X.690 §10.1).
    pub(super) fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&seen, after) = self.0.split_first()?;
        let (&first, after) = after.split_first()?;
        let more = usize::from(first).saturating_sub(0x80);
        let (digits, after) = after.split_at_checked(more).filter(|_| more <= 2)?;
        let length = match more {
            0 => usize::from(first),
            _ => digits.iter().fold(0, |length, digit| (length << 8) | usize::from(*digit)),
        };
        let shortest = match more {
            0 => first != 0x80,
            1 => length >= 0x80,
            _ => length >= 0x100,
        };
        let (content, rest) = after.split_at_checked(length)?;
        if seen != tag || !shortest {
            return None;
        }
        self.0 = rest;
        Some(content)
    }
}
