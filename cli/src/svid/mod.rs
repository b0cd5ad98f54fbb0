//! `bonafide svid`: what the workload endpoint gives, for programs that cannot ask it themselves.
//!
//! It asks as any program does, and is given what the policy lets *this* program have, run by this user. Nothing of it is
//! shown or written unless somebody says so.

mod endpoint;
mod files;

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bonafide_proto::clock::SystemClock;
use bonafide_proto::fetched::{FetchedSvid, concatenated};
use bonafide_proto::harden::harden;
use bonafide_proto::jwt::TOKEN_MAX;
use bonafide_proto::pem::pem;
use bonafide_proto::wire::workload_endpoint as wire;
use bonafide_proto::wire::workload_endpoint::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::ask::block_on;
use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::printable::printable;
use crate::screen::{Screen, tell};
pub use endpoint::Endpoint as SvidEndpoint;
use endpoint::Endpoint;
use files::Files;

/// How long the first answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts of one that watches.
const AGAIN: Duration = Duration::from_secs(1);

/// What it can be asked for.
#[derive(Debug, clap::Subcommand)]
pub enum SvidCommand {
    /// The certificate: whom it names and until when; its files, if they are wanted
    #[command(
        after_help = "DIR/current/ then has svid.pem (leaf first), svid_key.pem (PKCS#8) and bundle.pem, each readable by
you alone. DIR/current is a link that is exchanged in one step: whoever opens the files again has all of them of one time.
With --watch they are written anew with each renewal, and removed when the identity is taken back.

Examples:
  bonafide svid x509
  bonafide svid x509 --write /run/legacy/tls --watch

Exits 3 if the policy gives this program no identity, 1 if nobody answers."
    )]
    X509(X509Args),
    /// A token for an audience; printed, as it is for somebody else
    #[command(after_help = "Example:\n  bonafide svid jwt --audience db.example.net

Exits 3 if the policy gives this program no identity, 1 if nobody answers.")]
    Jwt(JwtArgs),
    /// Checks a token that somebody showed, and says whom it names
    #[command(after_help = "Example:
  bonafide svid validate --audience db.example.net --token-file /run/shown.jwt

Exits 3 if the token proves nothing to that audience, or the policy gives this program no identity.")]
    Validate(ValidateArgs),
    /// The certificates of the trust domain's roots, in PEM
    Bundle(BundleArgs),
}

/// See [`SvidCommand::X509`].
#[derive(Debug, clap::Args)]
pub struct X509Args {
    /// Where it is asked for, such as unix:///run/bonafide/run/identityd/workload.sock [default: the node's of --dir]
    #[arg(long, value_name = "URI")]
    pub endpoint: Option<Endpoint>,
    /// Write certificate, key and bundle below this directory
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,
    /// Go on, and do it again whenever the certificate is another one
    #[arg(long)]
    pub watch: bool,
}

/// See [`SvidCommand::Jwt`].
#[derive(Debug, clap::Args)]
pub struct JwtArgs {
    /// As of `svid x509`
    #[arg(long, value_name = "URI")]
    pub endpoint: Option<Endpoint>,
    /// Who shall accept it (repeatable)
    #[arg(long, required = true)]
    pub audience: Vec<String>,
}

/// See [`SvidCommand::Validate`].
#[derive(Debug, clap::Args)]
pub struct ValidateArgs {
    /// As of `svid x509`
    #[arg(long, value_name = "URI")]
    pub endpoint: Option<Endpoint>,
    /// Who it has to be for
    #[arg(long)]
    pub audience: String,
    /// Holds the token
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
}

/// See [`SvidCommand::Bundle`].
#[derive(Debug, clap::Args)]
pub struct BundleArgs {
    /// As of `svid x509`
    #[arg(long, value_name = "URI")]
    pub endpoint: Option<Endpoint>,
}

/// Asks, and shows or writes the answer.
pub(crate) fn svid(command: SvidCommand, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let asks =
        |endpoint: Option<Endpoint>| Asks { socket: endpoint.map_or(layout.workload_socket(), Endpoint::socket) };
    // Keys and tokens come by here.
    harden().map_err(|e| Failure::Failed(format!("keys could not be kept from core files: {e}")))?;
    match command {
        SvidCommand::X509(X509Args { endpoint, write, watch }) => {
            let files = write.map(Files::below).transpose()?;
            let (asks, mut shown) = (asks(endpoint), Shown { files, screen });
            if watch { block_on(watching(&asks, &mut shown))? } else { block_on(once(&asks, &mut shown))? }
        }
        SvidCommand::Jwt(JwtArgs { endpoint, audience }) => {
            let token = block_on(asks(endpoint).token(audience))??;
            screen.line(&token)?;
            Ok(Exit::Done)
        }
        SvidCommand::Validate(ValidateArgs { endpoint, audience, token_file }) => {
            let token = token_in(&token_file)?;
            let id = block_on(asks(endpoint).validated(audience, token))??;
            screen.line(&printable(&id))?;
            Ok(Exit::Done)
        }
        SvidCommand::Bundle(BundleArgs { endpoint }) => {
            let roots = block_on(asks(endpoint).roots())??;
            screen.line(String::from_utf8_lossy(&roots).trim_end())?;
            Ok(Exit::Done)
        }
    }
}

/// One line; bounded, as whoever showed it chose its length.
fn token_in(file: &Path) -> Result<String, Failure> {
    let wrong = |e: io::Error| Failure::BadInput(format!("{}: the token cannot be read: {e}", file.display()));
    let mut text = String::new();
    let bound = TOKEN_MAX as u64 + 2;
    fs::File::open(file).and_then(|file| file.take(bound).read_to_string(&mut text)).map_err(wrong)?;
    Ok(text.trim().to_owned())
}

async fn once(asks: &Asks, shown: &mut Shown<'_>) -> Result<Exit, Failure> {
    let mut told = asks.svids().await?;
    shown.takes(asks.next(&mut told).await?)?;
    Ok(Exit::Done)
}

/// Until the identity is taken back. Who does not answer may do so later.
async fn watching(asks: &Asks, shown: &mut Shown<'_>) -> Result<Exit, Failure> {
    loop {
        match follow(asks, shown).await {
            Failure::Failed(why) => tell(&format!("bonafide: {why}; what was written stays, and is asked for again")),
            Failure::Refused(why) => {
                shown.takes_back()?;
                return Err(Failure::Refused(why));
            }
            other => return Err(other),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Takes each message of one stream; why it ended.
async fn follow(asks: &Asks, shown: &mut Shown<'_>) -> Failure {
    let mut told = match asks.svids().await {
        Ok(told) => told,
        Err(failure) => return failure,
    };
    loop {
        let taken = match told.message().await {
            Ok(Some(answer)) => shown.takes(answer),
            Ok(None) => Err(Failure::Failed(format!("{}: the stream ended", asks.socket.display()))),
            Err(status) => Err(asks.failed(&status)),
        };
        if let Err(failure) = taken {
            return failure;
        }
    }
}

/// Where what comes goes.
struct Shown<'s> {
    files: Option<Files>,
    screen: &'s mut Screen,
}

impl Shown<'_> {
    fn takes(&mut self, answer: wire::X509svidResponse) -> Result<(), Failure> {
        let fetched = FetchedSvid::of(answer, &SystemClock)
            .map_err(|e| Failure::Failed(format!("what the workload endpoint gave is not fit for use: {e}")))?;
        let until = OffsetDateTime::from_unix_timestamp(fetched.svid.not_after()).ok();
        let until = until.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default();
        self.screen.line(&format!("{}  serial {}  until {until}", fetched.svid.id(), fetched.svid.serial()))?;
        if let Some(files) = &mut self.files {
            let at = files.write(&fetched)?;
            self.screen.line(&format!("written to {}", at.display()))?;
        }
        Ok(self.screen.flush()?)
    }

    fn takes_back(&mut self) -> Result<(), Failure> {
        self.files.as_mut().map_or(Ok(()), Files::remove)
    }
}

/// The way to the endpoint.
struct Asks {
    socket: PathBuf,
}

impl Asks {
    fn client(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(bonafide_proto::endpoint::channel(&self.socket))
    }

    async fn svids(&self) -> Result<tonic::Streaming<wire::X509svidResponse>, Failure> {
        let mut client = self.client();
        Ok(self.answered(client.fetch_x509svid(meant(wire::X509svidRequest {}))).await?.into_inner())
    }

    async fn token(&self, audience: Vec<String>) -> Result<String, Failure> {
        let request = meant(wire::JwtsvidRequest { audience, spiffe_id: String::new() });
        let told = self.answered(self.client().fetch_jwtsvid(request)).await?.into_inner();
        let token = told.svids.into_iter().next().map(|svid| svid.svid);
        token.ok_or_else(|| Failure::Failed(format!("{}: an answer without a token", self.socket.display())))
    }

    async fn validated(&self, audience: String, svid: String) -> Result<String, Failure> {
        let asked = meant(wire::ValidateJwtsvidRequest { audience, svid });
        match self.answered(self.client().validate_jwtsvid(asked)).await {
            Ok(told) => Ok(told.into_inner().spiffe_id),
            // That is what the endpoint calls a token that proves nothing.
            Err(Failure::BadInput(why)) => Err(Failure::Refused(why)),
            Err(other) => Err(other),
        }
    }

    async fn roots(&self) -> Result<Vec<u8>, Failure> {
        let (mut client, request) = (self.client(), meant(wire::X509BundlesRequest {}));
        let mut told = self.answered(client.fetch_x509_bundles(request)).await?.into_inner();
        let mut text = Vec::new();
        for (domain, der) in self.next(&mut told).await?.bundles {
            let unfit = |e| Failure::Failed(format!("the bundle of {} is not fit for use: {e}", printable(&domain)));
            text.extend(pem("CERTIFICATE", &concatenated(&der).map_err(unfit)?));
        }
        Ok(text)
    }

    async fn next<T>(&self, told: &mut tonic::Streaming<T>) -> Result<T, Failure> {
        let next = async { told.message().await.map(tonic::Response::new) };
        let message = self.answered(next).await?.into_inner();
        message.ok_or_else(|| Failure::Failed(format!("{}: the stream ended without a word", self.socket.display())))
    }

    async fn answered<T>(&self, asked: impl Future<Output = Result<T, Status>>) -> Result<T, Failure> {
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer.map_err(|status| self.failed(&status)),
            Err(_) => Err(Failure::Failed(format!("{}: no answer within {PATIENCE:?}", self.socket.display()))),
        }
    }

    fn failed(&self, status: &Status) -> Failure {
        let (at, said) = (self.socket.display(), printable(status.message()).into_owned());
        match status.code() {
            Code::PermissionDenied => Failure::Refused(format!("{said}; {}", Self::entitlement())),
            Code::InvalidArgument => Failure::BadInput(said),
            _ if !self.socket.exists() => Failure::Failed(format!(
                "no socket at {at}; start the node (bonafide run), or name it by --dir or --endpoint"
            )),
            Code::Unavailable => {
                Failure::Failed(format!("{at}: not now: {said}; `bonafide status` shows what is missing"))
            }
            code => Failure::Failed(format!("{at}: {code:?}: {said}")),
        }
    }

    /// What the policy would have to say.
    fn entitlement() -> String {
        let exe = std::env::current_exe().map(|exe| exe.display().to_string()).unwrap_or_default();
        let uid = rustix::process::getuid().as_raw();
        format!(
            "the policy gives this command its own identity by a [[workload]] with exe = {exe:?}, uid = {uid} and \
             workload_api = true"
        )
    }
}

/// SPIFFE_Workload_Endpoint.md §3.
fn meant<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}
