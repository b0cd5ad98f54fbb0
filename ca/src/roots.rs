//! The roots of the trust domain as every member knows them. Numbered, whole, and never replaced by older ones.

use rustls::pki_types::CertificateDer;

use bonafide_proto::wire::authority as wire;

/// The most roots that are taken.
pub(crate) const ROOTS_MAX: usize = 16;

/// What the authority tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// Counts the changes.
    pub sequence: u64,
    /// The certificates; the first is the one by which the authority certifies.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// Why roots that were told are not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootsRefusal {
    /// They were replaced since.
    #[error("older-roots: they have number {seen}, and {known} was known before")]
    Older {
        /// Their number.
        seen: u64,
        /// The highest one known.
        known: u64,
    },
    /// They are others under a number that was used.
    #[error("changed-roots: they are others under the number {0} than were known before")]
    Changed(u64),
    /// They cannot be the roots of this trust domain.
    #[error("wrong-roots: {0}")]
    Wrong(String),
}

impl Roots {
    /// Whether they are later ones than those that are known; false: they are the same.
    ///
    /// # Errors
    /// They are earlier ones, or others of that number.
    pub fn succeed(&self, sequence: u64, known: &[CertificateDer<'static>]) -> Result<bool, RootsRefusal> {
        match self.sequence.cmp(&sequence) {
            std::cmp::Ordering::Greater => Ok(true),
            std::cmp::Ordering::Equal if self.certificates == known => Ok(false),
            std::cmp::Ordering::Equal => Err(RootsRefusal::Changed(sequence)),
            std::cmp::Ordering::Less => Err(RootsRefusal::Older { seen: self.sequence, known: sequence }),
        }
    }
}

impl From<&Roots> for wire::Roots {
    fn from(roots: &Roots) -> Self {
        let certificates = roots.certificates.iter().map(|root| root.to_vec()).collect();
        Self { sequence: roots.sequence, certificates }
    }
}

impl From<wire::Roots> for Roots {
    fn from(wire: wire::Roots) -> Self {
        // One more than is taken, so that too many are noticed.
        let certificates = wire.certificates.into_iter().take(ROOTS_MAX + 1).map(Into::into).collect();
        Self { sequence: wire.sequence, certificates }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_roots_replace_earlier_ones_and_nothing_else_does() {
        let certificate = |n: u8| CertificateDer::from(vec![n]);
        let roots =
            |sequence, all: &[u8]| Roots { sequence, certificates: all.iter().map(|n| certificate(*n)).collect() };
        let known = [certificate(1), certificate(2)];
        assert_eq!(roots(6, &[2]).succeed(5, &known), Ok(true));
        assert_eq!(roots(5, &[1, 2]).succeed(5, &known), Ok(false));
        assert_eq!(roots(5, &[2, 1]).succeed(5, &known), Err(RootsRefusal::Changed(5)));
        assert_eq!(roots(4, &[1, 2]).succeed(5, &known), Err(RootsRefusal::Older { seen: 4, known: 5 }));
    }
}
