//! Starts the parts of `bonafide-identityd`, and stops them.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use bonafide_proto::clock::{SharedClock, SystemClock};
use bonafide_proto::endpoint;
use bonafide_proto::wire::node::attestation_server::AttestationServer;
use clap::Parser;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

use crate::attest::Attestor;
use crate::bundle::Authority;
use crate::config::Config;
use crate::host;
use crate::policy_file::PolicyFile;
use crate::proc_source::ProcSource;
use crate::serve::Service;
use crate::sys::namespace::{INITIAL_USER_NAMESPACE, Namespace};
use crate::witness::Witness;

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
    /// sock_diag, `/proc`, or a signal.
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
    harden();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        };
        run(config, Arc::new(SystemClock), stop).await
    })
}

/// What makes the process safer or sturdier, but need not succeed.
fn harden() {
    if let Err(e) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(error = %e, "core dumps and tracing stay possible");
    }
    // Each process that is looked at costs two descriptors.
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(e) = rustix::process::setrlimit(Resource::Nofile, most) {
        tracing::warn!(error = %e, "the limit of open files stays at {:?}", limit.current);
    }
}

/// Serves until `stop` is done; then the socket file is gone.
///
/// # Errors
/// See [`RunError`].
pub async fn run(config: Config, clock: SharedClock, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    if Namespace::own("user")?.ino != INITIAL_USER_NAMESPACE {
        tracing::warn!("this is not the initial user namespace: programs that share it can forge their executable");
    }
    let source = ProcSource::open()?;
    let witness = Witness::new(host::read(config.node), Arc::clone(&clock))?;
    let (file, policy) = PolicyFile::open(config.policy, clock);
    let authority = Authority::follow(config.ca_socket);
    let service = Service::new(Attestor::new(source, witness, policy.clone()), policy, authority);

    let socket = |error| RunError::Socket { path: config.socket.clone(), error };
    let listener = endpoint::bind(&config.socket).map_err(socket)?;
    let _socket_file = SocketFile(&config.socket);
    let looking = tokio::spawn(file.run());
    tracing::info!(socket = %config.socket.display(), "ready");
    let callers = endpoint::admit(listener, config.callers);
    let serving =
        tonic::transport::Server::builder().add_service(AttestationServer::new(service)).serve_with_incoming(callers);
    // Streams of policy and bundle never end by themselves, so nothing is waited for.
    let ended = tokio::select! {
        served = serving => served.map_err(RunError::from),
        () = stop => Ok(()),
    };
    looking.abort();
    ended
}

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
