//! `SpiffeWorkloadAPI`: every request has to say that it is meant for it (SPIFFE_Workload_Endpoint.md §3), so that no
//! program is made to ask by somebody who only chooses where it connects.

use std::pin::Pin;
use std::sync::Arc;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::jwt::check_audiences;
use bonafide_proto::name::SpiffeId;
use bonafide_proto::refusal::AttestRefusal;
use bonafide_proto::wire::workload_endpoint as wire;
use bonafide_proto::wire::workload_endpoint::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use tokio_stream::Stream;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

use super::jwt::{self, Tokens};
use super::subscription::{NO_IDENTITY, Subscriptions, Told, Wants, status};
use super::{Caller, x509};

/// Of the Workload API; a token to be validated is the longest thing in it.
const REQUEST_MAX: usize = 64 << 10;

const HEADER: &str = "workload.spiffe.io";

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct WorkloadApi {
    subscriptions: Subscriptions,
    tokens: Arc<Tokens>,
    clock: SharedClock,
}

/// Looks at the metadata of a request.
type Check = fn(Request<()>) -> Result<Request<()>, Status>;

impl WorkloadApi {
    /// The service as tonic routes it.
    pub(super) fn server(
        subscriptions: Subscriptions,
        tokens: Tokens,
        clock: SharedClock,
    ) -> InterceptedService<SpiffeWorkloadApiServer<Self>, Check> {
        let service = Self { subscriptions, tokens: Arc::new(tokens), clock };
        let server = SpiffeWorkloadApiServer::new(service).max_decoding_message_size(REQUEST_MAX);
        InterceptedService::new(server, meant_for_us as Check)
    }

    /// A token for who is told this; attested again after it was signed.
    async fn token(&self, caller: &Caller, told: &Told, audiences: &[String]) -> Result<String, AttestRefusal> {
        let token = self.tokens.get(&told.entitled, &told.trust, audiences).await?;
        self.subscriptions.still(caller, &told.entitled).await?;
        Ok(token)
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

    async fn fetch_jwtsvid(
        &self,
        request: Request<wire::JwtsvidRequest>,
    ) -> Result<Response<wire::JwtsvidResponse>, Status> {
        let caller = caller(&request)?;
        let wire::JwtsvidRequest { audience, spiffe_id } = request.into_inner();
        check_audiences(&audience).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let told = self.subscriptions.told(&caller, Wants::Bundle).await.map_err(|refusal| status(&refusal))?;
        if !spiffe_id.is_empty() {
            let asked: SpiffeId =
                spiffe_id.parse().map_err(|e| Status::invalid_argument(format!("the SPIFFE ID {e}")))?;
            if asked != told.id {
                return Err(Status::permission_denied(NO_IDENTITY));
            }
        }
        let token = self.token(&caller, &told, &audience).await.map_err(|refusal| status(&refusal))?;
        let svid = wire::Jwtsvid { spiffe_id: told.id.to_string(), svid: token, hint: String::new() };
        Ok(Response::new(wire::JwtsvidResponse { svids: vec![svid] }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<wire::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let told = self.subscriptions.open(caller(&request)?, Wants::Bundle, jwt::bundles);
        Ok(Response::new(Box::pin(told)))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<wire::ValidateJwtsvidRequest>,
    ) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        let caller = caller(&request)?;
        let wire::ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        if audience.is_empty() || svid.is_empty() {
            return Err(Status::invalid_argument("audience and svid are both needed"));
        }
        let told = self.subscriptions.told(&caller, Wants::Bundle).await.map_err(|refusal| status(&refusal))?;
        let proven = told.trust.jwt.verify(&svid, &audience, self.clock.unix());
        let proven = proven.map_err(|e| Status::invalid_argument(e.to_string()))?;
        // Whoever it is shown to takes it for that workload.
        if let Some(why) = proven.id.workload_name().and_then(|of| self.subscriptions.revoked(&of)) {
            return Err(Status::invalid_argument(format!("the token is worth nothing: {why}")));
        }
        Ok(Response::new(jwt::validated(proven)))
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
