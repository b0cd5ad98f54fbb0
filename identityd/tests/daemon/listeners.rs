//! Who would accept?

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use bonafide_proto::convert::Attestation;
use bonafide_proto::flow::{FlowKey, SocketRole};
use bonafide_proto::refusal::AttestReason;

use crate::node::{BY_PROC, NOBODY, Node, Program, listener, own_exe, own_netns, python, sleep};

#[tokio::test]
async fn a_listener_is_its_holder_s_on_both_families() {
    let node = Node::start(NOBODY).await;
    for (listen, ask) in [
        ("127.0.0.1:0", "127.0.0.1"),
        ("0.0.0.0:0", "127.0.0.1"),
        ("[::1]:0", "::1"),
        ("[::]:0", "::1"),
        // A dual-stack socket accepts IPv4 too.
        ("[::]:0", "127.0.0.1"),
    ] {
        let server = TcpListener::bind(listen).unwrap();
        let address = SocketAddr::new(ask.parse().unwrap(), server.local_addr().unwrap().port());
        let attested = node.flow(listener(address)).await.unwrap();
        assert_eq!(attested.fingerprint.exe.path, own_exe(), "{listen} asked as {ask}");
    }
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_nobody_s() {
    let node = Node::start(NOBODY).await;
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let elsewhere = SocketAddr::new([127, 0, 0, 2].into(), address.port());
    assert_eq!(node.refusal(listener(elsewhere)).await, AttestReason::NoSocket);
    // A connection with these very addresses is no listener.
    let client = TcpStream::connect(address).unwrap();
    let (_accepted, peer) = server.accept().unwrap();
    let key = FlowKey { netns: own_netns(), local: address, remote: peer, role: SocketRole::Listener };
    assert_eq!(node.refusal(key).await, AttestReason::NoSocket);
    drop((client, server));
    assert_eq!(node.refusal(listener(address)).await, AttestReason::NoSocket);
}

#[tokio::test]
async fn a_listener_that_another_program_inherited_is_ambiguous() {
    let node = Node::start(NOBODY).await;
    let server = TcpListener::bind("[::1]:0").unwrap();
    let inherited = Stdio::from(OwnedFd::from(server.try_clone().unwrap()));
    let other = Program::start(Command::new(sleep()).arg("1000").stdin(inherited));
    other.runs(&sleep()).await;
    let address = server.local_addr().unwrap();
    assert_eq!(node.refusal(listener(address)).await, AttestReason::AmbiguousListener);
}

/// Python that joins the reuseport group at the address in its last argument.
const SHARES: &str = r"
import socket, sys, time
host, port = sys.argv[-1].rsplit(':', 1)
host = host.strip('[]')
s = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind((host, int(port)))
s.listen()
host, port = s.getsockname()[:2]
print(f'[{host}]:{port}' if ':' in host else f'{host}:{port}', flush=True)
time.sleep(1000)
";

#[tokio::test]
async fn a_reuseport_group_of_one_program_is_that_program() {
    let node = Node::start(NOBODY).await;
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let mut first = Program::start(Command::new(python()).args(["-c", SHARES, at]));
        let address = first.address();
        let mut second = Program::start(Command::new(python()).args(["-c", SHARES, &address.to_string()]));
        assert_eq!(second.address(), address);
        let attested = node.flow(listener(address)).await.unwrap();
        let mut pids: Vec<u32> = attested.executions.iter().map(|e| e.pid).collect();
        pids.sort_unstable();
        let mut expected = [first.pid(), second.pid()];
        expected.sort_unstable();
        assert_eq!(pids, expected);
    }
}

#[tokio::test]
async fn a_reuseport_group_of_two_programs_is_ambiguous_whoever_is_picked() {
    let node = Node::start(NOBODY).await;
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("shares.py");
    std::fs::write(&script, SHARES).unwrap();
    let mut first = Program::start(Command::new(python()).args(["-c", SHARES, "127.0.0.1:0"]));
    let address = first.address();
    let mut second = Program::start(Command::new(python()).arg(&script).arg(address.to_string()));
    assert_eq!(second.address(), address);
    for port in 1..20 {
        let key = FlowKey { remote: SocketAddr::new(address.ip(), port), ..listener(address) };
        assert_eq!(node.refusal(key).await, AttestReason::AmbiguousListener);
    }
}

#[tokio::test]
async fn both_sources_agree_on_who_listens() {
    let (kernel, proc) = (Node::start(NOBODY).await, Node::start_with(NOBODY, BY_PROC).await);
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let mut first = Program::start(Command::new(python()).args(["-c", SHARES, listen]));
        let address = first.address();
        let mut second = Program::start(Command::new(python()).args(["-c", SHARES, &address.to_string()]));
        assert_eq!(second.address(), address);
        let (by_kernel, by_proc) =
            (kernel.flow(listener(address)).await.unwrap(), proc.flow(listener(address)).await.unwrap());
        assert_eq!((by_kernel.source.as_str(), by_proc.source.as_str()), ("kernel", "proc"));
        assert_eq!(by_kernel.fingerprint, by_proc.fingerprint);
        let pids = |of: &Attestation| of.executions.iter().map(|e| (e.pid, e.start_ticks)).collect::<BTreeSet<_>>();
        assert_eq!(pids(&by_kernel), pids(&by_proc));
        assert_eq!(pids(&by_kernel).len(), 2);
    }
}
