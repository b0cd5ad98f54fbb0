//! How any certificate comes to be: build, check, write down, hand out. In this order, with no way around.

use rustls::pki_types::CertificateDer;

use crate::checker::{self, CheckError, Checked, SignedBy};
use crate::csr::PublicKey;
use crate::key::Key;
use crate::mint::{self, MintError};
use crate::order::{Holder, Order, Validity};
use crate::store::{LedgerEntry, Store, StoreError};
use crate::template;

/// Why no certificate came to be.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The issuer's own certificate does not cover this moment.
    #[error("the issuing certificate is not valid now (it ends at unix time {0})")]
    IssuerExpired(i64),
    /// It could not be built.
    #[error(transparent)]
    Mint(#[from] MintError),
    /// It was built wrong and never leaves.
    #[error("the checker refused the certificate that was built: {0}")]
    Check(#[from] CheckError),
    /// It could not be written down and so is not handed out.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A signing key with its certificate.
#[derive(Debug)]
pub(crate) struct Signer {
    pub(crate) key: Key,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) holder: Holder,
    pub(crate) validity: Validity,
}

impl Signer {
    /// Issues one certificate and enters it in the ledger.
    pub(crate) fn issue(
        &self,
        order: &Order,
        key: &PublicKey,
        membership: Option<u64>,
        ledger: &dyn Store,
        now: i64,
    ) -> Result<Checked, IssueError> {
        if !self.validity.covers(now) || order.validity.from >= order.validity.until {
            return Err(IssueError::IssuerExpired(self.validity.until));
        }
        let draft = mint::sign(&template::template(order)?, key, &self.holder, &self.key)?;
        let checked = checker::check(&draft, order, key.spki(), SignedBy::Issuer(&self.certificate))?;
        ledger.enter(checked.serial(), &entry(order, membership, now))?;
        Ok(checked)
    }
}

/// A new root: its key certifies itself.
pub(crate) fn found(order: &Order, key: &Key) -> Result<Checked, IssueError> {
    let draft = mint::self_sign(&template::template(order)?, key)?;
    let spki = rcgen::PublicKeyData::subject_public_key_info(key);
    Ok(checker::check(&draft, order, &spki, SignedBy::Itself)?)
}

/// The ledger's line about an order.
pub(crate) fn entry(order: &Order, membership: Option<u64>, now: i64) -> LedgerEntry {
    let program = match &order.holder {
        Holder::Workload(_, program) => Some(program),
        _ => None,
    };
    LedgerEntry {
        kind: order.holder.kind().to_owned(),
        who: order.holder.who().to_owned(),
        issued: now,
        not_before: order.validity.from,
        not_after: order.validity.until,
        membership,
        exe: program.map(|p| p.exe.to_string()),
        script: program.and_then(|p| p.script).map(|d| d.to_string()),
    }
}
