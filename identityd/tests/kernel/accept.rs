//! What the enforcer does: it accepts a connection, and reads by the accepted socket who connected.

use std::net::{SocketAddr, TcpListener, TcpStream};

use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::Execution;
use bonafide_proto::kernel::ConnectRecord;
use bonafide_proto::refusal::AttestRefusal;
use bonafide_proto::wire::node as wire;

use crate::node::{Node, connector};
use crate::records::Records;

/// Both families, wherever there is a port.
pub(crate) const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// A daemon, and a listener in front of it.
pub(crate) struct Front {
    pub(crate) node: Node,
    pub(crate) records: Records,
    listener: TcpListener,
}

/// A connection that was accepted.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) record: Option<ConnectRecord>,
}

/// A listener, and what a daemon left.
pub(crate) struct Stopped {
    dir: tempfile::TempDir,
    listener: TcpListener,
}

impl Stopped {
    pub(crate) async fn started(self) -> Front {
        let node = Node::start_in(self.dir).await;
        Front { records: Records::of(&node), node, listener: self.listener }
    }
}

impl Front {
    pub(crate) async fn start(policy: &str, listen: &str) -> Self {
        let node = Node::start(policy).await;
        Self { records: Records::of(&node), node, listener: TcpListener::bind(listen).unwrap() }
    }

    /// Another daemon in the place of this one.
    pub(crate) async fn restarted(self) -> Self {
        self.stopped().await.started().await
    }

    /// Without a daemon.
    pub(crate) async fn stopped(self) -> Stopped {
        let Self { node, listener, records } = self;
        drop(records);
        Stopped { dir: node.stopped().await, listener }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub(crate) fn accept(&self) -> Accepted {
        let (stream, peer) = self.listener.accept().unwrap();
        let (local, record) = (stream.local_addr().unwrap(), self.records.get(&stream));
        Accepted { stream, peer, local, record }
    }

    /// The daemon's answer about the program at the other end.
    pub(crate) async fn attest(&self, accepted: &Accepted) -> Result<Attestation, AttestRefusal> {
        let record = accepted.record.expect("it has no record");
        self.node.flow_by(connector(accepted.peer, accepted.local), Some(record)).await
    }

    /// The daemon's answer about executions that were attested before.
    pub(crate) async fn again(&self, executions: &[Execution]) -> Result<Attestation, AttestRefusal> {
        let executions = executions.iter().map(|execution| (*execution).into()).collect();
        let answer = self.node.client.clone().reattest(wire::ReattestRequest { executions, sockets: Vec::new() }).await;
        answer.unwrap().into_inner().try_into().unwrap()
    }
}
