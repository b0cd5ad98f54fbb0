//! Connections in the hands of another program than the one that connected: each use is told, however it is used.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use bonafide_proto::refusal::AttestReason;
use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::lapse::{Flow, Of};
use tonic::Streaming;

use crate::accept::{Accepted, Front, LOOPBACKS};
use crate::attacks::odd;
use crate::connectors::{Obedient, pids};
use crate::node::{NOBODY, PATIENCE, Program, python};

type Lapses = Streaming<wire::Lapse>;

pub(crate) async fn listen(front: &Front) -> Lapses {
    front.node.client.clone().watch_lapses(wire::WatchLapsesRequest {}).await.unwrap().into_inner()
}

/// The next lapse of this connection; other tests' are heard, too.
async fn ended(lapses: &mut Lapses, accepted: &Accepted) -> Flow {
    let told = async {
        loop {
            let lapse = lapses.message().await.unwrap().unwrap();
            let Some(Of::Flow(flow)) = lapse.of else { continue };
            if flow.local == Some(accepted.peer.into()) && flow.remote == Some(accepted.local.into()) {
                assert_eq!(lapse.reason, AttestReason::TwoPrograms.as_str());
                return flow;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("nothing was heard")
}

/// Hands the program's connection to another one, which asks for it at this unix socket.
pub(crate) fn hand(program: &mut Obedient, unix: &Path, command: &mut Command) -> Program {
    let _ = std::fs::remove_file(unix);
    program.does(&format!("u = socket.socket(socket.AF_UNIX); u.bind({unix:?}); u.listen()"));
    let other = Program::start(command.arg(unix));
    program.does("c, _ = u.accept(); socket.send_fds(c, [b'x'], [s.fileno()])");
    other
}

/// Python that receives a connection over the unix socket that is its last argument, and goes on writing to it.
pub(crate) const GOES_ON: &str = r"
import socket, sys, time
unix = socket.socket(socket.AF_UNIX)
unix.connect(sys.argv[-1])
_, [fd], _, _ = socket.recv_fds(unix, 1, 1)
handed = socket.socket(fileno=fd)
handed.send(b'x')
print('sent', flush=True)
while True:
    handed.send(b'x')
    time.sleep(.005)
";

#[tokio::test(flavor = "multi_thread")]
async fn who_uses_a_connection_before_it_is_attested_is_told_of_afterwards_too() {
    for listens in LOOPBACKS {
        let front = Front::start(NOBODY, listens).await;
        let mut lapses = listen(&front).await;
        let mut program = Obedient::start(&front);
        program.does("s = socket.create_connection(server)");
        let mut other = hand(&mut program, &front.node.path("unix"), Command::new(python()).args(["-c", GOES_ON]));
        assert_eq!(other.line(), "sent");
        // It waited to be accepted all that time.
        let accepted = front.accept();
        ended(&mut lapses, &accepted).await;
        assert_eq!(pids(&front.attest(&accepted).await.unwrap()), [program.0.pid()]);
        let told = ended(&mut listen(&front).await, &accepted).await;
        assert_eq!(told.used_by.unwrap().pid, other.pid());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_read_and_write_is_a_use() {
    for listens in LOOPBACKS {
        let front = Front::start(NOBODY, listens).await;
        let odd = odd(&front);
        let mut program = Obedient::start(&front);
        for way in ["recv", "peek", "splice-from", "zerocopy", "splice-into", "sendfile"] {
            let accepted = program.connects(&front);
            front.attest(&accepted).await.unwrap();
            (&accepted.stream).write_all(b"for whoever reads it").unwrap();
            let mut lapses = listen(&front).await;
            let mut other = hand(&mut program, &front.node.path("unix"), Command::new(&odd).args(["use", way]));
            assert_eq!(other.line(), "used", "{way}");
            assert_eq!(ended(&mut lapses, &accepted).await.used_by.unwrap().pid, other.pid(), "{way}");
        }
    }
}
