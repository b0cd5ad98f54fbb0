//! Who connected? Ordinary programs, asked of both sources; and those that lend their sockets.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bonafide_proto::convert::Attestation;
use bonafide_proto::kernel::{ConnectRecord, Doubts};
use bonafide_proto::refusal::AttestReason;

use crate::accept::{Accepted, Front, LOOPBACKS};
use crate::node::{CONNECTS, NOBODY, Node, Program, connector, python, sleep};

/// Python that does as it is told, line by line: `server` is the address in its last argument.
const OBEYS: &str = r"
import array, ctypes, os, socket, struct, subprocess, sys, time
libc = ctypes.CDLL(None)
host, port = sys.argv[-1].rsplit(':', 1)
server = (host.strip('[]'), int(port))
family = socket.AF_INET6 if ':' in server[0] else socket.AF_INET
def dies_too():
    libc.prctl(1, 9)
def spawn(*arguments):
    return subprocess.Popen(arguments, stdin=s.fileno(), preexec_fn=dies_too)
for line in sys.stdin:
    exec(line)
    print('done', flush=True)
";

/// A program that does as it is told.
pub(crate) struct Obedient(pub(crate) Program);

impl Obedient {
    pub(crate) fn start(front: &Front) -> Self {
        Self::run(&mut Command::new(python()), front)
    }

    /// Run by this command, which is Python in the end.
    pub(crate) fn run(command: &mut Command, front: &Front) -> Self {
        Self::dial(command, front.address())
    }

    /// With another server.
    pub(crate) fn dial(command: &mut Command, server: SocketAddr) -> Self {
        Self::start_as(command, server, None)
    }

    /// Run by this user.
    pub(crate) fn run_as(command: &mut Command, front: &Front, user: u32) -> Self {
        Self::start_as(command, front.address(), Some(user))
    }

    fn start_as(command: &mut Command, server: SocketAddr, user: Option<u32>) -> Self {
        let mut command = Command::new(command.get_program());
        command.args(["-c", OBEYS]).arg(server.to_string()).env("PYTHONHOME", "/usr");
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        Self(Program::start(command.stdin(Stdio::piped())))
    }

    pub(crate) fn does(&mut self, line: &str) {
        self.0.tell(line);
        assert_eq!(self.0.line(), "done");
    }

    pub(crate) fn connects(&mut self, front: &Front) -> Accepted {
        self.does("s = socket.create_connection(server)");
        front.accept()
    }
}

/// Python again, but another program: another file, whose bytes are others.
pub(crate) fn another_python(front: &Front) -> PathBuf {
    let path = front.node.path("another-python");
    if !path.exists() {
        // Not by this process: children of other tests would have the file open, and it could not be executed.
        let makes = "cat $0 > $1; printf '#another' >> $1; chmod 755 $1";
        let made = Command::new("/bin/sh").args(["-ec", makes]).args([&python(), &path]).status().unwrap();
        assert!(made.success());
    }
    path
}

pub(crate) fn pids(attested: &Attestation) -> Vec<u32> {
    let mut pids: Vec<u32> = attested.executions.iter().map(|execution| execution.pid).collect();
    pids.sort_unstable();
    pids
}

pub(crate) fn is(exe: &Path, attested: &Attestation) -> bool {
    Path::new(&attested.fingerprint.exe.path) == exe
}

fn record(accepted: &Accepted) -> ConnectRecord {
    accepted.record.unwrap()
}

/// Both sources about one connection; what only the kernel knows aside.
async fn both(front: &Front, proc: &Node, accepted: &Accepted) -> Attestation {
    let by_kernel = front.attest(accepted).await.unwrap();
    let by_proc = proc.flow(connector(accepted.peer, accepted.local)).await.unwrap();
    assert_eq!((by_kernel.source.as_str(), by_proc.source.as_str()), ("kernel", "proc"));
    assert_eq!(by_kernel.fingerprint, by_proc.fingerprint);
    let bare = |attested: &Attestation| -> Vec<(u32, u64)> {
        let mut all: Vec<_> = attested.executions.iter().map(|e| (e.pid, e.start_ticks)).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(bare(&by_kernel), bare(&by_proc));
    assert!(by_kernel.executions.iter().all(|execution| execution.image != 0));
    by_kernel
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sources_agree_on_a_program_that_connects() {
    let proc = Node::start_with(NOBODY, "source = \"proc\"").await;
    for listen in LOOPBACKS {
        let front = Front::start(NOBODY, listen).await;
        let program = Program::start(Command::new(python()).args(["-c", CONNECTS, &front.address().to_string()]));
        let accepted = front.accept();
        assert_eq!(record(&accepted).doubts, Doubts(0));
        assert_eq!((record(&accepted).pid, record(&accepted).tid), (program.pid(), program.pid()));
        assert_eq!(pids(&both(&front, &proc, &accepted).await), [program.pid()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sources_agree_on_mapped_addresses_threads_and_non_blocking_sockets() {
    let proc = Node::start_with(NOBODY, "source = \"proc\"").await;
    let front = Front::start(NOBODY, "127.0.0.1:0").await;
    let mut program = Obedient::start(&front);
    for line in [
        "m = socket.socket(socket.AF_INET6); m.connect(('::ffff:127.0.0.1', server[1]))",
        "n = socket.socket(); n.setblocking(False); n.connect_ex(server)",
        "n.close(); m.close()",
        "import threading; t = threading.Thread(target=lambda: globals().update(x=socket.create_connection(server))); t.start(); t.join()",
        "w = threading.Thread(target=time.sleep, args=(1000,), daemon=True); w.start(); y = socket.create_connection(server)",
        "b = socket.socket(); b.bind(('127.0.0.1', 0)); b.connect(server)",
    ] {
        program.does(line);
        if line.contains("close") {
            continue;
        }
        let accepted = front.accept();
        assert_eq!(record(&accepted).doubts, Doubts(0), "{line}");
        assert_eq!(pids(&both(&front, &proc, &accepted).await), [program.0.pid()], "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sources_agree_on_a_parent_and_child_with_one_socket() {
    let proc = Node::start_with(NOBODY, "source = \"proc\"").await;
    let front = Front::start(NOBODY, "127.0.0.1:0").await;
    let mut program = Obedient::start(&front);
    // The child connects what its parent made; both keep it.
    program.does("s = socket.socket()");
    program.does("if os.fork() == 0: dies_too(); s.connect(server); time.sleep(1000)");
    let accepted = front.accept();
    assert_eq!(record(&accepted).doubts, Doubts::SHARED_FILE);
    let attested = both(&front, &proc, &accepted).await;
    assert_eq!(attested.executions.len(), 2);
    assert_eq!(attested.executions[0].image, attested.executions[1].image);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_older_than_the_kernel_programs_is_attested_and_marked() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut older = Program::start(
        Command::new(python()).args(["-c", OBEYS]).arg(server.local_addr().unwrap().to_string()).stdin(Stdio::piped()),
    );
    older.tell("pass");
    assert_eq!(older.line(), "done");
    let front = Front::start(NOBODY, "127.0.0.1:0").await;
    older.tell(&format!("s = socket.create_connection(('127.0.0.1', {}))", front.address().port()));
    let accepted = front.accept();
    assert_eq!(record(&accepted).doubts, Doubts::UNWITNESSED);
    assert_eq!(pids(&front.attest(&accepted).await.unwrap()), [older.pid()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_older_than_the_kernel_programs_is_nobody_s() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let _client = std::net::TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let front = Front::start(NOBODY, "127.0.0.1:0").await;
    let (stream, peer) = server.accept().unwrap();
    assert_eq!(front.records.get(&stream), None);
    let key = connector(peer, stream.local_addr().unwrap());
    assert_eq!(front.node.refusal(key).await, AttestReason::NoRecord);
}

/// Makes a socket, hands it to another program, and keeps it or not; the other one connects.
async fn lent(front: &Front, keeps: bool) -> (Obedient, Obedient, Accepted) {
    let (mut maker, mut other) =
        (Obedient::start(front), Obedient::run(&mut Command::new(another_python(front)), front));
    let path = front.node.path("lend.sock").display().to_string();
    other.does(&format!("u = socket.socket(socket.AF_UNIX); u.bind({path:?}); u.listen()"));
    maker.does(&format!("s = socket.socket(); u = socket.socket(socket.AF_UNIX); u.connect({path:?})"));
    maker.does("socket.send_fds(u, [b'x'], [s.fileno()])");
    if !keeps {
        maker.does("s.close()");
    }
    other.does("_, fds, _, _ = socket.recv_fds(u.accept()[0], 8, 1); s = socket.socket(fileno=fds[0])");
    other.does("s.connect(server)");
    let accepted = front.accept();
    (maker, other, accepted)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_two_programs_have_is_nobody_s() {
    let front = Front::start(NOBODY, "127.0.0.1:0").await;
    let (_maker, other, accepted) = lent(&front, true).await;
    assert_eq!(record(&accepted).doubts, Doubts(Doubts::CREATOR_DIFFERS.0 | Doubts::SHARED_FILE.0));
    assert_eq!(record(&accepted).pid, other.0.pid());
    assert_eq!(front.attest(&accepted).await.unwrap_err().reason, AttestReason::TwoPrograms);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_its_maker_let_go_of_is_the_connector_s() {
    let front = Front::start(NOBODY, "127.0.0.1:0").await;
    let (_maker, other, accepted) = lent(&front, false).await;
    assert_eq!(record(&accepted).doubts, Doubts::CREATOR_DIFFERS);
    let attested = front.attest(&accepted).await.unwrap();
    assert_eq!(pids(&attested), [other.0.pid()]);
    assert!(is(&another_python(&front), &attested));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_in_flight_is_a_holder_unseen() {
    let front = Front::start(NOBODY, "127.0.0.1:0").await;
    let mut program = Obedient::start(&front);
    // Sent, and never received.
    program.does(
        "a, b = socket.socketpair(socket.AF_UNIX); s = socket.socket(); socket.send_fds(a, [b'x'], [s.fileno()])",
    );
    program.does("s.connect(server)");
    let accepted = front.accept();
    assert_eq!(record(&accepted).doubts, Doubts::SHARED_FILE);
    assert_eq!(front.attest(&accepted).await.unwrap_err().reason, AttestReason::HolderUnseen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_handed_on_and_let_go_of_is_neither_program_s() {
    let front = Front::start(NOBODY, "127.0.0.1:0").await;
    let mut program = Obedient::start(&front);
    // Twice in its own table: nothing that the walk would not explain, but a doubt.
    program.does("s = socket.socket(); d = os.dup(s.fileno()); s.connect(server)");
    let accepted = front.accept();
    assert_eq!(record(&accepted).doubts, Doubts::SHARED_FILE);
    assert_eq!(pids(&front.attest(&accepted).await.unwrap()), [program.0.pid()]);
    program.does(&format!("spawn({:?}, '1000')", sleep().display().to_string()));
    assert_eq!(front.attest(&accepted).await.unwrap_err().reason, AttestReason::TwoPrograms);
    program.does("s.close(); os.close(d)");
    assert_eq!(front.attest(&accepted).await.unwrap_err().reason, AttestReason::ConnectorDiffers);
}
