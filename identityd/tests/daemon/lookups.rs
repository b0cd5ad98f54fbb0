//! Asked by the address of a socket.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use bonafide_proto::refusal::AttestReason;
use bonafide_proto::wire::node::AttestProcessRequest;
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::node::{CONNECTS, NOBODY, Node, Program, own_exe, python};

#[tokio::test]
async fn a_listening_address_is_its_servers_and_a_connected_one_its_clients() {
    let node = Node::start(NOBODY).await;
    for (listen, ask) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1"), ("[::]:0", "::1")]
    {
        let server = TcpListener::bind(listen).unwrap();
        let address = SocketAddr::new(ask.parse().unwrap(), server.local_addr().unwrap().port());
        let connects = ["-c", CONNECTS, &address.to_string()];
        let mut client = Program::start(Command::new(python()).args(connects));
        let theirs = client.address();
        assert_eq!(node.socket(address).await.unwrap().fingerprint.exe.path, own_exe(), "{listen} asked as {ask}");
        let attested = node.socket(theirs).await.unwrap();
        assert_eq!(attested.executions.iter().map(|e| e.pid).collect::<Vec<_>>(), [client.pid()]);

        // A server that listens no longer still has its connections.
        let (_accepted, peer) = server.accept().unwrap();
        assert_eq!(peer.port(), theirs.port());
        drop(server);
        assert_eq!(node.socket(address).await.unwrap().fingerprint.exe.path, own_exe());
    }
}

#[tokio::test]
async fn connections_from_one_address_must_be_one_programs() {
    let node = Node::start(NOBODY).await;
    let servers = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    let [first, second] = servers.each_ref().map(|server| server.local_addr().unwrap());
    let script = "import socket, sys, time\n\
        def go(to, local):\n s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n \
        s.bind(('127.0.0.1', local)); s.connect(('127.0.0.1', to)); return s\n\
        a = go(int(sys.argv[1]), int(sys.argv[3])); port = a.getsockname()[1]\n\
        b = go(int(sys.argv[2]), port) if sys.argv[2] != '0' else None\n\
        print(f'127.0.0.1:{port}', flush=True); time.sleep(1000)\n";
    let start = |a: u16, b: u16, local: u16| {
        let ports = [a, b, local].map(|port| port.to_string());
        Program::start(Command::new(python()).args(["-c", script]).args(ports))
    };
    let mut alone = start(first.port(), second.port(), 0);
    let address = alone.address();
    let attested = node.socket(address).await.unwrap();
    assert_eq!(attested.executions.iter().map(|e| e.pid).collect::<Vec<_>>(), [alone.pid()]);
    drop(alone);

    let mut one = start(first.port(), 0, 0);
    let address = one.address();
    let ours = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_reuseaddr(&ours, true).unwrap();
    rustix::net::bind(&ours, &address).unwrap();
    rustix::net::connect(&ours, &second).unwrap();
    assert_eq!(node.socket(address).await.unwrap_err().reason, AttestReason::TwoPrograms);
}

#[tokio::test]
async fn nobody_s_address_is_refused_by_name() {
    let node = Node::start(NOBODY).await;
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = server.local_addr().unwrap();
    drop(server);
    for (address, reason) in [
        (free, AttestReason::NoSocket),
        ("0.0.0.0:80".parse().unwrap(), AttestReason::BadRequest),
        ("[::]:80".parse().unwrap(), AttestReason::BadRequest),
        ("127.0.0.1:0".parse().unwrap(), AttestReason::BadRequest),
    ] {
        assert_eq!(node.socket(address).await.unwrap_err().reason, reason, "{address}");
    }
    // In TIME_WAIT it has no owner.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let address = client.local_addr().unwrap();
    drop(client);
    let (accepted, _) = server.accept().unwrap();
    drop(accepted);
    assert_eq!(node.socket(address).await.unwrap_err().reason, AttestReason::NoSocket);
}

#[tokio::test]
async fn a_container_that_nobody_is_in_is_refused_by_name_and_two_questions_at_once_are_none() {
    let node = Node::start(NOBODY).await;
    for (named, reason) in [
        ("0123456789ab", AttestReason::ProcessGone),
        ("no-such-container", AttestReason::ProcessGone),
        (&"x".repeat(129), AttestReason::BadRequest),
    ] {
        let refused = node.asked(AttestProcessRequest { container: named.into(), ..Default::default() }).await.unwrap();
        assert_eq!(refused.unwrap_err().reason, reason, "{named}");
    }
    let socket = Some("127.0.0.1:1".parse::<SocketAddr>().unwrap().into());
    for both in [
        AttestProcessRequest { pid: 1, container: "c".into(), ..Default::default() },
        AttestProcessRequest { pid: 1, socket: socket.clone(), ..Default::default() },
        AttestProcessRequest { socket, container: "c".into(), ..Default::default() },
    ] {
        assert_eq!(node.asked(both).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
