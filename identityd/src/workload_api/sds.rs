//! Envoy's secret discovery service, SDS v3, for a proxy that is a workload: one resource for each name it asks for.
//!
//! | name | secret |
//! |---|---|
//! | `spiffe://td/workload`, `default` | its certificate chain and key |
//! | `spiffe://td`, `ROOTCA` | the bundle of our trust domain |
//! | `ALL` | Envoy's own SPIFFE validator, with the bundle of each trust domain |
//!
//! The state of the world, as xDS calls it: each response has everything that was asked for. A request that answers one
//! (ACK or NACK) gets another only if it names other resources; a state that Envoy refused is not sent again.
//!
//! Envoy's requests cannot carry the Workload API's header unless it is configured; they need none here.

use std::pin::Pin;
use std::time::Duration;

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::pem::pem;
use bonafide_proto::wire::workload_endpoint::envoy::config::core::v3::data_source::Specifier;
use bonafide_proto::wire::workload_endpoint::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use bonafide_proto::wire::workload_endpoint::envoy::extensions::transport_sockets::tls::v3 as tls;
use bonafide_proto::wire::workload_endpoint::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use bonafide_proto::wire::workload_endpoint::envoy::service::discovery::v3 as discovery;
use bonafide_proto::wire::workload_endpoint::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::service::caller;
use super::subscription::{Follower, NO_IDENTITY, Subscriptions, Told, Wants, status};

/// The most names that one stream asks for, and the longest request.
const NAMES_MAX: usize = 64;
const REQUEST_MAX: usize = 256 << 10;

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const VALIDATOR: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

const DEFAULT: &str = "default";
const ROOTCA: &str = "ROOTCA";
const ALL: &str = "ALL";

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Sds {
    subscriptions: Subscriptions,
}

impl Sds {
    /// The service as tonic routes it.
    pub(super) fn server(subscriptions: Subscriptions) -> SecretDiscoveryServiceServer<Self> {
        SecretDiscoveryServiceServer::new(Self { subscriptions }).max_decoding_message_size(REQUEST_MAX)
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type DeltaSecretsStream = Responses<discovery::DeltaDiscoveryResponse>;
    type StreamSecretsStream = Responses<discovery::DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        _: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("only the state of the world is served: StreamSecrets"))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let follower = self.subscriptions.follow(caller(&request)?);
        let (to, told) = mpsc::channel(1);
        tokio::spawn(async move {
            if let Err(status) = answer(follower, request.into_inner(), &to).await {
                // Who is gone does not want to know.
                let _ = to.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }

    async fn fetch_secrets(
        &self,
        request: Request<discovery::DiscoveryRequest>,
    ) -> Result<Response<discovery::DiscoveryResponse>, Status> {
        let caller = caller(&request)?;
        let mut exchange = Exchange::default();
        exchange.hears(request.into_inner())?;
        let told = self.subscriptions.told(&caller, exchange.wants()).await.map_err(|refusal| status(&refusal))?;
        exchange.says(&told)?.map(Response::new).ok_or_else(|| Status::internal("a first answer that says nothing"))
    }
}

/// How long a stream may be open before it asks for something: nobody has been attested until then.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// Until either side ends.
async fn answer(
    mut follower: Follower,
    mut requests: Streaming<discovery::DiscoveryRequest>,
    to: &mpsc::Sender<Result<discovery::DiscoveryResponse, Status>>,
) -> Result<(), Status> {
    let mut exchange = Exchange::default();
    let late = |_| Status::deadline_exceeded("no request came on this stream");
    let first = tokio::time::timeout(FIRST_WORD, requests.message()).await.map_err(late)?;
    let Some(first) = first? else { return Ok(()) };
    exchange.hears(first)?;
    loop {
        let told = follower.look(exchange.wants()).await.map_err(|refusal| status(&refusal))?;
        if let Some(response) = exchange.says(&told)?
            && to.send(Ok(response)).await.is_err()
        {
            return Ok(());
        }
        tokio::select! {
            request = requests.message() => match request? {
                Some(request) => exchange.hears(request)?,
                None => return Ok(()),
            },
            () = follower.changed(&told) => {}
            () = to.closed() => return Ok(()),
        }
    }
}

/// What one stream asked for, and was told.
#[derive(Debug, Default)]
struct Exchange {
    names: Vec<String>,
    /// Of the last response; each has another.
    nonce: u64,
    /// The version that was told of these names, whether it was taken or refused.
    told: Option<String>,
}

impl Exchange {
    /// A request: the first, other names, or an answer to a response.
    fn hears(&mut self, request: discovery::DiscoveryRequest) -> Result<(), Status> {
        if !request.type_url.is_empty() && request.type_url != SECRET {
            return Err(Status::invalid_argument("resources of that type are not served here; secrets are"));
        }
        if request.resource_names.len() > NAMES_MAX {
            return Err(Status::invalid_argument(format!("more than {NAMES_MAX} resource names")));
        }
        let answers = request.response_nonce.as_str();
        if !answers.is_empty() && answers != self.nonce.to_string() {
            // About a response that a later one has overtaken.
            return Ok(());
        }
        if request.error_detail.is_some() {
            tracing::warn!(names = ?self.names.len(), "a proxy refused its secrets, and keeps those it had");
        }
        if answers.is_empty() || request.resource_names != self.names {
            self.told = None;
        }
        self.names = request.resource_names;
        Ok(())
    }

    /// Whether a certificate is among what was asked for.
    fn wants(&self) -> Wants {
        let certificate =
            |name: &String| name == DEFAULT || name.strip_prefix("spiffe://").is_some_and(|rest| rest.contains('/'));
        if self.names.iter().any(certificate) { Wants::Svid } else { Wants::Bundle }
    }

    /// Everything that was asked for, if that is news.
    fn says(&mut self, told: &Told) -> Result<Option<discovery::DiscoveryResponse>, Status> {
        let version = version(told);
        if self.told.as_ref() == Some(&version) {
            return Ok(None);
        }
        let resources = self.names.iter().map(|name| Ok(any(SECRET, &secret(name, told)?)));
        let resources = resources.collect::<Result<Vec<Any>, Status>>()?;
        self.nonce += 1;
        self.told = Some(version.clone());
        let (type_url, nonce) = (SECRET.to_owned(), self.nonce.to_string());
        Ok(Some(discovery::DiscoveryResponse { version_info: version, resources, type_url, nonce }))
    }
}

/// Another one for another certificate, or other roots.
fn version(told: &Told) -> String {
    let chain = told.svid.iter().flat_map(|current| current.svid.chain.iter().flat_map(|one| one.iter().copied()));
    let all: Vec<u8> = chain.chain(told.trust.der()).chain(told.id.to_string().into_bytes()).collect();
    Digest::of(&all).to_string()
}

fn secret(name: &str, told: &Told) -> Result<tls::Secret, Status> {
    let of = if name == DEFAULT || name == told.id.to_string() {
        Type::TlsCertificate(certificate(told)?)
    } else if name == ROOTCA || name == told.trust.id() {
        let trusted_ca = Some(inline(pem("CERTIFICATE", told.trust.roots.roots())));
        Type::ValidationContext(tls::CertificateValidationContext { trusted_ca, custom_validator_config: None })
    } else if name == ALL {
        Type::ValidationContext(validator(told))
    } else if name.starts_with("spiffe://") {
        return Err(Status::permission_denied(NO_IDENTITY));
    } else {
        return Err(Status::invalid_argument(format!(
            "no secret has that name; known are SPIFFE IDs, {DEFAULT}, {ROOTCA} and {ALL}"
        )));
    };
    Ok(tls::Secret { name: name.to_owned(), r#type: Some(of) })
}

fn certificate(told: &Told) -> Result<tls::TlsCertificate, Status> {
    let svid = told.svid.as_ref().map(|current| &current.svid);
    let svid = svid.ok_or_else(|| Status::internal("a certificate that nobody wanted"))?;
    Ok(tls::TlsCertificate {
        certificate_chain: Some(inline(pem("CERTIFICATE", &svid.chain))),
        private_key: Some(inline(pem("PRIVATE KEY", &[svid.key.as_slice()]))),
    })
}

fn validator(told: &Told) -> tls::CertificateValidationContext {
    let ours = tls::spiffe_cert_validator_config::TrustDomain {
        name: told.trust.roots.trust_domain().to_string(),
        trust_bundle: Some(inline(pem("CERTIFICATE", told.trust.roots.roots()))),
    };
    let config = tls::SpiffeCertValidatorConfig { trust_domains: vec![ours] };
    let custom = TypedExtensionConfig {
        name: "envoy.tls.cert_validator.spiffe".to_owned(),
        typed_config: Some(any(VALIDATOR, &config)),
    };
    tls::CertificateValidationContext { trusted_ca: None, custom_validator_config: Some(custom) }
}

fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes)) }
}

fn any(type_url: &str, message: &impl prost::Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(names: &[&str], nonce: &str) -> discovery::DiscoveryRequest {
        discovery::DiscoveryRequest {
            resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
            type_url: SECRET.to_owned(),
            response_nonce: nonce.to_owned(),
            ..discovery::DiscoveryRequest::default()
        }
    }

    fn told_once(names: &[&str]) -> Exchange {
        let mut exchange = Exchange::default();
        exchange.hears(request(names, "")).unwrap();
        (exchange.nonce, exchange.told) = (1, Some("v".to_owned()));
        exchange
    }

    #[test]
    fn who_takes_or_refuses_what_was_told_is_told_nothing_again() {
        let mut exchange = told_once(&["ROOTCA"]);
        exchange.hears(request(&["ROOTCA"], "1")).unwrap();
        assert!(exchange.told.is_some());
        let refused = bonafide_proto::wire::workload_endpoint::google::rpc::Status { code: 3, message: "no".into() };
        exchange
            .hears(discovery::DiscoveryRequest { error_detail: Some(refused), ..request(&["ROOTCA"], "1") })
            .unwrap();
        assert!(exchange.told.is_some());
    }

    #[test]
    fn who_asks_for_something_else_is_told_everything_and_an_overtaken_answer_counts_for_nothing() {
        let mut exchange = told_once(&["ROOTCA"]);
        exchange.hears(request(&["default"], "0")).unwrap();
        assert_eq!((exchange.names[0].as_str(), exchange.told.is_some()), ("ROOTCA", true));
        exchange.hears(request(&["ROOTCA", "default"], "1")).unwrap();
        assert_eq!((exchange.names.len(), exchange.told.is_none()), (2, true));
        assert!(exchange.wants() == Wants::Svid && told_once(&["spiffe://td", "ALL"]).wants() == Wants::Bundle);
    }

    #[test]
    fn requests_are_bounded_and_about_secrets() {
        let mut exchange = Exchange::default();
        let many = vec!["x"; NAMES_MAX + 1];
        assert_eq!(exchange.hears(request(&many, "")).unwrap_err().code(), tonic::Code::InvalidArgument);
        let other = discovery::DiscoveryRequest { type_url: "type.googleapis.com/x".into(), ..request(&[], "") };
        assert_eq!(exchange.hears(other).unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
