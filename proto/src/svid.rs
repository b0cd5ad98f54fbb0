//! What a peer's certificate proves: an X.509-SVID parsed and verified into a [`PeerSvid`], or a named refusal.
//!
//! Rules: X509-SVID.md §2 (one URI SAN), §4 (constraints), §5 (validation); RFC 5280 §6 by webpki.
//! Holding a `PeerSvid` means that every rule held at the time it was made.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use x509_parser::prelude::*;

use crate::grant::{MANDATE_OID_TEXT, Mandate};
use crate::name::{NodeName, SpiffeId, TrustDomain, WorkloadName};
pub use crate::program::{CertifiedProgram, FINGERPRINT_OID, FINGERPRINT_OID_TEXT, ProgramError};

/// The largest certificate that is parsed, in bytes.
pub const CERTIFICATE_MAX: usize = 8 * 1024;
/// The longest chain that is looked at: leaf, the node's intermediate, and the authority's issuing certificate, if its root
/// is offline.
pub const CHAIN_MAX: usize = 3;

/// Why a certificate or its chain was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// No certificate at all.
    #[error("no certificate was shown")]
    Missing,
    /// More certificates than can stand between a leaf and its root, or one too large.
    #[error("the chain is too long or too large")]
    TooLarge,
    /// Not DER X.509.
    #[error("the certificate cannot be parsed: {0}")]
    Malformed(String),
    /// X509-SVID.md §2.
    #[error("the certificate has {0} URI SANs; an X.509-SVID has exactly one")]
    UriSans(usize),
    /// The URI SAN is no SPIFFE ID with a path.
    #[error("the URI SAN is not a SPIFFE ID: it {0}")]
    SpiffeId(String),
    /// Another trust domain.
    #[error("the certificate is of trust domain {seen}, not {expected}")]
    TrustDomain {
        /// The domain of the certificate.
        seen: TrustDomain,
        /// Ours.
        expected: TrustDomain,
    },
    /// X509-SVID.md §4: basic constraints, key usage or extended key usage.
    #[error("the leaf breaks X509-SVID §4: {0}")]
    Constraints(&'static str),
    /// `notAfter` has passed.
    #[error("the certificate expired {0} s ago")]
    Expired(i64),
    /// `notBefore` is to come.
    #[error("the certificate becomes valid in {0} s")]
    NotYetValid(i64),
    /// RFC 5280 path validation failed.
    #[error("the chain does not lead to a root of this trust domain: {0}")]
    Path(String),
    /// The intermediate shown is not the leaf's issuer.
    #[error("the leaf was not issued by the intermediate shown with it")]
    Issuer,
    /// What stands between the root and what the authority issues is no issuing certificate of this trust domain.
    #[error("the authority's issuing certificate {0}")]
    Issuing(&'static str),
    /// The identity is valid but not of the kind expected here.
    #[error("{0} is not {1}")]
    WrongKind(SpiffeId, &'static str),
    /// The intermediate says nothing, or nothing that can be read, about what its node may issue.
    #[error("in the intermediate's mandate, {0}")]
    Mandate(String),
    /// The node issued a workload that the authority did not grant to it.
    #[error("not-granted: node {node} was not granted to issue {workload}")]
    NotGranted {
        /// The node.
        node: NodeName,
        /// What it issued.
        workload: WorkloadName,
    },
    /// Whoever shows it does not hold its key.
    #[error("the certificate's key did not sign this")]
    Signature,
    /// The fingerprint extension is malformed.
    #[error("in the fingerprint extension, {0}")]
    Fingerprint(#[from] ProgramError),
    /// The fingerprint extension is there twice.
    #[error("the fingerprint extension is there twice")]
    FingerprintTwice,
}

/// A peer's verified identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSvid {
    id: SpiffeId,
    serial: String,
    not_after: i64,
    program: Option<CertifiedProgram>,
    issuer: Option<Issuer>,
}

/// The intermediate that issued a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// Whose it is.
    pub node: NodeName,
    /// Which of the node's it is: a later one has a higher number.
    pub number: u64,
}

impl PeerSvid {
    /// The SPIFFE ID.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }
    /// Serial number, lower-case hex.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }
    /// Expiry, unix seconds.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.not_after
    }
    /// The fingerprint that earned it; workload leaves always carry one.
    #[must_use]
    pub fn program(&self) -> Option<&CertifiedProgram> {
        self.program.as_ref()
    }
    /// The node whose intermediate issued it; `None` for certificates that the authority issued itself.
    #[must_use]
    pub fn node(&self) -> Option<&NodeName> {
        self.issuer.as_ref().map(|issuer| &issuer.node)
    }
    /// The node's intermediate that issued it; `None` for certificates that the authority issued itself.
    #[must_use]
    pub fn issuer(&self) -> Option<&Issuer> {
        self.issuer.as_ref()
    }
}

/// What kind of peer is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// A workload: issued by a node's intermediate, with a fingerprint.
    Workload,
    /// A node: issued by the authority, by its root or its issuing certificate.
    Node,
    /// The authority: issued by itself, by its root or its issuing certificate.
    Authority,
}

/// The roots of one trust domain.
#[derive(Debug, Clone)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Arc<RootCertStore>,
    der: Vec<CertificateDer<'static>>,
}

impl TrustBundle {
    /// A bundle of at least one root.
    ///
    /// # Errors
    /// [`SvidError::Malformed`] if a root cannot be a trust anchor, [`SvidError::Missing`] if there is none.
    pub fn new(trust_domain: TrustDomain, der: Vec<CertificateDer<'static>>) -> Result<Self, SvidError> {
        if der.is_empty() {
            return Err(SvidError::Missing);
        }
        let mut roots = RootCertStore::empty();
        for root in &der {
            if root.len() > CERTIFICATE_MAX {
                return Err(SvidError::TooLarge);
            }
            roots.add(root.clone()).map_err(|e| SvidError::Malformed(e.to_string()))?;
        }
        Ok(Self { trust_domain, roots: Arc::new(roots), der })
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The roots, DER.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.der
    }

    /// Verifies a chain as shown by a peer, leaf first.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime, expect: Expect) -> Result<PeerSvid, SvidError> {
        let (leaf, rest) = chain.split_first().ok_or(SvidError::Missing)?;
        if chain.len() > CHAIN_MAX || chain.iter().any(|c| c.len() > CERTIFICATE_MAX) {
            return Err(SvidError::TooLarge);
        }
        let cert = parse(leaf)?;
        let id = spiffe_id(&cert)?;
        if id.trust_domain() != &self.trust_domain {
            return Err(SvidError::TrustDomain {
                seen: id.trust_domain().clone(),
                expected: self.trust_domain.clone(),
            });
        }
        check_leaf(&cert)?;
        let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let (from, until) = (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp());
        if now_s < from {
            return Err(SvidError::NotYetValid(from - now_s));
        }
        if now_s > until {
            return Err(SvidError::Expired(now_s - until));
        }
        let parsed = ParsedCertificate::try_from(leaf).map_err(|e| SvidError::Malformed(e.to_string()))?;
        // The leaf carries both extended key usages (checked above), so the server-side path
        // validation serves for clients too.
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            rest,
            now,
            crate::tls::provider().signature_verification_algorithms.all,
        )
        .map_err(|e| SvidError::Path(e.to_string()))?;

        let issuer = self.between(rest, &cert, &id)?;
        let program = fingerprint(&cert)?;
        let right_kind = match expect {
            Expect::Workload => id.workload_name().is_some() && issuer.is_some() && program.is_some(),
            Expect::Node => id.node_name().is_some() && issuer.is_none(),
            Expect::Authority => id.is_authority() && issuer.is_none(),
        };
        if !right_kind {
            let wanted = match expect {
                Expect::Workload => "a workload's leaf, issued by a node for a fingerprint",
                Expect::Node => "a node's SVID, issued by the authority",
                Expect::Authority => "the authority's SVID, issued by itself",
            };
            return Err(SvidError::WrongKind(id, wanted));
        }
        Ok(PeerSvid { id, serial: hex::encode(cert.raw_serial()), not_after: until, program, issuer })
    }

    /// Judges what was shown beside a leaf, which leads to a root: the node that issued it, if one did.
    ///
    /// A path goes by names first. Those of the two kinds are never the same, so each step is the one that webpki took.
    fn between(
        &self,
        rest: &[CertificateDer<'_>],
        leaf: &X509Certificate<'_>,
        id: &SpiffeId,
    ) -> Result<Option<Issuer>, SvidError> {
        match rest {
            [] => Ok(None),
            [one] => {
                let shown = parse(one)?;
                match is_of_node(&shown) || constraint(&shown) != Some(1) {
                    true => issuer(&shown, leaf, id).map(Some),
                    false => self.issuing(&shown, leaf).map(|()| None),
                }
            }
            [of_node, of_authority, ..] => {
                let (of_node, of_authority) = (parse(of_node)?, parse(of_authority)?);
                self.issuing(&of_authority, &of_node)?;
                if of_node.subject().as_raw() == of_authority.subject().as_raw() {
                    return Err(SvidError::Issuer);
                }
                issuer(&of_node, leaf, id).map(Some)
            }
        }
    }

    fn issuing(&self, shown: &X509Certificate<'_>, below: &X509Certificate<'_>) -> Result<(), SvidError> {
        is_issuing(shown, &self.trust_domain).map_err(SvidError::Issuing)?;
        match shown.subject().as_raw() == below.issuer().as_raw() {
            true => Ok(()),
            false => Err(SvidError::Issuer),
        }
    }
}

/// Whether this is the certificate by which an authority issues whose root is offline; who signed it is not looked at. No
/// node's is: those have a mandate, and no path below them.
pub(crate) fn is_issuing(shown: &X509Certificate<'_>, trust_domain: &TrustDomain) -> Result<(), &'static str> {
    if is_of_node(shown) {
        return Err("is a node's");
    }
    if constraint(shown) != Some(1) {
        return Err("has not a path length of 1");
    }
    may_sign(shown).map_err(|_| "may not sign certificates, by its key usage")?;
    let names = shown.subject_alternative_name().ok().flatten();
    match names.as_ref().map_or(&[][..], |names| &names.value.general_names) {
        [GeneralName::URI(uri)] if uri.strip_prefix("spiffe://") == Some(trust_domain.as_str()) => Ok(()),
        _ => Err("is not named by this trust domain, and nothing else"),
    }
}

/// How many certificates of issuers may stand below a CA's, if it says so.
fn constraint(shown: &X509Certificate<'_>) -> Option<u32> {
    let constraints = shown.basic_constraints().ok().flatten()?;
    constraints.value.path_len_constraint.filter(|_| constraints.critical && constraints.value.ca)
}

fn is_of_node(shown: &X509Certificate<'_>) -> bool {
    shown.extensions().iter().any(|e| e.oid.to_id_string() == MANDATE_OID_TEXT)
}

/// What stands before the point of a P-256 key in its SubjectPublicKeyInfo (RFC 5480 §2), in DER.
const BEFORE_P256_POINT: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Whether the key of this certificate signed that, by ECDSA with P-256 and SHA-256, as all keys that are certified do.
/// It says nothing of the certificate itself: see [`TrustBundle::verify`].
///
/// # Errors
/// [`SvidError::Signature`], or the certificate cannot be parsed.
pub fn signed_by(cert: &CertificateDer<'_>, message: &[u8], signature: &[u8]) -> Result<(), SvidError> {
    use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    if cert.len() > CERTIFICATE_MAX {
        return Err(SvidError::TooLarge);
    }
    let cert = parse(cert)?;
    let point = cert.public_key().raw.strip_prefix(&BEFORE_P256_POINT).ok_or(SvidError::Signature)?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point);
    key.verify(message, signature).map_err(|_| SvidError::Signature)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, SvidError> {
    match X509Certificate::from_der(der) {
        Ok(([], cert)) => Ok(cert),
        Ok(_) => Err(SvidError::Malformed("bytes after the certificate".into())),
        Err(e) => Err(SvidError::Malformed(e.to_string())),
    }
}

fn spiffe_id(cert: &X509Certificate<'_>) -> Result<SpiffeId, SvidError> {
    let san = cert.subject_alternative_name().map_err(|e| SvidError::Malformed(e.to_string()))?;
    let uris: Vec<&str> = san
        .iter()
        .flat_map(|ext| &ext.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris.as_slice() {
        [one] => one.parse().map_err(|e: crate::name::NameError| SvidError::SpiffeId(e.to_string())),
        others => Err(SvidError::UriSans(others.len())),
    }
}

fn check_leaf(cert: &X509Certificate<'_>) -> Result<(), SvidError> {
    let malformed = |e: X509Error| SvidError::Malformed(e.to_string());
    match cert.basic_constraints().map_err(malformed)? {
        Some(bc) if bc.value.ca => return Err(SvidError::Constraints("it is a CA certificate")),
        Some(_) => {}
        None => return Err(SvidError::Constraints("basic constraints are missing")),
    }
    match cert.key_usage().map_err(malformed)? {
        None => return Err(SvidError::Constraints("key usage is missing")),
        Some(ku) if !ku.critical => return Err(SvidError::Constraints("key usage is not critical")),
        Some(ku) if ku.value.key_cert_sign() || ku.value.crl_sign() => {
            return Err(SvidError::Constraints("it may sign certificates or CRLs"));
        }
        Some(ku) if !ku.value.digital_signature() => {
            return Err(SvidError::Constraints("it may not sign handshakes"));
        }
        Some(_) => {}
    }
    match cert.extended_key_usage().map_err(malformed)? {
        Some(eku) if eku.value.server_auth && eku.value.client_auth => Ok(()),
        Some(_) => Err(SvidError::Constraints("it is not for both server and client authentication")),
        None => Err(SvidError::Constraints("extended key usage is missing")),
    }
}

/// The intermediate shown with a leaf, if it is the leaf's issuer and may have issued it.
fn issuer(intermediate: &X509Certificate<'_>, leaf: &X509Certificate<'_>, id: &SpiffeId) -> Result<Issuer, SvidError> {
    may_sign(intermediate)?;
    if intermediate.subject().as_raw() != leaf.issuer().as_raw() {
        return Err(SvidError::Issuer);
    }
    let node = node_of(intermediate)?;
    let Mandate { number, grant } = mandate(intermediate)?;
    match id.workload_name() {
        Some(workload) if !grant.allows(&workload) => Err(SvidError::NotGranted { node, workload }),
        _ => Ok(Issuer { node, number }),
    }
}

/// X509-SVID.md §4.3; webpki looks at no key usage.
fn may_sign(intermediate: &X509Certificate<'_>) -> Result<(), SvidError> {
    match intermediate.key_usage().map_err(|e| SvidError::Malformed(e.to_string()))? {
        Some(usage) if usage.critical && usage.value.key_cert_sign() => Ok(()),
        _ => Err(SvidError::Path("the intermediate may not sign certificates, by its key usage".into())),
    }
}

fn mandate(intermediate: &X509Certificate<'_>) -> Result<Mandate, SvidError> {
    let mut found = intermediate.extensions().iter().filter(|e| e.oid.to_id_string() == MANDATE_OID_TEXT);
    match (found.next(), found.next()) {
        (Some(one), None) => Mandate::from_der(one.value).map_err(|e| SvidError::Mandate(e.to_string())),
        (None, _) => Err(SvidError::Mandate("there is none; the node has to renew its certificates".into())),
        (Some(_), Some(_)) => Err(SvidError::Mandate("there are two".into())),
    }
}

fn node_of(intermediate: &X509Certificate<'_>) -> Result<NodeName, SvidError> {
    let mut names = intermediate.subject().iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else { return Err(SvidError::Issuer) };
    name.as_str().ok().and_then(|s| s.parse().ok()).ok_or(SvidError::Issuer)
}

fn fingerprint(cert: &X509Certificate<'_>) -> Result<Option<CertifiedProgram>, SvidError> {
    let mut found = cert.extensions().iter().filter(|e| e.oid.to_id_string() == FINGERPRINT_OID_TEXT);
    match (found.next(), found.next()) {
        (None, _) => Ok(None),
        (Some(extension), None) => Ok(Some(CertifiedProgram::from_der(extension.value)?)),
        (Some(_), Some(_)) => Err(SvidError::FingerprintTwice),
    }
}
