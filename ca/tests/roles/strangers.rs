//! What comes to the authority's port and is no node: garbage, silence, no certificate, a leaf.

use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::clock::TlsTime;
use bonafide_proto::svid::{Expect, TrustBundle};
use bonafide_proto::tls::{PeerVerifier, provider};
use bonafide_proto::wire::authority as wire;
use bonafide_proto::wire::authority::membership_client::MembershipClient;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Endpoint;

use crate::bench::{Served, csr, fingerprint};

type Credential = (Vec<CertificateDer<'static>>, Vec<u8>);

async fn dial(
    served: &Served,
    bundle: &TrustBundle,
    shown: Option<Credential>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let time = Arc::new(TlsTime(served.clock.clone()));
    let builder = ClientConfig::builder_with_details(provider().clone(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PeerVerifier::new(bundle.clone(), Expect::Authority)));
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            builder.with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key))).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = connect_from("127.0.0.1", served).await;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("x.invalid").unwrap(), tcp).await
}

/// A connection from this address.
async fn connect_from(source: &str, served: &Served) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(std::net::SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    socket.connect(served.address).await.unwrap()
}

/// Whether the other end closed it. Waits a moment for that.
async fn is_closed(stream: &mut TcpStream) -> bool {
    tokio::time::timeout(Duration::from_millis(1), stream.read(&mut [0])).await.is_ok()
}

async fn renew(stream: TlsStream<TcpStream>) -> Result<(), tonic::Status> {
    let mut stream = Some(TokioIo::new(stream));
    let once = tower::service_fn(move |_: tonic::transport::Uri| {
        let taken = stream.take();
        async move { taken.ok_or(std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    let channel = Endpoint::from_static("http://x.invalid").connect_with_connector(once).await.unwrap();
    let request = wire::RenewRequest { signing_csr: csr(&[]), authentication_csr: csr(&[]), ..Default::default() };
    MembershipClient::new(channel).renew(request).await.map(|_| ())
}

#[tokio::test]
async fn renewal_without_a_certificate_is_refused() {
    let served = Served::on("127.0.0.1").await;
    let bundle = served.member("a").await.trust_bundle().unwrap();
    let refused = renew(dial(&served, &bundle, None).await.unwrap()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    assert!(refused.message().starts_with("no-svid: "), "{}", refused.message());
}

#[tokio::test]
async fn a_workloads_leaf_opens_no_door_here() {
    let served = Served::on("127.0.0.1").await;
    let node = served.member("a").await;
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let leaf = node.issue_leaf(&"shop/web".parse().unwrap(), &fingerprint(), request.der()).unwrap();
    let shown = Some((leaf.chain, key.serialize_der()));
    // In TLS 1.3 the client is done before the server refuses: its first read tells.
    let mut stream = dial(&served, &node.trust_bundle().unwrap(), shown).await.unwrap();
    let said = stream.read(&mut [0; 16]).await.unwrap_err().to_string();
    assert!(said.contains("alert"), "{said}");
}

#[tokio::test]
async fn garbage_is_answered_by_an_end_of_the_connection() {
    let served = Served::on("::1").await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 600], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3]] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "still open after {garbage:?}");
    }
    served.member("a").await;
}

#[tokio::test]
async fn silent_connections_cannot_keep_a_node_out() {
    let served = Served::on("127.0.0.1").await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(served.address).await.unwrap());
    }
    // They fill every place, and each loses it when its handshake took too long.
    let joined = tokio::time::timeout(Duration::from_secs(60), async {
        while served.stranger("a").join(&served.link(), &served.token("a").await).await.is_err() {}
    });
    assert!(joined.await.is_ok());
}

#[tokio::test]
async fn silence_from_one_address_is_no_trouble_for_another() {
    let served = Served::on("127.0.0.1").await;
    let token = served.token("a").await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(connect_from("127.0.0.2", &served).await);
    }
    let mut held = Vec::new();
    while held.len() + 8 < 300 {
        let mut stream = silent.pop().unwrap_or_else(|| panic!("only {} were closed", held.len()));
        match is_closed(&mut stream).await {
            true => held.push(stream),
            false => silent.insert(0, stream),
        }
    }
    // The eight that are left would lose their places after five seconds; nobody has to wait for that.
    let (node, link) = (served.stranger("a"), served.link());
    let one_ends = async {
        match silent.first_mut() {
            Some(first) => first.read(&mut [0]).await,
            None => panic!("none was held"),
        }
    };
    tokio::select! {
        joined = node.join(&link, &token) => joined.unwrap(),
        _ = one_ends => panic!("joined no sooner than the silent ones were ended"),
    }
}

#[tokio::test]
async fn who_shows_nothing_and_asks_nothing_is_soon_gone() {
    let served = Served::on("127.0.0.1").await;
    let bundle = served.member("a").await.trust_bundle().unwrap();
    let mut stream = dial(&served, &bundle, None).await.unwrap();
    let mut rest = Vec::new();
    // Less than the 30 s that a member would have.
    let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "still open");
}
