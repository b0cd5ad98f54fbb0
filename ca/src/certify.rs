//! How any certificate comes to be: build, check, write down, hand out. In this order, with no way around.

use rustls::pki_types::CertificateDer;

use crate::checker::{self, CheckError, Checked, SignedBy};
use crate::csr::PublicKey;
use crate::key::Key;
use crate::mint::{self, MintError};
use crate::order::{Holder, Order, Validity};
use crate::store::{By, Change, Committed, LedgerEntry, Store, StoreError};
use crate::template;

/// Why no certificate came to be.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The issuer's own certificate does not cover this moment.
    #[error("the issuing certificate is not valid now (it ends at unix time {0})")]
    IssuerExpired(i64),
    /// Another authority made the root, and its key was not brought here.
    #[error("the key by which this authority certifies is not on this host: copy {} from the authority that made it", .0.display())]
    KeyAway(std::path::PathBuf),
    /// What the store has of them does not fit what is here.
    #[error("the roots that the store has cannot be used: {0}")]
    Roots(String),
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
pub(crate) struct Signer<K = Key> {
    pub(crate) key: K,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) holder: Holder,
    pub(crate) validity: Validity,
    /// What stands between this certificate and its root; `None`: nothing, or it is the root.
    pub(crate) above: Option<CertificateDer<'static>>,
}

impl<K> Signer<K> {
    /// What is shown with whatever it issues, in this order: all up to the root, which everybody has.
    pub(crate) fn shown_with(&self) -> Vec<CertificateDer<'static>> {
        let own = (self.holder != Holder::Root).then_some(&self.certificate);
        own.into_iter().chain(&self.above).cloned().collect()
    }
}

impl<K: rcgen::SigningKey> Signer<K> {
    /// Issues one certificate and enters it in the ledger; a node's with its place among those of its name.
    pub(crate) fn issue(
        &self,
        order: &Order,
        key: &PublicKey,
        of_node: Option<Place>,
        ledger: &Store,
        now: i64,
    ) -> Result<Checked, IssueError> {
        let mut change = ledger.change();
        let entered = self.enter(order, key, of_node, &By::Daemon, &mut change, now)?;
        let serial = entered.0.serial().to_owned();
        let done = change.commit()?.ok_or(StoreError::SerialTaken(serial))?;
        Ok(entered.hand_out(&done))
    }

    /// Makes one certificate part of a change; it is handed out once that is made.
    pub(crate) fn enter(
        &self,
        order: &Order,
        key: &PublicKey,
        of_node: Option<Place>,
        by: &By,
        change: &mut Change<'_>,
        now: i64,
    ) -> Result<Entered, IssueError> {
        if !self.validity.covers(now) || order.validity.from >= order.validity.until {
            return Err(IssueError::IssuerExpired(self.validity.until));
        }
        let draft = mint::sign(&template::template(order)?, key, &self.holder, &self.key)?;
        let checked = checker::check(&draft, order, key.spki(), SignedBy::Issuer(&self.certificate))?;
        change.enter(by, checked.serial(), &entry(order, of_node, now))?;
        Ok(Entered(checked))
    }
}

/// A certificate that nobody may have before the change it is part of was made.
#[derive(Debug)]
#[must_use]
pub(crate) struct Entered(Checked);

impl Entered {
    /// The certificate, which the ledger has now.
    pub(crate) fn hand_out(self, _: &Committed) -> Checked {
        self.0
    }
}

/// Which of a node's certificates one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Counts the joins under the name.
    pub(crate) membership: u64,
    /// Counts what was issued under the name.
    pub(crate) number: u64,
    /// The number of the root that signs it.
    pub(crate) root: u64,
}

/// An issuing certificate, by the key of a root that is here for as long as this takes. Whoever takes it into use enters it in
/// the ledger.
pub(crate) fn issuing<K: rcgen::SigningKey>(
    root: &Signer<K>,
    order: &Order,
    key: &PublicKey,
) -> Result<Checked, IssueError> {
    if order.validity.from >= order.validity.until {
        return Err(IssueError::IssuerExpired(root.validity.until));
    }
    let draft = mint::sign(&template::template(order)?, key, &root.holder, &root.key)?;
    Ok(checker::check(&draft, order, key.spki(), SignedBy::Issuer(&root.certificate))?)
}

/// A new root: its key certifies itself.
pub(crate) fn found(order: &Order, key: &impl rcgen::SigningKey) -> Result<Checked, IssueError> {
    let draft = mint::self_sign(&template::template(order)?, key)?;
    let spki = rcgen::PublicKeyData::subject_public_key_info(key);
    Ok(checker::check(&draft, order, &spki, SignedBy::Itself)?)
}

/// The ledger's line about an order.
pub(crate) fn entry(order: &Order, of_node: Option<Place>, now: i64) -> LedgerEntry {
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
        membership: of_node.map(|place| place.membership),
        number: of_node.map(|place| place.number),
        root: of_node.map(|place| place.root),
        exe: program.map(|p| p.exe.to_string()),
        script: program.and_then(|p| p.script.as_ref()?.digest()).map(|d| d.to_string()),
        libraries: program.and_then(|p| p.libraries).map(|d| d.to_string()),
        image: program.and_then(|p| p.image).map(|d| d.to_string()),
        uid: program.map(|p| p.uid),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use bonafide_proto::clock::{SharedClock, SystemClock};
    use bonafide_proto::name::TrustDomain;
    use tokio::sync::watch;

    use super::*;
    use crate::store::engine::{self, Condition, Engine, Page, Tree, Write};

    const NOW: i64 = 1_800_000_000;

    fn clock() -> SharedClock {
        Arc::new(SystemClock)
    }

    fn order(holder: Holder) -> Order {
        let trust_domain: TrustDomain = "example.org".parse().unwrap();
        Order { trust_domain, holder, validity: Validity { from: NOW - 60, until: NOW + 600 } }
    }

    fn signer() -> Signer {
        let (key, order) = (Key::generate().unwrap(), order(Holder::Root));
        let certificate = found(&order, &key).unwrap().der().clone();
        Signer { key, certificate, holder: Holder::Root, validity: order.validity, above: None }
    }

    fn requested() -> PublicKey {
        PublicKey::of_csr(&crate::csr::request(&Key::generate().unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn what_is_handed_out_is_in_the_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::embedded(&dir.path().join("store"), clock()).unwrap();
        let order = order(Holder::Node("a".parse().unwrap()));
        let issued = signer()
            .issue(&order, &requested(), Some(Place { membership: 3, number: 5, root: 2 }), &store, NOW)
            .unwrap();
        let line = store.entry(issued.serial()).unwrap().unwrap();
        assert_eq!((line.kind.as_str(), line.who.as_str()), ("node", "a"));
        assert_eq!((line.membership, line.number, line.root), (Some(3), Some(5), Some(2)));
        assert_eq!((line.issued, line.not_before, line.not_after), (NOW, NOW - 60, NOW + 600));
        let mut again = store.change();
        again.enter(&By::Daemon, issued.serial(), &line).unwrap();
        assert!(again.commit().unwrap().is_none(), "no serial number is issued twice");
        store.forget_before(NOW + 601).unwrap();
        assert_eq!(store.entry(issued.serial()).unwrap(), None);
    }

    #[test]
    fn nothing_is_handed_out_that_cannot_be_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let order = order(Holder::Node("a".parse().unwrap()));
        let refused = signer().issue(&order, &requested(), None, &full_disk(dir.path()), NOW).unwrap_err();
        assert!(matches!(refused, IssueError::Store(_)), "{refused}");
    }

    #[test]
    fn an_expired_issuer_issues_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let order = order(Holder::Node("a".parse().unwrap()));
        for when in [NOW - 61, NOW + 601] {
            let refused = signer().issue(&order, &requested(), None, &full_disk(dir.path()), when).unwrap_err();
            assert!(matches!(refused, IssueError::IssuerExpired(_)), "{refused}");
        }
    }

    /// A store whose disk is full from its first write on.
    fn full_disk(dir: &std::path::Path) -> Store {
        Store::open(Arc::new(FullDisk), &dir.join("audit"), clock()).unwrap()
    }

    #[derive(Debug)]
    struct FullDisk;

    impl Engine for FullDisk {
        fn place(&self) -> PathBuf {
            "store".into()
        }
        fn get(&self, _: &engine::Key) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(None)
        }
        fn page(&self, _: Tree, _: Option<&[u8]>, _: usize) -> Result<Page, StoreError> {
            Ok(Vec::new())
        }
        fn commit(&self, _: &[Condition], _: &[Write]) -> Result<bool, StoreError> {
            Err(StoreError::Io { path: "store".into(), why: "no space left".into() })
        }
        fn room(&self) -> usize {
            100
        }
        fn watch(&self, _: &engine::Key) -> watch::Receiver<u64> {
            watch::channel(0).1
        }
    }
}
