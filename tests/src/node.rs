//! The daemons of one host, and the authority: started as `bonafide run` starts them, each killed and restarted alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bonafide_cli::node::{
    Admission, AuthorityAt, DEFAULT_INBOUND_PORT, DEFAULT_OUTBOUND_PORT, DaemonCommand, EvidenceSources,
    InstanceCgroup, Layout, NodeSpec, PreparedNode, PreparedRoot, RootSpec, prepare_node, prepare_root, remove_node,
    remove_root,
};
use bonafide_proto::fingerprint::Digest;

use crate::netns::Netns;
use crate::process::Program;
use crate::records::Records;
use crate::rpc;
use crate::topology::{Family, Site};
use crate::wait::wait_for;

/// The trust domain of every world.
pub const TRUST_DOMAIN: &str = "mesh.test";
/// Where the authority listens.
pub const AUTHORITY_PORT: u16 = 8443;
/// How long a daemon may take to be ready.
const READY: Duration = Duration::from_secs(15);

/// How capture rules are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// By nftables.
    Nft,
    /// By iptables.
    Iptables,
}

impl Backend {
    /// As configuration files write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Iptables => "iptables",
        }
    }
}

/// A daemon of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    /// Issues certificates.
    Ca,
    /// Knows programs.
    Identityd,
    /// Stands in the way.
    Enforcer,
}

impl Daemon {
    /// All three, in the order in which they start.
    pub const ALL: [Self; 3] = [Self::Ca, Self::Identityd, Self::Enforcer];

    fn name(self) -> &'static str {
        match self {
            Self::Ca => "ca",
            Self::Identityd => "identityd",
            Self::Enforcer => "enforcer",
        }
    }
}

/// The directory of the binaries under test: where cargo put this one.
///
/// # Panics
/// If they were not built.
#[must_use]
pub fn binaries() -> PathBuf {
    let this = std::env::current_exe().expect("a program knows its file");
    let found = this.ancestors().skip(1).find(|directory| directory.join("bonafide-enforcer").exists());
    found
        .unwrap_or_else(|| panic!("no bonafide-enforcer near {}: first `cargo build --bins`", this.display()))
        .to_owned()
}

fn start(name: &str, daemon: &DaemonCommand, netns: &Netns) -> Program {
    let mut command = daemon.to_command_in(&netns.path()).expect("the log can be written");
    Program::start_logging(name, &mut command, &daemon.log)
}

/// The three daemons of a host.
#[derive(Debug)]
pub struct Node {
    spec: NodeSpec,
    prepared: PreparedNode,
    running: Vec<(Daemon, Program)>,
}

impl Node {
    /// Lays a node out, and starts nothing.
    ///
    /// # Panics
    /// If something of it cannot be created.
    #[must_use]
    pub fn prepare(instance: &str, site: Site, files: &NodeFiles<'_>) -> Self {
        Self::prepare_named(instance, site.label(), files)
    }

    /// Lays a node of this name out, and starts nothing.
    ///
    /// # Panics
    /// If something of it cannot be created.
    #[must_use]
    pub fn prepare_named(instance: &str, name: &str, files: &NodeFiles<'_>) -> Self {
        let addr = Site::Authority.at(files.authority_family, AUTHORITY_PORT);
        let spec = NodeSpec {
            instance: format!("{instance}-{name}"),
            name: name.parse().expect("scenarios use valid names"),
            dir: files.dir.to_owned(),
            policy: files.policy.map(ToOwned::to_owned),
            evidence: EvidenceSources::default(),
            backend: files.backend.as_str().to_owned(),
            authority: AuthorityAt::Remote { addrs: vec![addr], by: Some(Admission::Token(files.token.to_owned())) },
            binaries: binaries(),
            leaf_ttl_seconds: None,
            outbound_port: DEFAULT_OUTBOUND_PORT,
            inbound_port: DEFAULT_INBOUND_PORT,
        };
        let prepared = prepare_node(&spec).unwrap_or_else(|e| panic!("cannot prepare node {}: {e}", spec.name));
        Self { spec, prepared, running: Vec::new() }
    }

    /// Its paths.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.prepared.layout
    }

    /// Its cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &InstanceCgroup {
        &self.prepared.cgroup
    }

    /// A reader of its flow records.
    #[must_use]
    pub fn records(&self) -> Records {
        Records::of(self.layout().records())
    }

    /// Starts a daemon that does not run.
    pub fn start_daemon(&mut self, daemon: Daemon, netns: &Netns) {
        let command = match daemon {
            Daemon::Ca => &self.prepared.ca,
            Daemon::Identityd => &self.prepared.identityd,
            Daemon::Enforcer => &self.prepared.enforcer,
        };
        let name = format!("{} of {}", daemon.name(), self.spec.name);
        self.running.push((daemon, start(&name, command, netns)));
    }

    /// Kills a daemon with SIGKILL.
    pub fn kill(&mut self, daemon: Daemon) {
        self.program(daemon).kill();
        self.running.retain(|(running, _)| *running != daemon);
    }

    /// Kills every daemon with SIGKILL.
    pub fn kill_all(&mut self) {
        self.running.clear();
    }

    /// Asks a daemon to stop, and asserts that it ends well.
    ///
    /// # Panics
    /// If it does not stop, or exits with another code than 0.
    pub fn stop(&mut self, daemon: Daemon) {
        let status = self.program(daemon).stop();
        assert!(status.success(), "{} stopped with {status}:\n{}", daemon.name(), self.log(daemon));
        self.running.retain(|(running, _)| *running != daemon);
    }

    /// A daemon that runs.
    ///
    /// # Panics
    /// If it does not.
    pub fn program(&mut self, daemon: Daemon) -> &mut Program {
        let found = self.running.iter_mut().find(|(running, _)| *running == daemon);
        &mut found.unwrap_or_else(|| panic!("{} does not run", daemon.name())).1
    }

    /// What a daemon has logged.
    #[must_use]
    pub fn log(&self, daemon: Daemon) -> String {
        std::fs::read_to_string(self.layout().log(daemon.name())).unwrap_or_default()
    }

    /// Waits until its CA has an intermediate.
    ///
    /// # Panics
    /// If that takes too long, or the CA ends.
    pub fn wait_member(&mut self) {
        let socket = self.layout().ca_socket();
        wait_for(&format!("node {} to be a member", self.spec.name), READY, || {
            self.assert_all_run();
            let local = rpc::issuance_status(&socket).map_err(|e| format!("ca: {e}"))?;
            if local.intermediate_not_after == 0 { Err(format!("{local:?}")) } else { Ok(()) }
        });
    }

    /// Waits until every daemon answers, and the enforcer enforces this policy.
    ///
    /// # Panics
    /// If that takes too long, or a daemon ends.
    pub fn wait_ready(&mut self, policy: &Digest) {
        self.wait_member();
        let layout = self.layout().clone();
        wait_for(&format!("node {} to be ready", self.spec.name), READY, || {
            self.assert_all_run();
            let knows = rpc::attestation_status(&layout.identityd_socket()).map_err(|e| format!("identityd: {e}"))?;
            if !knows.ca_connected {
                return Err("identityd has no connection to the CA".to_owned());
            }
            let status = rpc::enforcement_status(&layout.enforcer_socket()).map_err(|e| format!("enforcer: {e}"))?;
            if status.trust_domain.is_empty() {
                return Err("the enforcer has no trust bundle yet".to_owned());
            }
            self.enforces(policy)
        });
    }

    /// Whether the enforcer enforces this policy.
    ///
    /// # Errors
    /// It does not, in words.
    pub fn enforces(&self, policy: &Digest) -> Result<(), String> {
        let status = rpc::enforcement_status(&self.layout().enforcer_socket()).map_err(|e| format!("enforcer: {e}"))?;
        if status.policy_sha256 == policy.0 {
            Ok(())
        } else {
            Err(format!("the enforcer has another policy: {status:?}"))
        }
    }

    /// Waits until the flows that are not captured are seen.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait_observing(&self) {
        let socket = self.layout().enforcer_socket();
        wait_for(&format!("node {} to see flows", self.spec.name), READY, || {
            let status = rpc::enforcement_status(&socket).map_err(|e| format!("enforcer: {e}"))?;
            if status.observing { Ok(()) } else { Err(format!("{status:?}")) }
        });
    }

    fn assert_all_run(&mut self) {
        for (_, program) in &mut self.running {
            let (name, running) = (program.name().to_owned(), program.is_running());
            assert!(running, "{name} ended:\n{}", program.output());
        }
    }

    /// Waits until a daemon ends by itself, and says with which exit code.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_for_exit(&mut self, daemon: Daemon) -> Option<i32> {
        let status = self.program(daemon).wait(READY);
        self.running.retain(|(running, _)| *running != daemon);
        status.code()
    }

    /// Stops the daemons in order and removes what they leave, as `bonafide run` does on Ctrl-C.
    ///
    /// # Panics
    /// If a daemon does not end well.
    pub fn stop_cleanly(&mut self, netns: &Netns) {
        for daemon in [Daemon::Enforcer, Daemon::Identityd, Daemon::Ca] {
            self.stop(daemon);
        }
        self.remove_capture(netns);
        self.remove();
    }

    /// Removes what preparing and running it left, except its state.
    ///
    /// # Panics
    /// If that fails.
    pub fn remove(&self) {
        remove_node(&self.spec).unwrap_or_else(|e| panic!("cannot remove node {}: {e}", self.spec.name));
    }

    /// Removes capture rules that a killed enforcer left, as an operator would.
    ///
    /// # Panics
    /// If that fails.
    pub fn remove_capture(&self, netns: &Netns) {
        let mut remover = start("remove-capture", &self.prepared.remove_capture, netns);
        let status = remover.wait(Duration::from_secs(5));
        assert!(status.success(), "remove-capture failed:\n{}", remover.output());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !crate::kept_for_inspection() {
            self.running.clear();
            let _ = remove_node(&self.spec);
        }
    }
}

/// What a node reads, and where it keeps what it writes.
#[derive(Debug)]
pub struct NodeFiles<'a> {
    /// Its directory.
    pub dir: &'a Path,
    /// Its policy file; `None`: what the authority publishes.
    pub policy: Option<&'a Path>,
    /// Its join token.
    pub token: &'a str,
    /// How it captures.
    pub backend: Backend,
    /// Over which family it reaches the authority.
    pub authority_family: Family,
}

/// The authority.
#[derive(Debug)]
pub struct Authority {
    spec: RootSpec,
    prepared: PreparedRoot,
    running: Option<Program>,
}

impl Authority {
    /// Starts one and waits until it gives out tokens.
    ///
    /// # Panics
    /// If it does not.
    #[must_use]
    pub fn start(instance: &str, netns: &Netns, dir: &Path) -> Self {
        let spec = RootSpec {
            instance: format!("{instance}-r"),
            dir: dir.to_owned(),
            trust_domain: TRUST_DOMAIN.parse().expect("it is one"),
            listen: Family::BOTH.map(|family| Site::Authority.at(family, AUTHORITY_PORT)).to_vec(),
            binaries: binaries(),
            intermediate_ttl_seconds: None,
        };
        let prepared = prepare_root(&spec).unwrap_or_else(|e| panic!("cannot prepare the authority: {e}"));
        let mut authority = Self { spec, prepared, running: None };
        authority.restart(netns);
        authority
    }

    /// Starts it again after it was killed, and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn restart(&mut self, netns: &Netns) {
        self.running = Some(start("authority", &self.prepared.ca, netns));
        wait_for("the authority to answer", READY, || {
            let program = self.running.as_mut().expect("it was just started");
            assert!(program.is_running(), "the authority ended:\n{}", program.output());
            rpc::create_token(&self.prepared.admin_socket, "nobody", 1)
        });
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// A single-use join token for this node.
    ///
    /// # Panics
    /// If it gives none.
    #[must_use]
    pub fn token(&self, node: &str, ttl_seconds: u32) -> String {
        rpc::create_token(&self.prepared.admin_socket, node, ttl_seconds).expect("the authority gives tokens")
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.prepared.layout.dir()
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.prepared.ca.log).unwrap_or_default()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        if !crate::kept_for_inspection() {
            self.running = None;
            let _ = remove_root(&self.spec);
        }
    }
}
