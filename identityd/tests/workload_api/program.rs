//! Programs that ask: this test binary, executed again, told by its standard input what to do. What it is told by the
//! endpoint it says in lines of JSON.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bonafide_proto::wire::workload_endpoint as wire;
use bonafide_proto::wire::workload_endpoint::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::endpoint::PATIENCE;

/// Stands before what it says, among the words of the test harness.
const MARK: &str = "> ";

pub(crate) fn own_exe() -> String {
    std::env::current_exe().unwrap().to_str().unwrap().to_owned()
}

/// A program that asks; killed when dropped.
pub(crate) struct Program {
    child: Child,
    orders: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
}

impl Program {
    pub(crate) fn start(socket: &Path) -> Self {
        Self::run(Command::new(own_exe()), socket)
    }

    /// As that user.
    pub(crate) fn start_as(uid: u32, socket: &Path) -> Self {
        let mut command = Command::new(own_exe());
        command.uid(uid);
        Self::run(command, socket)
    }

    fn run(mut command: Command, socket: &Path) -> Self {
        command
            .args(["program::does_as_it_is_told", "--exact", "--nocapture"])
            .env("ASKS_AT", socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (orders, said) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, orders, said: BufReader::new(said).lines() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub(crate) async fn tell(&mut self, order: &str) {
        self.orders.write_all(format!("{order}\n").as_bytes()).await.unwrap();
    }

    /// What it says next.
    pub(crate) async fn says(&mut self) -> Value {
        let next = async {
            loop {
                let line = self.said.next_line().await.unwrap().expect("the program ended without a word");
                // The harness does not end its own line.
                if let Some((_, said)) = line.split_once(MARK) {
                    return serde_json::from_str(said).unwrap();
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("it says nothing")
    }

    /// What it says when told that.
    pub(crate) async fn asked(&mut self, order: &str) -> Value {
        self.tell(order).await;
        self.says().await
    }

    /// Whether it said something that is still to be heard.
    pub(crate) async fn is_silent_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.said.next_line()).await.is_err()
    }
}

/// The error that an answer is.
pub(crate) fn refusal(said: &Value) -> (&str, &str) {
    (said["code"].as_str().unwrap_or_else(|| panic!("{said}")), said["message"].as_str().unwrap())
}

pub(crate) fn bytes(said: &Value) -> Vec<u8> {
    hex::decode(said.as_str().unwrap_or_else(|| panic!("{said}"))).unwrap()
}

/// The child's part. The harness, too, runs it: nobody told it where to ask then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "the child of a test is told so where to ask")]
async fn does_as_it_is_told() {
    let Ok(socket) = std::env::var("ASKS_AT") else { return };
    let connection = match std::env::var("HAS") {
        Ok(number) => {
            say(&json!({ "executed": true }));
            inherited(number)
        }
        Err(_) => UnixStream::connect(&socket).unwrap(),
    };
    // One that children inherit.
    let spare = rustix::io::dup(&connection).unwrap();
    let mut asks = Asks { client: client(connection), _spare: spare, lent: Vec::new() };
    let mut orders = std::io::stdin().lines();
    while let Some(order) = tokio::task::block_in_place(|| orders.next()) {
        let order = order.unwrap();
        asks.does(order.split_whitespace().collect::<Vec<_>>().as_slice(), &socket).await;
    }
}

/// The descriptor of that number, opened anew: sockets cannot be, so it is taken from the table of open files.
fn inherited(number: String) -> UnixStream {
    use std::os::fd::AsFd as _;
    let own = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()).unwrap();
    let number = number.parse().unwrap();
    rustix::process::pidfd_getfd(own.as_fd(), number, rustix::process::PidfdGetfdFlags::empty()).unwrap().into()
}

fn say(what: &Value) {
    println!("{MARK}{what}");
}

struct Asks {
    client: SpiffeWorkloadApiClient<Channel>,
    _spare: OwnedFd,
    lent: Vec<std::process::Child>,
}

impl Asks {
    async fn does(&mut self, order: &[&str], socket: &str) {
        match order {
            ["svids"] => self.svids(&["true"]),
            ["svids", headers @ ..] => self.svids(headers),
            ["bundles"] => self.bundles(),
            ["wit"] => {
                let asked = self.client.fetch_witsvid(meant(wire::WitsvidRequest {}, &["true"])).await;
                say(&error("wit", &asked.map(drop).unwrap_err()));
                let asked = self.client.fetch_wit_bundles(meant(wire::WitBundlesRequest {}, &["true"])).await;
                say(&error("wit", &asked.map(drop).unwrap_err()));
            }
            ["jwt", audiences @ ..] => self.jwt(audiences, "").await,
            ["jwt-as", id, audiences @ ..] => self.jwt(audiences, id).await,
            ["jwt-bundles"] => self.jwt_bundles(),
            ["validate", audience, token] => self.validate(audience, token).await,
            ["lend"] => {
                self.lent.push(std::process::Command::new("sleep").arg("1000").spawn().unwrap());
                say(&json!({ "lent": self.lent.last().unwrap().id() }));
            }
            ["exec"] => self.exec(socket),
            other => panic!("{other:?} is no order"),
        }
    }

    fn svids(&self, headers: &[&str]) {
        let (mut client, request) = (self.client.clone(), meant(wire::X509svidRequest {}, headers));
        tokio::spawn(async move {
            let mut stream = match client.fetch_x509svid(request).await {
                Ok(stream) => stream.into_inner(),
                Err(status) => return say(&error("svids", &status)),
            };
            loop {
                match stream.message().await {
                    Ok(Some(told)) => say(&json!({
                        "of": "svids",
                        "federated": told.federated_bundles.len(),
                        "svids": told.svids.iter().map(svid).collect::<Vec<_>>(),
                    })),
                    Ok(None) => return say(&json!({ "of": "svids", "over": true })),
                    Err(status) => return say(&error("svids", &status)),
                }
            }
        });
    }

    fn bundles(&self) {
        let mut client = self.client.clone();
        tokio::spawn(async move {
            let mut stream = match client.fetch_x509_bundles(meant(wire::X509BundlesRequest {}, &["true"])).await {
                Ok(stream) => stream.into_inner(),
                Err(status) => return say(&error("bundles", &status)),
            };
            loop {
                match stream.message().await {
                    Ok(Some(told)) => {
                        let bundles: serde_json::Map<String, Value> =
                            told.bundles.into_iter().map(|(id, der)| (id, hex::encode(der).into())).collect();
                        say(&json!({ "of": "bundles", "bundles": bundles }));
                    }
                    Ok(None) => return say(&json!({ "of": "bundles", "over": true })),
                    Err(status) => return say(&error("bundles", &status)),
                }
            }
        });
    }

    async fn jwt(&mut self, audiences: &[&str], id: &str) {
        let audience = audiences.iter().map(|audience| (*audience).replace("EMPTY", "")).collect();
        let request = wire::JwtsvidRequest { audience, spiffe_id: id.to_owned() };
        match self.client.fetch_jwtsvid(meant(request, &["true"])).await {
            Ok(told) => {
                let svids = told.into_inner().svids;
                let svids: Vec<Value> =
                    svids.iter().map(|svid| json!({ "id": svid.spiffe_id, "token": svid.svid })).collect();
                say(&json!({ "of": "jwt", "svids": svids }));
            }
            Err(status) => say(&error("jwt", &status)),
        }
    }

    async fn validate(&mut self, audience: &str, token: &str) {
        let (audience, svid) = (audience.replace("EMPTY", ""), token.replace("EMPTY", ""));
        match self.client.validate_jwtsvid(meant(wire::ValidateJwtsvidRequest { audience, svid }, &["true"])).await {
            Ok(told) => {
                let told = told.into_inner();
                let claims: Vec<String> = told.claims.unwrap().fields.into_keys().collect();
                say(&json!({ "of": "validate", "id": told.spiffe_id, "claims": claims }));
            }
            Err(status) => say(&error("validate", &status)),
        }
    }

    fn jwt_bundles(&self) {
        let mut client = self.client.clone();
        tokio::spawn(async move {
            let asked = client.fetch_jwt_bundles(meant(wire::JwtBundlesRequest {}, &["true"])).await;
            let mut stream = match asked {
                Ok(stream) => stream.into_inner(),
                Err(status) => return say(&error("jwt-bundles", &status)),
            };
            while let Ok(Some(told)) = stream.message().await {
                let bundles: serde_json::Map<String, Value> =
                    told.bundles.into_iter().map(|(id, jwks)| (id, serde_json::from_slice(&jwks).unwrap())).collect();
                say(&json!({ "of": "jwt-bundles", "bundles": bundles }));
            }
        });
    }

    /// Connects, and once that was accepted executes itself with the connection.
    fn exec(&self, socket: &str) {
        use std::os::unix::process::CommandExt as _;
        let connection = UnixStream::connect(socket).unwrap();
        // Whoever accepts a connection speaks first.
        let mut first = [0; 1];
        rustix::net::recv(&connection, &mut first, rustix::net::RecvFlags::PEEK).unwrap();
        let kept = rustix::io::dup(&connection).unwrap();
        let mut again = std::process::Command::new(own_exe());
        again.args(std::env::args_os().skip(1)).env("HAS", kept.as_raw_fd().to_string());
        panic!("{}", again.exec());
    }
}

fn svid(told: &wire::X509svid) -> Value {
    json!({
        "id": told.spiffe_id,
        "chain": hex::encode(&told.x509_svid),
        "key": hex::encode(&told.x509_svid_key),
        "bundle": hex::encode(&told.bundle),
        "hint": told.hint,
    })
}

fn error(of: &str, status: &Status) -> Value {
    json!({ "of": of, "code": format!("{:?}", status.code()), "message": status.message() })
}

/// A request with the header, as often and as it is said.
fn meant<T>(request: T, headers: &[&str]) -> Request<T> {
    let mut request = Request::new(request);
    for header in headers.iter().filter(|header| **header != "none") {
        request.metadata_mut().append("workload.spiffe.io", MetadataValue::try_from(*header).unwrap());
    }
    request
}

/// A client on this connection alone.
fn client(connection: UnixStream) -> SpiffeWorkloadApiClient<Channel> {
    connection.set_nonblocking(true).unwrap();
    let connection = std::sync::Mutex::new(Some(connection));
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let connection = connection.lock().unwrap().take();
        async move {
            let connection = connection.ok_or(std::io::ErrorKind::NotConnected)?;
            tokio::net::UnixStream::from_std(connection).map(TokioIo::new)
        }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
    SpiffeWorkloadApiClient::new(channel)
}
