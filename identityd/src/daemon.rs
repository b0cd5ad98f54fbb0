//! Starts the parts of `bonafide-identityd`, and stops them.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use bonafide_proto::clock::{SharedClock, SystemClock};
use bonafide_proto::endpoint;
use bonafide_proto::harden::harden;
use bonafide_proto::wire::node::attestation_server::AttestationServer;
use clap::Parser;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::filter::LevelFilter;

use crate::attest::Attestor;
use crate::bundle::Authority;
use crate::config::{Config, PolicyFrom, SourceChoice};
use crate::events::{Event, Sentry};
use crate::execs::{Execs, NoExecs};
use crate::host;
use crate::in_force::InForce;
use crate::kernel::{Ground, Kernel};
use crate::lapse::Lapses;
use crate::observe::{Attests, Means, Observatory};
use crate::policy_file::PolicyFile;
use crate::proc_source::ProcSource;
use crate::published_policy::PublishedPolicy;
use crate::releases::Newcomers;
use crate::serve::Service;
use crate::source::SocketSource;
use crate::sys::namespace::{INITIAL_USER_NAMESPACE, Namespace};
use crate::watch::proc_sentry::ProcSentry;
use crate::watch::{Parts, Watch};
use crate::witness::Witness;
use crate::workload_api;

/// Questions of one caller that are under way at once: so many that no user of the host gets others kept waiting by
/// questions about their own programs, which are answered or refused within seconds.
const QUESTIONS_MAX: u32 = 16_384;

/// Printed below `--help`.
const EXIT_CODES: &str = "Exit codes:
  0  stopped as asked
  1  failed while running
  2  wrong usage or configuration";

/// Knows which program is behind a socket.
#[derive(Debug, Parser)]
#[command(name = "bonafide-identityd", version, after_help = EXIT_CODES)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The socket it is asked at.
    #[error("cannot serve {}: {error}", path.display())]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The kernel programs, where the configuration demands them.
    #[error("{0}; source = \"kernel\" demands the kernel programs, \"auto\" does not")]
    Source(String),
    /// sock_diag, `/proc`, a signal, or what it asks for itself.
    #[error("the kernel: {0}")]
    Kernel(#[from] io::Error),
    /// The server ended by itself.
    #[error("the server ended: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// The program: exit code 0 after a clean stop, 1 if it could not run, 2 for wrong usage or configuration.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(e) => {
            #[allow(clippy::print_stderr, reason = "there is no log before the configuration is read")]
            {
                eprintln!("bonafide-identityd: {e}");
            }
            return ExitCode::from(2);
        }
    };
    log_to_stderr(config.log);
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(level: LevelFilter) {
    use std::io::IsTerminal as _;
    let ansi = io::stderr().is_terminal();
    // A second logger in one process is refused, and the first one stays.
    let _ = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(ansi).with_max_level(level).try_init();
}

fn start(config: Config) -> Result<(), RunError> {
    harden()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        };
        run(config, Arc::new(SystemClock), stop).await
    })
}

/// Serves until `stop` is done; then the socket file is gone.
///
/// # Errors
/// See [`RunError`].
pub async fn run(config: Config, clock: SharedClock, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    if Namespace::own("user")?.ino != INITIAL_USER_NAMESPACE {
        tracing::warn!("this is not the initial user namespace: programs that share it can forge their executable");
    }
    match load(config.source).await? {
        Ok((kernel, events)) => {
            let source = kernel.source()?;
            let _handover = kernel
                .hand_over(&config.socket, &config.callers)
                .map_err(|error| RunError::Socket { path: config.socket.with_added_extension("map"), error })?;
            let ground = kernel.ground().map_err(|e| e.to_string());
            let ears = Ears { execs: kernel.execs(), sentry: kernel.sentry(), events };
            Box::pin(serve(config, clock, source, ears, ground, stop)).await
        }
        Err(reason) => {
            tracing::warn!("without the kernel programs, sock_diag and /proc answer, which see less: {reason}");
            let (sentry, events) = ProcSentry::start()?;
            let ears = Ears { execs: Arc::new(NoExecs), sentry, events };
            let source = ProcSource::open(reason.clone())?;
            Box::pin(serve(config, clock, source, ears, Err(reason), stop)).await
        }
    }
}

/// The kernel programs and what they tell, or why they do not run.
async fn load(choice: SourceChoice) -> Result<Result<(Kernel, mpsc::Receiver<Event>), String>, RunError> {
    if choice == SourceChoice::Proc {
        return Ok(Err("the configuration says source = \"proc\"".to_owned()));
    }
    let loaded = tokio::task::spawn_blocking(Kernel::load).await.map_err(io::Error::other)?;
    match (loaded, choice) {
        (Ok(loaded), _) => Ok(Ok(loaded)),
        (Err(e), SourceChoice::Kernel) => Err(RunError::Source(e.to_string())),
        (Err(e), _) => Ok(Err(e.to_string())),
    }
}

/// How it is heard what processes do.
struct Ears {
    execs: Arc<dyn Execs>,
    sentry: Arc<dyn Sentry>,
    events: mpsc::Receiver<Event>,
}

async fn serve<S: SocketSource>(
    config: Config,
    clock: SharedClock,
    source: S,
    Ears { execs, sentry, events }: Ears,
    ground: Result<Ground, String>,
    stop: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let (state, runtimes) = (config.state.as_deref(), &config.runtimes);
    let witness = Witness::new(host::read(config.node), Arc::clone(&clock), Arc::clone(&execs), state, runtimes)?;
    let witness = Arc::new(witness);
    let authority = Authority::follow(config.ca_socket);
    let (policy, keeping) = policy(config.policy, &authority, &clock);
    let (lapses, quarantined) = (Lapses::new(), authority.quarantine());
    let asked = Arc::clone(&execs);
    let parts = Parts { witness: Arc::clone(&witness), sentry, events, execs, lapses: lapses.clone(), quarantined };
    let (watch, _watching) = Watch::start(parts)?;
    let (policy, timely) = policy.timely(&clock);
    let newcomers = Newcomers::open(state, PathBuf::from("/"), Arc::clone(&clock), lapses.clone());
    let attestor = Arc::new(Attestor::new(source, witness, policy.clone(), watch, newcomers.clone()));
    let attests: Arc<dyn Attests> = Arc::<Attestor<S>>::clone(&attestor);
    let node = attestor.witness().host().node.clone();
    let programs = workload_api::Parts {
        attests: Arc::<Attestor<S>>::clone(&attestor),
        execs: asked,
        authority: authority.clone(),
        policy: policy.clone(),
        lapses: lapses.clone(),
        clock: Arc::clone(&clock),
    };
    let observe = |ground| Observatory::open(Means { ground, attests, authority: authority.clone(), clock }, node);
    let flows = ground.map(observe);
    let in_force = policy.clone();
    let service = Service::new(attestor, policy, authority, lapses, flows);

    let (listener, _socket_file) = bind(&config.socket)?;
    let workload_endpoint = config.workload_socket.as_deref().map(bind).transpose()?;
    let mut looking = tokio::task::JoinSet::new();
    looking.spawn(keeping);
    looking.spawn(timely);
    looking.spawn(newcomers.run(in_force));
    tracing::info!(socket = %config.socket.display(), "ready");
    let callers = endpoint::admit(listener, config.callers);
    let serving = tonic::transport::Server::builder()
        .max_concurrent_streams(QUESTIONS_MAX)
        .add_service(AttestationServer::new(service))
        .serve_with_incoming(callers);
    let to_programs = async {
        match workload_endpoint {
            Some((listener, _socket_file)) => workload_api::serve(listener, programs).await,
            None => std::future::pending().await,
        }
    };
    // Streams of policy and bundle never end by themselves, so nothing is waited for.
    let ended = tokio::select! {
        served = serving => served.map_err(RunError::from),
        served = to_programs => served.map_err(RunError::from),
        () = stop => Ok(()),
    };
    looking.abort_all();
    ended
}

fn bind(path: &Path) -> Result<(UnixListener, SocketFile<'_>), RunError> {
    let listener = endpoint::bind(path).map_err(|error| RunError::Socket { path: path.to_owned(), error })?;
    Ok((listener, SocketFile(path)))
}

/// The policy in force, and what keeps it so.
fn policy(from: PolicyFrom, authority: &Authority, clock: &SharedClock) -> (InForce, BoxFuture) {
    match from {
        PolicyFrom::File(path) => {
            let (file, policy) = PolicyFile::open(path, Arc::clone(clock));
            (policy, Box::pin(file.run()))
        }
        PolicyFrom::Authority(state) => {
            let (published, policy) = PublishedPolicy::open(&state, authority.clone());
            (policy, Box::pin(published.run()))
        }
    }
}

type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Removes the socket file when serving ends.
struct SocketFile<'a>(&'a Path);

impl Drop for SocketFile<'_> {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(self.0) {
            tracing::warn!(error = %e, "the socket file {} stays", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Arguments;

    #[test]
    fn help_explains_the_exit_codes() {
        let help = Arguments::command().render_help().to_string();
        assert!(help.contains("Exit codes:\n  0  stopped as asked\n  1  failed"), "{help}");
    }
}
