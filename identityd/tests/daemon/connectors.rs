//! Who connected, as sock_diag and `/proc` have it?

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use bonafide_proto::flow::{NetNs, canonical};
use bonafide_proto::refusal::AttestReason;

use crate::node::{BY_PROC, CONNECTS, NOBODY, Node, Program, connector, digest_of, own_exe, own_netns, python, sleep};

fn pair(listen: &str, dial_ip: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(listen).unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = TcpStream::connect(format!("{dial_ip}:{port}")).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

fn ends(stream: &TcpStream) -> (SocketAddr, SocketAddr) {
    (stream.local_addr().unwrap(), stream.peer_addr().unwrap())
}

#[tokio::test]
async fn a_connection_is_its_holder_s_on_both_families() {
    let node = Node::start_with(NOBODY, BY_PROC).await;
    for (listen, dial) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")] {
        let (client, _server) = pair(listen, dial);
        let (local, remote) = ends(&client);
        let attested = node.flow(connector(local, remote)).await.unwrap();
        let pids: Vec<u32> = attested.executions.iter().map(|e| e.pid).collect();
        assert!(pids.contains(&std::process::id()), "{pids:?}");
        assert_eq!(attested.fingerprint.exe.path, own_exe());
        assert_eq!(attested.fingerprint.exe.digest, digest_of(own_exe()));
        assert_eq!(attested.fingerprint.uid, rustix::process::geteuid().as_raw());
        assert_eq!(attested.fingerprint.script.known(), None);
        assert_eq!(attested.source, "proc");
        assert_eq!((attested.workload, attested.near_misses[0].of.as_str()), (None, "nobody"));
    }
    node.stop().await;
}

#[tokio::test]
async fn an_ipv6_socket_with_mapped_addresses_answers_the_ipv4_question() {
    let node = Node::start_with(NOBODY, BY_PROC).await;
    let (client, _server) = pair("127.0.0.1:0", "[::ffff:127.0.0.1]");
    let (local, remote) = ends(&client);
    assert!(local.is_ipv6());
    for key in [connector(local, remote), connector(canonical(local), canonical(remote))] {
        assert_eq!(node.flow(key).await.unwrap().fingerprint.exe.path, own_exe());
    }
}

#[tokio::test]
async fn a_socket_that_does_not_exist_is_nobody_s() {
    let node = Node::start_with(NOBODY, BY_PROC).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();
    // The kernel answers this question with the listener, which connected nowhere.
    let key = connector(server, SocketAddr::from(([127, 0, 0, 1], 1)));
    assert_eq!(node.refusal(key).await, AttestReason::NoSocket);
    let key = connector("[::1]:1".parse().unwrap(), "[::1]:2".parse().unwrap());
    assert_eq!(node.refusal(key).await, AttestReason::NoSocket);
}

#[tokio::test]
async fn a_closed_socket_is_in_nobody_s_hands() {
    let node = Node::start_with(NOBODY, BY_PROC).await;
    let (client, _server) = pair("127.0.0.1:0", "127.0.0.1");
    let (local, remote) = ends(&client);
    drop(client);
    assert_eq!(node.refusal(connector(local, remote)).await, AttestReason::HolderUnseen);
}

#[tokio::test]
async fn another_namespace_s_socket_is_not_looked_for() {
    let node = Node::start_with(NOBODY, BY_PROC).await;
    let (client, _server) = pair("127.0.0.1:0", "127.0.0.1");
    let (local, remote) = ends(&client);
    let mut key = connector(local, remote);
    key.netns = NetNs(own_netns().0 + 1);
    assert_eq!(node.refusal(key).await, AttestReason::OtherNetns);
}

#[tokio::test]
async fn two_programs_with_one_socket_are_nobody() {
    let node = Node::start_with(NOBODY, BY_PROC).await;
    for (listen, dial) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")] {
        let (client, _server) = pair(listen, dial);
        let (local, remote) = ends(&client);
        let inherited = OwnedFd::from(client.try_clone().unwrap());
        let other = Program::start(Command::new(sleep()).arg("1000").stdin(Stdio::from(inherited)));
        other.runs(&sleep()).await;
        let refusal = node.flow(connector(local, remote)).await.unwrap_err();
        assert_eq!(refusal.reason, AttestReason::TwoPrograms);
        assert!(refusal.detail.contains("sleep") && refusal.detail.contains(&own_exe()), "{refusal}");
    }
}

#[tokio::test]
async fn two_processes_of_one_program_are_both_named() {
    let node = Node::start_with(NOBODY, BY_PROC).await;
    let (client, _server) = pair("127.0.0.1:0", "127.0.0.1");
    let (local, remote) = ends(&client);
    let hand = || Stdio::from(OwnedFd::from(client.try_clone().unwrap()));
    let a = Program::start(Command::new(sleep()).arg("1000").stdin(hand()));
    let b = Program::start(Command::new(sleep()).arg("1000").stdin(hand()));
    drop(client);
    for program in [&a, &b] {
        program.runs(&sleep()).await;
    }
    let attested = node.flow(connector(local, remote)).await.unwrap();
    let mut pids: Vec<u32> = attested.executions.iter().map(|e| e.pid).collect();
    pids.sort_unstable();
    let mut expected = [a.pid(), b.pid()];
    expected.sort_unstable();
    assert_eq!(pids, expected);
    assert_eq!(attested.fingerprint.exe.path, sleep().to_str().unwrap());
}

/// A thread with a file table of its own, where `/proc/PID/fd` does not show the socket.
const HIDES_IN_A_THREAD: &str = r"
import ctypes, threading
program = '''@'''
def hidden():
    assert ctypes.CDLL(None).unshare(0x400) == 0
    exec(program, {})
threading.Thread(target=hidden).start()
";

#[tokio::test]
async fn a_socket_in_a_thread_s_own_table_is_found() {
    let node = Node::start_with(NOBODY, BY_PROC).await;
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let code = HIDES_IN_A_THREAD.replace('@', CONNECTS);
    let mut hiding = Program::start(Command::new(python()).args(["-c", &code, &address.to_string()]));
    let local = hiding.address();
    let attested = node.flow(connector(local, address)).await.unwrap();
    assert_eq!(attested.executions[0].pid, hiding.pid());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_at_once_are_all_named() {
    let node = Node::start_with(NOBODY, BY_PROC).await;
    let pairs: Vec<_> = (0..150).map(|_| pair("127.0.0.1:0", "127.0.0.1")).collect();
    let asked: Vec<_> = pairs
        .iter()
        .map(|(client, _)| {
            let (mut client_of, key) = (node.client.clone(), connector(ends(client).0, ends(client).1));
            tokio::spawn(async move {
                let request = bonafide_proto::wire::node::AttestFlowRequest::from(key);
                client_of.attest_flow(request).await.unwrap().into_inner()
            })
        })
        .collect();
    for task in asked {
        let answer: Result<bonafide_proto::convert::Attestation, _> = task.await.unwrap().try_into().unwrap();
        assert_eq!(answer.unwrap().fingerprint.exe.path, own_exe());
    }
}
