//! A daemon under test, and children that do as they are told.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bonafide_identityd::config::Config;
use bonafide_identityd::daemon::{RunError, run};
use bonafide_proto::clock::SystemClock;
use bonafide_proto::convert::Attestation;
use bonafide_proto::endpoint;
use bonafide_proto::flow::{FlowKey, NetNs, SocketRole};
use bonafide_proto::kernel::ConnectRecord;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::attestation_client::AttestationClient;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

/// A policy that nothing earns anything by.
pub(crate) const NOBODY: &str = "mode = \"observe\"\n[[workload]]\nname = \"nobody\"\nexe = \"/nowhere\"\n";

/// Long enough for a busy machine; nothing waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The configuration of a daemon without the kernel programs.
pub(crate) const BY_PROC: &str = "source = \"proc\"";

pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) client: AttestationClient<Channel>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), RunError>>,
}

impl Node {
    pub(crate) async fn start(policy: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("policy.toml"), policy).unwrap();
        Self::start_in(dir).await
    }

    /// A daemon that has its answers from there, or does not start: `kernel` or `proc`.
    pub(crate) async fn start_on(source: &str) -> Self {
        Self::start_with(NOBODY, &format!("source = \"{source}\"")).await
    }

    /// With more in its configuration than it needs.
    pub(crate) async fn start_with(policy: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("policy.toml"), policy).unwrap();
        Self::run(dir, more).await
    }

    pub(crate) async fn start_in(dir: tempfile::TempDir) -> Self {
        Self::run(dir, "").await
    }

    /// A daemon that has its policy from the authority.
    pub(crate) async fn start_published(dir: tempfile::TempDir) -> Self {
        let text = config(dir.path());
        let lines =
            text.lines().map(|line| if line.starts_with("policy ") { "policy_from = \"authority\"" } else { line });
        let text = lines.collect::<Vec<_>>().join("\n");
        Self::run_as(dir, &text).await
    }

    async fn run(dir: tempfile::TempDir, more: &str) -> Self {
        let text = format!("{}{more}\n", config(dir.path()));
        Self::run_as(dir, &text).await
    }

    async fn run_as(dir: tempfile::TempDir, config: &str) -> Self {
        let config = Config::parse(Path::new("test"), config).unwrap();
        let (stop, stopped) = oneshot::channel();
        let stopping = async {
            let _ = stopped.await;
        };
        let running = tokio::spawn(run(config, Arc::new(SystemClock), stopping));
        let socket = dir.path().join("i.sock");
        until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
        let client = AttestationClient::new(endpoint::channel(socket));
        Self { dir, client, stop: Some(stop), running }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Asks again where the answer is that something changed meanwhile: other tests make this very process fork all
    /// the time, and its children hold all its sockets until they exec.
    pub(crate) async fn flow(&self, key: FlowKey) -> Result<Attestation, AttestRefusal> {
        for _ in 0..20 {
            match self.flow_by(key, None).await {
                Err(refusal) if matches!(refusal.reason, AttestReason::GenerationGone | AttestReason::ProcessGone) => {}
                answer => return answer,
            }
        }
        self.flow_by(key, None).await
    }

    /// Once, by the kernel's record if there is one.
    pub(crate) async fn flow_by(
        &self,
        key: FlowKey,
        record: Option<ConnectRecord>,
    ) -> Result<Attestation, AttestRefusal> {
        let kernel = record.map(|record| record.to_bytes().to_vec()).unwrap_or_default();
        let request = wire::AttestFlowRequest { kernel, ..key.into() };
        self.client.clone().attest_flow(request).await.unwrap().into_inner().try_into().unwrap()
    }

    /// Asks again while the process changes: one that was just executed is still loading its libraries.
    pub(crate) async fn process(&self, pid: u32) -> Result<Attestation, AttestRefusal> {
        for _ in 0..20 {
            match self.process_once(pid).await {
                Err(refusal) if refusal.reason == AttestReason::GenerationGone => {}
                answer => return answer,
            }
        }
        self.process_once(pid).await
    }

    /// As it is now.
    pub(crate) async fn process_once(&self, pid: u32) -> Result<Attestation, AttestRefusal> {
        self.asked(wire::AttestProcessRequest { pid, ..Default::default() }).await.unwrap()
    }

    /// An operator's question, as it is.
    pub(crate) async fn asked(
        &self,
        question: wire::AttestProcessRequest,
    ) -> Result<Result<Attestation, AttestRefusal>, tonic::Status> {
        let answer = self.client.clone().attest_process(question).await?;
        Ok(answer.into_inner().try_into().unwrap())
    }

    /// As [`Node::flow`], about whoever has a socket with this local address.
    pub(crate) async fn socket(&self, local: SocketAddr) -> Result<Attestation, AttestRefusal> {
        let request = wire::AttestProcessRequest { socket: Some(local.into()), ..Default::default() };
        let ask = async || self.client.clone().attest_process(request.clone()).await.unwrap().into_inner();
        for _ in 0..20 {
            match ask().await.try_into().unwrap() {
                Err(AttestRefusal { reason: AttestReason::GenerationGone | AttestReason::ProcessGone, .. }) => {}
                answer => return answer,
            }
        }
        ask().await.try_into().unwrap()
    }

    pub(crate) async fn refusal(&self, key: FlowKey) -> AttestReason {
        self.flow(key).await.unwrap_err().reason
    }

    pub(crate) async fn status(&self) -> wire::AttestationStatus {
        self.client.clone().status(wire::StatusRequest {}).await.unwrap().into_inner()
    }

    pub(crate) async fn stop(self) {
        self.ended().await;
    }

    /// Another daemon in the place of this one.
    pub(crate) async fn restart(self) -> Self {
        Self::start_in(self.stopped().await).await
    }

    async fn ended(mut self) -> tempfile::TempDir {
        self.stop.take().unwrap().send(()).unwrap();
        self.running.await.unwrap().unwrap();
        assert!(!self.dir.path().join("i.sock").exists());
        self.dir
    }

    /// Stops it; what it keeps is on disk, and nobody's.
    pub(crate) async fn stopped(self) -> tempfile::TempDir {
        let dir = self.ended().await;
        // Its process goes on here, with connections that end a moment later.
        for store in ["digests", "executions"] {
            let file = dir.path().join(store).join("db");
            until(|| std::fs::File::open(&file).map_or(true, |file| rustix::fs::flock(file, EXCLUSIVE).is_ok())).await;
        }
        dir
    }
}

const EXCLUSIVE: rustix::fs::FlockOperation = rustix::fs::FlockOperation::NonBlockingLockExclusive;

pub(crate) fn config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "node = \"a\"\nsocket = \"{dir}/i.sock\"\nca_socket = \"{dir}/ca.sock\"\npolicy = \"{dir}/policy.toml\"\nstate = \"{dir}\"\ncallers = []\n"
    )
}

pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it never came true");
}

pub(crate) fn connector(local: SocketAddr, remote: SocketAddr) -> FlowKey {
    FlowKey { netns: own_netns(), local, remote, role: SocketRole::Connector }
}

/// The listener at `local`, asked for a connection from a port that nobody uses.
pub(crate) fn listener(local: SocketAddr) -> FlowKey {
    let remote = SocketAddr::new(local.ip(), 1);
    FlowKey { netns: own_netns(), local, remote, role: SocketRole::Listener }
}

pub(crate) fn own_netns() -> NetNs {
    NetNs(std::fs::metadata("/proc/self/ns/net").unwrap().ino())
}

/// A child that is killed, and waited for, when the test is over.
pub(crate) struct Program {
    child: Child,
    lines: Option<BufReader<std::process::ChildStdout>>,
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut spawned = command.stdout(Stdio::piped()).spawn();
        for _ in 0..100 {
            match &spawned {
                // Another test's child, not yet executed, has what was just written open for writing.
                Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    std::thread::sleep(Duration::from_millis(1));
                    spawned = command.spawn();
                }
                _ => break,
            }
        }
        let mut child = spawned.unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let lines = child.stdout.take().map(BufReader::new);
        Self { child, lines }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it reads from, if that was piped.
    pub(crate) fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// What it says next: every program that is asked has something to say.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.lines.as_mut().unwrap().read_line(&mut line).unwrap();
        assert!(read > 0, "the program ended without a word");
        line.trim_end().to_owned()
    }

    /// Says something to a program that was started with a pipe for it.
    pub(crate) fn tell(&mut self, line: &str) {
        use std::io::Write as _;
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Its local address, which it says once it is connected or listens.
    pub(crate) fn address(&mut self) -> SocketAddr {
        self.line().parse().unwrap()
    }

    /// Waits until it runs that file.
    pub(crate) async fn runs(&self, exe: &Path) {
        let link = format!("/proc/{}/exe", self.pid());
        until(|| std::fs::read_link(&link).is_ok_and(|found| found == exe)).await;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first of these paths that exists; a test that needs it fails without it.
pub(crate) fn needed(paths: &[&str]) -> PathBuf {
    match paths.iter().find(|path| Path::new(path).exists()) {
        Some(path) => std::fs::canonicalize(path).unwrap(),
        None => panic!("these tests need one of {paths:?}; install the package that has it"),
    }
}

pub(crate) fn python() -> PathBuf {
    needed(&["/usr/bin/python3", "/usr/local/bin/python3"])
}

pub(crate) fn sleep() -> PathBuf {
    needed(&["/usr/bin/sleep", "/bin/sleep"])
}

/// Python that connects to the address in its last argument, says its own address, and waits.
pub(crate) const CONNECTS: &str = r"
import socket, sys, time
host, port = sys.argv[-1].rsplit(':', 1)
s = socket.create_connection((host.strip('[]'), int(port)))
host, port = s.getsockname()[:2]
print(f'[{host}]:{port}' if ':' in host else f'{host}:{port}', flush=True)
time.sleep(1000)
";

pub(crate) fn own_exe() -> String {
    std::env::current_exe().unwrap().to_str().unwrap().to_owned()
}

pub(crate) fn digest_of(path: impl AsRef<Path>) -> bonafide_proto::fingerprint::Digest {
    bonafide_proto::fingerprint::Digest::of(&std::fs::read(path).unwrap())
}
