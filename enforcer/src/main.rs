//! `bonafide-enforcer`: see the library's documentation.

use std::path::PathBuf;
use std::process::ExitCode;

use bonafide_enforcer::capture::{self, Backend};
use bonafide_enforcer::{config::Config, daemon};
use clap::{Parser, Subcommand};

/// Captures, decides, encrypts, relays and records the connections of this host.
///
/// Exit codes: 0 stopped as asked, 1 failed while running, 2 wrong usage or configuration.
#[derive(Debug, Parser)]
#[command(name = "bonafide-enforcer", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Takes away every capture rule and route of an enforcer that is no longer running.
    RemoveCapture {
        /// The engine that installed them: nft or iptables.
        #[arg(long)]
        backend: Backend,
    },
    /// Waits for the end of standard input, then does the same. The enforcer starts it by itself.
    #[command(hide = true)]
    Guard {
        /// The engine: nft or iptables.
        #[arg(long)]
        backend: Backend,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match (arguments.command, arguments.config) {
        (Some(Command::RemoveCapture { backend }), _) => {
            start_log("warn");
            ended(capture::remove_leftovers(backend))
        }
        (Some(Command::Guard { backend }), _) => {
            start_log("warn");
            ended(capture::guard(backend))
        }
        (None, Some(path)) => match Config::load(&path) {
            Ok(config) => {
                start_log(&config.log);
                ended(daemon::run(config))
            }
            Err(e) => failed(&e, 2),
        },
        (None, None) => failed(&"give the configuration file with --config", 2),
    }
}

fn start_log(filter: &str) {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|_| "info".into()))
        .init();
}

/// Runs to its end and turns that into an exit code.
fn ended<E: std::fmt::Display>(task: impl Future<Output = Result<(), E>>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => match runtime.block_on(task) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => failed(&e, 1),
        },
        Err(e) => failed(&e, 1),
    }
}

fn failed(e: &dyn std::fmt::Display, code: u8) -> ExitCode {
    #[allow(clippy::print_stderr, reason = "the program's last word")]
    {
        eprintln!("bonafide-enforcer: {e}");
    }
    ExitCode::from(code)
}
