//! What was taken back before its time: certificates of nodes, workloads, single serials; and digests in quarantine.
//! Told whole, from the authority to every enforcer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use crate::fingerprint::Digest;
use crate::name::{NodeName, WorkloadName};
use crate::record::Reason;
use crate::svid::Issuer;

/// The most nodes of which certificates are revoked.
pub const NODES_MAX: usize = 4096;
/// The most workloads.
pub const WORKLOADS_MAX: usize = 512;
/// The most serial numbers.
pub const SERIALS_MAX: usize = 4096;
/// The longest serial number, in bytes (RFC 5280 §4.1.2.2).
const SERIAL_BYTES_MAX: usize = 20;

/// A certificate's serial number: lower-case hex of its bytes, as flow records have it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(String);

/// Why a text is no serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no serial number: 1 to {SERIAL_BYTES_MAX} bytes in hex, with or without colons")]
pub struct SerialError;

impl Serial {
    /// Its hex digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        hex::decode(&self.0).unwrap_or_default()
    }
}

impl FromStr for Serial {
    type Err = SerialError;
    fn from_str(text: &str) -> Result<Self, SerialError> {
        if text.len() > SERIAL_BYTES_MAX * 3 {
            return Err(SerialError);
        }
        let digits = text.replace(':', "");
        hex::decode(digits).map_err(|_| SerialError)?.as_slice().try_into()
    }
}

impl TryFrom<&[u8]> for Serial {
    type Error = SerialError;
    fn try_from(bytes: &[u8]) -> Result<Self, SerialError> {
        match bytes.len() {
            1..=SERIAL_BYTES_MAX => Ok(Self(hex::encode(bytes))),
            _ => Err(SerialError),
        }
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for Serial {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Serial {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What is revoked.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// By node: intermediates up to this number, and every leaf that they issued.
    pub nodes: BTreeMap<NodeName, u64>,
    /// Workloads that nobody may be.
    pub workloads: BTreeSet<WorkloadName>,
    /// Single leaves.
    pub serials: BTreeSet<Serial>,
}

impl Revoked {
    /// Whether what this intermediate issued is revoked.
    #[must_use]
    pub fn issuer(&self, issuer: &Issuer) -> Option<(Reason, String)> {
        let Issuer { node, number } = issuer;
        let through = self.nodes.get(node).filter(|through| number <= *through)?;
        let detail =
            format!("certificates of node {node} up to number {through} are revoked, and it is of number {number}");
        Some((Reason::NodeRevoked, detail))
    }

    /// Whether nobody may be this workload.
    #[must_use]
    pub fn workload(&self, workload: &WorkloadName) -> Option<(Reason, String)> {
        let revoked = self.workloads.contains(workload);
        revoked.then(|| (Reason::WorkloadRevoked, format!("workload {workload} is revoked")))
    }

    /// Whether the leaf of this serial number is revoked.
    #[must_use]
    pub fn serial(&self, serial: &str) -> Option<(Reason, String)> {
        // Most of the time there is none to be parsed for.
        let found =
            !self.serials.is_empty() && serial.parse().is_ok_and(|serial: Serial| self.serials.contains(&serial));
        found.then(|| (Reason::SerialRevoked, format!("the certificate with the serial number {serial} is revoked")))
    }

    /// What is in either of the two.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (node, through) in &other.nodes {
            let known = all.nodes.entry(node.clone()).or_default();
            *known = (*known).max(*through);
        }
        all.workloads.extend(other.workloads.iter().cloned());
        all.serials.extend(other.serials.iter().cloned());
        all
    }

    /// How many entries it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len() + self.workloads.len() + self.serials.len()
    }

    /// True if nothing is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it has no more entries than are told.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.nodes.len() <= NODES_MAX && self.workloads.len() <= WORKLOADS_MAX && self.serials.len() <= SERIALS_MAX
    }
}

/// All that nobody may be or run any more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Barred {
    /// Digests in quarantine.
    pub digests: BTreeSet<Digest>,
    /// Certificates.
    pub revoked: Revoked,
}

impl<const N: usize> From<[Digest; N]> for Barred {
    fn from(digests: [Digest; N]) -> Self {
        Self { digests: digests.into(), revoked: Revoked::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer(node: &str, number: u64) -> Issuer {
        Issuer { node: node.parse().unwrap(), number }
    }

    #[test]
    fn a_serial_has_one_spelling() {
        let serial: Serial = "4A:0b:FF".parse().unwrap();
        assert_eq!((serial.as_str(), serial.bytes()), ("4a0bff", vec![0x4a, 0x0b, 0xff]));
        assert_eq!("4a0bff".parse(), Ok(serial));
        for wrong in ["", ":", "4a0", "xy", &"00".repeat(21), " 4a"] {
            assert_eq!(wrong.parse::<Serial>(), Err(SerialError), "{wrong}");
        }
    }

    #[test]
    fn nodes_are_revoked_up_to_a_number_and_workloads_and_serials_by_name() {
        let revoked = Revoked {
            nodes: [("a".parse().unwrap(), 5)].into(),
            workloads: ["web".parse().unwrap()].into(),
            serials: ["4a01".parse().unwrap()].into(),
        };
        let reason = |found: Option<(Reason, String)>| found.map(|(reason, _)| reason);
        assert_eq!(reason(revoked.issuer(&issuer("a", 5))), Some(Reason::NodeRevoked));
        assert_eq!(reason(revoked.issuer(&issuer("a", 1))), Some(Reason::NodeRevoked));
        assert_eq!(reason(revoked.issuer(&issuer("a", 6))), None);
        assert_eq!(reason(revoked.issuer(&issuer("b", 1))), None);
        assert_eq!(reason(revoked.workload(&"web".parse().unwrap())), Some(Reason::WorkloadRevoked));
        assert_eq!(reason(revoked.workload(&"web2".parse().unwrap())), None);
        assert_eq!(reason(revoked.serial("4a01")), Some(Reason::SerialRevoked));
        assert_eq!(reason(revoked.serial("4a02")), None);
        assert!(revoked.is_bounded() && revoked.len() == 3);
    }

    #[test]
    fn a_union_has_the_highest_number() {
        let of = |n, w: &str| Revoked {
            nodes: [("a".parse().unwrap(), n)].into(),
            workloads: [w.parse().unwrap()].into(),
            serials: BTreeSet::new(),
        };
        let both = of(5, "x").union(&of(3, "y"));
        assert_eq!((both.nodes.values().copied().collect::<Vec<_>>(), both.workloads.len()), (vec![5], 2));
    }
}
