//! Wires the enforcer's tasks together: bind first, capture then, run until told to stop.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_policy::{Mode, Policy};
use bonafide_proto::clock::{SharedClock, SystemClock};
use bonafide_proto::endpoint;
use bonafide_proto::flow::canonical;
use bonafide_proto::harden::harden;
use bonafide_proto::record::{End, Reason};
use bonafide_proto::wire::node::enforcement_server::EnforcementServer;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tonic::transport::Server;

use crate::capture::{Capture, CaptureError, Exemption, Plan};
use crate::config::Config;
use crate::flow::{Abort as _, Node, refuse};
use crate::history::History;
use crate::identity::Identity;
use crate::live::Live;
use crate::observe::{Observer, observes};
use crate::record::{Account, Records, Why};
use crate::serve::Operator;
use crate::sys::locality::Locality;
use crate::{inbound, outbound, renew, reverify, sys};

/// The most connections that are carried at once in each direction; more are reset at once.
const FLOWS_MAX: usize = 32_768;
/// Descriptors that a flow may need at the same time: both legs, and one to ask the kernel by.
const DESCRIPTORS_PER_FLOW: u64 = 3;
/// How often what the capture rules refer to is looked at.
const REFRESH: Duration = Duration::from_secs(1);
/// How long live flows get for their records when the enforcer stops.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// Why the enforcer could not start or go on. Exit code 1.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Something of the operating system.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: String,
        /// What it said.
        source: io::Error,
    },
    /// The capture rules could not be installed or changed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

fn os(what: impl Into<String>) -> impl FnOnce(io::Error) -> DaemonError {
    let what = what.into();
    move |source| DaemonError::Os { what, source }
}

/// Runs until SIGTERM or SIGINT.
///
/// Stopping removes the capture rules, but in enforce mode they stay, so that a stopped enforcer
/// means no traffic rather than plaintext (`bonafide-enforcer remove-capture` takes them away).
///
/// # Errors
/// What kept it from starting or going on.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let descriptors = harden().map_err(os("the limit of open files"))?;
    let mut stop = Stop::new()?;
    let exempt = Exemption::of_this_process()?;
    let clock: SharedClock = Arc::new(SystemClock);
    let admin = endpoint::bind(&config.socket).map_err(os(config.socket.display().to_string()))?;
    let _socket_file = RemoveOnDrop(config.socket.clone());
    let identity = Identity::connect(config.identityd_socket.clone(), Arc::clone(&clock));
    let node = Arc::new(Node {
        policy: identity.policy(),
        trust: identity.trust(),
        records: Records::open(&config.records, &config.state, Arc::clone(&clock))
            .map_err(os(format!("the flow records in {}", config.records.display())))?,
        live: Arc::new(Live::new(identity.policy(), identity.quarantine(), identity.memory(), identity.trust(), clock)),
        locality: Locality,
        netns: sys::netns::own().map_err(os("/proc/self/ns/net"))?,
        ports: [config.outbound_port, config.inbound_port],
        identity,
    });
    remember(&config, &node.records);
    let (captures, captured) = watch::channel(None);
    serve_operator(admin, Operator { node: Arc::clone(&node), backend: config.backend, captures: captured });
    tokio::spawn(reverify::run(Arc::clone(&node.live), node.identity.clone()));
    tokio::spawn(renew::run(Arc::clone(&node.live), node.identity.clone()));

    let mut policies = node.policy.clone();
    tracing::info!("waiting for the policy from identityd");
    let policy = tokio::select! {
        policy = next_policy(&mut policies) => policy,
        () = stop.asked() => return Ok(()),
    };
    listen(&config, &node, descriptors)?;
    let plan = Plan {
        backend: config.backend,
        mode: policy.mode(),
        outbound_port: config.outbound_port,
        inbound_port: config.inbound_port,
        exempt,
        control: config.control,
    };
    let standing = Standing { observer: Observer::start(Arc::clone(&node), plan.control.clone()), captures };
    let mut capture = Capture::install(plan).await?;
    standing.tell(&capture);
    node.live.judge_again(&policy);
    tracing::info!(mode = policy.mode().as_str(), backend = config.backend.as_str(), "at work");

    let mut refresh = tokio::time::interval(REFRESH);
    loop {
        tokio::select! {
            policy = next_policy(&mut policies) => adopt(&policy, &mut capture, &node, &standing).await,
            _ = refresh.tick() => put_right(&mut capture, &node, &standing).await,
            () = stop.asked() => break,
        }
    }
    finish(capture, &node).await
}

/// Without a history the mesh works all the same: flow records have everything that it counts.
fn remember(config: &Config, records: &Records) {
    match History::open(config.state.join("history"), config.history, Arc::new(SystemClock)) {
        Ok(history) => records.count_in(history),
        Err(e) => tracing::error!(error = %e, "flows are recorded, and not counted in the history"),
    }
}

/// A new policy: every live flow is asked again at once, then the rules follow the mode.
async fn adopt(policy: &Policy, capture: &mut Capture, node: &Node, standing: &Standing) {
    let ended = node.live.judge_again(policy);
    tracing::info!(mode = policy.mode().as_str(), digest = %policy.digest(), ended, "policy in force");
    follow_mode(policy, capture, standing).await;
}

/// A switch that fails leaves the rules that are in force; it is tried again every [`REFRESH`].
async fn follow_mode(policy: &Policy, capture: &mut Capture, standing: &Standing) {
    if policy.mode() == capture.mode() {
        return;
    }
    // What is captured no more shall be seen from its first packet.
    if observes(policy.mode()) {
        standing.observer.observe();
    }
    match capture.switch(policy.mode()).await {
        Ok(()) => tracing::info!(mode = policy.mode().as_str(), "the capture rules follow the mode"),
        Err(e) => tracing::error!(error = %e, "the capture rules cannot follow the mode yet; those in force stay"),
    }
    standing.tell(capture);
}

/// Who has to know which capture rules are in place.
struct Standing {
    observer: Arc<Observer>,
    captures: watch::Sender<Option<Mode>>,
}

impl Standing {
    /// Who records connections: whoever captures them, else the observer. And to the operator it is told from now on.
    fn tell(&self, capture: &Capture) {
        let mode = capture.mode();
        if observes(mode) {
            self.observer.observe()
        } else {
            self.observer.leave_to_capture()
        }
        self.captures.send_replace(Some(mode));
    }
}

/// Somebody else's change to what the rules refer to: a restarted daemon's new cgroup, a killed guard.
async fn put_right(capture: &mut Capture, node: &Node, standing: &Standing) {
    if let Ok(policy) = node.policy() {
        follow_mode(&policy, capture, standing).await;
    }
    match capture.refresh().await {
        Ok(false) => {}
        Ok(true) => tracing::info!("the capture rules were put right"),
        Err(e) => tracing::error!(error = %e, "the capture rules cannot be put right; those in force stay"),
    }
}

async fn next_policy(policies: &mut watch::Receiver<Option<Arc<Policy>>>) -> Arc<Policy> {
    loop {
        if policies.changed().await.is_err() {
            // The sender lives as long as `Identity`, which the node holds.
            std::future::pending::<()>().await;
        }
        if let Some(policy) = policies.borrow_and_update().clone() {
            return policy;
        }
    }
}

async fn finish(capture: Capture, node: &Node) -> Result<(), DaemonError> {
    // Flows end before their rules do: a captured connection whose rules vanish would go on in plaintext.
    node.records.stopping();
    let ended = node.live.end_all();
    let deadline = tokio::time::Instant::now() + STOP_LIMIT;
    while !node.live.is_empty() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.records.history().into_iter().for_each(|history| history.stop());
    tracing::info!(ended, "stopping");
    if capture.mode() != Mode::Enforce {
        capture.remove().await?;
    }
    Ok(())
}

fn serve_operator(admin: UnixListener, operator: Operator) {
    let callers = vec![0, rustix::process::geteuid().as_raw()];
    tokio::spawn(async move {
        let served = Server::builder()
            .add_service(EnforcementServer::new(operator))
            .serve_with_incoming(endpoint::admit(admin, callers))
            .await;
        if let Err(e) = served {
            tracing::error!(error = %e, "the operator's socket is no longer served");
        }
    });
}

/// Binds the four listeners and accepts on each. The listener that accepted is the direction.
fn listen(config: &Config, node: &Arc<Node>, descriptors: u64) -> Result<(), DaemonError> {
    let slots = [slots(descriptors), slots(descriptors)];
    for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let directions = [(config.outbound_port, Direction::Out), (config.inbound_port, Direction::In)];
        for ((port, direction), slots) in directions.into_iter().zip(&slots) {
            let addr = SocketAddr::new(ip, port);
            match sys::listen::transparent(addr) {
                Ok(listener) => {
                    tokio::spawn(accept(listener, direction, Arc::clone(node), Arc::clone(slots)));
                }
                // A kernel without IPv6 has nothing to capture there.
                Err(e) if addr.is_ipv6() && is_without_ipv6(&e) => tracing::warn!(%addr, "no IPv6 on this host"),
                Err(source) => return Err(DaemonError::Os { what: format!("the capture port {addr}"), source }),
            }
        }
    }
    Ok(())
}

/// What the limit of open files allows for one direction.
fn slots(descriptors: u64) -> Arc<Semaphore> {
    let most = usize::try_from(descriptors / (2 * DESCRIPTORS_PER_FLOW)).unwrap_or(FLOWS_MAX);
    Arc::new(Semaphore::new(most.min(FLOWS_MAX)))
}

fn is_without_ipv6(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::AddrNotAvailable)
        || e.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    Out,
    In,
}

async fn accept(listener: TcpListener, direction: Direction, node: Arc<Node>, slots: Arc<Semaphore>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!(error = %e, ?direction, "accept failed");
                // Out of descriptors: wait for some to come back. A connection that died in the queue: go on.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let accepted = Instant::now();
        let node = Arc::clone(&node);
        match Arc::clone(&slots).try_acquire_owned() {
            Ok(slot) => {
                tokio::spawn(async move {
                    carry(stream, direction, accepted, &node).await;
                    drop(slot);
                });
            }
            // Refused at once and by name, rather than left to hang in the queue.
            Err(_) => refuse_for_want_of_slots(stream, direction, &node),
        }
    }
}

fn refuse_for_want_of_slots(stream: TcpStream, direction: Direction, node: &Node) {
    let end = match direction {
        Direction::Out => End::Source,
        Direction::In => End::Destination,
    };
    let mode = node.policy().map_or("none", |p| p.mode().as_str());
    let mut account = Account::open(&node.records, end, mode);
    if let (Ok(from), Ok(to)) = (stream.peer_addr(), stream.local_addr()) {
        account.addresses(canonical(from), canonical(to), None);
    }
    let _ended = refuse(stream, account, &Why::new(Reason::Limit, "too many connections are carried already"));
}

async fn carry(stream: TcpStream, direction: Direction, accepted: Instant, node: &Arc<Node>) {
    // Small writes must not wait for each other; a socket that refuses the option works all the same.
    let _ = stream.set_nodelay(true);
    stream.arm();
    match direction {
        Direction::Out => {
            let _ended = outbound::carry(stream, accepted, node).await;
        }
        Direction::In => {
            let _ended = inbound::accepted(stream, node).await;
        }
    }
}

struct Stop {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> Result<Self, DaemonError> {
        Ok(Self {
            term: signal(SignalKind::terminate()).map_err(os("SIGTERM"))?,
            int: signal(SignalKind::interrupt()).map_err(os("SIGINT"))?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}
