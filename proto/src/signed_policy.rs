//! A policy that the trust domain's authority published: holding a [`SignedPolicy`] means that its signature, its signer
//! and every bound held when it was made.
//!
//! What is signed, numbers in network order:
//! ```text
//! "bonafide policy 1\0"
//! u16 length, trust domain
//! u64 version
//! i64 created
//! u16 length, author
//! u32 length of the text, SHA-256 of the text
//! u8 number of roots, SHA-256 of each
//! SHA-256 of the signer's certificate
//! ```
//! The signer is a certificate that the authority issued only for this, by a root or by the issuing certificate that goes with
//! the policy: its SPIFFE ID has no path, its one extended key usage is
//! [`POLICY_SIGNER_OID`], and so it is nobody's identity; no other certificate of the trust domain has that usage. Its
//! time is held against the policy's own, not against the clock: what is in force does not expire, and a node that was
//! switched off for a year keeps to it.

use prost::Message as _;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::*;

use crate::fingerprint::Digest;
use crate::name::TrustDomain;
use crate::svid::{CERTIFICATE_MAX, TrustBundle, is_issuing};
use crate::wire::policy as wire;

/// The longest text of a policy, in bytes. A little less than the 4 MiB that a gRPC client accepts in one message.
pub const TEXT_MAX: usize = (4 << 20) - (8 << 10);
/// The longest author, in bytes.
pub const AUTHOR_MAX: usize = 256;
/// The most roots that a policy names.
pub const ROOTS_MAX: usize = 8;
/// The largest signed policy that is read, in bytes.
pub const SIGNED_MAX: usize = TEXT_MAX + (16 << 10);
/// The extended key usage of signers, below the OID of the fingerprint.
pub const POLICY_SIGNER_OID: [u64; 4] = [2, 25, 5_178_349_013_480_112_913, 2];
/// The same, dotted.
pub const POLICY_SIGNER_OID_TEXT: &str = "2.25.5178349013480112913.2";

const DOMAIN: &[u8] = b"bonafide policy 1\0";
const SIGNATURE_MAX: usize = 80;

/// Why a policy is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyRefusal {
    /// Refused before it was read.
    #[error("malformed-policy: it has {0} bytes; at most {SIGNED_MAX} are read")]
    TooLarge(usize),
    /// No signed policy.
    #[error("malformed-policy: {0}")]
    Malformed(String),
    /// There is no signature.
    #[error("unsigned-policy: it carries no signature")]
    Unsigned,
    /// It is of another trust domain.
    #[error("foreign-policy: it is of trust domain {seen}, not {expected}")]
    Foreign {
        /// Whose it is.
        seen: TrustDomain,
        /// Ours.
        expected: TrustDomain,
    },
    /// Its signer may not sign policies.
    #[error("wrong-signer: {0}")]
    Signer(String),
    /// Somebody changed it, or another key signed it.
    #[error("wrong-signature: it is not what its signer signed")]
    Signature,
    /// It is older than what is known.
    #[error("older-policy: it is version {seen}, and version {known} was known before")]
    Older {
        /// Its version.
        seen: u64,
        /// The highest version known.
        known: u64,
    },
    /// It is something else under a number that was used.
    #[error("changed-policy: it is another version {0} than was known before")]
    Changed(u64),
}

impl PolicyRefusal {
    /// Its name, as at the beginning of what it says.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::TooLarge(_) | Self::Malformed(_) => "malformed-policy",
            Self::Unsigned => "unsigned-policy",
            Self::Foreign { .. } => "foreign-policy",
            Self::Signer(_) => "wrong-signer",
            Self::Signature => "wrong-signature",
            Self::Older { .. } => "older-policy",
            Self::Changed(_) => "changed-policy",
        }
    }
}

/// By what one policy is told from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Of which trust domain it is.
    pub trust_domain: TrustDomain,
    /// Its number.
    pub version: u64,
    /// Of all that it says, but for who signed it.
    pub content: Digest,
}

/// A policy that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedPolicy {
    mark: Mark,
    created: i64,
    author: String,
    text: String,
    roots: Vec<Digest>,
}

impl SignedPolicy {
    /// Reads and verifies.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn verify(bytes: &[u8], bundle: &TrustBundle) -> Result<Self, PolicyRefusal> {
        if bytes.len() > SIGNED_MAX {
            return Err(PolicyRefusal::TooLarge(bytes.len()));
        }
        let wire =
            wire::SignedPolicy::decode(bytes).map_err(|_| PolicyRefusal::Malformed("it cannot be read".into()))?;
        let (signer, signature) = (CertificateDer::from(wire.signer.clone()), wire.signature.clone());
        let issuing = CertificateDer::from(wire.issuing.clone());
        let policy = Self::within_bounds(wire)?;
        if &policy.mark.trust_domain != bundle.trust_domain() {
            let (seen, expected) = (policy.mark.trust_domain, bundle.trust_domain().clone());
            return Err(PolicyRefusal::Foreign { seen, expected });
        }
        if signature.is_empty() || signer.is_empty() {
            return Err(PolicyRefusal::Unsigned);
        }
        if signature.len() > SIGNATURE_MAX || signer.len() > CERTIFICATE_MAX || issuing.len() > CERTIFICATE_MAX {
            return Err(PolicyRefusal::Malformed("its signature or a certificate of its signer is too long".into()));
        }
        let issuing = Some(issuing).filter(|issuing| !issuing.is_empty());
        let key = signing_key(&signer, issuing.as_ref(), bundle, policy.created).map_err(PolicyRefusal::Signer)?;
        let signed = policy.signed_by(&signer);
        let verified = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(&signed, &signature);
        verified.map_err(|_| PolicyRefusal::Signature)?;
        Ok(policy)
    }

    /// By what it is told from others.
    #[must_use]
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Its number.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.mark.version
    }

    /// When it was published, unix seconds.
    #[must_use]
    pub fn created(&self) -> i64 {
        self.created
    }

    /// Who published it, for people.
    #[must_use]
    pub fn author(&self) -> &str {
        &self.author
    }

    /// The policy.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// SHA-256 of each root certificate that the trust domain had when it was published.
    #[must_use]
    pub fn roots(&self) -> &[Digest] {
        &self.roots
    }

    /// Whether it is a later one than the last that was known; false: it is that one.
    ///
    /// # Errors
    /// It is an earlier one, or another one of that number. One of another trust domain says nothing about this.
    pub fn succeeds(&self, known: Option<&Mark>) -> Result<bool, PolicyRefusal> {
        let Some(known) = known.filter(|known| known.trust_domain == self.mark.trust_domain) else { return Ok(true) };
        match self.mark.version.cmp(&known.version) {
            std::cmp::Ordering::Greater => Ok(true),
            std::cmp::Ordering::Equal if self.mark.content == known.content => Ok(false),
            std::cmp::Ordering::Equal => Err(PolicyRefusal::Changed(known.version)),
            std::cmp::Ordering::Less => Err(PolicyRefusal::Older { seen: self.mark.version, known: known.version }),
        }
    }

    fn within_bounds(wire: wire::SignedPolicy) -> Result<Self, PolicyRefusal> {
        let malformed = |why: String| PolicyRefusal::Malformed(why);
        let trust_domain: TrustDomain =
            wire.trust_domain.parse().map_err(|_| malformed("it names no trust domain".into()))?;
        if wire.version == 0 || wire.created < 0 {
            return Err(malformed("its version or its time is none".into()));
        }
        if wire.author.len() > AUTHOR_MAX || wire.author.chars().any(char::is_control) {
            return Err(malformed("its author is not one line of at most 256 bytes".into()));
        }
        if wire.text.len() > TEXT_MAX {
            return Err(malformed(format!("its text is longer than {TEXT_MAX} bytes")));
        }
        if !(1..=ROOTS_MAX).contains(&wire.roots.len()) {
            return Err(malformed(format!("it names {} roots; 1 to {ROOTS_MAX} are read", wire.roots.len())));
        }
        let roots = wire.roots.iter().map(|root| Digest::try_from(root.as_slice())).collect::<Result<_, _>>();
        let roots = roots.map_err(|_| malformed("the digest of a root is not 32 bytes".into()))?;
        let (version, created) = (wire.version, wire.created);
        let said = said(&trust_domain, version, created, &wire.author, &wire.text);
        let mark = Mark { trust_domain, version, content: Digest::of(&said) };
        Ok(Self { mark, created, author: wire.author, text: wire.text, roots })
    }

    fn signed_by(&self, signer: &CertificateDer<'_>) -> Vec<u8> {
        let Mark { trust_domain, version, .. } = &self.mark;
        let mut signed = said(trust_domain, *version, self.created, &self.author, &self.text);
        signed.push(u8::try_from(self.roots.len()).unwrap_or(u8::MAX));
        self.roots.iter().for_each(|root| signed.extend(root.0));
        signed.extend(Sha256::digest(signer));
        signed
    }
}

/// Lengths are within bounds here.
fn said(trust_domain: &TrustDomain, version: u64, created: i64, author: &str, text: &str) -> Vec<u8> {
    let short = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    let mut said = DOMAIN.to_vec();
    said.extend(short(trust_domain.as_str().len()));
    said.extend(trust_domain.as_str().as_bytes());
    said.extend(version.to_be_bytes());
    said.extend(created.to_be_bytes());
    said.extend(short(author.len()));
    said.extend(author.as_bytes());
    said.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    said.extend(Sha256::digest(text));
    said
}

/// The key of a certificate that was issued for signing policies, by one of the roots or what one of them issued for that, and
/// that was valid at this second.
fn signing_key(
    der: &CertificateDer<'_>,
    issuing: Option<&CertificateDer<'_>>,
    bundle: &TrustBundle,
    at: i64,
) -> Result<Vec<u8>, String> {
    let signer = parse(der)?;
    no_identity(&signer, bundle.trust_domain())?;
    only_for_policies(&signer)?;
    if !covers(&signer, at) {
        return Err("its certificate was not valid when the policy was published".to_owned());
    }
    let by_root = |certificate: &X509Certificate<'_>| {
        bundle.roots().iter().any(|root| parse(root).is_ok_and(|root| issued_by(certificate, &root, at)))
    };
    match issuing {
        None if by_root(&signer) => {}
        None => return Err("its certificate was not issued by a root of this trust domain".to_owned()),
        Some(issuing) => {
            let issuing = parse(issuing)?;
            is_issuing(&issuing, bundle.trust_domain())
                .map_err(|why| format!("the authority's issuing certificate {why}"))?;
            if !by_root(&issuing) {
                return Err("the authority's issuing certificate is not of a root of this trust domain".to_owned());
            }
            if !issued_by(&signer, &issuing, at) {
                return Err("its certificate was not issued by the issuing certificate shown with it".to_owned());
            }
        }
    }
    point(&signer)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) if certificate.version() == X509Version::V3 => Ok(certificate),
        _ => Err("its certificate cannot be read".to_owned()),
    }
}

/// Its one name is the trust domain's: no workload's, no node's.
fn no_identity(signer: &X509Certificate<'_>, trust_domain: &TrustDomain) -> Result<(), String> {
    let names = signer.subject_alternative_name().ok().flatten();
    let names = names.as_ref().map_or(&[][..], |names| &names.value.general_names);
    match names {
        [GeneralName::URI(uri)] if uri.strip_prefix("spiffe://") == Some(trust_domain.as_str()) => Ok(()),
        _ => Err(format!("its certificate is not named spiffe://{trust_domain}, and nothing else")),
    }
}

/// The extensions of a signer: subject and authority key identifiers, and those that are judged here.
const EXTENSIONS: [&str; 6] = ["2.5.29.14", "2.5.29.35", "2.5.29.17", "2.5.29.19", "2.5.29.15", "2.5.29.37"];

fn only_for_policies(signer: &X509Certificate<'_>) -> Result<(), String> {
    let unreadable = |_| "an extension of its certificate cannot be read".to_owned();
    if signer.extensions().iter().any(|e| !EXTENSIONS.contains(&e.oid.to_id_string().as_str())) {
        return Err("its certificate has an extension that no signer of policies has".to_owned());
    }
    if signer.basic_constraints().map_err(unreadable)?.is_none_or(|constraints| constraints.value.ca) {
        return Err("its certificate is a CA's, or does not say that it is none".to_owned());
    }
    let usage = signer.key_usage().map_err(unreadable)?;
    // digitalSignature is bit 0 (RFC 5280 §4.2.1.3).
    if usage.is_none_or(|usage| !usage.critical || usage.value.flags != 1) {
        return Err("its certificate's key usage is not digital signature alone".to_owned());
    }
    let extended = signer.extended_key_usage().map_err(unreadable)?;
    match extended.is_some_and(|extended| policies_alone(extended.value)) {
        true => Ok(()),
        false => Err("its certificate is not for signing policies, and nothing else".to_owned()),
    }
}

fn policies_alone(usage: &ExtendedKeyUsage<'_>) -> bool {
    let another = usage.any
        || usage.server_auth
        || usage.client_auth
        || usage.code_signing
        || usage.email_protection
        || usage.time_stamping
        || usage.ocsp_signing;
    let [one] = usage.other.as_slice() else { return false };
    !another && one.to_id_string() == POLICY_SIGNER_OID_TEXT
}

fn covers(certificate: &X509Certificate<'_>, at: i64) -> bool {
    let validity = certificate.validity();
    validity.not_before.timestamp() <= at && at <= validity.not_after.timestamp()
}

fn issued_by(signer: &X509Certificate<'_>, root: &X509Certificate<'_>, at: i64) -> bool {
    // ecdsa-with-SHA256 (RFC 5758 §3.2)
    let ecdsa = |algorithm: &AlgorithmIdentifier<'_>| algorithm.algorithm.to_id_string() == "1.2.840.10045.4.3.2";
    signer.issuer().as_raw() == root.subject().as_raw()
        && root.is_ca()
        && root.key_usage().ok().flatten().is_some_and(|usage| usage.value.key_cert_sign())
        && covers(root, at)
        && ecdsa(&signer.signature_algorithm)
        && ecdsa(&signer.tbs_certificate.signature)
        && signer.verify_signature(Some(root.public_key())).is_ok()
}

/// What stands before the point of a P-256 key in its SubjectPublicKeyInfo (RFC 5480 §2), in DER.
const BEFORE_POINT: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

fn point(signer: &X509Certificate<'_>) -> Result<Vec<u8>, String> {
    let point = signer.public_key().raw.strip_prefix(&BEFORE_POINT).filter(|point| point.len() == 65);
    point.map(<[u8]>::to_vec).ok_or_else(|| "its certificate is not for a P-256 key".to_owned())
}
