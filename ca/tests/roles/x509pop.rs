//! Joining by a certificate of an existing PKI: who holds its key, in this very session, is admitted under its name.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bonafide_ca::attestor::x509pop::{NameRule, X509Holder};
use bonafide_ca::attestor::{Answer, Challenge, Evidence, Prover};
use bonafide_ca::config::RootX509Pop;
use bonafide_ca::node::MembershipError;
use bonafide_ca::upkeep::{self, TokenSource};
use bonafide_ca::{LinkError, NodeCa};
use bonafide_proto::wire::authority as wire;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::bench::{LOOPBACKS, START, Served, refusal};

/// A PKI that was there before: a root, and an intermediate that issues to machines.
struct Pki {
    dir: tempfile::TempDir,
    root: String,
    issuing: String,
    by_root: Issuer<'static, KeyPair>,
    issuer: Issuer<'static, KeyPair>,
}

fn at(unix: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix).unwrap()
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (at(START - 1000), at(START + 1_000_000));
    params
}

/// A machine's certificate.
fn machine(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::DnsName(format!("{name}.example.net").try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(SerialNumber::from(77u64));
    (params.not_before, params.not_after) = (at(START - 1000), at(START + 1000));
    params
}

impl Pki {
    fn new() -> Self {
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let root = ca("Old root").self_signed(&root_key).unwrap().pem();
        Self::of(root, Issuer::new(ca("Old root"), root_key), key)
    }

    /// Where every key is of RSA, made by openssl.
    fn of_rsa() -> Self {
        let (root_key, key) = (rsa_key(), rsa_key());
        let root = ca("Old root").self_signed(&root_key).unwrap().pem();
        Self::of(root, Issuer::new(ca("Old root"), root_key), key)
    }

    fn of(root: String, by_root: Issuer<'static, KeyPair>, key: KeyPair) -> Self {
        let mut issuing = ca("Old issuing CA");
        issuing.serial_number = Some(SerialNumber::from(5u64));
        let certificate = issuing.signed_by(&key, &by_root).unwrap().pem();
        let dir = tempfile::tempdir().unwrap();
        Self { dir, root, issuing: certificate, by_root, issuer: Issuer::new(ca("Old issuing CA"), key) }
    }

    /// A list that revokes these serials.
    fn list(by: &Issuer<'static, KeyPair>, number: u64, serials: &[u64]) -> String {
        Self::list_until(by, number, serials, START + 100_000)
    }

    fn list_until(by: &Issuer<'static, KeyPair>, number: u64, serials: &[u64], next_update: i64) -> String {
        let entry = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: at(START - 10),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: at(START - 10),
            next_update: at(next_update),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(by).unwrap().pem().unwrap()
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// As an authority takes it.
    fn configured(&self) -> RootX509Pop {
        let ca_files = vec![self.file("ca.pem", &self.root)];
        let workloads = Some("shop/*".parse().unwrap());
        RootX509Pop { ca_files, crl_files: vec![], name: NameRule::CommonName, workloads }
    }

    fn holder_with(&self, params: &CertificateParams, algorithm: &'static SignatureAlgorithm) -> X509Holder {
        self.holder_of(params, &KeyPair::generate_for(algorithm).unwrap())
    }

    fn holder_of(&self, params: &CertificateParams, key: &KeyPair) -> X509Holder {
        let leaf = params.signed_by(key, &self.issuer).unwrap().pem();
        let files = (self.file("leaf.pem", &(leaf + &self.issuing)), self.file("leaf.key", &key.serialize_pem()));
        X509Holder::open(&files.0, &files.1).unwrap()
    }

    fn holder(&self, params: &CertificateParams) -> X509Holder {
        self.holder_with(params, &rcgen::PKCS_ECDSA_P256_SHA256)
    }
}

async fn served_on(ip: &str, x509pop: RootX509Pop) -> Served {
    Served::accepting(ip, Some(x509pop)).await
}

async fn root_of(served: &Served) -> CertificateDer<'static> {
    served.admin().trust_root(wire::TrustRootRequest {}).await.unwrap().into_inner().root.into()
}

async fn enrol(served: &Served, node: &NodeCa, prover: &dyn Prover) -> Result<(), MembershipError> {
    node.enrol(&served.link(), &root_of(served).await, prover).await
}

async fn refused(served: &Served, node: &str, prover: &dyn Prover) -> String {
    let node = served.stranger(node);
    let refused = enrol(served, &node, prover).await.unwrap_err();
    assert!(node.member().is_none());
    refusal(&refused).to_owned()
}

#[tokio::test]
async fn who_holds_the_key_is_admitted_under_the_certificates_name_with_what_it_is_granted() {
    let pki = Pki::new();
    for ip in LOOPBACKS {
        let served = served_on(ip, pki.configured()).await;
        let kinds = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
        for (name, kind) in ["a", "b", "c"].into_iter().zip(kinds) {
            let node = served.stranger(name);
            let tokens = TokenSource::Proof(Arc::new(pki.holder_with(&machine(name), kind)), root_of(&served).await);
            upkeep::step(&node, &served.link(), &tokens).await.unwrap();
            assert_eq!(node.member().unwrap().mandate().unwrap().grant.to_string(), "shop/*");
            node.renew(&served.link()).await.unwrap();
        }
        let listed = served.admin().list_nodes(wire::ListNodesRequest {}).await.unwrap().into_inner().nodes;
        assert_eq!(listed.len(), 3);
    }
}

#[tokio::test]
async fn each_certificate_that_is_no_good_is_refused_by_its_name() {
    let (pki, other) = (Pki::new(), Pki::new());
    let served = served_on("127.0.0.1", pki.configured()).await;
    assert_eq!(refused(&served, "a", &other.holder(&machine("a"))).await, "certificate-untrusted");
    assert_eq!(refused(&served, "a", &pki.holder(&machine("b"))).await, "certificate-for-another-node");
    assert_eq!(refused(&served, "a", &pki.holder(&machine("a b"))).await, "certificate-untrusted");
    let mut over = machine("a");
    (over.not_before, over.not_after) = (at(START - 1000), at(START - 1));
    assert_eq!(refused(&served, "a", &pki.holder(&over)).await, "certificate-expired");
    let mut early = machine("a");
    early.not_before = at(START + 10);
    assert_eq!(refused(&served, "a", &pki.holder(&early)).await, "certificate-untrusted");
    let mut server = machine("a");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    assert_eq!(refused(&served, "a", &pki.holder(&server)).await, "certificate-untrusted");

    let plain = Served::on("127.0.0.1").await;
    assert_eq!(refused(&plain, "a", &pki.holder(&machine("a"))).await, "proof-not-taken");
    enrol(&served, &served.stranger("a"), &pki.holder(&machine("a"))).await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_its_issuer_revoked_is_refused() {
    let pki = Pki::new();
    let list = Pki::list(&pki.issuer, 1, &[77]);
    let configured = RootX509Pop { crl_files: vec![pki.file("crl.pem", &list)], ..pki.configured() };
    let served = served_on("127.0.0.1", configured).await;
    assert_eq!(refused(&served, "a", &pki.holder(&machine("a"))).await, "certificate-revoked");
    let mut fresh = machine("a");
    fresh.serial_number = Some(SerialNumber::from(78u64));
    enrol(&served, &served.stranger("a"), &pki.holder(&fresh)).await.unwrap();
}

#[tokio::test]
async fn a_revocation_list_that_changed_counts_at_once_and_without_one_nobody_is_admitted() {
    let pki = Pki::new();
    let file = pki.file("crl.pem", &Pki::list(&pki.issuer, 1, &[]));
    let served = served_on("127.0.0.1", RootX509Pop { crl_files: vec![file.clone()], ..pki.configured() }).await;
    let holder = pki.holder(&machine("a"));
    enrol(&served, &served.stranger("a"), &holder).await.unwrap();
    pki.file("crl.pem", &Pki::list(&pki.issuer, 2, &[77]));
    assert_eq!(refused(&served, "b", &pki.holder(&machine("b"))).await, "certificate-revoked");
    for broken in ["", "no list"] {
        pki.file("crl.pem", broken);
        assert_eq!(refused(&served, "b", &pki.holder(&machine("b"))).await, "certificate-untrusted");
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(refused(&served, "b", &pki.holder(&machine("b"))).await, "certificate-untrusted");
    pki.file("crl.pem", &Pki::list(&pki.issuer, 3, &[]));
    enrol(&served, &served.stranger("b"), &pki.holder(&machine("b"))).await.unwrap();
}

#[tokio::test]
async fn a_certificate_of_an_intermediate_that_was_revoked_is_refused() {
    let pki = Pki::new();
    let lists = Pki::list(&pki.by_root, 1, &[5]) + &Pki::list(&pki.issuer, 1, &[]);
    let configured = RootX509Pop { crl_files: vec![pki.file("crl.pem", &lists)], ..pki.configured() };
    let served = served_on("127.0.0.1", configured).await;
    assert_eq!(refused(&served, "a", &pki.holder(&machine("a"))).await, "certificate-revoked");
}

#[tokio::test]
async fn a_revocation_list_counts_until_its_next_update_and_then_admits_nobody() {
    let pki = Pki::new();
    let lists = |of_root, of_issuing| {
        let lists = Pki::list_until(&pki.by_root, 1, &[], of_root) + &Pki::list_until(&pki.issuer, 1, &[], of_issuing);
        pki.file("crl.pem", &lists)
    };
    let configured = RootX509Pop { crl_files: vec![lists(START + 900, START + 100)], ..pki.configured() };
    let served = served_on("127.0.0.1", configured).await;
    let holder = pki.holder(&machine("a"));
    served.clock.forward(99);
    enrol(&served, &served.stranger("a"), &holder).await.unwrap();
    served.clock.forward(2);
    assert_eq!(refused(&served, "b", &pki.holder(&machine("b"))).await, "revocation-list-expired");
    lists(START + 100, START + 900);
    assert_eq!(refused(&served, "b", &pki.holder(&machine("b"))).await, "revocation-list-expired", "that of the root");
    lists(START + 900, START + 900);
    enrol(&served, &served.stranger("b"), &pki.holder(&machine("b"))).await.unwrap();
}

#[tokio::test]
async fn keys_of_rsa_are_as_good_all_the_way_up() {
    let pki = Pki::of_rsa();
    let served = served_on("127.0.0.1", pki.configured()).await;
    enrol(&served, &served.stranger("a"), &pki.holder_of(&machine("a"), &rsa_key())).await.unwrap();
    let cheat = Cheat {
        shows: pki.holder_of(&machine("b"), &rsa_key()),
        signs: Signs::By(pki.holder_of(&machine("b"), &rsa_key())),
        heard: Mutex::default(),
    };
    assert_eq!(refused(&served, "b", &cheat).await, "wrong-proof");
}

/// No other library here makes them.
fn rsa_key() -> KeyPair {
    let made = std::process::Command::new("openssl")
        .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .output()
        .unwrap();
    let pem = String::from_utf8(made.stdout).unwrap();
    KeyPair::from_pkcs8_pem_and_sign_algo(&pem, &rcgen::PKCS_RSA_SHA256).unwrap()
}

#[tokio::test]
async fn the_name_may_be_the_only_dns_name() {
    let pki = Pki::new();
    let served = served_on("127.0.0.1", RootX509Pop { name: NameRule::Dns, ..pki.configured() }).await;
    enrol(&served, &served.stranger("a.example.net"), &pki.holder(&machine("a"))).await.unwrap();
    let mut two = machine("a");
    two.subject_alt_names.push(SanType::DnsName("b.example.net".try_into().unwrap()));
    assert_eq!(refused(&served, "b.example.net", &pki.holder(&two)).await, "certificate-untrusted");
}

/// Shows one certificate and answers as it is told to.
#[derive(Debug)]
struct Cheat {
    shows: X509Holder,
    signs: Signs,
    heard: Mutex<Vec<Answer>>,
}

#[derive(Debug)]
enum Signs {
    /// By another key.
    By(X509Holder),
    /// What it signed in the conversation before.
    AgainWhatItSigned,
    /// As if the session were another.
    ForAnotherSession,
    /// With bytes that are no signature.
    Nothing(usize),
}

impl Prover for Cheat {
    fn begin(&self) -> Result<Evidence, String> {
        self.shows.begin()
    }

    fn answer(&self, begun: &Evidence, binding: &[u8; 32], challenge: &Challenge) -> Result<Answer, String> {
        let honest = self.shows.answer(begun, binding, challenge)?;
        match &self.signs {
            Signs::By(other) => other.answer(begun, binding, challenge),
            Signs::ForAnotherSession => self.shows.answer(begun, &[7; 32], challenge),
            Signs::AgainWhatItSigned => {
                let mut heard = self.heard.lock().unwrap();
                heard.push(honest);
                Ok(heard[0].clone())
            }
            Signs::Nothing(length) => {
                let Answer::X509Pop(mut signed) = honest;
                signed.signature = vec![1; *length];
                Ok(Answer::X509Pop(signed))
            }
        }
    }
}

#[tokio::test]
async fn a_proof_is_good_for_one_conversation_and_by_the_certificates_own_key() {
    let pki = Pki::new();
    let served = served_on("::1", pki.configured()).await;
    let cheat = |signs| Cheat { shows: pki.holder(&machine("a")), signs, heard: Mutex::default() };
    let wrong = cheat(Signs::By(pki.holder(&machine("a"))));
    assert_eq!(refused(&served, "a", &wrong).await, "wrong-proof");
    assert_eq!(refused(&served, "a", &cheat(Signs::ForAnotherSession)).await, "wrong-proof");
    assert_eq!(refused(&served, "a", &cheat(Signs::Nothing(70))).await, "wrong-proof");
    assert_eq!(refused(&served, "a", &cheat(Signs::Nothing(2000))).await, "bad-request");

    let replayed = cheat(Signs::AgainWhatItSigned);
    let node = served.stranger("a");
    enrol(&served, &node, &replayed).await.unwrap();
    assert_eq!(refusal(&enrol(&served, &node, &replayed).await.unwrap_err()), "wrong-proof");
}

#[tokio::test]
async fn who_was_sent_away_does_not_come_back_by_its_certificate() {
    let pki = Pki::new();
    let served = served_on("127.0.0.1", pki.configured()).await;
    let (node, holder) = (served.stranger("a"), pki.holder(&machine("a")));
    enrol(&served, &node, &holder).await.unwrap();
    // The PKI says whose the name is: a machine that was set up anew takes it again.
    enrol(&served, &served.stranger_elsewhere("a"), &holder).await.unwrap();
    let order = |lift| wire::RevokeRequest {
        what: Some(wire::revoke_request::What::Node("a".into())),
        lift,
        reason: String::new(),
    };
    served.admin().revoke(order(false)).await.unwrap();
    assert_eq!(refusal(&enrol(&served, &node, &holder).await.unwrap_err()), "evicted");
    served.admin().revoke(order(true)).await.unwrap();
    enrol(&served, &node, &holder).await.unwrap();
}

#[tokio::test]
async fn the_authority_has_to_be_that_of_the_root() {
    let pki = Pki::new();
    let (served, other) = (served_on("127.0.0.1", pki.configured()).await, Served::on("127.0.0.1").await);
    let holder = pki.holder(&machine("a"));
    let refused = served.stranger("a").enrol(&served.link(), &root_of(&other).await, &holder).await.unwrap_err();
    assert!(matches!(refused, MembershipError::Link(LinkError::Distrust { .. })), "{refused}");
}
