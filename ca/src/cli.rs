//! What an operator types: run the daemon, make a join token, list the nodes.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use bonafide_proto::clock::{SharedClock, SystemClock};
use bonafide_proto::endpoint;
use bonafide_proto::grant::Grant;
use bonafide_proto::harden::harden;
use bonafide_proto::name::{NodeName, TrustDomain};
use bonafide_proto::pem::pem;
use bonafide_proto::wire::authority as wire;
use bonafide_proto::wire::authority::admission_client::AdmissionClient;
use clap::{Parser, Subcommand};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::signal::unix::{SignalKind, signal};
use tonic::Status;

use crate::attestor::x509pop::certificates;
use crate::authority::{self, Authority};
use crate::config::{Config, Role};
use crate::csr;
use crate::daemon::{Daemon, DaemonError};
use crate::founding::Charter;
use crate::key::{self, PassphraseAt};
use crate::offline::{self, DAYS, DAYS_USUAL, RootDir};
use crate::state;
use crate::store::backup::{Restored, Since};
use crate::store::{By, Event, backup};

/// Printed below `--help`.
const EXIT_CODES: &str = "Exit codes:
  0  stopped as asked; or the token, or the list, was printed
  1  failed: something broke, or does not answer
  2  wrong usage or configuration; or this node is no member, and its join token is missing, damaged or refused";

/// The certificate authority of Bonafide: admits nodes, issues leaves.
#[derive(Parser, Debug)]
#[command(
    version,
    after_help = EXIT_CODES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true
)]
struct Arguments {
    /// Run the roles that this file configures.
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    ask: Option<Ask>,
}

#[derive(Subcommand, Debug)]
enum Ask {
    /// Make a join token, which admits one node once, and print it. It is a secret.
    ///
    /// Only an authority that listens on the network (role = "root") makes tokens.
    Token {
        /// The authority's admin socket.
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
        /// Admit only a node of this name; lets it take the place of the one that has it.
        #[arg(long, value_name = "NAME")]
        node: Option<NodeName>,
        /// Admit only the machine with this SMBIOS system UUID (`/sys/class/dmi/id/product_uuid`).
        #[arg(long, value_name = "UUID")]
        bios_uuid: Option<String>,
        /// What it may issue: workload names, or prefixes with `*`, separated by commas. Without it: what the name was
        /// granted before, else nothing.
        #[arg(long, value_name = "NAMES")]
        workloads: Option<Grant>,
        /// Seconds until it expires.
        #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=600))]
        ttl: u32,
    },
    /// Write the store of an authority to a new file: members, tokens, ledger, quarantine and audit chain. The root key
    /// is not in it: keep a copy of state/authority/root.key, and of root-N.key after each rotation; or, where the root is
    /// offline, of issuing.key.
    ///
    /// An authority with a store of its own has to be stopped meanwhile.
    Backup {
        /// The authority's configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Where to; must not exist.
        file: PathBuf,
    },
    /// Put a backup into an empty store, of either kind: so it also goes from one kind to the other.
    ///
    /// Join tokens that nobody had used are left out. What was done after the backup was taken is not in it: so nodes
    /// lift nothing on the authority's word, and nobody joins or renews, until `bonafide-ca settle`. Nodes that renewed after
    /// the backup was taken have to join again.
    Restore {
        /// The authority's configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Nothing was done since: a store that only moves needs not be settled. Refused if this host knows better.
        #[arg(long)]
        newest: bool,
        /// A backup.
        file: PathBuf,
    },
    /// After a restore, once whatever was revoked, evicted, banned or put in quarantine since the backup is so again: from
    /// now on nodes go by what the authority has, and by nothing else; members join and renew again.
    Settle {
        /// The authority's admin socket.
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
    },
    /// Seal the keys of an authority that lie bare so far, of every root and for issuing, by the passphrase that its
    /// configuration names.
    Seal {
        /// The authority's configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print the root certificate, in PEM: a node that joins by a certificate of its own knows the authority by it.
    Root {
        /// The authority's admin socket.
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
    },
    /// Found a trust domain. Without --offline-root an authority does so by itself when it first starts.
    Init {
        /// The authority's configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Keep the root's key (root.key, root.pem) only in this directory, which is carried away: the authority certifies by a key
        /// of its own, state/authority/issuing.key, that the root certifies.
        #[arg(long, value_name = "DIR")]
        offline_root: Option<PathBuf>,
        /// Seal the root's key by the passphrase in this file.
        #[arg(long, value_name = "FILE", requires = "offline_root")]
        passphrase_file: Option<PathBuf>,
        /// How long the authority's own certificate lasts.
        #[arg(long, value_name = "DAYS", requires = "offline_root", default_value_t = DAYS_USUAL, value_parser = days())]
        issuing_days: u32,
    },
    /// The certificate by which an authority certifies whose root is offline: request the next one, sign it where the root
    /// is, install it.
    Issuing {
        /// The step.
        #[command(subcommand)]
        step: Issuing,
    },
    /// Replace the root, step by step: prepare, publish, activate, retire. Each can be asked again; one that comes too
    /// early is refused, and names the nodes that it would cut off.
    Rotate {
        /// The step.
        #[command(subcommand)]
        step: Rotate,
    },
    /// List the nodes that are members.
    Nodes {
        /// The authority's admin socket.
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
    },
}

#[derive(Subcommand, Debug)]
enum Issuing {
    /// Print a request (PKCS#10, PEM) for the authority's issuing key. Where authorities share a store, one of them asks for all.
    Request {
        /// The authority's configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// For a new key, which the next root shall certify.
        #[arg(long)]
        next: bool,
    },
    /// Where the root is: print the certificate for a request. What the request says of itself is ignored: make sure that it
    /// is the authority's.
    Sign {
        /// The directory that `init --offline-root` made.
        #[arg(long, value_name = "DIR")]
        root_dir: PathBuf,
        /// Make a root for this trust domain there first, and print its certificate as well: for `rotate prepare --issuing`.
        #[arg(long, value_name = "TRUST_DOMAIN")]
        new_root: Option<TrustDomain>,
        /// The file with the passphrase that its key is sealed by.
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
        /// How long it lasts.
        #[arg(long, value_name = "DAYS", default_value_t = DAYS_USUAL, value_parser = days())]
        days: u32,
        /// The request.
        request: PathBuf,
    },
    /// Certify by this certificate from now on.
    Install {
        #[command(flatten)]
        admin: Admin,
        /// What `sign` printed.
        certificate: PathBuf,
    },
    /// Show until when the certificates last, and when the next one should be requested.
    Status(Admin),
}

fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(i64::from(*DAYS.start())..=i64::from(*DAYS.end()))
}

#[derive(Subcommand, Debug)]
enum Rotate {
    /// Make the next root and its key, beside the one before (state/authority/root-N.key); nobody is told yet.
    ///
    /// Where several authorities share a store, copy that file to each of the others before the next step.
    Prepare {
        #[command(flatten)]
        admin: Admin,
        /// The next root was made elsewhere: what `issuing sign --new-root` printed. Its key is not here, and this
        /// authority's own is state/authority/issuing-N.key.
        #[arg(long, value_name = "FILE")]
        issuing: Option<PathBuf>,
    },
    /// Tell every node to trust the next root as well.
    Publish(Admin),
    /// Certify nodes by the next root; they renew at once. What was issued before stays good.
    Activate(Leaving),
    /// Tell every node to trust the root before no longer. Delete its key then, and copies of it.
    Retire(Leaving),
    /// Forget the next root, which is not active yet: its key is deleted here, and nodes that were told of it trust it no longer.
    /// Delete copies of the key yourself.
    Abandon(Admin),
    /// Show how far the roots have come, and who is waited for.
    Status(Admin),
}

#[derive(clap::Args, Debug)]
struct Admin {
    /// The authority's admin socket.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
}

#[derive(clap::Args, Debug)]
struct Leaving {
    #[command(flatten)]
    admin: Admin,
    /// Nodes that need not be waited for, separated by commas; they may have to join again.
    #[arg(long, value_name = "NODES", value_delimiter = ',')]
    leave_behind: Vec<NodeName>,
}

/// Why the program ends badly.
enum Trouble {
    /// Exit code 1.
    Failed(String),
    /// Exit code 2.
    Input(String),
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl From<DaemonError> for Trouble {
    fn from(e: DaemonError) -> Self {
        match &e {
            DaemonError::Upkeep(upkeep) if upkeep.is_input() => Self::Input(e.to_string()),
            _ => Self::Failed(e.to_string()),
        }
    }
}

/// Runs the program; its exit codes are in its help.
pub fn main() -> ExitCode {
    // Whatever is asked, a key may be read for it.
    if let Err(e) = harden() {
        return failed(1, &format!("keys could not be kept from core files: {e}"));
    }
    match Arguments::parse() {
        Arguments { ask: Some(ask), .. } => in_runtime(answer(ask)),
        Arguments { config: Some(path), .. } => daemon(&path),
        Arguments { .. } => ExitCode::from(2),
    }
}

fn daemon(path: &Path) -> ExitCode {
    let config = match Config::read(path) {
        Ok(config) => config,
        Err(e) => return failed(2, &e),
    };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(&config.log))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    in_runtime(serve(config))
}

async fn serve(config: Config) -> Result<(), Trouble> {
    // Before the doors are bound: a signal during the start stops cleanly too.
    let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (mut terminate, mut interrupt) = (terminate.map_err(|e| e.to_string())?, interrupt.map_err(|e| e.to_string())?);
    let daemon = Daemon::bind(&config, Arc::new(SystemClock)).await?;
    tracing::info!(addresses = ?daemon.addresses(), "serving");
    let stop = async {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    Ok(Box::pin(daemon.run(stop)).await?)
}

async fn answer(ask: Ask) -> Result<(), Trouble> {
    match ask {
        Ask::Token { socket, node, bios_uuid, workloads, ttl } => {
            let grant =
                workloads.map(|grant| wire::Grant { workloads: grant.patterns().map(ToOwned::to_owned).collect() });
            let (node, bios_uuid) = (node.map(|n| n.to_string()).unwrap_or_default(), bios_uuid.unwrap_or_default());
            token(&socket, wire::CreateTokenRequest { node, ttl_seconds: ttl, grant, bios_uuid }).await?;
        }
        Ask::Root { socket } => root(&socket).await?,
        Ask::Nodes { socket } => nodes(&socket).await?,
        Ask::Rotate { step } => rotate(step).await?,
        Ask::Init { config, offline_root, passphrase_file, issuing_days } => {
            let root = offline_root.map(|path| root_dir(path, passphrase_file));
            moved(move || init(&config, root.as_ref(), issuing_days)).await?;
        }
        Ask::Issuing { step } => issuing(step).await?,
        Ask::Backup { config, file } => moved(move || back_up(&config, &file)).await?,
        Ask::Seal { config } => moved(move || seal(&config)).await?,
        Ask::Restore { config, newest, file } => moved(move || restore(&config, newest, &file)).await?,
        Ask::Settle { socket } => settle(&socket).await?,
    }
    Ok(())
}

async fn moved(work: impl FnOnce() -> Result<String, Trouble> + Send + 'static) -> Result<(), Trouble> {
    let said = tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())??;
    Ok(print(&said)?)
}

fn charter(config: &Path) -> Result<Charter, Trouble> {
    match Config::read(config).map_err(|e| Trouble::Input(e.to_string()))?.role {
        Role::Root(root) | Role::Local(root, _) => Ok(root.charter),
        Role::Node(..) => Err(Trouble::Input("this is the configuration of a node, which has no such store".into())),
    }
}

fn back_up(config: &Path, file: &Path) -> Result<String, Trouble> {
    let charter = charter(config)?;
    let store = authority::open_store(&charter, &clock()).map_err(|e| e.to_string())?;
    let records = store.back_up(&operator(), file).map_err(|e| e.to_string())?;
    Ok(format!("{records} records in {}\n", file.display()))
}

fn seal(config: &Path) -> Result<String, Trouble> {
    let charter = charter(config)?;
    let keys = charter.keys();
    if keys.is_empty() {
        return Err(format!("{} has no key that could be sealed", charter.state.display()).into());
    }
    let sealed = key::seal(&keys).map_err(|e| e.to_string())?;
    let sealed: Vec<String> = sealed.iter().map(|path| path.display().to_string()).collect();
    Ok(format!("sealed: {}; copies of the bare keys elsewhere are as good as before\n", sealed.join(", ")))
}

fn restore(config: &Path, newest: bool, file: &Path) -> Result<String, Trouble> {
    let charter = charter(config)?;
    let failed = |e: &dyn std::fmt::Display| e.to_string();
    state::prepare(charter.state.parent().unwrap_or(&charter.state)).map_err(|e| failed(&e))?;
    state::prepare(&charter.state).map_err(|e| failed(&e))?;
    let engine = authority::open_engine(&charter, &clock()).map_err(|e| failed(&e))?;
    let seen = backup::seen(&charter.audit_mark()).map_err(|e| failed(&e))?;
    let since = if newest { Since::Nothing(seen) } else { Since::Perhaps };
    let restored = backup::restore(file, engine.as_ref(), &charter.trust_domain, since).map_err(|e| failed(&e))?;
    drop(engine);
    // What this host saw of an earlier store's chain says nothing about this one.
    match std::fs::remove_file(charter.audit_mark()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(&e).into()),
        _ => {}
    }
    let store = authority::open_store(&charter, &clock()).map_err(|e| failed(&e))?;
    let mut change = store.change();
    change.note(Event::new("restored", &operator()).with("taken", restored.taken).with("newest", newest));
    change.commit().map_err(|e| failed(&e))?;
    Ok(how_to_go_on(&restored, newest))
}

fn how_to_go_on(restored: &Restored, newest: bool) -> String {
    let Restored { records, tokens, taken } = restored;
    let mut text =
        format!("{records} records restored; the authority needs the root.key, or issuing.key, that belongs to them\n");
    if *tokens > 0 {
        text.push_str(&format!("{tokens} join tokens that nobody had used are not among them; make new ones\n"));
    }
    if !newest {
        text.push_str(&format!(
            "What was done after {} is not in it. Nodes keep what they know to be revoked or in quarantine, and nobody joins\n\
             or renews. Start the authority, then revoke, evict, ban and put in quarantine again what was so since; then say\n\
             bonafide-ca settle. Nodes that joined or renewed since have to join anew, and a policy that was published since\n\
             has to be published again, under a higher --version.\n",
            instant(*taken)
        ));
    }
    text
}

async fn settle(socket: &Path) -> Result<(), String> {
    let settled = admission(socket).settle(wire::SettleRequest {}).await.map_err(|s| said(socket, &s))?.into_inner();
    let wire::QuarantineResponse { changed, told, nodes, .. } = settled;
    match changed {
        true => print(&format!("settled; {told} of {nodes} nodes go by it, others will when they come\n")),
        false => print("nothing to settle: this authority was not restored from a backup, or settled before\n"),
    }
}

fn clock() -> SharedClock {
    Arc::new(SystemClock)
}

fn operator() -> By {
    By::Uid(rustix::process::getuid().as_raw())
}

async fn token(socket: &Path, request: wire::CreateTokenRequest) -> Result<(), String> {
    let made = admission(socket).create_token(request).await.map_err(|s| said(socket, &s))?.into_inner();
    print(&format!("{}\n", made.token))
}

async fn root(socket: &Path) -> Result<(), String> {
    let told = admission(socket).trust_root(wire::TrustRootRequest {}).await.map_err(|s| said(socket, &s))?;
    print(&text("CERTIFICATE", &told.into_inner().root))
}

fn root_dir(path: PathBuf, passphrase: Option<PathBuf>) -> RootDir {
    RootDir { path, passphrase: passphrase.map(PassphraseAt::File) }
}

fn init(config: &Path, root: Option<&RootDir>, days: u32) -> Result<String, Trouble> {
    let (charter, failed) = (charter(config)?, |e: &dyn std::fmt::Display| e.to_string());
    state::prepare(charter.state.parent().unwrap_or(&charter.state)).map_err(|e| failed(&e))?;
    state::prepare(&charter.state).map_err(|e| failed(&e))?;
    let Some(root) = root else {
        Authority::open(&charter, clock()).map_err(|e| failed(&e))?;
        return Ok(format!("{} is founded\n", charter.trust_domain));
    };
    let store = authority::open_store(&charter, &clock()).map_err(|e| failed(&e))?;
    offline::found(&charter, &store, root, days, clock().unix()).map_err(|e| failed(&e))?;
    Ok(format!(
        "{} is founded. Its root is in {}: carry that away, and keep a copy.\n\
         This authority certifies by {} for {days} days; where authorities share the store, copy that to each of them.\n",
        charter.trust_domain,
        root.path.display(),
        charter.issuing_key_of(1).path.display(),
    ))
}

async fn issuing(step: Issuing) -> Result<(), Trouble> {
    match step {
        Issuing::Request { config, next } => moved(move || request(&config, next)).await,
        Issuing::Sign { root_dir: path, new_root, passphrase_file, days, request } => {
            let root = root_dir(path, passphrase_file);
            moved(move || sign(&root, new_root.as_ref(), days, &request)).await
        }
        Issuing::Install { admin: Admin { socket }, certificate } => {
            let [certificate] = <[_; 1]>::try_from(certificates(&certificate).map_err(|e| e.to_string())?)
                .map_err(|_| format!("{}: one certificate is expected", certificate.display()))?;
            let request = wire::InstallIssuingRequest { certificate: certificate.to_vec() };
            let shown = admission(&socket).install_issuing(request).await.map_err(|s| said(&socket, &s))?;
            Ok(changed(&shown.into_inner())?)
        }
        Issuing::Status(Admin { socket }) => {
            let shown =
                admission(&socket).show_roots(wire::ShowRootsRequest {}).await.map_err(|s| said(&socket, &s))?;
            Ok(print(&roots(&shown.into_inner()))?)
        }
    }
}

fn request(config: &Path, next: bool) -> Result<String, Trouble> {
    let charter = charter(config)?;
    if next {
        let request = offline::request(&charter.next_issuing_key()).map_err(|e| e.to_string())?;
        return Ok(text("CERTIFICATE REQUEST", &request));
    }
    let home = charter
        .issuing_key()
        .ok_or_else(|| format!("{} has no issuing key: its root is not offline", charter.state.display()))?;
    let request = offline::request(&home).map_err(|e| e.to_string())?;
    Ok(text("CERTIFICATE REQUEST", &request))
}

fn sign(root: &RootDir, new: Option<&TrustDomain>, days: u32, request: &Path) -> Result<String, Trouble> {
    // First: no root is made for what is no request.
    let request = csr::read(request).map_err(|e| e.to_string())?;
    let (root, now) = match new {
        None => (root.open(), clock().unix()),
        Some(domain) => (root.found(domain, clock().unix()), clock().unix()),
    };
    let root = root.map_err(|e| e.to_string())?;
    let certificate = root.sign(&request, days, now).map_err(|e| e.to_string())?;
    let with_it = new.map(|_| text("CERTIFICATE", root.certificate())).unwrap_or_default();
    Ok(text("CERTIFICATE", &certificate) + &with_it)
}

async fn prepare(socket: &Path, file: &Path) -> Result<(), String> {
    let [issuing, root] = <[_; 2]>::try_from(certificates(file).map_err(|e| e.to_string())?).map_err(|_| {
        format!("{}: two certificates are expected, as `issuing sign --new-root` prints", file.display())
    })?;
    let request = wire::PrepareRootRequest { root: root.to_vec(), issuing: issuing.to_vec() };
    let shown = admission(socket).prepare_root(request).await.map_err(|s| said(socket, &s))?;
    changed(&shown.into_inner())
}

fn text(label: &str, der: &[u8]) -> String {
    String::from_utf8_lossy(&pem(label, &[der])).into_owned()
}

async fn rotate(step: Rotate) -> Result<(), String> {
    use wire::RotationStep as Step;
    let (step, Leaving { admin: Admin { socket }, leave_behind }) = match step {
        Rotate::Prepare { admin: Admin { socket }, issuing: Some(file) } => return prepare(&socket, &file).await,
        Rotate::Prepare { admin, issuing: None } => (Step::Prepare, Leaving { admin, leave_behind: Vec::new() }),
        Rotate::Publish(admin) => (Step::Publish, Leaving { admin, leave_behind: Vec::new() }),
        Rotate::Activate(leaving) => (Step::Activate, leaving),
        Rotate::Abandon(admin) => (Step::Abandon, Leaving { admin, leave_behind: Vec::new() }),
        Rotate::Retire(leaving) => (Step::Retire, leaving),
        Rotate::Status(Admin { socket }) => {
            let shown =
                admission(&socket).show_roots(wire::ShowRootsRequest {}).await.map_err(|s| said(&socket, &s))?;
            return print(&roots(&shown.into_inner()));
        }
    };
    let leave_behind = leave_behind.iter().map(ToString::to_string).collect();
    let request = wire::RotateRootRequest { step: step.into(), leave_behind };
    let shown = admission(&socket).rotate_root(request).await.map_err(|s| said(&socket, &s))?.into_inner();
    changed(&shown)
}

fn changed(shown: &wire::RootsShown) -> Result<(), String> {
    let before = if shown.changed { "" } else { "It was so before.\n" };
    print(&format!("{before}{}", roots(shown)))
}

fn roots(shown: &wire::RootsShown) -> String {
    let mut text = format!("{:<6} {:<10} {:<20} {:<20} {:<5} CERTIFICATE\n", "ROOT", "STAGE", "SINCE", "UNTIL", "KEY");
    for root in &shown.roots {
        let (since, until, key) =
            (instant(root.since), instant(root.not_after), if root.key_here { "here" } else { "-" });
        let (number, stage, digest) = (root.number, &root.stage, hex::encode(&root.sha256));
        text.push_str(&format!("{number:<6} {stage:<10} {since:<20} {until:<20} {key:<5} {digest}\n"));
    }
    for (number, issuing) in shown.roots.iter().filter_map(|root| Some((root.number, root.issuing.as_ref()?))) {
        let (until, due) = (instant(issuing.until), instant(issuing.due));
        text.push_str(&format!(
            "Root {number} is offline. The authority certifies in its name until {until}; renew that from {due} on\n"
        ));
    }
    if !shown.awaited.is_empty() {
        text.push_str(&format!("Not yet said that they trust these: {}\n", shown.awaited.join(", ")));
    }
    for root in shown.roots.iter().filter(|root| root.stage == "outgoing" && !root.depend.is_empty()) {
        let (until, nodes) = (instant(root.depend_until), root.depend.join(", "));
        text.push_str(&format!("Until {until} certificates of root {} are valid at: {nodes}\n", root.number));
    }
    text
}

async fn nodes(socket: &Path) -> Result<(), String> {
    let listed = admission(socket).list_nodes(wire::ListNodesRequest {}).await.map_err(|s| said(socket, &s))?;
    let mut text = format!("{:<24} {:<20} {:<20} {:<20} MACHINE\n", "NODE", "JOINED", "RENEWED", "UNTIL");
    for node in listed.into_inner().nodes {
        let times = [node.joined, node.last_renewed, node.not_after].map(instant);
        let [joined, renewed, until] = times;
        let machine = [node.machine_id, node.bios_uuid].into_iter().find(|m| !m.is_empty()).unwrap_or_default();
        text.push_str(&format!("{:<24} {joined:<20} {renewed:<20} {until:<20} {machine}\n", node.name));
    }
    print(&text)
}

fn admission(socket: &Path) -> AdmissionClient<tonic::transport::Channel> {
    AdmissionClient::new(endpoint::channel(socket))
}

fn said(socket: &Path, status: &Status) -> String {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled => format!(
            "the authority does not answer at {}: is it running, and are you root? ({})",
            socket.display(),
            status.message()
        ),
        _ => format!("the authority refused: {}", status.message()),
    }
}

fn instant(unix: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix).ok().and_then(|t| t.format(&Rfc3339).ok()).unwrap_or_default()
}

fn print(text: &str) -> Result<(), String> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|e| format!("standard output: {e}"))
}

fn in_runtime(work: impl Future<Output = Result<(), Trouble>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(1, &format!("the runtime cannot start: {e}")),
    };
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Trouble::Failed(why)) => failed(1, &why),
        Err(Trouble::Input(why)) => failed(2, &why),
    }
}

fn failed(code: u8, why: &dyn std::fmt::Display) -> ExitCode {
    // Nobody is left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr(), "bonafide-ca: {why}");
    ExitCode::from(code)
}
