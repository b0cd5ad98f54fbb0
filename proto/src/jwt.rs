//! JWT-SVIDs: tokens that name a workload to whoever its audience is, and the keys by which they are checked.
//!
//! Rules: JWT-SVID.md §2 (compact serialization; `alg`, `kid` and `typ` and no other header), §3 (`sub`, `aud`, `exp`), §6
//! (keys in a bundle). Only ES256 is signed and accepted: the keys of a trust domain are its authority's, all of one kind,
//! and an algorithm that is chosen by who shows a token is a choice too many.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::fingerprint::Digest;
use crate::json;
use crate::name::{NameError, SpiffeId, TrustDomain};

/// The longest token that is looked at, in bytes.
pub const TOKEN_MAX: usize = 16 << 10;
/// The most audiences of one token.
pub const AUDIENCES_MAX: usize = 16;
/// The longest audience, in bytes.
pub const AUDIENCE_MAX: usize = 512;
/// The most keys of one trust domain.
pub const KEYS_MAX: usize = 16;
/// The longest that is told of a header that is none, in characters.
const SHOWN_MAX: usize = 200;
/// Clocks may differ by so many seconds.
const LEEWAY: f64 = 30.0;
/// An uncompressed point of P-256 (SEC 1 §2.3.3): 4, x, y.
const POINT_LEN: usize = 65;

/// Why a token proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Refused before anything is decoded.
    #[error("the token has {0} bytes; at most {TOKEN_MAX} are read")]
    TooLarge(usize),
    /// Not three parts of base64url (JWS compact serialization).
    #[error("the token is not three parts of base64url, joined by dots")]
    Compact,
    /// Another header than those that a JWT-SVID may have, or no object.
    #[error("the token's header is not one of a JWT-SVID: {0}")]
    Header(String),
    /// Anything but ES256.
    #[error("the token is signed by {0:?}; ES256 is accepted")]
    Algorithm(String),
    /// Its key is not in the bundle.
    #[error("no key of trust domain {0} has the token's kid")]
    Key(TrustDomain),
    /// Not by that key.
    #[error("the token's signature is not of its key")]
    Signature,
    /// A claim is missing, or not what it should be.
    #[error("the token's claims: {0}")]
    Claims(&'static str),
    /// The subject is no SPIFFE ID.
    #[error("the token's subject {0}")]
    Subject(#[from] NameError),
    /// Of another trust domain.
    #[error("the token is of trust domain {0}, whose keys are not known here")]
    TrustDomain(TrustDomain),
    /// For somebody else.
    #[error("the token is not for that audience")]
    Audience,
    /// Too late.
    #[error("the token has expired")]
    Expired,
    /// Too early.
    #[error("the token is not valid yet")]
    NotYetValid,
}

/// A key that is none, or an audience that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

/// A public key of P-256, known by its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtKey {
    point: Vec<u8>,
}

impl JwtKey {
    /// A key of its uncompressed point.
    ///
    /// # Errors
    /// It is no such point by its length and first byte.
    pub fn new(point: Vec<u8>) -> Result<Self, Malformed> {
        if point.len() == POINT_LEN && point.first() == Some(&4) {
            return Ok(Self { point });
        }
        Err(Malformed("a key of JWTs is not an uncompressed point of P-256"))
    }

    /// Its uncompressed point.
    #[must_use]
    pub fn point(&self) -> &[u8] {
        &self.point
    }

    /// By what tokens name it.
    #[must_use]
    pub fn kid(&self) -> String {
        let Digest(digest) = Digest::of(&self.point);
        BASE64.encode(digest.get(..16).unwrap_or_default())
    }

    fn jwk(&self) -> Value {
        let half = |from: usize| BASE64.encode(self.point.get(from..from + 32).unwrap_or_default());
        let (x, y) = (half(1), half(33));
        json!({ "kty": "EC", "use": "jwt-svid", "kid": self.kid(), "crv": "P-256", "x": x, "y": y })
    }
}

/// The keys of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtBundle {
    trust_domain: TrustDomain,
    keys: Vec<JwtKey>,
}

/// What a token proves.
#[derive(Debug, Clone, PartialEq)]
pub struct Proven {
    /// Whom it names.
    pub id: SpiffeId,
    /// When it expires, unix seconds.
    pub expires: i64,
    /// All that it says.
    pub claims: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: String,
    typ: Option<String>,
}

impl JwtBundle {
    /// The keys of this trust domain.
    ///
    /// # Errors
    /// There are too many.
    pub fn new(trust_domain: TrustDomain, keys: Vec<JwtKey>) -> Result<Self, Malformed> {
        if keys.len() > KEYS_MAX {
            return Err(Malformed("a trust domain has too many keys of JWTs"));
        }
        Ok(Self { trust_domain, keys })
    }

    /// Whose keys they are.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// As JWKs (RFC 7517), each with `use` and `kid`.
    pub fn jwks(&self) -> impl Iterator<Item = Value> + '_ {
        self.keys.iter().map(JwtKey::jwk)
    }

    /// What a token proves to this audience at that time, unix seconds.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn verify(&self, token: &str, audience: &str, now: i64) -> Result<Proven, JwtError> {
        if token.len() > TOKEN_MAX {
            return Err(JwtError::TooLarge(token.len()));
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::Compact)?;
        let (header, payload) = signed.split_once('.').ok_or(JwtError::Compact)?;
        let (header, payload, signature) = (decoded(header)?, decoded(payload)?, decoded(signature)?);
        let key = self.key(&header)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.point())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| JwtError::Signature)?;
        self.claims(&payload, audience, now)
    }

    fn key(&self, header: &[u8]) -> Result<&JwtKey, JwtError> {
        let header: Header = serde_json::from_slice(header).map_err(|e| JwtError::Header(shown(&e)))?;
        if header.typ.as_deref().is_some_and(|typ| typ != "JWT" && typ != "JOSE") {
            return Err(JwtError::Header("its typ is neither JWT nor JOSE".to_owned()));
        }
        if header.alg != "ES256" {
            return Err(JwtError::Algorithm(header.alg.chars().take(16).collect()));
        }
        let key = self.keys.iter().find(|key| key.kid() == header.kid);
        key.ok_or_else(|| JwtError::Key(self.trust_domain.clone()))
    }

    fn claims(&self, payload: &[u8], audience: &str, now: i64) -> Result<Proven, JwtError> {
        let Ok(Value::Object(claims)) = json::parse(payload) else {
            return Err(JwtError::Claims("they are no JSON object in which every name stands once"));
        };
        let subject = claims.get("sub").and_then(Value::as_str).ok_or(JwtError::Claims("sub is missing"))?;
        let id: SpiffeId = subject.parse()?;
        if *id.trust_domain() != self.trust_domain {
            return Err(JwtError::TrustDomain(id.trust_domain().clone()));
        }
        let expires = claims.get("exp").and_then(Value::as_f64).ok_or(JwtError::Claims("exp is missing"))?;
        #[allow(clippy::cast_precision_loss, reason = "of this century's seconds none is lost")]
        let now = now as f64;
        if expires + LEEWAY < now {
            return Err(JwtError::Expired);
        }
        if claims.get("nbf").is_some_and(|nbf| nbf.as_f64().is_none_or(|nbf| nbf > now + LEEWAY)) {
            return Err(JwtError::NotYetValid);
        }
        match claims.get("aud") {
            Some(Value::String(one)) if one == audience => {}
            Some(Value::Array(several)) if several.iter().any(|one| one.as_str() == Some(audience)) => {}
            Some(Value::String(_) | Value::Array(_)) => return Err(JwtError::Audience),
            _ => return Err(JwtError::Claims("aud is missing")),
        }
        #[allow(clippy::cast_possible_truncation, reason = "it saturates")]
        Ok(Proven { id, expires: expires as i64, claims })
    }
}

/// What is signed of a token; its signature, in base64url, follows after a dot.
#[must_use]
pub fn signed_part(key: &JwtKey, id: &SpiffeId, audiences: &[String], (issued, expires): (i64, i64)) -> String {
    let header = json!({ "alg": "ES256", "kid": key.kid(), "typ": "JWT" });
    let claims = json!({ "sub": id, "aud": audiences, "exp": expires, "iat": issued });
    format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()))
}

/// A whole token.
#[must_use]
pub fn joined(signed: &str, signature: &[u8]) -> String {
    format!("{signed}.{}", BASE64.encode(signature))
}

/// Whether a token may be for these.
///
/// # Errors
/// What is wrong with them.
pub fn check_audiences(audiences: &[String]) -> Result<(), Malformed> {
    if audiences.is_empty() || audiences.len() > AUDIENCES_MAX {
        return Err(Malformed("a JWT-SVID is for one to 16 audiences"));
    }
    if audiences.iter().any(|audience| audience.is_empty() || audience.len() > AUDIENCE_MAX) {
        return Err(Malformed("an audience has 1 to 512 bytes"));
    }
    Ok(())
}

/// What is wrong may repeat what whoever made the token wrote.
fn shown(e: &serde_json::Error) -> String {
    e.to_string().chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect()
}

fn decoded(part: &str) -> Result<Vec<u8>, JwtError> {
    BASE64.decode(part).map_err(|_| JwtError::Compact)
}
