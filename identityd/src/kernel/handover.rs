//! Hands the enforcer the one map it reads: `origins`, by a unix socket beside the daemon's own.
//!
//! The map is frozen, so no descriptor of it can write; and it holds records of sockets only, each read by a descriptor
//! of the socket itself: who has the map learns nothing but whose connections it accepted. It speaks as long as the
//! connection by which it came stays open: after that nobody keeps it up to date.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bonafide_proto::endpoint;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::StreamExt as _;

/// What comes with the descriptor.
const GREETING: &[u8] = b"bonafide-map/1\n";

/// Hands the map out until it is dropped; then every connection ends, and the socket file is gone.
#[derive(Debug)]
pub(crate) struct Handover {
    path: PathBuf,
    handing: JoinHandle<()>,
}

impl Drop for Handover {
    fn drop(&mut self) {
        self.handing.abort();
        if let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!(error = %e, "the socket file {} stays", self.path.display());
        }
    }
}

impl Handover {
    /// Where it is asked for, beside the daemon's socket.
    pub(super) fn path(socket: &Path) -> PathBuf {
        let mut path = socket.as_os_str().to_owned();
        path.push(".map");
        path.into()
    }

    /// Hands `map` to whoever connects and has one of these uids.
    ///
    /// # Errors
    /// As of [`endpoint::bind`].
    pub(super) fn start(path: PathBuf, uids: Vec<u32>, map: OwnedFd) -> io::Result<Self> {
        let callers = endpoint::admit(endpoint::bind(&path)?, uids);
        let map = Arc::new(map);
        let handing = tokio::spawn(async move {
            let mut callers = Box::pin(callers);
            let mut handed = JoinSet::new();
            while let Some(Ok(caller)) = callers.next().await {
                while handed.try_join_next().is_some() {}
                handed.spawn(hand(caller, Arc::clone(&map)));
            }
        });
        Ok(Self { path, handing })
    }
}

async fn hand(caller: UnixStream, map: Arc<OwnedFd>) {
    let sent = caller.async_io(Interest::WRITABLE, || send(&caller, &map)).await;
    match sent {
        Ok(()) => gone(&caller).await,
        Err(e) => tracing::warn!(error = %e, "the kernel's records could not be handed over"),
    }
}

fn send(caller: &UnixStream, map: &OwnedFd) -> io::Result<()> {
    let maps = [map.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = SendAncillaryBuffer::new(&mut space);
    if !with.push(SendAncillaryMessage::ScmRights(&maps)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    // So few bytes into an empty buffer are sent at once or not at all.
    match sendmsg(caller, &[IoSlice::new(GREETING)], &mut with, SendFlags::NOSIGNAL)? {
        sent if sent == GREETING.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Waits until the caller hangs up. Nothing is expected from it.
async fn gone(caller: &UnixStream) {
    let mut said = [0; 64];
    loop {
        if caller.readable().await.is_err() {
            return;
        }
        match caller.try_read(&mut said) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
