//! The daemon as a process of its own, which is stopped while things happen, or may not load the kernel programs.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bonafide_proto::convert::Attestation;
use bonafide_proto::endpoint;
use bonafide_proto::fingerprint::Evidence;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::taint::Taint;
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::attestation_client::AttestationClient;
use bonafide_proto::wire::node::lapse::Of;
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Channel;

use crate::attacks::compile_odd;
use crate::connectors::Obedient;
use crate::node::{NOBODY, PATIENCE, Program, config, connector, digest_of, needed, python, sleep, until};
use crate::records::Records;
use crate::strangers::{GOES_ON, hand};

/// `bonafide-identityd`, and what it says.
struct Daemon {
    dir: tempfile::TempDir,
    program: Program,
    client: AttestationClient<Channel>,
}

impl Daemon {
    async fn start(source: &str) -> Self {
        Self::run(&mut Command::new(identityd()), source).await
    }

    /// By this command, which becomes the daemon.
    async fn run(command: &mut Command, source: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("policy.toml"), NOBODY).unwrap();
        let text = format!("{}source = \"{source}\"\n", config(dir.path()));
        fs::write(dir.path().join("identityd.toml"), text).unwrap();
        let said = fs::File::create(dir.path().join("said")).unwrap();
        command.arg("--config").arg(dir.path().join("identityd.toml")).stderr(said);
        let program = Program::start(command);
        let socket = dir.path().join("i.sock");
        until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
        Self { client: AttestationClient::new(endpoint::channel(socket)), dir, program }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.program.pid()).unwrap()).unwrap(), signal).unwrap();
    }

    /// What happens while nobody looks.
    async fn meanwhile<T>(&self, happens: impl AsyncFnOnce() -> T) -> T {
        self.signal(Signal::STOP);
        let status = format!("/proc/{}/stat", self.program.pid());
        until(|| fs::read_to_string(&status).unwrap().contains(") T ")).await;
        let result = happens().await;
        self.signal(Signal::CONT);
        result
    }

    async fn process(&self, pid: u32) -> Result<Attestation, AttestRefusal> {
        let request = wire::AttestProcessRequest { pid, ..Default::default() };
        self.client.clone().attest_process(request).await.unwrap().into_inner().try_into().unwrap()
    }

    /// Who connected this accepted socket.
    async fn connector(&self, accepted: &TcpStream) -> Result<Attestation, AttestRefusal> {
        let record = Records::at(&self.path("i.sock.map")).get(accepted).unwrap();
        let key = connector(accepted.peer_addr().unwrap(), accepted.local_addr().unwrap());
        let request = wire::AttestFlowRequest { kernel: record.to_bytes().to_vec(), ..key.into() };
        self.client.clone().attest_flow(request).await.unwrap().into_inner().try_into().unwrap()
    }
}

fn identityd() -> &'static str {
    env!("CARGO_BIN_EXE_bonafide-identityd")
}

/// Started without what loading the programs takes, it says so once, and answers from elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn programs_that_the_kernel_refuses_are_told_of_once_and_done_without() {
    let mut command = Command::new(needed(&["/usr/bin/setpriv"]));
    let daemon = Daemon::run(command.args(["--bounding-set=-bpf,-perfmon,-sys_admin"]).arg(identityd()), "auto").await;
    let status = daemon.client.clone().status(wire::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.source, "proc");
    assert!(status.source_reason.contains("takes CAP_BPF"), "{}", status.source_reason);
    let program = Program::start(Command::new(sleep()).arg("1000"));
    program.runs(&sleep()).await;
    for _ in 0..3 {
        assert_eq!(daemon.process(program.pid()).await.unwrap().source, "proc");
    }
    let said = fs::read_to_string(daemon.path("said")).unwrap();
    assert_eq!(said.matches("without the kernel programs").count(), 1, "{said}");
    assert_eq!(said.matches("CAP_BPF").count(), 1, "{said}");
    assert!(!daemon.path("i.sock.map").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_replaced_before_it_is_hashed_is_what_was_executed() {
    let daemon = Daemon::start("kernel").await;
    let app = daemon.path("app");
    fs::copy(sleep(), &app).unwrap();
    let program = daemon
        .meanwhile(async || {
            let program = Program::start(Command::new(&app).arg("1000"));
            program.runs(&app).await;
            fs::copy(python(), app.with_extension("new")).unwrap();
            fs::rename(app.with_extension("new"), &app).unwrap();
            program
        })
        .await;
    let fingerprint = daemon.process(program.pid()).await.unwrap().fingerprint;
    assert_eq!(fingerprint.exe.digest, digest_of(sleep()));
    assert!(fingerprint.taints.contains(&Taint::Deleted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_as_it_was_executed_when_it_is_hashed_is_refused() {
    let daemon = Daemon::start("kernel").await;
    let app = daemon.path("app");
    fs::copy(needed(&["/bin/sh"]), &app).unwrap();
    let program = daemon
        .meanwhile(async || {
            // Its link in /proc leads there a moment before it is executed.
            let mut program =
                Program::start(Command::new(&app).args(["-c", "echo runs; read -r _"]).stdin(Stdio::piped()));
            assert_eq!(program.line(), "runs");
            // Kernels that let nobody write what is executed still let its times be set.
            match fs::File::options().write(true).open(&app) {
                Ok(mut file) => std::io::Write::write_all(&mut file, b"?").unwrap(),
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ExecutableFileBusy),
            }
            fs::File::open(&app).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
            program
        })
        .await;
    assert_eq!(daemon.process(program.pid()).await.unwrap_err().reason, AttestReason::ExeReplaced);
}

/// Nobody can tell what an interpreter has read of a script that is another one now.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_written_between_its_reading_and_our_look_is_no_evidence() {
    let daemon = Daemon::start("kernel").await;
    let script = daemon.path("app.py");
    // By more than the clock of file systems may be behind.
    fs::write(&script, "import time; time.sleep(0.05); print('runs', flush=True); time.sleep(1000)\n").unwrap();
    let program = daemon
        .meanwhile(async || {
            let mut program = Program::start(Command::new(python()).arg(&script));
            assert_eq!(program.line(), "runs");
            fs::write(&script, "print('never read')\n").unwrap();
            program
        })
        .await;
    let seen = daemon.process(program.pid()).await.unwrap().fingerprint.script;
    let Evidence::Absent(why) = seen else { panic!("{seen:?}") };
    assert!(why.contains("restart the process"), "{why}");
}

/// More happens than there is room for: that is told, and whoever used a connection meanwhile is told of again.
#[tokio::test(flavor = "multi_thread")]
async fn a_use_of_a_connection_among_lost_events_is_told_of_again() {
    /// More than 1 MiB has room for.
    const ENDS: &str = "9000";
    let daemon = Daemon::start("kernel").await;
    let odd = compile_odd(daemon.dir.path());
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = server.local_addr().unwrap();
    let mut program = Obedient::dial(&mut Command::new(python()), remote);
    program.does("s = socket.create_connection(server)");
    let (accepted, local) = server.accept().unwrap();
    daemon.connector(&accepted).await.unwrap();
    let mut lapses = daemon.client.clone().watch_lapses(wire::WatchLapsesRequest {}).await.unwrap().into_inner();
    let other = daemon
        .meanwhile(async || {
            assert!(Command::new(&odd).args(["end", ENDS]).stdin(Stdio::null()).status().unwrap().success());
            let mut command = Command::new(python());
            let mut other = hand(&mut program, &daemon.path("unix"), command.args(["-c", GOES_ON]));
            assert_eq!(other.line(), "sent");
            other
        })
        .await;
    let (mut everything, mut flow) = (false, false);
    let told = async {
        while !(everything && flow) {
            let lapse = lapses.message().await.unwrap().unwrap();
            match lapse.of {
                Some(Of::Everything(_)) => everything |= lapse.detail.contains("events were lost"),
                Some(Of::Flow(used)) if used.local == Some(local.into()) => {
                    assert_eq!(used.used_by.unwrap().pid, other.pid());
                    flow = true;
                }
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("nothing was heard");
}
