//! A certificate of an existing PKI, and that its holder has the key: the node signs what is of this TLS session, of its two
//! certificate requests, and of a nonce of either end.
//!
//! The node's name is the certificate's common name, or its only DNS name. Whether that certificate was revoked is asked
//! of the certificate revocation lists that are configured, as those files are at that moment, and of nobody else; as long as
//! one of them cannot be read, nobody is admitted so.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::grant::Grant;
use bonafide_proto::name::NodeName;
use bonafide_proto::tls::provider;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::SigningKey;
use rustls::{CertificateError, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{Answer, Attestor, Challenge, Claim, Evidence, Proof, Prover, Round, Step};
use crate::refusal::MembershipRefusal;

/// The most certificates of a chain.
pub const CHAIN_MAX: usize = 6;
/// The largest certificate, in bytes.
pub const CERTIFICATE_MAX: usize = 8 * 1024;
/// The largest signature, in bytes: RSA of 8192 bits.
pub const SIGNATURE_MAX: usize = 1024;
/// The largest file that is read, in bytes.
const FILE_MAX: u64 = 4 * 1024 * 1024;
/// What is signed begins with it, so that it is never mistaken for anything else that such a key signs.
const STATEMENT: &[u8] = b"bonafide x509pop v1\0";

/// What one end contributes by chance.
pub type Nonce = [u8; 32];

/// How keys sign: those of TLS 1.3.
const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// What a node shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// DER, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The node's.
    pub nonce: Nonce,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// How (RFC 8446 §4.2.3).
    pub scheme: u16,
    /// By the key of the leaf.
    pub signature: Vec<u8>,
}

/// Where a certificate names its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// Its common name, of which there is one.
    CommonName,
    /// Its DNS name, of which there is one.
    Dns,
}

/// Why there is no attestor, or no prover.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("x509pop: {0}")]
pub struct X509PopError(String);

/// The attestor.
pub struct X509Pop {
    roots: Arc<RootCertStore>,
    crls: Vec<PathBuf>,
    read: Mutex<Read>,
    name: NameRule,
    grant: Option<Grant>,
}

/// What was made of the revocation lists, and of which versions of their files.
struct Read {
    versions: Vec<Version>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// Another one, most likely, when a file was changed or replaced: inode, size, and time of change in seconds and nanoseconds.
type Version = (u64, u64, i64, i64);

impl fmt::Debug for X509Pop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Pop").field("name", &self.name).field("grant", &self.grant).finish_non_exhaustive()
    }
}

impl X509Pop {
    /// Takes certificates that these CAs issued, unless one of these lists revokes them. `grant`: what nodes that come so may
    /// issue; `None`: what their names were granted before, else nothing.
    ///
    /// # Errors
    /// [`X509PopError`], naming the file that is no good.
    pub fn open(cas: &[PathBuf], crls: &[PathBuf], name: NameRule, grant: Option<Grant>) -> Result<Self, X509PopError> {
        let mut roots = RootCertStore::empty();
        for path in cas {
            for root in certificates(path)? {
                roots.add(root).map_err(|e| X509PopError(format!("{}: {e}", path.display())))?;
            }
        }
        let roots = Arc::new(roots);
        let read = Mutex::new(Read { versions: versions(crls)?, verifier: verifier(&roots, crls)? });
        Ok(Self { roots, crls: crls.to_vec(), read, name, grant })
    }

    /// By the lists as they are now.
    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, X509PopError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at before they are read: what is changed meanwhile is read again.
        let versions = versions(&self.crls)?;
        if read.versions != versions {
            *read = Read { versions, verifier: verifier(&self.roots, &self.crls)? };
            tracing::info!("the certificate revocation lists changed, and were read again");
        }
        Ok(Arc::clone(&read.verifier))
    }
}

fn versions(crls: &[PathBuf]) -> Result<Vec<Version>, X509PopError> {
    use std::os::unix::fs::MetadataExt as _;
    let version = |path: &PathBuf| match std::fs::metadata(path) {
        Ok(file) => Ok((file.ino(), file.size(), file.ctime(), file.ctime_nsec())),
        Err(e) => Err(X509PopError(format!("{}: {e}", path.display()))),
    };
    crls.iter().map(version).collect()
}

fn verifier(roots: &Arc<RootCertStore>, crls: &[PathBuf]) -> Result<Arc<dyn ClientCertVerifier>, X509PopError> {
    let mut revoked = Vec::new();
    for path in crls {
        let failed = |e: &dyn fmt::Display| X509PopError(format!("{}: {e}", path.display()));
        let lists = CertificateRevocationListDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
        match lists.map_err(|e| failed(&e))? {
            none if none.is_empty() => return Err(failed(&"there is no revocation list in it, in PEM")),
            some => revoked.extend(some),
        }
    }
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider().clone())
        .with_crls(revoked)
        .allow_unknown_revocation_status()
        // RFC 5280 §6.3.3: one whose nextUpdate has passed says nothing of what was revoked since.
        .enforce_revocation_expiration()
        .build()
        .map_err(|e| X509PopError(e.to_string()))
}

impl Attestor for X509Pop {
    fn begin(&self, claim: &Claim, evidence: Evidence) -> Result<Step, MembershipRefusal> {
        let Evidence::X509Pop(Shown { chain, nonce }) = evidence else { return Err(MembershipRefusal::ProofNotTaken) };
        let untrusted = |why: String| MembershipRefusal::CertificateUntrusted(why);
        let (leaf, rest) = chain.split_first().ok_or_else(|| untrusted("there is none".into()))?;
        if chain.len() > CHAIN_MAX || chain.iter().any(|one| one.len() > CERTIFICATE_MAX) {
            return Err(untrusted("the chain is too long or too large".into()));
        }
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(claim.now.max(0).unsigned_abs()));
        let verifier = self.verifier().map_err(|e| {
            tracing::error!(error = %e, "nobody is admitted by a certificate until its revocation lists can be read");
            untrusted("whether it was revoked is not known: the authority's revocation lists cannot be read".into())
        })?;
        verifier.verify_client_cert(leaf, rest, now).map_err(|e| distrust(&e))?;
        let named = name_of(leaf, self.name)?;
        if named != claim.node {
            return Err(MembershipRefusal::CertificateForAnotherNode(named));
        }
        let asked = random()?;
        let round = Asked { leaf: leaf.clone(), shown: nonce, asked, grant: self.grant.clone() };
        Ok(Step::Challenged(Challenge::X509Pop(asked), Box::new(round)))
    }
}

/// A nonce that waits to be signed.
struct Asked {
    leaf: CertificateDer<'static>,
    shown: Nonce,
    asked: Nonce,
    grant: Option<Grant>,
}

impl Round for Asked {
    fn answer(self: Box<Self>, claim: &Claim, answer: Answer) -> Result<Step, MembershipRefusal> {
        let Answer::X509Pop(Signed { scheme, signature }) = answer;
        let statement = statement(&claim.binding, &self.shown, &self.asked);
        if signature.len() > SIGNATURE_MAX || !is_signed(&self.leaf, scheme.into(), &statement, &signature) {
            return Err(MembershipRefusal::WrongProof);
        }
        Ok(Step::Proven(Proof::Certified(self.grant)))
    }
}

fn statement(binding: &[u8; 32], shown: &Nonce, asked: &Nonce) -> Vec<u8> {
    [STATEMENT, binding, shown, asked].concat()
}

fn is_signed(leaf: &CertificateDer<'_>, scheme: SignatureScheme, statement: &[u8], signature: &[u8]) -> bool {
    let Ok((_, cert)) = X509Certificate::from_der(leaf) else { return false };
    let known = SCHEMES.contains(&scheme);
    let mapping = provider().signature_verification_algorithms.mapping.iter().filter(|(of, _)| known && *of == scheme);
    let key = cert.public_key();
    // SubjectPublicKeyInfo's algorithm, without the header of its SEQUENCE, is how webpki names kinds of keys.
    mapping.flat_map(|(_, algorithms)| algorithms.iter()).any(|algorithm| {
        let id: &[u8] = &algorithm.public_key_alg_id();
        let kind = contains_algorithm(key.raw, id);
        kind && algorithm.verify_signature(&key.subject_public_key.data, statement, signature).is_ok()
    })
}

/// Whether this SubjectPublicKeyInfo is of this kind: SEQUENCE { SEQUENCE { kind }, … }.
fn contains_algorithm(spki: &[u8], kind: &[u8]) -> bool {
    let inner = match spki {
        [0x30, 0..=0x7f, inner @ ..] | [0x30, 0x81, _, inner @ ..] | [0x30, 0x82, _, _, inner @ ..] => inner,
        _ => return false,
    };
    match inner {
        [0x30, length, algorithm @ ..] => algorithm.get(..usize::from(*length)) == Some(kind),
        _ => false,
    }
}

fn distrust(e: &rustls::Error) -> MembershipRefusal {
    match e {
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            MembershipRefusal::CertificateExpired
        }
        rustls::Error::InvalidCertificate(CertificateError::Revoked) => MembershipRefusal::CertificateRevoked,
        rustls::Error::InvalidCertificate(
            CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. },
        ) => {
            tracing::error!("nobody is admitted by a certificate of an issuer whose revocation list has expired");
            MembershipRefusal::RevocationListExpired
        }
        e => MembershipRefusal::CertificateUntrusted(e.to_string()),
    }
}

fn name_of(leaf: &CertificateDer<'_>, rule: NameRule) -> Result<NodeName, MembershipRefusal> {
    let none = |why: &str| MembershipRefusal::CertificateUntrusted(format!("it names no node: {why}"));
    let (_, cert) = X509Certificate::from_der(leaf).map_err(|_| none("it cannot be read"))?;
    let names: Vec<String> = match rule {
        NameRule::CommonName => {
            cert.subject().iter_common_name().map(|name| name.as_str().unwrap_or_default().to_owned()).collect()
        }
        NameRule::Dns => {
            let san = cert.subject_alternative_name().map_err(|_| none("its names cannot be read"))?;
            let dns = |name: &GeneralName<'_>| match name {
                GeneralName::DNSName(dns) => Some((*dns).to_owned()),
                _ => None,
            };
            san.iter().flat_map(|san| san.value.general_names.iter().filter_map(dns)).collect()
        }
    };
    match names.as_slice() {
        [one] => one.parse().map_err(|e| none(&format!("{one:?} {e}"))),
        several => Err(none(&format!("it has {} such names, and not one", several.len()))),
    }
}

fn random() -> Result<Nonce, MembershipRefusal> {
    let mut nonce = [0; 32];
    let failed = |_| MembershipRefusal::BadRequest("no nonce: the system's random source failed".into());
    SystemRandom::new().fill(&mut nonce).map(|()| nonce).map_err(failed)
}

/// The prover: a certificate of the existing PKI, and its key.
#[derive(Debug)]
pub struct X509Holder {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
}

impl X509Holder {
    /// Reads both from PEM files.
    ///
    /// # Errors
    /// [`X509PopError`], naming the file that is no good.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, X509PopError> {
        let bytes = zeroize::Zeroizing::new(read(key)?);
        let failed = |e: &dyn fmt::Display| X509PopError(format!("{}: {e}", key.display()));
        let parsed = PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| failed(&e))?;
        let chain = certificates(certificate)?;
        Ok(Self { chain, key: any_supported_type(&parsed).map_err(|e| failed(&e))? })
    }
}

impl Prover for X509Holder {
    fn begin(&self) -> Result<Evidence, String> {
        let nonce = random().map_err(|e| e.to_string())?;
        Ok(Evidence::X509Pop(Shown { chain: self.chain.clone(), nonce }))
    }

    fn answer(&self, begun: &Evidence, binding: &[u8; 32], challenge: &Challenge) -> Result<Answer, String> {
        let (Evidence::X509Pop(Shown { nonce, .. }), Challenge::X509Pop(asked)) = (begun, challenge) else {
            return Err("the authority asks for another kind of proof".into());
        };
        let signer = self.key.choose_scheme(&SCHEMES).ok_or("the key signs in no way that is taken here")?;
        let signature = signer.sign(&statement(binding, nonce, asked)).map_err(|e| e.to_string())?;
        Ok(Answer::X509Pop(Signed { scheme: signer.scheme().into(), signature }))
    }
}

/// The certificates of a PEM file; at least one.
///
/// # Errors
/// [`X509PopError`], naming the file.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, X509PopError> {
    let failed = |e: &dyn fmt::Display| X509PopError(format!("{}: {e}", path.display()));
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match read.map_err(|e| failed(&e))? {
        none if none.is_empty() => Err(failed(&"there is no certificate in it, in PEM")),
        some => Ok(some),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, X509PopError> {
    use std::io::Read as _;
    let failed = |e: std::io::Error| X509PopError(format!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(FILE_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
