//! Those in whose name the authority certifies: one for each root. One of them is active.

use std::sync::Arc;

use bonafide_proto::svid::TrustBundle;
use rustls::pki_types::CertificateDer;

use crate::certify::{IssueError, Signer};
use crate::checker::{self, ReadRoot};
use crate::founding::{Charter, OpenError};
use crate::key::{RootKey, RootKeyHome as _};
use crate::order::{Holder, Validity};
use crate::roots::Roots;
use crate::store::{RootRecord, RootsRecord, Stage};

/// One root, and its key if that is on this host.
#[derive(Debug, Clone)]
pub(crate) struct Issuer {
    pub(crate) number: u64,
    pub(crate) stage: Stage,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) validity: Validity,
    pub(crate) signer: Option<Arc<Signer<RootKey>>>,
    /// There was no key; it may be brought yet.
    away: bool,
}

/// All of them, as the store has them.
#[derive(Debug)]
pub(crate) struct Issuers {
    record: RootsRecord,
    /// By number; the active one is in it.
    all: Vec<Issuer>,
    active: Issuer,
    bundle: TrustBundle,
}

impl Issuers {
    /// Those of this record. Keys that `before` has are not read again: a passphrase may be told only once.
    pub(crate) fn open(charter: &Charter, record: RootsRecord, before: Option<&Self>) -> Result<Self, OpenError> {
        let found = record.at(Stage::Active).ok_or(OpenError::NoActiveRoot)?;
        let active = Issuer::open(charter, found, before)?;
        let mut all = Vec::new();
        for root in &record.roots {
            all.push(match root.number == active.number {
                true => active.clone(),
                false => Issuer::open(charter, root, before)?,
            });
        }
        let bundle = TrustBundle::new(charter.trust_domain.clone(), trusted(&active, &all))?;
        Ok(Self { record, all, active, bundle })
    }

    /// The first one, whose key was just made.
    pub(crate) fn founded(charter: &Charter, record: RootsRecord, signer: Signer<RootKey>) -> Result<Self, OpenError> {
        let (certificate, validity) = (signer.certificate.clone(), signer.validity);
        let signer = Some(Arc::new(signer));
        let active = Issuer { number: record.last, stage: Stage::Active, certificate, validity, signer, away: false };
        let bundle = TrustBundle::new(charter.trust_domain.clone(), vec![active.certificate.clone()])?;
        Ok(Self { record, all: vec![active.clone()], active, bundle })
    }

    /// What the store has about them.
    pub(crate) fn record(&self) -> &RootsRecord {
        &self.record
    }

    /// Every one, by number.
    pub(crate) fn all(&self) -> &[Issuer] {
        &self.all
    }

    /// Certifies nodes.
    pub(crate) fn active(&self) -> &Issuer {
        &self.active
    }

    /// Signs what has to be believed by nodes that were away meanwhile, too: the oldest root that is trusted.
    pub(crate) fn presiding(&self, now: i64) -> &Issuer {
        let mut trusted = self.all.iter().filter(|issuer| issuer.is_trusted());
        trusted.find(|issuer| issuer.signer.is_some() && issuer.validity.covers(now)).unwrap_or(&self.active)
    }

    /// Whether a key was brought that was not here.
    pub(crate) fn lack_what_is_here(&self, charter: &Charter) -> bool {
        self.all.iter().any(|issuer| issuer.away && charter.key_of(issuer.number).is_there())
    }

    /// Those that nodes trust.
    pub(crate) fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The same, as nodes are told.
    pub(crate) fn told(&self) -> Roots {
        Roots { sequence: self.record.sequence, certificates: self.bundle.roots().to_vec() }
    }

    /// Those whose certificates are accepted, by number.
    pub(crate) fn trusted(&self) -> impl Iterator<Item = &Issuer> {
        self.all.iter().filter(|issuer| issuer.is_trusted())
    }
}

impl Issuer {
    fn open(charter: &Charter, root: &RootRecord, before: Option<&Issuers>) -> Result<Self, OpenError> {
        let ReadRoot { trust_domain, validity, spki } = checker::read_root(&root.certificate)?;
        if trust_domain != charter.trust_domain {
            let (path, configured) = (charter.state.clone(), charter.trust_domain.clone());
            return Err(OpenError::TrustDomain { path, seen: trust_domain, configured });
        }
        let certificate = CertificateDer::from(root.certificate.clone());
        let mut known = before.into_iter().flat_map(|before| &before.all);
        let known = known.find(|known| known.certificate == certificate).and_then(|known| known.signer.clone());
        let away = known.is_none() && !charter.key_of(root.number).is_there();
        let signer = match known {
            Some(signer) => Some(signer),
            None if away => None,
            None => signer(charter, root, &spki, validity)?,
        };
        Ok(Self { number: root.number, stage: root.stage, certificate, validity, signer, away })
    }

    /// Its signer.
    ///
    /// # Errors
    /// [`IssueError::KeyAway`].
    pub(crate) fn signer(&self, charter: &Charter) -> Result<&Arc<Signer<RootKey>>, IssueError> {
        self.signer.as_ref().ok_or_else(|| IssueError::KeyAway(charter.key_of(self.number).path))
    }

    fn is_trusted(&self) -> bool {
        self.stage != Stage::Prepared
    }
}

/// The active one first.
fn trusted(active: &Issuer, all: &[Issuer]) -> Vec<CertificateDer<'static>> {
    let others = all.iter().filter(|issuer| issuer.is_trusted() && issuer.number != active.number);
    std::iter::once(active).chain(others).map(|issuer| issuer.certificate.clone()).collect()
}

/// Without the key of the active root there is no authority; without that of another one it says so when it is needed.
fn signer(
    charter: &Charter,
    root: &RootRecord,
    spki: &[u8],
    validity: Validity,
) -> Result<Option<Arc<Signer<RootKey>>>, OpenError> {
    let home = charter.key_of(root.number);
    let opened =
        home.open().map_err(OpenError::from).and_then(|key| {
            match rcgen::PublicKeyData::subject_public_key_info(&key) == spki {
                true => Ok(key),
                false => Err(OpenError::Mismatch(home.path.clone())),
            }
        });
    match opened {
        Ok(key) => {
            let certificate = CertificateDer::from(root.certificate.clone());
            Ok(Some(Arc::new(Signer { key, certificate, holder: Holder::Root, validity })))
        }
        Err(e) if root.stage != Stage::Active => {
            tracing::error!(root = root.number, error = %e, "the key of a root that is not active cannot be used");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}
