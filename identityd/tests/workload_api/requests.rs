//! What every request has to be like, and what is not served.

use bonafide_proto::wire::workload_endpoint::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use bonafide_proto::wire::workload_endpoint::{self as wire, DESCRIPTORS};
use prost_types::FileDescriptorSet;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ListServiceResponse, ServerReflectionRequest};

use crate::endpoint::Endpoint;
use crate::program::{Program, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn e_1_a_request_without_the_header_once_and_true_is_an_invalid_argument() {
    let endpoint = Endpoint::start().await;
    for headers in ["none", "false", "True", "true true", "true false", "\"true\""] {
        let mut program = Program::start(&endpoint.socket());
        let said = program.asked(&format!("svids {headers}")).await;
        assert_eq!(refusal(&said).0, "InvalidArgument", "{headers}");
    }
    assert_eq!(endpoint.issued().await, 0);
}

/// Whoever is attested: this process is as good as its programs.
#[tokio::test(flavor = "multi_thread")]
async fn e_1_every_method_wants_the_header() {
    let endpoint = Endpoint::start().await;
    let client = SpiffeWorkloadApiClient::new(bonafide_proto::endpoint::channel(endpoint.socket()));
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g] = std::array::from_fn(|_| client.clone());
    let audience = || "db".to_owned();
    let token = wire::JwtsvidRequest { audience: vec![audience()], spiffe_id: String::new() };
    let shown = wire::ValidateJwtsvidRequest { audience: audience(), svid: "a.b.c".to_owned() };
    let refused = [
        a.fetch_x509svid(wire::X509svidRequest {}).await.map(drop),
        b.fetch_x509_bundles(wire::X509BundlesRequest {}).await.map(drop),
        c.fetch_jwtsvid(token).await.map(drop),
        d.fetch_jwt_bundles(wire::JwtBundlesRequest {}).await.map(drop),
        e.validate_jwtsvid(shown).await.map(drop),
        f.fetch_witsvid(wire::WitsvidRequest {}).await.map(drop),
        g.fetch_wit_bundles(wire::WitBundlesRequest {}).await.map(drop),
    ];
    for (n, refused) in refused.into_iter().enumerate() {
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument, "method {n}");
    }
    assert_eq!(endpoint.issued().await, 0);
}

/// Everything here goes over plain HTTP/2 on the unix socket, and nobody shows a certificate, a token or a password (E-2): what
/// is asked of a client is that header alone.
#[tokio::test(flavor = "multi_thread")]
async fn e_2_neither_tls_nor_credentials_are_asked_for() {
    let endpoint = Endpoint::start().await;
    let mut client = SpiffeWorkloadApiClient::new(bonafide_proto::endpoint::channel(endpoint.socket()));
    let mut request = Request::new(wire::X509BundlesRequest {});
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    let told = client.fetch_x509_bundles(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(told.bundles.len(), 1);
}

#[test]
fn e_5_the_service_has_the_standards_methods_and_no_others_and_no_package() {
    let described = <FileDescriptorSet as prost::Message>::decode(DESCRIPTORS).unwrap();
    let named = |file: &&prost_types::FileDescriptorProto| file.service.iter().any(|s| s.name() == "SpiffeWorkloadAPI");
    let file = described.file.iter().find(named).unwrap();
    assert_eq!(file.package(), "");
    let service = file.service.iter().find(|service| service.name() == "SpiffeWorkloadAPI").unwrap();
    let mut methods: Vec<&str> = service.method.iter().map(|method| method.name()).collect();
    methods.sort_unstable();
    let standard = [
        "FetchJWTBundles",
        "FetchJWTSVID",
        "FetchWITBundles",
        "FetchWITSVID",
        "FetchX509Bundles",
        "FetchX509SVID",
        "ValidateJWTSVID",
    ];
    assert_eq!(methods, standard);
}

#[tokio::test(flavor = "multi_thread")]
async fn w_1_the_wit_svid_profile_is_unimplemented() {
    let endpoint = Endpoint::start().await;
    let mut program = Program::start(&endpoint.socket());
    let first = program.asked("wit").await;
    assert_eq!(refusal(&first).0, "Unimplemented");
    assert_eq!(refusal(&program.says().await).0, "Unimplemented");
}

#[tokio::test(flavor = "multi_thread")]
async fn e_5_reflection_and_health_are_served_to_anybody() {
    let endpoint = Endpoint::start().await;
    let channel = bonafide_proto::endpoint::channel(endpoint.socket());
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let asked = ServerReflectionClient::new(channel.clone()).server_reflection_info(tokio_stream::once(ask)).await;
    let answer = asked.unwrap().into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(ListServiceResponse { service })) = answer.message_response else {
        panic!("{answer:?}")
    };
    let names: Vec<&str> = service.iter().map(|one| one.name.as_str()).collect();
    assert!(names.contains(&"SpiffeWorkloadAPI") && names.contains(&"grpc.health.v1.Health"), "{names:?}");
    assert!(!DESCRIPTORS.is_empty());

    let request = HealthCheckRequest { service: "SpiffeWorkloadAPI".to_owned() };
    let health = HealthClient::new(channel).check(request).await.unwrap().into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);
}
