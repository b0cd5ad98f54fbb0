//! What every request has to be like, and what is not served.

use bonafide_proto::wire::workload_endpoint::DESCRIPTORS;
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
