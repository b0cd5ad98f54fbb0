//! The map that the enforcer reads.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use crate::accept::Front;
use crate::node::{CONNECTS, NOBODY, Node, Program, python};
use crate::records::{Records, socket};

#[tokio::test(flavor = "multi_thread")]
async fn the_map_can_be_read_by_an_accepted_socket_and_not_written() {
    let front = Front::start(NOBODY, "127.0.0.1:0").await;
    let mut program = Program::start(Command::new(python()).args(["-c", CONNECTS, &front.address().to_string()]));
    program.address();
    let accepted = front.accept();
    let record = accepted.record.unwrap();
    assert_eq!(record.pid, program.pid());
    assert_eq!(record.uid, rustix::process::geteuid().as_raw());
    let mut records = Records::of(&front.node);
    let kept = records.map.get(&accepted.stream, 0).unwrap();
    assert!(records.map.insert(&accepted.stream, kept, 0).is_err());
    assert!(records.map.remove(&accepted.stream).is_err());
    assert_eq!(records.get(&accepted.stream), Some(record));
    // Nobody connected this one.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(records.get(&client), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_ends_with_the_daemon() {
    let node = Node::start(NOBODY).await;
    let mut records = Records::of(&node);
    let socket = socket(&node);
    node.stop().await;
    assert_eq!(records.connection.read(&mut [0; 8]).unwrap(), 0);
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_admitted_gets_no_map() {
    let node = Node::start(NOBODY).await;
    std::fs::set_permissions(node.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let asks = format!(
        "import os, socket\nos.setuid(65534)\ns = socket.socket(socket.AF_UNIX)\ns.connect({:?})\nprint(socket.recv_fds(s, 64, 4), flush=True)",
        socket(&node).display().to_string()
    );
    let mut asking = Program::start(Command::new(python()).args(["-c", &asks]));
    assert_eq!(asking.line(), "(b'', [], 0, None)");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_programs_there_is_no_map() {
    let node = Node::start_with(NOBODY, "source = \"proc\"").await;
    assert!(!socket(&node).exists());
    let status = node.status().await;
    assert_eq!(status.source, "proc");
    assert!(status.source_reason.contains("source = \"proc\""), "{}", status.source_reason);
}
