//! What the audit chains of an authority and of a node say: each act once, with who had it done.

use bonafide_ca::store::Store;
use bonafide_ca::{Application, Authority};
use bonafide_proto::audit::{Chain, Entry, Head};
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::wire::authority as wire;

use crate::bench::{Domain, Served, csr, fingerprint};

fn chain(store: &Store) -> Vec<Entry> {
    let head = store.audit_head().unwrap();
    let mut chain = Chain::of(&head);
    let entries = store.audit_entries(head.first, 1000).unwrap();
    let entries = entries.iter().map(|bytes| chain.take(bytes).unwrap()).collect();
    chain.end(&head).unwrap();
    entries
}

fn acts(entries: &[Entry]) -> Vec<(&str, &str)> {
    entries.iter().map(|entry| (entry.act.as_str(), entry.by.as_str())).collect()
}

#[tokio::test]
async fn what_an_authority_and_a_node_do_and_refuse_is_in_their_chains() {
    let mut served = Served::on("127.0.0.1").await;
    let a = served.member("a").await;
    let token = served.token("").await;
    served.stranger_elsewhere("a").join(&served.link(), &token).await.unwrap_err();
    a.renew(&served.link()).await.unwrap();
    let request = wire::QuarantineRequest { sha256: vec![7; 32], lift: false, reason: "CVE-2026-1".into() };
    served.admin().quarantine(request).await.unwrap();
    let page = served.admin().show_audit(wire::ShowAuditRequest { from: 0 }).await.unwrap().into_inner();
    served.stop().await;
    let authority = Authority::open(&crate::bench::charter(served.dir.path()), served.clock.clone()).unwrap();
    let entries = chain(authority.store());
    assert_eq!(page.entries.len(), entries.len(), "the operator is shown all of it");
    let me = format!("uid {}", rustix::process::geteuid().as_raw());
    let others: Vec<_> = acts(&entries).into_iter().filter(|(act, _)| *act != "issued").collect();
    let refused = entries.iter().find(|entry| entry.act == "admission-refused").unwrap();
    assert!(refused.by.starts_with("stranger 127.0.0.1:"), "{refused:?}");
    assert_eq!((refused.about["node"].as_str(), refused.about["reason"].as_str()), ("a", "name-taken"));
    let expected = [
        ("founded", "daemon"),
        ("token-created", me.as_str()),
        ("admitted", "node a"),
        ("token-created", me.as_str()),
        ("admission-refused", refused.by.as_str()),
        ("renewed", "node a"),
        ("quarantined", me.as_str()),
    ];
    assert_eq!(others, expected);
    let issued = |kind: &str| entries.iter().filter(|e| e.act == "issued" && e.about["kind"] == kind).count();
    assert_eq!((issued("root"), issued("intermediate"), issued("node")), (1, 2, 2));

    let workload = "shop/web".parse().unwrap();
    a.issue_leaf(&workload, &fingerprint(), &csr(&[])).unwrap();
    a.issue_leaf(&workload, &fingerprint(), b"no request").unwrap_err();
    let entries = chain(a.store());
    assert_eq!(acts(&entries), [("issued", "daemon"), ("issuance-refused", "daemon")]);
    assert_eq!(entries[0].about["exe"], Digest([1; 32]).to_string());
    assert_eq!(entries[1].about["reason"], "bad-request");
}

#[tokio::test]
async fn the_application_that_a_token_admitted_is_answered_again_and_no_other_one() {
    let domain = Domain::new();
    let application = |node: &str| Application {
        node: node.parse().unwrap(),
        signing_csr: csr(&[]),
        authentication_csr: csr(&[]),
        bios_uuid: String::new(),
        machine_id: String::new(),
    };
    let (token, first) = (domain.token(Some("a")), application("a"));
    let join = |application: &Application| domain.authority.join(token.secret(), application).map_err(|e| e.as_str());
    let once = join(&first).unwrap();
    let again = join(&first).unwrap();
    assert_ne!(again.node_svid, once.node_svid, "no certificate is issued twice");
    assert_eq!(join(&application("a")), Err("token-used"));
    assert_eq!(domain.authority.nodes().unwrap()[0].1.membership, 1);
    let admitted = chain(domain.authority.store()).iter().filter(|entry| entry.act == "admitted").count();
    assert_eq!(admitted, 1);

    domain.authority.join(domain.token(Some("a")).secret(), &application("a")).unwrap();
    assert_eq!(join(&first), Err("membership-replaced"), "another machine has the name since");
    domain.clock.forward(601);
    assert_eq!(join(&first), Err("token-expired"));
}

#[tokio::test]
async fn what_is_older_than_is_kept_leaves_a_running_authority() {
    let served = Served::on("127.0.0.1").await;
    served.token("").await;
    served.clock.forward(91 * 86_400);
    let head = async || {
        let page = served.admin().show_audit(wire::ShowAuditRequest { from: 0 }).await.unwrap().into_inner();
        serde_json::from_slice::<Head>(&page.head).unwrap().first
    };
    let first = head().await;
    let dropping = async {
        while head().await == first {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), dropping).await.expect("it drops what is old");
}
