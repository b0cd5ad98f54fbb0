//! What was attested is watched: each test has a program attested, makes something of it change, and hears of it.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::Execution;
use bonafide_proto::kernel::ConnectRecord;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::lapse::Of;
use tonic::Streaming;

use crate::node::{NOBODY, Node, PATIENCE, Program, connector, digest_of, python, sleep};
use crate::odd_files::Fuse;
use crate::records::record;
use crate::svids::{Notary, serve};

/// Python that connects, says its own address, and then does what it is told, line by line.
const OBEYS: &str = r"
import ctypes, os, socket, sys, time
libc = ctypes.CDLL(None)
host, port = sys.argv[-1].rsplit(':', 1)
s = socket.create_connection((host, int(port)))
print('%s:%d' % s.getsockname(), flush=True)
for line in sys.stdin:
    exec(line)
    print('done', flush=True)
";

/// A program that was attested, with its connection, and who hears of its lapses.
struct Attested {
    node: Node,
    program: Program,
    execution: Execution,
    local: SocketAddr,
    remote: SocketAddr,
    record: Option<ConnectRecord>,
    lapses: Streaming<wire::Lapse>,
    _accepted: TcpStream,
}

impl Attested {
    /// Runs this Python, as this script or else inline.
    async fn start(source: &str, python: &Path, script: Option<&str>) -> Self {
        Self::start_on(Node::start_with(NOBODY, &by(source)).await, python, script).await
    }

    async fn start_on(node: Node, python: &Path, script: Option<&str>) -> Self {
        let mut lapses = node.client.clone().watch_lapses(wire::WatchLapsesRequest {}).await.unwrap().into_inner();
        assert_eq!(heard(&mut lapses).await.of, Some(Of::Ready(true)));
        assert!(matches!(heard(&mut lapses).await.of, Some(Of::Quarantine(_))));

        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let remote = server.local_addr().unwrap();
        let mut command = Command::new(python);
        match script {
            Some(name) => {
                fs::write(node.path(name), OBEYS).unwrap();
                command.arg(node.path(name));
            }
            None => drop(command.args(["-c", OBEYS])),
        }
        let mut program =
            Program::start(command.arg(remote.to_string()).stdin(Stdio::piped()).env("PYTHONHOME", "/usr"));
        let local = program.address();
        let (accepted, _) = server.accept().unwrap();
        let record = record(&node, &accepted);
        let execution = node.flow_by(connector(local, remote), record).await.unwrap().executions[0];
        assert_eq!(execution.pid, program.pid());
        Self { node, program, execution, local, remote, record, lapses, _accepted: accepted }
    }

    async fn flow(&self) -> Result<Attestation, AttestRefusal> {
        self.node.flow_by(connector(self.local, self.remote), self.record).await
    }

    /// Whoever holds the socket by now.
    async fn holders(&self) -> Result<Attestation, AttestRefusal> {
        let kernel = self.record.map(|record| record.to_bytes().to_vec()).unwrap_or_default();
        let socket = wire::AttestFlowRequest { kernel, ..connector(self.local, self.remote).into() };
        let request = wire::ReattestRequest { executions: vec![self.execution.into()], sockets: vec![socket] };
        self.node.client.clone().reattest(request).await.unwrap().into_inner().try_into().unwrap()
    }

    /// Who these are by now.
    async fn again(&self, executions: &[Execution]) -> Result<Attestation, AttestRefusal> {
        let executions = executions.iter().map(|execution| (*execution).into()).collect();
        let request = wire::ReattestRequest { executions, sockets: Vec::new() };
        self.node.client.clone().reattest(request).await.unwrap().into_inner().try_into().unwrap()
    }

    /// Makes it do something, and waits until that is done.
    fn does(&mut self, line: &str) {
        self.program.tell(line);
        assert_eq!(self.program.line(), "done");
    }

    /// What it hears next that is about this program, or all. The daemon hears of other tests' sockets, too.
    async fn next(&mut self) -> wire::Lapse {
        let own = [Some(self.local.into()), Some(self.remote.into())];
        loop {
            let lapse = heard(&mut self.lapses).await;
            match &lapse.of {
                Some(Of::Flow(flow) | Of::Kin(flow)) if [flow.local.clone(), flow.remote.clone()] != own => {}
                _ => return lapse,
            }
        }
    }

    /// The next thing that is heard: this execution lapsed. Returns what changed.
    async fn lapsed(&mut self, reason: AttestReason) -> String {
        let lapse = self.next().await;
        assert_eq!(lapse.of, Some(Of::Execution(self.execution.into())), "{lapse:?}");
        assert_eq!(lapse.reason, reason.as_str(), "{lapse:?}");
        lapse.detail
    }

    /// Nothing has lapsed so far: what is heard next is a change that is made now.
    async fn nothing_lapsed(mut self) {
        self.does("os.setuid(65534)");
        let detail = self.lapsed(AttestReason::EvidenceChanged).await;
        assert!(detail.starts_with("uid was 0 and is 65534"), "{detail}");
    }
}

/// Each is tried with the kernel programs, and without them.
macro_rules! by_both {
    ($($name:ident)*) => {
        mod kernel {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name("kernel").await;
            })*
        }

        mod proc {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name("proc").await;
            })*
        }
    };
}

by_both! {
    a_child_from_a_silent_file_system_blinds_nobody
    a_library_mapped_later_is_a_lapse_and_so_is_one_that_changes
    a_tracer_is_a_lapse
    another_program_executed_is_a_lapse
    a_script_changed_in_place_is_a_lapse
    a_script_replaced_is_a_lapse_and_its_successor_is_watched_too
    an_executable_replaced_or_moved_is_a_lapse
    another_user_or_group_is_a_lapse
    a_child_that_executes_another_program_and_keeps_the_socket_ends_the_flow
    what_changes_nothing_is_no_lapse
    an_end_is_no_lapse
    who_is_left_with_the_socket_is_asked_about_and_watched
    what_is_put_in_quarantine_lapses_and_is_refused
}

fn by(source: &str) -> String {
    format!("source = \"{source}\"")
}

async fn heard(lapses: &mut Streaming<wire::Lapse>) -> wire::Lapse {
    tokio::time::timeout(PATIENCE, lapses.message()).await.expect("nothing was heard").unwrap().unwrap()
}

async fn another_program_executed_is_a_lapse(source: &str) {
    let mut attested = Attested::start(source, &python(), None).await;
    attested.program.tell(&format!("os.execv({:?}, ['sleep', '1000'])", sleep()));
    let lapse = attested.next().await;
    assert_eq!(lapse.of, Some(Of::Execution(attested.execution.into())), "{lapse:?}");
    // Where nobody tells of an exec, a look can be first to see what came of it.
    let seen = attested.execution.image == 0 && lapse.detail.contains(&format!("and is {}", sleep().display()));
    assert!(seen || lapse.reason == AttestReason::GenerationGone.as_str(), "{lapse:?}");
}

async fn a_script_changed_in_place_is_a_lapse(source: &str) {
    let mut attested = Attested::start(source, &python(), Some("app.py")).await;
    let script = attested.node.path("app.py");
    let before = digest_of(&script);
    fs::write(&script, format!("{OBEYS}\n# and more\n")).unwrap();
    let detail = attested.lapsed(AttestReason::EvidenceChanged).await;
    assert!(detail.contains(&before.to_string()) && detail.contains(&digest_of(&script).to_string()), "{detail}");
}

async fn a_script_replaced_is_a_lapse_and_its_successor_is_watched_too(source: &str) {
    let mut attested = Attested::start(source, &python(), Some("app.py")).await;
    let (script, new) = (attested.node.path("app.py"), attested.node.path("new.py"));
    fs::write(&new, OBEYS).unwrap();
    fs::rename(&new, &script).unwrap();
    // That was the same content: no lapse. But the file that counts now is another one.
    attested.flow().await.unwrap();
    fs::write(&new, "print()").unwrap();
    fs::rename(&new, &script).unwrap();
    let detail = attested.lapsed(AttestReason::EvidenceChanged).await;
    assert!(detail.starts_with("the script") && detail.contains(&digest_of(&script).to_string()), "{detail}");
}

async fn an_executable_replaced_or_moved_is_a_lapse(source: &str) {
    let changes: [fn(&Path); 3] = [
        |exe| {
            fs::copy(sleep(), exe.with_extension("new")).unwrap();
            fs::rename(exe.with_extension("new"), exe).unwrap();
        },
        |exe| fs::remove_file(exe).unwrap(),
        |exe| fs::rename(exe, exe.with_extension("old")).unwrap(),
    ];
    for change in changes {
        let node = Node::start_with(NOBODY, &by(source)).await;
        let copy = node.path("app");
        fs::copy(python(), &copy).unwrap();
        let mut attested = Attested::start_on(node, &copy, None).await;
        change(&copy);
        let lapse = attested.next().await;
        assert_eq!(lapse.of, Some(Of::Execution(attested.execution.into())), "{lapse:?}");
        assert!(lapse.detail.contains("app") || lapse.detail.contains("deleted"), "{lapse:?}");
    }
}

async fn another_user_or_group_is_a_lapse(source: &str) {
    let mut attested = Attested::start(source, &python(), None).await;
    attested.does("os.setgid(65534)");
    assert!(attested.lapsed(AttestReason::EvidenceChanged).await.starts_with("gid was 0 and is 65534"));
    // What lapsed is watched again as soon as it is attested again.
    attested.flow().await.unwrap();
    attested.does("os.setuid(65534)");
    assert!(attested.lapsed(AttestReason::EvidenceChanged).await.starts_with("uid was 0 and is 65534"));
}

async fn a_child_that_executes_another_program_and_keeps_the_socket_ends_the_flow(source: &str) {
    let mut attested = Attested::start(source, &python(), None).await;
    attested.does("s.set_inheritable(True)");
    // PR_SET_PDEATHSIG: it does not outlive the test.
    let child = format!("libc.prctl(1, 9) or os.execv({:?}, ['sleep', '1000'])", sleep());
    attested.program.tell(&format!("print(os.fork() or {child}, flush=True)"));
    let child: u32 = attested.program.line().parse().unwrap();
    let lapse = attested.next().await;
    let Some(Of::Flow(flow)) = &lapse.of else { panic!("{lapse:?}") };
    assert_eq!((flow.local.clone(), flow.remote.clone()), (Some(attested.local.into()), Some(attested.remote.into())));
    assert_eq!(flow.used_by.unwrap().pid, child);
    assert_eq!(lapse.reason, AttestReason::TwoPrograms.as_str());
    attested.does(&format!("os.kill({child}, 9); os.wait()"));
}

async fn what_changes_nothing_is_no_lapse(source: &str) {
    let mut attested = Attested::start(source, &python(), Some("app.py")).await;
    let script = attested.node.path("app.py");
    fs::File::open(&script).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o600)).unwrap();
    // Over itself: at no moment is it another script.
    fs::File::options().write(true).open(&script).unwrap().write_all(OBEYS.as_bytes()).unwrap();
    // A child that executes something and keeps no socket.
    attested.does("import subprocess; subprocess.run(['/bin/true'])");
    attested.nothing_lapsed().await;
}

async fn an_end_is_no_lapse(source: &str) {
    let node = Node::start_with(NOBODY, &by(source)).await;
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut attested = Attested::start_on(node, &python(), None).await;
    let remote = server.local_addr().unwrap();
    let mut ends =
        Program::start(Command::new(python()).args(["-c", OBEYS, &remote.to_string()]).stdin(Stdio::piped()));
    let local = ends.address();
    let record = record(&attested.node, &server.accept().unwrap().0);
    let execution = attested.node.flow_by(connector(local, remote), record).await.unwrap().executions[0];
    let ended = format!("/proc/{}", ends.pid());
    drop(ends);
    assert!(!Path::new(&ended).exists());
    if source == "proc" {
        // There it is not known whether somebody is left.
        assert_eq!(attested.next().await.of, Some(Of::Holders(execution.into())));
    }
    attested.nothing_lapsed().await;
}

async fn who_is_left_with_the_socket_is_asked_about_and_watched(source: &str) {
    let mut attested = Attested::start(source, &python(), None).await;
    attested.does("if os.fork(): os._exit(0)");
    attested.program.tell("print(os.getpid(), flush=True)");
    let child: u32 = attested.program.line().parse().unwrap();
    assert_eq!(attested.program.line(), "done");
    assert_eq!(attested.next().await.of, Some(Of::Holders(attested.execution.into())));

    let left = attested.holders().await.unwrap().executions;
    assert_eq!(left.iter().map(|execution| execution.pid).collect::<Vec<u32>>(), [child]);
    attested.execution = left[0];
    attested.does("os.setuid(65534)");
    let detail = attested.lapsed(AttestReason::EvidenceChanged).await;
    assert!(detail.starts_with("uid was 0 and is 65534"), "{detail}");

    attested.does("s.close()");
    assert_eq!(attested.holders().await.unwrap_err().reason, AttestReason::ProcessGone);
    attested.program.tell("os._exit(0)");
}

/// Only the kernel programs tell who uses a socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_uses_the_connection_is_told_of_once_and_watched_like_its_parent() {
    let mut attested = Attested::start("kernel", &python(), None).await;
    attested.does(
        r#"exec("r, w = os.pipe()\nif not os.fork():\n os.close(w); s.send(b'x'); s.send(b'x'); os.read(r, 1); os.setuid(65534); os.read(r, 1); os._exit(0)")"#,
    );
    let told = attested.next().await;
    let Some(Of::Kin(kin)) = told.of else { panic!("{told:?}") };
    assert!(kin.at_ns >= attested.record.unwrap().at_ns);
    let child = Execution::try_from(kin.used_by.unwrap()).unwrap();
    assert_eq!(child.image, attested.execution.image);
    assert_ne!(child.pid, attested.execution.pid);

    let both = attested.again(&[attested.execution, child]).await.unwrap().executions;
    assert_eq!(both, [attested.execution, child]);
    // That is the next thing that is heard: its second use was not told.
    attested.does("_ = os.write(w, b'x')");
    let owner = std::mem::replace(&mut attested.execution, child);
    assert!(attested.lapsed(AttestReason::EvidenceChanged).await.starts_with("uid was 0 and is 65534"));
    attested.execution = owner;
    attested.does("_ = os.write(w, b'x'); os.wait()");
}

/// What is told where nothing is revoked.
fn barred(sha256: Vec<Vec<u8>>) -> wire::Quarantine {
    wire::Quarantine { sha256, revoked: Some(wire::Revoked::default()) }
}

async fn what_is_put_in_quarantine_lapses_and_is_refused(source: &str) {
    let node = Node::start_with(NOBODY, &by(source)).await;
    let notary = Notary::default();
    let _serving = serve(&notary, &node.path("ca.sock"));
    let mut attested = Attested::start_on(node, &python(), Some("app.py")).await;
    let digest = digest_of(attested.node.path("app.py"));
    notary.quarantine.send_replace(vec![digest.0.to_vec()]);

    let told = attested.next().await;
    assert_eq!(told.of, Some(Of::Quarantine(barred(vec![digest.0.to_vec()]))));
    let detail = attested.lapsed(AttestReason::Quarantined).await;
    assert!(detail.contains("app.py") && detail.contains(&digest.to_string()), "{detail}");

    let refused = AttestReason::Quarantined;
    assert_eq!(attested.flow().await.unwrap_err().reason, refused);
    assert_eq!(attested.node.process(attested.program.pid()).await.unwrap_err().reason, refused);
    // Who begins to listen now hears it at once.
    let mut later = attested.node.client.clone().watch_lapses(wire::WatchLapsesRequest {}).await.unwrap().into_inner();
    assert_eq!(heard(&mut later).await.of, Some(Of::Ready(true)));
    assert_eq!(heard(&mut later).await.of, told.of);

    notary.quarantine.send_replace(Vec::new());
    assert_eq!(attested.next().await.of, Some(Of::Quarantine(barred(Vec::new()))));
    attested.flow().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_library_in_quarantine_is_enough() {
    let node = Node::start(NOBODY).await;
    let notary = Notary::default();
    let _serving = serve(&notary, &node.path("ca.sock"));
    let mut attested = Attested::start_on(node, &python(), Some("app.py")).await;
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", attested.program.pid())).unwrap();
    let mut paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    let libc = paths.find(|path| path.contains("/libc.") || path.contains("/libc-")).expect("it has a C library");
    let digest = digest_of(libc);
    notary.quarantine.send_replace(vec![digest.0.to_vec()]);

    attested.next().await;
    let detail = attested.lapsed(AttestReason::Quarantined).await;
    assert!(detail.contains("one of its libraries") && detail.contains(&digest.to_string()), "{detail}");
    let refused = AttestReason::Quarantined;
    assert_eq!(attested.flow().await.unwrap_err().reason, refused);
    assert_eq!(attested.node.process(attested.program.pid()).await.unwrap_err().reason, refused);
    notary.quarantine.send_replace(Vec::new());
    assert_eq!(attested.next().await.of, Some(Of::Quarantine(barred(Vec::new()))));
    attested.flow().await.unwrap();
}

/// Python that receives a descriptor over the unix socket that is its last argument, and writes to it.
const RECEIVES: &str = r"
import socket, sys, time
unix = socket.socket(socket.AF_UNIX)
unix.connect(sys.argv[-1])
_, [fd], _, _ = socket.recv_fds(unix, 1, 1)
handed = socket.socket(fileno=fd)
handed.send(b'x')
print('sent', flush=True)
time.sleep(1000)
";

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_handed_to_another_program_ends_the_flow_once_that_uses_it() {
    let mut attested = Attested::start("kernel", &python(), Some("app.py")).await;
    let unix = attested.node.path("unix");
    attested.does(&format!("u = socket.socket(socket.AF_UNIX); u.bind({unix:?}); u.listen()"));
    let mut other = Program::start(Command::new(python()).args(["-c", RECEIVES]).arg(&unix));
    attested.does("c, _ = u.accept(); socket.send_fds(c, [b'x'], [s.fileno()]); s.close()");
    assert_eq!(other.line(), "sent");
    let lapse = attested.next().await;
    let Some(Of::Flow(flow)) = &lapse.of else { panic!("{lapse:?}") };
    assert_eq!((flow.local.clone(), flow.remote.clone()), (Some(attested.local.into()), Some(attested.remote.into())));
    assert_eq!(flow.used_by.unwrap().pid, other.pid());
    assert_eq!(lapse.reason, AttestReason::TwoPrograms.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_is_known_by_its_socket_though_its_parent_has_ended() {
    let mut attested = Attested::start("kernel", &python(), None).await;
    // The child executes something when its parent is gone.
    let child = format!("os.close(w), os.read(r, 1), os.execv({:?}, ['sleep', '30'])", sleep());
    let parent = "print(child, flush=True), os._exit(0)";
    attested.program.tell(&format!(
        "s.set_inheritable(True); r, w = os.pipe(); child = os.fork(); ({parent}) if child else ({child})"
    ));
    let child: u32 = attested.program.line().parse().unwrap();
    // That somebody is left with it is told, too; what the child executes may overtake that.
    let left = Some(Of::Holders(attested.execution.into()));
    let mut lapse = attested.next().await;
    while lapse.of == left {
        lapse = attested.next().await;
    }
    let Some(Of::Flow(flow)) = &lapse.of else { panic!("{lapse:?}") };
    assert_eq!((flow.local.clone(), flow.used_by.unwrap().pid), (Some(attested.local.into()), child));
    let child = rustix::process::Pid::from_raw(i32::try_from(child).unwrap()).unwrap();
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
}

/// Python whose first thread ends while another one goes on, and keeps the connection.
const BEHEADED: &str = r"
import ctypes, threading, time, sys, socket
libc = ctypes.CDLL(None)
host, port = sys.argv[-1].rsplit(':', 1)
s = socket.create_connection((host, int(port)))
print('%s:%d' % s.getsockname(), flush=True)
threading.Thread(target=time.sleep, args=(1000,)).start()
sys.stdin.readline()
# SYS_exit: of this thread alone.
libc.syscall({'x86_64': 60}.get(__import__('platform').machine(), 93), 0)
";

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_shows_nothing_of_itself_any_more_lapses() {
    let node = Node::start_with(NOBODY, &by("proc")).await;
    let mut attested = Attested::start_on(node, &python(), None).await;
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = server.local_addr().unwrap();
    let mut beheaded =
        Program::start(Command::new(python()).args(["-c", BEHEADED, &remote.to_string()]).stdin(Stdio::piped()));
    let local = beheaded.address();
    let execution = attested.node.flow(connector(local, remote)).await.unwrap().executions[0];
    beheaded.tell("");
    let lapse = attested.next().await;
    assert_eq!(lapse.of, Some(Of::Execution(execution.into())), "{lapse:?}");
    assert!(lapse.detail.contains("first thread"), "{lapse:?}");
    // Nobody takes it for a process that ended.
    let refusal = attested.node.flow(connector(local, remote)).await.unwrap_err();
    assert_eq!(refusal.reason, AttestReason::Unreadable, "{refusal}");
}

/// A library that nobody else has.
fn library(node: &Node) -> std::path::PathBuf {
    let (source, library) = (node.path("own.c"), node.path("libown.so"));
    fs::write(&source, "int own(void) { return 1; }\n").unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(built.success(), "a C compiler is needed, as for the daemon itself");
    library
}

async fn a_library_mapped_later_is_a_lapse_and_so_is_one_that_changes(source: &str) {
    let mut attested = Attested::start(source, &python(), None).await;
    let own = library(&attested.node);
    attested.does(&format!("ctypes.CDLL({own:?})"));
    let detail = attested.lapsed(AttestReason::EvidenceChanged).await;
    assert!(detail.starts_with("the libraries are"), "{detail}");

    attested.flow().await.unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o600)).unwrap();
    fs::File::options().append(true).open(&own).unwrap().write_all(b"more").unwrap();
    let detail = attested.lapsed(AttestReason::EvidenceChanged).await;
    assert!(detail.starts_with("the libraries are"), "{detail}");
}

/// Nobody who watches may wait for an answer of the file system that a program comes from.
async fn a_child_from_a_silent_file_system_blinds_nobody(source: &str) {
    let mut attested = Attested::start(source, &python(), None).await;
    let mut fuse = Fuse::mount(attested.node.path("fuse"));
    let program = attested.node.path("fuse/program");
    attested.does(&format!("import subprocess; c = subprocess.Popen(['{}', '1000'])", program.display()));
    fuse.fall_silent();
    attested.does("os.setegid(65534)");
    let detail = attested.lapsed(AttestReason::EvidenceChanged).await;
    assert!(detail.starts_with("gid was 0 and is 65534"), "{detail}");
    // By now somebody has looked at the child, too.
    attested.flow().await.unwrap();
    attested.does("os.setegid(0)");
    let detail = attested.lapsed(AttestReason::EvidenceChanged).await;
    assert!(detail.starts_with("gid was 65534 and is 0"), "{detail}");
    drop(fuse);
    attested.does("c.kill()");
}

async fn a_tracer_is_a_lapse(source: &str) {
    let mut attested = Attested::start(source, &python(), None).await;
    let tracer = format!(
        "import ctypes, time; libc = ctypes.CDLL(None); assert libc.ptrace(0x4206, {}, None, None) == 0; time.sleep(1000)",
        attested.program.pid()
    );
    let _tracer = Program::start(Command::new(python()).args(["-c", &tracer]));
    assert_eq!(attested.lapsed(AttestReason::EvidenceChanged).await, "the taint traced is new");
}
