//! The trust bundle as others read it: a JWK set (SPIFFE_Trust_Domain_and_Bundle.md §4), roots and keys of tokens.
//!
//! There is no `spiffe_sequence`: it would have to change with every key, and nobody here counts those of tokens, which
//! follow from the time.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::jwt::JwtBundle;
use crate::svid::TrustBundle;

/// Who follows the bundle may ask again after so many seconds: keys are published a week before they are used.
const REFRESH_HINT: u32 = 3600;
const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const POINT_LEN: usize = 65;

/// A root is not one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a root certificate has no key of P-256")]
pub struct NotOurs;

/// The document.
///
/// # Errors
/// A root is not of the kind that an authority here has.
pub fn document(roots: &TrustBundle, tokens: &JwtBundle) -> Result<Value, NotOurs> {
    let roots = roots.roots().iter().map(authority).collect::<Result<Vec<Value>, NotOurs>>()?;
    let keys: Vec<Value> = roots.into_iter().chain(tokens.jwks()).collect();
    Ok(json!({ "keys": keys, "spiffe_refresh_hint": REFRESH_HINT }))
}

/// X509-SVID.md §6.1: no `kid`, and exactly one certificate.
fn authority(der: &CertificateDer<'_>) -> Result<Value, NotOurs> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| NotOurs)?;
    let key = certificate.public_key();
    let point = key.subject_public_key.data.as_ref();
    if key.algorithm.algorithm.to_id_string() != EC_PUBLIC_KEY || point.len() != POINT_LEN {
        return Err(NotOurs);
    }
    let half = |from: usize| URL_SAFE_NO_PAD.encode(point.get(from..from + 32).unwrap_or_default());
    let (x, y, x5c) = (half(1), half(33), [STANDARD.encode(der)]);
    Ok(json!({ "kty": "EC", "use": "x509-svid", "crv": "P-256", "x": x, "y": y, "x5c": x5c }))
}
