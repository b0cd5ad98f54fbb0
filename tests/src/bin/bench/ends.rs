//! How long an idle connection outlives what justified it: from the cause to the reset, as its own program sees it, with
//! all daemons at work. The programs' words pass through a pipe, which counts against the claim.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use bonafide_proto::fingerprint::Digest;
use bonafide_tests::libraries::libraries_of;
use bonafide_tests::node::Backend;
use bonafide_tests::operator::bonafide;
use bonafide_tests::policy::Policy;
use bonafide_tests::process::{must_run, must_write};
use bonafide_tests::programs::python;
use bonafide_tests::rpc::issuance_status;
use bonafide_tests::topology::{Family, Site};
use bonafide_tests::unit::UnitCgroups;
use bonafide_tests::wait::wait_until;
use bonafide_tests::world::{BareWorld, World};

use crate::report::{Claim, Report, percentile};

/// What holds a connection.
const NATIVE: &str = include_str!("idle.c");
const SCRIPT: &str = include_str!("idle.py");
/// Where it is held.
const PORT: u16 = 7000;
/// What did not end by then counts as if it had.
const LIMIT: Duration = Duration::from_secs(10);
/// For how long a connection is idle before the cause.
const IDLE: Duration = Duration::from_millis(150);
/// How long a program may take to begin.
const READY: Duration = Duration::from_secs(20);

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Exec,
    ScriptModified,
    ScriptReplaced,
    ExecutableReplaced,
    Mapping,
    Tracer,
    User,
    Cgroup,
    Quarantine,
    Workload,
    Serial,
    Node,
}

impl Cause {
    const ALL: [Self; 12] = [
        Self::Exec,
        Self::ScriptModified,
        Self::ScriptReplaced,
        Self::ExecutableReplaced,
        Self::Mapping,
        Self::Tracer,
        Self::User,
        Self::Cgroup,
        Self::Quarantine,
        Self::Workload,
        Self::Serial,
        Self::Node,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Exec => "another program is executed",
            Self::ScriptModified => "its script is modified in place",
            Self::ScriptReplaced => "its script is replaced",
            Self::ExecutableReplaced => "its executable is replaced",
            Self::Mapping => "it maps another library",
            Self::Tracer => "it is traced",
            Self::User => "it becomes another user",
            Self::Cgroup => "it is moved out of its unit's cgroup",
            Self::Quarantine => "`bonafide quarantine` at the authority",
            Self::Workload => "`bonafide revoke workload` at the authority",
            Self::Serial => "`bonafide revoke serial` at the authority",
            Self::Node => "`bonafide revoke node` at the authority",
        }
    }

    /// The program it happens to, and what that is told to do about it itself.
    fn program(self) -> (&'static str, [&'static str; 2]) {
        match self {
            Self::Exec => ("native", ["exec", "heir"]),
            Self::Mapping => ("native", ["map", "more.so"]),
            Self::Tracer => ("native", ["nothing", ""]),
            Self::User => ("native", ["user", "65534"]),
            Self::ScriptModified | Self::ScriptReplaced => ("script.py", ["nothing", ""]),
            Self::ExecutableReplaced | Self::Quarantine | Self::Workload | Self::Serial | Self::Node => {
                ("fresh", ["nothing", ""])
            }
            Self::Cgroup => ("unit", ["nothing", ""]),
        }
    }

    /// In milliseconds. What goes over the network has longer.
    fn claim(self) -> Claim {
        Claim::AtMost(if self.is_told() { 1_000.0 } else { 100.0 })
    }

    /// By the authority, over the network.
    fn is_told(self) -> bool {
        matches!(self, Self::Quarantine | Self::Workload | Self::Serial | Self::Node)
    }

    /// A node comes back by renewing, which takes seconds.
    fn rounds(self, rounds: usize) -> usize {
        if self == Self::Node { rounds.min(10) } else { rounds }
    }
}

/// Ends connections for each cause, at each end.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<(), String> {
    let mut stage = Stage::build()?;
    let rounds = if quick { 6 } else { 50 };
    for (end, site) in [("source", Site::A), ("destination", Site::B)] {
        report.part(&format!(
            "From the cause to the reset, at the {end}'s end, {rounds} rounds by IPv4 and IPv6 in turns"
        ));
        for cause in Cause::ALL {
            let families = Family::BOTH.into_iter().cycle().take(cause.rounds(rounds));
            let took: Vec<f64> = families.map(|family| stage.round(cause, site, family)).collect::<Result<_, _>>()?;
            report.add(format!("{}, p50", cause.name()), percentile(took.clone(), 50), "ms", cause.claim());
            report.add(format!("{}, p99", cause.name()), percentile(took, 99), "ms", cause.claim());
        }
    }
    Ok(())
}

/// The world, its programs, and a unit's cgroups.
struct Stage {
    // In the order in which they have to go.
    world: World,
    unit: UnitCgroups,
    native: Vec<u8>,
    round: u64,
}

impl Stage {
    fn build() -> Result<Self, String> {
        let bare = BareWorld::create();
        let dir = bare.dir().to_owned();
        compile(&dir);
        let native = std::fs::read(dir.join("native")).map_err(|e| format!("idle.c: {e}"))?;
        for (n, name) in (1..).zip(["peer", "fresh", "unit", "heir"]) {
            replace(&dir.join(name), &distinct(&native, n))?;
        }
        must_write(&dir.join("script.py"), SCRIPT);
        let unit = UnitCgroups::create(bare.instance());
        let path = |name: &str| dir.join(name);
        let names = ["peer", "native", "fresh", "unit", "script"].map(|name| format!("\"bench/{name}\"")).join(", ");
        let policy = Policy::enforce()
            .program("bench/peer", &path("peer"))
            .program("bench/native", &path("native"))
            .lines(&format!("uid = 0\nlibraries = \"{}\"", libraries(&path("native"))?))
            .program("bench/fresh", &path("fresh"))
            .program("bench/unit", &path("unit"))
            .lines(&format!("unit = \"{}\"", unit.name()))
            .script("bench/script", &path("script.py"))
            .lines("[[rule]]\nname = \"all\"\naction = \"allow\"")
            .lines(&format!("from = [{names}]\nto = [{names}]"));
        let world = World::start(bare, &policy, Backend::Nft);
        let mut stage = Self { world, unit, native, round: 0 };
        wait_until("the nodes to be told", READY, || stage.quarantine(&Digest([1; 32])).ends_with("2 of 2 nodes\n"));
        Ok(stage)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.world.bare().dir().join(name)
    }

    /// How long it took, in milliseconds.
    fn round(&mut self, cause: Cause, site: Site, family: Family) -> Result<f64, String> {
        self.round += 1;
        self.restore(cause)?;
        let (program, how) = cause.program();
        let (source, destination) = match site {
            Site::A => ((program, how), ("peer", ["nothing", ""])),
            _ => (("peer", ["nothing", ""]), (program, how)),
        };
        let mut server = self.idle(Site::B, "serve", destination, "::".to_owned())?;
        let mut client = self.idle(Site::A, "connect", source, Site::B.ip(family).to_string())?;
        let subject = if site == Site::A { &client } else { &server };
        if cause == Cause::Cgroup {
            self.unit.enter(subject.child.id());
        }
        server.go("listening")?;
        client.go("open")?;
        server.wait("open")?;
        std::thread::sleep(IDLE);
        let subject = if site == Site::A { &mut client } else { &mut server };
        let takes_back = self.takes_back(cause, site)?;
        let began = Instant::now();
        let _tracer = match &takes_back {
            Some(args) => self.revoke(args),
            None => self.happens(cause, subject)?,
        };
        let reset = subject.reset()?;
        self.lift(takes_back.as_deref(), site)?;
        Ok(reset.unwrap_or(began + LIMIT).saturating_duration_since(began).as_secs_f64() * 1e3)
    }

    /// Puts back what the last round changed.
    fn restore(&self, cause: Cause) -> Result<(), String> {
        match cause {
            Cause::ScriptModified | Cause::ScriptReplaced => {
                replace(&self.file("script.py"), format!("{SCRIPT}# {}\n", self.round).as_bytes())
            }
            // No two rounds have a digest in common.
            _ if cause.program().0 == "fresh" => replace(&self.file("fresh"), &distinct(&self.native, self.round)),
            _ => Ok(()),
        }
    }

    fn idle(&self, site: Site, what: &str, (program, how): (&str, [&str; 2]), host: String) -> Result<Idle, String> {
        let file = self.file(program).display().to_string();
        let mut command = match program {
            "script.py" => self.world.netns(site).command(&python().to_string_lossy()),
            _ => self.world.netns(site).command(&file),
        };
        if program == "script.py" {
            command.arg(file);
        }
        command.args([what, &host, &PORT.to_string(), how[0]]);
        command.arg(if matches!(how[0], "exec" | "map") { self.file(how[1]) } else { how[1].into() });
        Idle::start(command)
    }

    /// Makes it happen; what must not end before the connection has is returned.
    fn happens(&mut self, cause: Cause, to: &mut Idle) -> Result<Option<Idle>, String> {
        match cause {
            Cause::Exec | Cause::Mapping | Cause::User => to.tell()?,
            Cause::ScriptModified => std::fs::File::options()
                .append(true)
                .open(self.file("script.py"))
                .and_then(|mut script| script.write_all(b"# one line more\n"))
                .map_err(|e| format!("script.py: {e}"))?,
            Cause::ScriptReplaced => replace(&self.file("script.py"), format!("{SCRIPT}# other\n").as_bytes())?,
            Cause::ExecutableReplaced => replace(&self.file("fresh"), &self.native)?,
            Cause::Tracer => {
                let mut command = Command::new(self.file("heir"));
                command.args(["trace", &to.child.id().to_string()]);
                return Idle::start(command).map(Some);
            }
            Cause::Cgroup => self.unit.leave(to.child.id()),
            Cause::Quarantine => {
                let digest = Digest::of(&distinct(&self.native, self.round));
                self.quarantine(&digest);
            }
            Cause::Workload | Cause::Serial | Cause::Node => {}
        }
        Ok(None)
    }

    /// What is given to `bonafide revoke`, where it is that which happens.
    fn takes_back(&self, cause: Cause, site: Site) -> Result<Option<Vec<String>>, String> {
        let what = match cause {
            Cause::Workload => ["workload".to_owned(), "bench/fresh".to_owned()],
            Cause::Serial => ["serial".to_owned(), self.serial(site)?],
            Cause::Node => ["node".to_owned(), site.label().to_owned()],
            _ => return Ok(None),
        };
        Ok(Some(what.to_vec()))
    }

    /// The certificate that is shown at this site, as the other one's enforcer wrote it down last.
    fn serial(&self, site: Site) -> Result<String, String> {
        let other = if site == Site::A { self.world.b() } else { self.world.a() };
        let live = other.dir().join("state/enforcer/live.jsonl");
        let text = std::fs::read_to_string(&live).map_err(|e| format!("{}: {e}", live.display()))?;
        let last = text.rsplit_once("\"peer_serial\":\"").and_then(|(_, rest)| rest.split_once('"'));
        last.map(|(serial, _)| serial.to_owned()).ok_or_else(|| format!("{} names no certificate", live.display()))
    }

    fn revoke(&mut self, args: &[String]) -> Option<Idle> {
        let dir = self.world.authority().dir().to_owned();
        let args: Vec<&str> = std::iter::once("revoke").chain(args.iter().map(String::as_str)).collect();
        let _said = bonafide(&dir, &args).success();
        None
    }

    /// Lifts it, and waits until both nodes are what they were.
    fn lift(&mut self, taken_back: Option<&[String]>, site: Site) -> Result<(), String> {
        let Some(args) = taken_back else { return Ok(()) };
        let socket = self.host(site).join("run/ca/ca.sock");
        let until = || issuance_status(&socket).map(|status| status.intermediate_not_after);
        let (before, of_node) = (until()?, args.first().is_some_and(|kind| kind == "node"));
        if of_node {
            // Two certificates of one second could not be told apart.
            std::thread::sleep(Duration::from_secs(1));
        }
        self.revoke(&[args, &["--lift".to_owned()]].concat());
        if of_node {
            wait_until("the node to renew", READY, || until().is_ok_and(|now| now > before));
        }
        wait_until("the nodes to be told", READY, || self.quarantine(&Digest([1; 32])).ends_with("2 of 2 nodes\n"));
        // Their daemons hear it from their CA.
        std::thread::sleep(IDLE);
        Ok(())
    }

    fn host(&self, site: Site) -> PathBuf {
        if site == Site::A { self.world.a().dir().to_owned() } else { self.world.b().dir().to_owned() }
    }

    fn quarantine(&mut self, digest: &Digest) -> String {
        let dir = self.world.authority().dir().to_owned();
        bonafide(&dir, &["quarantine", &digest.to_string()]).success()
    }
}

/// A program that holds a connection, or what else has a standard input; it ends when it is dropped.
struct Idle {
    child: Child,
    input: ChildStdin,
    /// What it says, and when that was read.
    said: Receiver<(String, Instant)>,
}

impl Idle {
    fn start(mut command: Command) -> Result<Self, String> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a program without pipes".to_owned());
        };
        let (to, said) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.map(|line| (line, Instant::now())).try_for_each(|said| to.send(said)).ok()
        });
        Ok(Self { child, input, said })
    }

    fn tell(&mut self) -> Result<(), String> {
        self.input.write_all(b"\n").map_err(|e| format!("a program ended early: {e}"))
    }

    /// It begins, and says this.
    fn go(&mut self, what: &str) -> Result<(), String> {
        self.tell()?;
        self.wait(what)
    }

    fn wait(&self, what: &str) -> Result<(), String> {
        match self.said.recv_timeout(READY) {
            Ok((said, _)) if said == what => Ok(()),
            other => Err(format!("a program did not say {what:?}: {other:?}")),
        }
    }

    /// When it saw the reset; none if it kept its connection. One that ended otherwise was not measured.
    fn reset(&self) -> Result<Option<Instant>, String> {
        match self.said.recv_timeout(LIMIT) {
            Ok((said, when)) if said == "reset" => Ok(Some(when)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            other => Err(format!("a program saw no reset: {other:?}")),
        }
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn compile(dir: &Path) {
    let source = dir.join("idle.c");
    must_write(&source, NATIVE);
    must_run(Command::new("gcc").args(["-O2", "-o"]).arg(dir.join("native")).arg(&source).arg("-ldl"));
    let library = dir.join("more.c");
    must_write(&library, "int bonafide_more;\nvoid bonafide_does_nothing(void) {}\n");
    must_run(Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(dir.join("more.so")).arg(&library));
}

/// The same program, with another digest.
fn distinct(native: &[u8], n: u64) -> Vec<u8> {
    [native, &n.to_be_bytes()].concat()
}

/// As package managers do.
fn replace(file: &Path, content: &[u8]) -> Result<(), String> {
    let new = file.with_extension("new");
    let written = std::fs::write(&new, content)
        .and_then(|()| std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)))
        .and_then(|()| std::fs::rename(&new, file));
    written.map_err(|e| format!("{} cannot be replaced: {e}", file.display()))
}

/// The composite digest of the libraries of this program.
fn libraries(program: &Path) -> Result<Digest, String> {
    let mut command = Command::new(program);
    command.args(["connect", "::1", "1", "nothing", ""]);
    let idle = Idle::start(command)?;
    let mut found = None;
    // It is loading them.
    wait_until("a program to have its libraries", READY, || {
        let (digest, count) = libraries_of(idle.child.id());
        found = (count >= 2).then_some(digest);
        found.is_some()
    });
    found.ok_or_else(|| format!("{} has no libraries", program.display()))
}
