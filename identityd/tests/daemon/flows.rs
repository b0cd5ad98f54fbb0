//! Flows that nobody stands in, as the kernel tells of them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use bonafide_proto::observed::{Ending, ObservedFlow, Protocol};
use bonafide_proto::refusal::AttestReason;
use bonafide_proto::wire::node as wire;
use tonic::Streaming;

use crate::node::{NOBODY, Node, PATIENCE, Program, digest_of, own_exe, python};

const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

struct Flows(Streaming<wire::ObservedFlow>);

impl Flows {
    async fn of(node: &Node, connections: bool) -> Self {
        let answer = node.client.clone().watch_flows(wire::WatchFlowsRequest { connections, quiet: false }).await;
        Self(answer.unwrap().into_inner())
    }

    /// The next flow that this picks; other tests have theirs.
    async fn next(&mut self, picked: impl Fn(&ObservedFlow) -> bool) -> ObservedFlow {
        let found = async {
            loop {
                let flow = self.0.message().await.unwrap().unwrap();
                // Another test has the kernel miss some of its own, which is then told alone.
                if flow.id.is_empty() {
                    continue;
                }
                let flow = ObservedFlow::try_from(flow).unwrap();
                if picked(&flow) {
                    return flow;
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("no such flow was told of")
    }

    /// Both ends of a flow inside this host.
    async fn both(&mut self, source: SocketAddr, destination: SocketAddr) -> [ObservedFlow; 2] {
        let mut ends = Vec::new();
        while ends.len() < 2 {
            let ours = |flow: &ObservedFlow| {
                let pair = if flow.source { (flow.local, flow.remote) } else { (flow.remote, flow.local) };
                pair == (source, destination)
            };
            ends.push(self.next(ours).await);
        }
        ends.sort_by_key(|flow| !flow.source);
        let ends: [ObservedFlow; 2] = ends.try_into().unwrap();
        assert_eq!(ends.each_ref().map(|flow| flow.source), [true, false]);
        let [source, destination] = &ends;
        assert_eq!(source.id, destination.id);
        for (here, there) in [(source, destination), (destination, source)] {
            assert_eq!(here.there.as_ref().unwrap().attested, there.here, "each names the other");
        }
        ends
    }
}

fn assert_ours(flow: &ObservedFlow) {
    let here = flow.here.as_ref().unwrap();
    assert_eq!(here.fingerprint.exe.path, own_exe());
    assert_eq!(here.fingerprint.exe.digest, digest_of(own_exe()));
    assert!(here.executions.iter().any(|execution| execution.pid == std::process::id()));
    assert!(flow.started_ns > 0 && flow.started_ns <= flow.ended_ns);
}

fn pair(ip: &str) -> (TcpStream, TcpStream, SocketAddr, SocketAddr) {
    let listener = TcpListener::bind(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, from) = listener.accept().unwrap();
    let to = server.local_addr().unwrap();
    (client, server, from, to)
}

#[tokio::test]
async fn a_connection_is_told_of_at_both_ends_with_its_bytes_and_programs() {
    let node = Node::start(NOBODY).await;
    let mut flows = Flows::of(&node, true).await;
    for ip in LOOPBACK {
        let (mut client, mut server, from, to) = pair(ip);
        client.write_all(&[1; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        server.write_all(&[2; 70_000]).unwrap();
        client.read_exact(&mut vec![0; 70_000]).unwrap();
        drop(client);
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        drop(server);
        for flow in flows.both(from, to).await {
            assert_eq!((flow.protocol, flow.ending), (Protocol::Tcp, Ending::Closed), "{flow:#?}");
            assert_eq!((flow.sent, flow.received), (1000, 70_000), "{flow:#?}");
            assert_ours(&flow);
        }
    }
    node.stop().await;
}

/// The client's end is over, the server's is not.
#[tokio::test]
async fn a_connection_names_a_server_that_has_not_closed_its_end() {
    let node = Node::start(NOBODY).await;
    let mut flows = Flows::of(&node, true).await;
    for ip in LOOPBACK {
        let (mut client, mut server, from, to) = pair(ip);
        client.write_all(b"hello").unwrap();
        server.read_exact(&mut [0; 5]).unwrap();
        drop(client);
        let source = flows.next(|flow| flow.local == from && flow.source).await;
        assert_ours(&ObservedFlow { here: source.there.clone().unwrap().attested, ..source.clone() });
        drop(server);
        let destination = flows.next(|flow| flow.local == to && flow.remote == from).await;
        assert_eq!((&destination.id, destination.there.unwrap().attested), (&source.id, source.here));
    }
    node.stop().await;
}

#[tokio::test]
async fn resets_are_told_from_closes_and_who_made_them() {
    let node = Node::start(NOBODY).await;
    let mut flows = Flows::of(&node, true).await;
    for ip in LOOPBACK {
        let (client, mut server, from, to) = pair(ip);
        server.write_all(b"unread").unwrap();
        drop(client);
        assert!(server.read(&mut [0; 8]).is_err());
        drop(server);
        let [source, destination] = flows.both(from, to).await;
        assert_eq!((source.ending, destination.ending), (Ending::ResetHere, Ending::ResetThere));
    }
    node.stop().await;
}

/// From an address of its own: each has so many attempts told of.
fn knock(from: SocketAddr, to: SocketAddr) -> SocketAddr {
    use rustix::net::{AddressFamily, SocketType, bind, connect, getsockname, socket};
    let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None).unwrap();
    bind(&socket, &from).unwrap();
    assert_eq!(connect(&socket, &to), Err(rustix::io::Errno::CONNREFUSED));
    getsockname(&socket).unwrap().try_into().unwrap()
}

fn nobody_at(ip: &str) -> SocketAddr {
    TcpListener::bind(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_refused_attempt_is_told_of_at_both_ends() {
    let node = Node::start(NOBODY).await;
    let mut flows = Flows::of(&node, true).await;
    for ip in ["127.9.4.1", "::1"] {
        let nobody = nobody_at(ip);
        let from = knock(SocketAddr::new(ip.parse().unwrap(), 0), nobody);
        let ends = flows.both(from, nobody).await;
        for flow in &ends {
            assert_eq!((flow.protocol, flow.ending), (Protocol::Tcp, Ending::Refused), "{flow:#?}");
            assert_eq!((flow.sent, flow.received), (0, 0));
        }
        let [source, destination] = ends;
        assert_ours(&source);
        assert_eq!(destination.here.unwrap_err().reason, AttestReason::NoSocket, "there is no program");
    }
    node.stop().await;
}

/// A flood costs no more than this, and what it hides is counted.
#[tokio::test]
async fn one_source_has_so_many_refusals_told_of_and_the_rest_is_counted() {
    const KNOCKS: u64 = 300;
    let node = Node::start(NOBODY).await;
    assert!(node.status().await.not_observed.is_empty(), "this kernel shows them");
    let mut flows = Flows::of(&node, true).await;
    let nobody = nobody_at("127.9.3.2");
    for _ in 0..KNOCKS {
        knock("127.9.3.1:0".parse().unwrap(), nobody);
    }
    // Of another one, which comes later.
    let other = knock("127.9.3.3:0".parse().unwrap(), nobody);
    let mut told = 0;
    while flows.next(|flow| flow.local == nobody).await.remote != other {
        told += 1;
    }
    assert!(0 < told && told < KNOCKS, "{told}");
    let counted = async {
        while told + node.status().await.attempts_only_counted < KNOCKS {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("every attempt is told of or counted");
    node.stop().await;
}

/// Asks itself for a connection, and does not let the answer in.
fn half_open(ip: &str) -> (Program, SocketAddr, SocketAddr) {
    let mut command = Command::new(python());
    command.args(["-c", include_str!("half_open.py"), ip]).stdin(std::process::Stdio::piped());
    let mut program = Program::start(&mut command);
    let ports = program.line();
    let (from, to) = ports.split_once(' ').unwrap();
    let at = |port: &str| SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap());
    let (from, to) = (at(from), at(to));
    (program, from, to)
}

#[tokio::test]
async fn a_handshake_that_is_never_done_is_told_of_at_both_ends() {
    let node = Node::start(NOBODY).await;
    let mut flows = Flows::of(&node, true).await;
    for ip in ["127.9.5.1", "::1"] {
        let (mut program, from, to) = half_open(ip);
        assert_eq!(program.line(), "failed");
        for flow in flows.both(from, to).await {
            assert_eq!((flow.protocol, flow.ending), (Protocol::Tcp, Ending::Unanswered), "{flow:#?}");
            assert_eq!((flow.sent, flow.received), (0, 0));
            let here = flow.here.unwrap();
            assert_eq!(here.fingerprint.exe.path, python().to_str().unwrap(), "the destination names who listens");
            assert!(here.executions.iter().any(|execution| execution.pid == program.pid()));
        }
    }
    node.stop().await;
}

/// The program that sees the states of connections comes and goes with those who want to know of them.
#[tokio::test]
async fn attempts_are_told_of_again_after_nobody_wanted_them() {
    let node = Node::start(NOBODY).await;
    let mut flows = Flows::of(&node, false).await;
    let unheard = knock("127.9.7.1:0".parse().unwrap(), nobody_at("127.9.7.1"));
    for ip in ["127.9.7.1", "127.9.7.2"] {
        let nobody = nobody_at(ip);
        let wanted = Flows::of(&node, true).await;
        let (kept, kept_server, from, to) = pair(ip);
        let heard = knock(SocketAddr::new(ip.parse().unwrap(), 0), nobody);
        assert_ne!(heard, unheard);
        let told = flows.next(|flow| flow.local == nobody).await;
        assert_eq!(told.remote, heard);
        drop(wanted);
        drop((kept, kept_server));
        flows.both(from, to).await;
    }
    node.stop().await;
}

#[tokio::test]
async fn datagrams_are_counted_until_their_socket_closes() {
    let node = Node::start(NOBODY).await;
    let mut flows = Flows::of(&node, false).await;
    for ip in LOOPBACK {
        let ip: IpAddr = ip.parse().unwrap();
        for connected in [true, false] {
            let server = UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap();
            let client = UdpSocket::bind(SocketAddr::new(if connected { ip } else { any(ip) }, 0)).unwrap();
            let to = server.local_addr().unwrap();
            for _ in 0..3 {
                if connected {
                    client.connect(to).unwrap();
                    client.send(&[0; 100]).unwrap();
                } else {
                    client.send_to(&[0; 100], to).unwrap();
                }
                let (_, from) = server.recv_from(&mut [0; 200]).unwrap();
                server.send_to(&[0; 40], from).unwrap();
                client.recv_from(&mut [0; 200]).unwrap();
            }
            let from = SocketAddr::new(ip, client.local_addr().unwrap().port());
            drop((client, server));
            for flow in flows.both(from, to).await {
                assert_eq!((flow.protocol, flow.ending), (Protocol::Udp, Ending::Closed), "{flow:#?}");
                assert_eq!((flow.sent, flow.received), (300, 120), "{flow:#?}");
                assert_ours(&flow);
            }
        }
    }
    node.stop().await;
}

fn any(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { "0.0.0.0".parse().unwrap() } else { "::".parse().unwrap() }
}

#[tokio::test]
async fn a_datagram_to_nobody_is_refused() {
    let node = Node::start(NOBODY).await;
    let mut flows = Flows::of(&node, false).await;
    for ip in LOOPBACK {
        let ip: IpAddr = ip.parse().unwrap();
        let nobody = UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap().local_addr().unwrap();
        let client = UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap();
        client.connect(nobody).unwrap();
        client.send(b"hello").unwrap();
        assert!(client.recv(&mut [0; 8]).is_err());
        drop(client);
        let flow = flows.next(|flow| flow.remote == nobody).await;
        assert_eq!((flow.ending, flow.sent, flow.received), (Ending::Refused, 5, 0));
    }
    node.stop().await;
}

/// A program that is gone before anybody can look at it is refused by name, or known; never taken for another.
#[tokio::test]
async fn short_lived_programs_are_known_or_refused_by_name() {
    let node = Node::start(NOBODY).await;
    let mut flows = Flows::of(&node, true).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    for _ in 0..5 {
        let port = to.port();
        let script = format!("import socket; socket.create_connection(('127.0.0.1', {port})).close()");
        assert!(Command::new(python()).args(["-c", &script]).status().unwrap().success());
        drop(listener.accept().unwrap());
        let source = flows.next(|flow| flow.source && flow.remote == to).await;
        match &source.here {
            Ok(here) => {
                assert_eq!(here.fingerprint.exe.path, std::fs::canonicalize(python()).unwrap().to_str().unwrap())
            }
            Err(refusal) => {
                let named = [AttestReason::ProcessGone, AttestReason::GenerationGone];
                assert!(named.contains(&refusal.reason), "{refusal:?}");
            }
        }
    }
    node.stop().await;
}

#[tokio::test]
async fn connections_are_told_of_only_to_who_wants_them_and_to_their_end() {
    let node = Node::start(NOBODY).await;
    let mut datagrams = Flows::of(&node, false).await;
    let (client, server, _, unheard) = pair("127.0.0.1");
    let all = Flows::of(&node, true).await;
    let (kept, kept_server, from, to) = pair("127.0.0.1");
    drop((client, server));
    drop(all);
    drop((kept, kept_server));
    // The programs stayed for the first listener; what had begun is told of, what was never wanted is not.
    for flow in datagrams.both(from, to).await {
        assert_ne!(flow.local, unheard);
    }
    node.stop().await;
}

/// An end that follows from another one is no reason for a third. Each socket here has spoken to the one before it.
#[tokio::test]
async fn one_flow_s_end_does_not_end_a_chain_of_others() {
    const LENGTH: u8 = 200;
    let node = Node::start(NOBODY).await;
    let mut flows = Flows::of(&node, false).await;
    let sink = UdpSocket::bind("127.9.1.0:0").unwrap();
    let port = sink.local_addr().unwrap().port();
    let at = |number: u8| SocketAddr::from(([127, 9, 1, number], port));
    let mut chain: Vec<UdpSocket> = (1..=LENGTH).map(|number| UdpSocket::bind(at(number)).unwrap()).collect();
    for (socket, number) in chain.iter().zip(0..) {
        socket.send_to(b"hello", at(number)).unwrap();
    }
    let of_chain = move |flow: &ObservedFlow| flow.remote.port() == port;
    drop(chain.remove(0));
    assert_eq!(flows.next(of_chain).await.local, at(1));
    // Whatever had ended with it would be told of before this.
    drop(chain.pop());
    assert_eq!(flows.next(of_chain).await.local, at(LENGTH));
    drop((chain, sink));
    node.stop().await;
}

/// Datagrams with forged senders make one socket's flows as many as they like; the others' have room.
#[tokio::test]
async fn a_socket_has_so_many_flows_at_once_and_the_rest_is_counted() {
    const ROOM: u32 = 4096;
    const MORE: u32 = 10;
    let node = Node::start(NOBODY).await;
    let mut stream = Flows::of(&node, false).await.0;
    let crowded = UdpSocket::bind("127.9.2.1:0").unwrap();
    let port = crowded.local_addr().unwrap().port();
    for number in 0..ROOM + MORE {
        let [_, _, high, low] = number.to_be_bytes();
        crowded.send_to(b"hello", SocketAddr::from(([127, 10, high, low], 9))).unwrap();
    }
    drop(crowded);
    let (mut told, mut missed) = (0, 0);
    let all = async {
        while (told, missed) != (ROOM, u64::from(MORE)) {
            let flow = stream.message().await.unwrap().unwrap();
            missed += flow.missed;
            if !flow.id.is_empty() && ObservedFlow::try_from(flow).unwrap().local.port() == port {
                told += 1;
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, all).await;
    assert!(ended.is_ok(), "{told} flows were told of, {missed} were not");

    // What has ended makes room again.
    let again = UdpSocket::bind("127.9.2.1:0").unwrap();
    let from = again.local_addr().unwrap();
    again.send_to(b"hello", "127.10.0.1:9").unwrap();
    drop(again);
    Flows(stream).next(|flow| flow.local == from).await;
    node.stop().await;
}
