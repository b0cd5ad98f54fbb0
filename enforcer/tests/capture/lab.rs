//! A host, a remote, a cable between them; gone when dropped.
//!
//! ```text
//!   host   h0 10.77.0.1 fd77::1 ──── r0 10.77.0.2 fd77::2   remote
//! ```

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const ENFORCER_UID: u32 = 64_703;
static COUNT: AtomicU32 = AtomicU32::new(0);

pub struct Lab {
    pub host: String,
    pub remote: String,
    cgroup: PathBuf,
    parts: Vec<Part>,
}

/// A process in the lab, spoken to a line at a time.
pub struct Part {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Part {
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub fn order(&mut self, order: &str) -> String {
        writeln!(self.stdin, "{order}").unwrap();
        self.line()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn has_ended(mut self) -> bool {
        self.child.wait().unwrap().success()
    }
}

impl Lab {
    pub fn new() -> Self {
        assert!(
            fs::metadata("/proc/self").is_ok_and(|_| is_root()),
            "these tests make network namespaces: run as root"
        );
        let name = format!("bfc{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (host, remote) = (format!("{name}h"), format!("{name}r"));
        let lab = Self { host, remote, cgroup: cgroup2().join(&name), parts: Vec::new() };
        for leaf in ["enforcer", "other"] {
            fs::create_dir_all(lab.cgroup.join(leaf)).unwrap();
        }
        lab.lay_cable();
        lab
    }

    fn lay_cable(&self) {
        for ns in [&self.host, &self.remote] {
            must("ip", &["netns", "add", ns]);
        }
        let (h, r) = (self.host.as_str(), self.remote.as_str());
        must("ip", &["-n", h, "link", "add", "h0", "type", "veth", "peer", "name", "r0", "netns", r]);
        for (ns, dev, last) in [(h, "h0", 1), (r, "r0", 2)] {
            must("ip", &["-n", ns, "addr", "add", &format!("10.77.0.{last}/24"), "dev", dev]);
            must("ip", &["-n", ns, "addr", "add", &format!("fd77::{last}/64"), "dev", dev, "nodad"]);
            for up in ["lo", dev] {
                must("ip", &["-n", ns, "link", "set", up, "up"]);
            }
        }
        for ns in [h, r] {
            wait_for("link-local addresses", || {
                let links = must("ip", &["-n", ns, "-6", "-o", "addr", "show", "scope", "link"]);
                links.contains("fe80") && !links.contains("tentative")
            });
        }
        // Counts what reaches the remote's server port.
        self.nft(
            r,
            "table inet seen { chain c { type filter hook prerouting priority -300; tcp dport 7000 counter; }; }",
        );
    }

    fn nft(&self, ns: &str, rules: &str) {
        must("nsenter", &[&net(ns), "nft", rules]);
    }

    /// TCP packets to the server port that reached the remote so far.
    pub fn seen_at_remote(&self) -> u64 {
        let listed = must("nsenter", &[&net(&self.remote), "nft", "list", "table", "inet", "seen"]);
        let (_, after) = listed.split_once("packets ").unwrap();
        after.split(' ').next().unwrap().parse().unwrap()
    }

    pub fn start_servers(&mut self) {
        for ns in [self.host.clone(), self.remote.clone()] {
            let mut server = start(in_ns(&ns).arg(exe()).arg("server"));
            assert_eq!(server.line(), "ready");
            self.parts.push(server);
        }
    }

    /// In its cgroup, by its uid, with its one capability.
    pub fn enforcer(&self, args: &[&str]) -> Part {
        let mut part = self.try_enforcer(&self.cgroup("enforcer"), args);
        let line = part.line();
        assert!(line.starts_with("ready"), "{line}");
        part
    }

    pub fn try_enforcer(&self, cgroup: &Path, args: &[&str]) -> Part {
        start(as_enforcer(self.in_cgroup(&self.host, cgroup)).arg(exe()).arg("enforcer").args(args))
    }

    /// `bonafide-enforcer remove-capture`, as the enforcer's user.
    pub fn remove_leftovers(&self, backend: &str) {
        let mut command = as_enforcer(in_ns(&self.host));
        let output = command.arg(exe()).args(["remove-capture", backend]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }

    /// Deliveries to the host's own server, without capture.
    pub fn deliver(&self, source: &str, to: &str, count: u32) {
        let mut command = as_enforcer(in_ns(&self.host));
        let output = command.arg(exe()).args(["deliver", source, to, &count.to_string()]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }

    pub fn cgroup(&self, leaf: &str) -> PathBuf {
        self.cgroup.join(leaf)
    }

    fn in_cgroup(&self, ns: &str, cgroup: &Path) -> Command {
        let mut command = in_ns(ns);
        let join = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", cgroup.display());
        command.args(["sh", "-c", &join, "sh"]);
        command
    }

    /// What an ordinary program sees that connects from `ns`.
    pub fn client(&self, ns: &str, to: &str, options: &[&str]) -> Seen {
        let uid = "65534";
        let mut command = in_ns(ns);
        command.args([
            "setpriv",
            "--reuid",
            uid,
            "--regid",
            uid,
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ]);
        Seen::by(command.arg(exe()).args(["client", to]).args(options))
    }

    /// An ordinary program that holds a connection open.
    pub fn hold(&self, ns: &str, to: &str) -> Held {
        let mut part = start(in_ns(ns).arg(exe()).args(["holder", to]));
        let first = part.line();
        assert!(first.starts_with("out ") || first.starts_with("in ") || first.starts_with("peer "), "{to}: {first}");
        let direct = first.starts_with("peer ");
        if !direct {
            let second = part.line();
            assert!(second.starts_with("peer "), "{to}: {second}");
        }
        Held { part, direct, to: to.to_owned() }
    }

    /// The connections that connection tracking remembers as older than the rules.
    pub fn spared(&self) -> Vec<String> {
        let mark = "0x05000000/0x0f000000";
        let list = |family| self.on_host(&["conntrack", "-L", "-f", family, "--mark", mark]);
        [list("ipv4"), list("ipv6")].concat().lines().map(str::to_owned).collect()
    }

    /// Root of a container: uid 0 with no other capability than `CAP_NET_RAW`.
    pub fn raw_client(&self, to: &str, options: &[&str]) -> Seen {
        let mut command = in_ns(&self.host);
        command.args(["setpriv", "--inh-caps=-all,+net_raw", "--bounding-set=-all,+net_raw"]);
        Seen::by(command.arg(exe()).args(["client", to]).args(options))
    }

    pub fn client_in(&self, cgroup: &Path, uid: u32, to: &str) -> Seen {
        let mut command = self.in_cgroup(&self.host, cgroup);
        let uid = uid.to_string();
        command.args(["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups", "--inh-caps=-all"]);
        Seen::by(command.arg(exe()).args(["client", to]))
    }

    /// All that capture could leave behind on the host. Tables that iptables made and that hold nothing do not count.
    pub fn traces(&self) -> String {
        let ns = net(&self.host);
        let list = |args: &[&str]| must("nsenter", &[&[ns.as_str()], args].concat());
        let rules = list(&["nft", "list", "ruleset"]);
        let (v4, v6) = (list(&["ip", "rule"]), list(&["ip", "-6", "rule"]));
        let routes =
            [list(&["ip", "route", "show", "table", "all"]), list(&["ip", "-6", "route", "show", "table", "all"])];
        let rules = without_empty_chains(&rules);
        format!("{rules}\n{v4}{v6}{}", routes.concat())
    }

    /// A command of somebody else's on the host.
    pub fn on_host(&self, command: &[&str]) -> String {
        must("nsenter", &[&[net(&self.host).as_str()], command].concat())
    }

    pub fn ip(&self, args: &[&str]) -> String {
        must("ip", &[&["-n", self.host.as_str()], args].concat())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for part in self.parts.drain(..) {
            part.kill();
        }
        for ns in [&self.host, &self.remote] {
            // Whoever is still in there was started by this lab.
            let pids = Command::new("ip").args(["netns", "pids", ns]).output().unwrap();
            for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
                let _ = Command::new("kill").args(["-9", pid]).output();
            }
            let _ = Command::new("ip").args(["netns", "del", ns]).status();
        }
        for leaf in ["enforcer", "other", ""] {
            let path = self.cgroup.join(leaf);
            let began = Instant::now();
            while path.exists() && fs::remove_dir(&path).is_err() && began.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// A program that holds a connection to a server, which echoes.
pub struct Held {
    part: Part,
    direct: bool,
    to: String,
}

impl Held {
    /// Nobody stood in between when it was made.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// `hello`, `error …` or, after a while, `silent`.
    pub fn try_it(&mut self) -> String {
        self.part.order("try hello")
    }

    pub fn assert_alive(&mut self) {
        assert_eq!(self.part.order("say hello"), "hello", "to {} direct: {}", self.to, self.direct);
    }

    /// Says goodbye, and hears the other's.
    pub fn assert_closes(mut self) {
        assert_eq!(self.part.order("close"), "closed", "to {} direct: {}", self.to, self.direct);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.part.child.kill();
        let _ = self.part.child.wait();
    }
}

/// What a client saw.
#[derive(Debug)]
pub enum Seen {
    /// Its own address, and the lines it heard.
    Heard { local: String, lines: Vec<String> },
    /// The kind of error, and after how many milliseconds.
    Failed { kind: String, after: u64 },
}

impl Seen {
    fn by(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut lines = text.lines().map(str::to_owned);
        let first = lines.next().unwrap_or_else(|| panic!("the client said nothing: {}", said(&output)));
        let words: Vec<&str> = first.split(' ').collect();
        match words.as_slice() {
            ["local", local] => Self::Heard { local: (*local).to_owned(), lines: lines.collect() },
            ["error", kind, after] => Self::Failed { kind: (*kind).to_owned(), after: after.parse().unwrap() },
            _ => panic!("{first}"),
        }
    }
}

pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(10), "still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn kill_pid(signal: &str, pid: u32) {
    must("kill", &[signal, &pid.to_string()]);
}

fn start(command: &mut Command) -> Part {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    Part { child, stdin, stdout }
}

/// Not `ip netns exec`: that mounts another /sys, without the cgroups.
fn in_ns(ns: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(net(ns));
    command
}

fn net(ns: &str) -> String {
    format!("--net=/run/netns/{ns}")
}

fn as_enforcer(mut command: Command) -> Command {
    let uid = ENFORCER_UID.to_string();
    command.args(["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups", "--inh-caps=-all,+net_admin"]);
    command.args(["--ambient-caps=-all,+net_admin", "--bounding-set=-all,+net_admin"]);
    command
}

fn exe() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn is_root() -> bool {
    let mut status = String::new();
    fs::File::open("/proc/self/status").unwrap().read_to_string(&mut status).unwrap();
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let found = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2");
    found.expect("these tests need a mounted cgroup2").get(1).unwrap().into()
}

pub fn must(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    format!("{} {}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Leaves out base chains without a rule, and tables without anything else.
fn without_empty_chains(rules: &str) -> String {
    let lines: Vec<&str> = rules.lines().collect();
    let holds = lines.iter().any(|line| {
        let line = line.trim();
        !(line.is_empty() || line == "}" || line.ends_with('{') || line.starts_with("type ") || line.starts_with('#'))
    });
    if holds { rules.to_owned() } else { String::new() }
}
