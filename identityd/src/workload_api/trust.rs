//! The trust bundle as programs are given it, of the last one that the CA told.

use bonafide_proto::jwt::{JwtBundle, JwtKey};
use bonafide_proto::name::TrustDomain;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::svid::TrustBundle;
use bonafide_proto::wire::node as wire;
use rustls::pki_types::CertificateDer;

/// The roots of our trust domain, and the keys of its tokens.
#[derive(Debug, Clone)]
pub(super) struct Trust {
    pub(super) roots: TrustBundle,
    pub(super) jwt: JwtBundle,
}

impl Trust {
    /// # Errors
    /// `no-intermediate` if the CA told none yet, `unavailable` if it makes no sense.
    pub(super) fn of(told: Option<&wire::Bundle>) -> Result<Self, AttestRefusal> {
        let Some(told) = told else {
            return Err(AttestRefusal::new(AttestReason::NoIntermediate, "the node's CA has told no trust bundle yet"));
        };
        let senseless =
            |why: String| AttestRefusal::new(AttestReason::Unavailable, format!("the CA's trust bundle: {why}"));
        let domain: TrustDomain = told.trust_domain.parse().map_err(|e| senseless(format!("its trust domain {e}")))?;
        let roots = told.roots.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let keys = told.jwt_keys.iter().cloned().map(JwtKey::new).collect::<Result<_, _>>();
        let jwt = keys.and_then(|keys| JwtBundle::new(domain.clone(), keys)).map_err(|e| senseless(e.to_string()))?;
        Ok(Self { roots: TrustBundle::new(domain, roots).map_err(|e| senseless(e.to_string()))?, jwt })
    }

    /// The SPIFFE ID of the trust domain, which has no path: what bundles are keyed by.
    pub(super) fn id(&self) -> String {
        format!("spiffe://{}", self.roots.trust_domain())
    }

    /// The roots one after the other.
    pub(super) fn der(&self) -> Vec<u8> {
        self.roots.roots().iter().flat_map(|root| root.iter().copied()).collect()
    }
}
