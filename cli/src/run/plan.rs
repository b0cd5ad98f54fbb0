//! What a run shall be, checked before anything is touched.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bonafide_proto::name::NodeName;
use bonafide_proto::token::{JoinToken, TOKEN_TEXT_MAX};

use super::{BackendChoice, RunArgs};
use crate::exit::Failure;
use crate::node::{
    Admission, AuthorityAt, DEFAULT_INBOUND_PORT, DEFAULT_OUTBOUND_PORT, EvidenceSources, MachineCertificate, NodeSpec,
};
use crate::policy::check;

/// The largest file of `--certificate`, `--key` or `--authority-root`, in bytes.
const PEM_MAX: u64 = 256 * 1024;

/// The policy of a run that was given none.
const OBSERVE: &str = "\
# Observe only: nothing is captured, nothing refused. Give programs names by [[workload]] tables, then write rules for them;
# `bonafide whois PID` shows what a program can be known by. Edits are picked up while the node runs.
mode = \"observe\"
";

pub(super) fn must_be_root() -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::BadInput("only root can run a node: it captures connections and reads other users' processes".into()))
}

/// Turns arguments into a node.
pub(super) fn plan(args: &RunArgs, dir: &Path) -> Result<NodeSpec, Failure> {
    membership_stays(args, dir)?;
    let policy = match &args.policy {
        Some(file) => Some(check::parse(file).map(|_| file.clone()).map_err(Failure::BadInput)?),
        None if args.policy_from_authority => None,
        None => Some(default_policy_path(dir)),
    };
    let evidence = args.evidence.as_deref().map(EvidenceSources::load).transpose().map_err(Failure::BadInput)?;
    Ok(NodeSpec {
        instance: args.instance.clone(),
        name: args.name.clone().map_or_else(host_name, Ok)?,
        dir: dir.to_owned(),
        policy,
        evidence: evidence.unwrap_or_default(),
        backend: backend(args.backend)?.to_owned(),
        authority: authority(args)?,
        binaries: binaries()?,
        leaf_ttl_seconds: None,
        outbound_port: DEFAULT_OUTBOUND_PORT,
        inbound_port: DEFAULT_INBOUND_PORT,
    })
}

/// A join token admits once, so a membership must outlive the run and the machine's next boot.
fn membership_stays(args: &RunArgs, dir: &Path) -> Result<(), Failure> {
    if args.authority.is_empty() {
        return Ok(());
    }
    if !args.keep {
        return Err(Failure::BadInput(
            "--authority needs --keep: without it the membership is removed when the run stops, \
             and the used join token admits nobody again; add --keep --dir /var/lib/bonafide"
                .into(),
        ));
    }
    if is_in_run(dir) {
        return Err(Failure::BadInput(format!(
            "--authority needs a directory that survives a reboot, and {} does not; add --dir /var/lib/bonafide",
            dir.display()
        )));
    }
    Ok(())
}

/// Whether it is, or will be, in `/run`, which every boot empties (file-hierarchy(7)); by whatever name.
fn is_in_run(dir: &Path) -> bool {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let existing = absolute.ancestors().find_map(|path| fs::canonicalize(path).ok());
    existing.is_some_and(|path| path.starts_with("/run"))
}

/// Writes the policy of a run that was given none, unless an earlier run left one.
pub(super) fn default_policy(args: &RunArgs, dir: &Path) -> Result<(), Failure> {
    if args.policy.is_some() || args.policy_from_authority {
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
    if args.authority.is_empty() {
        return Ok(AuthorityAt::Embedded { trust_domain: args.trust_domain.clone() });
    }
    let by = match (&args.token_file, &args.certificate, &args.key, &args.authority_root) {
        (Some(file), ..) => Some(Admission::Token(token(file)?)),
        (None, Some(certificate), Some(key), Some(root)) => {
            let files = MachineCertificate { certificate: certificate.clone(), key: key.clone(), root: root.clone() };
            [certificate, key, root].into_iter().try_for_each(|file| pem_file(file))?;
            Some(Admission::Certificate(files))
        }
        _ => None,
    };
    Ok(AuthorityAt::Remote { addrs: args.authority.clone(), by })
}

/// What it holds, the CA finds out; that it can be read and is of a sensible size is known before anything is touched.
fn pem_file(file: &Path) -> Result<(), Failure> {
    let wrong = |why: String| Failure::BadInput(format!("{}: {why}", file.display()));
    let size =
        fs::File::open(file).and_then(|f| f.metadata()).map_err(|e| wrong(format!("cannot be read: {e}")))?.len();
    if size > PEM_MAX { Err(wrong(format!("it has {size} bytes; at most {PEM_MAX} are read"))) } else { Ok(()) }
}

fn token(file: &Path) -> Result<String, Failure> {
    let wrong = |why: String| Failure::BadInput(format!("{}: {why}", file.display()));
    let mut text = String::new();
    fs::File::open(file)
        .and_then(|f| f.take(TOKEN_TEXT_MAX as u64).read_to_string(&mut text))
        .map_err(|e| wrong(format!("the join token cannot be read: {e}")))?;
    text.parse::<JoinToken>().map_err(|e| wrong(e.to_string()))?;
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
