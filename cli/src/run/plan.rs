//! What a run shall be, checked before anything is touched.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bonafide_proto::name::NodeName;

use super::{BackendChoice, RunArgs};
use crate::exit::Failure;
use crate::node::{AuthorityAt, DEFAULT_INBOUND_PORT, DEFAULT_OUTBOUND_PORT, NodeSpec};
use crate::policy_check;

/// The policy of a run that was given none.
const OBSERVE: &str = "\
# Observe only: nothing is refused. Give programs names by [[workload]] tables, then write rules for them;
# `bonafide whois PID` shows what a program can be known by. Edits are picked up while the node runs.
mode = \"observe\"
";
/// A join token is far shorter.
const TOKEN_MAX: u64 = 4096;

pub(super) fn must_be_root() -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::BadInput("only root can run a node: it captures connections and reads other users' processes".into()))
}

/// Turns arguments into a node.
pub(super) fn plan(args: &RunArgs, dir: &Path) -> Result<NodeSpec, Failure> {
    let policy = match &args.policy {
        Some(file) => policy_check::parse(file).map(|_| file.clone()).map_err(Failure::BadInput)?,
        None => default_policy_path(dir),
    };
    Ok(NodeSpec {
        instance: args.instance.clone(),
        name: args.name.clone().map_or_else(host_name, Ok)?,
        dir: dir.to_owned(),
        policy,
        backend: backend(args.backend)?.to_owned(),
        authority: authority(args)?,
        binaries: binaries()?,
        leaf_ttl_seconds: None,
        outbound_port: DEFAULT_OUTBOUND_PORT,
        inbound_port: DEFAULT_INBOUND_PORT,
    })
}

/// Writes the policy of a run that was given none, unless an earlier run left one.
pub(super) fn default_policy(args: &RunArgs, dir: &Path) -> Result<(), Failure> {
    if args.policy.is_some() {
        return Ok(());
    }
    let path = default_policy_path(dir);
    let written = fs::OpenOptions::new().write(true).create_new(true).open(&path);
    match written.and_then(|mut file| io::Write::write_all(&mut file, OBSERVE.as_bytes())) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(Failure::Failed(format!("{}: cannot be written: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

fn default_policy_path(dir: &Path) -> PathBuf {
    dir.join("policy.toml")
}

/// The host's name up to its first dot.
fn host_name() -> Result<NodeName, Failure> {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy();
    let short = host.split('.').next().unwrap_or_default();
    short.parse().map_err(|e| Failure::BadInput(format!("the host's name {short:?} {e}; name the node by --name")))
}

fn backend(choice: BackendChoice) -> Result<&'static str, Failure> {
    match choice {
        BackendChoice::Nft => installed("nft", "nftables"),
        BackendChoice::Iptables => installed("iptables", "iptables"),
        BackendChoice::Auto => installed("nft", "nftables").or_else(|_| installed("iptables", "nftables or iptables")),
    }
}

fn installed(program: &'static str, package: &str) -> Result<&'static str, Failure> {
    let asked = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    match asked {
        Ok(output) if output.status.success() => Ok(program),
        _ => Err(Failure::BadInput(format!("{program} is not installed; apt-get install {package}"))),
    }
}

fn authority(args: &RunArgs) -> Result<AuthorityAt, Failure> {
    let Some(addr) = args.authority else {
        return Ok(AuthorityAt::Embedded { trust_domain: args.trust_domain.clone() });
    };
    let token = args.token_file.as_deref().map(token).transpose()?;
    Ok(AuthorityAt::Remote { addr, token })
}

fn token(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    fs::File::open(file)
        .and_then(|f| f.take(TOKEN_MAX).read_to_string(&mut text))
        .map_err(|e| Failure::BadInput(format!("{}: the join token cannot be read: {e}", file.display())))?;
    Ok(text.trim().to_owned())
}

/// The daemons are beside this program.
fn binaries() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().map_err(|e| Failure::Failed(format!("cannot find this program: {e}")))?;
    let dir = own.parent().unwrap_or(Path::new("/")).to_owned();
    let missing =
        ["ca", "identityd", "enforcer"].map(|d| dir.join(format!("bonafide-{d}"))).into_iter().find(|p| !p.is_file());
    match missing {
        Some(path) => {
            Err(Failure::BadInput(format!("{} is missing; build or install all of Bonafide", path.display())))
        }
        None => Ok(dir),
    }
}
