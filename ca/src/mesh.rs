//! What every member of the mesh must know: the digests in quarantine, and what is revoked. Numbered, whole, and never told in parts.

use std::collections::BTreeSet;

use bonafide_proto::convert::Malformed;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::revoked::Revoked;
use bonafide_proto::wire::authority as wire;

/// The most digests in quarantine.
pub const QUARANTINE_MAX: usize = 4096;

/// What the authority tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MeshState {
    /// Counts the changes.
    pub sequence: u64,
    /// Digests of executables, scripts, libraries and images that nobody may run as anybody.
    pub quarantine: BTreeSet<Digest>,
    /// Certificates that were taken back.
    pub revoked: Revoked,
    /// It is from a backup, and nobody has said yet that it lacks nothing: so it lifts nothing.
    pub restored: bool,
}

/// What a node says about the states it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// The number of the last state that was told and is in force.
    pub told: u64,
    /// The number that the node goes by: a later one if its authority was restored from a backup.
    pub holds: u64,
    /// The number of the roots that are in force there; said at the beginning.
    pub roots: u64,
}

impl Held {
    /// Whether a change of this number is in force there: a digest that was added, or one that was lifted.
    #[must_use]
    pub fn has(self, change: u64, added: bool) -> bool {
        // What the authority told is always added; see [`MeshState::told`] for what is not lifted.
        self.told >= change && (added || self.holds <= self.told)
    }
}

/// The authority told something that is no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the state of the mesh {0}")]
pub struct MalformedState(String);

impl MeshState {
    /// What holds once the authority, now, says this.
    ///
    /// An authority that knows less than before was restored from a backup: nothing is lifted on its word until it
    /// has passed the number that this node knows, and its operator has said that it lacks nothing.
    pub(crate) fn told(&self, now: &Self) -> Self {
        if now.sequence > self.sequence && !now.restored {
            return now.clone();
        }
        Self {
            restored: false,
            sequence: self.sequence,
            quarantine: self.quarantine.union(&now.quarantine).copied().collect(),
            revoked: self.revoked.union(&now.revoked),
        }
    }
}

impl From<&MeshState> for wire::MeshState {
    fn from(state: &MeshState) -> Self {
        let quarantine = state.quarantine.iter().map(|digest| digest.0.to_vec()).collect();
        let revoked = Some((&state.revoked).into());
        Self { sequence: state.sequence, quarantine, revoked, restored: state.restored, roots: None }
    }
}

impl TryFrom<wire::MeshState> for MeshState {
    type Error = MalformedState;
    fn try_from(wire: wire::MeshState) -> Result<Self, MalformedState> {
        if wire.quarantine.len() > QUARANTINE_MAX {
            return Err(MalformedState(format!("has more than {QUARANTINE_MAX} digests in quarantine")));
        }
        let digest = |bytes: &Vec<u8>| Digest::try_from(bytes.as_slice());
        let quarantine = wire.quarantine.iter().map(digest).collect::<Result<_, _>>();
        let quarantine = quarantine.map_err(|_| MalformedState("names a digest that is not 32 bytes".to_owned()))?;
        let revoked = wire.revoked.map(TryInto::try_into).transpose();
        let revoked =
            revoked.map_err(|Malformed(why)| MalformedState(format!("is malformed: {why}")))?.unwrap_or_default();
        Ok(Self { sequence: wire.sequence, quarantine, revoked, restored: wire.restored })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(sequence: u64, digests: &[u8]) -> MeshState {
        let revoked = Revoked { nodes: [("a".parse().unwrap(), sequence)].into(), ..Revoked::default() };
        let quarantine = digests.iter().map(|n| Digest([*n; 32])).collect();
        MeshState { sequence, revoked, quarantine, restored: false }
    }

    #[test]
    fn a_later_state_replaces_and_an_earlier_one_lifts_nothing() {
        let known = state(5, &[1, 2]);
        assert_eq!(known.told(&state(6, &[2])), state(6, &[2]));
        assert_eq!(known.told(&known), known);
        assert_eq!(known.told(&state(3, &[3])), state(5, &[1, 2, 3]));
        assert_eq!(known.told(&state(5, &[])), known);
        let restored = MeshState { restored: true, ..state(9, &[3]) };
        let both = known.told(&restored);
        assert_eq!((both.sequence, both.quarantine.len(), both.restored), (5, 3, false));
        assert_eq!(both.told(&state(10, &[3])), state(10, &[3]));
    }

    #[test]
    fn a_node_that_knows_more_than_its_authority_has_lifted_nothing() {
        let even = Held { told: 5, holds: 5, roots: 1 };
        assert!(even.has(5, true) && even.has(4, false) && !even.has(6, true) && !even.has(6, false));
        let ahead = Held { told: 5, holds: 9, roots: 1 };
        assert!(ahead.has(5, true) && !ahead.has(5, false) && !ahead.has(6, true));
    }

    #[test]
    fn what_is_told_is_understood_and_malformed_digests_are_refused() {
        let wire = wire::MeshState::from(&state(7, &[1, 2]));
        assert_eq!(wire.clone().try_into(), Ok(state(7, &[1, 2])));
        let short = wire::MeshState { quarantine: vec![vec![1; 31]], ..wire.clone() };
        assert!(MeshState::try_from(short).is_err());
        let many = wire::MeshState { quarantine: vec![vec![1; 32]; QUARANTINE_MAX + 1], ..wire };
        assert!(MeshState::try_from(many).is_err());
    }
}
