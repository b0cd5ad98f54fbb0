//! What a node may issue: a set of workload names and prefixes, as the authority certifies it in the node's intermediate.
//!
//! The extension that carries it has one spelling: canonical DER (X.690 §10, §11), and nothing besides what is listed here.
//! ```asn1
//! Mandate ::= SEQUENCE {
//!     number     INTEGER (1..9223372036854775807),     -- counts the certificates issued under the node's name
//!     workloads  SEQUENCE (SIZE (0..64)) OF UTF8String }  -- a name, or a prefix and "*"; ascending bytes, each once
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::name::{NAME_MAX, WorkloadName};
use crate::program::{INTEGER, Items, ProgramError, SEQUENCE, UTF8_STRING};

/// OID of the extension, below that of the fingerprint.
pub const MANDATE_OID: [u64; 4] = [2, 25, 5_178_349_013_480_112_913, 1];
/// The same, dotted.
pub const MANDATE_OID_TEXT: &str = "2.25.5178349013480112913.1";
/// The most names and prefixes in a grant.
pub const PATTERNS_MAX: usize = 64;
/// The most bytes that they have together.
pub const GRANT_BYTES_MAX: usize = 2048;
/// The longest text of a grant that is read, in bytes.
const TEXT_MAX: usize = GRANT_BYTES_MAX + 2 * PATTERNS_MAX;

/// Why a text or an extension is no grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GrantError(String);

/// The workloads that a node may issue. Empty: none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant(BTreeSet<String>);

impl Grant {
    /// Every workload there is.
    #[must_use]
    pub fn everything() -> Self {
        Self(BTreeSet::from(["*".to_owned()]))
    }

    /// A grant of these names and prefixes.
    ///
    /// # Errors
    /// [`GrantError`], naming the first that is none, or the bound that they exceed.
    pub fn of<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, GrantError> {
        let mut kept = BTreeSet::new();
        for pattern in patterns {
            check(pattern)?;
            kept.insert(pattern.to_owned());
            if kept.len() > PATTERNS_MAX {
                return Err(GrantError(format!("a grant has at most {PATTERNS_MAX} names and prefixes")));
            }
        }
        match kept.iter().map(String::len).sum::<usize>() {
            0..=GRANT_BYTES_MAX => Ok(Self(kept)),
            _ => Err(GrantError(format!(
                "a grant has at most {GRANT_BYTES_MAX} bytes; use prefixes, such as \"shop/*\""
            ))),
        }
    }

    /// Whether it allows to issue this workload.
    #[must_use]
    pub fn allows(&self, workload: &WorkloadName) -> bool {
        self.0.iter().any(|pattern| matches(pattern, workload.as_str()))
    }

    /// Whether it allows everything that the other one allows. Prefixes are compared one by one: a no may be too strict.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|theirs| self.0.iter().any(|ours| matches(ours, theirs)))
    }

    /// True if it allows nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its names and prefixes, in ascending order.
    pub fn patterns(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// `subject` is a name, or itself a prefix with its `*`.
fn matches(pattern: &str, subject: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => subject.starts_with(prefix),
        None => pattern == subject,
    }
}

fn check(pattern: &str) -> Result<(), GrantError> {
    let none = |why: &dyn fmt::Display| GrantError(format!("{pattern:?} is no workload or prefix: it {why}"));
    let Some(prefix) = pattern.strip_suffix('*') else {
        return pattern.parse::<WorkloadName>().map(drop).map_err(|e| none(&e));
    };
    if pattern.len() > NAME_MAX {
        return Err(GrantError(format!("a workload or prefix has at most {NAME_MAX} bytes")));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    match prefix.chars().find(|c| !plain(*c)) {
        Some('*') => Err(none(&"has '*' elsewhere than at its end")),
        Some(bad) => Err(none(&format!("contains {bad:?}; allowed are letters, digits, '.', '-', '_', '/'"))),
        None if prefix.starts_with('/') || prefix.contains("//") => Err(none(&"has an empty path segment")),
        None => Ok(()),
    }
}

/// `web,web-*`; empty: nothing.
impl FromStr for Grant {
    type Err = GrantError;
    fn from_str(text: &str) -> Result<Self, GrantError> {
        if text.len() > TEXT_MAX {
            return Err(GrantError(format!("it is longer than {TEXT_MAX} bytes")));
        }
        match text {
            "" => Ok(Self::default()),
            listed => Self::of(listed.split(',').map(str::trim)),
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let patterns: Vec<&str> = self.patterns().collect();
        f.write_str(&patterns.join(","))
    }
}

impl serde::Serialize for Grant {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Grant {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What the authority certifies of a node's intermediate besides its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mandate {
    /// Counts what was issued under the node's name: a later one has a higher number.
    pub number: u64,
    /// What it may issue.
    pub grant: Grant,
}

impl Mandate {
    /// Reads the extension's content.
    ///
    /// # Errors
    /// [`GrantError`], naming what is not as documented.
    pub fn from_der(der: &[u8]) -> Result<Self, GrantError> {
        let malformed = |ProgramError(what)| GrantError(format!("{what} is malformed"));
        let mut outer = Items(der);
        let mut items = Items(outer.required(SEQUENCE, "the sequence").map_err(malformed)?);
        outer.end().map_err(malformed)?;
        let number = number(items.required(INTEGER, "number").map_err(malformed)?)?;
        let grant = patterns(items.required(SEQUENCE, "workloads").map_err(malformed)?)?;
        items.end().map_err(malformed)?;
        Ok(Self { number, grant })
    }
}

/// X.690 §8.3.2: positive, in the fewest bytes.
fn number(bytes: &[u8]) -> Result<u64, GrantError> {
    let digits = match bytes {
        [0, digits @ ..] if digits.first().is_some_and(|first| *first >= 0x80) => digits,
        [1..=0x7f, ..] => bytes,
        _ => return Err(GrantError("number is malformed".into())),
    };
    let read = digits.iter().fold(0u64, |number, digit| (number << 8) | u64::from(*digit));
    match i64::try_from(read) {
        Ok(1..) if digits.len() <= 8 => Ok(read),
        _ => Err(GrantError("number is malformed".into())),
    }
}

fn patterns(der: &[u8]) -> Result<Grant, GrantError> {
    let mut items = Items(der);
    let mut read: Vec<&str> = Vec::new();
    let malformed = || GrantError("workloads is malformed".into());
    while !items.0.is_empty() {
        let text = items.required(UTF8_STRING, "workloads").map_err(|_| malformed())?;
        let text = std::str::from_utf8(text).map_err(|_| malformed())?;
        if read.len() >= PATTERNS_MAX || read.last().is_some_and(|last| *last >= text) {
            return Err(malformed());
        }
        read.push(text);
    }
    Grant::of(read)
}

#[cfg(test)]
mod tests {
    use bonafide_fuzz::element;

    use super::*;

    fn grant(text: &str) -> Grant {
        text.parse().unwrap()
    }

    fn allows(grant: &Grant, workload: &str) -> bool {
        grant.allows(&workload.parse().unwrap())
    }

    #[test]
    fn names_are_exact_and_prefixes_end_in_a_star() {
        let shop = grant("web, shop/*,api-*");
        for yes in ["web", "shop/web", "shop/a/b", "api-1"] {
            assert!(allows(&shop, yes), "{yes}");
        }
        for no in ["web2", "shop", "shopping", "api", "we", "x/web"] {
            assert!(!allows(&shop, no), "{no}");
        }
        assert!(allows(&Grant::everything(), "any/thing") && !allows(&Grant::default(), "web"));
        assert_eq!(shop.to_string(), "api-*,shop/*,web");
        assert_eq!(grant(&shop.to_string()), shop);
        assert!(grant("").is_empty());
    }

    #[test]
    fn what_is_no_name_or_prefix_is_refused_with_the_reason() {
        let refused = [
            ("web,", "is empty"),
            ("bonafide/node/a", "reserved"),
            ("a*b*", "elsewhere"),
            ("a*b", "'*'"),
            ("a b*", "allowed are"),
            ("/a*", "empty path segment"),
            ("a//*", "empty path segment"),
        ];
        for (text, why) in refused {
            let said = text.parse::<Grant>().unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn a_grant_has_bounds() {
        let many: Vec<String> = (0..=PATTERNS_MAX).map(|n| format!("w{n}")).collect();
        let refs = |n: usize| many[..n].iter().map(String::as_str);
        assert!(Grant::of(refs(PATTERNS_MAX)).is_ok() && Grant::of(refs(PATTERNS_MAX + 1)).is_err());
        let long: Vec<String> = (0..9).map(|n| format!("{n}{}", "a".repeat(227))).collect();
        assert!(Grant::of(long[..8].iter().map(String::as_str)).is_ok());
        assert!(Grant::of(long.iter().map(String::as_str)).is_err());
        assert!(format!("{}*", "a".repeat(255)).parse::<Grant>().is_err());
        assert!("a,".repeat(2000).parse::<Grant>().is_err());
    }

    #[test]
    fn a_wider_grant_covers_a_narrower_one() {
        for (wide, narrow) in [("*", "a,b/*"), ("a*", "ab*,a,a*"), ("a,b", "b"), ("a", "")] {
            assert!(grant(wide).covers(&grant(narrow)), "{wide} {narrow}");
        }
        for (one, other) in [("a", "a*"), ("ab*", "a*"), ("", "a"), ("a,b", "a,c")] {
            assert!(!grant(one).covers(&grant(other)), "{one} {other}");
        }
    }

    fn mandate(number: &[u8], workloads: &[&str]) -> Vec<u8> {
        let workloads: Vec<u8> = workloads.iter().flat_map(|w| element(12, w.as_bytes())).collect();
        element(0x30, &[element(2, number), element(0x30, &workloads)].concat())
    }

    #[test]
    fn a_mandate_has_one_spelling() {
        let read = Mandate::from_der(&mandate(&[7], &["a", "b-*"])).unwrap();
        assert_eq!(read, Mandate { number: 7, grant: grant("a,b-*") });
        let number = |bytes: &[u8]| Mandate::from_der(&mandate(bytes, &[])).map(|m| m.number).ok();
        assert_eq!(number(&[0, 0x80]), Some(128));
        assert_eq!(number(&[0x7f, 255, 255, 255, 255, 255, 255, 255]), Some(i64::MAX.unsigned_abs()));
        for wrong in [&[][..], &[0], &[0, 1], &[0x80], &[0, 0x80, 0, 0, 0, 0, 0, 0, 0], &[1, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(number(wrong), None, "{wrong:?}");
        }
        for wrong in [&["b", "a"][..], &["a", "a"], &[""], &["a b"], &["*a"]] {
            assert!(Mandate::from_der(&mandate(&[1], wrong)).is_err(), "{wrong:?}");
        }
        let whole = mandate(&[7], &["a"]);
        for end in 0..whole.len() {
            assert!(Mandate::from_der(&whole[..end]).is_err(), "{end}");
        }
        assert!(Mandate::from_der(&[whole.clone(), vec![5, 0]].concat()).is_err());
        let more = element(0x30, &[element(2, &[7]), element(0x30, &[]), vec![5, 0]].concat());
        assert!(Mandate::from_der(&more).is_err());
    }
}
