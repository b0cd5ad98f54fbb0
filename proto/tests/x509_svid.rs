//! X509-SVID.md, rule by rule (the numbers are of the rules as this project lists them), as a verifier: what an issuer that
//! has the right key, and breaks a rule, is told. (`ca/tests/roles/x509_svid.rs` has the same of what is issued here.)

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

use std::time::Duration;

use bonafide_fuzz::element;
use bonafide_proto::grant::MANDATE_OID;
use bonafide_proto::svid::{CERTIFICATE_MAX, Expect, FINGERPRINT_OID, PeerSvid, SvidError, TrustBundle};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, UnixTime};

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const NOW: u64 = 1_800_000_000;

/// A root, and a node with its intermediate.
struct Mesh {
    trust: TrustBundle,
    root: CertificateDer<'static>,
    intermediate: CertificateDer<'static>,
    node: Issuer<'static, KeyPair>,
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn signing(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = vec![uri("spiffe://example.org")];
    params
}

/// The intermediate of a node that may issue `web/*`.
fn node() -> CertificateParams {
    let mut params = signing("node-a");
    let mandate = [element(2, &[7]), element(0x30, &element(12, b"web/*"))].concat();
    params.custom_extensions = vec![CustomExtension::from_oid_content(&MANDATE_OID, element(0x30, &mandate))];
    params
}

/// As it should be.
fn leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![uri("spiffe://example.org/web/api")];
    let program = [element(4, &[1; 32]), element(12, b"/bin/a"), element(2, &[33]), element(0x30, &[])].concat();
    params.custom_extensions = vec![CustomExtension::from_oid_content(&FINGERPRINT_OID, element(0x30, &program))];
    params
}

impl Mesh {
    fn new() -> Self {
        Self::with_intermediate(&node())
    }

    /// Whose node's certificate differs so from one that is right.
    fn where_the_node(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = node();
        change(&mut params);
        Self::with_intermediate(&params)
    }

    fn with_intermediate(params: &CertificateParams) -> Self {
        let [root_key, node_key] = [(); 2].map(|()| KeyPair::generate().unwrap());
        let root = signing("root").self_signed(&root_key).unwrap().der().clone();
        let by_root = Issuer::new(signing("root"), root_key);
        let intermediate = params.signed_by(&node_key, &by_root).unwrap().der().clone();
        let trust = TrustBundle::new("example.org".parse().unwrap(), vec![root.clone()]).unwrap();
        Self { trust, root, intermediate, node: Issuer::new(params.clone(), node_key) }
    }

    fn sign(&self, params: &CertificateParams) -> CertificateDer<'static> {
        params.signed_by(&KeyPair::generate().unwrap(), &self.node).unwrap().der().clone()
    }

    fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<PeerSvid, SvidError> {
        self.trust.verify(chain, UnixTime::since_unix_epoch(Duration::from_secs(NOW)), Expect::Workload)
    }

    /// What is said of a leaf that differs so from one that is right.
    fn verdict(&self, change: impl FnOnce(&mut CertificateParams)) -> Result<String, SvidError> {
        let mut params = leaf();
        change(&mut params);
        self.verify(&[self.sign(&params), self.intermediate.clone()]).map(|peer| peer.id().to_string())
    }
}

#[test]
fn id_6_the_id_and_the_key_are_in_what_is_signed() {
    let mesh = Mesh::new();
    let right = mesh.sign(&leaf());
    let at = |part: &[u8]| right.windows(part.len()).position(|seen| seen == part).unwrap();
    // The last character of the ID, and a byte of the key's point (RFC 5480 §2: after the curve, and the bit string's head).
    let curve = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    for (place, changed) in [(at(b"/web/api") + 7, b'j'), (at(&curve) + curve.len() + 10, 0)] {
        let mut der = right.to_vec();
        der[place] = if der[place] == changed { 1 } else { changed };
        let refused = mesh.verify(&[der.into(), mesh.intermediate.clone()]).unwrap_err();
        assert!(matches!(refused, SvidError::Path(_)), "{refused}");
    }
}

#[test]
fn a_leaf_that_breaks_no_rule_is_accepted() {
    assert_eq!(Mesh::new().verdict(|_| {}).unwrap(), "spiffe://example.org/web/api");
}

#[test]
fn x_1_more_or_fewer_than_one_uri_are_refused_and_other_names_are_not() {
    let mesh = Mesh::new();
    let other = || uri("spiffe://example.org/web/other");
    assert_eq!(mesh.verdict(|leaf| leaf.subject_alt_names.push(other())), Err(SvidError::UriSans(2)));
    assert_eq!(mesh.verdict(|leaf| leaf.subject_alt_names.insert(0, other())), Err(SvidError::UriSans(2)));
    assert_eq!(
        mesh.verdict(|leaf| leaf.subject_alt_names.push(uri("https://example.org/"))),
        Err(SvidError::UriSans(2))
    );
    let dns = || SanType::DnsName("web.example.org".try_into().unwrap());
    assert_eq!(mesh.verdict(|leaf| leaf.subject_alt_names = vec![dns()]), Err(SvidError::UriSans(0)));
    assert_eq!(mesh.verdict(|leaf| leaf.subject_alt_names.clear()), Err(SvidError::UriSans(0)));
    assert!(mesh.verdict(|leaf| leaf.subject_alt_names.push(dns())).is_ok());
}

#[test]
fn x_2_a_leaf_without_a_path_is_refused() {
    let mesh = Mesh::new();
    for bad in ["spiffe://example.org", "spiffe://example.org/"] {
        let verdict = mesh.verdict(|leaf| leaf.subject_alt_names = vec![uri(bad)]);
        assert!(matches!(verdict, Err(SvidError::SpiffeId(_))), "{bad}: {verdict:?}");
    }
}

#[test]
fn x_3_a_signing_certificate_authenticates_nobody() {
    let mesh = Mesh::new();
    assert!(mesh.verify(std::slice::from_ref(&mesh.root)).is_err());
    assert!(mesh.verify(std::slice::from_ref(&mesh.intermediate)).is_err());
    // Not even with a path.
    let mesh = Mesh::where_the_node(|node| node.subject_alt_names = leaf().subject_alt_names);
    assert_eq!(
        mesh.verify(std::slice::from_ref(&mesh.intermediate)),
        Err(SvidError::Constraints("it is a CA certificate"))
    );
}

#[test]
fn x_4_a_leaf_that_is_a_ca_or_does_not_say_that_it_is_none_is_refused() {
    let mesh = Mesh::new();
    for is_ca in [IsCa::Ca(BasicConstraints::Unconstrained), IsCa::Ca(BasicConstraints::Constrained(0)), IsCa::NoCa] {
        assert!(matches!(mesh.verdict(|leaf| leaf.is_ca = is_ca), Err(SvidError::Constraints(_))));
    }
}

#[test]
fn x_4_what_is_no_ca_issues_nothing() {
    for is_ca in [IsCa::ExplicitNoCa, IsCa::NoCa] {
        let mesh = Mesh::where_the_node(|node| node.is_ca = is_ca);
        assert!(matches!(mesh.verdict(|_| {}), Err(SvidError::Path(_))));
    }
}

#[test]
fn x_6_a_leafs_key_usage_is_there_and_critical_and_for_handshakes_alone() {
    let mesh = Mesh::new();
    let digital = KeyUsagePurpose::DigitalSignature;
    let bad = [
        vec![],
        vec![digital, KeyUsagePurpose::KeyCertSign],
        vec![digital, KeyUsagePurpose::CrlSign],
        vec![KeyUsagePurpose::KeyAgreement],
    ];
    for usages in bad {
        let verdict = mesh.verdict(|leaf| leaf.key_usages = usages);
        assert!(matches!(verdict, Err(SvidError::Constraints(_))), "{verdict:?}");
    }
    let not_critical = mesh.verdict(|leaf| {
        leaf.key_usages.clear();
        // BIT STRING { digitalSignature }
        leaf.custom_extensions.push(CustomExtension::from_oid_content(KEY_USAGE, vec![3, 2, 7, 0x80]));
    });
    assert_eq!(not_critical, Err(SvidError::Constraints("key usage is not critical")));
}

#[test]
fn x_6_what_may_sign_no_certificates_issues_nothing() {
    for usages in [vec![], vec![KeyUsagePurpose::CrlSign], vec![KeyUsagePurpose::DigitalSignature]] {
        let mesh = Mesh::where_the_node(|node| node.key_usages = usages);
        assert!(matches!(mesh.verdict(|_| {}), Err(SvidError::Path(_))));
    }
}

#[test]
fn x_7_a_leaf_is_for_both_ends_of_a_connection() {
    let mesh = Mesh::new();
    for usages in [vec![], vec![ExtendedKeyUsagePurpose::ServerAuth], vec![ExtendedKeyUsagePurpose::ClientAuth]] {
        let verdict = mesh.verdict(|leaf| leaf.extended_key_usages = usages);
        assert!(matches!(verdict, Err(SvidError::Constraints(_))), "{verdict:?}");
    }
}

#[test]
fn x_8_the_scheme_is_spiffe_and_the_trust_domain_ours() {
    let mesh = Mesh::new();
    for bad in ["https://example.org/web/api", "spiffe://Example.org/web/api", "spiffe://example.org/web//api"] {
        let verdict = mesh.verdict(|leaf| leaf.subject_alt_names = vec![uri(bad)]);
        assert!(matches!(verdict, Err(SvidError::SpiffeId(_))), "{bad}: {verdict:?}");
    }
    let other = mesh.verdict(|leaf| leaf.subject_alt_names = vec![uri("spiffe://other.org/web/api")]);
    assert!(matches!(other, Err(SvidError::TrustDomain { .. })), "{other:?}");
}

#[test]
fn x_8_the_chain_is_one_of_rfc_5280_to_a_root_of_ours() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let good = mesh.sign(&leaf());
    assert!(matches!(other.verify(&[good.clone(), mesh.intermediate.clone()]), Err(SvidError::Path(_))));
    assert!(matches!(mesh.verify(&[good.clone(), other.intermediate.clone()]), Err(SvidError::Path(_))));
    assert!(matches!(mesh.verify(std::slice::from_ref(&good)), Err(SvidError::Path(_))));
    assert!(matches!(mesh.verify(&[other.sign(&leaf()), mesh.intermediate.clone()]), Err(SvidError::Path(_))));
    let critical = mesh.verdict(|leaf| {
        let mut unheard_of = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        unheard_of.set_criticality(true);
        leaf.custom_extensions.push(unheard_of);
    });
    assert!(critical.is_err(), "a critical extension that nobody knows: {critical:?}");
}

#[test]
fn x_8_an_expired_certificate_proves_nothing() {
    let mesh = Mesh::new();
    let at = |unix: u64| time::OffsetDateTime::from_unix_timestamp(i64::try_from(unix).unwrap()).unwrap();
    assert_eq!(mesh.verdict(|leaf| leaf.not_after = at(NOW - 10)), Err(SvidError::Expired(10)));
    assert_eq!(mesh.verdict(|leaf| leaf.not_before = at(NOW + 10)), Err(SvidError::NotYetValid(10)));
    let mesh = Mesh::where_the_node(|node| node.not_after = at(NOW - 10));
    assert!(matches!(mesh.verdict(|_| {}), Err(SvidError::Path(_))));
}

#[test]
fn long_and_large_chains_are_refused_by_their_size_before_anything_is_parsed() {
    let mesh = Mesh::new();
    let junk = |length: usize| CertificateDer::from(vec![0; length]);
    // What is small enough is looked at, and is no certificate.
    assert!(matches!(mesh.verify(&[junk(CERTIFICATE_MAX)]), Err(SvidError::Malformed(_))));
    for chain in [vec![junk(CERTIFICATE_MAX + 1)], vec![junk(1 << 20), junk(1)], vec![junk(1), junk(1 << 20)]] {
        assert_eq!(mesh.verify(&chain), Err(SvidError::TooLarge));
    }
    assert_eq!(mesh.verify(&vec![junk(1); 1000]), Err(SvidError::TooLarge));
    assert_eq!(mesh.verify(&[]), Err(SvidError::Missing));
}

/// The certificate by which an authority issues whose root is offline.
fn issuing() -> CertificateParams {
    let mut params = signing("issuing");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params
}

/// What is wrong with a certificate, and how that is told.
type Wrong = (&'static str, CertificateParams, fn(&SvidError) -> bool);

fn but(mut params: CertificateParams, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    change(&mut params);
    params
}

/// A root that is offline, an issuing certificate, and a node below it.
struct Deep {
    mesh: Mesh,
    issuing: CertificateDer<'static>,
    authority: Issuer<'static, KeyPair>,
}

impl Deep {
    fn with(above: &CertificateParams, node: &CertificateParams) -> Self {
        let [root_key, authority_key, node_key] = [(); 3].map(|()| KeyPair::generate().unwrap());
        let root = signing("root").self_signed(&root_key).unwrap().der().clone();
        let issuing = above.signed_by(&authority_key, &Issuer::new(signing("root"), root_key)).unwrap().der().clone();
        let authority = Issuer::new(above.clone(), authority_key);
        let intermediate = node.signed_by(&node_key, &authority).unwrap().der().clone();
        let trust = TrustBundle::new("example.org".parse().unwrap(), vec![root.clone()]).unwrap();
        let mesh = Mesh { trust, root, intermediate, node: Issuer::new(node.clone(), node_key) };
        Self { mesh, issuing, authority }
    }

    fn below(above: &CertificateParams) -> Self {
        Self::with(above, &node())
    }

    fn chain(&self) -> [CertificateDer<'static>; 3] {
        [self.mesh.sign(&leaf()), self.mesh.intermediate.clone(), self.issuing.clone()]
    }

    /// What is said of whoever the authority certified by this.
    fn issued(&self, id: &str, expect: Expect) -> Result<PeerSvid, SvidError> {
        let mut params = leaf();
        params.custom_extensions.clear();
        params.subject_alt_names = vec![uri(id)];
        let own = params.signed_by(&KeyPair::generate().unwrap(), &self.authority).unwrap().der().clone();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
        self.mesh.trust.verify(&[own, self.issuing.clone()], now, expect)
    }
}

const NODE: &str = "spiffe://example.org/bonafide/node/a";
const AUTHORITY: &str = "spiffe://example.org/bonafide/authority";

#[test]
fn below_a_root_that_is_offline_everybody_shows_the_issuing_certificate_too() {
    let deep = Deep::below(&issuing());
    let proven = deep.mesh.verify(&deep.chain()).unwrap();
    assert_eq!(proven.id().to_string(), "spiffe://example.org/web/api");
    assert_eq!(proven.issuer().map(|issuer| (issuer.node.as_str(), issuer.number)), Some(("node-a", 7)));
    assert!(deep.issued(NODE, Expect::Node).is_ok() && deep.issued(AUTHORITY, Expect::Authority).is_ok());
    assert!(matches!(deep.issued(NODE, Expect::Authority), Err(SvidError::WrongKind(..))));

    let [own, of_node, above] = deep.chain();
    assert!(matches!(deep.mesh.verify(&[own.clone(), of_node.clone()]), Err(SvidError::Path(_))), "it is missing");
    let swapped = deep.mesh.verify(&[own.clone(), above.clone(), of_node.clone()]);
    assert!(swapped.is_err(), "the chain is in order: {swapped:?}");
    let longer = [own, of_node, above.clone(), above];
    assert_eq!(deep.mesh.verify(&longer), Err(SvidError::TooLarge));
    let stranger = Deep::below(&issuing());
    assert!(matches!(deep.mesh.verify(&stranger.chain()), Err(SvidError::Path(_))), "of another root");
    let [own, of_node, _] = deep.chain();
    let mixed = [own, of_node, stranger.issuing.clone()];
    assert!(matches!(deep.mesh.verify(&mixed), Err(SvidError::Path(_))), "with that of another root");
}

#[test]
fn an_issuing_certificate_is_no_nodes_and_no_nodes_is_one() {
    let at = |unix: i64| time::OffsetDateTime::from_unix_timestamp(unix).unwrap();
    let long = |length| IsCa::Ca(BasicConstraints::Constrained(length));
    let wrong: [Wrong; 7] = [
        ("a node's", but(issuing(), |above| above.custom_extensions = node().custom_extensions), |e| {
            matches!(e, SvidError::Issuing("is a node's"))
        }),
        ("of any length", but(issuing(), |above| above.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), |e| {
            matches!(e, SvidError::Issuing("has not a path length of 1"))
        }),
        ("too short", but(issuing(), |above| above.is_ca = long(0)), |e| matches!(e, SvidError::Path(_))),
        ("too long", but(issuing(), |above| above.is_ca = long(2)), |e| {
            matches!(e, SvidError::Issuing("has not a path length of 1"))
        }),
        (
            "for lists",
            but(issuing(), |above| above.key_usages = vec![KeyUsagePurpose::CrlSign]),
            |e| matches!(e, SvidError::Issuing(why) if why.contains("key usage")),
        ),
        (
            "of another trust domain",
            but(issuing(), |above| above.subject_alt_names = vec![uri("spiffe://other.org")]),
            |e| matches!(e, SvidError::Issuing(why) if why.contains("trust domain")),
        ),
        ("expired", but(issuing(), |above| above.not_after = at(1_799_999_999)), |e| matches!(e, SvidError::Path(_))),
    ];
    for (what, above, expected) in wrong {
        let deep = Deep::below(&above);
        let refused = deep.mesh.verify(&deep.chain()).unwrap_err();
        assert!(expected(&refused), "{what}: {refused:?}");
        if what != "too short" {
            let own = deep.issued(NODE, Expect::Node);
            assert!(own.is_err(), "{what}: {own:?}");
        }
    }
    // A node that certifies nodes, or leaves without the mandate of one.
    let zero = but(node(), |node| node.is_ca = long(0));
    let of_node = Deep::below(&zero);
    assert!(of_node.issued(NODE, Expect::Node).is_err());
    let unmandated = Deep::with(&issuing(), &but(zero, |node| node.custom_extensions.clear()));
    assert!(matches!(unmandated.mesh.verify(&unmandated.chain()), Err(SvidError::Mandate(_))));
    // The authority's key certifies a program as if it were a node's, by a name that both have.
    let named = but(node(), |node| node.distinguished_name = issuing().distinguished_name);
    let namesakes = Deep::with(&issuing(), &named);
    let own = leaf().signed_by(&KeyPair::generate().unwrap(), &namesakes.authority).unwrap().der().clone();
    let [_, of_node, above] = namesakes.chain();
    assert_eq!(namesakes.mesh.verify(&[own, of_node, above]), Err(SvidError::Issuer));
}
