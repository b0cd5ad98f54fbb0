//! A later certificate for the key by which an authority certifies whose root is offline: judged as if a stranger had made it.

use rcgen::PublicKeyData as _;
use rustls::pki_types::CertificateDer;

use super::Rotation;
use crate::certify::{self, IssueError};
use crate::checker::{self, CheckError, ReadIssuing};
use crate::issuers::{Issuer, Issuing};
use crate::offline::DAYS;
use crate::order::{BACKDATE, Holder, Order};
use crate::store::{By, Event, IssuingRecord, StoreError};

/// Why an issuing certificate is not taken; the one that is in use stays.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The authority may have members that were sent away.
    #[error("this authority was restored from a backup; `bonafide-ca settle` comes first")]
    Restored,
    /// The root certifies itself.
    #[error("no-offline-root: this authority has the key of its root, and certifies by that")]
    NotOffline,
    /// It is no issuing certificate below a root of this trust domain.
    #[error("wrong-issuing: it is not what the root of this trust domain certified for that: {0}")]
    Wrong(#[from] CheckError),
    /// It is not valid now.
    #[error("expired-issuing: it is valid from unix time {from} until {until}, and now it is {now}")]
    Expired {
        /// Its first second.
        from: i64,
        /// Its last second.
        until: i64,
        /// The time here.
        now: i64,
    },
    /// It lasts longer than any that `sign` makes.
    #[error("long-issuing: it lasts {0} s; at most 730 days are taken")]
    Long(i64),
    /// It ends before the one that is in use.
    #[error("older-issuing: it ends at unix time {until}, before the one that is in use, which ends at {known}")]
    Older {
        /// Its last second.
        until: i64,
        /// That of the one in use.
        known: i64,
    },
    /// It is for a key that is not the authority's.
    #[error("another-key: it is not for the key in {}; make a request for that by `bonafide-ca issuing request`", .0.display())]
    Key(std::path::PathBuf),
    /// The key, or the roots.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Rotation {
    /// Certifies by this certificate from now on; false if it does.
    pub(crate) fn install(&self, by: &By, der: &CertificateDer<'static>) -> Result<bool, InstallError> {
        loop {
            let (issuers, now) = (self.fresh()?, self.clock.unix());
            let (issuer, current, read) = self.below(issuers.all(), der)?;
            if current.certificate == *der {
                return Ok(false);
            }
            check(issuer, current, &read, now)?;
            let (seen, number) = (issuers.record(), issuer.number);
            let record = IssuingRecord { since: now, certificate: der.to_vec() };
            let (trust_domain, holder) = (self.charter.trust_domain.clone(), Holder::Issuing);
            let order = Order { trust_domain, holder, validity: read.validity };
            let mut change = self.store.change();
            change.roots(Some(seen), &seen.issuing_by(number, &record))?;
            let event = Event::new("issuing-installed", by).with("root", number).with("serial", &read.serial);
            change.note(event.with("not-after", read.validity.until));
            change.enter(by, &read.serial, &certify::entry(&order, None, now))?;
            if change.commit()?.is_some() {
                self.fresh()?;
                return Ok(true);
            }
            // Another authority changed the roots at this moment, or has this certificate: it is looked at again.
            if self.store.entry(&read.serial)?.is_some() && *self.fresh()?.record() == *seen {
                return Err(StoreError::SerialTaken(read.serial).into());
            }
        }
    }

    /// The root that certified it, by whose issuing key the authority certifies.
    fn below<'a>(
        &self,
        all: &'a [Issuer],
        der: &CertificateDer<'_>,
    ) -> Result<(&'a Issuer, &'a Issuing, ReadIssuing), InstallError> {
        let mut refused = InstallError::NotOffline;
        for issuer in all {
            let Some(issuing) = &issuer.issuing else { continue };
            match checker::read_issuing(der, &self.charter.trust_domain, &issuer.certificate) {
                Ok(read) => return Ok((issuer, issuing, read)),
                Err(e) => refused = e.into(),
            }
        }
        Err(refused)
    }
}

fn check(issuer: &Issuer, current: &Issuing, read: &ReadIssuing, now: i64) -> Result<(), InstallError> {
    let (validity, known) = (read.validity, current.validity.until);
    if issuer.signer()?.key.subject_public_key_info() != read.spki {
        return Err(InstallError::Key(issuer.home.clone()));
    }
    if !validity.covers(now) {
        return Err(InstallError::Expired { from: validity.from, until: validity.until, now });
    }
    bounded(read)?;
    if validity.until < known {
        return Err(InstallError::Older { until: validity.until, known });
    }
    Ok(())
}

/// No certificate of a root that is away lasts longer than it may.
pub(super) fn bounded(read: &ReadIssuing) -> Result<(), InstallError> {
    let life = read.validity.until.saturating_sub(read.validity.from);
    match life > i64::from(*DAYS.end()) * 86_400 + BACKDATE {
        true => Err(InstallError::Long(life)),
        false => Ok(()),
    }
}
