//! The authority on another host, over TLS 1.3: one connection per request, its server verified as `Expect::Authority`.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bonafide_proto::clock::{SharedClock, TlsTime};
use bonafide_proto::convert::Malformed;
use bonafide_proto::jwt::{JwtKey, KEYS_MAX};
use bonafide_proto::signed_policy::SIGNED_MAX;
use bonafide_proto::svid::{Expect, TrustBundle};
use bonafide_proto::tls::{PeerVerifier, provider, svid_error};
use bonafide_proto::wire::authority as wire;
use bonafide_proto::wire::authority::membership_client::MembershipClient;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::attestor::{self, Prover, SESSION_LABEL, Session};
use crate::authority::{Application, Membership};
use crate::checker;
use crate::jwt::JwtOrder;
use crate::link::{AuthorityLink, Halves, LinkError, MeshStates, SignedPolicies, Told};
use crate::listener::ALPN;
use crate::machine::Machine;
use crate::member::Member;
use crate::mesh::{Held, MalformedState, MeshState};
use crate::policies::PolicyHeld;
use crate::roots::Roots;
use crate::sharing::Half;
use bonafide_proto::token::JoinToken;

/// How long connecting, handshake included, may take.
const CONNECT: Duration = Duration::from_secs(10);
/// As long, where there is another address to try.
const CONNECT_ONE: Duration = Duration::from_secs(2);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(20);
/// How often a silent authority is asked whether it is still there: what it tells must come within a second, so a
/// connection that was cut off (capture that begins cuts off those that say nothing) has to be noticed as soon.
const ALIVE: Duration = Duration::from_secs(1);
/// How long it may take to say so.
const SILENCE: Duration = Duration::from_secs(3);
/// Tokens that are signed at once.
const SIGNING: usize = 2;
/// The largest answer that is read, in bytes.
const ANSWER_MAX: usize = 1024 * 1024;
/// The largest policy that is read, in bytes, with what the message adds to it.
const POLICY_MAX: usize = SIGNED_MAX + 1024;

/// The authority, reached over the network: at one address, or at several of authorities that share a store.
///
/// Who does not answer, or cannot, is passed over for the next one, with the very same request: an authority knows an
/// application again that it, or another one, has admitted.
#[derive(Debug)]
pub struct Remote {
    doors: Vec<Door>,
    /// Which one answered last.
    current: AtomicUsize,
}

impl Remote {
    /// The authority at `host:port`. The address is only where to knock: the certificate says who opens.
    #[must_use]
    pub fn new(address: impl Into<String>, clock: SharedClock) -> Self {
        Self::of(&[address.into()], &clock, CONNECT)
    }

    /// Whichever of these answers.
    #[must_use]
    pub fn among(addresses: &[String], clock: &SharedClock) -> Self {
        let patience = if addresses.len() > 1 { CONNECT_ONE } else { CONNECT };
        Self::of(addresses, clock, patience)
    }

    fn of(addresses: &[String], clock: &SharedClock, patience: Duration) -> Self {
        let (following, signing) = (Arc::<Mutex<_>>::default(), Arc::new(Semaphore::new(SIGNING)));
        let door = |address: &String| Door {
            address: address.clone(),
            clock: clock.clone(),
            patience,
            following: Arc::clone(&following),
            signing: Arc::clone(&signing),
        };
        Self { doors: addresses.iter().map(door).collect(), current: AtomicUsize::new(0) }
    }

    /// The first answer, beginning at this door.
    async fn ask<'a, T>(&'a self, first: usize, ask: impl Fn(&'a Door) -> Asking<'a, T>) -> Result<T, LinkError> {
        let mut outcome = Err(LinkError::Unreachable { address: "nowhere".into(), why: "it has no address".into() });
        for (number, door) in self.from(first) {
            outcome = ask(door).await;
            match &outcome {
                Ok(_) => self.current.store(number, Ordering::Relaxed),
                Err(e) if cannot(e) => {
                    tracing::debug!(error = %e, "asking the next authority");
                    continue;
                }
                Err(_) => {}
            }
            break;
        }
        outcome
    }

    fn from(&self, first: usize) -> impl Iterator<Item = (usize, &Door)> {
        self.doors.iter().enumerate().cycle().skip(first).take(self.doors.len())
    }

    fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }
}

type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, LinkError>> + Send + 'a>>;

/// Whether another authority may do what this one cannot.
fn cannot(e: &LinkError) -> bool {
    match e {
        LinkError::Unreachable { .. } | LinkError::Distrust { .. } | LinkError::Malformed(_) => true,
        LinkError::Refused { reason, .. } => reason == "authority-failed",
        LinkError::Proof(_) => false,
    }
}

#[tonic::async_trait]
impl AuthorityLink for Remote {
    async fn join(&self, token: &JoinToken, application: &Application) -> Result<Membership, LinkError> {
        self.ask(self.current(), |door| Box::pin(door.join(token, application))).await
    }

    async fn enrol(
        &self,
        root: &CertificateDer<'static>,
        prover: &dyn Prover,
        application: &Application,
    ) -> Result<Membership, LinkError> {
        self.ask(self.current(), |door| Box::pin(door.enrol(root, prover, application))).await
    }

    async fn renew(
        &self,
        member: &Member,
        machine: &Machine,
        signing_csr: Vec<u8>,
        authentication_csr: Vec<u8>,
    ) -> Result<Membership, LinkError> {
        let (signing, authentication) = (&signing_csr, &authentication_csr);
        self.ask(self.current(), |door| Box::pin(door.renew(member, machine, signing, authentication))).await
    }

    /// Always the first one that can: where all nodes follow, all halves of flows meet.
    async fn follow(
        &self,
        member: &Member,
        machine: &Machine,
        held: watch::Receiver<Held>,
    ) -> Result<MeshStates, LinkError> {
        self.ask(0, |door| Box::pin(door.follow(member, machine, held.clone()))).await
    }

    async fn sign_jwt(&self, member: &Member, order: &JwtOrder) -> Result<String, LinkError> {
        self.ask(self.current(), |door| Box::pin(door.sign_jwt(member, order))).await
    }

    async fn jwt_keys(&self, member: &Member) -> Result<Vec<JwtKey>, LinkError> {
        self.ask(self.current(), |door| Box::pin(door.jwt_keys(member))).await
    }

    /// Where it follows.
    async fn follow_policy(
        &self,
        member: &Member,
        held: watch::Receiver<PolicyHeld>,
    ) -> Result<SignedPolicies, LinkError> {
        self.ask(self.current(), |door| Box::pin(door.follow_policy(member, held.clone()))).await
    }

    async fn share_flows(&self, member: &Member, flows: mpsc::Receiver<Vec<u8>>) -> Result<Halves, LinkError> {
        let mut outcome = Err(LinkError::Unreachable { address: "nowhere".into(), why: "it has no address".into() });
        for (number, door) in self.from(self.current()) {
            match door.client(member.bundle().clone(), Some(member)).await {
                Ok(client) => {
                    self.current.store(number, Ordering::Relaxed);
                    return door.share_flows(client, flows).await;
                }
                Err(e) => outcome = Err(e),
            }
        }
        outcome
    }
}

/// One address of an authority.
#[derive(Debug, Clone)]
struct Door {
    address: String,
    clock: SharedClock,
    /// How long connecting, handshake included, may take.
    patience: Duration,
    /// The newest connection by which the node follows, of all doors: what else it is told comes by the same one.
    following: Arc<Mutex<Option<Client>>>,
    /// Room for those that have a token signed: programs ask for them as often as they like, and the authority takes few
    /// connections of one node, by which it also has to renew and to be told things.
    signing: Arc<Semaphore>,
}

impl Door {
    async fn client(&self, bundle: TrustBundle, as_member: Option<&Member>) -> Result<Client, LinkError> {
        self.connect(bundle, as_member).await.map(|(client, _)| client)
    }

    async fn connect(&self, bundle: TrustBundle, as_member: Option<&Member>) -> Result<(Client, Session), LinkError> {
        let config = self.config(bundle, as_member).map_err(|e| self.distrust(&e))?;
        let stream = match tokio::time::timeout(self.patience, self.dial(config)).await {
            Ok(dialled) => dialled?,
            Err(_) => return Err(self.unreachable("no answer in time")),
        };
        let exporter = stream.get_ref().1.export_keying_material(Session::default(), SESSION_LABEL, None);
        let session = exporter.map_err(|e| self.distrust(&e))?;
        let channel = channel(stream).await.map_err(|e| self.unreachable(&e.to_string()))?;
        Ok((MembershipClient::new(channel).max_decoding_message_size(ANSWER_MAX), session))
    }

    fn config(&self, bundle: TrustBundle, as_member: Option<&Member>) -> Result<ClientConfig, rustls::Error> {
        let time = Arc::new(TlsTime(self.clock.clone()));
        let builder = ClientConfig::builder_with_details(provider().clone(), time)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PeerVerifier::new(bundle, Expect::Authority)));
        let mut config = match as_member {
            None => builder.with_no_client_auth(),
            Some(member) => {
                let key = PrivatePkcs8KeyDer::from(member.authentication().pkcs8().to_vec());
                builder.with_client_auth_cert(member.shown(), PrivateKeyDer::Pkcs8(key))?
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(config)
    }

    async fn dial(&self, config: ClientConfig) -> Result<TlsStream<TcpStream>, LinkError> {
        let tcp = TcpStream::connect(&self.address).await.map_err(|e| self.unreachable(&e.to_string()))?;
        // Neither sent nor compared: the verifier goes by the SPIFFE ID.
        let name = ServerName::try_from("authority.invalid").map_err(|e| self.unreachable(&e.to_string()))?;
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|e| self.handshake(&e))
    }

    fn handshake(&self, e: &std::io::Error) -> LinkError {
        match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => match svid_error(tls) {
                Some(refused) => self.distrust(&refused),
                None => self.distrust(tls),
            },
            None => self.unreachable(&e.to_string()),
        }
    }

    fn unreachable(&self, why: &str) -> LinkError {
        LinkError::Unreachable { address: self.address.clone(), why: why.to_owned() }
    }

    fn distrust(&self, why: &dyn std::fmt::Display) -> LinkError {
        LinkError::Distrust { address: self.address.clone(), why: why.to_string() }
    }

    fn refused(&self, status: &Status) -> LinkError {
        match (status.code(), status.message().split_once(": ")) {
            (Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown, _) | (_, None) => {
                self.unreachable(&format!("{:?}: {}", status.code(), status.message()))
            }
            (_, Some((reason, message))) => {
                LinkError::Refused { reason: reason.to_owned(), message: message.to_owned() }
            }
        }
    }

    /// Shows evidence, and answers what is asked, until it is a member.
    async fn rounds(
        &self,
        client: &mut Client,
        session: Session,
        prover: &dyn Prover,
        application: &Application,
    ) -> Result<Membership, LinkError> {
        use wire::enrol_request::Of as Says;
        use wire::enrol_response::Of as Told;
        let (binding, begun) = (attestor::binding(application, &session), prover.begin().map_err(LinkError::Proof)?);
        let Application { node, signing_csr, authentication_csr, bios_uuid, machine_id } = application.clone();
        let (node, evidence) = (node.to_string(), Some((&begun).into()));
        let first = wire::EnrolApplication { node, signing_csr, authentication_csr, bios_uuid, machine_id, evidence };
        let (say, says) = mpsc::channel(1);
        let gone = || self.unreachable("it went away");
        say.send(wire::EnrolRequest { of: Some(Says::Application(first)) }).await.map_err(|_| gone())?;
        let told = client.enrol(ReceiverStream::new(says)).await.map_err(|status| self.refused(&status))?;
        let mut told = told.into_inner();
        loop {
            let message = told.message().await.map_err(|status| self.refused(&status))?.ok_or_else(gone)?;
            match message.of {
                Some(Told::Membered(membered)) => return membership(membered),
                Some(Told::Challenge(challenge)) => {
                    let challenge = challenge.try_into().map_err(|e: Malformed| LinkError::Malformed(e.to_string()))?;
                    let answer = prover.answer(&begun, &binding, &challenge).map_err(LinkError::Proof)?;
                    let answer = wire::EnrolRequest { of: Some(Says::Answer((&answer).into())) };
                    say.send(answer).await.map_err(|_| gone())?;
                }
                None => return Err(LinkError::Malformed("a message says nothing".into())),
            }
        }
    }

    async fn answered(
        &self,
        answer: impl Future<Output = Result<tonic::Response<wire::Membered>, Status>>,
    ) -> Result<Membership, LinkError> {
        match tokio::time::timeout(ANSWER, answer).await {
            Ok(Ok(membered)) => membership(membered.into_inner()),
            Ok(Err(status)) => Err(self.refused(&status)),
            Err(_) => Err(self.unreachable("no answer in time")),
        }
    }
}

type Client = MembershipClient<Channel>;

impl Door {
    async fn enrol(
        &self,
        root: &CertificateDer<'static>,
        prover: &dyn Prover,
        application: &Application,
    ) -> Result<Membership, LinkError> {
        let trusted = checker::read_root(root).map_err(|e| self.distrust(&e))?;
        let bundle = TrustBundle::new(trusted.trust_domain, vec![root.clone()]).map_err(|e| self.distrust(&e))?;
        let (mut client, session) = self.connect(bundle, None).await?;
        let rounds = self.rounds(&mut client, session, prover, application);
        tokio::time::timeout(ANSWER, rounds).await.map_err(|_| self.unreachable("no answer in time"))?
    }

    async fn join(&self, token: &JoinToken, application: &Application) -> Result<Membership, LinkError> {
        let root = checker::read_root(token.root()).map_err(|e| self.distrust(&e))?;
        let bundle = TrustBundle::new(root.trust_domain, vec![token.root().clone()]).map_err(|e| self.distrust(&e))?;
        let mut client = self.client(bundle, None).await?;
        let request = wire::JoinRequest {
            token_secret: token.secret().bytes().to_vec(),
            node: application.node.to_string(),
            signing_csr: application.signing_csr.clone(),
            authentication_csr: application.authentication_csr.clone(),
            bios_uuid: application.bios_uuid.clone(),
            machine_id: application.machine_id.clone(),
        };
        self.answered(client.join(request)).await
    }

    async fn renew(
        &self,
        member: &Member,
        machine: &Machine,
        signing_csr: &[u8],
        authentication_csr: &[u8],
    ) -> Result<Membership, LinkError> {
        let (signing_csr, authentication_csr) = (signing_csr.to_vec(), authentication_csr.to_vec());
        let mut client = self.client(member.bundle().clone(), Some(member)).await?;
        let Machine { bios_uuid, machine_id } = machine.clone();
        let request = wire::RenewRequest { signing_csr, authentication_csr, bios_uuid, machine_id };
        self.answered(client.renew(request)).await
    }

    async fn follow(
        &self,
        member: &Member,
        machine: &Machine,
        held: watch::Receiver<Held>,
    ) -> Result<MeshStates, LinkError> {
        let mut client = self.client(member.bundle().clone(), Some(member)).await?;
        let Machine { bios_uuid, machine_id } = machine.clone();
        let Held { told, holds, roots } = *held.borrow();
        let first = wire::Held { told, holds, roots, bios_uuid, machine_id };
        let then = |Held { told, holds, roots }| wire::Held { told, holds, roots, ..wire::Held::default() };
        let held = tokio_stream::once(first).chain(WatchStream::from_changes(held).map(then));
        let opened = match tokio::time::timeout(ANSWER, client.follow(held)).await {
            Ok(opened) => opened.map_err(|status| self.refused(&status))?,
            Err(_) => return Err(self.unreachable("no answer in time")),
        };
        *self.following.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        let remote = self.clone();
        Ok(Box::pin(opened.into_inner().map(move |state| {
            // The connection lives as long as the client does.
            let _connection = &client;
            state.map_err(|status| remote.refused(&status)).and_then(all_told)
        })))
    }

    async fn sign_jwt(&self, member: &Member, order: &JwtOrder) -> Result<String, LinkError> {
        let busy = || self.unreachable("too many tokens are waited for");
        let place = tokio::time::timeout(ANSWER, self.signing.acquire()).await.map_err(|_| busy())?;
        let _place = place.map_err(|_| busy())?;
        let mut client = self.client(member.bundle().clone(), Some(member)).await?;
        let request = wire::SignJwtRequest {
            workload: order.workload.to_string(),
            audiences: order.audiences.clone(),
            sha256: order.digests.iter().map(|digest| digest.0.to_vec()).collect(),
        };
        match tokio::time::timeout(ANSWER, client.sign_jwt(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().token),
            Ok(Err(status)) => Err(self.refused(&status)),
            Err(_) => Err(self.unreachable("no answer in time")),
        }
    }

    async fn jwt_keys(&self, member: &Member) -> Result<Vec<JwtKey>, LinkError> {
        let mut client = self.client(member.bundle().clone(), Some(member)).await?;
        let points = match tokio::time::timeout(ANSWER, client.list_jwt_keys(wire::ListJwtKeysRequest {})).await {
            Ok(Ok(answer)) => answer.into_inner().points,
            Ok(Err(status)) => return Err(self.refused(&status)),
            Err(_) => return Err(self.unreachable("no answer in time")),
        };
        let keys = points.into_iter().take(KEYS_MAX).map(JwtKey::new).collect::<Result<_, _>>();
        keys.map_err(|e| LinkError::Malformed(e.to_string()))
    }

    async fn follow_policy(
        &self,
        member: &Member,
        held: watch::Receiver<PolicyHeld>,
    ) -> Result<SignedPolicies, LinkError> {
        let following = self.following.lock().unwrap_or_else(PoisonError::into_inner).take();
        let client = match following {
            Some(client) => client,
            None => self.client(member.bundle().clone(), Some(member)).await?,
        };
        let mut client = client.max_decoding_message_size(POLICY_MAX);
        let held = WatchStream::new(held).map(wire::PolicyHeld::from);
        let opened = match tokio::time::timeout(ANSWER, client.follow_policy(held)).await {
            Ok(opened) => opened.map_err(|status| self.refused(&status))?,
            Err(_) => return Err(self.unreachable("no answer in time")),
        };
        let remote = self.clone();
        Ok(Box::pin(opened.into_inner().map(move |told| {
            // The connection lives as long as the client does.
            let _connection = &client;
            told.map(|told| told.signed).map_err(|status| remote.refused(&status))
        })))
    }

    async fn share_flows(&self, mut client: Client, flows: mpsc::Receiver<Vec<u8>>) -> Result<Halves, LinkError> {
        let offered = ReceiverStream::new(flows).map(|flow| wire::FlowHalf { node: String::new(), flow });
        let opened = match tokio::time::timeout(ANSWER, client.share_flows(offered)).await {
            Ok(opened) => opened.map_err(|status| self.refused(&status))?,
            Err(_) => return Err(self.unreachable("no answer in time")),
        };
        let remote = self.clone();
        Ok(Box::pin(opened.into_inner().map(move |half| {
            // The connection lives as long as the client does.
            let _connection = &client;
            half.map_err(|status| remote.refused(&status)).and_then(half_of)
        })))
    }
}

/// A channel over this one connection; it never dials again.
async fn channel(stream: TlsStream<TcpStream>) -> Result<Channel, tonic::transport::Error> {
    let mut stream = Some(TokioIo::new(stream));
    let once = tower::service_fn(move |_: tonic::transport::Uri| {
        let taken = stream.take().ok_or(std::io::Error::from(std::io::ErrorKind::NotConnected));
        async move { taken }
    });
    Endpoint::from_static("http://authority.invalid")
        .http2_keep_alive_interval(ALIVE)
        .keep_alive_timeout(SILENCE)
        .keep_alive_while_idle(true)
        .connect_with_connector(once)
        .await
}

fn half_of(wire: wire::FlowHalf) -> Result<Half, LinkError> {
    let node = wire.node.parse().map_err(|e| LinkError::Malformed(format!("the node name {e}")))?;
    Ok(Half { node, flow: wire.flow })
}

fn all_told(mut wire: wire::MeshState) -> Result<Told, LinkError> {
    let roots = wire.roots.take().map(Roots::from);
    Ok(Told { mesh: mesh_state(wire)?, roots })
}

fn mesh_state(wire: wire::MeshState) -> Result<MeshState, LinkError> {
    wire.try_into().map_err(|e: MalformedState| LinkError::Malformed(e.to_string()))
}

fn membership(wire: wire::Membered) -> Result<Membership, LinkError> {
    let malformed = |e: &dyn std::fmt::Display| LinkError::Malformed(format!("the trust domain {e}"));
    Ok(Membership {
        trust_domain: wire.trust_domain.parse().map_err(|e| malformed(&e))?,
        intermediate: wire.intermediate.into(),
        node_svid: wire.node_svid.into(),
        issuing: (!wire.issuing.is_empty()).then(|| wire.issuing.into()),
        roots: wire.roots.into_iter().map(Into::into).collect(),
        // An authority of an earlier version has but one.
        sequence: wire.roots_sequence.max(1),
        mesh: mesh_state(wire.mesh.unwrap_or_default())?,
    })
}
