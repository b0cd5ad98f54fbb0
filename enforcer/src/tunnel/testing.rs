//! A trust domain in memory: a root, one node's intermediate, and leaves as good or as bad as a test wants them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bonafide_proto::clock::{Clock, SharedClock};
use bonafide_proto::grant::MANDATE_OID;
use bonafide_proto::name::SpiffeId;
use bonafide_proto::svid::{FINGERPRINT_OID, TrustBundle};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use time::OffsetDateTime;

use super::{Leaf, Trust};

/// When tests begin, unix seconds.
pub(crate) const T0: i64 = 1_800_000_000;
/// How long a good leaf lives, in seconds.
pub(crate) const LEAF_TTL: i64 = 3600;

/// A clock that goes when told to.
#[derive(Debug)]
pub(crate) struct Hand(AtomicU64);

impl Hand {
    pub(crate) fn at(unix: i64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(unix.try_into().unwrap())))
    }

    pub(crate) fn advance(&self, seconds: i64) {
        self.0.fetch_add(seconds.try_into().unwrap(), Ordering::SeqCst);
    }
}

impl Clock for Hand {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

type NodeCertificate = (CertificateDer<'static>, Issuer<'static, KeyPair>);

/// A trust domain with one node.
pub(crate) struct Mesh {
    pub(crate) domain: String,
    pub(crate) root: CertificateDer<'static>,
    pub(crate) root_issuer: Issuer<'static, KeyPair>,
    pub(crate) intermediate: CertificateDer<'static>,
    pub(crate) node_issuer: Issuer<'static, KeyPair>,
    node_key: PrivateKeyDer<'static>,
    grant: String,
    /// The node's certificate after it was renewed, and how often.
    renewed: Mutex<(u8, Option<NodeCertificate>)>,
    /// Stands between the node's certificate and the root, if that is offline.
    above: Option<CertificateDer<'static>>,
    pub(crate) hand: Arc<Hand>,
}

/// A certificate chain and its key, checked by nobody.
pub(crate) struct Shown {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Shown {
    pub(crate) fn resolver(self) -> Arc<SingleCertAndKey> {
        let key = rustls::crypto::ring::sign::any_supported_type(&self.key).unwrap();
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(self.chain, key)))
    }
}

pub(crate) fn at(unix: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix).unwrap()
}

fn der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

fn ca_params(name: &str, ttl: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = (at(T0 - 60), at(T0 + ttl));
    params
}

/// What a good leaf of a workload says.
pub(crate) fn leaf_params(domain: &str, workload: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![uri(&format!("spiffe://{domain}/{workload}"))];
    params.custom_extensions = vec![fingerprint("/usr/bin/x")];
    (params.not_before, params.not_after) = (at(T0 - 60), at(T0 + LEAF_TTL));
    params
}

pub(crate) fn uri(id: &str) -> SanType {
    SanType::URI(id.try_into().unwrap())
}

/// SEQUENCE { INTEGER, SEQUENCE { UTF8String } }, as `bonafide_proto::grant` documents it.
fn mandate(number: u8, grant: &str) -> Vec<u8> {
    let length = u8::try_from(grant.len()).unwrap();
    [&[0x30, length + 7, 2, 1, number, 0x30, length + 2, 12, length][..], grant.as_bytes()].concat()
}

fn fingerprint(program: &str) -> CustomExtension {
    let mut items = vec![4, 32];
    items.extend([7; 32]);
    items.extend([12, u8::try_from(program.len()).unwrap()]);
    items.extend(program.as_bytes());
    items.extend([2, 1, 33, 0x30, 0]);
    let mut der = vec![0x30, u8::try_from(items.len()).unwrap()];
    der.append(&mut items);
    CustomExtension::from_oid_content(&FINGERPRINT_OID, der)
}

impl Mesh {
    pub(crate) fn new(domain: &str) -> Self {
        Self::granting(domain, "*")
    }

    /// Its node may issue what this name or prefix says.
    pub(crate) fn granting(domain: &str, grant: &str) -> Self {
        let (root_key, node_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let root_params = ca_params("root", 1_000_000);
        let root = root_params.self_signed(&root_key).unwrap().der().clone();
        let root_issuer = Issuer::new(root_params, root_key);
        let mut node_params = ca_params("node-a", 500_000);
        node_params.custom_extensions = vec![CustomExtension::from_oid_content(&MANDATE_OID, mandate(1, grant))];
        let intermediate = node_params.signed_by(&node_key, &root_issuer).unwrap().der().clone();
        Self {
            domain: domain.to_owned(),
            root,
            root_issuer,
            intermediate,
            node_key: der(&node_key),
            grant: grant.to_owned(),
            renewed: Mutex::new((1, None)),
            node_issuer: Issuer::new(node_params, node_key),
            above: None,
            hand: Hand::at(T0),
        }
    }

    /// The same below a root that is offline.
    pub(crate) fn below_an_offline_root(domain: &str) -> Self {
        let mut mesh = Self::new(domain);
        let (key, mut params) = (KeyPair::generate().unwrap(), ca_params("issuing", 600_000));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))];
        mesh.above = Some(params.signed_by(&key, &mesh.root_issuer).unwrap().der().clone());
        mesh.root_issuer = Issuer::new(params, key);
        mesh.renew_node();
        mesh
    }

    pub(crate) fn trust(&self) -> Trust {
        let bundle = TrustBundle::new(self.domain.parse().unwrap(), vec![self.root.clone()]).unwrap();
        Trust { bundle, clock: self.hand.clone() as SharedClock }
    }

    pub(crate) fn id(&self, workload: &str) -> SpiffeId {
        format!("spiffe://{}/{workload}", self.domain).parse().unwrap()
    }

    /// A leaf that is good in every respect.
    pub(crate) fn leaf(&self, workload: &str) -> Leaf {
        let Shown { chain, key } = self.shown(&leaf_params(&self.domain, workload));
        Leaf::new(chain, key, &self.id(workload), &self.trust()).unwrap()
    }

    /// A chain from this node for whatever the parameters say.
    pub(crate) fn shown(&self, params: &CertificateParams) -> Shown {
        let key = KeyPair::generate().unwrap();
        let chain = self.certify(params, &key);
        Shown { chain, key: der(&key) }
    }

    pub(crate) fn certify(&self, params: &CertificateParams, key: &impl PublicKeyData) -> Vec<CertificateDer<'static>> {
        let renewed = self.renewed.lock().unwrap();
        let (intermediate, issuer) = match &renewed.1 {
            Some((intermediate, issuer)) => (intermediate, issuer),
            None => (&self.intermediate, &self.node_issuer),
        };
        let leaf = params.signed_by(key, issuer).unwrap();
        [leaf.der(), intermediate].into_iter().chain(&self.above).cloned().collect()
    }

    /// The node has another certificate, and another key, from now on.
    pub(crate) fn renew_node(&self) {
        let mut renewed = self.renewed.lock().unwrap();
        renewed.0 += 1;
        let (key, mut params) = (KeyPair::generate().unwrap(), ca_params("node-a", 500_000));
        let mandate = mandate(renewed.0, &self.grant);
        params.custom_extensions = vec![CustomExtension::from_oid_content(&MANDATE_OID, mandate)];
        let intermediate = params.signed_by(&key, &self.root_issuer).unwrap().der().clone();
        renewed.1 = Some((intermediate, Issuer::new(params, key)));
    }

    /// A workload's leaf that the root issued itself, without a node.
    pub(crate) fn shown_by_root(&self, workload: &str) -> Shown {
        let key = KeyPair::generate().unwrap();
        let leaf = leaf_params(&self.domain, workload).signed_by(&key, &self.root_issuer).unwrap();
        Shown { chain: vec![leaf.der().clone()], key: der(&key) }
    }

    /// The node's own signing certificate, shown as if it were a leaf.
    pub(crate) fn shown_ca(&self) -> Shown {
        Shown { chain: vec![self.intermediate.clone()], key: self.node_key.clone_key() }
    }
}
