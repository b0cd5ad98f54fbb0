//! Fuzz targets for everything that one of our processes, a peer or a person may hand to another: no panic, no endless
//! loop, and what is read is written again as it was. `cargo test` gives each two seconds; ARCHITECTURE.md says how to
//! give one longer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "this is a test")]

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bonafide_fuzz::{element, fuzz};
use bonafide_proto::container::{Container, Pod};
use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::{
    Digest, Evidence, Execution, Fingerprint, HashedFile, Host, Libraries, Release, Root, Script, Unit,
};
use bonafide_proto::flow::{FlowKey, NetNs, SocketRole};
use bonafide_proto::grant::{Grant, MANDATE_OID, Mandate};
use bonafide_proto::jwt::{self, JwtBundle, JwtKey};
use bonafide_proto::kernel::{ConnectRecord, RECORD_SIZE};
use bonafide_proto::name::{NodeName, SpiffeId, TrustDomain, WorkloadName};
use bonafide_proto::observed::{Ending, ObservedFlow, Protocol, There};
use bonafide_proto::program::CertifiedProgram;
use bonafide_proto::record::{End, EndedBy, FlowRecord, NearMiss, Outcome, Party, RECORD_VERSION, Reason, Transport};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::signed_policy::{POLICY_SIGNER_OID, SignedPolicy};
use bonafide_proto::spiffe_bundle::SpiffeBundle;
use bonafide_proto::svid::{Expect, FINGERPRINT_OID, PeerSvid, SvidError, TrustBundle};
use bonafide_proto::taint::Taint;
use bonafide_proto::token::{JoinToken, Secret};
use bonafide_proto::wire::{node as wire, policy};
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SigningKey as _,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

fn evidence(fingerprint: Fingerprint) -> Attestation {
    Attestation {
        executions: vec![
            Execution { pid: 7, start_ticks: 8, image: 9 },
            Execution { pid: 10, start_ticks: 11, image: 0 },
        ],
        fingerprint,
        account: 1000,
        workload: Some("web".parse().unwrap()),
        near_misses: vec![NearMiss { of: "api".into(), field: "uid".into(), expected: "33".into(), seen: "0".into() }],
        source: "kernel".into(),
    }
}

fn known() -> Fingerprint {
    let file = |path: &str, n: u8| HashedFile { path: path.into(), digest: Digest([n; 32]) };
    let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    Fingerprint {
        root: Root::Other("its root directory is another".into()),
        script: Evidence::Known(Script::File(file("/srv/ä.py", 2))),
        libraries: Evidence::Known(Libraries { digest: Digest([3; 32]), count: 12 }),
        cgroup: Evidence::Known("/system.slice/web.service".into()),
        unit: Evidence::Known(Unit { name: "web.service".into(), invocation: Some("0123456789abcdef".repeat(2)) }),
        container: Evidence::Known(Container {
            runtime: "containerd".into(),
            id: "ab".repeat(32),
            name: Some("web".into()),
            image: Digest([4; 32]),
            image_name: Some("docker.io/library/nginx:1".into()),
            manifests: vec![Digest([5; 32])],
            labels: labels.clone(),
            pod: Some(Pod {
                namespace: "default".into(),
                name: "web-1".into(),
                uid: "6f9d".into(),
                service_account: Some("web".into()),
                labels,
            }),
        }),
        taints: [Taint::Deleted].into(),
        release: Some(Release::Packaged),
        ..Fingerprint::of(file("/usr/sbin/nginx", 1), (33, 33), host())
    }
}

fn host() -> Host {
    Host {
        bios_uuid: Evidence::Known("4c4c4544-0042".into()),
        machine_id: Evidence::Unavailable("no permission".into()),
        node: Some("a".parse().unwrap()),
    }
}

fn answers() -> Vec<Vec<u8>> {
    let file = HashedFile { path: "/bin/sh".into(), digest: Digest([1; 32]) };
    let least = evidence(Fingerprint::of(file, (0, 0), host()));
    let inline = Fingerprint { script: Evidence::Known(Script::Inline(Digest([6; 32]))), ..known() };
    let stdin = Fingerprint { script: Evidence::Known(Script::Stdin), root: Root::Within("x".into()), ..known() };
    let refused = AttestRefusal::new(AttestReason::TwoPrograms, "held by two");
    let answers = [Ok(least), Ok(evidence(known())), Ok(evidence(inline)), Ok(evidence(stdin)), Err(refused)];
    answers.iter().map(|answer| wire::AttestResponse::from(answer).encode_to_vec()).collect()
}

#[test]
fn attestations() {
    fuzz!(answers(), |bytes| {
        let Ok(message) = wire::AttestResponse::decode(bytes) else { return };
        let Ok(answer) = Result::<Attestation, AttestRefusal>::try_from(message) else { return };
        if let Ok(attestation) = &answer {
            assert!(!attestation.executions.is_empty());
            assert!(attestation.executions.iter().all(|execution| execution.pid != 0));
        }
        let again = wire::AttestResponse::from(&answer);
        assert_eq!(Result::<Attestation, AttestRefusal>::try_from(again).unwrap(), answer);
    });
}

#[test]
fn flow_keys() {
    let key = |local: &str, remote: &str, role| {
        let key = FlowKey {
            netns: NetNs(4_026_531_840),
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            role,
        };
        wire::AttestFlowRequest::from(key).encode_to_vec()
    };
    let seeds = vec![
        key("10.0.0.1:1", "10.0.0.2:443", SocketRole::Connector),
        key("[fd77::1]:1", "[fd77::2]:443", SocketRole::Listener),
    ];
    fuzz!(seeds, |bytes| {
        let Ok(message) = wire::AttestFlowRequest::decode(bytes) else { return };
        let Ok(key) = FlowKey::try_from(message) else { return };
        assert_eq!(FlowKey::try_from(wire::AttestFlowRequest::from(key)).unwrap(), key);
    });
}

#[test]
fn observed_flows() {
    let flow = |ending, there| ObservedFlow {
        id: "0123".into(),
        protocol: Protocol::Udp,
        source: true,
        local: "10.0.0.1:1".parse().unwrap(),
        remote: "[fd77::2]:443".parse().unwrap(),
        started_ns: 1,
        ended_ns: 2,
        sent: 3,
        received: 4,
        ending,
        here: Ok(evidence(known())),
        there,
    };
    let refused = AttestRefusal::new(AttestReason::ProcessGone, "it ended");
    let there = There { node: Some("b".parse().unwrap()), attested: Err(refused) };
    let flows = [flow(Ending::Closed, Some(there)), flow(Ending::Refused, None)];
    let seeds: Vec<Vec<u8>> = flows.iter().map(|flow| wire::ObservedFlow::from(flow).encode_to_vec()).collect();
    fuzz!(seeds, |bytes| {
        let Ok(message) = wire::ObservedFlow::decode(bytes) else { return };
        let Ok(flow) = ObservedFlow::try_from(message) else { return };
        assert_eq!(ObservedFlow::try_from(wire::ObservedFlow::from(&flow)).unwrap(), flow);
    });
}

#[test]
fn kernel_records() {
    let seeds = vec![vec![0; RECORD_SIZE], vec![0xff; RECORD_SIZE], vec![0; RECORD_SIZE - 1], Vec::new()];
    fuzz!(seeds, |bytes| {
        match ConnectRecord::parse(bytes) {
            Ok(record) => {
                let again = record.to_bytes();
                // The last four are padding.
                assert_eq!(again[..RECORD_SIZE - 4], bytes[..RECORD_SIZE - 4]);
                assert_eq!(ConnectRecord::parse(&again).unwrap(), record);
            }
            Err(_) => assert_ne!(bytes.len(), RECORD_SIZE),
        }
    });
}

#[test]
fn certified_programs() {
    let taints = element(0x30, &element(0x0c, b"deleted"));
    let least = [element(4, &[1; 32]), element(12, b"/bin/a"), element(2, &[33]), taints].concat();
    let file = element(0xa0, &[element(4, &[2; 32]), element(12, "/srv/ä.py".as_bytes())].concat());
    let inline = element(0x81, &[5; 32]);
    let more =
        [element(0x83, &[3; 32]), element(0x84, &[4; 32]), element(0x85, b"4c4c"), element(0x86, b"0123")].concat();
    let seeds = [Vec::new(), file, inline, element(0x82, &[])]
        .map(|code| element(0x30, &[&least, &code, &more].map(|part| part.as_slice()).concat()));
    fuzz!(seeds, |der| {
        let Ok(program) = CertifiedProgram::from_der(der) else { return };
        for path in
            [Some(program.program.as_str()), program.script_file().map(|file| file.path.as_str())].into_iter().flatten()
        {
            assert!(path.len() <= 4096 && !path.chars().any(char::is_control), "{path:?}");
            assert!(der.windows(path.len().max(1)).any(|part| part == path.as_bytes()) || path.is_empty());
        }
        // There is one way to write each: a byte more is another one, or none.
        assert!(CertifiedProgram::from_der(&[der, &[0]].concat()).is_err());
    });
}

/// What is read from a text is written as that text.
fn written_as_read<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(read) = text.parse::<T>() {
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert_eq!(read.to_string(), text);
    }
}

#[test]
fn names() {
    let seeds = [
        "spiffe://example.org/web/api",
        "spiffe://example.org/bonafide/node/a",
        "example.org",
        "web/api-2.x",
        "node-a",
        "two-programs",
        "",
    ];
    fuzz!(seeds.map(|text| text.as_bytes().to_vec()), |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        written_as_read::<SpiffeId>(text);
        written_as_read::<TrustDomain>(text);
        written_as_read::<WorkloadName>(text);
        written_as_read::<NodeName>(text);
        written_as_read::<AttestReason>(text);
    });
}

#[test]
fn digests() {
    let digest = Digest([0xab; 32]).to_string();
    fuzz!(vec![digest.clone().into_bytes(), digest.trim_start_matches("sha256:").as_bytes().to_vec()], |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let Ok(digest) = text.parse::<Digest>() else { return };
        assert!(digest.to_string().ends_with(text) && text.len() >= 64);
    });
}

#[test]
fn join_tokens() {
    let token = JoinToken::new(Secret::generate().unwrap(), vec![0x30; 300].into());
    fuzz!(vec![token.reveal().as_bytes().to_vec(), b"bonafide-join-v1.".to_vec()], |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        match text.parse::<JoinToken>() {
            Ok(token) => assert_eq!(token.reveal().as_str(), text.trim()),
            Err(refusal) => shown(&refusal.to_string()),
        }
    });
}

fn record() -> FlowRecord {
    let party = |address: &str| Party {
        workload: Some("web".parse().unwrap()),
        addr: Some(address.parse().unwrap()),
        ..Party::default()
    };
    FlowRecord {
        v: RECORD_VERSION,
        id: "0".repeat(32),
        end: End::Source,
        started: "2026-03-04T05:06:07.891Z".into(),
        ended: "2026-03-04T05:06:09.291Z".into(),
        duration_us: 1_400_000,
        mode: "enforce".into(),
        verdict: Outcome::Refused,
        rule: Some("web to db".into()),
        reason: Reason::ALL.first().copied(),
        detail: Some("two".into()),
        nearest: Some(NearMiss { of: "api".into(), field: "uid".into(), expected: "33".into(), seen: "0".into() }),
        remedy: None,
        tried: None,
        transport: Transport::Mtls,
        protocol: Protocol::Udp,
        source: party("[fd77::1]:41000"),
        destination: party("10.0.0.2:5432"),
        original: Some("10.0.0.3:5432".parse().unwrap()),
        tls: None,
        bytes_sent: 999,
        bytes_received: 1_234_567,
        ended_by: EndedBy::Closed,
    }
}

#[test]
fn flow_records() {
    fuzz!(vec![serde_json::to_vec(&record()).unwrap(), b"{}".to_vec()], |bytes| {
        let Ok(record) = serde_json::from_slice::<FlowRecord>(bytes) else { return };
        let written = serde_json::to_vec(&record).unwrap();
        assert_eq!(serde_json::from_slice::<FlowRecord>(&written).unwrap(), record);
    });
}

/// What signs in a small mesh, and what an honest workload of it shows.
struct Mesh {
    bundle: TrustBundle,
    node_key: KeyPair,
    chain: [CertificateDer<'static>; 2],
    shown: PeerSvid,
}

static MESH: LazyLock<Mesh> = LazyLock::new(mesh);

fn mesh() -> Mesh {
    let signs = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    };
    let [root_key, node_key, key] = [(); 3].map(|()| KeyPair::generate().unwrap());
    let root = signs("root").self_signed(&root_key).unwrap().der().clone();
    let of_root = Issuer::new(signs("root"), root_key);
    let mut node = signs("node-a");
    let mandate = [element(2, &[7]), element(0x30, &element(12, b"web/*"))].concat();
    node.custom_extensions = vec![CustomExtension::from_oid_content(&MANDATE_OID, element(0x30, &mandate))];
    let intermediate = node.signed_by(&node_key, &of_root).unwrap().der().clone();
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = DistinguishedName::new();
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf.subject_alt_names = vec![SanType::URI("spiffe://example.org/web/api".try_into().unwrap())];
    let program = [element(4, &[1; 32]), element(12, b"/bin/a"), element(2, &[33]), element(0x30, &[])].concat();
    leaf.custom_extensions = vec![CustomExtension::from_oid_content(&FINGERPRINT_OID, element(0x30, &program))];
    let params = signs("node-a");
    let leaf = leaf.signed_by(&key, &Issuer::from_params(&params, &node_key)).unwrap().der().clone();
    let (bundle, chain) = (TrustBundle::new("example.org".parse().unwrap(), vec![root]).unwrap(), [leaf, intermediate]);
    let shown = verify(&bundle, &chain).unwrap();
    Mesh { bundle, node_key, chain, shown }
}

fn verify(bundle: &TrustBundle, chain: &[CertificateDer<'_>]) -> Result<PeerSvid, SvidError> {
    bundle.verify(chain, UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000)), Expect::Workload)
}

/// What the node makes a certificate of, whatever it is.
fn signed(content: &[u8]) -> CertificateDer<'static> {
    let signature = MESH.node_key.sign(content).unwrap();
    // ecdsa-with-SHA256 (RFC 5758)
    let algorithm = element(0x30, &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]);
    let signature = element(3, &[&[0], signature.as_slice()].concat());
    element(0x30, &[content, &algorithm, &signature].concat()).into()
}

fn content(certificate: &[u8]) -> Vec<u8> {
    let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
    certificate.tbs_certificate.as_ref().to_vec()
}

/// What an intermediate says that it may issue has one spelling, and so has what an operator types.
#[test]
fn grants() {
    let of = |patterns: &[&str]| {
        let patterns: Vec<u8> = patterns.iter().flat_map(|text| element(12, text.as_bytes())).collect();
        element(0x30, &[element(2, &[0, 0x80]), element(0x30, &patterns)].concat())
    };
    fuzz!(vec![of(&["*"]), of(&["api", "web-*", "x/y"]), of(&[]), b"web,shop/*".to_vec()], |bytes| {
        match Mandate::from_der(bytes) {
            Ok(Mandate { number, grant }) => {
                let texts: Vec<u8> = grant.patterns().flat_map(|text| element(12, text.as_bytes())).collect();
                let digits: Vec<u8> = number.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
                let sign = if digits[0] >= 0x80 { vec![0] } else { vec![] };
                let again = [element(2, &[sign, digits].concat()), element(0x30, &texts)].concat();
                assert_eq!(element(0x30, &again), bytes);
                assert_eq!(grant.to_string().parse::<Grant>().unwrap(), grant);
            }
            Err(refusal) => shown(&refusal.to_string()),
        }
        if let Ok(text) = std::str::from_utf8(bytes) {
            match text.parse::<Grant>() {
                Ok(grant) => assert_eq!(grant.to_string().parse::<Grant>().unwrap(), grant),
                Err(refusal) => assert!(refusal.to_string().len() < 20_000),
            }
        }
    });
}

/// A chain that was changed on the way is refused, or as good as it was. And a node that signs what it likes gets no
/// further than to workloads of its own trust domain, in words that can be shown.
#[test]
fn peer_certificates() {
    let [leaf, intermediate] = &MESH.chain;
    assert_eq!(verify(&MESH.bundle, &[signed(&content(leaf)), intermediate.clone()]).unwrap(), MESH.shown);
    fuzz!(vec![content(leaf), leaf.to_vec(), intermediate.to_vec()], |bytes| {
        let [leaf, intermediate] = MESH.chain.each_ref().map(|certificate| CertificateDer::from(certificate.as_ref()));
        let changed = CertificateDer::from(bytes);
        for chain in [[changed.clone(), intermediate.clone()], [leaf, changed]] {
            match verify(&MESH.bundle, &chain) {
                Ok(peer) => assert_eq!(peer, MESH.shown),
                Err(refusal) => shown(&refusal.to_string()),
            }
        }
        match verify(&MESH.bundle, &[signed(bytes), intermediate]) {
            Ok(peer) => {
                assert_eq!(peer.id().trust_domain().as_str(), "example.org");
                assert_eq!(peer.node(), MESH.shown.node());
                assert!(peer.id().path().starts_with("web/"), "beyond the grant");
                assert!(peer.id().workload_name().is_some() && peer.not_after() >= 1_800_000_000);
                assert!(peer.serial().len() <= 64, "{}", peer.serial());
                shown(&peer.program().unwrap().program);
            }
            Err(refusal) => shown(&refusal.to_string()),
        }
    });
}

/// A bundle of somebody else's is read as it is written again, or refused in words that can be shown.
#[test]
fn spiffe_bundles() {
    let key = JwtKey::new([&[4], [7; 64].as_slice()].concat()).unwrap();
    let tokens = JwtBundle::new("example.org".parse().unwrap(), vec![key]).unwrap();
    let own = SpiffeBundle::of(&MESH.bundle, &tokens, Some(7)).unwrap().document().to_string();
    let rsa = r#"{"keys":[{"kty":"RSA","use":"jwt-svid","kid":"r","n":"","e":"AQAB"},{"kty":"OKP"}]}"#;
    fuzz!(vec![own, rsa.to_owned(), r#"{"keys":[],"spiffe_sequence":1}"#.to_owned()], |document| {
        match SpiffeBundle::parse(document) {
            Ok(bundle) => {
                let again = bundle.document().to_string();
                assert_eq!(SpiffeBundle::parse(again.as_bytes()).unwrap(), bundle);
                assert!(bundle.roots().len() + bundle.token_keys().len() <= 2, "there is no key that was not written");
            }
            Err(refusal) => shown(&refusal.to_string()),
        }
    });
}

/// Of tokens that were changed on the way none is good, and those that our own key signed say what was signed, or nothing.
#[test]
fn jwt_svids() {
    static SIGNER: LazyLock<(EcdsaKeyPair, JwtKey, JwtBundle)> = LazyLock::new(|| {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
        let key = JwtKey::new(pair.public_key().as_ref().to_vec()).unwrap();
        let bundle = JwtBundle::new("example.org".parse().unwrap(), vec![key.clone()]).unwrap();
        (pair, key, bundle)
    });
    const NOW: i64 = 1_800_000_000;
    fn signed(part: &str) -> String {
        jwt::joined(part, SIGNER.0.sign(&SystemRandom::new(), part.as_bytes()).unwrap().as_ref())
    }
    let id = "spiffe://example.org/web".parse().unwrap();
    let part = jwt::signed_part(&SIGNER.1, &id, &["db".to_owned()], (NOW, NOW + 300));
    let whole = signed(&part);
    SIGNER.2.verify(&whole, "db", NOW).unwrap();
    let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
    let (header, claims) = part.split_once('.').unwrap();
    let seeds = vec![decoded(header), decoded(claims), whole.into_bytes()];
    fuzz!(seeds, |bytes| {
        let (_, key, bundle) = &*SIGNER;
        let own = format!("{{\"alg\":\"ES256\",\"kid\":\"{}\"}}", key.kid());
        let [own, bytes_as_part] = [own.as_bytes(), bytes].map(|part| URL_SAFE_NO_PAD.encode(part));
        let text = String::from_utf8_lossy(bytes);
        for token in [&*text, &signed(&format!("{own}.{bytes_as_part}")), &signed(&format!("{bytes_as_part}.{own}"))] {
            match bundle.verify(token, "db", NOW) {
                Ok(proven) => {
                    assert_eq!(proven.id.trust_domain().as_str(), "example.org");
                    assert!(proven.expires >= NOW - 30 && proven.claims["sub"] == proven.id.to_string());
                }
                Err(refusal) => shown(&refusal.to_string()),
            }
        }
    });
}

/// A signed policy that was changed on the way is refused in words that can be shown, or says what it said; and a signer
/// that signs what it likes stays within the bounds.
#[test]
fn signed_policies() {
    static SIGNED: LazyLock<(TrustBundle, KeyPair, policy::SignedPolicy)> = LazyLock::new(signed_policy);
    let (bundle, _, signed) = &*SIGNED;
    SignedPolicy::verify(&signed.encode_to_vec(), bundle).unwrap();
    fuzz!(vec![signed.encode_to_vec(), signed.signer.clone()], |bytes| {
        let (bundle, _, signed) = &*SIGNED;
        let with_signer = policy::SignedPolicy { signer: bytes.to_vec(), ..signed.clone() }.encode_to_vec();
        for changed in [bytes, &with_signer] {
            match SignedPolicy::verify(changed, bundle) {
                Ok(policy) => assert_eq!((policy.version(), policy.text()), (signed.version, signed.text.as_str())),
                Err(refusal) => shown(&refusal.to_string()),
            }
        }
        if let Ok(mut read) = policy::SignedPolicy::decode(bytes) {
            read.signer.clone_from(&signed.signer);
            read.signature = SIGNED.1.sign(&to_sign(&read)).unwrap();
            match SignedPolicy::verify(&read.encode_to_vec(), bundle) {
                Ok(policy) => {
                    shown(policy.author());
                    assert_eq!(policy.mark().trust_domain.as_str(), "example.org");
                }
                Err(refusal) => shown(&refusal.to_string()),
            }
        }
    });

    fn to_sign(policy: &policy::SignedPolicy) -> Vec<u8> {
        let short = |text: &str| [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat();
        [
            b"bonafide policy 1\0".as_slice(),
            &short(&policy.trust_domain),
            &policy.version.to_be_bytes(),
            &policy.created.to_be_bytes(),
            &short(&policy.author),
            &(policy.text.len() as u32).to_be_bytes(),
            &Digest::of(policy.text.as_bytes()).0,
            &[policy.roots.len() as u8],
            &policy.roots.concat(),
            &Digest::of(&policy.signer).0,
        ]
        .concat()
    }

    fn signed_policy() -> (TrustBundle, KeyPair, policy::SignedPolicy) {
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let [root_key, key] = [(); 2].map(|()| KeyPair::generate().unwrap());
        let der = root.self_signed(&root_key).unwrap().der().clone();
        let mut signer = CertificateParams::default();
        signer.distinguished_name = DistinguishedName::new();
        signer.is_ca = IsCa::ExplicitNoCa;
        signer.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        signer.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(POLICY_SIGNER_OID.to_vec())];
        signer.subject_alt_names = vec![SanType::URI("spiffe://example.org".try_into().unwrap())];
        let signer = signer.signed_by(&key, &Issuer::new(root, root_key)).unwrap().der().to_vec();
        let mut policy = policy::SignedPolicy {
            trust_domain: "example.org".into(),
            version: 7,
            created: 1_800_000_000,
            author: "Ada".into(),
            text: "mode = \"observe\"\n".into(),
            roots: vec![vec![1; 32]],
            signer,
            signature: Vec::new(),
            issuing: Vec::new(),
        };
        policy.signature = key.sign(&to_sign(&policy)).unwrap();
        (TrustBundle::new("example.org".parse().unwrap(), vec![der]).unwrap(), key, policy)
    }
}

/// It can be a line of a log.
fn shown(text: &str) {
    assert!(text.len() <= 9000 && !text.chars().any(char::is_control), "{text:?}");
}
