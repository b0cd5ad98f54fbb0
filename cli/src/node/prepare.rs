//! Lays a node out: directories, configuration, cgroups. Can be repeated; what the daemons kept stays.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use zeroize::Zeroizing;

use super::cgroup::InstanceCgroup;
use super::command::{DaemonCommand, Place};
use super::config::{CaToml, EnforcerToml, IdentitydToml};
use super::directory::{directory, file};
use super::error::{NodeError, io_at};
use super::layout::Layout;
use super::spec::{
    Admission, AuthorityAt, CA_UID, ENFORCER_UID, IDENTITYD_UID, MachineCertificate, NodeSpec, RootSpec,
};
use super::uids;

/// A node ready to be started: `ca` first, then `identityd`, then `enforcer`.
#[derive(Debug, Clone)]
pub struct PreparedNode {
    /// Starts the CA.
    pub ca: DaemonCommand,
    /// Starts identityd.
    pub identityd: DaemonCommand,
    /// Starts the enforcer.
    pub enforcer: DaemonCommand,
    /// Removes what a killed enforcer left of its capture rules, in the network namespace where it runs.
    pub remove_capture: DaemonCommand,
    /// Its paths.
    pub layout: Layout,
    /// Its cgroup.
    pub cgroup: InstanceCgroup,
}

/// An authority ready to be started.
#[derive(Debug, Clone)]
pub struct PreparedRoot {
    /// Starts it.
    pub ca: DaemonCommand,
    /// Where it serves `Admission`.
    pub admin_socket: PathBuf,
    /// Its paths.
    pub layout: Layout,
    /// Its cgroup.
    pub cgroup: InstanceCgroup,
}

/// Creates everything a node needs before its daemons start. As root.
///
/// # Errors
/// What is wrong with the specification, or what the system refused; nothing is started either way.
pub fn prepare_node(spec: &NodeSpec) -> Result<PreparedNode, NodeError> {
    if !matches!(spec.backend.as_str(), "nft" | "iptables") {
        return Err(NodeError::Backend(spec.backend.clone()));
    }
    let cgroup = InstanceCgroup::find(&spec.instance)?;
    uids::are_free(&[CA_UID, IDENTITYD_UID, ENFORCER_UID])?;
    let policy = spec.policy.as_deref().map(policy_path).transpose()?;
    let binaries = absolute(&spec.binaries)?;
    let layout = directories(&spec.dir, &[("ca", CA_UID), ("identityd", IDENTITYD_UID), ("enforcer", ENFORCER_UID)])?;
    cgroup.create()?;
    let ca_cgroup = cgroup.create_daemon("ca")?;
    let enforcer_cgroup = cgroup.create_daemon("enforcer")?;
    let identityd_cgroup = cgroup.create_daemon("identityd")?;

    write_admission(&spec.authority, &layout)?;
    let ca = write_config(&layout.config("ca"), &CaToml::of_node(spec, &layout, bios_uuid()))?;
    let identityd = write_config(&layout.config("identityd"), &IdentitydToml::of(spec, &layout, policy.as_deref()))?;
    let enforcer = write_config(&layout.config("enforcer"), &EnforcerToml::of(spec, &layout, ca_cgroup.clone()))?;

    let stands =
        Place { cgroup: &enforcer_cgroup, uid: ENFORCER_UID, capabilities: &["net-admin"], sockets: Vec::new() };
    let knows = Place {
        cgroup: &identityd_cgroup,
        uid: IDENTITYD_UID,
        capabilities: &IDENTITYD_CAPABILITIES,
        sockets: spec.evidence.sockets(),
    };
    Ok(PreparedNode {
        ca: ca_command(&binaries, &ca_cgroup, ca, &layout),
        identityd: DaemonCommand::launch(
            &binaries,
            &knows,
            "identityd",
            ["--config".into(), identityd.into()],
            layout.log("identityd"),
        ),
        remove_capture: DaemonCommand::launch(
            &binaries,
            &stands,
            "enforcer",
            ["remove-capture".into(), "--backend".into(), spec.backend.clone().into()],
            layout.log("remove-capture"),
        ),
        enforcer: DaemonCommand::launch(
            &binaries,
            &stands,
            "enforcer",
            ["--config".into(), enforcer.into()],
            layout.log("enforcer"),
        ),
        layout,
        cgroup,
    })
}

/// Creates everything an authority needs before it starts. As root.
///
/// # Errors
/// As [`prepare_node`].
pub fn prepare_root(spec: &RootSpec) -> Result<PreparedRoot, NodeError> {
    let cgroup = InstanceCgroup::find(&spec.instance)?;
    uids::are_free(&[CA_UID])?;
    let binaries = absolute(&spec.binaries)?;
    let layout = directories(&spec.dir, &[("ca", CA_UID)])?;
    cgroup.create()?;
    let ca_cgroup = cgroup.create_daemon("ca")?;
    let config = write_config(&layout.config("ca"), &CaToml::of_root(spec, &layout))?;
    let ca = ca_command(&binaries, &ca_cgroup, config, &layout);
    Ok(PreparedRoot { ca, admin_socket: layout.authority_socket(), layout, cgroup })
}

/// To look into every process and what it has mapped; and to load the kernel programs, where the last one is for those
/// at sockets. They stay: the programs that observe flows are loaded when somebody asks for flows.
const IDENTITYD_CAPABILITIES: [&str; 6] =
    ["sys-ptrace", "dac-read-search", "checkpoint-restore", "bpf", "perfmon", "net-admin"];

fn ca_command(binaries: &Path, cgroup: &Path, config: PathBuf, layout: &Layout) -> DaemonCommand {
    let place = Place { cgroup, uid: CA_UID, capabilities: &[], sockets: Vec::new() };
    DaemonCommand::launch(binaries, &place, "ca", ["--config".into(), config.into()], layout.log("ca"))
}

/// The SMBIOS system UUID, where the machine has one.
fn bios_uuid() -> Option<String> {
    let text = fs::read_to_string("/sys/class/dmi/id/product_uuid").ok()?;
    let uuid = text.trim().to_ascii_lowercase();
    (matches!(uuid.len(), 1..=128) && uuid.chars().all(|c| c.is_ascii_graphic())).then_some(uuid)
}

fn absolute(path: &Path) -> Result<PathBuf, NodeError> {
    fs::canonicalize(path).map_err(io_at("find", path))
}

/// Absolute, but with its links as they are: who replaces a policy may do so by pointing a link elsewhere.
fn policy_path(path: &Path) -> Result<PathBuf, NodeError> {
    fs::metadata(path).map_err(io_at("find", path))?;
    std::path::absolute(path).map_err(io_at("find", path))
}

/// The directories of these daemons.
fn directories(dir: &Path, daemons: &[(&str, u32)]) -> Result<Layout, NodeError> {
    directory(dir, 0, 0o755)?;
    let layout = Layout::new(absolute(dir)?);
    for shared in [layout.run(), layout.state(), layout.dir().join("log")] {
        directory(&shared, 0, 0o755)?;
    }
    for (name, uid) in daemons {
        directory(&layout.run().join(name), *uid, 0o755)?;
        directory(&layout.state().join(name), *uid, 0o700)?;
    }
    Ok(layout)
}

/// Token, or certificate and key, are root's; the CA gets copies, and no right to read anything else.
fn write_admission(authority: &AuthorityAt, layout: &Layout) -> Result<(), NodeError> {
    let AuthorityAt::Remote { by: Some(by), .. } = authority else { return Ok(()) };
    match by {
        Admission::Token(token) => file(&layout.join_token(), CA_UID, 0o600, token),
        Admission::Certificate(MachineCertificate { certificate, key, root }) => {
            let to = layout.join_certificate();
            for (from, to) in [(certificate, to.certificate), (key, to.key), (root, to.root)] {
                let text = Zeroizing::new(fs::read_to_string(from).map_err(io_at("read", from))?);
                file(&to, CA_UID, 0o600, &text)?;
            }
            Ok(())
        }
    }
}

fn write_config(path: &Path, config: &impl Serialize) -> Result<PathBuf, NodeError> {
    let text = toml::to_string(config).map_err(|e| NodeError::Config(path.to_owned(), e.to_string()))?;
    file(path, 0, 0o644, &text)?;
    Ok(path.to_owned())
}
