//! What the daemons say about themselves, and tokens from the authority.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use bonafide_proto::endpoint::channel;
use bonafide_proto::wire::authority::admission_client::AdmissionClient;
use bonafide_proto::wire::authority::{CreateTokenRequest, Grant};
use bonafide_proto::wire::node::attestation_client::AttestationClient;
use bonafide_proto::wire::node::enforcement_client::EnforcementClient;
use bonafide_proto::wire::node::issuance_client::IssuanceClient;
use bonafide_proto::wire::node::{AttestationStatus, EnforcementStatus, IssuanceStatus, StatusRequest};
use tonic::{Response, Status};

fn call<T>(question: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    runtime.block_on(async {
        match tokio::time::timeout(Duration::from_secs(2), question).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(status.to_string()),
            Err(_) => Err("no answer within 2 s".to_owned()),
        }
    })
}

/// The enforcer's account of itself.
///
/// # Errors
/// It does not answer, or refuses.
pub fn enforcement_status(socket: &Path) -> Result<EnforcementStatus, String> {
    call(async { EnforcementClient::new(channel(socket)).status(StatusRequest {}).await })
}

/// identityd's account of itself.
///
/// # Errors
/// It does not answer, or refuses.
pub fn attestation_status(socket: &Path) -> Result<AttestationStatus, String> {
    call(async { AttestationClient::new(channel(socket)).status(StatusRequest {}).await })
}

/// The local CA's account of itself.
///
/// # Errors
/// It does not answer, or refuses.
pub fn issuance_status(socket: &Path) -> Result<IssuanceStatus, String> {
    call(async { IssuanceClient::new(channel(socket)).status(StatusRequest {}).await })
}

/// A join token for this node, good for `ttl_seconds`.
///
/// # Errors
/// The authority does not answer, or refuses.
pub fn create_token(admin_socket: &Path, node: &str, ttl_seconds: u32) -> Result<String, String> {
    let grant = Some(Grant { workloads: vec!["*".to_owned()] });
    let request = CreateTokenRequest { node: node.to_owned(), ttl_seconds, grant, bios_uuid: String::new() };
    call(async { AdmissionClient::new(channel(admin_socket)).create_token(request).await }).map(|answer| answer.token)
}
