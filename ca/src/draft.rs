//! What passes from the mint to the checker, so that the two know nothing of each other.

/// A signed certificate that was not checked yet.
pub(crate) struct Draft(Vec<u8>);

impl Draft {
    /// The bytes, for the checker only.
    pub(crate) fn der(&self) -> &[u8] {
        &self.0
    }

    /// What a signer made, or a test.
    pub(crate) fn of(der: Vec<u8>) -> Self {
        Self(der)
    }
}
