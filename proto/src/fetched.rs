//! What a client makes of the Workload API's answers (SPIFFE_Workload_API.md §5.2.1): an X.509-SVID that was held against the
//! very bundle that came with it, or why it is none.

use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::svid::{CERTIFICATE_MAX, Expect, PeerSvid, SvidError, TrustBundle};
use crate::wire::workload_endpoint::X509svidResponse;

/// The most certificates of one chain or bundle that are read.
const CERTIFICATES_MAX: usize = 64;

/// An SVID with its key and whom to trust.
pub struct FetchedSvid {
    /// Whom it names, and until when.
    pub svid: PeerSvid,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8 DER.
    pub key: Zeroizing<Vec<u8>>,
    /// Of its trust domain.
    pub roots: Vec<CertificateDer<'static>>,
}

impl std::fmt::Debug for FetchedSvid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FetchedSvid").field("svid", &self.svid).finish_non_exhaustive()
    }
}

impl FetchedSvid {
    /// The first of an answer, which is the default identity.
    ///
    /// # Errors
    /// There is none, or it is not what it should be.
    pub fn of(answer: X509svidResponse, clock: &dyn Clock) -> Result<Self, SvidError> {
        let told = answer.svids.into_iter().next().ok_or(SvidError::Missing)?;
        let (chain, roots) = (concatenated(&told.x509_svid)?, concatenated(&told.bundle)?);
        let id: crate::name::SpiffeId = told.spiffe_id.parse().map_err(|e| SvidError::SpiffeId(format!("{e}")))?;
        let trust = TrustBundle::new(id.trust_domain().clone(), roots.clone())?;
        let svid = trust.verify(&chain, UnixTime::since_unix_epoch(clock.now()), Expect::Workload)?;
        if *svid.id() != id {
            return Err(SvidError::WrongKind(svid.id().clone(), "whom the answer says that it names"));
        }
        Ok(Self { svid, chain, key: Zeroizing::new(told.x509_svid_key), roots })
    }
}

/// The certificates that stand one after the other, without anything between them.
///
/// # Errors
/// One is too large, or none; or there are too many.
pub fn concatenated(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, SvidError> {
    if der.len() > CERTIFICATES_MAX * CERTIFICATE_MAX {
        return Err(SvidError::TooLarge);
    }
    let mut all = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).map_err(|e| SvidError::Malformed(e.to_string()))?;
        let one = der.get(..der.len() - rest.len()).unwrap_or_default();
        if one.len() > CERTIFICATE_MAX || all.len() == CERTIFICATES_MAX {
            return Err(SvidError::TooLarge);
        }
        all.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Ok(all)
}
