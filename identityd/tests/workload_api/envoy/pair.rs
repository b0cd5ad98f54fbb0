//! Two Envoys between a client and a server that speak no TLS: what is between them is mutual TLS by secrets of ours.
//!
//! ```text
//!   this test ──plain──► Envoy "near" ──mutual TLS──► Envoy "far" ──plain──► an echo in this test
//! ```

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;

use super::{certificate_at, free_port, listener, log, secret, start};
use crate::endpoint::{ENTITLED, Endpoint, PATIENCE, until};
use crate::others::envoy;

/// Certificates are dated back by a minute: of these the next one is good already by Envoy's own clock.
const SHORT: i64 = 60;

fn policy(more: &str) -> String {
    format!("mode = \"observe\"\n[[workload]]\nname = \"edge/envoy\"\nexe = \"{}\"\n{more}\n", envoy().display())
}

fn forward_to(cluster: &str) -> String {
    format!(
        r#"
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: {cluster}
          cluster: {cluster}"#
    )
}

fn plain_listener(port: u16, cluster: &str) -> String {
    format!(
        "\n  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\n    filter_chains:\n    - filters:{}\n",
        forward_to(cluster)
    )
}

fn cluster(name: &str, port: u16, tls: &str) -> String {
    format!(
        r#"
  - name: {name}
    type: STATIC
    load_assignment:
      cluster_name: {name}
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]{tls}"#
    )
}

/// Shows its certificate, and accepts that one peer.
fn to_peer(id: &str) -> String {
    format!(
        r#"
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          tls_certificate_sds_secret_configs: [{}]
          combined_validation_context:
            default_validation_context: {{match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: "{id}"}}}}]}}
            validation_context_sds_secret_config: {}"#,
        secret("default"),
        secret("ROOTCA")
    )
}

async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reads, mut writes) = stream.split();
                tokio::io::copy(&mut reads, &mut writes).await
            });
        }
    });
    port
}

/// Whether what is said comes back.
async fn answers(stream: &mut TcpStream, said: &[u8]) -> bool {
    let mut heard = vec![0; said.len()];
    let exchange = async {
        stream.write_all(said).await?;
        stream.read_exact(&mut heard).await
    };
    let exchanged = tokio::time::timeout(PATIENCE, exchange).await.expect("neither an answer nor an end");
    exchanged.is_ok() && heard == said
}

async fn connected(port: u16) -> TcpStream {
    let connecting = async {
        loop {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await
                && answers(&mut stream, b"hello").await
            {
                return stream;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, connecting).await.expect("nobody answers")
}

struct Pair {
    near: u16,
    /// Through the same, to a peer with another name.
    stranger: u16,
    far: u16,
    _envoys: [Child; 2],
}

async fn pair(endpoint: &Endpoint) -> Pair {
    let [near, stranger, far] = [(); 3].map(|()| free_port());
    let behind = cluster("echo", echo().await, "");
    let far_envoy = start(endpoint, "far", &listener(far, ["default", "ALL"], &forward_to("echo")), &behind);
    let peer = cluster("peer", far, &to_peer("spiffe://example.org/edge/envoy"));
    let other = cluster("other", far, &to_peer("spiffe://example.org/edge/other"));
    let listeners = plain_listener(near, "peer") + &plain_listener(stranger, "other");
    let near_envoy = start(endpoint, "near", &listeners, &(peer + &other));
    Pair { near, stranger, far, _envoys: [near_envoy, far_envoy] }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_envoys_speak_mutual_tls_and_a_connection_outlives_the_rotation_of_their_certificate() {
    let endpoint = Endpoint::with_leaf_ttl(SHORT, &policy(ENTITLED)).await;
    let pair = pair(&endpoint).await;
    let mut kept = connected(pair.near).await;
    let mut stranger = TcpStream::connect(("127.0.0.1", pair.stranger)).await.unwrap();
    assert!(!answers(&mut stranger, b"hello").await, "the far end has another name");

    let (before, issued) = (certificate_at(pair.far), endpoint.issued().await);
    assert!(before.is_some());
    endpoint.travel(SHORT * 2 / 3);
    until("the certificate is renewed", || {
        let now = certificate_at(pair.far);
        now.is_some() && now != before
    })
    .await;
    assert!(endpoint.issued().await > issued);
    assert!(answers(&mut kept, b"still here").await, "{}", log(&endpoint, "near"));
    assert!(answers(&mut connected(pair.near).await, b"and who comes now").await);
}
