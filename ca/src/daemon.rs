//! Wires one process: binds every door first, so that a start either fails as a whole or serves as a whole.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::endpoint;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::Instant;
use tonic::transport::server::{Router, Server};

use crate::attestor::x509pop::{self, X509Holder, X509Pop, X509PopError};
use crate::authority::Authority;
use crate::config::{Admittance, Config, Joining, NodeConfig, NodeX509Pop, Role, RootConfig, RootX509Pop};
use crate::founding::OpenError;
use crate::link::{AuthorityLink, Embedded};
use crate::listener::{self, TlsSetupError};
use crate::node::{NodeCa, NodeOpenError};
use crate::policies;
use crate::remote::Remote;
use crate::retention;
use crate::serve::admission::{AdmissionService, Reach};
use crate::serve::issuance::IssuanceService;
use crate::serve::membership::MembershipService;
use crate::state::{self, StateError};
use crate::upkeep::{self, TokenSource, UpkeepError};

/// How long answers under way may take once the daemon is told to stop.
const GRACE: Duration = Duration::from_millis(500);
/// How often a silent node is asked whether it is still there, and how long it may take to say so.
const ALIVE: Duration = Duration::from_secs(10);
/// How often the store is looked at, although it says when it changes.
const LOOK: Duration = Duration::from_millis(500);
/// How long one look may take: some members may be asked in that time.
const GLANCE: Duration = Duration::from_millis(1500);
/// How long what was seen counts: longer than a cluster that lost its leader takes to elect another one (in which time
/// nobody changes anything), so that members are not let go for that.
const SURE: Duration = Duration::from_millis(2500);
/// Requests at once on one connection of a unix socket.
const CONCURRENCY: usize = 64;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state was not read to its end.
    #[error("opening the state failed: {0}")]
    Opening(#[from] JoinError),
    /// The root role.
    #[error(transparent)]
    Authority(#[from] OpenError),
    /// The node role.
    #[error(transparent)]
    Node(#[from] NodeOpenError),
    /// The files of another PKI.
    #[error(transparent)]
    X509Pop(#[from] X509PopError),
    /// The root by which the authority is known.
    #[error("{}: one root certificate is expected, as `bonafide-ca root` prints it", .0.display())]
    Roots(PathBuf),
    /// A door could not be bound.
    #[error("cannot listen on {at}: {source}")]
    Bind {
        /// Path or address.
        at: String,
        /// What the system said.
        source: io::Error,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The node is no member and cannot become one.
    #[error("this node could not join: {0}")]
    Upkeep(#[from] UpkeepError),
    /// A server ended by itself.
    #[error("serving failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// A daemon whose doors are bound.
#[derive(Debug)]
pub struct Daemon {
    authority: Option<AuthorityDoors>,
    node: Option<NodeDoor>,
}

#[derive(Debug)]
struct AuthorityDoors {
    authority: Arc<Authority>,
    tcp: Vec<TcpListener>,
    admin: UnixDoor,
}

#[derive(Debug)]
struct NodeDoor {
    node: Arc<NodeCa>,
    socket: UnixDoor,
    callers: Vec<u32>,
    link: Arc<dyn AuthorityLink>,
    tokens: TokenSource,
}

/// A bound unix socket; its file goes when it does.
#[derive(Debug)]
struct UnixDoor {
    listener: Option<UnixListener>,
    path: PathBuf,
}

impl UnixDoor {
    fn bind(path: &Path) -> Result<Self, DaemonError> {
        let listener =
            endpoint::bind(path).map_err(|source| DaemonError::Bind { at: path.display().to_string(), source })?;
        Ok(Self { listener: Some(listener), path: path.to_owned() })
    }
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), error = %e, "socket file not removed");
        }
    }
}

impl Daemon {
    /// Opens the state of every role and binds every door.
    ///
    /// # Errors
    /// Any [`DaemonError`]; what was bound is released again.
    pub async fn bind(config: &Config, clock: SharedClock) -> Result<Self, DaemonError> {
        state::prepare(&config.state)?;
        match &config.role {
            Role::Root(root) => {
                let authority = bind_authority(root, clock).await?;
                Ok(Self { authority: Some(authority), node: None })
            }
            Role::Node(node, Joining { authorities, by }) => {
                let link = Arc::new(Remote::among(authorities, &clock));
                let node = bind_node(node, link, tokens(by)?, clock).await?;
                Ok(Self { authority: None, node: Some(node) })
            }
            Role::Local(root, node) => {
                let doors = bind_authority(root, clock.clone()).await?;
                let authority = doors.authority.clone();
                let link = Arc::new(Embedded(authority.clone()));
                let node = bind_node(node, link, TokenSource::Own(authority), clock).await?;
                Ok(Self { authority: Some(doors), node: Some(node) })
            }
        }
    }

    /// The TCP addresses it listens on.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.authority.iter().flat_map(|a| &a.tcp).filter_map(|l| l.local_addr().ok()).collect()
    }

    /// Serves until `stop` is done, then lets answers under way finish for a moment. Socket files are removed.
    ///
    /// # Errors
    /// [`DaemonError`] of the first part that cannot go on.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), DaemonError> {
        let (stopping, stopped) = watch::channel(());
        let authority = async {
            match self.authority {
                Some(doors) => Box::pin(serve_authority(doors, stopped.clone())).await,
                None => Ok(()),
            }
        };
        let node = async {
            match self.node {
                Some(door) => Box::pin(serve_node(door, stopped.clone())).await,
                None => Ok(()),
            }
        };
        let serving = async { tokio::try_join!(authority, node) };
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => return ended.map(|_| ()),
            () = stop => drop(stopping),
        }
        match tokio::time::timeout(GRACE, serving).await {
            Ok(ended) => ended.map(|_| ()),
            // Watchers of the bundle never finish by themselves.
            Err(_) => Ok(()),
        }
    }
}

fn tokens(by: &Admittance) -> Result<TokenSource, DaemonError> {
    Ok(match by {
        Admittance::Token(file) => TokenSource::File(file.clone()),
        Admittance::X509Pop(NodeX509Pop { certificate_file, key_file, root_file }) => {
            let holder = X509Holder::open(certificate_file, key_file)?;
            match x509pop::certificates(root_file)?.as_slice() {
                [root] => TokenSource::Proof(Arc::new(holder), root.clone()),
                _ => return Err(DaemonError::Roots(root_file.clone())),
            }
        }
    })
}

async fn bind_authority(root: &RootConfig, clock: SharedClock) -> Result<AuthorityDoors, DaemonError> {
    let charter = root.charter.clone();
    let mut authority = tokio::task::spawn_blocking(move || Authority::open(&charter, clock)).await??;
    if let Some(RootX509Pop { ca_files, crl_files, name, workloads }) = &root.x509pop {
        authority = authority.accepting(X509Pop::open(ca_files, crl_files, *name, workloads.clone())?);
    }
    let authority = Arc::new(authority);
    let admin = UnixDoor::bind(&root.admin_socket)?;
    let mut tcp = Vec::new();
    for address in &root.listen {
        let bound = listener::bind(*address);
        tcp.push(bound.map_err(|source| DaemonError::Bind { at: address.to_string(), source })?);
    }
    Ok(AuthorityDoors { authority, tcp, admin })
}

async fn bind_node(
    node: &NodeConfig,
    link: Arc<dyn AuthorityLink>,
    tokens: TokenSource,
    clock: SharedClock,
) -> Result<NodeDoor, DaemonError> {
    let setup = node.setup.clone();
    let ca = Arc::new(tokio::task::spawn_blocking(|| NodeCa::open(setup, clock)).await??);
    let socket = UnixDoor::bind(&node.socket)?;
    let mut callers = node.callers.clone();
    callers.push(0);
    Ok(NodeDoor { node: ca, socket, callers, link, tokens })
}

async fn serve_authority(mut doors: AuthorityDoors, stopped: watch::Receiver<()>) -> Result<(), DaemonError> {
    let reach = if doors.tcp.is_empty() { Reach::OneNode } else { Reach::Network };
    let us = rustix::process::geteuid().as_raw();
    let admission = Server::builder()
        .concurrency_limit_per_connection(CONCURRENCY)
        .add_service(AdmissionService::server(doors.authority.clone(), reach));
    let membership = Server::builder()
        .concurrency_limit_per_connection(4)
        .max_concurrent_streams(4)
        .http2_keepalive_interval(Some(ALIVE))
        .http2_keepalive_timeout(Some(ALIVE))
        .add_service(MembershipService::server(doors.authority.clone(), stopped.clone()));
    let incoming = listener::incoming(std::mem::take(&mut doors.tcp), &doors.authority)?;
    let membership = membership.serve_with_incoming_shutdown(incoming, ended(stopped.clone()));
    let told_until = stopped.clone();
    let admission = serve_unix(admission, &mut doors.admin, vec![0, us], stopped);
    let told = async {
        tokio::join!(
            keep_told(&doors.authority, told_until.clone()),
            policies::keep_told(&doors.authority, told_until.clone()),
            retention::keep(doors.authority.store().clone(), doors.authority.clock().clone(), told_until.clone()),
            retention::keep_revoked(doors.authority.clone(), told_until),
        );
        Ok(())
    };
    tokio::try_join!(async { membership.await.map_err(DaemonError::from) }, admission, told)?;
    Ok(())
}

/// Looks what other authorities changed in the store, until the daemon stops: as soon as it changes, and twice a second.
async fn keep_told(authority: &Arc<Authority>, stopped: watch::Receiver<()>) {
    tokio::select! {
        () = look_again_and_again(authority) => {}
        () = ended(stopped) => {}
    }
}

/// Members are let go once the store has not said for [`SURE`] that nothing changed: another authority may know what
/// this one does not, and tell it.
async fn look_again_and_again(authority: &Arc<Authority>) {
    let mut changes = authority.quarantine().changes();
    let mut sure = Instant::now();
    loop {
        let (began, looking) = (Instant::now(), authority.clone());
        let mut looked = tokio::task::spawn_blocking(move || looking.look(GLANCE));
        let looked = match tokio::time::timeout_at(sure + SURE, &mut looked).await {
            Ok(looked) => looked,
            Err(_) => {
                if authority.check_able().is_ok() {
                    tracing::error!(
                        "the store does not say whether anything changed; members are let go until it does"
                    );
                }
                authority.lapse();
                looked.await
            }
        };
        match looked {
            Ok(Ok(())) => sure = began,
            Ok(Err(e)) => tracing::warn!(error = %e, "the store does not say what changed"),
            Err(e) => tracing::error!(error = %e, "looking into the store failed"),
        }
        tokio::select! {
            () = changed(&mut changes) => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Never, once nobody can change it; then there is still the clock.
async fn changed(changes: &mut watch::Receiver<u64>) {
    if changes.changed().await.is_err() {
        std::future::pending().await
    }
}

async fn serve_node(mut door: NodeDoor, stopped: watch::Receiver<()>) -> Result<(), DaemonError> {
    let issuance = Server::builder()
        .concurrency_limit_per_connection(CONCURRENCY)
        .add_service(IssuanceService::server(door.node.clone(), door.link.clone()));
    let (store, clock) = (door.node.store().clone(), door.node.clock().clone());
    let clearing = retention::keep(store, clock, stopped.clone());
    let serving = serve_unix(issuance, &mut door.socket, door.callers.clone(), stopped);
    let serving = async { tokio::join!(serving, clearing).0 };
    tokio::select! {
        ended = serving => ended,
        kept = upkeep::keep(&door.node, door.link.as_ref(), &door.tokens) => match kept {
            Ok(never) => match never {},
            Err(e) => Err(e.into()),
        },
        never = upkeep::follow(&door.node, door.link.as_ref()) => match never {},
        never = upkeep::jwt_keys(&door.node, door.link.as_ref()) => match never {},
    }
}

async fn serve_unix(
    router: Router,
    door: &mut UnixDoor,
    callers: Vec<u32>,
    stopped: watch::Receiver<()>,
) -> Result<(), DaemonError> {
    let Some(listener) = door.listener.take() else { return Ok(()) };
    let incoming = endpoint::admit(listener, callers);
    Ok(router.serve_with_incoming_shutdown(incoming, ended(stopped)).await?)
}

/// Done when the sender is dropped.
pub(crate) async fn ended(mut stopped: watch::Receiver<()>) {
    while stopped.changed().await.is_ok() {}
}
