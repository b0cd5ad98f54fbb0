//! From an order to the fields of a certificate. Builder's side: shares nothing with the checker.
//!
//! Rules: X509-SVID.md §2 to §4.

use bonafide_proto::fingerprint::Script;
use bonafide_proto::grant::{MANDATE_OID, Mandate};
use bonafide_proto::name::{SpiffeId, TrustDomain};
use bonafide_proto::signed_policy::POLICY_SIGNER_OID;
use bonafide_proto::svid::{CertifiedProgram, FINGERPRINT_OID};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use time::OffsetDateTime;

use crate::mint::MintError;
use crate::order::{Holder, Order};

/// Bytes of a serial number; RFC 5280 §4.1.2.2 allows 20.
const SERIAL_LEN: usize = 16;

/// Every field of the certificate but key, issuer and signature.
pub(crate) fn template(order: &Order) -> Result<CertificateParams, MintError> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial()?);
    params.not_before = instant(order.validity.from)?;
    params.not_after = instant(order.validity.until)?;
    params.distinguished_name = subject(&order.holder);
    params.subject_alt_names = vec![SanType::URI(uri(order).try_into().map_err(|_| MintError::Uri)?)];
    params.use_authority_key_identifier_extension = true;
    match &order.holder {
        Holder::Root => authority_constraints(&mut params, BasicConstraints::Unconstrained),
        Holder::Issuing => authority_constraints(&mut params, BasicConstraints::Constrained(1)),
        Holder::Intermediate(_, mandate) => {
            authority_constraints(&mut params, BasicConstraints::Constrained(0));
            params.custom_extensions = vec![CustomExtension::from_oid_content(&MANDATE_OID, mandated(mandate))];
        }
        Holder::Node(_) | Holder::Authority => leaf_constraints(&mut params),
        Holder::PolicySigner => {
            leaf_constraints(&mut params);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(POLICY_SIGNER_OID.to_vec())];
        }
        Holder::Workload(_, program) => {
            leaf_constraints(&mut params);
            params.custom_extensions = vec![CustomExtension::from_oid_content(&FINGERPRINT_OID, fingerprint(program))];
        }
    }
    Ok(params)
}

/// The name under which a holder appears as an issuer. Leaves have none: their SAN is critical instead.
pub(crate) fn subject(holder: &Holder) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    match holder {
        Holder::Root => {
            name.push(DnType::CommonName, "Bonafide root");
            name.push(DnType::OrganizationName, "Bonafide");
        }
        Holder::Issuing => {
            name.push(DnType::CommonName, "Bonafide issuing");
            name.push(DnType::OrganizationName, "Bonafide");
        }
        Holder::Intermediate(node, _) => {
            name.push(DnType::CommonName, node.as_str());
            name.push(DnType::OrganizationName, "Bonafide node");
        }
        Holder::Node(_) | Holder::Authority | Holder::PolicySigner | Holder::Workload(..) => {}
    }
    name
}

fn uri(order: &Order) -> String {
    let domain: &TrustDomain = &order.trust_domain;
    match &order.holder {
        // X509-SVID §3.2: a signing certificate's SPIFFE ID has no path. Nor has what is nobody's identity.
        Holder::Root | Holder::Issuing | Holder::Intermediate(..) | Holder::PolicySigner => {
            format!("spiffe://{domain}")
        }
        Holder::Node(node) => SpiffeId::node(domain, node).to_string(),
        Holder::Authority => SpiffeId::authority(domain).to_string(),
        Holder::Workload(workload, _) => SpiffeId::workload(domain, workload).to_string(),
    }
}

fn authority_constraints(params: &mut CertificateParams, constraints: BasicConstraints) {
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
}

fn leaf_constraints(params: &mut CertificateParams) {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
}

/// Random, positive, and always of full length.
fn serial() -> Result<SerialNumber, MintError> {
    let mut bytes = [0; SERIAL_LEN];
    SystemRandom::new().fill(&mut bytes).map_err(|_| MintError::Random)?;
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

fn instant(unix: i64) -> Result<OffsetDateTime, MintError> {
    OffsetDateTime::from_unix_timestamp(unix).map_err(|_| MintError::Time(unix))
}

/// The DER content of the fingerprint extension, as `bonafide_proto::program` documents it.
fn fingerprint(program: &CertifiedProgram) -> Vec<u8> {
    let taints: Vec<u8> = program.taints.iter().flat_map(|taint| tlv(UTF8_STRING, taint.as_str().as_bytes())).collect();
    let mut content = tlv(OCTET_STRING, &program.exe.0);
    content.extend(tlv(UTF8_STRING, program.program.as_bytes()));
    content.extend(tlv(INTEGER, &unsigned(program.uid)));
    content.extend(tlv(SEQUENCE, &taints));
    content.extend(program.script.iter().flat_map(script));
    let digests = [(LIBRARIES, program.libraries), (IMAGE, program.image)];
    content.extend(digests.iter().flat_map(|(tag, digest)| digest.iter().flat_map(|digest| tlv(*tag, &digest.0))));
    let hosts = [(BIOS_UUID, &program.bios_uuid), (MACHINE_ID, &program.machine_id)];
    content.extend(hosts.iter().flat_map(|(tag, text)| text.iter().flat_map(|text| tlv(*tag, text.as_bytes()))));
    content.extend(program.release.iter().flat_map(|release| tlv(RELEASE, release.as_str().as_bytes())));
    tlv(SEQUENCE, &content)
}

fn script(script: &Script) -> Vec<u8> {
    match script {
        Script::File(file) => {
            tlv(FILE, &[tlv(OCTET_STRING, &file.digest.0), tlv(UTF8_STRING, file.path.as_bytes())].concat())
        }
        Script::Inline(digest) => tlv(INLINE, &digest.0),
        Script::Stdin => tlv(STDIN, &[]),
    }
}

/// The DER content of an intermediate's mandate, as `bonafide_proto::grant` documents it.
fn mandated(mandate: &Mandate) -> Vec<u8> {
    let workloads: Vec<u8> = mandate.grant.patterns().flat_map(|text| tlv(UTF8_STRING, text.as_bytes())).collect();
    tlv(SEQUENCE, &[tlv(INTEGER, &unsigned(mandate.number)), tlv(SEQUENCE, &workloads)].concat())
}

/// The shortest bytes of an integer that is not negative (X.690 §8.3).
fn unsigned(value: impl Into<u64>) -> Vec<u8> {
    let bytes = [&[0], &value.into().to_be_bytes()[..]].concat();
    let spare = bytes.windows(2).take_while(|pair| matches!(pair, [0, next] if *next < 0x80)).count();
    bytes.into_iter().skip(spare).collect()
}

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const UTF8_STRING: u8 = 0x0c;
const SEQUENCE: u8 = 0x30;
const FILE: u8 = 0xa0;
const INLINE: u8 = 0x81;
const STDIN: u8 = 0x82;
const LIBRARIES: u8 = 0x83;
const IMAGE: u8 = 0x84;
const BIOS_UUID: u8 = 0x85;
const MACHINE_ID: u8 = 0x86;
const RELEASE: u8 = 0x87;

/// One DER element: tag, shortest length, value (X.690 §8.1, §10.1).
fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(value.len()) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let length: Vec<u8> = value.len().to_be_bytes().into_iter().skip_while(|b| *b == 0).collect();
            out.push(0x80 | u8::try_from(length.len()).unwrap_or(u8::MAX));
            out.extend(length);
        }
    }
    out.extend_from_slice(value);
    out
}
