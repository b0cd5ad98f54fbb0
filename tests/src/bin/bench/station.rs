//! A host with identityd alone, and the enforcer's side of it in this process: what attribution takes, nothing else.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_enforcer::identity::Identity;
use bonafide_proto::clock::SystemClock;
use bonafide_proto::convert::Attestation;
use bonafide_proto::endpoint::channel;
use bonafide_proto::flow::{FlowKey, NetNs, SocketRole};
use bonafide_proto::refusal::AttestRefusal;
use bonafide_proto::wire::node::WatchFlowsRequest;
use bonafide_proto::wire::node::attestation_client::AttestationClient;
use bonafide_tests::netns::Netns;
use bonafide_tests::node::binaries;
use bonafide_tests::process::{Program, must_run};
use bonafide_tests::wait::wait_until;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What connects.
const CONNECTOR: &str = include_str!("connector.c");
/// What connects once and is gone.
const INSTANT: &str = include_str!("instant.c");
/// How long identityd may take to be ready.
const READY: Duration = Duration::from_secs(20);
/// When identityd keeps the digest of a file that was written just now: until then each new process costs hashing.
const SETTLES: Duration = Duration::from_secs(62);

/// Each earns a workload that is called `bench/` and its name.
const PROGRAMS: [&str; 4] = ["a", "b", "small-a", "small-b"];

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The kernel programs.
    Kernel,
    /// sock_diag and `/proc`.
    Proc,
}

impl Source {
    /// As configuration files write it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Proc => "proc",
        }
    }
}

/// A network namespace and the programs that connect in it.
#[derive(Debug)]
pub(crate) struct Station {
    netns: Netns,
    dir: tempfile::TempDir,
    built: Instant,
}

impl Station {
    /// A new one. Its programs are `a` and `b`, of different digests, which earn `bench/a` and `bench/b`; and `small-a`
    /// and `small-b`, which earn `bench/small-a` and `bench/small-b`.
    pub(crate) fn build(name: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|e| format!("no directory: {e}"))?;
        let netns = Netns::create(&format!("bench-{name}-{}", std::process::id()));
        let mut station = Self { netns, dir, built: Instant::now() };
        let source = station.file("connector.c");
        std::fs::write(&source, CONNECTOR).map_err(|e| format!("{}: {e}", source.display()))?;
        for program in ["a", "b"] {
            let define = format!("-DPROGRAM_{program}");
            let (note, file) = (format!("-Wl,--build-id=0x{}", hex(program)), station.file(program));
            must_run(Command::new("gcc").args(["-O2", "-static", &define, &note, "-o"]).arg(file).arg(&source));
        }
        station.compile_small()?;
        let workload = |name: &str| {
            format!("[[workload]]\nname = \"bench/{name}\"\nexe = {:?}\n", station.file(name).display().to_string())
        };
        let policy = format!("mode = \"enforce\"\nmesh = [\"127.0.0.0/8\"]\n{}", PROGRAMS.map(workload).concat());
        let file = station.file("policy.toml");
        std::fs::write(&file, policy).map_err(|e| format!("{}: {e}", file.display()))?;
        station.built = Instant::now();
        Ok(station)
    }

    /// By the compiler of the kernel programs.
    fn compile_small(&self) -> Result<(), String> {
        let source = self.file("instant.c");
        std::fs::write(&source, INSTANT).map_err(|e| format!("{}: {e}", source.display()))?;
        for (program, tag) in [("small-a", "-DTAG='A'"), ("small-b", "-DTAG='B'")] {
            let mut clang = Command::new("clang");
            clang.args(["-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", tag, "-o"]);
            must_run(clang.arg(self.file(program)).arg(&source));
        }
        Ok(())
    }

    /// Waits until its programs are as old as those that are in use.
    pub(crate) async fn settled(&self) {
        tokio::time::sleep(SETTLES.saturating_sub(self.built.elapsed())).await;
    }

    /// A file of its own.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program of its own, not started yet.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = self.netns.command(&self.file(program).display().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// identityd, ready.
    pub(crate) fn identityd(&self, source: Source) -> Program {
        let at = |name: &str| self.file(name).display().to_string();
        let (socket, log) = (self.socket(source), self.file(&format!("{}.log", source.as_str())));
        let config = format!(
            "node = \"bench\"\nsocket = {:?}\nca_socket = {:?}\npolicy = {:?}\nsource = {:?}\nlog = \"warn\"\n",
            socket.display().to_string(),
            at("ca.sock"),
            at("policy.toml"),
            source.as_str()
        );
        let file = self.file("identityd.toml");
        bonafide_tests::process::must_write(&file, &config);
        // That of one that was killed would look like this one's.
        let _ = std::fs::remove_file(&socket);
        let binary = binaries().join("bonafide-identityd").display().to_string();
        let program = Program::start("identityd", self.netns.command(&binary).arg("--config").arg(&file), &log);
        wait_until("identityd to be ready", READY, || socket.exists());
        program
    }

    /// What the enforcer has of identityd, and a listener where it accepts.
    pub(crate) fn ear(&self, source: Source, on: SocketAddr) -> Result<Ear, String> {
        let identity = Identity::connect(self.socket(source), Arc::new(SystemClock));
        let listener = self.netns.within(|| std::net::TcpListener::bind(on)).map_err(|e| format!("{on}: {e}"))?;
        listener.set_nonblocking(true).map_err(|e| e.to_string())?;
        let listener = TcpListener::from_std(listener).map_err(|e| e.to_string())?;
        let netns =
            std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(self.netns.path()).map_err(|e| e.to_string())?);
        Ok(Ear { identity, listener, netns: NetNs(netns) })
    }

    /// Has identityd tell of flows: of datagrams, as an enforcer that captures asks for, and of connections, as one that
    /// observes does.
    pub(crate) async fn told_of_flows(&self, connections: bool) -> Result<Told, String> {
        let mut identityd = AttestationClient::new(channel(self.socket(Source::Kernel)));
        let request = WatchFlowsRequest { connections, quiet: false };
        let mut flows = identityd.watch_flows(request).await.map_err(|e| e.to_string())?.into_inner();
        let mut told = JoinSet::new();
        told.spawn(async move { while let Ok(Some(_)) = flows.message().await {} });
        Ok(Told { _told: told })
    }

    /// Processes of the first program that do nothing, until they are dropped.
    pub(crate) fn processes(&self, count: usize) -> Result<Idlers, String> {
        let mut idlers = Idlers(Vec::new());
        idlers.start(self.command("a").args(["processes", &count.to_string()]))?;
        Ok(idlers)
    }

    /// The same, each with a process ID that is known here.
    pub(crate) fn idlers(&self, count: usize) -> Result<Idlers, String> {
        let mut idlers = Idlers(Vec::new());
        for _ in 0..count {
            idlers.start(self.command("a").args(["processes", "0"]))?;
        }
        Ok(idlers)
    }

    /// Open sockets that do nothing, until they are dropped: connected to each other, half of them by either family.
    pub(crate) fn sockets(&self, mut count: usize) -> Result<Idlers, String> {
        let mut holders = Idlers(Vec::new());
        for ip in ["127.0.0.1", "::1"].into_iter().cycle() {
            if count == 0 {
                break;
            }
            let some = count.min(SOCKETS_EACH);
            holders.start(self.command("a").args(["sockets", ip, &some.to_string()]))?;
            count -= some;
        }
        Ok(holders)
    }

    fn socket(&self, source: Source) -> PathBuf {
        self.file(&format!("{}.sock", source.as_str()))
    }
}

/// Sockets that one process opens: below the usual limit of open files.
const SOCKETS_EACH: usize = 900;

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Flows are told of as long as it lives.
#[derive(Debug)]
pub(crate) struct Told {
    _told: JoinSet<()>,
}

/// Processes that end when this is dropped.
#[derive(Debug)]
pub(crate) struct Idlers(Vec<Child>);

impl Idlers {
    /// Starts one, and waits until it is ready.
    fn start(&mut self, command: &mut Command) -> Result<(), String> {
        let mut child = command.stdin(Stdio::piped()).spawn().map_err(|e| e.to_string())?;
        let mut ready = [0; 6];
        let said = child.stdout.as_mut().map(|out| std::io::Read::read_exact(out, &mut ready));
        self.0.push(child);
        match said {
            Some(Ok(())) => Ok(()),
            _ => Err(format!("{command:?} is not ready")),
        }
    }

    /// Their process IDs.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.0.iter().map(Child::id).collect()
    }
}

impl Drop for Idlers {
    fn drop(&mut self) {
        // Their standard input ends.
        self.0.iter_mut().for_each(|child| drop(child.stdin.take()));
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

/// Accepts, and asks who connected.
#[derive(Debug)]
pub(crate) struct Ear {
    identity: Identity,
    listener: TcpListener,
    netns: NetNs,
}

impl Ear {
    /// Where it listens.
    pub(crate) fn address(&self) -> Result<SocketAddr, String> {
        self.listener.local_addr().map_err(|e| e.to_string())
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> Result<TcpStream, String> {
        self.listener.accept().await.map(|(stream, _)| stream).map_err(|e| format!("accept: {e}"))
    }

    /// Who connected it? As the enforcer asks.
    pub(crate) async fn attribute(&self, stream: &TcpStream) -> Result<Arc<Attestation>, AttestRefusal> {
        let gone = |e: std::io::Error| {
            AttestRefusal::new(bonafide_proto::refusal::AttestReason::NoSocket, format!("gone before it was seen: {e}"))
        };
        let (local, remote) = (stream.peer_addr().map_err(gone)?, stream.local_addr().map_err(gone)?);
        let key = FlowKey { netns: self.netns, local, remote, role: SocketRole::Connector };
        self.identity.attest_accepted(stream, key).await.map(|attested| attested.attestation)
    }

    /// Waits until identityd has a policy, and told this side that it will tell what lapses.
    pub(crate) async fn ready(&self, station: &Station) -> Result<(), String> {
        let address = self.address()?;
        let deadline = tokio::time::Instant::now() + READY;
        loop {
            let mut child = connecting(station, "a", "hold", address, "1").spawn().map_err(|e| e.to_string())?;
            let answer = self.attribute(&self.accept().await?).await;
            let _ = child.wait();
            match answer {
                Ok(_) => return Ok(()),
                Err(refusal) if tokio::time::Instant::now() > deadline => return Err(format!("not ready: {refusal}")),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// One of the station's programs at work on this address.
pub(crate) fn connecting(station: &Station, program: &str, what: &str, to: SocketAddr, count: &str) -> Command {
    let mut command = station.command(program);
    command.args([what, &to.ip().to_string(), &to.port().to_string(), count]);
    command
}

/// A process's own memory (`RssAnon`), in bytes, and how many files it has open.
pub(crate) fn size(pid: u32) -> std::io::Result<(f64, usize)> {
    let process = Path::new("/proc").join(pid.to_string());
    let status = std::fs::read_to_string(process.join("status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok());
    let kib: f64 = kib.ok_or_else(|| std::io::Error::other("its status has no RssAnon"))?;
    Ok((kib * 1024.0, std::fs::read_dir(process.join("fd"))?.count()))
}
