//! Certificate requests (PKCS#10): what is asked for is only that *this key* be certified; every name inside is ignored.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

/// The largest request that is parsed, in bytes.
pub const CSR_MAX: usize = 4096;

/// Uncompressed P-256 points have this many bytes (SEC 1 §2.3.3).
const POINT_LEN: usize = 65;

/// What stands before the point of a P-256 key in its SubjectPublicKeyInfo (RFC 5480 §2), in DER.
const BEFORE_POINT: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Refused before parsing.
    #[error("the certificate request has {0} bytes; at most {CSR_MAX} are read")]
    TooLarge(usize),
    /// Not DER PKCS#10.
    #[error("the certificate request cannot be parsed: {0}")]
    Malformed(String),
    /// Another kind of key.
    #[error("the certificate request is for {0}; only P-256 keys with ECDSA and SHA-256 are certified")]
    Algorithm(String),
    /// The requester does not hold the key.
    #[error("the certificate request is not signed by the key it names")]
    Signature,
    /// There is none in a file.
    #[error("{}: {why}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The request could not be built.
    #[error("no certificate request could be built: {0}")]
    Build(String),
}

/// A P-256 public key whose holder proved possession.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    point: Vec<u8>,
    spki: Vec<u8>,
}

impl PublicKey {
    /// The key of a request in DER.
    ///
    /// # Errors
    /// The first rule the request breaks.
    pub fn of_csr(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > CSR_MAX {
            return Err(CsrError::TooLarge(der.len()));
        }
        let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|e| CsrError::Malformed(e.to_string()))?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed("bytes after the request".into()));
        }
        let point = p256_point(&csr)?;
        csr.verify_signature().map_err(|_| CsrError::Signature)?;
        Ok(Self { point, spki: csr.certification_request_info.subject_pki.raw.to_vec() })
    }

    /// SubjectPublicKeyInfo in DER, as it stood in the request.
    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }
}

/// The point of a P-256 key, and nothing else: one kind of key is one thing to get right.
fn p256_point(csr: &X509CertificationRequest<'_>) -> Result<Vec<u8>, CsrError> {
    const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
    const PRIME256V1: &str = "1.2.840.10045.3.1.7";
    const ECDSA_WITH_SHA256: &str = "1.2.840.10045.4.3.2";
    let key = &csr.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok()).map(|o| o.to_id_string());
    let key_type = key.algorithm.algorithm.to_id_string();
    let signature = csr.signature_algorithm.algorithm.to_id_string();
    let point = key.subject_public_key.data.as_ref();
    let right = key_type == EC_PUBLIC_KEY
        && curve.as_deref() == Some(PRIME256V1)
        && signature == ECDSA_WITH_SHA256
        && point.len() == POINT_LEN;
    if !right {
        return Err(CsrError::Algorithm(format!(
            "key {key_type} ({}) signed by {signature}",
            curve.unwrap_or_default()
        )));
    }
    // The parser reads more than DER; a key has one spelling, by which it is compared.
    if key.raw.strip_prefix(&BEFORE_POINT) != Some(point) {
        return Err(CsrError::Malformed("the key is not in DER".into()));
    }
    Ok(point.to_vec())
}

/// The request, DER, in a file that has one in PEM.
///
/// # Errors
/// [`CsrError::File`], or it is too large.
pub fn read(path: &Path) -> Result<Vec<u8>, CsrError> {
    use std::io::Read as _;
    let failed = |why: &dyn std::fmt::Display| CsrError::File { path: path.to_owned(), why: why.to_string() };
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| failed(&e))?;
    file.take(2 * CSR_MAX as u64).read_to_end(&mut text).map_err(|e| failed(&e))?;
    let request = CertificateSigningRequestDer::from_pem_slice(&text);
    request.map(|request| request.to_vec()).map_err(|_| failed(&"there is no certificate request in it, in PEM"))
}

/// A request for this key, without any name: the authority decides those.
///
/// # Errors
/// [`CsrError::Build`] if signing fails.
pub fn request(key: &impl rcgen::SigningKey) -> Result<Vec<u8>, CsrError> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let csr = params.serialize_request(key).map_err(|e| CsrError::Build(e.to_string()))?;
    Ok(csr.der().to_vec())
}

impl rcgen::PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKey({})", hex::encode(&self.point))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;

    #[test]
    fn a_request_proves_its_key() {
        let key = Key::generate().unwrap();
        let public = PublicKey::of_csr(&request(&key).unwrap()).unwrap();
        assert_eq!(rcgen::PublicKeyData::der_bytes(&public), rcgen::PublicKeyData::der_bytes(&key));
    }

    #[test]
    fn an_oversized_request_is_refused_by_its_length_before_parsing() {
        assert_eq!(PublicKey::of_csr(&[0x30; CSR_MAX + 1]), Err(CsrError::TooLarge(CSR_MAX + 1)));
        // Also one that begins as a good one does; shorter by enough, it would be read to the bytes that are too many.
        let good = request(&Key::generate().unwrap()).unwrap();
        let padded = |length: usize| [good.clone(), vec![0; length]].concat();
        assert_eq!(PublicKey::of_csr(&padded(1 << 20)), Err(CsrError::TooLarge(good.len() + (1 << 20))));
        assert!(matches!(PublicKey::of_csr(&padded(1)), Err(CsrError::Malformed(_))));
    }

    #[test]
    fn garbage_and_trailing_bytes_are_refused() {
        assert!(matches!(PublicKey::of_csr(b""), Err(CsrError::Malformed(_))));
        let mut der = request(&Key::generate().unwrap()).unwrap();
        der.push(0);
        assert!(matches!(PublicKey::of_csr(&der), Err(CsrError::Malformed(_))));
    }

    #[test]
    fn a_request_signed_by_another_key_is_refused() {
        let der = request(&Key::generate().unwrap()).unwrap();
        let other = request(&Key::generate().unwrap()).unwrap();
        let (_, parsed) = X509CertificationRequest::from_der(&der).unwrap();
        let (_, parsed_other) = X509CertificationRequest::from_der(&other).unwrap();
        let point = parsed.certification_request_info.subject_pki.subject_public_key.data.to_vec();
        let forged = parsed_other.certification_request_info.subject_pki.subject_public_key.data.to_vec();
        let at = der.windows(point.len()).position(|w| w == point).unwrap();
        let mut swapped = der.clone();
        swapped[at..at + forged.len()].copy_from_slice(&forged);
        assert_eq!(PublicKey::of_csr(&swapped), Err(CsrError::Signature));
    }

    #[test]
    fn other_kinds_of_keys_are_refused() {
        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
            assert!(matches!(PublicKey::of_csr(csr.der()), Err(CsrError::Algorithm(_))));
        }
    }
}
