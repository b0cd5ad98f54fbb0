//! A root whose key is away: everybody is certified below it, nothing else changes, and what does not fit is refused by name.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bonafide_ca::key::{KeyError, KeyFile, RootKeyHome as _};
use bonafide_ca::node::Due;
use bonafide_ca::offline::{self, OfflineError, RootDir};
use bonafide_ca::policies::Publication;
use bonafide_ca::rotation::issuing::InstallError;
use bonafide_ca::rotation::next::NextRoot;
use bonafide_ca::rotation::{RotationError, Step};
use bonafide_ca::store::{By, Store};
use bonafide_ca::{Authority, Charter, NodeCa, OpenError};
use bonafide_proto::clock::Clock as _;
use bonafide_proto::pem::pem;
use bonafide_proto::signed_policy::SignedPolicy;
use bonafide_proto::svid::Expect;
use bonafide_proto::wire::authority as wire;
use rustls::pki_types::CertificateDer;

use crate::bench::{
    Domain, INTERMEDIATE_TTL, LOOPBACKS, START, Served, Travel, charter, csr, fingerprint, follow, instant, setup,
    until,
};

const DAY: i64 = 86_400;

fn root_dir(dir: &Path) -> RootDir {
    RootDir { path: dir.join("root"), passphrase: None }
}

fn found(charter: &Charter, root: &RootDir, days: u32) -> Result<(), OfflineError> {
    bonafide_ca::state::prepare(&charter.state).unwrap();
    let clock = Travel::new();
    let store = Store::embedded(&charter.state.join("store"), clock.clone()).unwrap();
    offline::found(charter, &store, root, days, clock.unix())
}

/// A domain whose root is in a directory beside it; its authority certifies by itself for so many days.
fn domain(days: u32) -> Domain {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Travel::new());
    found(&charter(dir.path()), &root_dir(dir.path()), days).unwrap();
    let authority = Arc::new(Authority::open(&charter(dir.path()), clock.clone()).unwrap());
    Domain { dir, clock, authority }
}

/// What `issuing request` and `sign` come to.
fn next(dir: &Path, root: &RootDir, days: u32, now: i64) -> CertificateDer<'static> {
    let request = offline::request(&charter(dir).issuing_key().unwrap()).unwrap();
    root.open().unwrap().sign(&request, days, now).unwrap()
}

fn install(domain: &Domain, certificate: &CertificateDer<'static>) -> Result<bool, InstallError> {
    domain.authority.install_issuing(&By::Uid(0), certificate)
}

fn leaf(node: &NodeCa) -> Vec<CertificateDer<'static>> {
    node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &csr(&[])).unwrap().chain
}

/// openssl's own opinion, with the root as its one anchor.
fn openssl(dir: &Path, root: &CertificateDer<'_>, chain: &[CertificateDer<'_>], purpose: &str) -> String {
    let write = |name: &str, certificates: &[CertificateDer<'_>]| -> PathBuf {
        std::fs::write(dir.join(name), pem("CERTIFICATE", certificates)).unwrap();
        dir.join(name)
    };
    let (anchor, end) = (write("anchor.pem", std::slice::from_ref(root)), write("end.pem", &chain[..1]));
    let between = write("between.pem", &chain[1..]);
    let mut command = std::process::Command::new("openssl");
    command.args(["verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-purpose", purpose]);
    command.args(["-attime", &(START + 1).to_string(), "-CAfile"]).arg(anchor).arg("-untrusted").arg(between).arg(end);
    let said = command.output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr))
}

#[tokio::test]
async fn a_node_joins_and_issues_below_a_root_that_is_away() {
    let domain = domain(365);
    let state = domain.dir.path().join("authority");
    let secrets: Vec<String> = std::fs::read_dir(&state)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".key"))
        .collect();
    assert_eq!(secrets, ["issuing.key"], "the root's key is not here");
    std::fs::rename(domain.dir.path().join("root"), domain.dir.path().join("carried-away")).unwrap();

    let node = domain.member("a").await;
    let (own, chain) = (node.member().unwrap().shown(), leaf(&node));
    assert_eq!((own.len(), chain.len()), (2, 3));
    assert_eq!(own[1], chain[2], "the issuing certificate");
    let bundle = node.trust_bundle().unwrap();
    let root = bundle.roots()[0].clone();
    assert_eq!(bundle.roots().len(), 1);
    assert!(bundle.verify(&chain, instant(&domain.clock), Expect::Workload).is_ok());
    assert!(bundle.verify(&own, instant(&domain.clock), Expect::Node).is_ok());
    for (shown, purpose) in [(&chain, "sslserver"), (&chain, "sslclient"), (&own, "sslclient")] {
        let said = openssl(domain.dir.path(), &root, shown, purpose);
        assert!(said.contains("end.pem: OK"), "{said}");
    }
    let said = openssl(domain.dir.path(), &root, &chain[..2], "sslserver");
    assert!(!said.contains("OK"), "without the issuing certificate: {said}");

    let before = node.member().unwrap().node_svid().clone();
    node.renew(&domain.link()).await.unwrap();
    assert_ne!(*node.member().unwrap().node_svid(), before);
    drop(node);
    let again = NodeCa::open(setup(domain.dir.path(), "a"), domain.clock.clone()).unwrap();
    assert_eq!(
        (again.member().unwrap().shown()[1].clone(), leaf(&again).len()),
        (own[1].clone(), 3),
        "after a restart"
    );
}

#[tokio::test]
async fn policies_and_tokens_are_signed_while_the_root_is_away() {
    let domain = domain(365);
    let node = domain.member("a").await;
    let publication =
        Publication { text: "mode = \"observe\"\n".into(), author: "Ada".into(), version: None, confirm_within: None };
    domain.authority.publish(&By::Uid(0), &publication).unwrap();
    let signed = domain.authority.policies().now().unwrap().signed.clone();
    assert_eq!(SignedPolicy::verify(&signed, &node.trust_bundle().unwrap()).unwrap().version(), 1);

    let token = |audience: &str| {
        let (node, link, audiences) = (&node, domain.link(), vec![audience.to_owned()]);
        async move { node.issue_jwt(&link, &"shop/web".parse().unwrap(), &fingerprint(), audiences).await.unwrap() }
    };
    let keys = async || {
        node.refresh_jwt_keys(&domain.link()).await.unwrap();
        node.jwt_keys().borrow().clone()
    };
    let known = keys().await;
    let bundle = bonafide_proto::jwt::JwtBundle::new(crate::bench::trust_domain(), known.to_vec()).unwrap();
    assert!(bundle.verify(&token("db").await, "db", domain.clock.unix()).is_ok());
    let later = next(domain.dir.path(), &root_dir(domain.dir.path()), 400, START);
    assert!(install(&domain, &later).unwrap());
    assert_eq!(keys().await, known, "they stay when the issuing certificate is renewed");
    assert!(bundle.verify(&token("db").await, "db", domain.clock.unix()).is_ok());
    assert!(SignedPolicy::verify(&signed, &node.trust_bundle().unwrap()).is_ok());
}

#[tokio::test]
async fn a_policy_outlives_the_issuing_certificate_that_it_was_signed_below() {
    let domain = domain(30);
    let publication =
        Publication { text: "mode = \"observe\"\n".into(), author: String::new(), version: None, confirm_within: None };
    domain.authority.publish(&By::Uid(0), &publication).unwrap();
    let signed = domain.authority.policies().now().unwrap().signed.clone();
    domain.clock.forward(400 * DAY);
    let now = domain.clock.unix();
    assert!(install(&domain, &next(domain.dir.path(), &root_dir(domain.dir.path()), 30, now)).unwrap());
    let late = domain.member("late").await;
    assert_eq!(SignedPolicy::verify(&signed, &late.trust_bundle().unwrap()).unwrap().version(), 1);
    assert_eq!(domain.authority.publish(&By::Uid(0), &publication).unwrap().version, 2);
}

#[tokio::test]
async fn over_the_network_both_ends_show_the_issuing_certificate() {
    for ip in LOOPBACKS {
        let mut served =
            Served::founded(ip, |charter| found(charter, &root_dir(charter.state.parent().unwrap()), 30)).await;
        let node = served.member("a").await;
        node.renew(&served.link()).await.unwrap();
        assert_eq!(leaf(&node).len(), 3);
        let shown = served.admin().show_roots(wire::ShowRootsRequest {}).await.unwrap().into_inner();
        let issuing = shown.roots[0].issuing.unwrap();
        assert_eq!((issuing.since, issuing.until), (START, START + 30 * DAY));
        assert!((issuing.due - (START + 20 * DAY)).abs() < 60, "two thirds: {}", issuing.due);
        assert!(shown.roots[0].key_here);

        served.clock.forward(20 * DAY);
        let later = next(served.dir.path(), &root_dir(served.dir.path()), 30, served.clock.unix());
        let request = || wire::InstallIssuingRequest { certificate: later.to_vec() };
        let installed = served.admin().install_issuing(request()).await.unwrap().into_inner();
        assert!(installed.changed && installed.roots[0].issuing.unwrap().until == START + 50 * DAY);
        assert!(!served.admin().install_issuing(request()).await.unwrap().into_inner().changed);
        let back = served.member("b").await;
        assert_eq!(leaf(&back)[2], later);
        served.stop().await;
        served.start().await;
        back.renew(&served.link()).await.unwrap();
        assert_eq!(leaf(&back)[2], later, "after a restart");
        served.stop().await;
    }
}

#[tokio::test]
async fn nothing_outlives_an_issuing_certificate_and_a_later_one_goes_on() {
    let domain = domain(1);
    let node = domain.member("a").await;
    assert_eq!(domain.authority.reminders(), Vec::<String>::new());
    domain.clock.forward(DAY * 2 / 3 + 60);
    let due = domain.authority.reminders();
    assert!(due.len() == 1 && due[0].contains("expires in 0 days") && due[0].contains("issuing request"), "{due:?}");

    domain.clock.forward(DAY / 3 - 160);
    let late = domain.stranger("late");
    late.join(&domain.link(), &domain.token(None)).await.unwrap();
    assert_eq!(late.member().unwrap().not_after(), START + DAY, "not its usual {INTERMEDIATE_TTL} s");
    domain.clock.forward(200);
    assert!(domain.authority.reminders()[0].contains("has expired"));
    assert!(domain.authority.own_svid().is_err(), "it authenticates by nothing that has expired");
    let request = csr(&[]);
    assert!(late.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), &request).is_err());

    let now = domain.clock.unix();
    let later = next(domain.dir.path(), &root_dir(domain.dir.path()), 365, now);
    assert!(install(&domain, &later).unwrap());
    assert_eq!(domain.authority.reminders(), Vec::<String>::new());
    domain.authority.own_svid().unwrap();
    let fresh = domain.member("b").await;
    assert_eq!(leaf(&fresh)[2], later);
    let bundle = fresh.trust_bundle().unwrap();
    assert!(bundle.verify(&leaf(&fresh), instant(&domain.clock), Expect::Workload).is_ok());
    drop(node);
}

#[tokio::test]
async fn an_issuing_certificate_that_does_not_fit_is_refused_by_name_and_nothing_changes() {
    let domain = domain(30);
    let (dir, root) = (domain.dir.path(), root_dir(domain.dir.path()));
    let named = |certificate: &CertificateDer<'static>| match install(&domain, certificate) {
        Err(e) => e.to_string(),
        Ok(changed) => panic!("it was taken: {changed}"),
    };
    let before = domain.authority.store().roots().unwrap();
    let request = offline::request(&charter(dir).issuing_key().unwrap()).unwrap();

    let stranger = RootDir { path: dir.join("another"), passphrase: None };
    stranger.found(&crate::bench::trust_domain(), START).unwrap();
    let of_another = stranger.open().unwrap().sign(&request, 30, START).unwrap();
    assert!(named(&of_another).starts_with("wrong-issuing"), "{}", named(&of_another));
    let elsewhere = RootDir { path: dir.join("elsewhere"), passphrase: None };
    elsewhere.found(&"other.org".parse().unwrap(), START).unwrap();
    let foreign = elsewhere.open().unwrap().sign(&request, 30, START).unwrap();
    assert!(named(&foreign).starts_with("wrong-issuing"), "{}", named(&foreign));
    let own = root.open().unwrap();
    assert!(named(&own.sign(&csr(&[]), 60, START).unwrap()).starts_with("another-key"));
    assert!(named(&own.sign(&request, 60, START + 2 * DAY).unwrap()).starts_with("expired-issuing"), "not yet valid");
    assert!(named(&own.sign(&request, 29, START).unwrap()).starts_with("older-issuing"));
    assert!(named(own.certificate()).starts_with("wrong-issuing"), "the root itself");
    let node = domain.member("a").await;
    assert!(named(&leaf(&node)[1]).starts_with("wrong-issuing"), "a node's, which has another path length");
    assert!(named(&CertificateDer::from(vec![0; 100])).starts_with("wrong-issuing"));
    assert!(matches!(own.sign(&request, 0, START), Err(OfflineError::Days(0))));
    assert!(matches!(own.sign(&request, 731, START), Err(OfflineError::Days(731))));
    assert!(matches!(own.sign(&[0x30; 5000], 30, START), Err(OfflineError::Csr(_))));
    let short = own.sign(&request, 1, START).unwrap();
    domain.clock.forward(2 * DAY);
    assert!(named(&short).starts_with("expired-issuing"));
    assert_eq!(domain.authority.store().roots().unwrap(), before);

    let embedded = Domain::new();
    assert!(matches!(install(&embedded, &of_another), Err(InstallError::NotOffline)));
    let rotation = domain.authority.rotate(&By::Uid(0), Step::Prepare, &Default::default());
    assert!(matches!(rotation, Err(RotationError::Offline)), "{rotation:?}");
}

/// The next root, made elsewhere, for the key that the authority made for it.
fn next_root(dir: &Path, name: &str, domain: &str, now: i64) -> NextRoot {
    let request = offline::request(&charter(dir).next_issuing_key()).unwrap();
    let root = RootDir { path: dir.join(name), passphrase: None }.found(&domain.parse().unwrap(), now).unwrap();
    NextRoot { issuing: root.sign(&request, 365, now).unwrap(), root: root.certificate().clone() }
}

#[tokio::test]
async fn the_next_root_may_be_offline_whether_or_not_the_one_before_was() {
    for domain in [domain(365), Domain::new()] {
        let dir = domain.dir.path().to_owned();
        let node = Arc::new(domain.member("a").await);
        let following = follow(&node, domain.link());
        let next = next_root(&dir, "next-root", "example.org", START);
        let step = |step| domain.authority.rotate(&By::Uid(0), step, &Default::default());
        let prepare = |next: &NextRoot| domain.authority.prepare_offline(&By::Uid(0), next);
        assert!(prepare(&next).unwrap());
        assert!(!prepare(&next).unwrap(), "it is");
        assert!(charter(&dir).issuing_key_of(2).is_there() && !charter(&dir).next_issuing_key().is_there());
        assert!(step(Step::Publish).unwrap());
        until(|| node.trust_bundle().unwrap().roots().len() == 2).await;
        until(|| step(Step::Activate).is_ok()).await;
        until(|| node.due() == Due::Renew).await;
        node.renew(&domain.link()).await.unwrap();
        let chain = leaf(&node);
        assert_eq!((chain.len(), &chain[2]), (3, &next.issuing));
        let said = openssl(&dir, &next.root, &chain, "sslserver");
        assert!(said.contains("end.pem: OK"), "{said}");
        let retired = domain.authority.rotate(&By::Uid(0), Step::Retire, &["a".parse().unwrap()].into());
        assert!(retired.unwrap());
        until(|| node.trust_bundle().unwrap().roots() == [next.root.clone()]).await;
        following.abort();
        let _ = following.await;

        let Domain { dir, clock, authority } = domain;
        drop((node, authority));
        for old in [charter(dir.path()).key_of(1), charter(dir.path()).issuing_key_of(1)] {
            let _ = std::fs::remove_file(old.path);
        }
        let authority = Arc::new(Authority::open(&charter(dir.path()), clock.clone()).unwrap());
        let domain = Domain { dir, clock, authority };
        assert_eq!(leaf(&domain.member("b").await)[2], next.issuing, "after a restart, without the old keys");
        let aside = RootDir { path: domain.dir.path().join("next-root"), passphrase: None };
        let later = self::next(domain.dir.path(), &aside, 400, START);
        assert!(install(&domain, &later).unwrap(), "it is renewed like the first one");
    }
}

#[tokio::test]
async fn what_is_no_next_root_is_refused_by_name_and_nothing_changes() {
    let domain = domain(365);
    let dir = domain.dir.path();
    let before = domain.authority.store().roots().unwrap();
    let named = |next: &NextRoot| match domain.authority.prepare_offline(&By::Uid(0), next) {
        Err(e) => e.to_string(),
        Ok(changed) => panic!("it was taken: {changed}"),
    };
    let good = next_root(dir, "good", "example.org", START);
    let foreign = next_root(dir, "foreign", "other.org", START);
    assert!(named(&foreign).contains("wrong-root") && named(&foreign).contains("other.org"), "{}", named(&foreign));
    let mixed = NextRoot { root: good.root.clone(), issuing: next_root(dir, "third", "example.org", START).issuing };
    assert!(named(&mixed).contains("did not certify"), "{}", named(&mixed));
    let no_root = NextRoot { root: good.issuing.clone(), issuing: good.issuing.clone() };
    assert!(named(&no_root).starts_with("wrong-root"), "{}", named(&no_root));
    let same = NextRoot { root: domain.authority.root(), issuing: good.issuing.clone() };
    assert!(named(&same).contains("it is a root already"), "{}", named(&same));
    let ahead = next_root(dir, "ahead", "example.org", START + 400 * DAY);
    assert!(named(&ahead).contains("not valid now"), "{}", named(&ahead));
    let opened = RootDir { path: dir.join("good"), passphrase: None }.open().unwrap();
    let other_key = NextRoot { root: good.root.clone(), issuing: opened.sign(&csr(&[]), 30, START).unwrap() };
    assert!(named(&other_key).starts_with("another-key"), "{}", named(&other_key));
    assert_eq!(domain.authority.store().roots().unwrap(), before);

    // One that was prepared can be abandoned, and its key with it.
    assert!(domain.authority.prepare_offline(&By::Uid(0), &good).unwrap());
    assert!(named(&ahead).contains("prepared already"), "{}", named(&ahead));
    assert!(domain.authority.rotate(&By::Uid(0), Step::Abandon, &Default::default()).unwrap());
    assert!(!charter(dir).issuing_key_of(2).is_there() && charter(dir).issuing_key_of(1).is_there());
}

#[test]
fn half_an_authority_is_refused_and_so_is_a_root_key_that_is_here() {
    let dir = tempfile::tempdir().unwrap();
    let (charter, root) = (charter(dir.path()), root_dir(dir.path()));
    let open = || Authority::open(&charter, Travel::new()).unwrap_err();
    let inside = RootDir { path: charter.state.join("root"), passphrase: None };
    assert!(matches!(found(&charter, &inside, 365), Err(OfflineError::Inside(_))));
    std::fs::remove_dir(&inside.path).unwrap();
    std::fs::create_dir(&root.path).unwrap();
    std::fs::set_permissions(&root.path, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(found(&charter, &root, 365), Err(OfflineError::State(_))), "others could enter");
    std::fs::set_permissions(&root.path, std::fs::Permissions::from_mode(0o700)).unwrap();
    found(&charter, &root, 365).unwrap();
    assert!(matches!(found(&charter, &root, 365), Err(OfflineError::Founded(_))));
    assert!(matches!(root.found(&charter.trust_domain, START), Err(OfflineError::Taken(_))));
    drop(Authority::open(&charter, Travel::new()).unwrap());

    let (key, kept) = (charter.issuing_key_of(1).path, dir.path().join("kept.key"));
    for exposed in [key.clone(), root.path.join("root.key")] {
        assert_eq!(std::fs::metadata(&exposed).unwrap().permissions().mode() & 0o7777, 0o600);
        std::fs::set_permissions(&exposed, std::fs::Permissions::from_mode(0o640)).unwrap();
    }
    assert!(matches!(open(), OpenError::Key(KeyError::Exposed { .. })));
    assert!(matches!(root.open(), Err(OfflineError::Key(KeyError::Exposed { .. }))));
    for exposed in [&key, &root.path.join("root.key")] {
        std::fs::set_permissions(exposed, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    std::fs::rename(&key, &kept).unwrap();
    assert!(matches!(open(), OpenError::KeyAway(path) if path == key));
    KeyFile { path: key.clone(), passphrase: None }.create().unwrap();
    assert!(matches!(open(), OpenError::Mismatch(path) if path == key), "another key");
    std::fs::rename(&kept, &key).unwrap();
    std::fs::copy(root.path.join("root.key"), charter.key_of(1).path).unwrap();
    assert!(matches!(open(), OpenError::RootKeyHere(_)));
    std::fs::remove_file(charter.key_of(1).path).unwrap();
    for entry in std::fs::read_dir(&charter.state).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            std::fs::remove_dir_all(entry).unwrap();
        } else if entry != key {
            std::fs::remove_file(entry).unwrap();
        }
    }
    let half = open();
    assert!(matches!(half, OpenError::Half { has: "an issuing key", .. }), "nothing is founded beside it: {half}");
}

#[test]
fn a_roots_key_may_be_sealed_where_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("passphrase");
    std::fs::write(&file, "correct horse battery\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let passphrase = Some(bonafide_ca::key::PassphraseAt::File(file));
    let root = RootDir { passphrase, ..root_dir(dir.path()) };
    found(&charter(dir.path()), &root, 365).unwrap();
    assert!(matches!(root_dir(dir.path()).open(), Err(OfflineError::Key(KeyError::Sealing { .. }))));
    let request = offline::request(&charter(dir.path()).issuing_key().unwrap()).unwrap();
    root.open().unwrap().sign(&request, 30, START).unwrap();
}
