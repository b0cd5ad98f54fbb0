//! A world: two hosts with a node each, an authority, the wire between them, and what happened there.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::record::End;

use crate::capture::Capture;
use crate::ends::Ends;
use crate::leftovers;
use crate::netns::Netns;
use crate::node::{Authority, Backend, Daemon, Node, NodeFiles};
use crate::operator::bonafide;
use crate::policy::Policy;
use crate::process::Finished;
use crate::records::Records;
use crate::topology::{Family, Site, Topology};
use crate::wait::wait_for;

/// How long an edit of a policy file may take to be in force.
pub const POLICY_DELAY: Duration = Duration::from_secs(1);

/// The files of a world; removed with it.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn create(instance: &str) -> Self {
        let path = Path::new(leftovers::DIRECTORY).join(instance);
        std::fs::create_dir(&path).unwrap_or_else(|e| panic!("cannot create {}: {e}", path.display()));
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !crate::kept_for_inspection() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// What a node and its host are to a scenario.
#[derive(Debug)]
pub struct Host {
    site: Site,
    policy: PathBuf,
    node: Node,
    records: Records,
}

impl Host {
    /// The records of this host.
    #[must_use]
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// The directory of its node.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.node.layout().dir()
    }

    /// Its policy file.
    #[must_use]
    pub fn policy(&self) -> &Path {
        &self.policy
    }

    /// Its daemons.
    pub fn node(&mut self) -> &mut Node {
        &mut self.node
    }

    /// Replaces the policy file, without waiting for it to be in force.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write_policy(&self, text: &str) {
        replace_file(&self.policy, text.as_bytes());
    }

    /// Replaces the policy, and waits until it is in force.
    ///
    /// # Panics
    /// If it is not within the time an edit may take.
    pub fn set_policy(&self, policy: &Policy) {
        self.write_policy(policy.text());
        let digest = Digest::of(policy.text().as_bytes());
        // One second is the promise; the second one is for asking on a busy machine.
        wait_for("the new policy to be in force", 2 * POLICY_DELAY, || self.node.enforces(&digest));
    }
}

fn publish(authority: &Path, policy: &Policy) -> Finished {
    let file = authority.join("to-publish.toml");
    replace_file(&file, policy.text().as_bytes());
    bonafide(authority, &["policy", "publish", &file.display().to_string(), "--author", "Ada"])
}

/// Writes a file beside the old one and renames it into place, as editors and package managers do.
///
/// # Panics
/// If that fails.
pub fn replace_file(path: &Path, content: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap_or_else(|e| panic!("cannot write {}: {e}", new.display()));
    if let Ok(old) = std::fs::metadata(path) {
        std::fs::set_permissions(&new, old.permissions()).expect("root may change permissions");
    }
    std::fs::rename(&new, path).unwrap_or_else(|e| panic!("cannot replace {}: {e}", path.display()));
}

/// Scenarios share the machine, but for those that measure time or take all of it.
static MACHINE: RwLock<()> = RwLock::new(());

/// A scenario's part of the machine: never read, held as long as its world.
#[derive(Debug)]
enum Part {
    Shared {
        _held: RwLockReadGuard<'static, ()>,
    },
    Whole {
        _held: RwLockWriteGuard<'static, ()>,
    },
    /// It does nothing but wait, and is in nobody's way.
    None,
}

impl Part {
    fn shared() -> Self {
        // A scenario that failed says nothing about the machine.
        Self::Shared { _held: MACHINE.read().unwrap_or_else(PoisonError::into_inner) }
    }

    fn whole() -> Self {
        Self::Whole { _held: MACHINE.write().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// The wire and the hosts, before any daemon runs on them.
#[derive(Debug)]
pub struct BareWorld {
    instance: String,
    topology: Topology,
    directory: Directory,
    part: Part,
}

impl BareWorld {
    /// Creates one, beside others.
    #[must_use]
    pub fn create() -> Self {
        Self::create_with(Part::shared())
    }

    /// Creates one when there is no other, and lets none be created while it exists.
    #[must_use]
    pub fn create_alone() -> Self {
        Self::create_with(Part::whole())
    }

    fn create_with(part: Part) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        leftovers::remove();
        let instance = format!("{}{}-{}", leftovers::PREFIX, std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = Directory::create(&instance);
        Self { topology: Topology::create(&instance), instance, directory, part }
    }

    /// The namespaces.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The directory for its files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.directory.0
    }

    /// The start of every name in this world.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// From now on the scenario only waits: those that need the machine for themselves need not wait for it.
    pub fn only_waits(&mut self) {
        self.part = Part::None;
    }

    /// Watches the wire.
    #[must_use]
    pub fn capture(&self) -> Capture {
        Capture::start(&self.topology.router, self.dir())
    }

    /// A copy of a program, at a path of this world.
    ///
    /// # Panics
    /// If it cannot be copied.
    #[must_use]
    pub fn copy_of(&self, program: &Path, name: &str) -> PathBuf {
        let copy = self.dir().join(name);
        std::fs::copy(program, &copy).unwrap_or_else(|e| panic!("cannot copy {}: {e}", program.display()));
        copy
    }

    /// A file with this content.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir().join(name);
        replace_file(&path, content.as_bytes());
        path
    }
}

impl Drop for BareWorld {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let t = &self.topology;
            let keep = if cfg!(feature = "keep") { "kept" } else { "removed; `--features keep` keeps it" };
            eprint_lines(&format!("\nthe world {} ({keep}):", self.instance));
            for (what, netns) in
                [("host a", &t.a), ("host b", &t.b), ("authority", &t.authority), ("router", &t.router)]
            {
                eprint_lines(&format!("  {what}: nsenter --net={}", netns.path().display()));
            }
            eprint_lines(&format!("  files: {}", self.dir().display()));
        }
    }
}

/// A world whose nodes are members of one trust domain and enforce.
#[derive(Debug)]
pub struct World {
    // In the order in which they have to go.
    a: Host,
    b: Host,
    authority: Authority,
    bare: BareWorld,
}

impl World {
    /// Starts a world whose nodes both have this policy.
    ///
    /// # Panics
    /// If a part of it does not start.
    #[must_use]
    pub fn start(bare: BareWorld, policy: &Policy, backend: Backend) -> Self {
        Self::start_with(bare, policy, backend, |_| true)
    }

    /// Starts a world whose nodes both take their policy from the authority, which has published this one.
    ///
    /// # Panics
    /// If a part of it does not start.
    #[must_use]
    pub fn start_published(bare: BareWorld, policy: &Policy, backend: Backend) -> Self {
        Self::start_with(bare, policy, backend, |authority| {
            let said = publish(authority.dir(), policy);
            assert!(said.code() == Some(0), "it was not published: {said:#?}");
            false
        })
    }

    /// `from_file`: whether nodes have a file each.
    fn start_with(
        bare: BareWorld,
        policy: &Policy,
        backend: Backend,
        from_file: impl FnOnce(&Authority) -> bool,
    ) -> Self {
        let authority = Authority::start(&bare.instance, &bare.topology.authority, &bare.dir().join("authority"));
        let from_file = from_file(&authority);
        // Over one family each, so that both are used.
        let [a, b] = [(Site::A, Family::V4), (Site::B, Family::V6)].map(|(site, authority_family)| {
            let dir = bare.dir().join(site.label());
            let policy_file = bare.file(&format!("policy-{}.toml", site.label()), policy.text());
            let token = authority.token(site.label(), 60);
            let policy = from_file.then_some(policy_file.as_path());
            let files = NodeFiles { dir: &dir, policy, token: &token, backend, authority_family };
            let mut node = Node::prepare(&bare.instance, site, &files);
            node.start_daemon(Daemon::Ca, bare.topology.netns(site));
            Host { site, policy: policy_file, records: node.records(), node }
        });
        let mut world = Self { a, b, authority, bare };
        // Capture ends connections that are older than its rules, that to the authority too.
        for daemon in [Daemon::Identityd, Daemon::Enforcer] {
            for site in [Site::A, Site::B] {
                world.on(site, |node, netns| {
                    node.wait_member();
                    node.start_daemon(daemon, netns);
                });
            }
        }
        let digest = Digest::of(policy.text().as_bytes());
        for site in [Site::A, Site::B] {
            world.host(site).node.wait_ready(&digest);
        }
        world
    }

    /// Host a, where clients run.
    #[must_use]
    pub fn a(&self) -> &Host {
        &self.a
    }

    /// Host b, where servers run.
    #[must_use]
    pub fn b(&self) -> &Host {
        &self.b
    }

    /// A host, to do something to its daemons.
    ///
    /// # Panics
    /// For the authority, which is no node.
    pub fn host(&mut self, site: Site) -> &mut Host {
        match site {
            Site::A => &mut self.a,
            Site::B => &mut self.b,
            Site::Authority => panic!("the authority is no node"),
        }
    }

    /// The authority.
    pub fn authority(&mut self) -> &mut Authority {
        &mut self.authority
    }

    /// From now on the scenario only waits: those that need the machine for themselves need not wait for it.
    pub fn only_waits(&mut self) {
        self.bare.only_waits();
    }

    /// What is below the daemons.
    #[must_use]
    pub fn bare(&self) -> &BareWorld {
        &self.bare
    }

    /// The namespace of a site.
    #[must_use]
    pub fn netns(&self, site: Site) -> &Netns {
        self.bare.topology.netns(site)
    }

    /// Replaces the policy on both nodes, and waits until it is in force.
    pub fn set_policy(&self, policy: &Policy) {
        self.a.set_policy(policy);
        self.b.set_policy(policy);
    }

    /// Starts a daemon again and waits until its node is ready to serve under this policy.
    pub fn restart(&mut self, site: Site, daemon: Daemon, policy: &Policy) {
        let netns = self.bare.topology.netns(site);
        let host = match site {
            Site::A => &mut self.a,
            _ => &mut self.b,
        };
        host.node.start_daemon(daemon, netns);
        host.node.wait_ready(&Digest::of(policy.text().as_bytes()));
    }

    /// Runs something on a host that needs both its node and its namespace.
    pub fn on<T>(&mut self, site: Site, work: impl FnOnce(&mut Node, &Netns) -> T) -> T {
        let netns = self.bare.topology.netns(site);
        let host = if site == Site::A { &mut self.a } else { &mut self.b };
        work(&mut host.node, netns)
    }

    /// Publishes a policy at the authority; what it says about that.
    #[must_use]
    pub fn publish(&self, policy: &Policy) -> Finished {
        publish(self.authority.dir(), policy)
    }

    /// Restarts the authority.
    pub fn restart_authority(&mut self) {
        self.authority.restart(&self.bare.topology.authority);
    }

    /// Takes the records of the next flow from host a to host b, from both ends.
    #[must_use]
    #[track_caller]
    pub fn next_flow(&self) -> Ends {
        Ends { source: self.a.records.next(End::Source), destination: self.b.records.next(End::Destination) }
    }

    /// Takes the records of the next flow inside one host, from both ends.
    #[must_use]
    #[track_caller]
    pub fn next_local_flow(&self, site: Site) -> Ends {
        let records = if site == Site::A { &self.a.records } else { &self.b.records };
        Ends { source: records.next(End::Source), destination: records.next(End::Destination) }
    }

    /// Asserts that every record of both nodes was taken, and ends the world.
    ///
    /// # Panics
    /// If there is a record that no step of the scenario accounted for.
    #[track_caller]
    pub fn finish(self) {
        self.a.records.assert_all_taken();
        self.b.records.assert_all_taken();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for host in [&self.a, &self.b] {
            let label = host.site.label();
            for daemon in Daemon::ALL {
                eprint_tail(&format!("{daemon:?} of {label}"), &host.node.log(daemon));
            }
            eprint_tail(&format!("flow records of {label}"), &host.records.digest());
        }
        eprint_tail("authority", &self.authority.log());
    }
}

fn eprint_tail(what: &str, text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    eprint_lines(&format!("--- {what}, last of {} lines", lines.len()));
    eprint_lines(&lines[lines.len().saturating_sub(25)..].join("\n"));
}

#[allow(clippy::print_stderr, reason = "a failed test explains itself there")]
fn eprint_lines(text: &str) {
    eprintln!("{text}");
}
