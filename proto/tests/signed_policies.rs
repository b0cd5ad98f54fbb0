//! Signed policies: only what the trust domain's root had signed, as it was signed, by a certificate made for that alone.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "this is a test")]

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::signed_policy::{
    AUTHOR_MAX, Mark, POLICY_SIGNER_OID, PolicyRefusal, ROOTS_MAX, SIGNED_MAX, SignedPolicy, TEXT_MAX,
};
use bonafide_proto::svid::{Expect, SvidError, TrustBundle};
use bonafide_proto::wire::policy as wire;
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SigningKey as _,
};
use rustls::pki_types::{CertificateDer, UnixTime};

const CREATED: i64 = 1_800_000_000;

struct Root {
    key: KeyPair,
    params: CertificateParams,
    der: CertificateDer<'static>,
}

impl Root {
    fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { key, params, der }
    }

    fn issues(&self, params: &CertificateParams, key: &KeyPair) -> CertificateDer<'static> {
        params.signed_by(key, &Issuer::from_params(&self.params, &self.key)).unwrap().der().clone()
    }

    fn bundle(&self) -> TrustBundle {
        TrustBundle::new("example.org".parse().unwrap(), vec![self.der.clone()]).unwrap()
    }
}

fn signer() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(POLICY_SIGNER_OID.to_vec())];
    params.subject_alt_names = vec![uri("spiffe://example.org")];
    params
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn unsigned() -> wire::SignedPolicy {
    wire::SignedPolicy {
        trust_domain: "example.org".into(),
        version: 7,
        created: CREATED,
        author: "Ada, on call".into(),
        text: "mode = \"observe\"\n".into(),
        roots: vec![vec![1; 32]],
        ..Default::default()
    }
}

/// What the module's documentation says is signed.
fn to_sign(policy: &wire::SignedPolicy) -> Vec<u8> {
    let short = |text: &str| [&u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
    [
        b"bonafide policy 1\0".as_slice(),
        &short(&policy.trust_domain),
        &policy.version.to_be_bytes(),
        &policy.created.to_be_bytes(),
        &short(&policy.author),
        &u32::try_from(policy.text.len()).unwrap().to_be_bytes(),
        &Digest::of(policy.text.as_bytes()).0,
        &[u8::try_from(policy.roots.len()).unwrap()],
        &policy.roots.concat(),
        &Digest::of(&policy.signer).0,
    ]
    .concat()
}

fn sign(policy: wire::SignedPolicy, signer: &CertificateDer<'_>, key: &KeyPair) -> wire::SignedPolicy {
    let policy = wire::SignedPolicy { signer: signer.to_vec(), ..policy };
    wire::SignedPolicy { signature: key.sign(&to_sign(&policy)).unwrap(), ..policy }
}

/// A root, and a policy as it publishes it.
fn published(policy: wire::SignedPolicy) -> (Root, wire::SignedPolicy) {
    published_by(policy, &signer())
}

fn published_by(policy: wire::SignedPolicy, signer: &CertificateParams) -> (Root, wire::SignedPolicy) {
    let (root, key) = (Root::named("root"), KeyPair::generate().unwrap());
    let signed = sign(policy, &root.issues(signer, &key), &key);
    (root, signed)
}

fn verify(root: &Root, policy: &wire::SignedPolicy) -> Result<SignedPolicy, PolicyRefusal> {
    SignedPolicy::verify(&policy.encode_to_vec(), &root.bundle())
}

#[test]
fn what_was_published_is_read_as_it_was_said() {
    let (root, signed) = published(unsigned());
    let policy = verify(&root, &signed).unwrap();
    assert_eq!((policy.version(), policy.created(), policy.author()), (7, CREATED, "Ada, on call"));
    assert_eq!((policy.text(), policy.roots()), ("mode = \"observe\"\n", [Digest([1; 32])].as_slice()));
}

#[test]
fn whoever_changes_anything_breaks_the_signature() {
    let (root, signed) = published(unsigned());
    let changes: [fn(&mut wire::SignedPolicy); 6] = [
        |p| p.version = 8,
        |p| p.created += 1,
        |p| p.author = "Eve".into(),
        |p| p.text.push('#'),
        |p| p.roots.push(vec![2; 32]),
        |p| p.signature[10] ^= 1,
    ];
    for change in changes {
        let mut changed = signed.clone();
        change(&mut changed);
        assert_eq!(verify(&root, &changed), Err(PolicyRefusal::Signature), "{changed:?}");
    }
}

#[test]
fn an_unsigned_one_a_foreign_one_and_one_of_another_root_are_refused_by_name() {
    let (root, signed) = published(unsigned());
    for unsigned in [
        wire::SignedPolicy { signature: vec![], ..signed.clone() },
        wire::SignedPolicy { signer: vec![], ..signed.clone() },
    ] {
        assert_eq!(verify(&root, &unsigned).unwrap_err().as_str(), "unsigned-policy");
    }
    let mut foreign = signer();
    foreign.subject_alt_names = vec![uri("spiffe://other.org")];
    let (other, other_policy) =
        published_by(wire::SignedPolicy { trust_domain: "other.org".into(), ..unsigned() }, &foreign);
    assert_eq!(verify(&other, &other_policy).unwrap_err().as_str(), "foreign-policy");
    // A root of the same name, for it is the key that counts.
    let refused = verify(&Root::named("root"), &signed).unwrap_err();
    assert_eq!(refused.as_str(), "wrong-signer", "{refused}");
}

#[test]
fn bounds_are_checked_before_any_cryptography() {
    let (root, _) = published(unsigned());
    let long = vec![0; SIGNED_MAX + 1];
    assert_eq!(SignedPolicy::verify(&long, &root.bundle()), Err(PolicyRefusal::TooLarge(SIGNED_MAX + 1)));
    let changes: [fn(&mut wire::SignedPolicy); 9] = [
        |p| p.version = 0,
        |p| p.created = -1,
        |p| p.trust_domain = "Example.org".into(),
        |p| p.author = "x".repeat(AUTHOR_MAX + 1),
        |p| p.author = "two\nlines".into(),
        |p| p.text = "#".repeat(TEXT_MAX + 1),
        |p| p.roots.clear(),
        |p| p.roots = vec![vec![1; 32]; ROOTS_MAX + 1],
        |p| p.roots = vec![vec![1; 31]],
    ];
    for change in changes {
        let mut changed = unsigned();
        change(&mut changed);
        // Unsigned: whatever is wrong with it is found before that.
        assert_eq!(verify(&root, &changed).unwrap_err().as_str(), "malformed-policy");
    }
    let (root, largest) = published(wire::SignedPolicy {
        text: "#".repeat(TEXT_MAX),
        author: "x".repeat(AUTHOR_MAX),
        roots: vec![vec![1; 32]; ROOTS_MAX],
        ..unsigned()
    });
    assert_eq!(verify(&root, &largest).unwrap().text().len(), TEXT_MAX);
}

/// A workload's leaf, a node's SVID, an intermediate and the root itself sign nothing that counts.
#[test]
fn no_certificate_of_a_peer_signs_a_policy() {
    let peer = |path: &str| {
        let mut params = signer();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![uri(&format!("spiffe://example.org{path}"))];
        params
    };
    let mut peer_for_policies_too = peer("");
    let policies = ExtendedKeyUsagePurpose::Other(POLICY_SIGNER_OID.to_vec());
    peer_for_policies_too.extended_key_usages.push(policies.clone());
    let mut node_for_policies = signer();
    node_for_policies.subject_alt_names = vec![uri("spiffe://example.org/bonafide/node/a")];
    let mut two_names = signer();
    two_names.subject_alt_names.push(uri("spiffe://example.org"));
    let mut for_anything = signer();
    for_anything.extended_key_usages.push(ExtendedKeyUsagePurpose::Any);
    let mut without_purpose = signer();
    without_purpose.extended_key_usages.clear();
    let mut authority = signer();
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let mut unmarked = signer();
    unmarked.is_ca = IsCa::NoCa;
    let mut signs_certificates = signer();
    signs_certificates.key_usages.push(KeyUsagePurpose::KeyCertSign);
    let mut with_fingerprint = signer();
    with_fingerprint.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 99], vec![5, 0])];
    let strangers = [
        peer("/shop/web"),
        peer("/bonafide/node/a"),
        peer("/bonafide/authority"),
        peer(""),
        peer_for_policies_too,
        node_for_policies,
        two_names,
        for_anything,
        without_purpose,
        authority,
        unmarked,
        signs_certificates,
        with_fingerprint,
    ];
    for (n, params) in strangers.iter().enumerate() {
        let (root, signed) = published_by(unsigned(), params);
        let refused = verify(&root, &signed).unwrap_err();
        assert_eq!(refused.as_str(), "wrong-signer", "stranger {n}: {refused}");
    }
    let root = Root::named("root");
    let by_root = sign(unsigned(), &root.der, &root.key);
    assert_eq!(verify(&root, &by_root).unwrap_err().as_str(), "wrong-signer");
}

/// What a node's intermediate issues, looking like a signer in all else.
#[test]
fn a_node_makes_nobody_a_signer() {
    let root = Root::named("root");
    let mut node = Root::named("node-a");
    node.der = root.issues(&node.params, &node.key);
    let key = KeyPair::generate().unwrap();
    let signed = sign(unsigned(), &node.issues(&signer(), &key), &key);
    assert_eq!(verify(&root, &signed).unwrap_err().as_str(), "wrong-signer");
}

#[test]
fn a_signer_is_no_peer() {
    let (root, key) = (Root::named("root"), KeyPair::generate().unwrap());
    let signer = root.issues(&signer(), &key);
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
    for expect in [Expect::Workload, Expect::Node, Expect::Authority] {
        let refused = root.bundle().verify(std::slice::from_ref(&signer), now, expect).unwrap_err();
        assert!(matches!(refused, SvidError::SpiffeId(_)), "{refused}");
    }
}

#[test]
fn a_signer_signs_while_its_certificate_is_valid_and_what_it_signed_stays() {
    let mut brief = signer();
    let at = |unix: i64| time::OffsetDateTime::from_unix_timestamp(unix).unwrap();
    (brief.not_before, brief.not_after) = (at(CREATED - 60), at(CREATED + 60));
    for (created, right) in [(CREATED - 61, false), (CREATED - 60, true), (CREATED + 60, true), (CREATED + 61, false)] {
        let (root, signed) = published_by(wire::SignedPolicy { created, ..unsigned() }, &brief);
        assert_eq!(verify(&root, &signed).is_ok(), right, "{created}");
    }
}

#[test]
fn versions_count_up_and_one_number_is_one_policy() {
    let (root, signed) = published(unsigned());
    let policy = verify(&root, &signed).unwrap();
    let known = |version, content| Mark { version, content, ..policy.mark().clone() };
    let same = policy.mark().content;
    assert_eq!(policy.succeeds(None), Ok(true));
    assert_eq!(policy.succeeds(Some(&known(6, Digest([0; 32])))), Ok(true));
    assert_eq!(policy.succeeds(Some(&known(7, same))), Ok(false));
    assert_eq!(policy.succeeds(Some(&known(7, Digest([0; 32])))), Err(PolicyRefusal::Changed(7)));
    assert_eq!(policy.succeeds(Some(&known(8, same))), Err(PolicyRefusal::Older { seen: 7, known: 8 }));
    let elsewhere = Mark { trust_domain: "other.org".parse().unwrap(), ..known(8, same) };
    assert_eq!(policy.succeeds(Some(&elsewhere)), Ok(true), "numbers of two trust domains have nothing in common");
    // Signed anew, it says the same.
    let again = sign(unsigned(), &root.issues(&signer(), &root.key), &root.key);
    assert_eq!(verify(&root, &again).unwrap().succeeds(Some(policy.mark())), Ok(false));
}

/// The root's certificate for the authority that works while its key is away; and a policy by that authority.
fn published_below(change: impl FnOnce(&mut CertificateParams)) -> (Root, wire::SignedPolicy) {
    let (root, key) = (Root::named("root"), KeyPair::generate().unwrap());
    let mut issuing = Root::named("issuing");
    issuing.params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    issuing.params.subject_alt_names = vec![uri("spiffe://example.org")];
    change(&mut issuing.params);
    issuing.der = root.issues(&issuing.params, &issuing.key);
    let signed = sign(unsigned(), &issuing.issues(&signer(), &key), &key);
    (root, wire::SignedPolicy { issuing: issuing.der.to_vec(), ..signed })
}

#[test]
fn below_a_root_that_is_offline_a_policy_brings_the_issuing_certificate() {
    let (root, signed) = published_below(|_| {});
    assert_eq!(verify(&root, &signed).unwrap().version(), 7);
    let refused = |root: &Root, policy: &wire::SignedPolicy| match verify(root, policy) {
        Err(PolicyRefusal::Signer(why)) => why,
        other => panic!("{other:?}"),
    };
    let without = wire::SignedPolicy { issuing: Vec::new(), ..signed.clone() };
    assert!(refused(&root, &without).contains("not issued by a root"));
    assert!(refused(&Root::named("root"), &signed).contains("is not of a root"));
    let (_, other) = published_below(|_| {});
    let mixed = wire::SignedPolicy { issuing: other.issuing, ..signed.clone() };
    assert!(refused(&root, &mixed).contains("is not of a root"));
    let (direct, by_root) = published(unsigned());
    let beside = wire::SignedPolicy { issuing: signed.issuing.clone(), ..by_root };
    assert!(refused(&direct, &beside).contains("is not of a root"), "one that needs none, beside a stranger's");
    let long = wire::SignedPolicy { issuing: vec![0; 8193], ..signed };
    assert!(matches!(verify(&root, &long), Err(PolicyRefusal::Malformed(_))));

    let node: &[u64] = &bonafide_proto::grant::MANDATE_OID;
    let mandate = || CustomExtension::from_oid_content(node, vec![0x30, 0]);
    let (root, of_node) = published_below(|issuing| issuing.custom_extensions.push(mandate()));
    assert!(refused(&root, &of_node).contains("is a node's"));
    let (root, zero) = published_below(|issuing| issuing.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    assert!(refused(&root, &zero).contains("path length"));
    let elsewhere = vec![uri("spiffe://other.org")];
    let (root, foreign) = published_below(|issuing| issuing.subject_alt_names = elsewhere);
    assert!(refused(&root, &foreign).contains("trust domain"));
    let before = time::OffsetDateTime::from_unix_timestamp(CREATED - 1).unwrap();
    let (root, expired) = published_below(|issuing| issuing.not_after = before);
    assert!(refused(&root, &expired).contains("not issued by the issuing certificate"));
}
