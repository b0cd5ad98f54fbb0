//! `bonafide run`: a whole node on this machine until Ctrl-C, and then nothing of it.
//!
//! Read [`run`] for the story: claim, lay out, start, watch, stop, remove. Whatever fails, what was begun is undone.

mod claim;
mod daemon;
mod fleet;
mod log;
mod plan;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bonafide_proto::name::{NodeName, TrustDomain};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::ask;
use crate::exit::{Exit, Failure};
use crate::flows::{Filter, Tail, View, record};
use crate::node::{Layout, NodeError, PreparedNode, prepare_node};
use crate::screen::{Screen, tell};

use claim::Claim;
use fleet::Fleet;

/// Between two looks at the daemons and at the flow records.
const TICK: Duration = Duration::from_millis(50);

/// How capture rules are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BackendChoice {
    /// nftables, in a table of its own.
    Nft,
    /// iptables; right only where nothing rewrites incoming addresses (DNAT, published ports).
    Iptables,
    /// nft if it is installed, else iptables.
    Auto,
}

/// Starts ca, identityd and enforcer, shows flows, restarts what dies.
#[derive(Debug, clap::Args)]
#[command(after_help = "Without --policy it only observes: nothing is captured or refused, nothing has a name yet.
Must be root. On Ctrl-C (or SIGTERM) capture rules, sockets, cgroups and, unless it was there before,
DIR are removed. Exits 3 if another `bonafide run` is at work.

A stop removes capture, and so opens the host: until the next start no connection is verified, encrypted
or refused. A daemon that dies meanwhile is restarted, and capture stays; so it does if the run is killed.

Without --authority the node has an authority of its own, which admits no other node. With it, --keep and a
--dir outside /run are needed: a join token admits once, so the membership has to stay.

The file of --evidence is TOML, for example:
  source = \"kernel\"   # do not start where the kernel programs cannot run; or \"proc\": do without; default: \"auto\"
  [[runtime]]         # instead of containerd, Docker and Podman at their usual sockets; may be repeated
  kind = \"podman\"     # or \"containerd\", \"docker\"
  socket = \"/run/user/1000/podman/podman.sock\"
  user = 1000         # whose it is, if not root's; containerd may also have namespaces = [...], service_account = KEY

Examples:
  bonafide run
  bonafide run --policy policy.toml --keep --dir /var/lib/bonafide
  bonafide run --policy policy.toml --keep --dir /var/lib/bonafide \
    --authority 10.0.0.9:8443 --token-file b.token
  bonafide run --policy policy.toml --keep --dir /var/lib/bonafide --authority 10.0.0.9:8443 \
    --certificate host.pem --key host.key --authority-root root.pem
  bonafide run --policy-from-authority --keep --dir /var/lib/bonafide --authority 10.0.0.9:8443")]
pub struct RunArgs {
    /// The policy; it may be edited while the node runs [default: observe, no workloads]
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// The policy is what the authority publishes (bonafide policy publish); what was in force last is kept
    #[arg(long, conflicts_with = "policy")]
    pub policy_from_authority: bool,
    /// The node's name [default: the host's]
    #[arg(long)]
    pub name: Option<NodeName>,
    /// The trust domain of the embedded authority
    #[arg(long, default_value = "bonafide.local", conflicts_with = "authority")]
    pub trust_domain: TrustDomain,
    /// How capture rules are installed
    #[arg(long, default_value = "auto")]
    pub backend: BackendChoice,
    /// Join the authority at this address instead of embedding one (repeatable: authorities that share a store; the
    /// first that answers is asked); needs --keep and a --dir outside /run
    #[arg(long, value_name = "ADDR:PORT", value_parser = address_and_port)]
    pub authority: Vec<std::net::SocketAddr>,
    /// Holds the join token; not needed by a node that joined before
    #[arg(long, value_name = "FILE", requires = "authority")]
    pub token_file: Option<PathBuf>,
    /// Joins by this certificate of an existing PKI (PEM, leaf first) instead of a token; the authority's [root.x509pop]
    /// says which it takes
    #[arg(long, value_name = "FILE", requires_all = ["authority", "key", "authority_root"], conflicts_with = "token_file")]
    pub certificate: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub key: Option<PathBuf>,
    /// The authority's root (PEM), as `bonafide-ca root` prints it: a token would say it
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub authority_root: Option<PathBuf>,
    /// Where evidence comes from: `source`, and `[[runtime]]` for container runtimes elsewhere than usual
    #[arg(long, value_name = "FILE")]
    pub evidence: Option<PathBuf>,
    /// Do not show flows
    #[arg(short, long)]
    pub quiet: bool,
    /// Leave DIR behind: keys, ledger and flow records
    #[arg(long)]
    pub keep: bool,
    /// Tells nodes on one machine apart; each in a network namespace of its own
    #[arg(long, default_value = "run", hide = true)]
    pub instance: String,
}

/// Runs the node. Returns when everything of it is gone.
pub(crate) fn run(args: &RunArgs, dir: &Path, screen: &mut Screen) -> Result<Exit, Failure> {
    plan::must_be_root()?;
    let spec = plan::plan(args, dir)?;
    let claim = Claim::take(&args.instance, dir, args.keep)?;
    let lived = plan::default_policy(args, dir)
        .and_then(|()| prepare_node(&spec).map_err(unprepared))
        .and_then(|node| live(args, &node, screen));
    let removed = claim.release();
    lived?;
    removed?;
    tell("stopped; every trace removed");
    Ok(Exit::Done)
}

fn unprepared(e: NodeError) -> Failure {
    match e {
        NodeError::UidTaken { .. } => Failure::Refused(e.to_string()),
        _ => Failure::Failed(e.to_string()),
    }
}

/// From the first daemon's start to the last one's end, and the removal of the capture rules.
fn live(args: &RunArgs, node: &PreparedNode, screen: &mut Screen) -> Result<(), Failure> {
    let mut fleet = Fleet::new(node);
    let mut records = Records::new(&node.layout, View::new(false, screen));
    let served = ask::block_on(serve(args, &mut fleet, &mut records)).flatten();
    let stopped = fleet.stop();
    // What ended with the enforcer was recorded by it.
    let shown = if args.quiet || served.is_err() { Ok(()) } else { records.show() };
    served.and(stopped).and(shown)
}

/// Starts the daemons in order and keeps them running until a signal comes.
async fn serve(args: &RunArgs, fleet: &mut Fleet, records: &mut Records<'_>) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    records.skip_old()?;
    tokio::select! {
        up = fleet.start() => up?,
        name = stop.asked() => {
            tell(&format!("{name}: stopping"));
            return Ok(());
        }
    }
    tell("the node is up; Ctrl-C stops it and removes every trace");
    loop {
        tokio::select! {
            name = stop.asked() => {
                tell(&format!("{name}: stopping"));
                return Ok(());
            }
            () = tokio::time::sleep(TICK) => fleet.tend(Instant::now()),
        }
        if !args.quiet {
            records.show()?;
        }
    }
}

/// The flow records of this run, and where they are shown.
struct Records<'a> {
    path: PathBuf,
    tail: Tail,
    view: View<'a>,
}

impl<'a> Records<'a> {
    fn new(layout: &Layout, view: View<'a>) -> Self {
        let path = layout.records();
        Self { tail: Tail::new(&path), path, view }
    }

    fn read(&mut self) -> Result<Vec<crate::flows::Line>, Failure> {
        self.tail.read().map_err(|e| Failure::Failed(format!("{}: {e}", self.path.display())))
    }

    fn skip_old(&mut self) -> Result<(), Failure> {
        while !self.read()?.is_empty() {}
        Ok(())
    }

    fn show(&mut self) -> Result<(), Failure> {
        let all = Filter::default();
        loop {
            let lines = self.read()?;
            if lines.is_empty() {
                return self.view.flush();
            }
            lines.iter().filter_map(|line| record(line).ok()).try_for_each(|r| self.view.show_if(&all, &r))?;
        }
    }
}

/// The signals that mean the end.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Stop {
    fn new() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|e| Failure::Failed(format!("cannot listen to signals: {e}")));
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

/// Parses the address of an authority, or says what one looks like.
fn address_and_port(text: &str) -> Result<std::net::SocketAddr, String> {
    let right = "such as \"10.0.0.9:8443\" or \"[fd77::9]:8443\"";
    text.parse().map_err(|_| format!("{text:?} is not an address and port {right}"))
}
