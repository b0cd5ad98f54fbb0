//! Runtimes that are down, or misbehave: their containers are unavailable, in bounded time, and nobody else's.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bonafide_proto::fingerprint::Evidence;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::cgroups::Cgroup;
use crate::node::{Node, PATIENCE};
use crate::runtimes::{config, runtimes, unique};

/// Identityd waits one second; the others are for a busy machine.
const BOUND: Duration = Duration::from_secs(20);

/// Between two bytes of a server that is slow.
const DRIP: Duration = Duration::from_millis(100);

const ALL: [&str; 3] = ["containerd", "docker", "podman"];

/// How a server that is no runtime treats its callers.
#[derive(Debug, Clone, Copy)]
enum Manners {
    Never,
    Slowly,
    Garbage,
    Endlessly,
    Closes,
    Nonsense,
}

const MANNERS: [Manners; 6] =
    [Manners::Never, Manners::Slowly, Manners::Garbage, Manners::Endlessly, Manners::Closes, Manners::Nonsense];

/// A server behind a socket.
struct Fake {
    dir: tempfile::TempDir,
    callers: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Fake {
    fn start(manners: Manners) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let callers = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&callers);
        let serving = tokio::spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                serving.spawn(serve(stream, manners));
            }
        });
        Self { dir, callers, serving }
    }

    fn config(&self, kind: &str) -> String {
        config(kind, &self.dir.path().join("s"), "default")
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(mut stream: UnixStream, manners: Manners) {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    if matches!(manners, Manners::Closes) {
        return;
    }
    let mut question = [0; 4096];
    let _ = stream.read(&mut question).await;
    let said = match manners {
        Manners::Closes | Manners::Never => Ok(()),
        Manners::Garbage => stream.write_all(b"\0\xff\x1b[2J\r\n\r\n{]".repeat(64).as_slice()).await,
        Manners::Nonsense => {
            let body = r#"{"Id":"another","Image":7,"State":{"Running":true,"Pid":1},"Config":{}}"#;
            let answer = format!("Content-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(&[HEAD, answer.as_bytes()].concat()).await
        }
        Manners::Slowly => drip(&mut stream, HEAD).await,
        Manners::Endlessly => {
            let _ = stream.write_all(&[HEAD, b"\r\n{\"Id\":\""].concat()).await;
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
            Ok(())
        }
    };
    if said.is_ok() {
        // It stays, and says no more.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
}

/// Says something that never ends, a byte at a time, until whoever listens has enough.
async fn drip(stream: &mut UnixStream, head: &[u8]) -> std::io::Result<()> {
    stream.write_all(&[head, b"Slow: "].concat()).await?;
    while tokio::time::timeout(DRIP, stream.read(&mut [0; 4096])).await.map_or(Ok(1), |heard| heard)? > 0 {
        stream.write_all(b"x").await?;
    }
    Ok(())
}

/// A cgroup that could be of a container of any runtime.
fn of_any() -> Cgroup {
    Cgroup::make(&format!("/{}/{}", unique(), "ab".repeat(32)))
}

#[tokio::test]
async fn whatever_a_runtime_does_instead_of_answering_its_containers_are_unavailable_in_time() {
    let mut cgroup = of_any();
    let pid = cgroup.sleeper();
    let mut asked = JoinSet::new();
    for (kind, manners) in ALL.into_iter().flat_map(|kind| MANNERS.map(|manners| (kind, manners))) {
        asked.spawn(is_unavailable(pid, kind, manners));
    }
    asked.join_all().await;
}

async fn is_unavailable(pid: u32, kind: &str, manners: Manners) {
    let fake = Fake::start(manners);
    let node = Node::start(&fake.config(kind)).await;
    let begun = Instant::now();
    let evidence = node.container(pid).await;
    assert!(begun.elapsed() < BOUND, "{kind}, {manners:?}: {:?}", begun.elapsed());
    let Evidence::Unavailable(why) = evidence else { panic!("{kind}, {manners:?}: {evidence:?}") };
    assert!(why.contains(kind) && why.len() < 512 && !why.contains('\u{1b}'), "{kind}, {manners:?}: {why}");
    assert!(fake.callers.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn a_runtime_that_is_down_makes_its_containers_unavailable() {
    let mut cgroup = of_any();
    let pid = cgroup.sleeper();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    for kind in ALL {
        let node = Node::start(&config(kind, &socket, "default")).await;
        assert!(node.unavailable(pid).await.contains("cannot be reached"));
        // The socket is there, and nobody listens.
        drop(UnixListener::bind(&socket).unwrap());
        assert!(node.unavailable(pid).await.contains(kind));
        std::fs::remove_file(&socket).unwrap();
    }
    // None is configured that could tell.
    assert!(Node::start("runtime = []").await.unavailable(pid).await.contains("no runtime is configured"));
}

#[tokio::test]
async fn a_runtime_that_is_silent_costs_others_nothing() {
    let fakes = ["containerd", "podman"].map(|kind| (kind, Fake::start(Manners::Never)));
    let silent: String = fakes.iter().map(|(kind, fake)| fake.config(kind)).collect();
    let node = Node::start(&format!("{silent}{}", runtimes().config("docker"))).await;
    let callers = || fakes.iter().map(|(_, fake)| fake.callers.load(Ordering::SeqCst)).collect::<Vec<_>>();

    // The host's own programs are nobody's business.
    assert_eq!(node.absent(std::process::id()).await, "it is in no container");
    assert_eq!(callers(), [0, 0]);
    // Nor are those that only one runtime can have made.
    let (id, pid) = runtimes().start_docker(&[]);
    assert_eq!(node.known(pid).await.id, id);
    assert_eq!(callers(), [0, 0]);
    // Where all are asked, the one who knows is enough.
    let parent = format!("/{}/any", runtimes().tag());
    let (id, pid) = runtimes().start_docker(&["--cgroup-parent", &parent]);
    assert_eq!(node.known(pid).await.id, id);
    assert!(callers().iter().all(|callers| *callers > 0));
}

/// What stands between a daemon and a runtime, and can be taken away. Counts the pieces that the daemon says.
struct Between {
    serving: JoinHandle<()>,
    socket: PathBuf,
    said: Arc<AtomicUsize>,
}

impl Between {
    fn start(socket: PathBuf, runtime: PathBuf) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let said = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&said);
        let serving = tokio::spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((here, _)) = listener.accept().await {
                serving.spawn(between(here, UnixStream::connect(&runtime).await.unwrap(), Arc::clone(&count)));
            }
        });
        Self { serving, socket, said }
    }

    fn said(&self) -> usize {
        self.said.load(Ordering::SeqCst)
    }
}

async fn between(here: UnixStream, there: UnixStream, said: Arc<AtomicUsize>) {
    let ((mut asks, mut hears), (mut answers, mut listens)) = (here.into_split(), there.into_split());
    let asking = async move {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = asks.read(&mut piece).await {
            said.fetch_add(1, Ordering::SeqCst);
            listens.write_all(&piece[..length]).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    tokio::select! {
        _ = asking => {}
        _ = tokio::io::copy(&mut answers, &mut hears) => {}
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.serving.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[tokio::test]
async fn what_a_runtime_confirmed_holds_as_long_as_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let id = unique();
    let native = runtimes().start_native(&id, crate::runtimes::ONE);
    let (docker, pid) = runtimes().start_docker(&[]);
    for (kind, id, pid) in [("containerd", id, native), ("docker", docker, pid)] {
        let socket = dir.path().join(kind);
        let up = || Between::start(socket.clone(), runtimes().socket(kind));
        let between = up();
        let node = Node::start(&config(kind, &socket, runtimes().tag())).await;
        assert_eq!(node.known(pid).await.id, id);
        drop(between);
        assert!(node.unavailable(pid).await.contains(kind));
        let between = up();
        assert_eq!(node.known(pid).await.id, id);
        drop(between);
    }
}

#[tokio::test]
async fn what_was_confirmed_is_not_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let (_, pid) = runtimes().start_docker(&[]);
    let between = Between::start(socket.clone(), runtimes().socket("docker"));
    let node = Node::start(&config("docker", &socket, "")).await;
    node.known(pid).await;
    let begun = Instant::now();
    // When it begins to be heard what the runtime tells, it is asked again; and after that no more.
    loop {
        let said = between.said();
        assert!(said > 0 && begun.elapsed() < PATIENCE, "{said}");
        for _ in 0..20 {
            assert!(node.container(pid).await.known().is_some());
        }
        if between.said() == said {
            return;
        }
    }
}
