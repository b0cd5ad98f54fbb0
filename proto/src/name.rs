//! Names: trust domains, workloads, nodes and SPIFFE IDs, each parsed into a type that cannot be wrong.
//!
//! Rules: SPIFFE-ID.md §2.1 (trust domain), §2.2 (path), §2.3 (lengths). Upper case is refused, not folded (§2.4).

use std::fmt;
use std::str::FromStr;

/// The longest trust domain name, in bytes.
pub const TRUST_DOMAIN_MAX: usize = 255;
/// The longest SPIFFE ID, in bytes (SPIFFE-ID.md §2.3).
pub const SPIFFE_ID_MAX: usize = 2048;
/// The longest workload or node name, in bytes.
pub const NAME_MAX: usize = 255;
/// First path segment of identities that belong to the mesh itself; no workload may carry it.
pub const RESERVED_SEGMENT: &str = "bonafide";

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// Longer than the rule allows.
    #[error("is longer than {0} bytes")]
    TooLong(usize),
    /// A character the rule does not allow.
    #[error("contains {0:?}; allowed are {1}")]
    Character(char, &'static str),
    /// An empty path segment, `.` or `..`.
    #[error("has a path segment {0:?}")]
    Segment(String),
    /// Not `spiffe://`.
    #[error("does not start with \"spiffe://\"")]
    Scheme,
    /// A SPIFFE ID of a workload needs a path.
    #[error("has no path")]
    NoPath,
    /// The first segment belongs to the mesh itself.
    #[error("starts with the reserved segment \"bonafide\"")]
    Reserved,
}

fn check_segments(path: &str) -> Result<(), NameError> {
    for segment in path.split('/') {
        if segment.is_empty() || segment == "." || segment == ".." {
            return Err(NameError::Segment(segment.to_owned()));
        }
        if let Some(bad) = segment.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))) {
            return Err(NameError::Character(bad, "letters, digits, '.', '-' and '_'"));
        }
    }
    Ok(())
}

macro_rules! text_name {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(|e| serde::de::Error::custom(format!("{text:?} {e}")))
            }
        }
    };
}

/// A trust domain: lower-case `[a-z0-9.-_]`, 1 to 255 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(String);
text_name!(TrustDomain);

impl FromStr for TrustDomain {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        if s.is_empty() {
            return Err(NameError::Empty);
        }
        if s.len() > TRUST_DOMAIN_MAX {
            return Err(NameError::TooLong(TRUST_DOMAIN_MAX));
        }
        match s.chars().find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_'))) {
            Some(bad) => Err(NameError::Character(bad, "lower-case letters, digits, '.', '-' and '_'")),
            None => Ok(Self(s.to_owned())),
        }
    }
}

/// A workload's stable name in policy: the path of its SPIFFE ID without the leading `/`.
///
/// One or more segments of `[a-zA-Z0-9.-_]`, joined by `/`, 1 to 255 bytes, not under `bonafide/`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadName(String);
text_name!(WorkloadName);

impl FromStr for WorkloadName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        if s.is_empty() {
            return Err(NameError::Empty);
        }
        if s.len() > NAME_MAX {
            return Err(NameError::TooLong(NAME_MAX));
        }
        check_segments(s)?;
        if s.split('/').next() == Some(RESERVED_SEGMENT) {
            return Err(NameError::Reserved);
        }
        Ok(Self(s.to_owned()))
    }
}

/// The name under which a node was admitted: one segment of `[a-zA-Z0-9.-_]`, 1 to 63 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(String);
text_name!(NodeName);

impl FromStr for NodeName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        if s.is_empty() {
            return Err(NameError::Empty);
        }
        if s.len() > 63 {
            return Err(NameError::TooLong(63));
        }
        if s.contains('/') {
            return Err(NameError::Character('/', "letters, digits, '.', '-' and '_'"));
        }
        check_segments(s)?;
        Ok(Self(s.to_owned()))
    }
}

/// A SPIFFE ID with a path: `spiffe://<trust domain>/<path>`, at most 2048 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    path: String,
}

impl SpiffeId {
    /// The identity of a workload.
    #[must_use]
    pub fn workload(trust_domain: &TrustDomain, name: &WorkloadName) -> Self {
        Self { trust_domain: trust_domain.clone(), path: name.0.clone() }
    }

    /// The identity by which a node authenticates to the authority: `/bonafide/node/<name>`.
    #[must_use]
    pub fn node(trust_domain: &TrustDomain, name: &NodeName) -> Self {
        Self { trust_domain: trust_domain.clone(), path: format!("{RESERVED_SEGMENT}/node/{name}") }
    }

    /// The identity by which the authority's server authenticates: `/bonafide/authority`.
    #[must_use]
    pub fn authority(trust_domain: &TrustDomain) -> Self {
        Self { trust_domain: trust_domain.clone(), path: format!("{RESERVED_SEGMENT}/authority") }
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path without its leading `/`; never empty.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The workload this identity names, unless it belongs to the mesh itself.
    #[must_use]
    pub fn workload_name(&self) -> Option<WorkloadName> {
        self.path.parse().ok()
    }

    /// The node this identity names, if it is a node's.
    #[must_use]
    pub fn node_name(&self) -> Option<NodeName> {
        self.path.strip_prefix("bonafide/node/")?.parse().ok()
    }

    /// True for the authority's own identity.
    #[must_use]
    pub fn is_authority(&self) -> bool {
        self.path == "bonafide/authority"
    }
}

impl FromStr for SpiffeId {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        if s.len() > SPIFFE_ID_MAX {
            return Err(NameError::TooLong(SPIFFE_ID_MAX));
        }
        let rest = s.strip_prefix("spiffe://").ok_or(NameError::Scheme)?;
        let (domain, path) = rest.split_once('/').ok_or(NameError::NoPath)?;
        check_segments(path)?;
        Ok(Self { trust_domain: domain.parse()?, path: path.to_owned() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}", self.trust_domain, self.path)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl serde::Serialize for SpiffeId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SpiffeId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(|e| serde::de::Error::custom(format!("{text:?} {e}")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_ids_are_parsed_strictly() {
        for good in ["spiffe://example.org/web", "spiffe://a/b/c.d-e_F", "spiffe://127.0.0.1/x"] {
            assert_eq!(good.parse::<SpiffeId>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "https://example.org/web",
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe:///x",
            "spiffe://Example.org/x",
            "spiffe://example.org/a//b",
            "spiffe://example.org/a/",
            "spiffe://example.org/../b",
            "spiffe://example.org/a?q",
            "spiffe://example.org/a#f",
            "spiffe://user@example.org/a",
            "spiffe://example.org:80/a",
            "spiffe://example.org/%41",
            "SPIFFE://example.org/a",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad} was accepted");
        }
        let long = format!("spiffe://example.org/{}", "a".repeat(2048));
        assert_eq!(long.parse::<SpiffeId>(), Err(NameError::TooLong(SPIFFE_ID_MAX)));
        let domain = format!("spiffe://{}/a", "a".repeat(256));
        assert!(domain.parse::<SpiffeId>().is_err());
    }

    #[test]
    fn the_meshs_own_names_are_no_workloads() {
        assert_eq!("bonafide/node/a".parse::<WorkloadName>(), Err(NameError::Reserved));
        let td: TrustDomain = "example.org".parse().unwrap();
        let node = SpiffeId::node(&td, &"a".parse().unwrap());
        assert_eq!(node.workload_name(), None);
        assert_eq!(node.node_name().unwrap().as_str(), "a");
        assert!(SpiffeId::authority(&td).is_authority());
        assert!("bonafide-web".parse::<WorkloadName>().is_ok());
    }
}
