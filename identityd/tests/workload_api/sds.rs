//! SDS by a client that asks once, and one that does not ask.

use bonafide_proto::endpoint;
use bonafide_proto::wire::workload_endpoint::envoy::extensions::transport_sockets::tls::v3 as tls;
use bonafide_proto::wire::workload_endpoint::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use bonafide_proto::wire::workload_endpoint::envoy::service::discovery::v3::DiscoveryRequest;
use bonafide_proto::wire::workload_endpoint::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use prost::Message as _;
use tonic::Code;
use tonic::transport::Channel;

use crate::endpoint::{Endpoint, PATIENCE};

/// Whoever is attested: this process is as good as its programs.
fn client(endpoint: &Endpoint) -> SecretDiscoveryServiceClient<Channel> {
    SecretDiscoveryServiceClient::new(endpoint::channel(endpoint.socket()))
}

fn asks_for(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest { resource_names: names.iter().map(|name| (*name).to_owned()).collect(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_secrets_answers_once_with_all_that_was_asked_for_or_not_at_all() {
    let endpoint = Endpoint::start().await;
    let mut client = client(&endpoint);
    let id = "spiffe://example.org/shop/web";
    let answer = client.fetch_secrets(asks_for(&["default", id, "ROOTCA"])).await.unwrap().into_inner();
    let secrets: Vec<tls::Secret> =
        answer.resources.iter().map(|any| tls::Secret::decode(any.value.as_slice()).unwrap()).collect();
    assert_eq!(secrets.iter().map(|secret| secret.name.as_str()).collect::<Vec<_>>(), ["default", id, "ROOTCA"]);
    let [Some(Type::TlsCertificate(default)), Some(Type::TlsCertificate(named)), Some(Type::ValidationContext(roots))] =
        [0, 1, 2].map(|n| secrets[n].r#type.clone())
    else {
        panic!("of other kinds")
    };
    assert_eq!(default, named);
    assert!(default.private_key.is_some() && roots.trusted_ca.is_some());
    assert_eq!(endpoint.issued().await, 1);

    let many = ["default"; 65];
    for (names, code) in [
        (&["default", "spiffe://example.org/shop/db"][..], Code::PermissionDenied),
        (&["default", "kubernetes://tls"], Code::InvalidArgument),
        (&many, Code::InvalidArgument),
    ] {
        assert_eq!(client.fetch_secrets(asks_for(names)).await.unwrap_err().code(), code, "{names:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_asks_for_nothing_is_ended() {
    let endpoint = Endpoint::start().await;
    let mut stream = client(&endpoint).stream_secrets(tokio_stream::pending()).await.unwrap().into_inner();
    let ended = tokio::time::timeout(PATIENCE, stream.message()).await.expect("it stays open");
    assert_eq!(ended.unwrap_err().code(), Code::DeadlineExceeded);
}
