//! Signs what a template says. The result is a draft: nobody gets it before the checker saw it.

use rcgen::{CertificateParams, Issuer, PublicKeyData, SigningKey};

use crate::draft::Draft;
use crate::order::Holder;
use crate::template;

/// Why nothing was built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The random source failed.
    #[error("no serial number: the system's random source failed")]
    Random,
    /// A time that X.509 cannot write.
    #[error("{0} is no time that a certificate can carry")]
    Time(i64),
    /// A SPIFFE ID that is not ASCII; typed names make it impossible.
    #[error("the SPIFFE ID is not ASCII")]
    Uri,
    /// The library failed to sign.
    #[error("signing failed: {0}")]
    Sign(String),
}

/// Signs `params` for `subject_key` in the name of `holder`.
pub(crate) fn sign(
    params: &CertificateParams,
    subject_key: &impl PublicKeyData,
    holder: &Holder,
    key: &impl SigningKey,
) -> Result<Draft, MintError> {
    let mut named = CertificateParams::default();
    named.distinguished_name = template::subject(holder);
    draft(params.signed_by(subject_key, &Issuer::new(named, key)))
}

/// Signs `params` by the key they are about.
pub(crate) fn self_sign(params: &CertificateParams, key: &impl SigningKey) -> Result<Draft, MintError> {
    draft(params.self_signed(key))
}

fn draft(signed: Result<rcgen::Certificate, rcgen::Error>) -> Result<Draft, MintError> {
    signed.map(|c| Draft::of(c.der().to_vec())).map_err(|e| MintError::Sign(e.to_string()))
}
