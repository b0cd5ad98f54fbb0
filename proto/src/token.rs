//! Join tokens: one secret that admits one node once, together with the root it may trust.
//!
//! Text: `bonafide-join-v1.` and, in base64url without padding, secret (32 bytes), root certificate (DER), checksum
//! (first 4 bytes of SHA-256 over text prefix, secret and root).
//!
//! The token carries the root certificate itself, not only its digest: so the joining node verifies the authority's
//! server exactly as it will ever after, through `TrustBundle`, and there is no second verifier that could be wrong.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::svid::CERTIFICATE_MAX;

const PREFIX: &str = "bonafide-join-v1.";
/// Bytes of a token's secret.
pub const SECRET_LEN: usize = 32;
const CHECKSUM_LEN: usize = 4;
/// The longest token text that is read, in bytes.
pub const TOKEN_TEXT_MAX: usize = 16 * 1024;

/// Why a text is no join token. Never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Another kind of text.
    #[error("this is no join token: it must start with {PREFIX:?}; `bonafide-ca token` makes one")]
    Prefix,
    /// Incomplete or mistyped.
    #[error("the join token is damaged: it was not copied whole")]
    Damaged,
    /// The random source failed.
    #[error("no secret: the system's random source failed")]
    Random,
}

/// The secret half of a token; wiped when dropped, shown to nobody.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; SECRET_LEN]>);

impl Secret {
    /// A new one.
    ///
    /// # Errors
    /// [`TokenError::Random`].
    pub fn generate() -> Result<Self, TokenError> {
        let mut bytes = Zeroizing::new([0; SECRET_LEN]);
        SystemRandom::new().fill(bytes.as_mut()).map_err(|_| TokenError::Random)?;
        Ok(Self(bytes))
    }

    /// The bytes, for the wire.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// What the authority's store keeps instead of it.
    #[must_use]
    pub fn id(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_ref()).into()
    }
}

impl TryFrom<&[u8]> for Secret {
    type Error = TokenError;
    fn try_from(bytes: &[u8]) -> Result<Self, TokenError> {
        Ok(Self(Zeroizing::new(bytes.try_into().map_err(|_| TokenError::Damaged)?)))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// A join token.
#[derive(Clone)]
pub struct JoinToken {
    secret: Secret,
    root: CertificateDer<'static>,
}

impl JoinToken {
    /// A token for this root.
    #[must_use]
    pub fn new(secret: Secret, root: CertificateDer<'static>) -> Self {
        Self { secret, root }
    }

    /// The secret that admits.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The only root to trust while joining.
    #[must_use]
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The text to hand to the node: a secret.
    #[must_use]
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut payload = Zeroizing::new(Vec::with_capacity(SECRET_LEN + self.root.len() + CHECKSUM_LEN));
        payload.extend_from_slice(self.secret.bytes());
        payload.extend_from_slice(&self.root);
        let checksum = checksum(&payload);
        payload.extend_from_slice(&checksum);
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + payload.len() * 4 / 3 + 4));
        text.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(payload.as_slice(), &mut text);
        text
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;
    /// White space around the token is ignored.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        if encoded.len() > TOKEN_TEXT_MAX {
            return Err(TokenError::Damaged);
        }
        let payload = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| TokenError::Damaged)?);
        let (body, sum) = payload.split_last_chunk::<CHECKSUM_LEN>().ok_or(TokenError::Damaged)?;
        let (secret, root) = body.split_first_chunk::<SECRET_LEN>().ok_or(TokenError::Damaged)?;
        if checksum(body) != *sum || root.is_empty() || root.len() > CERTIFICATE_MAX {
            return Err(TokenError::Damaged);
        }
        Ok(Self { secret: secret.as_slice().try_into()?, root: CertificateDer::from(root.to_vec()) })
    }
}

/// Finds mistakes of copying, nothing more: the secret is what proves.
fn checksum(body: &[u8]) -> [u8; CHECKSUM_LEN] {
    let digest: [u8; 32] = Sha256::new().chain_update(PREFIX).chain_update(body).finalize().into();
    digest.first_chunk().copied().unwrap_or_default()
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken::new(Secret::generate().unwrap(), CertificateDer::from(vec![7; 400]))
    }

    #[test]
    fn a_token_survives_the_round_trip() {
        let token = token();
        let read: JoinToken = format!("  {}\n", token.reveal().as_str()).parse().unwrap();
        assert_eq!(read.secret.bytes(), token.secret.bytes());
        assert_eq!(read.root, token.root);
    }

    #[test]
    fn a_token_that_is_too_long_is_refused_before_it_is_decoded() {
        // The root alone would be too large; and what is longer is not even looked through for what is no base64.
        let large = JoinToken::new(Secret::generate().unwrap(), CertificateDer::from(vec![7; CERTIFICATE_MAX + 1]));
        assert_eq!(large.reveal().parse::<JoinToken>().err(), Some(TokenError::Damaged));
        let million = format!("{PREFIX}{}", "!".repeat(1 << 20));
        assert_eq!(million.parse::<JoinToken>().err(), Some(TokenError::Damaged));
    }

    #[test]
    fn every_single_damaged_character_is_noticed() {
        let text = token().reveal();
        for at in PREFIX.len()..text.len() {
            let mut bytes = text.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let damaged = String::from_utf8(bytes).unwrap();
            assert_eq!(damaged.parse::<JoinToken>().err(), Some(TokenError::Damaged), "at {at}");
        }
        for cut in PREFIX.len()..text.len() {
            assert_eq!(text[..cut].parse::<JoinToken>().err(), Some(TokenError::Damaged), "cut at {cut}");
        }
    }

    #[test]
    fn other_texts_are_named_so() {
        for text in ["", "hello", "bonafide-join-v2.AAAA"] {
            assert_eq!(text.parse::<JoinToken>().err(), Some(TokenError::Prefix));
        }
    }

    #[test]
    fn nothing_shows_the_secret() {
        let token = token();
        assert_eq!(format!("{token:?} {:?}", token.secret()), "JoinToken(redacted) Secret(redacted)");
    }
}
