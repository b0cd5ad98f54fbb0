//! The program that earned a leaf, as a certificate names it: a private extension, read strictly.
//!
//! There is one spelling for each program: canonical DER (X.690 §10, §11), and nothing besides what is listed here.
//! ```asn1
//! Program ::= SEQUENCE {
//!     exe        OCTET STRING (SIZE (32)),           -- SHA-256 of the executable
//!     path       UTF8String (SIZE (1..4096)),        -- its path; sizes of texts are in bytes
//!     uid        INTEGER (0..4294967295),            -- effective user ID
//!     taints     SEQUENCE OF UTF8String,             -- in the order of Taint::ALL, each once
//!     file       [0] IMPLICIT SEQUENCE {             -- the code that it interprets: at most one of [0], [1], [2]
//!         digest     OCTET STRING (SIZE (32)),
//!         path       UTF8String (SIZE (1..4096)) } OPTIONAL,
//!     inline     [1] IMPLICIT OCTET STRING (SIZE (32)) OPTIONAL,
//!     stdin      [2] IMPLICIT NULL OPTIONAL,
//!     libraries  [3] IMPLICIT OCTET STRING (SIZE (32)) OPTIONAL,
//!     image      [4] IMPLICIT OCTET STRING (SIZE (32)) OPTIONAL,
//!     biosUuid   [5] IMPLICIT IA5String (SIZE (1..128)) OPTIONAL,   -- graphic characters only
//!     machineId  [6] IMPLICIT IA5String (SIZE (1..128)) OPTIONAL,   -- graphic characters only
//!     release    [7] IMPLICIT UTF8String OPTIONAL }  -- "packaged" or "in-grace"
//! ```

use crate::fingerprint::{Digest, Fingerprint, HashedFile, Release, Script};
use crate::taint::{Taint, Taints};

/// OID of the extension, a private arc under 2.25 (ITU-T X.667).
pub const FINGERPRINT_OID: [u64; 3] = [2, 25, 5_178_349_013_480_112_913];
/// The same, dotted.
pub const FINGERPRINT_OID_TEXT: &str = "2.25.5178349013480112913";
/// The longest path in it, in bytes.
const PATH_MAX: usize = 4096;
/// The longest name of a host in it, in bytes.
const HOST_MAX: usize = 128;

/// The program that earned a leaf, and its host, as the issuing node certified them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedProgram {
    /// Digest of the executable.
    pub exe: Digest,
    /// Path of the executable.
    pub program: String,
    /// Effective user ID.
    pub uid: u32,
    /// Evidence against it, which the node's policy allowed.
    pub taints: Taints,
    /// The code that it interprets, if any.
    pub script: Option<Script>,
    /// Composite digest of its libraries ([`crate::fingerprint::Libraries`]).
    pub libraries: Option<Digest>,
    /// Digest of the config of its container's image.
    pub image: Option<Digest>,
    /// SMBIOS system UUID of its host, lower case, as the node's CA read it itself.
    pub bios_uuid: Option<String>,
    /// `machine-id(5)` of its host, as the node's CA read it itself.
    pub machine_id: Option<String>,
    /// What speaks for digests that the node's policy does not list.
    pub release: Option<Release>,
}

/// The extension is not exactly as documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is malformed")]
pub struct ProgramError(pub &'static str);

impl CertifiedProgram {
    /// What a certificate says of this evidence; nothing of its host.
    #[must_use]
    pub fn of(fingerprint: &Fingerprint) -> Self {
        Self {
            exe: fingerprint.exe.digest,
            program: fingerprint.exe.path.clone(),
            uid: fingerprint.uid,
            taints: fingerprint.taints.clone(),
            script: fingerprint.script.known().cloned(),
            libraries: fingerprint.libraries.known().map(|libraries| libraries.digest),
            image: fingerprint.container.known().map(|container| container.image),
            bios_uuid: None,
            machine_id: None,
            release: fingerprint.release,
        }
    }

    /// Reads the extension's content.
    ///
    /// # Errors
    /// [`ProgramError`], naming the first item that is not as documented.
    pub fn from_der(der: &[u8]) -> Result<Self, ProgramError> {
        let mut outer = Items(der);
        let mut items = Items(outer.required(SEQUENCE, "the sequence")?);
        outer.end()?;
        let program = Self {
            exe: digest(items.required(OCTET_STRING, "exe")?, "exe")?,
            program: path(items.required(UTF8_STRING, "path")?, "path")?,
            uid: uid(items.required(INTEGER, "uid")?)?,
            taints: taints(items.required(SEQUENCE, "taints")?)?,
            script: script(&mut items)?,
            libraries: items.optional(3)?.map(|bytes| digest(bytes, "libraries")).transpose()?,
            image: items.optional(4)?.map(|bytes| digest(bytes, "image")).transpose()?,
            bios_uuid: items.optional(5)?.map(|bytes| host(bytes, "biosUuid")).transpose()?,
            machine_id: items.optional(6)?.map(|bytes| host(bytes, "machineId")).transpose()?,
            release: items.optional(7)?.map(release).transpose()?,
        };
        items.end().map(|()| program)
    }

    /// The script's file, if it runs one.
    #[must_use]
    pub fn script_file(&self) -> Option<&HashedFile> {
        self.script.as_ref()?.file()
    }

    /// Every digest it is known by: what a quarantine may name.
    pub fn digests(&self) -> impl Iterator<Item = Digest> + use<> {
        let script = self.script.as_ref().and_then(Script::digest);
        [Some(self.exe), script, self.libraries, self.image].into_iter().flatten()
    }
}

pub(crate) const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const SEQUENCE: u8 = 0x30;
/// Context-specific tags: primitive, and constructed.
const CONTEXT: u8 = 0x80;
const CONSTRUCTED: u8 = 0x20;

/// DER elements that were not read yet.
pub(crate) struct Items<'a>(pub(crate) &'a [u8]);

impl<'a> Items<'a> {
    /// The content of the next element, which must have this tag.
    pub(crate) fn required(&mut self, tag: u8, what: &'static str) -> Result<&'a [u8], ProgramError> {
        self.tagged(tag)?.ok_or(ProgramError(what))
    }

    /// The content of the next element, if it has this context-specific tag.
    fn optional(&mut self, number: u8) -> Result<Option<&'a [u8]>, ProgramError> {
        self.tagged(CONTEXT | number)
    }

    fn tagged(&mut self, tag: u8) -> Result<Option<&'a [u8]>, ProgramError> {
        let Some((_, after)) = self.0.split_first().filter(|(first, _)| **first == tag) else { return Ok(None) };
        let (length, after) = length(after).ok_or(ProgramError("a length"))?;
        let (content, rest) = after.split_at_checked(length).ok_or(ProgramError("a length"))?;
        self.0 = rest;
        Ok(Some(content))
    }

    pub(crate) fn end(&self) -> Result<(), ProgramError> {
        if self.0.is_empty() { Ok(()) } else { Err(ProgramError("what follows the last item")) }
    }
}

/// A definite length in its shortest spelling, up to 65535 (X.690 §10.1), and what follows it.
fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    match bytes {
        [short @ 0..=0x7f, rest @ ..] => Some((usize::from(*short), rest)),
        [0x81, one @ 0x80..=0xff, rest @ ..] => Some((usize::from(*one), rest)),
        [0x82, high @ 1..=0xff, low, rest @ ..] => Some((usize::from(u16::from_be_bytes([*high, *low])), rest)),
        _ => None,
    }
}

fn digest(bytes: &[u8], what: &'static str) -> Result<Digest, ProgramError> {
    Digest::try_from(bytes).map_err(|_| ProgramError(what))
}

fn path(bytes: &[u8], what: &'static str) -> Result<String, ProgramError> {
    let fits = (1..=PATH_MAX).contains(&bytes.len());
    // No node issues for a path that is not printable; a stolen one could, to forge lines in somebody's terminal.
    let text = std::str::from_utf8(bytes).ok().filter(|text| fits && !text.chars().any(char::is_control));
    text.map(str::to_owned).ok_or(ProgramError(what))
}

fn release(bytes: &[u8]) -> Result<Release, ProgramError> {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).ok_or(ProgramError("release"))
}

fn host(bytes: &[u8], what: &'static str) -> Result<String, ProgramError> {
    let fits = (1..=HOST_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    let text = std::str::from_utf8(bytes).ok().filter(|_| fits);
    text.map(str::to_owned).ok_or(ProgramError(what))
}

/// X.690 §8.3.2: the first nine bits are not all zero.
fn uid(bytes: &[u8]) -> Result<u32, ProgramError> {
    let digits = match bytes {
        [0, digits @ ..] if digits.first().is_some_and(|first| *first >= 0x80) => digits,
        [0] => bytes,
        [1..=0x7f, ..] => bytes,
        _ => return Err(ProgramError("uid")),
    };
    match digits.len() {
        1..=4 => Ok(digits.iter().fold(0, |uid, digit| (uid << 8) | u32::from(*digit))),
        _ => Err(ProgramError("uid")),
    }
}

fn taints(bytes: &[u8]) -> Result<Taints, ProgramError> {
    let (mut items, mut read) = (Items(bytes), Taints::new());
    while let Some(name) = items.tagged(UTF8_STRING)? {
        let taint = std::str::from_utf8(name).ok().and_then(|name| name.parse::<Taint>().ok());
        let taint = taint.filter(|taint| read.last().is_none_or(|last| last < taint));
        read.insert(taint.ok_or(ProgramError("taints"))?);
    }
    items.end().map(|()| read).map_err(|_| ProgramError("taints"))
}

fn script(items: &mut Items<'_>) -> Result<Option<Script>, ProgramError> {
    if let Some(content) = items.tagged(CONTEXT | CONSTRUCTED)? {
        let mut file = Items(content);
        let digest = digest(file.required(OCTET_STRING, "file")?, "file")?;
        let path = path(file.required(UTF8_STRING, "file")?, "file")?;
        return file.end().map(|()| Some(Script::File(HashedFile { path, digest })));
    }
    if let Some(content) = items.optional(1)? {
        return digest(content, "inline").map(|digest| Some(Script::Inline(digest)));
    }
    match items.optional(2)? {
        Some([]) => Ok(Some(Script::Stdin)),
        Some(_) => Err(ProgramError("stdin")),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use bonafide_fuzz::element;

    use super::*;

    fn sequence(items: &[Vec<u8>]) -> Vec<u8> {
        element(0x30, &items.concat())
    }

    /// Everything that must be there.
    fn least() -> Vec<Vec<u8>> {
        vec![element(4, &[1; 32]), element(12, b"/bin/a"), element(2, &[33]), element(0x30, &[])]
    }

    fn with(item: usize, instead: Vec<u8>) -> Vec<u8> {
        let mut items = least();
        items[item] = instead;
        sequence(&items)
    }

    fn and(more: &[Vec<u8>]) -> Vec<u8> {
        sequence(&[least(), more.to_vec()].concat())
    }

    fn file() -> Vec<u8> {
        element(0xa0, &[element(4, &[2; 32]), element(12, "/srv/ä.py".as_bytes())].concat())
    }

    fn whole() -> Vec<Vec<u8>> {
        vec![
            file(),
            element(0x83, &[3; 32]),
            element(0x84, &[4; 32]),
            element(0x85, b"4c4c4544-0042"),
            element(0x86, b"0123abcd"),
            element(0x87, b"in-grace"),
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        let read = CertifiedProgram::from_der(&sequence(&least())).unwrap();
        assert_eq!((read.exe, read.program.as_str(), read.uid), (Digest([1; 32]), "/bin/a", 33));
        assert!(read.taints.is_empty());
        assert_eq!((read.script.clone(), read.libraries, read.image), (None, None, None));
        assert_eq!((read.bios_uuid.clone(), read.machine_id.clone()), (None, None));
        assert_eq!(read.digests().collect::<Vec<_>>(), [Digest([1; 32])]);

        let read = CertifiedProgram::from_der(&and(&whole())).unwrap();
        assert_eq!(read.script_file().unwrap().path, "/srv/ä.py");
        assert_eq!(read.digests().map(|d| d.0[0]).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(read.bios_uuid.as_deref(), Some("4c4c4544-0042"));
        assert_eq!(read.machine_id.as_deref(), Some("0123abcd"));
        assert_eq!(read.release, Some(Release::InGrace));
    }

    #[test]
    fn each_kind_of_code_is_told_apart() {
        let script = |item| CertifiedProgram::from_der(&and(&[item])).unwrap().script;
        assert_eq!(script(element(0x81, &[5; 32])), Some(Script::Inline(Digest([5; 32]))));
        assert_eq!(script(element(0x82, &[])), Some(Script::Stdin));
        let kinds = [file(), element(0x81, &[5; 32]), element(0x82, &[])];
        for (first, second) in [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2), (1, 0), (2, 0), (2, 1)] {
            let both = and(&[kinds[first].clone(), kinds[second].clone()]);
            assert_eq!(CertifiedProgram::from_der(&both), Err(ProgramError("what follows the last item")));
        }
    }

    #[test]
    fn uids_have_one_spelling() {
        let uid = |bytes: &[u8]| CertifiedProgram::from_der(&with(2, element(2, bytes))).map(|p| p.uid);
        assert_eq!(uid(&[0]), Ok(0));
        assert_eq!(uid(&[0x7f]), Ok(127));
        assert_eq!(uid(&[0, 0x80]), Ok(128));
        assert_eq!(uid(&[0x01, 0x23, 0x6d]), Ok(74_605));
        assert_eq!(uid(&[0, 0xff, 0xff, 0xff, 0xff]), Ok(u32::MAX));
        for wrong in [&[][..], &[0, 0], &[0, 1], &[0x80], &[0xff], &[1, 0, 0, 0, 0], &[0, 0xff, 0, 0, 0, 0]] {
            assert_eq!(uid(wrong), Err(ProgramError("uid")), "{wrong:?}");
        }
    }

    #[test]
    fn taints_are_known_sorted_and_each_once() {
        let taints = |names: &[&str]| {
            let names: Vec<u8> = names.iter().flat_map(|name| element(12, name.as_bytes())).collect();
            CertifiedProgram::from_der(&with(3, element(0x30, &names))).map(|p| p.taints.len())
        };
        assert_eq!(taints(&["deleted", "preload", "no-script"]), Ok(3));
        assert_eq!(taints(&Taint::ALL.map(Taint::as_str)), Ok(Taint::ALL.len()));
        for wrong in [&["preload", "deleted"][..], &["deleted", "deleted"], &["dirty"], &[""], &["Deleted"]] {
            assert_eq!(taints(wrong), Err(ProgramError("taints")), "{wrong:?}");
        }
        let number = with(3, element(0x30, &element(2, &[1])));
        assert_eq!(CertifiedProgram::from_der(&number), Err(ProgramError("taints")));
    }

    #[test]
    fn every_text_and_digest_has_its_bounds() {
        for (der, item) in [
            (with(0, element(4, &[1; 31])), "exe"),
            (with(0, element(4, &[1; 33])), "exe"),
            (with(0, element(12, &[1; 32])), "exe"),
            (with(1, element(12, b"")), "path"),
            (with(1, element(12, &[b'x'; 4097])), "path"),
            (with(1, element(12, b"/\xff")), "path"),
            (with(1, element(19, b"/bin/a")), "path"),
            (with(2, element(4, &[33])), "uid"),
            (with(3, element(0x31, &[])), "taints"),
            (and(&[element(0xa0, &element(4, &[2; 32]))]), "file"),
            (and(&[element(0xa0, &[element(4, &[2; 32]), element(12, b"")].concat())]), "file"),
            (and(&[element(0x81, &[])]), "inline"),
            (and(&[element(0x82, &[0])]), "stdin"),
            (and(&[element(0x83, &[3; 31])]), "libraries"),
            (and(&[element(0x84, &[])]), "image"),
            (and(&[element(0x85, b"")]), "biosUuid"),
            (and(&[element(0x85, b"a b")]), "biosUuid"),
            (and(&[element(0x86, &[b'x'; 129])]), "machineId"),
            (and(&[element(0x86, "ä".as_bytes())]), "machineId"),
            (and(&[element(0x87, b"new")]), "release"),
            (and(&[element(0x87, b"")]), "release"),
        ] {
            assert_eq!(CertifiedProgram::from_der(&der), Err(ProgramError(item)));
        }
        CertifiedProgram::from_der(&with(1, element(12, &[b'x'; 4096]))).unwrap();
        CertifiedProgram::from_der(&and(&[element(0x86, &[b'x'; 128])])).unwrap();
    }

    #[test]
    fn no_item_is_missing_twice_out_of_order_or_unknown() {
        for missing in 0..4 {
            let mut items = least();
            items.remove(missing);
            assert!(CertifiedProgram::from_der(&sequence(&items)).is_err(), "{missing}");
        }
        for first in 0..whole().len() {
            let mut twice = whole();
            twice.insert(first, whole()[first].clone());
            assert!(CertifiedProgram::from_der(&and(&twice)).is_err(), "{first} twice");
            let mut swapped = whole();
            swapped.swap(first, (first + 1) % whole().len());
            assert!(CertifiedProgram::from_der(&and(&swapped)).is_err(), "{first} moved");
        }
        assert!(CertifiedProgram::from_der(&and(&[element(0x88, b"new")])).is_err());
        assert!(CertifiedProgram::from_der(&[sequence(&least()), vec![5, 0]].concat()).is_err());
        assert!(CertifiedProgram::from_der(&[]).is_err());
    }

    #[test]
    fn lengths_are_definite_and_shortest() {
        let content = least().concat();
        let honest = u8::try_from(content.len()).unwrap();
        for head in [&[0x30, 0x80][..], &[0x30, 0x81, honest], &[0x30, 0x82, 0, honest], &[0x30, honest + 1], &[0x30]] {
            assert!(CertifiedProgram::from_der(&[head, &content].concat()).is_err(), "{head:?}");
        }
        let indefinite = [&[0x30, 0x80][..], &content, &[0, 0]].concat();
        assert!(CertifiedProgram::from_der(&indefinite).is_err());
    }

    #[test]
    fn whatever_is_cut_off_is_refused() {
        let der = and(&whole());
        for end in 0..der.len() {
            assert!(CertifiedProgram::from_der(&der[..end]).is_err(), "{end}");
        }
    }
}
