//! The kernel's records, as the enforcer reads them: by its own accepted socket, from the map that the daemon hands out.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, SkStorage};
use bonafide_proto::kernel::{ConnectRecord, STORED_SIZE};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::node::Node;

/// The map of a daemon, and the connection by which it came.
pub(crate) struct Records {
    pub(crate) map: SkStorage<MapData, [u8; STORED_SIZE]>,
    pub(crate) connection: UnixStream,
}

pub(crate) fn socket(node: &Node) -> PathBuf {
    node.path("i.sock.map")
}

impl Records {
    pub(crate) fn of(node: &Node) -> Self {
        Self::at(&socket(node))
    }

    /// What is handed out at this socket.
    pub(crate) fn at(socket: &Path) -> Self {
        let connection = UnixStream::connect(socket).unwrap();
        let map = MapData::from_fd(receive(&connection)).unwrap();
        Self { map: Map::SkStorage(map).try_into().unwrap(), connection }
    }

    pub(crate) fn get(&self, accepted: &TcpStream) -> Option<ConnectRecord> {
        ConnectRecord::stored(|| self.map.get(accepted, 0).ok())
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

/// The record of a connection, where the daemon has any.
pub(crate) fn record(node: &Node, accepted: &TcpStream) -> Option<ConnectRecord> {
    socket(node).exists().then(|| Records::of(node).get(accepted))?
}
