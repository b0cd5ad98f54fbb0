//! For every rule: the honest template passes, and each way to break the rule is refused under the rule's name.

use bonafide_proto::fingerprint::{Digest, HashedFile, Release, Script};
use bonafide_proto::svid::{CertifiedProgram, FINGERPRINT_OID};
use bonafide_proto::taint::Taint;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa,
    KeyUsagePurpose as Ku, NameConstraints, SanType, SerialNumber,
};

use super::*;
use crate::certify::{self, Signer};
use crate::csr::{self, PublicKey};
use crate::key::Key;
use crate::{mint, template};

const NOW: i64 = 1_800_000_000;

struct Bench {
    root: Signer,
    node: Signer,
    key: PublicKey,
}

fn domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn order(holder: Holder) -> Order {
    Order { trust_domain: domain(), holder, validity: Validity { from: NOW - 60, until: NOW + 600 } }
}

fn program() -> CertifiedProgram {
    CertifiedProgram {
        exe: Digest([1; 32]),
        program: "/usr/bin/python3".into(),
        uid: 33,
        taints: [Taint::Deleted, Taint::Preload].into(),
        script: Some(Script::File(HashedFile { path: "/srv/ä.py".into(), digest: Digest([2; 32]) })),
        libraries: Some(Digest([3; 32])),
        image: Some(Digest([4; 32])),
        bios_uuid: Some("4c4c4544-0042-3510-8052-b4c04f4d3132".into()),
        machine_id: Some("0123456789abcdef0123456789abcdef".into()),
        release: Some(Release::InGrace),
    }
}

fn workload() -> Holder {
    Holder::Workload("shop/web".parse().unwrap(), Box::new(program()))
}

fn intermediate() -> Holder {
    Holder::Intermediate("a".parse().unwrap(), mandate("shop/*,web"))
}

fn mandate(grant: &str) -> Mandate {
    Mandate { number: 300, grant: grant.parse().unwrap() }
}

fn public(key: &Key) -> PublicKey {
    PublicKey::of_csr(&csr::request(key).unwrap()).unwrap()
}

fn root(holder_validity: Validity) -> Signer {
    let (key, holder) = (Key::generate().unwrap(), Holder::Root);
    let order = Order { trust_domain: domain(), holder: holder.clone(), validity: holder_validity };
    let certificate = certify::found(&order, &key).unwrap().der().clone();
    Signer { key, certificate, holder, validity: holder_validity, above: None }
}

impl Bench {
    fn new() -> Self {
        let root = root(Validity { from: NOW - 60, until: NOW + 6000 });
        let (key, holder) = (Key::generate().unwrap(), intermediate());
        let order = Order { validity: Validity { from: NOW - 60, until: NOW + 1200 }, ..order(holder.clone()) };
        let params = template::template(&order).unwrap();
        let draft = mint::sign(&params, &key, &Holder::Root, &root.key).unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        let by = SignedBy::Issuer(&root.certificate);
        let certificate = check(&draft, &order, &spki, by).unwrap().der().clone();
        let node = Signer { key, certificate, holder, validity: order.validity, above: None };
        Self { root, node, key: public(&Key::generate().unwrap()) }
    }

    fn issuer(&self, holder: &Holder) -> &Signer {
        if matches!(holder, Holder::Workload(..)) { &self.node } else { &self.root }
    }

    /// The template for this holder after `tamper`, signed as it should be, and judged as if nothing had happened.
    fn judge(&self, holder: Holder, tamper: impl FnOnce(&mut CertificateParams)) -> Result<Checked, CheckError> {
        let order = order(holder);
        let mut params = template::template(&order).unwrap();
        tamper(&mut params);
        let issuer = self.issuer(&order.holder);
        let draft = mint::sign(&params, &self.key, &issuer.holder, &issuer.key).unwrap();
        check(&draft, &order, self.key.spki(), SignedBy::Issuer(&issuer.certificate))
    }
}

fn holders() -> Vec<Holder> {
    let node = Holder::Node("a".parse().unwrap());
    vec![workload(), intermediate(), Holder::Issuing, node, Holder::Authority, Holder::PolicySigner]
}

fn leaves() -> Vec<Holder> {
    holders().into_iter().filter(|h| !matches!(h, Holder::Intermediate(..) | Holder::Issuing)).collect()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.to_owned().try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.to_owned().try_into().unwrap())
}

#[test]
fn honest_templates_pass() {
    let bench = Bench::new();
    for holder in holders() {
        let checked = bench.judge(holder, |_| {}).unwrap();
        assert_eq!(checked.serial().len(), 32);
    }
}

#[test]
fn x1_exactly_one_uri_and_the_ordered_one() {
    let bench = Bench::new();
    for holder in holders() {
        let tampers: Vec<fn(&mut CertificateParams)> = vec![
            |p| p.subject_alt_names.push(uri("spiffe://example.org/other")),
            |p| p.subject_alt_names.push(p.subject_alt_names[0].clone()),
            |p| p.subject_alt_names.push(dns("example.org")),
            |p| p.subject_alt_names.clear(),
            |p| p.subject_alt_names = vec![dns("example.org")],
            |p| p.subject_alt_names = vec![uri("spiffe://example.org/shop/db")],
            |p| p.subject_alt_names = vec![uri("spiffe://example.com/shop/web")],
            |p| p.subject_alt_names = vec![uri("spiffe://example.org/shop/web/")],
            |p| p.subject_alt_names = vec![uri("https://example.org/shop/web")],
        ];
        for tamper in tampers {
            let refused = bench.judge(holder.clone(), tamper);
            assert!(matches!(refused, Err(CheckError::Names { .. })), "{holder:?} {refused:?}");
        }
    }
}

#[test]
fn x2_leaves_have_a_path_and_no_subject_and_a_critical_san() {
    let bench = Bench::new();
    for holder in leaves().into_iter().filter(|holder| *holder != Holder::PolicySigner) {
        let rootless = bench.judge(holder.clone(), |p| p.subject_alt_names = vec![uri("spiffe://example.org")]);
        assert!(matches!(rootless, Err(CheckError::Names { .. })), "{rootless:?}");
        let named = bench.judge(holder, |p| p.distinguished_name.push(DnType::CommonName, "web"));
        assert!(matches!(named, Err(CheckError::Subject(_))), "{named:?}");
    }
    let pathful = bench.judge(Holder::PolicySigner, |p| p.subject_alt_names = vec![uri("spiffe://example.org/a")]);
    assert!(matches!(pathful, Err(CheckError::Names { .. })), "{pathful:?}");
    let renamed = bench.judge(intermediate(), |p| p.distinguished_name.push(DnType::CommonName, "b"));
    assert!(matches!(renamed, Err(CheckError::Subject(_))), "{renamed:?}");
}

#[test]
fn x3_signing_certificates_have_no_path_and_their_keys_certify_nobody_else() {
    let bench = Bench::new();
    let with_path = bench.judge(intermediate(), |p| p.subject_alt_names = vec![uri("spiffe://example.org/a")]);
    assert!(matches!(with_path, Err(CheckError::Names { .. })), "{with_path:?}");

    let order = order(workload());
    let params = template::template(&order).unwrap();
    let own = public(&bench.node.key);
    let draft = mint::sign(&params, &own, &bench.node.holder, &bench.node.key).unwrap();
    let by = SignedBy::Issuer(&bench.node.certificate);
    assert!(matches!(check(&draft, &order, own.spki(), by), Err(CheckError::Key(_))));
    let draft = mint::sign(&params, &bench.key, &bench.node.holder, &bench.node.key).unwrap();
    assert!(matches!(check(&draft, &order, own.spki(), by), Err(CheckError::Key(_))), "not the requested key");
}

#[test]
fn x4_basic_constraints_are_present_and_say_what_was_ordered() {
    let bench = Bench::new();
    for holder in leaves() {
        for is_ca in [IsCa::Ca(BasicConstraints::Unconstrained), IsCa::Ca(BasicConstraints::Constrained(0))] {
            let refused = bench.judge(holder.clone(), |p| p.is_ca = is_ca);
            assert!(matches!(refused, Err(CheckError::Constraints(_))), "{refused:?}");
        }
        // rcgen leaves the subject key identifier out with them: put it back, so that only the constraints are missing.
        let refused = bench.judge(holder, |p| {
            p.is_ca = IsCa::NoCa;
            p.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 14], vec![4, 1, 7]));
        });
        assert!(matches!(refused, Err(CheckError::Constraints(_))), "{refused:?}");
    }
    for is_ca in
        [IsCa::Ca(BasicConstraints::Unconstrained), IsCa::Ca(BasicConstraints::Constrained(1)), IsCa::ExplicitNoCa]
    {
        let refused = bench.judge(intermediate(), |p| p.is_ca = is_ca);
        assert!(matches!(refused, Err(CheckError::Constraints(_))), "{refused:?}");
    }
    let long = |length| IsCa::Ca(BasicConstraints::Constrained(length));
    for is_ca in [IsCa::Ca(BasicConstraints::Unconstrained), long(0), long(2), IsCa::ExplicitNoCa] {
        let refused = bench.judge(Holder::Issuing, |p| p.is_ca = is_ca);
        assert!(matches!(refused, Err(CheckError::Constraints(_))), "{refused:?}");
    }
}

#[test]
fn x4_basic_constraints_are_canonical_der() {
    let bench = Bench::new();
    let refused = bench.judge(workload(), |p| {
        p.is_ca = IsCa::NoCa;
        p.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 14], vec![4, 1, 7]));
        // cA FALSE, written out: DER omits a default.
        let mut explicit = CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 3, 1, 1, 0]);
        explicit.set_criticality(true);
        p.custom_extensions.push(explicit);
    });
    assert!(matches!(refused, Err(CheckError::Constraints(_) | CheckError::Malformed(_))), "{refused:?}");
}

#[test]
fn x5_no_name_constraints_and_no_other_extension() {
    let bench = Bench::new();
    for holder in holders() {
        let constrained = bench.judge(holder.clone(), |p| {
            let subtree = GeneralSubtree::DnsName("example.org".to_owned());
            p.name_constraints =
                Some(NameConstraints { permitted_subtrees: vec![subtree], excluded_subtrees: Vec::new() });
        });
        assert!(matches!(constrained, Err(CheckError::Extension(_))), "{constrained:?}");
        let unknown = bench.judge(holder, |p| {
            p.custom_extensions.push(CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]));
        });
        assert_eq!(unknown, Err(CheckError::Extension("1.2.3.4".into())));
    }
}

#[test]
fn a_mandate_is_the_ordered_one_on_intermediates_and_nowhere_else() {
    let bench = Bench::new();
    let content = |holder: Holder| template::template(&order(holder)).unwrap().custom_extensions.remove(0);
    let of = |number: u64, grant: &str| {
        let mandate = Mandate { number, grant: grant.parse().unwrap() };
        content(Holder::Intermediate("a".parse().unwrap(), mandate))
    };
    for (number, grant, why) in [
        (299, "shop/*,web", "another number"),
        (300, "shop/*", "other workloads"),
        (300, "", "other workloads"),
        (300, "shop/*,web,x", "other workloads"),
        (300, "*", "other workloads"),
    ] {
        let refused = bench.judge(intermediate(), |p| p.custom_extensions = vec![of(number, grant)]);
        assert_eq!(refused, Err(CheckError::Mandate(why)), "{number} {grant}");
    }
    let none = bench.judge(intermediate(), |p| p.custom_extensions.clear());
    assert_eq!(none, Err(CheckError::Mandate("the extension is missing")));
    let twice = bench.judge(intermediate(), |p| p.custom_extensions.push(of(300, "shop/*,web")));
    assert!(matches!(twice, Err(CheckError::Extension(_))), "{twice:?}");
    for leaf in leaves() {
        let refused = bench.judge(leaf, |p| p.custom_extensions.push(of(300, "shop/*,web")));
        assert!(matches!(refused, Err(CheckError::Extension(_))), "{refused:?}");
    }
    for number in [1, 127, 128, 255, 256, u64::from(u32::MAX), i64::MAX.unsigned_abs()] {
        let mandate = Mandate { number, grant: "a*,b".parse().unwrap() };
        let holder = Holder::Intermediate("a".parse().unwrap(), mandate.clone());
        let der = bench.judge(holder, |_| {}).unwrap();
        let (_, cert) = X509Certificate::from_der(der.der()).unwrap();
        let found = cert.extensions().iter().find(|e| e.oid.to_id_string().ends_with(".1") && e.value.len() < 40);
        assert_eq!(Mandate::from_der(found.unwrap().value), Ok(mandate));
    }
    for number in [0, u64::MAX] {
        let holder = Holder::Intermediate("a".parse().unwrap(), Mandate { number, grant: Default::default() });
        assert_eq!(bench.judge(holder, |_| {}), Err(CheckError::Mandate("its number is out of range")));
    }
}

#[test]
fn nothing_is_issued_beyond_the_issuers_mandate() {
    let bench = Bench::new();
    for (name, granted) in [("shop/web", true), ("shop/a/b", true), ("web", true), ("web2", false), ("shop", false)] {
        let holder = Holder::Workload(name.parse().unwrap(), Box::new(program()));
        match (bench.judge(holder, |_| {}), granted) {
            (Ok(_), true) => {}
            (Err(CheckError::NotGranted(refused)), false) => assert_eq!(refused, name),
            (other, _) => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn x6_key_usage_is_exactly_what_the_holder_needs() {
    let bench = Bench::new();
    for holder in holders() {
        let honest = template::template(&order(holder.clone())).unwrap().key_usages;
        for extra in [Ku::DigitalSignature, Ku::KeyCertSign, Ku::CrlSign, Ku::KeyAgreement, Ku::ContentCommitment] {
            if !honest.contains(&extra) {
                let refused = bench.judge(holder.clone(), |p| p.key_usages.push(extra));
                assert!(matches!(refused, Err(CheckError::KeyUsage(_))), "{extra:?} {refused:?}");
            }
        }
        for missing in &honest {
            let refused = bench.judge(holder.clone(), |p| p.key_usages.retain(|u| u != missing));
            assert!(matches!(refused, Err(CheckError::KeyUsage(_))), "{missing:?} {refused:?}");
        }
    }
}

#[test]
fn x6_key_usage_is_critical() {
    let refused = Bench::new().judge(workload(), |p| {
        p.key_usages.clear();
        p.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]));
    });
    assert_eq!(refused, Err(CheckError::KeyUsage("key usage is not critical")));
}

#[test]
fn x7_extended_key_usage_is_both_on_leaves_and_none_on_signing_certificates() {
    let bench = Bench::new();
    for holder in leaves() {
        let wrong: Vec<Vec<Eku>> = vec![
            vec![],
            vec![Eku::ServerAuth],
            vec![Eku::ClientAuth],
            vec![Eku::ServerAuth, Eku::ClientAuth, Eku::CodeSigning],
            vec![Eku::ServerAuth, Eku::ClientAuth, Eku::Any],
            vec![Eku::ServerAuth, Eku::ClientAuth, Eku::Other(vec![1, 2, 3])],
        ];
        for usages in wrong {
            let refused = bench.judge(holder.clone(), |p| p.extended_key_usages = usages);
            assert!(matches!(refused, Err(CheckError::ExtendedKeyUsage(_))), "{refused:?}");
        }
    }
    let policies = || Eku::Other(vec![2, 25, 5_178_349_013_480_112_913, 2]);
    let another = Eku::Other(vec![1, 2, 3]);
    for usages in [vec![policies(), Eku::ServerAuth], vec![policies(), another], vec![policies(), Eku::Any], vec![]] {
        let refused = bench.judge(Holder::PolicySigner, |p| p.extended_key_usages = usages);
        assert!(matches!(refused, Err(CheckError::ExtendedKeyUsage(_))), "{refused:?}");
    }
    let refused = bench.judge(Holder::Authority, |p| p.extended_key_usages.push(policies()));
    assert!(matches!(refused, Err(CheckError::ExtendedKeyUsage(_))), "{refused:?}");
    let refused = bench.judge(intermediate(), |p| p.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth]);
    assert!(matches!(refused, Err(CheckError::Extension(_))), "{refused:?}");
}

#[test]
fn validity_is_the_ordered_one_and_inside_the_issuers() {
    let bench = Bench::new();
    for holder in holders() {
        let one = ::time::Duration::SECOND;
        for shift in [one, -one] {
            let late = bench.judge(holder.clone(), |p| p.not_after += shift);
            let early = bench.judge(holder.clone(), |p| p.not_before += shift);
            assert!(matches!(late, Err(CheckError::Validity(_))), "{late:?}");
            assert!(matches!(early, Err(CheckError::Validity(_))), "{early:?}");
        }
    }
    for beyond in [
        Validity { from: NOW - 61, until: NOW },
        Validity { from: NOW, until: NOW + 1201 },
        Validity { from: NOW, until: NOW },
    ] {
        let order = Order { validity: beyond, ..order(workload()) };
        let params = template::template(&order).unwrap();
        let draft = mint::sign(&params, &bench.key, &bench.node.holder, &bench.node.key).unwrap();
        let refused = check(&draft, &order, bench.key.spki(), SignedBy::Issuer(&bench.node.certificate));
        assert!(matches!(refused, Err(CheckError::Validity(_))), "{beyond:?} {refused:?}");
    }
}

#[test]
fn serial_numbers_are_long_and_positive() {
    let bench = Bench::new();
    for bytes in [vec![1], vec![0x41; 15], vec![0x41; 17], vec![0x41; 21], vec![0x80; 16]] {
        let refused = bench.judge(workload(), |p| p.serial_number = Some(SerialNumber::from_slice(&bytes)));
        assert!(matches!(refused, Err(CheckError::Serial(_))), "{refused:?}");
    }
}

#[test]
fn serial_numbers_differ() {
    let bench = Bench::new();
    let serials: BTreeSet<String> =
        (0..50).map(|_| bench.judge(workload(), |_| {}).unwrap().serial().to_owned()).collect();
    assert_eq!(serials.len(), 50);
}

#[test]
fn the_issuer_is_the_one_that_should_have_signed() {
    let bench = Bench::new();
    let order = order(workload());
    let params = template::template(&order).unwrap();
    let by = SignedBy::Issuer(&bench.node.certificate);
    let stranger = Key::generate().unwrap();
    let root_named = mint::sign(&params, &bench.key, &Holder::Root, &bench.node.key).unwrap();
    let other_key = mint::sign(&params, &bench.key, &bench.node.holder, &stranger).unwrap();
    for draft in [root_named, other_key] {
        let refused = check(&draft, &order, bench.key.spki(), by);
        assert!(matches!(refused, Err(CheckError::Issuer(_))), "{refused:?}");
    }
    let unlinked = bench.judge(workload(), |p| p.use_authority_key_identifier_extension = false);
    assert!(matches!(unlinked, Err(CheckError::Issuer(_))), "{unlinked:?}");
}

#[test]
fn the_fingerprint_is_the_ordered_one_on_workloads_and_nowhere_else() {
    let bench = Bench::new();
    let honest = template::template(&order(workload())).unwrap().custom_extensions[0].clone();
    let other =
        Holder::Workload("shop/web".parse().unwrap(), Box::new(CertifiedProgram { exe: Digest([9; 32]), ..program() }));
    let other = template::template(&order(other)).unwrap().custom_extensions[0].clone();
    for wrong in [
        vec![],
        vec![other],
        vec![CustomExtension::from_oid_content(&FINGERPRINT_OID, vec![5, 0])],
        vec![CustomExtension::from_oid_content(&FINGERPRINT_OID, [honest.content(), &[5, 0]].concat())],
    ] {
        let refused = bench.judge(workload(), |p| p.custom_extensions = wrong);
        assert!(matches!(refused, Err(CheckError::Fingerprint(_))), "{refused:?}");
    }
    let twice = bench.judge(workload(), |p| p.custom_extensions.push(honest.clone()));
    assert!(matches!(twice, Err(CheckError::Extension(_) | CheckError::Malformed(_))), "{twice:?}");
    let on_node = bench.judge(Holder::Node("a".parse().unwrap()), |p| p.custom_extensions.push(honest.clone()));
    assert!(matches!(on_node, Err(CheckError::Extension(_))), "{on_node:?}");
}

/// Programs that differ in one item each, the honest one first.
fn programs() -> Vec<CertifiedProgram> {
    let file = |path: &str, digest| Script::File(HashedFile { path: path.into(), digest: Digest([digest; 32]) });
    let with_script = |script| CertifiedProgram { script, ..program() };
    vec![
        program(),
        CertifiedProgram { exe: Digest([9; 32]), ..program() },
        CertifiedProgram { program: "/usr/bin/python".into(), ..program() },
        CertifiedProgram { program: "/x".repeat(1500), ..program() },
        CertifiedProgram { uid: 0, ..program() },
        CertifiedProgram { uid: 127, ..program() },
        CertifiedProgram { uid: 128, ..program() },
        CertifiedProgram { uid: 255, ..program() },
        CertifiedProgram { uid: 256, ..program() },
        CertifiedProgram { uid: 65_535, ..program() },
        CertifiedProgram { uid: u32::MAX, ..program() },
        CertifiedProgram { taints: [].into(), ..program() },
        CertifiedProgram { taints: Taint::ALL.into(), ..program() },
        with_script(None),
        with_script(Some(file("/srv/ä.py", 9))),
        with_script(Some(file("/srv/b.py", 2))),
        with_script(Some(Script::Inline(Digest([2; 32])))),
        with_script(Some(Script::Stdin)),
        CertifiedProgram { libraries: None, ..program() },
        CertifiedProgram { libraries: Some(Digest([9; 32])), ..program() },
        CertifiedProgram { image: None, ..program() },
        CertifiedProgram { image: Some(Digest([9; 32])), ..program() },
        CertifiedProgram { bios_uuid: None, ..program() },
        CertifiedProgram { machine_id: None, ..program() },
        CertifiedProgram { machine_id: Some("x".repeat(128)), ..program() },
        CertifiedProgram { bios_uuid: None, machine_id: program().bios_uuid, ..program() },
        CertifiedProgram { release: None, ..program() },
        CertifiedProgram { release: Some(Release::Packaged), ..program() },
    ]
}

fn holding(program: CertifiedProgram) -> Holder {
    Holder::Workload("shop/web".parse().unwrap(), Box::new(program))
}

fn extension(program: CertifiedProgram) -> CustomExtension {
    template::template(&order(holding(program))).unwrap().custom_extensions[0].clone()
}

#[test]
fn whatever_is_built_is_what_was_ordered_and_a_verifier_reads_it_so() {
    let bench = Bench::new();
    for program in programs() {
        bench.judge(holding(program.clone()), |_| {}).unwrap();
        assert_eq!(CertifiedProgram::from_der(extension(program.clone()).content()), Ok(program));
    }
}

#[test]
fn a_program_that_differs_in_one_item_is_not_the_ordered_one() {
    let bench = Bench::new();
    for (seen, other) in programs().into_iter().enumerate() {
        for (ordered, program) in programs().into_iter().enumerate().filter(|(ordered, _)| *ordered != seen) {
            let wrong = extension(other.clone());
            let refused = bench.judge(holding(program), |p| p.custom_extensions = vec![wrong]);
            assert!(matches!(refused, Err(CheckError::Fingerprint(_))), "{seen} for {ordered}: {refused:?}");
        }
    }
}

#[test]
fn no_bit_of_a_fingerprint_can_change_and_no_length_can_be_spelt_otherwise() {
    let honest = extension(program()).content().to_vec();
    assert_eq!(super::program::same(&honest, &program()), Ok(()));
    for bit in 0..honest.len() * 8 {
        let mut der = honest.clone();
        der[bit / 8] ^= 1 << (bit % 8);
        assert!(super::program::same(&der, &program()).is_err(), "bit {} of byte {}", bit % 8, bit / 8);
    }
    for end in 0..honest.len() {
        assert!(super::program::same(&honest[..end], &program()).is_err(), "{end}");
    }
    assert_eq!(honest[..2], [0x30, 0x82]);
    let longer = [&[0x30, 0x83, 0][..], &honest[2..]].concat();
    let indefinite = [&[0x30, 0x80][..], &honest[4..], &[0, 0]].concat();
    for der in [longer, indefinite] {
        assert!(super::program::same(&der, &program()).is_err());
        assert!(CertifiedProgram::from_der(&der).is_err());
    }
}

#[test]
fn what_no_verifier_would_read_is_not_certified() {
    let bench = Bench::new();
    let path = |length| HashedFile { path: "x".repeat(length), digest: Digest([2; 32]) };
    for program in [
        CertifiedProgram { program: String::new(), ..program() },
        CertifiedProgram { program: "x".repeat(4097), ..program() },
        CertifiedProgram { script: Some(Script::File(path(0))), ..program() },
        CertifiedProgram { script: Some(Script::File(path(4097))), ..program() },
        CertifiedProgram { bios_uuid: Some(String::new()), ..program() },
        CertifiedProgram { machine_id: Some("x".repeat(129)), ..program() },
        CertifiedProgram { machine_id: Some("a b".into()), ..program() },
    ] {
        let refused = bench.judge(holding(program.clone()), |_| {});
        assert!(matches!(refused, Err(CheckError::Fingerprint(_))), "{refused:?}");
        assert!(CertifiedProgram::from_der(extension(program).content()).is_err());
    }
}

#[test]
fn no_single_bit_of_a_certificate_can_change() {
    let bench = Bench::new();
    let order = order(workload());
    let params = template::template(&order).unwrap();
    let honest = mint::sign(&params, &bench.key, &bench.node.holder, &bench.node.key).unwrap();
    let by = SignedBy::Issuer(&bench.node.certificate);
    check(&honest, &order, bench.key.spki(), by).unwrap();
    for bit in 0..honest.der().len() * 8 {
        let mut der = honest.der().to_vec();
        der[bit / 8] ^= 1 << (bit % 8);
        let refused = check(&Draft::of(der), &order, bench.key.spki(), by);
        assert!(refused.is_err(), "bit {} of byte {}", bit % 8, bit / 8);
    }
}

#[test]
fn truncated_extended_and_oversized_drafts_are_refused() {
    let bench = Bench::new();
    let order = order(workload());
    let params = template::template(&order).unwrap();
    let honest = mint::sign(&params, &bench.key, &bench.node.holder, &bench.node.key).unwrap();
    let by = SignedBy::Issuer(&bench.node.certificate);
    let longer = [honest.der(), &[0]].concat();
    let shorter = honest.der()[..honest.der().len() - 1].to_vec();
    for der in [longer, shorter, Vec::new(), vec![0x30; 9000]] {
        let refused = check(&Draft::of(der), &order, bench.key.spki(), by);
        assert!(matches!(refused, Err(CheckError::Malformed(_))), "{refused:?}");
    }
}

#[test]
fn a_root_is_judged_by_a_roots_rules() {
    let bench = Bench::new();
    assert_eq!(read_root(&bench.root.certificate).unwrap().trust_domain, domain());
    assert!(read_root(&bench.node.certificate).is_err());
    let key = Key::generate().unwrap();
    let order = order(Holder::Root);
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    for limit in [BasicConstraints::Constrained(0), BasicConstraints::Constrained(5)] {
        let mut params = template::template(&order).unwrap();
        params.is_ca = IsCa::Ca(limit);
        let draft = mint::self_sign(&params, &key).unwrap();
        assert!(matches!(check(&draft, &order, &spki, SignedBy::Itself), Err(CheckError::Constraints(_))));
    }
}

#[test]
fn what_a_node_receives_must_come_from_its_roots() {
    let bench = Bench::new();
    let stranger = root(Validity { from: NOW - 60, until: NOW + 6000 });
    let spki = rcgen::PublicKeyData::subject_public_key_info(&bench.node.key);
    let take = |roots: &[CertificateDer<'static>], name: &str| {
        let holder = Holder::Intermediate(name.parse().unwrap(), mandate("shop/*,web"));
        received(&bench.node.certificate, &domain(), holder, &spki, Above { roots, issuing: None })
            .map(|(_, root)| root.clone())
    };
    let (ours, theirs) = (bench.root.certificate.clone(), stranger.certificate);
    assert_eq!(take(&[theirs.clone(), ours.clone()], "a").unwrap(), ours);
    assert!(take(&[theirs], "a").is_err());
    assert!(take(&[], "a").is_err());
    assert!(take(&[ours], "b").is_err());
}
