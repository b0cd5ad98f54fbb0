//! The authority: the program that is shipped, in a network namespace, with its store on the disk.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bonafide_proto::endpoint;
use bonafide_proto::token::JoinToken;
use bonafide_proto::wire::authority as wire;
use bonafide_proto::wire::authority::admission_client::AdmissionClient;
use bonafide_tests::netns::Netns;
use bonafide_tests::node::binaries;
use bonafide_tests::process::{Program, must_write};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::burden::Burden;

/// Where nodes reach it.
pub(super) const PORT: u16 = 8443;
/// How long it may take to start.
const READY: Duration = Duration::from_secs(30);
/// Tokens that are asked for at once.
const TOKENS_AT_ONCE: usize = 32;

/// An authority, and where it is.
pub(super) struct Seat {
    // In the order in which they have to go.
    program: Mutex<Program>,
    pub(super) netns: Netns,
    dir: TempDir,
}

impl Seat {
    pub(super) fn start(netns: Netns) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|e| format!("no directory: {e}"))?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "role = \"root\"\nstate = {:?}\nlog = \"warn\"\n[root]\ntrust_domain = \"bench.example\"\n\
             listen = [\"[::]:{PORT}\"]\nadmin_socket = {:?}\n",
            at("state"),
            at("authority.sock")
        );
        must_write(&dir.path().join("ca.toml"), &config);
        let program = Mutex::new(run(&netns, &dir));
        Ok(Self { program, netns, dir })
    }

    fn program(&self) -> MutexGuard<'_, Program> {
        self.program.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("authority.sock")
    }

    pub(super) fn admin(&self) -> AdmissionClient<Channel> {
        AdmissionClient::new(endpoint::channel(self.socket()))
    }

    pub(super) fn burden(&self) -> Result<Burden, String> {
        Burden::of(self.program().pid())
    }

    pub(super) fn last_words(&self) -> String {
        let words = self.program().output();
        words.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
    }

    /// Answers when it does; what it has cost by then.
    pub(super) async fn ready(&self) -> Result<Burden, String> {
        let began = Instant::now();
        while let Err(status) = self.admin().trust_root(wire::TrustRootRequest {}).await {
            if began.elapsed() > READY {
                return Err(format!("the authority does not answer: {}", status.message()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.burden()
    }

    /// Killed, and started again.
    pub(super) async fn restart(&self) -> Result<Burden, String> {
        {
            let mut program = self.program();
            program.kill();
            *program = run(&self.netns, &self.dir);
        }
        self.ready().await
    }

    /// One for each node.
    pub(super) async fn tokens(&self, nodes: usize) -> Result<Vec<JoinToken>, String> {
        self.ready().await?;
        let (admin, mut asking) = (self.admin(), JoinSet::new());
        let mut tokens = Vec::with_capacity(nodes);
        for node in 0..nodes {
            if asking.len() >= TOKENS_AT_ONCE {
                tokens.extend(asking.join_next().await);
            }
            asking.spawn(token(admin.clone(), node));
        }
        tokens.extend(asking.join_all().await.into_iter().map(Ok));
        let tokens = tokens.into_iter().map(|token| token.map_err(|e| e.to_string())?);
        let mut tokens = tokens.collect::<Result<Vec<_>, _>>()?;
        tokens.sort_by_key(|(node, _)| *node);
        Ok(tokens.into_iter().map(|(_, token)| token).collect())
    }
}

async fn token(mut admin: AdmissionClient<Channel>, node: usize) -> Result<(usize, JoinToken), String> {
    let grant = Some(wire::Grant { workloads: vec![format!("bench/{node}/*")] });
    let request =
        wire::CreateTokenRequest { node: super::fleet::name(node), ttl_seconds: 600, grant, bios_uuid: String::new() };
    let made = admin.create_token(request).await.map_err(|e| format!("no token: {}", e.message()))?;
    Ok((node, made.into_inner().token.parse().map_err(|e| format!("the token: {e}"))?))
}

/// By `nsenter`, which executes it in place.
fn run(netns: &Netns, dir: &TempDir) -> Program {
    let binary = binaries().join("bonafide-ca").display().to_string();
    let mut command: Command = netns.command(&binary);
    Program::start("authority", command.arg("--config").arg(dir.path().join("ca.toml")), &dir.path().join("log"))
}
