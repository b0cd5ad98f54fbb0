//! The program itself, in a network namespace of its own: link-local addresses, sockets bound to a device, signals.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use bonafide_proto::convert::Attestation;
use bonafide_proto::endpoint;
use bonafide_proto::flow::{FlowKey, NetNs, SocketRole};
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::attestation_client::AttestationClient;
use rustix::process::{Pid, Signal};

use crate::node::{CONNECTS, NOBODY, PATIENCE, Program, config, connector, needed, own_netns, python, until};

/// A network namespace with a loopback and a pair of devices; gone when dropped.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let namespace = Self(format!("bfid-{}", std::process::id()));
        ip(&["netns", "add", &namespace.0]);
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace.ip(&["link", "add", "d0", "type", "veth", "peer", "name", "d1"]);
        namespace.ip(&["link", "set", "d1", "up"]);
        namespace.ip(&["link", "set", "d0", "up"]);
        namespace.ip(&["address", "add", "fe80::1/64", "dev", "d0", "nodad"]);
        namespace
    }

    fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.0], arguments].concat());
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(needed(&["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"]));
        command.args(["netns", "exec", &self.0]).arg(program);
        command
    }

    fn inode(&self) -> NetNs {
        NetNs(std::fs::metadata(format!("/run/netns/{}", self.0)).unwrap().ino())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.0]);
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new(needed(&["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"])).args(arguments).status().unwrap();
    assert!(status.success(), "ip {arguments:?}");
}

/// Python that connects to itself: on a device's link-local address, then bound to the loopback device.
const CONNECTS_TO_ITSELF: &str = r"
import socket, time
def text(address):
    if len(address) == 2:
        return '%s:%d' % address
    host, port, _, scope = address
    return '[%s%%%d]:%d' % (host.split('%')[0], scope, port) if scope else '[%s]:%d' % (host, port)
kept = []
for family, address, device in [
    (socket.AF_INET6, ('fe80::1', 0, 0, socket.if_nametoindex('d0')), None),
    (socket.AF_INET, ('127.0.0.1', 0), b'lo'),
    (socket.AF_INET6, ('::1', 0), b'lo'),
]:
    server = socket.socket(family)
    server.bind(address)
    server.listen()
    client = socket.socket(family)
    if device:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
    client.connect(server.getsockname())
    print(text(client.getsockname()), text(server.getsockname()), flush=True)
    kept += [server, client]
server = socket.create_server(('127.0.0.1', 0))
def dial(port, device):
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
    client.bind(('127.0.0.1', port))
    client.setblocking(False)
    client.connect_ex(server.getsockname())
    return client
bound = dial(0, b'lo')
unbound = dial(bound.getsockname()[1], b'')
print(text(bound.getsockname()), text(server.getsockname()), flush=True)
time.sleep(1000)
";

async fn ask(
    client: &AttestationClient<tonic::transport::Channel>,
    key: FlowKey,
) -> Result<Attestation, AttestRefusal> {
    let answer = client.clone().attest_flow(wire::AttestFlowRequest::from(key)).await.unwrap();
    answer.into_inner().try_into().unwrap()
}

#[tokio::test]
async fn scoped_and_device_bound_sockets_are_found_and_a_signal_stops_it() {
    let namespace = Namespace::new();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("policy.toml"), NOBODY).unwrap();
    std::fs::write(dir.path().join("identityd.toml"), config(dir.path())).unwrap();
    let mut daemon = namespace.command(env!("CARGO_BIN_EXE_bonafide-identityd"));
    let mut daemon = daemon.arg("--config").arg(dir.path().join("identityd.toml")).spawn().unwrap();
    let socket = dir.path().join("i.sock");
    until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
    let client = AttestationClient::new(endpoint::channel(socket.clone()));

    let mut program = Program::start(namespace.command(python()).args(["-c", CONNECTS_TO_ITSELF]));
    for _ in 0..3 {
        let line = program.line();
        let ends: Vec<SocketAddr> = line.split(' ').map(|end| end.parse().unwrap()).collect();
        let key = |role, local, remote| FlowKey { netns: namespace.inode(), local, remote, role };
        let found = ask(&client, key(SocketRole::Connector, ends[0], ends[1])).await.unwrap();
        assert_eq!(found.executions[0].pid, program.pid(), "{line}");
        let other_port = SocketAddr::new(ends[0].ip(), 1);
        let found = ask(&client, key(SocketRole::Listener, ends[1], other_port)).await.unwrap();
        assert_eq!(found.executions[0].pid, program.pid(), "{line}");
    }
    // One socket bound to the loopback device and one that is not, with the same four addresses.
    let line = program.line();
    let ends: Vec<SocketAddr> = line.split(' ').map(|end| end.parse().unwrap()).collect();
    let key = FlowKey { netns: namespace.inode(), local: ends[0], remote: ends[1], role: SocketRole::Connector };
    let refusal = ask(&client, key).await.unwrap_err();
    assert_eq!(refusal.reason, AttestReason::TwoPrograms);
    assert!(refusal.detail.contains("bound to device 1"), "{refusal}");
    let elsewhere = FlowKey { netns: own_netns(), ..connector("[::1]:1".parse().unwrap(), "[::1]:2".parse().unwrap()) };
    assert_eq!(ask(&client, elsewhere).await.unwrap_err().reason, AttestReason::OtherNetns);

    let pid = Pid::from_raw(i32::try_from(daemon.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
}

#[tokio::test]
async fn without_its_capabilities_it_attests_nobody() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(dir.path(), Some(64702), Some(64702)).unwrap();
    std::fs::write(at("policy.toml"), NOBODY).unwrap();
    std::fs::write(at("identityd.toml"), config(dir.path())).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_bonafide-identityd"), at("identityd")).unwrap();
    let _daemon = Program::start(
        Command::new(at("identityd")).arg("--config").arg(at("identityd.toml")).uid(64702).gid(64702).current_dir("/"),
    );
    until(|| std::os::unix::net::UnixStream::connect(at("i.sock")).is_ok()).await;
    let client = AttestationClient::new(endpoint::channel(at("i.sock")));

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let local = listener.local_addr().unwrap();
    let key = FlowKey { role: SocketRole::Listener, ..connector(local, SocketAddr::new(local.ip(), 1)) };
    let refusal = ask(&client, key).await.unwrap_err();
    assert_eq!(refusal.reason, AttestReason::Unreadable);
    assert!(refusal.detail.contains("might hold the socket"), "{refusal}");
}

#[tokio::test]
async fn a_daemon_without_descriptors_holds_it_against_nobody() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("policy.toml"), NOBODY).unwrap();
    std::fs::write(dir.path().join("identityd.toml"), config(dir.path())).unwrap();
    let _daemon = Program::start(
        Command::new(needed(&["/usr/bin/prlimit"]))
            .arg("--nofile=48:48")
            .arg(env!("CARGO_BIN_EXE_bonafide-identityd"))
            .arg("--config")
            .arg(dir.path().join("identityd.toml")),
    );
    let socket = dir.path().join("i.sock");
    until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
    let client = AttestationClient::new(endpoint::channel(socket.clone()));

    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut program =
        Program::start(Command::new(python()).args(["-c", CONNECTS]).arg(server.local_addr().unwrap().to_string()));
    let key = connector(program.address(), server.local_addr().unwrap());
    ask(&client, key).await.unwrap();
    // Each connection costs the daemon a descriptor. At every count there is another step that finds none left.
    let mut taken = Vec::new();
    let mut unavailable = 0;
    for _ in 0..48 {
        taken.push(tokio::net::UnixStream::connect(&socket).await.unwrap());
        match ask(&client, key).await {
            Ok(_) => {}
            Err(refusal) if refusal.reason == AttestReason::Unavailable => unavailable += 1,
            Err(refusal) => panic!("{} connections: {refusal}", taken.len()),
        }
    }
    assert!(unavailable > 0);
    drop(taken);
    let answers = async { while ask(&client, key).await.is_err() {} };
    tokio::time::timeout(PATIENCE, answers).await.unwrap();
}

#[test]
fn wrong_usage_and_wrong_configuration_exit_with_2() {
    let daemon = || Command::new(env!("CARGO_BIN_EXE_bonafide-identityd"));
    assert_eq!(daemon().output().unwrap().status.code(), Some(2));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("identityd.toml");
    std::fs::write(&file, format!("{}colour = 1\n", config(dir.path()))).unwrap();
    let output = daemon().arg("--config").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("colour") && said.contains("identityd.toml"), "{said}");
    // A socket that is somebody else's file stays what it is.
    std::fs::write(&file, config(dir.path())).unwrap();
    std::fs::write(dir.path().join("i.sock"), "mine").unwrap();
    assert_eq!(daemon().arg("--config").arg(&file).output().unwrap().status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(dir.path().join("i.sock")).unwrap(), "mine");
}
