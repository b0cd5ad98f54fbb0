//! A leaf certificate with its key, and the trust it is checked against.
//!
//! A [`Leaf`] can only be made from what the product's own verifier accepts, in the name it was asked for.

use std::fmt;
use std::sync::Arc;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::name::SpiffeId;
use bonafide_proto::svid::{Expect, PeerSvid, SvidError, TrustBundle};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

/// Whom to trust, and what time it is.
#[derive(Debug, Clone)]
pub struct Trust {
    /// The roots of our trust domain.
    pub bundle: TrustBundle,
    /// The time by which certificates are judged.
    pub clock: SharedClock,
}

impl Trust {
    pub(super) fn now(&self) -> UnixTime {
        UnixTime::since_unix_epoch(self.clock.now())
    }
}

/// Why a new certificate is not fit to be shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// Our own verifier refuses it.
    #[error("our own verifier refuses it: {0}")]
    Svid(#[from] SvidError),
    /// It names another workload.
    #[error("it names {seen}, but {wanted} was asked for")]
    Name {
        /// Whom it names.
        seen: SpiffeId,
        /// Whom it should name.
        wanted: SpiffeId,
    },
    /// The private key does not fit the certificate, or is none.
    #[error("it does not belong to our key: {0}")]
    Key(String),
}

/// What is shown of a program, to be kept with its flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Showing {
    /// What the other end learns from it.
    pub(crate) svid: Arc<PeerSvid>,
    /// Time for the next one, unix seconds.
    pub(crate) half_life: i64,
}

/// What one end shows of itself: a chain, its key, and what the chain proves.
///
/// Debug output holds no key.
pub struct Leaf {
    certified: Arc<CertifiedKey>,
    svid: Arc<PeerSvid>,
    half_life: i64,
}

impl Leaf {
    /// Checks a fresh chain (leaf first) against the trust it will meet, the name that was asked for, and the key.
    ///
    /// # Errors
    /// The first check that fails; nothing of it may be shown then.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        wanted: &SpiffeId,
        trust: &Trust,
    ) -> Result<Self, LeafError> {
        let key = Zeroizing::new(key);
        let svid = trust.bundle.verify(&chain, trust.now(), Expect::Workload)?;
        if svid.id() != wanted {
            return Err(LeafError::Name { seen: svid.id().clone(), wanted: wanted.clone() });
        }
        let signer = any_supported_type(&key).map_err(|e| LeafError::Key(e.to_string()))?;
        let certified = CertifiedKey::new(chain, signer);
        certified.keys_match().map_err(|e| LeafError::Key(e.to_string()))?;
        let now = trust.clock.unix();
        let half_life = now + (svid.not_after() - now) / 2;
        Ok(Self { certified: Arc::new(certified), svid: Arc::new(svid), half_life })
    }

    /// Whom it names.
    #[must_use]
    pub fn workload(&self) -> &SpiffeId {
        self.svid.id()
    }

    /// What a peer learns from it.
    #[must_use]
    pub fn svid(&self) -> &PeerSvid {
        &self.svid
    }

    /// The same, to be kept.
    pub(crate) fn shown(&self) -> Showing {
        Showing { svid: Arc::clone(&self.svid), half_life: self.half_life }
    }

    /// Expiry, unix seconds.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.svid.not_after()
    }

    /// When half of the life it had when it was made is over, unix seconds: time for the next one.
    #[must_use]
    pub fn half_life(&self) -> i64 {
        self.half_life
    }

    /// Chain and key, as rustls takes them.
    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

#[cfg(test)]
impl Leaf {
    /// The same, but another chain is shown, unchecked.
    #[allow(clippy::unwrap_used, reason = "tests only")]
    pub(super) fn showing(self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        let certified = CertifiedKey::new(chain, any_supported_type(&key).unwrap());
        Self { certified: Arc::new(certified), ..self }
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("svid", &self.svid).field("half_life", &self.half_life).finish_non_exhaustive()
    }
}
