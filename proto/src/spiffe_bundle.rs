//! The trust bundle as others read and write it: a JWK set (SPIFFE_Trust_Domain_and_Bundle.md §4, RFC 7517) of roots and of
//! keys of tokens. Bounded before it is parsed; what the standards have ignored is ignored, and any other doubt is a refusal
//! of the whole document.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::CertificateDer;
use serde_json::{Map, Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::json;
use crate::jwt::JwtBundle;
use crate::svid::{CERTIFICATE_MAX, TrustBundle};

/// The largest document that is read, in bytes.
pub const DOCUMENT_MAX: usize = 1 << 20;
/// The most keys that one has.
pub const KEYS_MAX: usize = 256;
/// Who follows our bundle may ask again after so many seconds: keys are published a week before they are used.
pub const REFRESH_HINT: u64 = 3600;

const X509_SVID: &str = "x509-svid";
const JWT_SVID: &str = "jwt-svid";
/// Smaller ones are none (RFC 7518 §3.3).
const RSA_MIN: usize = 2048 / 8;
/// And larger ones cost more to check than a token is worth.
const RSA_MAX: usize = 8192 / 8;

/// Why a document is no bundle, or a root cannot stand in one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Refused before anything is parsed.
    #[error("the bundle has {0} bytes; at most {DOCUMENT_MAX} are read")]
    TooLarge(usize),
    /// No JSON, or a name stands twice.
    #[error("the bundle is not JSON in which every name stands once: {0}")]
    Json(String),
    /// §4.1.3: without them it is no bundle; that there is none has to be said.
    #[error("the bundle has no array \"keys\"; one that distrusts all keys says \"keys\": []")]
    Keys,
    /// More than are read.
    #[error("the bundle has {0} keys; at most {KEYS_MAX} are read")]
    TooManyKeys(usize),
    /// §4.1.1, §4.1.2.
    #[error("the bundle's {0:?} is not a whole number of 64 bits, 0 or more")]
    Number(&'static str),
    /// A key that cannot be what it says it is.
    #[error("key {at} of the bundle (from 0): {why}")]
    Key {
        /// Which.
        at: usize,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// What a trust domain tells whom to trust by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpiffeBundle {
    roots: Vec<Root>,
    token_keys: Vec<TokenKey>,
    sequence: Option<u64>,
    refresh_hint: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Root {
    certificate: CertificateDer<'static>,
    /// Without what says its use.
    members: Map<String, Value>,
}

/// A public key by which JWT-SVIDs are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenKey {
    kid: String,
    /// Without what says its use and its name.
    members: Map<String, Value>,
}

impl TokenKey {
    /// By what tokens name it.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }
}

impl SpiffeBundle {
    /// Our own. `sequence` is another one, and higher, for every other content.
    ///
    /// # Errors
    /// [`BundleError::Key`] if a root has a key of a kind that has no JWK here.
    pub fn of(roots: &TrustBundle, tokens: &JwtBundle, sequence: Option<u64>) -> Result<Self, BundleError> {
        let root = |(at, certificate): (usize, &CertificateDer<'static>)| {
            root(certificate.clone()).map_err(|why| BundleError::Key { at, why })
        };
        let roots = roots.roots().iter().enumerate().map(root).collect::<Result<_, _>>()?;
        let token_keys = tokens.jwks().filter_map(|jwk| token_key(jwk.as_object()?)).collect();
        Ok(Self { roots, token_keys, sequence, refresh_hint: Some(REFRESH_HINT) })
    }

    /// What a document says.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn parse(document: &[u8]) -> Result<Self, BundleError> {
        if document.len() > DOCUMENT_MAX {
            return Err(BundleError::TooLarge(document.len()));
        }
        let document = json::parse(document).map_err(|e| BundleError::Json(e.to_string()))?;
        let keys = document.get("keys").and_then(Value::as_array).ok_or(BundleError::Keys)?;
        if keys.len() > KEYS_MAX {
            return Err(BundleError::TooManyKeys(keys.len()));
        }
        let mut bundle = Self {
            sequence: number(&document, "spiffe_sequence")?,
            refresh_hint: number(&document, "spiffe_refresh_hint")?,
            ..Self::default()
        };
        for (at, key) in keys.iter().enumerate() {
            bundle.take(key).map_err(|why| BundleError::Key { at, why })?;
        }
        let kids: BTreeSet<&str> = bundle.token_keys.iter().map(TokenKey::kid).collect();
        match kids.len() == bundle.token_keys.len() {
            true => Ok(bundle),
            false => Err(BundleError::Key { at: keys.len(), why: "several keys of tokens have one kid" }),
        }
    }

    /// Takes a key, or ignores it, as §4.2 and RFC 7517 §5 say.
    fn take(&mut self, key: &Value) -> Result<(), &'static str> {
        let key = key.as_object().ok_or("it is no object")?;
        if key.contains_key("d") {
            return Err("it is a private key, which somebody has to change now");
        }
        match (key.get("kty").and_then(Value::as_str), key.get("use").and_then(Value::as_str)) {
            (Some("EC" | "RSA"), Some(X509_SVID)) => match authority(key)? {
                Some(root) if !self.roots.contains(&root) => self.roots.push(root),
                _ => {}
            },
            (Some("EC" | "RSA"), Some(JWT_SVID)) => self.token_keys.extend(token_key(key)),
            _ => {}
        }
        Ok(())
    }

    /// The certificates that may sign. None: nobody is to be trusted.
    pub fn roots(&self) -> impl ExactSizeIterator<Item = &CertificateDer<'static>> {
        self.roots.iter().map(|root| &root.certificate)
    }

    /// The keys of tokens.
    #[must_use]
    pub fn token_keys(&self) -> &[TokenKey] {
        &self.token_keys
    }

    /// Higher for every later content.
    #[must_use]
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// After how many seconds to ask again.
    #[must_use]
    pub fn refresh_hint(&self) -> Option<u64> {
        self.refresh_hint
    }

    /// As a document.
    #[must_use]
    pub fn document(&self) -> Value {
        let roots = self.roots.iter().map(|Root { certificate, members }| {
            // X509-SVID.md §6.1: no `kid`, and exactly one certificate.
            let mut jwk = members.clone();
            jwk.extend([("use".into(), X509_SVID.into()), ("x5c".into(), json!([STANDARD.encode(certificate)]))]);
            Value::Object(jwk)
        });
        let tokens = self.token_keys.iter().map(|TokenKey { kid, members }| {
            let mut jwk = members.clone();
            jwk.extend([("use".into(), JWT_SVID.into()), ("kid".into(), kid.as_str().into())]);
            Value::Object(jwk)
        });
        let mut document = Map::from_iter([("keys".to_owned(), roots.chain(tokens).collect())]);
        let numbers = [("spiffe_sequence", self.sequence), ("spiffe_refresh_hint", self.refresh_hint)];
        document.extend(numbers.into_iter().filter_map(|(name, number)| Some((name.to_owned(), number?.into()))));
        Value::Object(document)
    }
}

/// What is not there is `None`; what is no number is a mistake.
fn number(document: &Value, name: &'static str) -> Result<Option<u64>, BundleError> {
    document.get(name).map(|value| value.as_u64().ok_or(BundleError::Number(name))).transpose()
}

/// X509-SVID.md §6.2: without a certificate it is ignored, and so are all but its first.
fn authority(key: &Map<String, Value>) -> Result<Option<Root>, &'static str> {
    let Some(x5c) = key.get("x5c") else { return Ok(None) };
    let first = x5c.as_array().and_then(|all| all.first()).and_then(Value::as_str);
    let first = first.ok_or("its x5c is no array that begins with a certificate")?;
    let der = STANDARD.decode(first).map_err(|_| "its certificate is not in base64 (RFC 4648 §4)")?;
    let root = root(der.into())?;
    let member = |name: &str| key.get(name);
    if root.members.keys().any(|name| member(name).is_none()) {
        return Ok(None);
    }
    match root.members.iter().all(|(name, of_certificate)| member(name) == Some(of_certificate)) {
        true => Ok(Some(root)),
        false => Err("its certificate is of another key than the one that it says (RFC 7517 §4.7)"),
    }
}

fn root(certificate: CertificateDer<'static>) -> Result<Root, &'static str> {
    if certificate.len() > CERTIFICATE_MAX {
        return Err("its certificate is too large");
    }
    let Ok(([], parsed)) = X509Certificate::from_der(&certificate) else {
        return Err("its certificate is no DER of X.509");
    };
    if !parsed.is_ca() {
        return Err("its certificate may sign no others: it is no CA's");
    }
    let members =
        members(&parsed).ok_or("its certificate's key is neither of RSA nor of a curve that is known here")?;
    Ok(Root { certificate, members })
}

/// A certificate's key as RFC 7518 §6 writes it.
fn members(certificate: &X509Certificate<'_>) -> Option<Map<String, Value>> {
    let encoded = |bytes: &[u8]| Value::from(URL_SAFE_NO_PAD.encode(bytes));
    match certificate.public_key().parsed().ok()? {
        PublicKey::EC(point) => {
            let (form, coordinates) = point.data().split_first()?;
            let (x, y) = coordinates.split_at(coordinates.len() / 2);
            let curve = curve_of(x.len()).filter(|_| *form == 4 && x.len() == y.len())?;
            let members = [("kty", "EC".into()), ("crv", curve.into()), ("x", encoded(x)), ("y", encoded(y))];
            Some(members.map(|(name, value)| (name.to_owned(), value)).into_iter().collect())
        }
        PublicKey::RSA(key) => {
            // As few bytes as can say it (RFC 7518 §2).
            let least =
                |bytes: &[u8]| encoded(bytes.get(bytes.iter().take_while(|b| **b == 0).count()..).unwrap_or(bytes));
            let members = [("kty", "RSA".into()), ("n", least(key.modulus)), ("e", least(key.exponent))];
            Some(members.map(|(name, value)| (name.to_owned(), value)).into_iter().collect())
        }
        _ => None,
    }
}

/// The curve with coordinates of so many bytes; no two that are known here have the same.
fn curve_of(length: usize) -> Option<&'static str> {
    match length {
        32 => Some("P-256"),
        48 => Some("P-384"),
        66 => Some("P-521"),
        _ => None,
    }
}

/// RFC 7517 §5: what lacks something, or is of a size that is not supported, is ignored.
fn token_key(key: &Map<String, Value>) -> Option<TokenKey> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let number = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
    let kid = text("kid").filter(|kid| !kid.is_empty())?;
    let names: &[&str] = match text("kty")? {
        "EC" => {
            let (x, y) = (number("x")?, number("y")?);
            (x.len() == y.len() && curve_of(x.len()) == text("crv")).then_some(&["kty", "crv", "x", "y"])?
        }
        "RSA" => {
            let (n, e) = (number("n")?, number("e")?);
            let fits = matches!(n.len(), RSA_MIN..=RSA_MAX) && matches!(e.len(), 1..=8);
            fits.then_some(&["kty", "n", "e"])?
        }
        _ => return None,
    };
    let members = names.iter().filter_map(|name| Some(((*name).to_owned(), key.get(*name)?.clone())));
    Some(TokenKey { kid: kid.to_owned(), members: members.collect() })
}
