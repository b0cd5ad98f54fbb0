//! `SpiffeWorkloadAPI`: every request has to say that it is meant for it (SPIFFE_Workload_Endpoint.md §3), so that no
//! program is made to ask by somebody who only chooses where it connects.

use std::pin::Pin;

use bonafide_proto::wire::workload_endpoint as wire;
use bonafide_proto::wire::workload_endpoint::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use tokio_stream::Stream;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

use super::subscription::{Subscriptions, Wants};
use super::{Caller, x509};

/// Of the Workload API; a token to be validated is the longest thing in it.
const REQUEST_MAX: usize = 64 << 10;

const HEADER: &str = "workload.spiffe.io";

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct WorkloadApi {
    subscriptions: Subscriptions,
}

/// Looks at the metadata of a request.
type Check = fn(Request<()>) -> Result<Request<()>, Status>;

impl WorkloadApi {
    /// The service as tonic routes it.
    pub(super) fn server(subscriptions: Subscriptions) -> InterceptedService<SpiffeWorkloadApiServer<Self>, Check> {
        let server = SpiffeWorkloadApiServer::new(Self { subscriptions }).max_decoding_message_size(REQUEST_MAX);
        InterceptedService::new(server, meant_for_us as Check)
    }
}

fn meant_for_us(request: Request<()>) -> Result<Request<()>, Status> {
    let mut values = request.metadata().get_all(HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_encoded_bytes() == b"true" => Ok(request),
        _ => Err(Status::invalid_argument(format!("the request has not the metadata {HEADER}: true, once"))),
    }
}

/// Who sent it.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request.extensions().get().cloned().ok_or_else(|| Status::internal("a connection without a caller"))
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Updates<wire::X509svidResponse>;
    type FetchX509BundlesStream = Updates<wire::X509BundlesResponse>;
    type FetchJWTBundlesStream = Updates<wire::JwtBundlesResponse>;
    type FetchWITSVIDStream = Updates<wire::WitsvidResponse>;
    type FetchWITBundlesStream = Updates<wire::WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<wire::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let told = self.subscriptions.open(caller(&request)?, Wants::Svid, x509::svids);
        Ok(Response::new(Box::pin(told)))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<wire::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let told = self.subscriptions.open(caller(&request)?, Wants::Bundle, x509::bundles);
        Ok(Response::new(Box::pin(told)))
    }

    async fn fetch_jwtsvid(&self, _: Request<wire::JwtsvidRequest>) -> Result<Response<wire::JwtsvidResponse>, Status> {
        Err(no("the JWT-SVID profile"))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<wire::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(no("the JWT-SVID profile"))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<wire::ValidateJwtsvidRequest>,
    ) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        Err(no("the JWT-SVID profile"))
    }

    async fn fetch_witsvid(
        &self,
        _: Request<wire::WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(no("the WIT-SVID profile"))
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<wire::WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(no("the WIT-SVID profile"))
    }
}

fn no(profile: &str) -> Status {
    Status::unimplemented(format!("{profile} is not served"))
}
