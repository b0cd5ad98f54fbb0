//! What a node may issue is the authority's to say, and whoever is shown a certificate holds the node to it.

use bonafide_ca::NodeCa;
use bonafide_proto::endpoint;
use bonafide_proto::grant::Grant;
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::svid::{Expect, SvidError};
use bonafide_proto::wire::authority as wire;
use bonafide_proto::wire::node as local;
use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, KeyPair, SanType};
use rustls::pki_types::CertificateDer;

use crate::bench::{Domain, LOOPBACKS, Served, csr, fingerprint, instant, refusal, setup};
use crate::program;

fn grant(text: &str) -> Grant {
    text.parse().unwrap()
}

fn issue(node: &NodeCa, workload: &str) -> Result<Vec<CertificateDer<'static>>, AttestReason> {
    let issued = node.issue_leaf(&workload.parse().unwrap(), &fingerprint(), &csr(&[]));
    issued.map(|leaf| leaf.chain).map_err(|refused| refused.reason)
}

#[tokio::test]
async fn a_node_issues_what_its_token_grants_and_a_token_without_a_grant_grants_nothing() {
    let domain = Domain::new();
    let (web, bare) = (domain.stranger("web"), domain.stranger("bare"));
    web.join(&domain.link(), &domain.token_for(None, Some(grant("shop/web,api-*")))).await.unwrap();
    bare.join(&domain.link(), &domain.token_for(None, None)).await.unwrap();
    for (workload, granted) in [("shop/web", true), ("api-1", true), ("shop/db", false), ("shop/web2", false)] {
        assert_eq!(issue(&web, workload).err(), (!granted).then_some(AttestReason::NotGranted), "{workload}");
        assert_eq!(issue(&bare, workload).err(), Some(AttestReason::NotGranted), "{workload}");
    }
    let said = bare.issue_leaf(&"x".parse().unwrap(), &fingerprint(), &csr(&[])).unwrap_err().detail;
    assert!(said.contains("bonafide node grant bare --workloads"), "{said}");
}

#[tokio::test]
async fn a_changed_grant_counts_from_the_next_renewal_and_stays_with_the_name() {
    for ip in LOOPBACKS {
        let served = Served::on(ip).await;
        let node = served.member("a").await;
        let order = |workloads: &[&str]| wire::GrantNodeRequest {
            node: "a".into(),
            grant: Some(wire::Grant { workloads: workloads.iter().map(ToString::to_string).collect() }),
        };
        let mut admin = served.admin();
        assert!(admin.grant_node(order(&["shop/web"])).await.unwrap().into_inner().changed);
        assert!(!admin.grant_node(order(&["shop/web"])).await.unwrap().into_inner().changed);
        node.renew(&served.link()).await.unwrap();
        assert_eq!(issue(&node, "shop/db").err(), Some(AttestReason::NotGranted));
        issue(&node, "shop/web").unwrap();
        let listed = admin.list_nodes(wire::ListNodesRequest {}).await.unwrap().into_inner().nodes;
        assert_eq!(listed[0].grant.as_ref().unwrap().workloads, ["shop/web"]);

        let request = wire::CreateTokenRequest { node: "a".into(), ttl_seconds: 60, ..Default::default() };
        let token = admin.create_token(request).await.unwrap().into_inner().token.parse().unwrap();
        let again = served.stranger_elsewhere("a");
        again.join(&served.link(), &token).await.unwrap();
        assert_eq!(again.member().unwrap().mandate().unwrap().grant, grant("shop/web"));

        for (workloads, code) in [(&["a b"][..], tonic::Code::InvalidArgument), (&[], tonic::Code::NotFound)] {
            let node = if workloads.is_empty() { "nobody" } else { "a" }.to_owned();
            let refused = admin.grant_node(wire::GrantNodeRequest { node, ..order(workloads) }).await.unwrap_err();
            assert_eq!(refused.code(), code);
        }
    }
}

/// A leaf like an honest one that the node's own key signs, whatever the node's CA would say.
fn forged(domain: &Domain, node: &str, honest: &[u8], workload: &str) -> Vec<CertificateDer<'static>> {
    let file = setup(domain.dir.path(), node).state.join("membership.json");
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let bytes = |field: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(kept[field].as_str().unwrap()).unwrap()
    };
    let key = KeyPair::try_from(bytes("signing_key").as_slice()).unwrap();
    let mut of = CertificateParams::default();
    of.distinguished_name = DistinguishedName::new();
    of.distinguished_name.push(DnType::CommonName, node);
    of.distinguished_name.push(DnType::OrganizationName, "Bonafide node");

    let (_, like) = x509_parser::parse_x509_certificate(honest).unwrap();
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = DistinguishedName::new();
    leaf.is_ca = rcgen::IsCa::ExplicitNoCa;
    leaf.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    leaf.subject_alt_names = vec![SanType::URI(format!("spiffe://example.org/{workload}").try_into().unwrap())];
    let program = like.extensions().iter().find(|e| e.oid.to_id_string().starts_with("2.25.")).unwrap();
    let oid = bonafide_proto::svid::FINGERPRINT_OID;
    leaf.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&oid, program.value.to_vec())];
    leaf.not_before = time::OffsetDateTime::from_unix_timestamp(like.validity().not_before.timestamp()).unwrap();
    leaf.not_after = time::OffsetDateTime::from_unix_timestamp(like.validity().not_after.timestamp()).unwrap();
    let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &Issuer::new(of, key)).unwrap();
    vec![leaf.der().clone(), bytes("intermediate").into()]
}

#[tokio::test]
async fn verifiers_refuse_what_a_rogue_node_signs_beyond_its_grant() {
    let domain = Domain::new();
    let node = domain.stranger("a");
    node.join(&domain.link(), &domain.token_for(None, Some(grant("shop/web")))).await.unwrap();
    let honest = issue(&node, "shop/web").unwrap()[0].to_vec();
    let bundle = &domain.authority.trust_bundle();
    let verify = |chain: &[CertificateDer<'_>]| bundle.verify(chain, instant(&domain.clock), Expect::Workload);
    assert_eq!(verify(&forged(&domain, "a", &honest, "shop/web")).unwrap().node().unwrap().as_str(), "a");
    let refused = verify(&forged(&domain, "a", &honest, "shop/db")).unwrap_err();
    assert!(matches!(&refused, SvidError::NotGranted { node, .. } if node.as_str() == "a"), "{refused}");
    assert_eq!(refused.to_string(), "not-granted: node a was not granted to issue shop/db");
}

#[tokio::test]
async fn one_host_alone_may_issue_everything() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = program::program().arg("--config").arg(program::local(dir.path())).spawn().unwrap();
    program::ask(dir.path()).await;
    let mut client = local::issuance_client::IssuanceClient::new(endpoint::channel(dir.path().join("ca.sock")));
    let fingerprint = Some((&fingerprint()).into());
    let request = local::IssueLeafRequest { workload: "any/thing".into(), fingerprint, csr: csr(&[]) };
    let answer = client.issue_leaf(request).await.unwrap().into_inner().of;
    assert!(matches!(answer, Some(local::issue_leaf_response::Of::Svid(_))), "{answer:?}");
    assert_eq!(program::end(daemon, rustix::process::Signal::TERM).await, 0);
}

#[tokio::test]
async fn an_unbound_token_takes_no_name_with_what_it_was_granted() {
    let domain = Domain::new();
    domain.member("a").await;
    let elsewhere = Domain::new();
    let stranger = elsewhere.stranger("a");
    let refused = stranger.join(&domain.link(), &domain.token_for(None, None)).await.unwrap_err();
    assert_eq!(refusal(&refused), "name-taken");
}
