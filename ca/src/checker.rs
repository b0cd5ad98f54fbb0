//! Reads a draft as a stranger would and compares it with what was ordered; only what passes becomes [`Checked`].
//!
//! Shares nothing with the builder, constants included. Rules: X509-SVID.md §2 to §4 (X-1 to X-7 below),
//! RFC 5280 §4.1.2.2 (serial), §4.2.1 (extensions), and the private extension documented in `bonafide_proto::program`.

mod mandate;
mod program;

use std::collections::BTreeSet;

use bonafide_proto::grant::Mandate;
use bonafide_proto::name::{NodeName, TrustDomain};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::*;

use crate::draft::Draft;
use crate::order::{Holder, Order, Validity};

/// Why a draft never leaves.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// Not DER X.509 v3, or larger than any verifier would read.
    #[error("it cannot be read: {0}")]
    Malformed(String),
    /// the URI SAN.
    #[error("X-1: the names are {seen}; ordered was exactly one URI, {ordered}")]
    Names {
        /// What the draft says.
        seen: String,
        /// What was ordered.
        ordered: String,
    },
    /// X-2 and the subject.
    #[error("X-2: {0}")]
    Subject(String),
    /// keys and who holds them.
    #[error("X-3: {0}")]
    Key(&'static str),
    /// basic constraints.
    #[error("X-4: {0}")]
    Constraints(&'static str),
    /// an extension that has no place here.
    #[error("X-5: extension {0} was not ordered")]
    Extension(String),
    /// key usage.
    #[error("X-6: {0}")]
    KeyUsage(&'static str),
    /// extended key usage.
    #[error("X-7: {0}")]
    ExtendedKeyUsage(&'static str),
    /// Times outside of the order or of the issuer's own.
    #[error("its validity {0} is not what was ordered")]
    Validity(String),
    /// RFC 5280 §4.1.2.2.
    #[error("its serial number has {0} bytes or is not positive; it must have 16")]
    Serial(usize),
    /// Issuer name, key identifier or signature.
    #[error("its issuer: {0}")]
    Issuer(&'static str),
    /// The fingerprint extension.
    #[error("its fingerprint: {0}")]
    Fingerprint(&'static str),
    /// The mandate extension.
    #[error("its mandate: {0}")]
    Mandate(&'static str),
    /// A leaf for a workload that the authority did not grant to the issuing node.
    #[error("its issuer was not granted to issue {0}")]
    NotGranted(String),
}

/// A certificate that is exactly what was ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checked {
    der: CertificateDer<'static>,
    serial: String,
}

impl Checked {
    /// The certificate.
    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Its serial number, lower-case hex.
    pub(crate) fn serial(&self) -> &str {
        &self.serial
    }
}

/// Who should have signed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SignedBy<'a> {
    /// The certificate itself.
    Itself,
    /// The holder of this certificate.
    Issuer(&'a CertificateDer<'a>),
}

/// Checks a draft for an order: the key's SubjectPublicKeyInfo in DER, and who should have signed.
pub(crate) fn check(draft: &Draft, order: &Order, spki: &[u8], by: SignedBy<'_>) -> Result<Checked, CheckError> {
    check_der(draft.der(), order, spki, by)
}

fn check_der(der: &[u8], order: &Order, spki: &[u8], by: SignedBy<'_>) -> Result<Checked, CheckError> {
    let cert = read(der)?;
    frame(der, &cert)?;
    serial(&cert)?;
    validity(&cert, order)?;
    key(&cert, spki)?;
    subject(&cert, &order.holder)?;
    names(&cert, order)?;
    extensions_present(&cert, &order.holder)?;
    basic_constraints(&cert, &order.holder)?;
    key_usage(&cert, &order.holder)?;
    extended_key_usage(&cert, &order.holder)?;
    fingerprint(&cert, &order.holder)?;
    mandated(&cert, &order.holder)?;
    match by {
        SignedBy::Itself => signature(&cert, &cert)?,
        SignedBy::Issuer(issuer) => {
            let issuer = read(issuer)?;
            distinct_keys(&cert, &issuer)?;
            inside_issuer(&cert, &issuer)?;
            granted(&order.holder, &issuer)?;
            signature(&cert, &issuer)?;
        }
    }
    Ok(Checked { der: CertificateDer::from(der.to_vec()), serial: hex::encode(cert.raw_serial()) })
}

fn read(der: &[u8]) -> Result<X509Certificate<'_>, CheckError> {
    let malformed = |why: &str| Err(CheckError::Malformed(why.to_owned()));
    if der.len() > 8192 {
        return malformed("it is larger than 8192 bytes");
    }
    match X509Certificate::from_der(der) {
        Ok((rest, _)) if !rest.is_empty() => malformed("bytes after the certificate"),
        Ok((_, cert)) if cert.version() != X509Version::V3 => malformed("it is not version 3"),
        Ok((_, cert)) if cert.issuer_uid.is_some() || cert.subject_uid.is_some() => malformed("it has unique IDs"),
        Ok((_, cert)) => Ok(cert),
        Err(e) => malformed(&e.to_string()),
    }
}

/// What lies outside of the signature has one spelling only: x509-parser reads tags there more kindly than DER allows.
fn frame(der: &[u8], cert: &X509Certificate<'_>) -> Result<(), CheckError> {
    let (signed, signature) = (cert.tbs_certificate.as_ref(), cert.signature_value.data.as_ref());
    let sizes = (u16::try_from(der.len().saturating_sub(4)), u8::try_from(signature.len() + 1));
    let (Ok(total), Ok(bits)) = sizes else { return Err(CheckError::Malformed("its parts are too large".into())) };
    // SEQUENCE { tbsCertificate, ecdsa-with-SHA256 (RFC 5758 §3.2), BIT STRING without unused bits }
    let head = [&[0x30, 0x82][..], &total.to_be_bytes()].concat();
    let algorithm = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let canonical = [&head[..], signed, &algorithm, &[0x03, bits, 0x00], signature].concat();
    if der == canonical { Ok(()) } else { Err(CheckError::Malformed("it is not in canonical DER".into())) }
}

fn serial(cert: &X509Certificate<'_>) -> Result<(), CheckError> {
    let bytes = cert.raw_serial();
    match bytes.first() {
        Some(first) if bytes.len() == 16 && (1..=0x7f).contains(first) => Ok(()),
        _ => Err(CheckError::Serial(bytes.len())),
    }
}

fn validity(cert: &X509Certificate<'_>, order: &Order) -> Result<(), CheckError> {
    let (from, until) = (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp());
    if from == order.validity.from && until == order.validity.until && from < until {
        return Ok(());
    }
    Err(CheckError::Validity(format!("{from}..={until}")))
}

fn key(cert: &X509Certificate<'_>, spki: &[u8]) -> Result<(), CheckError> {
    if cert.public_key().raw == spki {
        Ok(())
    } else {
        Err(CheckError::Key("it is not for the key that was requested"))
    }
}

/// a signing key is never used to authenticate, so no certificate is for its issuer's key.
fn distinct_keys(cert: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> Result<(), CheckError> {
    if cert.public_key().raw == issuer.public_key().raw {
        return Err(CheckError::Key("it is for its issuer's own key"));
    }
    Ok(())
}

fn subject(cert: &X509Certificate<'_>, holder: &Holder) -> Result<(), CheckError> {
    let attributes: Vec<(String, String)> = cert
        .subject()
        .iter_attributes()
        .map(|a| (a.attr_type().to_id_string(), a.as_str().unwrap_or("?").to_owned()))
        .collect();
    let seen: Vec<(&str, &str)> = attributes.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let right = match holder {
        Holder::Root => seen == [("2.5.4.3", "Bonafide root"), ("2.5.4.10", "Bonafide")],
        Holder::Issuing => seen == [("2.5.4.3", "Bonafide issuing"), ("2.5.4.10", "Bonafide")],
        Holder::Intermediate(node, _) => seen == [("2.5.4.3", node.as_str()), ("2.5.4.10", "Bonafide node")],
        Holder::Node(_) | Holder::Authority | Holder::PolicySigner | Holder::Workload(..) => seen.is_empty(),
    };
    if right { Ok(()) } else { Err(CheckError::Subject(format!("the subject is {:?}", cert.subject().to_string()))) }
}

fn names(cert: &X509Certificate<'_>, order: &Order) -> Result<(), CheckError> {
    let domain = order.trust_domain.as_str();
    let ordered = match &order.holder {
        Holder::Root | Holder::Issuing | Holder::Intermediate(..) | Holder::PolicySigner => {
            format!("spiffe://{domain}")
        }
        Holder::Node(node) => format!("spiffe://{domain}/bonafide/node/{node}"),
        Holder::Authority => format!("spiffe://{domain}/bonafide/authority"),
        Holder::Workload(workload, _) => format!("spiffe://{domain}/{workload}"),
    };
    let san = cert.subject_alternative_name().map_err(|e| CheckError::Malformed(e.to_string()))?;
    let Some(san) = san else { return Err(CheckError::Names { seen: "none".into(), ordered }) };
    match san.value.general_names.as_slice() {
        [GeneralName::URI(uri)] if *uri == ordered => {}
        others => return Err(CheckError::Names { seen: format!("{others:?}"), ordered }),
    }
    // RFC 5280 §4.2.1.6: critical when the subject is empty, and only then.
    let empty = cert.subject().iter_attributes().next().is_none();
    if san.critical == empty {
        return Ok(());
    }
    Err(CheckError::Subject(format!("the SAN is critical: {}, the subject is empty: {empty}", san.critical)))
}

/// Exactly the extensions that this kind has, each once, with its right criticality (SAN's is judged with it).
fn extensions_present(cert: &X509Certificate<'_>, holder: &Holder) -> Result<(), CheckError> {
    let (aki, ski, san) = ("2.5.29.35", "2.5.29.14", "2.5.29.17");
    let (constraints, usage, extended) = ("2.5.29.19", "2.5.29.15", "2.5.29.37");
    let mut allowed = BTreeSet::from([aki, ski, san, constraints, usage]);
    if !matches!(holder, Holder::Root | Holder::Issuing | Holder::Intermediate(..)) {
        allowed.insert(extended);
    }
    if matches!(holder, Holder::Workload(..)) {
        allowed.insert("2.25.5178349013480112913");
    }
    if matches!(holder, Holder::Intermediate(..)) {
        allowed.insert("2.25.5178349013480112913.1");
    }
    for extension in cert.extensions() {
        let oid = extension.oid.to_id_string();
        let critical_is_wrong = extension.critical && ![san, constraints, usage].contains(&oid.as_str());
        if critical_is_wrong || !allowed.remove(oid.as_str()) {
            return Err(CheckError::Extension(oid));
        }
    }
    match allowed.first() {
        // Those with a rule of their own are missed there, by name.
        Some(missing) if *missing == aki || *missing == ski => Err(CheckError::Issuer("a key identifier is missing")),
        _ => Ok(()),
    }
}

fn basic_constraints(cert: &X509Certificate<'_>, holder: &Holder) -> Result<(), CheckError> {
    let found = cert.extensions().iter().find(|e| e.oid.to_id_string() == "2.5.29.19");
    let Some(found) = found else { return Err(CheckError::Constraints("basic constraints are missing")) };
    if !found.critical {
        return Err(CheckError::Constraints("basic constraints are not critical"));
    }
    // Compared as bytes: canonical DER leaves one spelling (X.690 §11.5 drops the default cA=false).
    let ordered: &[u8] = match holder {
        Holder::Root => &[0x30, 0x03, 0x01, 0x01, 0xff],
        Holder::Issuing => &[0x30, 0x06, 0x01, 0x01, 0xff, 0x02, 0x01, 0x01],
        Holder::Intermediate(..) => &[0x30, 0x06, 0x01, 0x01, 0xff, 0x02, 0x01, 0x00],
        Holder::Node(_) | Holder::Authority | Holder::PolicySigner | Holder::Workload(..) => &[0x30, 0x00],
    };
    if found.value == ordered { Ok(()) } else { Err(CheckError::Constraints("basic constraints are not as ordered")) }
}

fn key_usage(cert: &X509Certificate<'_>, holder: &Holder) -> Result<(), CheckError> {
    let usage = cert.key_usage().map_err(|_| CheckError::KeyUsage("key usage cannot be read"))?;
    let Some(usage) = usage else { return Err(CheckError::KeyUsage("key usage is missing")) };
    if !usage.critical {
        return Err(CheckError::KeyUsage("key usage is not critical"));
    }
    let mut flags = usage.value.flags;
    let ordered: &[u16] = match holder {
        // Bits of RFC 5280 §4.2.1.3: keyCertSign (5) and cRLSign (6).
        Holder::Root | Holder::Issuing | Holder::Intermediate(..) => &[5, 6],
        // digitalSignature (0)
        Holder::Node(_) | Holder::Authority | Holder::PolicySigner | Holder::Workload(..) => &[0],
    };
    for bit in ordered {
        if flags & (1 << bit) == 0 {
            return Err(CheckError::KeyUsage("a key usage is missing"));
        }
        flags &= !(1 << bit);
    }
    if flags == 0 { Ok(()) } else { Err(CheckError::KeyUsage("a key usage was not ordered")) }
}

fn extended_key_usage(cert: &X509Certificate<'_>, holder: &Holder) -> Result<(), CheckError> {
    let unreadable = |_| CheckError::ExtendedKeyUsage("extended key usage cannot be read");
    let found = cert.extended_key_usage().map_err(unreadable)?;
    if matches!(holder, Holder::Root | Holder::Issuing | Holder::Intermediate(..)) {
        return match found {
            None => Ok(()),
            Some(_) => Err(CheckError::ExtendedKeyUsage("a signing certificate has extended key usage")),
        };
    }
    let Some(found) = found else { return Err(CheckError::ExtendedKeyUsage("extended key usage is missing")) };
    let usage = found.value;
    let strange =
        usage.any || usage.code_signing || usage.email_protection || usage.time_stamping || usage.ocsp_signing;
    if *holder == Holder::PolicySigner {
        let policies = usage.other.iter().map(|oid| oid.to_id_string()).eq(["2.25.5178349013480112913.2"]);
        return match policies && !strange && !usage.server_auth && !usage.client_auth {
            true => Ok(()),
            false => Err(CheckError::ExtendedKeyUsage("it is not for signing policies, and nothing else")),
        };
    }
    let others = strange || !usage.other.is_empty();
    match (usage.server_auth && usage.client_auth, others) {
        (true, false) => Ok(()),
        (false, _) => Err(CheckError::ExtendedKeyUsage("it is not for both server and client authentication")),
        (true, true) => Err(CheckError::ExtendedKeyUsage("an extended key usage was not ordered")),
    }
}

fn fingerprint(cert: &X509Certificate<'_>, holder: &Holder) -> Result<(), CheckError> {
    let found = cert.extensions().iter().find(|e| e.oid.to_id_string() == "2.25.5178349013480112913");
    let Holder::Workload(_, program) = holder else {
        // extensions_present refused it already.
        return Ok(());
    };
    let Some(found) = found else { return Err(CheckError::Fingerprint("the extension is missing")) };
    program::same(found.value, program).map_err(CheckError::Fingerprint)
}

fn mandated(cert: &X509Certificate<'_>, holder: &Holder) -> Result<(), CheckError> {
    let Holder::Intermediate(_, ordered) = holder else { return Ok(()) };
    let found = cert.extensions().iter().find(|e| e.oid.to_id_string() == "2.25.5178349013480112913.1");
    let found = found.ok_or(CheckError::Mandate("the extension is missing"))?;
    mandate::same(found.value, ordered).map_err(CheckError::Mandate)
}

/// Read as verifiers read it: what they would refuse is not handed out.
fn granted(holder: &Holder, issuer: &X509Certificate<'_>) -> Result<(), CheckError> {
    let Holder::Workload(workload, _) = holder else { return Ok(()) };
    let found = issuer.extensions().iter().find(|e| e.oid.to_id_string() == "2.25.5178349013480112913.1");
    let mandate = found.and_then(|found| Mandate::from_der(found.value).ok());
    match mandate.is_some_and(|mandate| mandate.grant.allows(workload)) {
        true => Ok(()),
        false => Err(CheckError::NotGranted(workload.to_string())),
    }
}

fn inside_issuer(cert: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> Result<(), CheckError> {
    let (inner, outer) = (cert.validity(), issuer.validity());
    if inner.not_before < outer.not_before || inner.not_after > outer.not_after {
        let said = format!("{}..={}", inner.not_before.timestamp(), inner.not_after.timestamp());
        return Err(CheckError::Validity(format!("{said}, beyond its issuer's,")));
    }
    Ok(())
}

fn signature(cert: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> Result<(), CheckError> {
    if cert.issuer().as_raw() != issuer.subject().as_raw() {
        return Err(CheckError::Issuer("the issuer's name is not the issuer's"));
    }
    let may_sign = issuer.key_usage().ok().flatten().is_some_and(|u| u.value.key_cert_sign());
    if !may_sign || !issuer.is_ca() {
        return Err(CheckError::Issuer("it may not sign certificates"));
    }
    let names_key = authority_key_id(cert).is_some_and(|id| subject_key_id(issuer) == Some(id));
    if !names_key || subject_key_id(cert).is_none() {
        return Err(CheckError::Issuer("the key identifiers do not match"));
    }
    // ecdsa-with-SHA256, RFC 5758 §3.2
    let algorithms = [&cert.signature_algorithm, &cert.tbs_certificate.signature];
    if algorithms.iter().any(|a| a.algorithm.to_id_string() != "1.2.840.10045.4.3.2") {
        return Err(CheckError::Issuer("the signature algorithm is not ECDSA with SHA-256"));
    }
    cert.verify_signature(Some(issuer.public_key())).map_err(|_| CheckError::Issuer("the signature does not verify"))
}

fn subject_key_id<'a>(cert: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    cert.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

fn authority_key_id<'a>(cert: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    cert.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|k| k.0),
        _ => None,
    })
}

/// What a root certificate proves about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadRoot {
    /// The trust domain it is the root of.
    pub(crate) trust_domain: TrustDomain,
    /// Its own times.
    pub(crate) validity: Validity,
    /// Its SubjectPublicKeyInfo, DER.
    pub(crate) spki: Vec<u8>,
}

/// Checks a root that comes from a token or a file: every rule of a root, by its own names and times.
pub(crate) fn read_root(der: &[u8]) -> Result<ReadRoot, CheckError> {
    let cert = read(der)?;
    let san = cert.subject_alternative_name().map_err(|e| CheckError::Malformed(e.to_string()))?;
    let uri = san.iter().flat_map(|s| &s.value.general_names).find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
        _ => None,
    });
    let trust_domain: TrustDomain =
        uri.and_then(|domain| domain.parse().ok()).ok_or(CheckError::Subject("it names no trust domain".into()))?;
    let (validity, spki) = (times(&cert), cert.public_key().raw.to_vec());
    let order = Order { trust_domain: trust_domain.clone(), holder: Holder::Root, validity };
    check_der(der, &order, &spki, SignedBy::Itself)?;
    Ok(ReadRoot { trust_domain, validity, spki })
}

/// What an issuing certificate proves about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadIssuing {
    /// Its own times.
    pub(crate) validity: Validity,
    /// Its SubjectPublicKeyInfo, DER.
    pub(crate) spki: Vec<u8>,
    /// Its serial number, lower-case hex.
    pub(crate) serial: String,
}

/// Checks an issuing certificate that comes from a file: every rule of one, by its own key and times, and that this root
/// issued it.
pub(crate) fn read_issuing(
    der: &[u8],
    trust_domain: &TrustDomain,
    root: &CertificateDer<'_>,
) -> Result<ReadIssuing, CheckError> {
    let cert = read(der)?;
    let (validity, spki) = (times(&cert), cert.public_key().raw.to_vec());
    let order = Order { trust_domain: trust_domain.clone(), holder: Holder::Issuing, validity };
    let checked = check_der(der, &order, &spki, SignedBy::Issuer(root))?;
    Ok(ReadIssuing { validity, spki, serial: checked.serial })
}

/// Who certified what was received: one of the roots, or what one of them issued for that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Above<'a> {
    pub(crate) roots: &'a [CertificateDer<'static>],
    pub(crate) issuing: Option<&'a CertificateDer<'static>>,
}

/// Checks a certificate received from the authority: as ordered, for our key, below one of these roots; and says which.
pub(crate) fn received<'a>(
    der: &[u8],
    trust_domain: &TrustDomain,
    holder: Holder,
    spki: &[u8],
    above: Above<'a>,
) -> Result<(Validity, &'a CertificateDer<'static>), CheckError> {
    let validity = times(&read(der)?);
    let order = Order { trust_domain: trust_domain.clone(), holder, validity };
    let below = |root: &CertificateDer<'static>| match above.issuing {
        None => check_der(der, &order, spki, SignedBy::Issuer(root)),
        Some(issuing) => {
            read_issuing(issuing, trust_domain, root)?;
            check_der(der, &order, spki, SignedBy::Issuer(issuing))
        }
    };
    let mut outcome = Err(CheckError::Issuer("there is no root"));
    for root in above.roots {
        outcome = below(root).map(|_| (validity, root));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// The mandate that an intermediate received from the authority carries: whatever it grants is the authority's to say.
pub(crate) fn received_intermediate<'a>(
    der: &[u8],
    trust_domain: &TrustDomain,
    node: &NodeName,
    spki: &[u8],
    above: Above<'a>,
) -> Result<(Holder, Validity, &'a CertificateDer<'static>), CheckError> {
    let cert = read(der)?;
    let found = cert.extensions().iter().find(|e| e.oid.to_id_string() == "2.25.5178349013480112913.1");
    let found = found.ok_or(CheckError::Mandate("the extension is missing"))?;
    let mandate = Mandate::from_der(found.value).map_err(|_| CheckError::Mandate("it cannot be read"))?;
    let holder = Holder::Intermediate(node.clone(), mandate);
    let (validity, root) = received(der, trust_domain, holder.clone(), spki, above)?;
    Ok((holder, validity, root))
}

fn times(cert: &X509Certificate<'_>) -> Validity {
    Validity { from: cert.validity().not_before.timestamp(), until: cert.validity().not_after.timestamp() }
}

#[cfg(test)]
mod tests;
