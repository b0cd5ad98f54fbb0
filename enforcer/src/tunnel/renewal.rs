//! A later certificate of a program, shown to the other end of an open stream: whoever shows it proves that it holds the
//! key, in this session and from this end. A proof is of no use in another session, or in the other direction.
//!
//! The signature is over [`LABEL`], 32 bytes that TLS exports for this session and this end (RFC 8446 §7.5), and the leaf.
//! TLS 1.3 itself has no such thing: its authentication after the handshake is for clients alone, and rustls has none.

use bonafide_proto::svid::{Expect, PeerSvid, SvidError, signed_by};
use bytes::Bytes;
use rustls::SignatureScheme;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use super::error::TunnelError;
use super::leaf::{Leaf, Trust};

/// The largest signature, in bytes: ECDSA with P-256 needs 72.
pub const SIGNATURE_MAX: usize = 128;
/// What the session exports for this, and what stands before all that is signed.
pub(super) const LABEL: &[u8] = b"EXPORTER-bonafide/1 renewal";
/// So many renewals may come at once; each costs several checks of signatures.
const AT_ONCE: u32 = 32;
/// Beyond these, one in so many seconds.
const PACE: u64 = 5;

/// A later certificate, as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// Leaf first, the node's intermediate, and what stands between that and the root, if something does.
    pub chain: Vec<CertificateDer<'static>>,
    /// By the leaf's key.
    pub signature: Bytes,
}

/// What a proof is bound to: one session, one end of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Binding(pub(super) [u8; 32]);

impl Binding {
    fn message(&self, leaf: &[u8]) -> Vec<u8> {
        [LABEL, &self.0, leaf].concat()
    }

    /// Shows `leaf` as this end.
    pub(super) fn show(&self, leaf: &Leaf) -> Result<Renewal, TunnelError> {
        let certified = leaf.certified();
        let [first, _, ..] = certified.cert.as_slice() else {
            return Err(TunnelError::Protocol("our renewed certificate is no leaf with its intermediate".into()));
        };
        let signer = certified.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
        let signature = signer.and_then(|signer| signer.sign(&self.message(first)).ok());
        let signature = signature.ok_or_else(|| TunnelError::Protocol("our renewed key does not sign".into()))?;
        Ok(Renewal { chain: certified.cert.clone(), signature: signature.into() })
    }
}

/// A later certificate that the other end showed; nothing of it was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub(super) renewal: Renewal,
    pub(super) binding: Binding,
}

impl Shown {
    /// Whom it names, proven as in a handshake: chain, times, and that the other end holds the key.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn prove(&self, trust: &Trust) -> Result<PeerSvid, SvidError> {
        let Renewal { chain, signature } = &self.renewal;
        let svid = trust.bundle.verify(chain, trust.now(), Expect::Workload)?;
        let leaf = chain.first().ok_or(SvidError::Missing)?;
        signed_by(leaf, &self.binding.message(leaf), signature)?;
        Ok(svid)
    }
}

/// How many renewals the other end may still show.
#[derive(Debug)]
pub(super) struct Allowance {
    left: u32,
    since: Instant,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { left: AT_ONCE, since: Instant::now() }
    }
}

impl Allowance {
    /// One more.
    pub(super) fn take(&mut self) -> Result<(), TunnelError> {
        let earned = self.since.elapsed().as_secs() / PACE;
        if earned > 0 {
            self.left = self.left.saturating_add(u32::try_from(earned).unwrap_or(AT_ONCE)).min(AT_ONCE);
            self.since = Instant::now();
        }
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => return Err(TunnelError::Protocol("more renewed certificates than anybody needs".into())),
        }
        Ok(())
    }
}
