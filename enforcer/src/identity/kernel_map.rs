//! What the kernel wrote down about who connected, read by the very connection that was accepted.
//!
//! identityd hands its map over through `<its socket>.map` and keeps that connection open: its end means that the map
//! is stale. Whoever listens there was put there by root, who owns the directory; nothing else of him is checked, as
//! with the socket beside it. No such socket: the kernel programs do not run, and there is no record of anything.

use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{Map, MapData, SkStorage};
use bonafide_proto::kernel::{ConnectRecord, STORED_SIZE};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::watch::{PAUSE_MAX, PAUSE_MIN};

/// What comes with the map.
const GREETING: &[u8; 15] = b"bonafide-map/1\n";
/// The longest identityd may take to hand it over.
const PATIENCE: Duration = Duration::from_secs(2);

/// The map: a socket's own record, by its descriptor.
type Accepted = SkStorage<MapData, [u8; STORED_SIZE]>;

/// The map as it is now.
#[derive(Debug, Default)]
struct State {
    map: Option<Accepted>,
    /// Attempts to get one that failed.
    failures: u64,
}

/// Reads the kernel's records. Clones share what they have.
#[derive(Debug, Clone)]
pub(super) struct KernelMap {
    socket: Arc<Path>,
    state: watch::Receiver<State>,
    wanted: Arc<Notify>,
}

/// Gets the map, and gets it again whenever it went stale.
#[derive(Debug)]
pub(super) struct Fetching {
    socket: Arc<Path>,
    state: watch::Sender<State>,
    wanted: Arc<Notify>,
}

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("what came is no hand-over of a map: it has {bytes} bytes and {descriptors} descriptors")]
    Greeting { bytes: usize, descriptors: usize },
    #[error("what was handed over is no map of records of {STORED_SIZE} bytes: {0}")]
    Map(#[from] aya::maps::MapError),
    #[error("nothing was handed over within {} s", PATIENCE.as_secs())]
    Late,
}

/// A reader, and what has to run for it.
pub(super) fn beside(identityd: &Path) -> (KernelMap, Fetching) {
    let mut socket = OsString::from(identityd);
    socket.push(".map");
    let socket: Arc<Path> = PathBuf::from(socket).into();
    let (sender, state) = watch::channel(State::default());
    let wanted = Arc::new(Notify::new());
    let fetching = Fetching { socket: Arc::clone(&socket), state: sender, wanted: Arc::clone(&wanted) };
    (KernelMap { socket, state, wanted }, fetching)
}

impl KernelMap {
    /// The record that the kernel joined to this accepted connection.
    ///
    /// None of a connection that has none: what that means is for identityd to say, who knows whether it should have.
    pub(super) async fn record(&self, accepted: &impl AsRawFd) -> Option<ConnectRecord> {
        if let Some(map) = &self.state.borrow().map {
            return read(map, accepted);
        }
        self.arrival().await;
        self.state.borrow().map.as_ref().and_then(|map| read(map, accepted))
    }

    /// identityd was away a moment ago and has the socket open again: its records are worth one attempt.
    async fn arrival(&self) {
        if !self.socket.exists() {
            return;
        }
        let mut state = self.state.clone();
        let failures = state.borrow().failures;
        self.wanted.notify_one();
        let _ = timeout(PATIENCE, state.wait_for(|now| now.map.is_some() || now.failures > failures)).await;
    }
}

fn read(map: &Accepted, accepted: &impl AsRawFd) -> Option<ConnectRecord> {
    ConnectRecord::stored(|| map.get(accepted, 0).ok())
}

impl Fetching {
    /// For ever.
    pub(super) async fn run(self) {
        let mut pause = PAUSE_MIN;
        let mut complained = false;
        loop {
            match fetch(&self.socket).await {
                Ok((identityd, map)) => {
                    tracing::info!("who connects is known from the kernel's own records");
                    self.state.send_modify(|state| state.map = Some(map));
                    (pause, complained) = (PAUSE_MIN, false);
                    gone(identityd).await;
                    self.state.send_modify(|state| state.map = None);
                }
                Err(e) => {
                    if !complained && !is_absent(&e) {
                        tracing::warn!(error = %e, socket = %self.socket.display(), "no kernel records");
                        complained = true;
                    }
                    self.state.send_modify(|state| state.failures += 1);
                }
            }
            tokio::select! {
                () = sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
                () = self.wanted.notified() => {}
            }
        }
    }
}

/// The fallback has no such socket; an identityd that was killed leaves one behind where nobody listens.
fn is_absent(e: &FetchError) -> bool {
    matches!(e, FetchError::Io(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
}

async fn fetch(socket: &Path) -> Result<(UnixStream, Accepted), FetchError> {
    let handed = async {
        let identityd = UnixStream::connect(socket).await?;
        let (greeting, descriptors) = message(&identityd).await?;
        let map = one_map(&greeting, descriptors)?;
        Ok((identityd, map))
    };
    timeout(PATIENCE, handed).await.unwrap_or(Err(FetchError::Late))
}

/// One message with all its descriptors, of which there may be one.
async fn message(identityd: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    loop {
        identityd.readable().await?;
        match identityd.try_io(Interest::READABLE, || receive(identityd)) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

fn receive(identityd: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut greeting = [0; GREETING.len()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(identityd, &mut [IoSliceMut::new(&mut greeting)], &mut control, flags)?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more than one descriptor was handed over"));
    }
    Ok((greeting.get(..received.bytes).unwrap_or_default().to_vec(), descriptors))
}

fn one_map(greeting: &[u8], mut descriptors: Vec<OwnedFd>) -> Result<Accepted, FetchError> {
    let count = descriptors.len();
    match (descriptors.pop(), count) {
        (Some(map), 1) if greeting == GREETING => Ok(Accepted::try_from(Map::from_map_data(MapData::from_fd(map)?)?)?),
        _ => Err(FetchError::Greeting { bytes: greeting.len(), descriptors: count }),
    }
}

/// Waits for the end of the connection, or anything else that is not silence.
async fn gone(mut identityd: UnixStream) {
    let _ = identityd.read(&mut [0]).await;
    tracing::warn!("identityd is away, and its kernel records with it");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;
    use std::os::fd::AsFd as _;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use tokio::net::{TcpListener, TcpStream, UnixListener};

    const LONG: Duration = Duration::from_secs(20);

    /// Hands over something that is no map of records.
    fn hand_over(to: &UnixStream, bytes: &[u8], descriptors: usize) {
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = vec![file.as_fd(); descriptors];
        if descriptors > 0 {
            assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        }
        sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    }

    fn open_files() -> usize {
        let own = std::fs::read_dir("/proc/self/fd").unwrap();
        own.filter(|entry| {
            let target = std::fs::read_link(entry.as_ref().unwrap().path());
            target.is_ok_and(|target| target == Path::new("/dev/null"))
        })
        .count()
    }

    async fn accepted() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, client)
    }

    #[tokio::test]
    async fn what_is_no_hand_over_gives_no_map_and_leaves_no_descriptor_open() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s.map")).unwrap();
        let before = open_files();
        let cases: [(&[u8], usize); 6] = [
            (GREETING, 0),
            (GREETING, 1),
            (GREETING, 2),
            (GREETING, 5),
            (b"bonafide-map/2\n", 1),
            (&GREETING[..14], 1),
        ];
        for (bytes, descriptors) in cases {
            let serve = async {
                let (to, _) = listener.accept().await.unwrap();
                hand_over(&to, bytes, descriptors);
                to
            };
            let path = dir.path().join("s.map");
            let (fetched, _kept) = tokio::join!(fetch(&path), serve);
            assert!(fetched.is_err(), "{bytes:?} with {descriptors}");
        }
        assert_eq!(open_files(), before);
    }

    #[tokio::test]
    async fn without_a_socket_or_a_listener_there_is_no_record_and_nobody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let (map, fetching) = beside(&dir.path().join("s"));
        let running = tokio::spawn(fetching.run());
        let (accepted, _client) = accepted().await;
        let asked = timeout(LONG, map.record(&accepted));
        assert_eq!(asked.await.unwrap(), None, "the fallback");

        drop(UnixListener::bind(dir.path().join("s.map")).unwrap());
        assert!(map.socket.exists(), "left behind by a killed daemon");
        let began = std::time::Instant::now();
        assert_eq!(map.record(&accepted).await, None);
        assert!(began.elapsed() < PATIENCE, "an answer, not the end of patience");
        running.abort();
    }
}
