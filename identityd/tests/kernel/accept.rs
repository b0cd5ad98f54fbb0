//! What the enforcer does: it accepts a connection, and reads by the accepted socket who connected.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use aya::maps::{Map, MapData, SkStorage};
use bonafide_proto::convert::Attestation;
use bonafide_proto::kernel::{ConnectRecord, RECORD_SIZE};
use bonafide_proto::refusal::AttestRefusal;
use bonafide_proto::wire::node as wire;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::node::{Node, connector};

/// The map of a daemon, and the connection by which it came.
pub(crate) struct Records {
    pub(crate) map: SkStorage<MapData, [u8; RECORD_SIZE]>,
    pub(crate) connection: UnixStream,
}

pub(crate) fn socket(node: &Node) -> PathBuf {
    node.path("i.sock.map")
}

impl Records {
    pub(crate) fn of(node: &Node) -> Self {
        let connection = UnixStream::connect(socket(node)).unwrap();
        let map = MapData::from_fd(receive(&connection)).unwrap();
        Self { map: Map::SkStorage(map).try_into().unwrap(), connection }
    }

    pub(crate) fn get(&self, accepted: &TcpStream) -> Option<ConnectRecord> {
        let bytes = self.map.get(accepted, 0).ok()?;
        Some(ConnectRecord::parse(&bytes).unwrap())
    }
}

fn receive(connection: &UnixStream) -> OwnedFd {
    let mut greeting = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut with = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(connection, &mut [IoSliceMut::new(&mut greeting)], &mut with, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert_eq!(&greeting[..received.bytes], b"bonafide-map/1\n");
    let mut descriptors = with.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => rights.collect(),
        _ => Vec::new(),
    });
    let map = descriptors.next().unwrap();
    assert!(descriptors.next().is_none());
    map
}

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

impl Front {
    pub(crate) async fn start(policy: &str, listen: &str) -> Self {
        let node = Node::start(policy).await;
        Self { records: Records::of(&node), node, listener: TcpListener::bind(listen).unwrap() }
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
        let kernel = accepted.record.expect("it has no record").to_bytes().to_vec();
        let request = wire::AttestFlowRequest { kernel, ..connector(accepted.peer, accepted.local).into() };
        self.node.client.clone().attest_flow(request).await.unwrap().into_inner().try_into().unwrap()
    }
}
