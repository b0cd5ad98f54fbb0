//! A node's membership: its two keys, its two certificates and the roots, checked as a whole and kept in one file.
//!
//! One file, replaced by rename: keys and certificates can never be of two different renewals.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bonafide_proto::grant::Mandate;
use bonafide_proto::name::{NodeName, TrustDomain};
use bonafide_proto::svid::{Issuer, TrustBundle};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::authority::Membership;
use crate::certify::Signer;
use crate::checker::{self, Above, CheckError};
use crate::csr::{self, CsrError};
use crate::key::{self, Key, KeyError};
use crate::mesh::MeshState;
use crate::order::{Holder, Validity};
use crate::roots::{ROOTS_MAX, Roots, RootsRefusal};
use crate::state;
use crate::store::base64_bytes;

/// The largest membership file that is read, in bytes.
const FILE_MAX: u64 = 256 * 1024;

/// Why a membership was not taken.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// A key or its file.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No request.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// A certificate that is not what this node asked for.
    #[error("the {0} is not what this node asked for: {1}")]
    Certificate(&'static str, CheckError),
    /// The bundle.
    #[error("the roots cannot be trusted: {0}")]
    Roots(String),
    /// Others than the authority told before.
    #[error(transparent)]
    Replaced(#[from] RootsRefusal),
    /// Another trust domain than before.
    #[error("the authority is of trust domain {seen}; this node belongs to {expected}")]
    TrustDomain {
        /// What came.
        seen: TrustDomain,
        /// What this node expects.
        expected: TrustDomain,
    },
    /// The file is not what was written.
    #[error("membership file {} is damaged: {why}; remove it and join with a new token", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The file is of another node.
    #[error("{} belongs to node {seen}, but the configuration says {configured}", path.display())]
    AnotherNode {
        /// Where.
        path: PathBuf,
        /// Whose it is.
        seen: NodeName,
        /// What the configuration says.
        configured: NodeName,
    },
}

/// Fresh keys, not certified yet.
#[derive(Debug)]
pub(crate) struct Candidate {
    signing: Key,
    authentication: Key,
}

impl Candidate {
    /// Two new keys.
    pub(crate) fn generate() -> Result<Self, KeyError> {
        Ok(Self { signing: Key::generate()?, authentication: Key::generate()? })
    }

    /// The two requests: signing, authentication.
    pub(crate) fn requests(&self) -> Result<(Vec<u8>, Vec<u8>), CsrError> {
        Ok((csr::request(&self.signing)?, csr::request(&self.authentication)?))
    }
}

/// A membership that was checked as a whole.
#[derive(Debug, Clone)]
pub struct Member {
    name: NodeName,
    signer: Arc<Signer>,
    authentication: Arc<Key>,
    node_svid: CertificateDer<'static>,
    bundle: TrustBundle,
    sequence: u64,
    renew_at: i64,
    /// The root by which both certificates were issued.
    issued_by: CertificateDer<'static>,
}

impl Member {
    /// Takes what the authority issued, if it is exactly what was asked for.
    ///
    /// `before`: the membership it continues, if any.
    pub(crate) fn take(
        name: &NodeName,
        candidate: Candidate,
        issued: Membership,
        expected: &TrustDomain,
        before: Option<&Member>,
    ) -> Result<Self, MemberError> {
        if issued.trust_domain != *expected {
            return Err(MemberError::TrustDomain { seen: issued.trust_domain, expected: expected.clone() });
        }
        let told = Roots { sequence: issued.sequence, certificates: issued.roots };
        let roots = match before.map(|before| told.succeed(before.sequence, before.bundle.roots())) {
            None | Some(Ok(_)) => told,
            // The answer was on its way when the roots changed, or it comes of an authority from a backup.
            Some(Err(RootsRefusal::Older { .. })) => before.map_or(told, Member::roots),
            Some(Err(refusal)) => return Err(refusal.into()),
        };
        let issued = Membership { roots: Vec::new(), ..issued };
        Self::check(name, candidate, issued, roots, None)
    }

    fn check(
        name: &NodeName,
        keys: Candidate,
        issued: Membership,
        told: Roots,
        issued_by: Option<CertificateDer<'static>>,
    ) -> Result<Self, MemberError> {
        let Membership { trust_domain, intermediate, node_svid, issuing, .. } = issued;
        let Roots { sequence, certificates: roots } = told;
        check_roots(&trust_domain, &roots)?;
        // A root that was retired since has certified them all the same.
        let possible: Vec<_> = issued_by.map_or_else(|| roots.clone(), |root| vec![root]);
        let spki = rcgen::PublicKeyData::subject_public_key_info(&keys.signing);
        let (holder, validity, by) = checker::received_intermediate(
            &intermediate,
            &trust_domain,
            name,
            &spki,
            Above { roots: &possible, issuing: issuing.as_ref() },
        )
        .map_err(|e| MemberError::Certificate("intermediate", e))?;
        let spki = rcgen::PublicKeyData::subject_public_key_info(&keys.authentication);
        let by = std::slice::from_ref(by);
        let (own, _) = checker::received(
            &node_svid,
            &trust_domain,
            Holder::Node(name.clone()),
            &spki,
            Above { roots: by, issuing: issuing.as_ref() },
        )
        .map_err(|e| MemberError::Certificate("node SVID", e))?;
        let issued_by = by.first().cloned().ok_or_else(|| MemberError::Roots("there is none".into()))?;
        let bundle = TrustBundle::new(trust_domain, roots).map_err(|e| MemberError::Roots(e.to_string()))?;
        Ok(Self {
            name: name.clone(),
            signer: Arc::new(Signer { key: keys.signing, certificate: intermediate, holder, validity, above: issuing }),
            authentication: Arc::new(keys.authentication),
            node_svid,
            bundle,
            sequence,
            renew_at: renewal_time(validity.half().min(own.half()), validity),
            issued_by,
        })
    }

    /// The same membership under the roots that the authority tells now; `None`: they are the same.
    ///
    /// # Errors
    /// The named refusal; what was known stays.
    pub(crate) fn under(&self, told: &Roots) -> Result<Option<Self>, RootsRefusal> {
        if !told.succeed(self.sequence, self.bundle.roots())? {
            return Ok(None);
        }
        let domain = self.bundle.trust_domain();
        let wrong = |e: &dyn std::fmt::Display| RootsRefusal::Wrong(e.to_string());
        check_roots(domain, &told.certificates).map_err(|e| wrong(&e))?;
        let bundle = TrustBundle::new(domain.clone(), told.certificates.clone()).map_err(|e| wrong(&e))?;
        Ok(Some(Self { bundle, sequence: told.sequence, ..self.clone() }))
    }

    fn roots(&self) -> Roots {
        Roots { sequence: self.sequence, certificates: self.bundle.roots().to_vec() }
    }

    /// Whether another root than the one that certified this node certifies nodes now.
    #[must_use]
    pub fn is_of_older_root(&self) -> bool {
        self.bundle.roots().first() != Some(&self.issued_by)
    }

    /// Whether the root that certified this node was retired: nobody takes it for a member.
    #[must_use]
    pub fn is_of_retired_root(&self) -> bool {
        !self.bundle.roots().contains(&self.issued_by)
    }

    /// The node.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// The trust domain and its roots.
    #[must_use]
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// Counts the changes of the roots.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The certificate by which the node authenticates.
    #[must_use]
    pub fn node_svid(&self) -> &CertificateDer<'static> {
        &self.node_svid
    }

    /// What the node shows to authenticate: that certificate, and what stands between it and the root.
    #[must_use]
    pub fn shown(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.node_svid).chain(&self.signer.above).cloned().collect()
    }

    /// End of the intermediate, unix seconds.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.signer.validity.until
    }

    /// When it should be renewed, unix seconds: half-life, give or take a tenth.
    #[must_use]
    pub fn renew_at(&self) -> i64 {
        self.renew_at
    }

    /// What the authority lets this node issue, and under which number.
    ///
    /// `None`: the signer is no node's, which cannot be.
    #[must_use]
    pub fn mandate(&self) -> Option<&Mandate> {
        match &self.signer.holder {
            Holder::Intermediate(_, mandate) => Some(mandate),
            _ => None,
        }
    }

    /// The intermediate, as those see it who are shown what it issued.
    #[must_use]
    pub fn issuer(&self) -> Option<Issuer> {
        self.mandate().map(|mandate| Issuer { node: self.name.clone(), number: mandate.number })
    }

    /// Signs leaves.
    pub(crate) fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Authenticates the node.
    pub(crate) fn authentication(&self) -> &Key {
        &self.authentication
    }

    /// Replaces the file by this membership, durably.
    pub(crate) fn save(&self, path: &Path) -> Result<(), MemberError> {
        let file = MemberFile {
            node: self.name.clone(),
            trust_domain: self.bundle.trust_domain().clone(),
            sequence: self.sequence,
            signing_key: self.signer.key.pkcs8().to_vec(),
            intermediate: self.signer.certificate.to_vec(),
            authentication_key: self.authentication.pkcs8().to_vec(),
            node_svid: self.node_svid.to_vec(),
            roots: self.bundle.roots().iter().map(|r| Der(r.to_vec())).collect(),
            issued_by: Some(Der(self.issued_by.to_vec())),
            issuing: self.signer.above.as_ref().map(|issuing| Der(issuing.to_vec())),
        };
        let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(FILE_MAX).unwrap_or(0)));
        serde_json::to_writer_pretty(&mut *text, &file).map_err(|e| damaged(path, &e))?;
        state::replace(path, &text).map_err(|source| KeyError::File { path: path.to_owned(), source }.into())
    }

    /// Reads and checks the file; `None` if there is none.
    pub(crate) fn load(path: &Path, configured: &NodeName) -> Result<Option<Self>, MemberError> {
        let text = match key::read_secret(path, FILE_MAX) {
            Err(KeyError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut file: MemberFile = serde_json::from_slice(&text).map_err(|e| damaged(path, &e))?;
        if file.node != *configured {
            let (seen, configured) = (file.node.clone(), configured.clone());
            return Err(MemberError::AnotherNode { path: path.to_owned(), seen, configured });
        }
        let keys = Candidate {
            signing: Key::from_pkcs8(Zeroizing::new(std::mem::take(&mut file.signing_key)))?,
            authentication: Key::from_pkcs8(Zeroizing::new(std::mem::take(&mut file.authentication_key)))?,
        };
        let issued = Membership {
            trust_domain: file.trust_domain.clone(),
            intermediate: std::mem::take(&mut file.intermediate).into(),
            node_svid: std::mem::take(&mut file.node_svid).into(),
            issuing: file.issuing.take().map(|issuing| issuing.0.into()),
            roots: Vec::new(),
            sequence: file.sequence,
            mesh: MeshState::default(),
        };
        let certificates = std::mem::take(&mut file.roots).into_iter().map(|r| r.0.into()).collect();
        let (roots, issued_by) = (Roots { sequence: file.sequence, certificates }, file.issued_by.take());
        let member = Self::check(configured, keys, issued, roots, issued_by.map(|root| root.0.into()));
        member.map(Some).map_err(|e| damaged(path, &e))
    }
}

/// Every root is a root of this trust domain.
fn check_roots(trust_domain: &TrustDomain, roots: &[CertificateDer<'static>]) -> Result<(), MemberError> {
    if roots.is_empty() || roots.len() > ROOTS_MAX {
        return Err(MemberError::Roots(format!("there are {} of them; 1 to {ROOTS_MAX} are taken", roots.len())));
    }
    for root in roots {
        let read = checker::read_root(root).map_err(|e| MemberError::Roots(e.to_string()))?;
        if read.trust_domain != *trust_domain {
            let (seen, expected) = (read.trust_domain, trust_domain.clone());
            return Err(MemberError::TrustDomain { seen, expected });
        }
    }
    Ok(())
}

/// Around `half`, by chance, so that the nodes of a domain do not all ask at once.
fn renewal_time(half: i64, validity: Validity) -> i64 {
    let mut byte = [0u8; 1];
    // Without chance there is still half-life.
    let chance = SystemRandom::new().fill(&mut byte).map_or(128, |()| i64::from(byte[0]));
    half + (validity.until - validity.from) * (chance - 128) / 1280
}

fn damaged(path: &Path, why: &dyn std::fmt::Display) -> MemberError {
    MemberError::Damaged { path: path.to_owned(), why: why.to_string() }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberFile {
    node: NodeName,
    trust_domain: TrustDomain,
    sequence: u64,
    #[serde(with = "base64_bytes")]
    signing_key: Vec<u8>,
    #[serde(with = "base64_bytes")]
    intermediate: Vec<u8>,
    #[serde(with = "base64_bytes")]
    authentication_key: Vec<u8>,
    #[serde(with = "base64_bytes")]
    node_svid: Vec<u8>,
    roots: Vec<Der>,
    /// Absent: an earlier version wrote this, and it is one of the roots.
    #[serde(default)]
    issued_by: Option<Der>,
    /// Absent: the root certified both itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issuing: Option<Der>,
}

#[derive(Serialize, Deserialize)]
struct Der(#[serde(with = "base64_bytes")] Vec<u8>);

impl Drop for MemberFile {
    fn drop(&mut self) {
        self.signing_key.zeroize();
        self.authentication_key.zeroize();
    }
}
