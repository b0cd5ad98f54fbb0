//! A next root that is offline: made and certifying elsewhere, and judged here as if a stranger had made it.

use rcgen::PublicKeyData as _;
use rustls::pki_types::CertificateDer;

use super::{Made, Rotation, RotationError, stepped};
use crate::certify;
use crate::checker::{self, ReadIssuing, ReadRoot};
use crate::key::{KeyError, RootKeyHome as _};
use crate::order::{Holder, Order};
use crate::store::{By, IssuingRecord, RootRecord, RootsRecord, Stage};

/// A root, and the certificate by which the authority certifies in its name.
#[derive(Debug, Clone)]
pub struct NextRoot {
    /// Of the root.
    pub root: CertificateDer<'static>,
    /// For the authority's next issuing key.
    pub issuing: CertificateDer<'static>,
}

impl Rotation {
    /// The first step, by a root that is offline; false if it was made before.
    pub(crate) fn prepare_offline(&self, by: &By, next: &NextRoot) -> Result<bool, RotationError> {
        let _one = self.stepping();
        loop {
            match self.prepare_next(by, self.fresh()?.record(), next)? {
                Made::Before => return Ok(false),
                Made::Now => return self.fresh().map(|_| true).map_err(RotationError::from),
                Made::Lost => {}
            }
        }
    }

    fn prepare_next(&self, by: &By, seen: &RootsRecord, next: &NextRoot) -> Result<Made, RotationError> {
        match seen.roots.iter().find(|root| root.stage != Stage::Active) {
            Some(root) if root.stage == Stage::Prepared && *root.certificate == *next.root => return Ok(Made::Before),
            Some(root) => return Err(RotationError::UnderWay(root.number, root.stage)),
            None => {}
        }
        let (now, number) = (self.clock.unix(), seen.last.saturating_add(1));
        let read = self.judge(seen, next, now)?;
        let (waiting, home) = (self.charter.next_issuing_key(), self.charter.issuing_key_of(number));
        // It may be there from an attempt that was interrupted.
        let key = if home.is_there() { home.open()? } else { waiting.open()? };
        if key.subject_public_key_info() != read.spki {
            return Err(RotationError::NextKey(waiting.path));
        }
        let moved = |source| KeyError::File { path: home.path.clone(), source };
        if !home.is_there() {
            std::fs::rename(&waiting.path, &home.path).map_err(moved)?;
        }
        let record = IssuingRecord { since: now, certificate: next.issuing.to_vec() };
        let (certificate, issuing) = (next.root.to_vec(), Some(record));
        let event = stepped("root-prepared", by, number, &certificate).with("root-key", "offline");
        let mut new = RootsRecord { last: number, ..seen.clone() };
        new.roots.push(RootRecord { number, stage: Stage::Prepared, since: now, certificate, issuing });
        let (trust_domain, holder) = (self.charter.trust_domain.clone(), Holder::Issuing);
        let order = Order { trust_domain, holder, validity: read.validity };
        let mut change = self.store.change();
        change.roots(Some(seen), &new)?;
        change.note(event);
        change.enter(by, &read.serial, &certify::entry(&order, None, now))?;
        if change.commit()?.is_some() {
            return Ok(Made::Now);
        }
        // The number is another authority's; the key waits for the next one.
        std::fs::rename(&home.path, &waiting.path).map_err(moved)?;
        match self.store.entry(&read.serial)? {
            Some(_) => Err(crate::store::StoreError::SerialTaken(read.serial).into()),
            None => Ok(Made::Lost),
        }
    }

    fn judge(&self, seen: &RootsRecord, next: &NextRoot, now: i64) -> Result<ReadIssuing, RotationError> {
        let domain = &self.charter.trust_domain;
        let ReadRoot { trust_domain, validity, .. } =
            checker::read_root(&next.root).map_err(|e| RotationError::NextRoot(e.to_string()))?;
        if trust_domain != *domain {
            return Err(RotationError::NextRoot(format!("it is of trust domain {trust_domain}, not {domain}")));
        }
        if seen.roots.iter().any(|root| *root.certificate == *next.root) {
            return Err(RotationError::NextRoot("it is a root already".into()));
        }
        let read = checker::read_issuing(&next.issuing, domain, &next.root)
            .map_err(|e| RotationError::NextRoot(format!("it did not certify this issuing certificate: {e}")))?;
        if !validity.covers(now) || !read.validity.covers(now) {
            return Err(RotationError::NextRoot("it, or what it certified, is not valid now".into()));
        }
        super::issuing::bounded(&read).map_err(|e| RotationError::NextRoot(e.to_string()))?;
        Ok(read)
    }
}
