//! The parts together, on real processes and real files.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bonafide_proto::clock::SystemClock;
use bonafide_proto::wire::node::lapse::Of;
use tokio_stream::StreamExt as _;

use super::proc_sentry::ProcSentry;
use super::*;
use crate::events::Use;
use crate::execs::{Arguments, AtExec, NoExecs};
use crate::lapse::Heard;
use crate::sys::executable::FileId;
use crate::sys::process::Process;

/// Long enough for a busy machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    watch: Watch,
    _watching: Watching,
    events: mpsc::Sender<Event>,
    heard: Heard,
}

/// Tells nothing.
#[derive(Debug)]
struct Silent;

impl Sentry for Silent {
    fn watch(&self, _: &[Execution]) {}

    fn forget(&self, _: Execution) {}
}

impl World {
    fn start(execs: Arc<dyn Execs>) -> Self {
        let (events, told) = mpsc::channel(64);
        Self::with(execs, Arc::new(Silent), told, events)
    }

    fn with(
        execs: Arc<dyn Execs>,
        sentry: Arc<dyn Sentry>,
        told: mpsc::Receiver<Event>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let host = crate::host::read("a".parse().unwrap());
        let witness = Witness::new(host, Arc::new(SystemClock), Arc::clone(&execs), None, &[]).unwrap();
        let (lapses, (_, quarantined)) = (Lapses::new(), watch::channel(Quarantined::default()));
        let heard = lapses.listen();
        let witness = Arc::new(witness);
        let (watch, watching) =
            Watch::start(Parts { witness, sentry, events: told, execs, lapses, quarantined }).unwrap();
        Self { watch, _watching: watching, events, heard }
    }

    fn eyes(&self) -> &Eyes {
        &self.watch.0
    }

    async fn attest(&self, executions: &[Execution]) {
        let witnessed = self.eyes().witness.examine(executions).await.unwrap();
        self.watch.attested(&witnessed).unwrap();
    }

    /// The next lapse that is no greeting.
    async fn next(&mut self) -> Of {
        loop {
            match tokio::time::timeout(PATIENCE, self.heard.next()).await.unwrap().unwrap().of.unwrap() {
                Of::Ready(_) | Of::Quarantine(_) => {}
                other => return other,
            }
        }
    }

    fn sizes(&self) -> [usize; 6] {
        let known = self.eyes().known();
        let [watched, pids, files, users, images] = known.table.sizes();
        [watched, pids, files, users, images, self.eyes().turns.size() + known.files.looked().len()]
    }

    /// How many files the kernel watches for it.
    fn marks(&self) -> usize {
        use std::os::fd::AsRawFd as _;
        let inotify = self.eyes().known().files.inotify().unwrap();
        let fdinfo = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", inotify.as_raw_fd())).unwrap();
        fdinfo.lines().filter(|line| line.starts_with("inotify wd:")).count()
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it never came true");
}

/// A child that is killed, and waited for. It has begun its work when it is started here.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut byte = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        Self(child)
    }

    fn shell() -> Self {
        Self::start(Command::new("sh").args(["-c", "echo; read -r _"]))
    }

    fn execution(&self) -> Execution {
        Process::pin(self.0.id()).unwrap().execution()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_processes_leave_nothing_behind() {
    let (sentry, told) = ProcSentry::start().unwrap();
    let world = World::with(Arc::new(NoExecs), Arc::clone(&sentry) as _, told, mpsc::channel(1).0);
    for _ in 0..40 {
        let running: Vec<Running> = (0..50).map(|_| Running::shell()).collect();
        let executions: Vec<Execution> = running.iter().map(Running::execution).collect();
        world.attest(&executions).await;
        assert!(world.sizes()[0] >= 50 && world.marks() >= 1);
    }
    until(|| world.sizes() == [0; 6] && sentry.size() == 0 && world.marks() == 0).await;
}

/// A Python that becomes nobody when it is told to.
fn becomes_nobody() -> Running {
    Running::start(
        Command::new("python3").args(["-c", "import os; print(flush=True); input(); os.setuid(65534); input()"]),
    )
}

fn is_nobodys(execution: Execution) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", execution.pid)).unwrap();
    status.lines().any(|line| line.starts_with("Uid:\t65534"))
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_events_make_it_look_at_everything_again() {
    let mut world = World::start(Arc::new(NoExecs));
    let mut running = becomes_nobody();
    let execution = running.execution();
    world.attest(&[execution]).await;
    running.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    until(|| is_nobodys(execution)).await;
    world.events.send(Event::Lost(3)).await.unwrap();
    // What was lost is found; that it was lost is told, whichever comes first.
    let mut told = [world.next().await, world.next().await];
    told.sort_by_key(|of| matches!(of, Of::Everything(_)));
    assert_eq!(told, [Of::Execution(execution.into()), Of::Everything(true)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_tells_any_more_nothing_is_attested() {
    let (events, told) = mpsc::channel(1);
    let mut world = World::with(Arc::new(NoExecs), Arc::new(Silent), told, mpsc::channel(1).0);
    let running = Running::shell();
    world.attest(&[running.execution()]).await;
    drop(events);
    assert_eq!(world.next().await, Of::Everything(true));
    let witnessed = world.eyes().witness.examine(&[running.execution()]).await.unwrap();
    assert_eq!(world.watch.attested(&witnessed).unwrap_err().reason, AttestReason::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_uses_a_socket_ends_its_flow_unless_it_is_the_same_program() {
    let mut world = World::start(Arc::new(NoExecs));
    let [owner, twin] = [(); 2].map(|()| Running::shell());
    let stranger = Running::start(Command::new("python3").args(["-c", "print(flush=True); input()"]));
    let socket = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let by = |by: &Running, port| Use { local: socket(port), remote: socket(80), by: by.execution(), at_ns: 7 };
    let used = |who: &Running, port| Event::Used { used: by(who, port), owner: owner.execution() };
    for event in [used(&twin, 1), used(&stranger, 2)] {
        world.events.send(event).await.unwrap();
    }
    // Of the twin it is only asked; whichever comes first.
    let mut told = [world.next().await, world.next().await];
    told.sort_by_key(|of| matches!(of, Of::Kin(_)));
    let [Of::Flow(flow), Of::Kin(kin)] = &told else { panic!("{told:?}") };
    assert_eq!((kin.local.clone(), kin.used_by), (Some(socket(1).into()), Some(twin.execution().into())));
    assert_eq!((flow.local.clone(), flow.at_ns), (Some(socket(2).into()), 7));
    assert_eq!(flow.used_by, Some(stranger.execution().into()));
    // Whose it is is not known: nobody can say that it is the same.
    let nobodys = Execution { pid: 0, start_ticks: 0, image: 0 };
    world.events.send(Event::Used { used: by(&twin, 3), owner: nobodys }).await.unwrap();
    let Of::Flow(flow) = world.next().await else { panic!("no flow") };
    assert_eq!(flow.local, Some(socket(3).into()));
}

/// Says what `/proc` shows, as if it had been recorded.
#[derive(Debug)]
struct AsShown;

impl Execs for AsShown {
    fn executed(&self, pid: u32, _: u64) -> Option<AtExec> {
        use std::os::unix::fs::MetadataExt as _;
        let exe = std::fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        Some(AtExec {
            image: u64::from(pid),
            file: FileId { dev: exe.dev(), ino: exe.ino() },
            size: exe.size(),
            modified: i128::from(exe.mtime()) * 1_000_000_000 + i128::from(exe.mtime_nsec()),
            executed_ns: None,
            execs: 1,
            arguments: Arguments::Recorded { bytes: std::fs::read(format!("/proc/{pid}/cmdline")).ok()?, whole: true },
            directory: None,
            taints: [].into(),
            witnessed: true,
        })
    }

    fn witnesses(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_program_is_hashed_before_anybody_asks() {
    let world = World::start(Arc::new(AsShown));
    let running = Running::shell();
    let execution = running.execution();
    assert_eq!(world.eyes().witness.hashed(), 0);
    let now = u64::from(execution.pid);
    world.events.send(Event::Executed { before: execution, now, parent: 1 }).await.unwrap();
    until(|| world.eyes().witness.hashed() > 0).await;
}
