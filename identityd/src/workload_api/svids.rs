//! X.509-SVIDs with their keys: one for all programs that are the same, made and certified when first asked for, and anew
//! at half of its life.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::{Digest, HashedFile, Script};
use bonafide_proto::name::{SpiffeId, WorkloadName};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::revoked::Revoked;
use bonafide_proto::svid::Expect;
use bonafide_proto::taint::Taints;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use ring::rand::SecureRandom as _;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use zeroize::{Zeroize as _, Zeroizing};

use super::Entitled;
use super::trust::Trust;
use crate::bundle::Authority;
use crate::refuse::refuse;

/// The most that are kept. A host has far fewer different programs that ask.
const KEPT_MAX: usize = 1024;
/// After a renewal that failed, this many seconds pass before the next attempt.
const RENEWAL_PAUSE: i64 = 10;

/// A certificate chain and its key.
pub(super) struct Svid {
    /// Whom it names.
    pub(super) id: SpiffeId,
    /// Leaf first, without the root.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// PKCS#8 DER.
    pub(super) key: Zeroizing<Vec<u8>>,
    not_after: i64,
}

/// One to be shown now.
#[derive(Debug, Clone)]
pub(super) struct Current {
    /// It.
    pub(super) svid: Arc<Svid>,
    /// When to ask again, unix seconds.
    pub(super) renew_at: i64,
    /// Nobody had it before: it took a while to come.
    pub(super) is_new: bool,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Svids {
    slots: Mutex<HashMap<Subject, Arc<Slot>>>,
    authority: Authority,
    clock: SharedClock,
}

type Slot = tokio::sync::Mutex<Option<Kept>>;

#[derive(Debug)]
struct Kept {
    svid: Arc<Svid>,
    renew_at: i64,
}

/// All that a certificate says of a program: those that agree in it are the same, and share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    workload: WorkloadName,
    exe: HashedFile,
    script: Option<Script>,
    uid: u32,
    taints: Taints,
    libraries: Option<Digest>,
    image: Option<Digest>,
}

impl Subject {
    pub(super) fn of(Entitled { workload, fingerprint, .. }: &Entitled) -> Self {
        Self {
            workload: workload.clone(),
            exe: fingerprint.exe.clone(),
            script: fingerprint.script.known().cloned(),
            uid: fingerprint.uid,
            taints: fingerprint.taints.clone(),
            libraries: fingerprint.libraries.known().map(|libraries| libraries.digest),
            image: fingerprint.container.known().map(|container| container.image),
        }
    }
}

impl Svids {
    pub(super) fn new(authority: Authority, clock: SharedClock) -> Self {
        Self { slots: Mutex::default(), authority, clock }
    }

    /// The one that this caller shows now. While the CA is away an older one goes on as long as it is valid.
    ///
    /// # Errors
    /// The CA's own refusal, or why what it gave is not fit to be shown.
    pub(super) async fn get(&self, entitled: &Entitled, trust: &Trust) -> Result<Current, AttestRefusal> {
        let slot = self.slot(Subject::of(entitled))?;
        // Whoever comes meanwhile waits for what this one is given.
        let mut kept = slot.lock().await;
        let now = self.clock.unix();
        let barred = self.authority.quarantine().borrow().clone();
        let usable = kept.as_ref().filter(|kept| kept.svid.is_good(now, trust, &self.clock, &barred.revoked));
        if let Some(Kept { svid, renew_at }) = usable.filter(|kept| now < kept.renew_at) {
            return Ok(Current { svid: Arc::clone(svid), renew_at: *renew_at, is_new: false });
        }
        let (svid, renew_at, is_new) = match (self.issue(entitled, trust).await, usable) {
            (Ok(svid), _) => (Arc::new(svid.0), svid.1, true),
            (Err(refusal), Some(older)) if is_away(refusal.reason) => {
                tracing::warn!(workload = %entitled.workload, %refusal, "the older certificate goes on");
                (Arc::clone(&older.svid), now + RENEWAL_PAUSE, false)
            }
            (Err(refusal), _) => {
                *kept = None;
                return Err(refusal);
            }
        };
        *kept = Some(Kept { svid: Arc::clone(&svid), renew_at });
        Ok(Current { svid, renew_at, is_new })
    }

    fn slot(&self, subject: Subject) -> Result<Arc<Slot>, AttestRefusal> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= KEPT_MAX && !slots.contains_key(&subject) {
            // Those that are in nobody's hands have to be made again.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
            if slots.len() >= KEPT_MAX {
                return refuse(AttestReason::Unavailable, format!("{KEPT_MAX} certificates are on order already"));
            }
        }
        Ok(Arc::clone(slots.entry(subject).or_default()))
    }

    /// A new one, checked against the trust it will meet and the name that was earned; and when to renew it.
    async fn issue(&self, entitled: &Entitled, trust: &Trust) -> Result<(Svid, i64), AttestRefusal> {
        let (key, csr) = new_key()?;
        let issued = self.authority.issue(&entitled.workload, &entitled.fingerprint, csr).await?;
        let chain: Vec<_> = issued.chain.into_iter().map(CertificateDer::from).collect();
        let unfit = |why: String| {
            let detail = format!("the certificate issued for {} is not fit to be shown: {why}", entitled.workload);
            AttestRefusal::new(AttestReason::CheckerRefused, detail)
        };
        let now = UnixTime::since_unix_epoch(self.clock.now());
        let proven = trust.roots.verify(&chain, now, Expect::Workload).map_err(|e| unfit(e.to_string()))?;
        let wanted = SpiffeId::workload(trust.roots.trust_domain(), &entitled.workload);
        if *proven.id() != wanted {
            return Err(unfit(format!("it names {}", proven.id())));
        }
        belongs(&chain, &key).map_err(|e| unfit(format!("it does not belong to our key: {e}")))?;
        let svid = Svid { id: wanted, chain, key, not_after: proven.not_after() };
        let renew_at = renewal(self.clock.unix(), svid.not_after);
        Ok((svid, renew_at))
    }
}

impl Svid {
    fn is_good(&self, now: i64, trust: &Trust, clock: &SharedClock, revoked: &Revoked) -> bool {
        let time = UnixTime::since_unix_epoch(clock.now());
        let Ok(proven) = trust.roots.verify(&self.chain, time, Expect::Workload) else { return false };
        let by_issuer = proven.issuer().is_some_and(|issuer| revoked.issuer(issuer).is_some());
        now < self.not_after && !by_issuer && revoked.serial(proven.serial()).is_none()
    }
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid").field("id", &self.id).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// Whether the CA may just not be there, and has said nothing against the caller.
fn is_away(reason: AttestReason) -> bool {
    matches!(reason, AttestReason::Unavailable | AttestReason::NoIntermediate)
}

/// A P-256 key, and a request that names nothing: the CA takes the names from the attestation.
fn new_key() -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), AttestRefusal> {
    let failed = |e: rcgen::Error| AttestRefusal::new(AttestReason::Unavailable, format!("no key could be made: {e}"));
    let mut pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&pair).map(|csr| csr.der().to_vec());
    let key = Zeroizing::new(pair.serialize_der());
    pair.zeroize();
    Ok((key, csr.map_err(failed)?))
}

fn belongs(chain: &[CertificateDer<'static>], key: &[u8]) -> Result<(), rustls::Error> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    CertifiedKey::new(chain.to_vec(), any_supported_type(&key)?).keys_match()
}

/// Half of what is left, and up to an eighth of it later, so that nodes started together do not renew together.
fn renewal(now: i64, not_after: i64) -> i64 {
    let left = not_after - now;
    let mut random = [0; 2];
    // Without random numbers they renew together, no more.
    let part = ring::rand::SystemRandom::new().fill(&mut random).map_or(0, |()| u16::from_be_bytes(random));
    now + left / 2 + left / 8 * i64::from(part) / i64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_at_half_life_and_a_little_later() {
        let times: Vec<i64> = (0..100).map(|_| renewal(1000, 4600)).collect();
        assert!(times.iter().all(|at| (2800..=3250).contains(at)), "{times:?}");
        assert!(times.iter().any(|at| at != &times[0]), "they do not all renew at once");
        assert_eq!(renewal(1000, 1000), 1000);
    }

    #[test]
    fn a_key_is_pkcs8_and_its_request_names_nothing() {
        let (key, csr) = new_key().unwrap();
        assert!(KeyPair::try_from(key.as_slice()).is_ok());
        assert!(!csr.is_empty() && csr.len() < 512);
    }
}
