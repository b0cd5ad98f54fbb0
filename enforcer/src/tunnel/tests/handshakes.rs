use std::sync::Arc;

use bonafide_proto::clock::TlsTime;
use bonafide_proto::record::Reason;
use bonafide_proto::svid::{Expect, SvidError};
use bonafide_proto::tls::{PeerVerifier, provider};
use rcgen::IsCa;
use rustls::client::ResolvesClientCert;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::super::TunnelError;
use super::super::ending::Ending;
use super::super::frame::RefuseCode;
use super::super::leaf::Leaf;
use super::super::session::{client_config, server_config, verifier};
use super::super::testing::{LEAF_TTL, Mesh, Shown, T0, at, leaf_params, uri};
use super::*;

/// What our server makes of a client that is ours but for one change.
async fn server_meets(mesh: &Mesh, change: impl FnOnce(&mut ClientConfig)) -> TunnelError {
    let mut config = client_config(&mesh.leaf("shop/web"), &mesh.trust(), verifier(&mesh.trust())).unwrap();
    change(&mut config);
    let (near, far) = wire();
    let name = "bonafide.invalid".try_into().unwrap();
    let peer = async {
        if let Ok(mut tls) = TlsConnector::from(Arc::new(config)).connect(name, near).await {
            let _ = tls.read(&mut [0]).await;
        }
    };
    let (leaf, trust) = (mesh.leaf("shop/db"), mesh.trust());
    let (_, met) = tokio::join!(peer, server::handshake(far, &leaf, &trust));
    met.map(|_| ()).unwrap_err()
}

/// What our client makes of a server that is ours but for one change.
async fn client_meets(mesh: &Mesh, change: impl FnOnce(&mut ServerConfig)) -> TunnelError {
    let mut config = server_config(&mesh.leaf("shop/db"), &mesh.trust(), verifier(&mesh.trust())).unwrap();
    change(&mut config);
    let (near, far) = wire();
    let peer = async {
        if let Ok(mut tls) = TlsAcceptor::from(Arc::new(config)).accept(far).await {
            let _ = tls.read(&mut [0]).await;
        }
    };
    let (leaf, trust) = (mesh.leaf("shop/web"), mesh.trust());
    let (_, met) = tokio::join!(peer, client::handshake(near, &leaf, &trust));
    met.map(|_| ()).unwrap_err()
}

fn refusal(e: TunnelError) -> SvidError {
    assert_eq!(e.reason(), Reason::PeerCertificate);
    match e {
        TunnelError::PeerCertificate(refusal) => refusal,
        other => panic!("refused, but not for its certificate: {other}"),
    }
}

#[tokio::test]
async fn below_an_offline_root_both_ends_show_three_certificates_and_renew_them() {
    for loopback in ["127.0.0.1:0", "[::1]:0"] {
        let mesh = Mesh::below_an_offline_root("example.org");
        let listener = tokio::net::TcpListener::bind(loopback).await.unwrap();
        let near = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        assert_eq!(mesh.shown(&leaf_params("example.org", "shop/web")).chain.len(), 3);
        let (c, s) = shake(&mesh, near, far).await;
        assert_eq!((c.peer().id(), s.peer().id()), (&mesh.id("shop/db"), &mesh.id("shop/web")));
        assert_eq!(s.peer().node().unwrap().as_str(), "node-a");
        let (c, s) = opened((c, s)).await;
        let ((_, mut cw), (mut sr, _)) = (c.into_split(), s.into_split());
        cw.renew(&mesh.leaf("shop/web")).await.unwrap();
        let super::super::Incoming::Renewed(shown) = sr.next().await.unwrap() else { panic!("nothing was renewed") };
        assert_eq!(shown.prove(&mesh.trust()).unwrap().id(), &mesh.id("shop/web"));
    }
    // Neither end goes by a chain without it, though the root is known.
    let mesh = Mesh::below_an_offline_root("example.org");
    let Shown { mut chain, key } = mesh.shown(&leaf_params("example.org", "shop/web"));
    chain.pop();
    assert!(Leaf::new(chain, key, &mesh.id("shop/web"), &mesh.trust()).is_err());
}

#[tokio::test]
async fn each_end_learns_who_the_other_is() {
    let mesh = Mesh::new("example.org");
    let (near, far) = wire();
    let (c, s) = shake(&mesh, near, far).await;
    assert_eq!(c.peer().id(), &mesh.id("shop/db"));
    assert_eq!(s.peer().id(), &mesh.id("shop/web"));
    assert_eq!(s.peer().node().unwrap().as_str(), "node-a");
    assert_eq!(s.peer().program().unwrap().program, "/usr/bin/x");
    for (facts, peer) in [(c.facts(), c.peer()), (s.facts(), s.peer())] {
        assert_eq!((facts.version.as_str(), facts.group.as_str()), ("TLSv1.3", "X25519MLKEM768"));
        assert!(facts.suite.starts_with("TLS13_"), "{}", facts.suite);
        assert_eq!(facts.peer_serial, peer.serial());
    }
}

/// A leaf beyond the grant of the node that issued it, shown by either end, and what both ends say of it.
#[tokio::test]
async fn a_leaf_beyond_its_nodes_grant_is_refused_by_that_name_at_both_ends() {
    let mesh = Mesh::granting("example.org", "shop/w*");
    let (honest, beyond) = (mesh.leaf("shop/web"), mesh.shown(&leaf_params("example.org", "shop/db")));
    let refused = Leaf::new(beyond.chain.clone(), beyond.key.clone_key(), &mesh.id("shop/db"), &mesh.trust());
    assert!(refused.unwrap_err().to_string().contains("not-granted"));
    let rogue = Mesh::granting("example.org", "*").leaf("shop/db").showing(beyond.chain, beyond.key);
    for rogue_serves in [true, false] {
        let (near, far) = wire();
        let trust = mesh.trust();
        let (client, server) = if rogue_serves { (&honest, &rogue) } else { (&rogue, &honest) };
        let ends = async {
            tokio::join!(
                async {
                    let client = client::handshake(near, client, &trust).await?;
                    client.open(open()).await.map(drop)
                },
                async { server::handshake(far, server, &trust).await.map(drop) },
            )
        };
        let (at_client, at_server) = ends.await;
        let (here, there) = if rogue_serves { (at_client, at_server) } else { (at_server, at_client) };
        let (here, there) = (here.unwrap_err(), there.unwrap_err());
        assert_eq!((here.reason(), there.reason()), (Reason::NotGranted, Reason::NotGranted));
        assert!(here.to_string().contains("node node-a was not granted to issue shop/db"), "{here}");
        assert!(there.to_string().contains("this end's certificate"), "{there}");
    }
}

#[tokio::test]
async fn who_leaves_after_the_handshake_says_why() {
    let mesh = Mesh::new("example.org");
    let (near, far) = wire();
    let (client, server) = shake(&mesh, near, far).await;
    let why = Ending::of(Reason::NodeRevoked, None);
    let (left, heard) = tokio::join!(client.leave(why), server.await_open());
    left.unwrap();
    let heard = heard.map(drop).unwrap_err();
    assert_eq!(heard.reason(), Reason::RefusedByPeer);
    assert!(heard.to_string().ends_with("left after the handshake: node-revoked"), "{heard}");
}

#[tokio::test]
async fn both_ends_refuse_the_same_certificates() {
    type Bad = fn(&Mesh) -> Shown;
    type Fits = fn(&SvidError) -> bool;
    let cases: &[(&str, Bad, Fits)] = &[
        (
            "another trust domain under its own root",
            |_| Mesh::new("evil.org").shown(&leaf_params("evil.org", "shop/web")),
            |e| matches!(e, SvidError::TrustDomain { .. }),
        ),
        (
            "another trust domain under our root",
            |m| m.shown(&leaf_params("evil.org", "shop/web")),
            |e| matches!(e, SvidError::TrustDomain { .. }),
        ),
        (
            "our trust domain under another root",
            |_| Mesh::new("example.org").shown(&leaf_params("example.org", "shop/web")),
            |e| matches!(e, SvidError::Path(_)),
        ),
        (
            "two URI SANs",
            |m| {
                let mut p = leaf_params("example.org", "shop/web");
                p.subject_alt_names.push(uri("spiffe://example.org/shop/db"));
                m.shown(&p)
            },
            |e| *e == SvidError::UriSans(2),
        ),
        (
            "expired",
            |m| {
                let mut p = leaf_params("example.org", "shop/web");
                p.not_after = at(T0 - 1);
                m.shown(&p)
            },
            |e| matches!(e, SvidError::Expired(_)),
        ),
        (
            "not yet valid",
            |m| {
                let mut p = leaf_params("example.org", "shop/web");
                p.not_before = at(T0 + 5);
                m.shown(&p)
            },
            |e| matches!(e, SvidError::NotYetValid(_)),
        ),
        ("issued by the root itself", |m| m.shown_by_root("shop/web"), |e| matches!(e, SvidError::WrongKind(..))),
        ("a node's signing certificate", Mesh::shown_ca, |e| matches!(e, SvidError::UriSans(0))),
        (
            "a CA certificate in a workload's name",
            |m| {
                let mut p = leaf_params("example.org", "shop/web");
                p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
                m.shown(&p)
            },
            |e| matches!(e, SvidError::Constraints(_)),
        ),
        (
            "no fingerprint",
            |m| {
                let mut p = leaf_params("example.org", "shop/web");
                p.custom_extensions.clear();
                m.shown(&p)
            },
            |e| matches!(e, SvidError::WrongKind(..)),
        ),
        (
            "the identity of a node",
            |m| m.shown(&leaf_params("example.org", "bonafide/node/node-a")),
            |e| matches!(e, SvidError::WrongKind(..)),
        ),
    ];
    let mesh = Mesh::new("example.org");
    for (what, bad, fits) in cases {
        let seen = refusal(server_meets(&mesh, |c| c.client_auth_cert_resolver = bad(&mesh).resolver()).await);
        assert!(fits(&seen), "the server, {what}: {seen}");
        let seen = refusal(client_meets(&mesh, |c| c.cert_resolver = bad(&mesh).resolver()).await);
        assert!(fits(&seen), "the client, {what}: {seen}");
    }
}

#[tokio::test]
async fn a_leaf_that_was_good_is_refused_once_it_has_expired() {
    let mesh = Mesh::new("example.org");
    let (web, db, trust) = (mesh.leaf("shop/web"), mesh.leaf("shop/db"), mesh.trust());
    mesh.hand.advance(LEAF_TTL + 1);
    let (near, far) = wire();
    let (c, s) = tokio::join!(client::handshake(near, &web, &trust), server::handshake(far, &db, &trust));
    assert!(matches!(refusal(c.unwrap_err()), SvidError::Expired(_)));
    // The client spoke first, and its alert says why.
    let told = s.unwrap_err();
    assert_eq!(told.reason(), Reason::Handshake);
    assert!(told.to_string().contains("CertificateExpired"), "{told}");
}

#[derive(Debug)]
struct Nobody;

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let mesh = Mesh::new("example.org");
    let e = server_meets(&mesh, |c| c.client_auth_cert_resolver = Arc::new(Nobody)).await;
    assert_eq!(refusal(e), SvidError::Missing);
}

#[tokio::test]
async fn without_our_alpn_nobody_is_an_enforcer() {
    let mesh = Mesh::new("example.org");
    for alpn in [vec![], vec![b"h2".to_vec()], vec![b"bonafide/2".to_vec()]] {
        let e = server_meets(&mesh, |c| c.alpn_protocols.clone_from(&alpn)).await;
        assert_eq!(e.reason(), Reason::NotBonafide, "the server, {alpn:?}: {e}");
        let e = client_meets(&mesh, |c| c.alpn_protocols.clone_from(&alpn)).await;
        assert_eq!(e.reason(), Reason::NotBonafide, "the client, {alpn:?}: {e}");
    }
}

#[tokio::test]
async fn a_client_without_the_hybrid_key_exchange_is_refused() {
    let mesh = Mesh::new("example.org");
    let mut classic = provider().as_ref().clone();
    classic.kx_groups = vec![rustls::crypto::ring::kx_group::X25519];
    let trust = mesh.trust();
    let verifier = PeerVerifier::new(trust.bundle.clone(), Expect::Workload);
    let mut config = ClientConfig::builder_with_details(Arc::new(classic), Arc::new(TlsTime(trust.clock.clone())))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(mesh.shown(&leaf_params("example.org", "shop/web")).resolver());
    config.alpn_protocols = vec![bonafide_proto::tls::ALPN_TUNNEL.to_vec()];
    let e = server_meets(&mesh, |ours| *ours = config).await;
    assert_eq!(e.reason(), Reason::NotBonafide, "{e}");
}

#[tokio::test]
async fn garbage_is_no_enforcer() {
    let mesh = Mesh::new("example.org");
    let (leaf, trust) = (mesh.leaf("shop/web"), mesh.trust());
    for garbage in [&b"SSH-2.0-OpenSSH_9.2p1\r\n"[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", &[0; 64], &[0xff; 64]] {
        let (near, mut far) = wire();
        far.write_all(garbage).await.unwrap();
        let e = client::handshake(near, &leaf, &trust).await.unwrap_err();
        assert_eq!(e.reason(), Reason::NotBonafide, "the client: {e}");
        let (mut near, far) = wire();
        near.write_all(garbage).await.unwrap();
        let e = server::handshake(far, &leaf, &trust).await.unwrap_err();
        assert_eq!(e.reason(), Reason::NotBonafide, "the server: {e}");
    }
    let (near, far) = wire();
    drop(far);
    let e = client::handshake(near, &leaf, &trust).await.unwrap_err();
    assert!(matches!(e.reason(), Reason::NotBonafide | Reason::Handshake), "closed at once: {e}");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_by_itself() {
    let mesh = Mesh::new("example.org");
    let (leaf, trust) = (mesh.leaf("shop/web"), mesh.trust());
    let (near, _silent) = wire();
    assert!(matches!(client::handshake(near, &leaf, &trust).await, Err(TunnelError::Timeout)));
    let (mut half, far) = wire();
    half.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    let e = server::handshake(far, &leaf, &trust).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Limit, "half a ClientHello: {e}");

    let (near, far) = wire();
    let (_client_that_asks_nothing, s) = shake(&mesh, near, far).await;
    assert!(matches!(s.await_open().await, Err(TunnelError::Timeout)));
    let (near, far) = wire();
    let (c, _server_that_never_answers) = shake(&mesh, near, far).await;
    assert!(matches!(c.open(open()).await, Err(TunnelError::Timeout)));
}

#[tokio::test]
async fn a_refusal_carries_its_code() {
    for code in RefuseCode::ALL {
        let (near, far) = wire();
        let (c, s) = shake(&Mesh::new("example.org"), near, far).await;
        let asked = open();
        let refuse = async {
            let (heard, pending) = s.await_open().await.unwrap();
            assert_eq!(heard, asked);
            pending.refuse(*code).await.unwrap();
        };
        let (answer, ()) = tokio::join!(c.open(asked), refuse);
        let e = answer.map(|_| ()).unwrap_err();
        assert_eq!(e.reason(), Reason::RefusedByPeer);
        assert!(matches!(e, TunnelError::Refused(c) if c == *code), "{code}: {e}");
    }
}

/// On real sockets: the client's OPEN is on its way when the server refuses its certificate. The alert must win
/// over the reset that closing over unread bytes would cause.
#[tokio::test]
async fn a_client_whose_certificate_is_refused_hears_the_alert() {
    let mesh = Mesh::new("example.org");
    let (web, db, trust) = (mesh.leaf("shop/web"), mesh.leaf("shop/db"), mesh.trust());
    // The server's clock is ahead: to it the client's leaf has expired. Its own lives longer.
    let mut ahead = mesh.trust();
    ahead.clock = super::super::testing::Hand::at(T0 + LEAF_TTL + 1);
    for _ in 0..20 {
        let (near, far) = loopback("127.0.0.1").await;
        let refuse = server::handshake(far, &db, &ahead);
        let ask = async { client::handshake(near, &web, &trust).await.unwrap().open(open()).await };
        let (told, refused) = tokio::join!(ask, refuse);
        assert!(matches!(refusal(refused.unwrap_err()), SvidError::Expired(_)));
        let told = told.map(|_| ()).unwrap_err();
        assert!(matches!(&told, TunnelError::Handshake(t) if t.contains("CertificateExpired")), "{told:?}");
    }
}
