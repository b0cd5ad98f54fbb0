//! What an operator may type.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::admission::{NodeCommand, TokenCommand};
use crate::audit::AuditCommand;
use crate::bundle::BundleCommand;
use crate::exit::EXIT_CODES;
use crate::flows::FlowsArgs;
use crate::history::HistoryArgs;
use crate::launch::{Capability, Launch};
use crate::policy::PolicyCommand;
use crate::quarantine::QuarantineArgs;
use crate::revoke::RevokeCommand;
use crate::run::RunArgs;
use crate::screen::ColourWhen;
use crate::svid::SvidCommand;
use crate::whois::WhoisArgs;
use crate::why::WhyArgs;
use crate::workload::WorkloadCommand;

/// Bonafide: a mesh in which a rule names programs, not addresses.
#[derive(Debug, clap::Parser)]
#[command(name = "bonafide", version, after_help = EXIT_CODES)]
pub struct Args {
    /// The node's directory: sockets in DIR/run, state and flow records in DIR/state
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/bonafide")]
    pub dir: PathBuf,
    /// When to colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColourWhen,
    /// What to do.
    #[command(subcommand)]
    pub command: Verb,
}

/// The commands.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Says whether the daemons of this node serve, what is wrong, and what would help
    #[command(after_help = "Exits 1 if a daemon is not serving.")]
    Status,
    /// Shows flow records
    Flows(FlowsArgs),
    /// Shows or exports what was seen on this node, for weeks back
    History(HistoryArgs),
    /// Says why a flow was let through or refused, and what would change that
    Why(WhyArgs),
    /// Says who a process is: its fingerprint, the workload it earns, what it misses
    Whois(WhoisArgs),
    /// Asks the workload endpoint, as any program may: for a certificate, a token, the roots
    #[command(subcommand)]
    Svid(SvidCommand),
    /// Works with the trust bundle
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Checks policy files, and publishes them to every node
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Works with the workloads of a policy
    #[command(subcommand)]
    Workload(WorkloadCommand),
    /// Makes join tokens (where the authority runs)
    #[command(subcommand)]
    Token(TokenCommand),
    /// Lists the nodes of the trust domain, says what each may issue, sends them away (where the authority runs)
    #[command(subcommand)]
    Node(NodeCommand),
    /// Puts a program's digest in quarantine on every node (where the authority runs)
    Quarantine(QuarantineArgs),
    /// Shows what the CA did, and checks that nobody changed the record of it
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Takes certificates back before their time: a node's, a workload's, a single one (where the authority runs)
    #[command(subcommand)]
    Revoke(RevokeCommand),
    /// Runs a node on this machine until Ctrl-C, then removes every trace of it
    Run(RunArgs),
    /// Becomes a daemon, with its own cgroup, user and capabilities
    #[command(hide = true)]
    Launch(LaunchArgs),
    /// Prints a completion script
    #[command(after_help = "Example:\n  bonafide completions bash > /etc/bash_completion.d/bonafide")]
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

/// See [`Launch`].
#[derive(Debug, clap::Args)]
pub struct LaunchArgs {
    /// Its cgroup, created if missing
    #[arg(long)]
    pub cgroup: PathBuf,
    /// Its user
    #[arg(long)]
    pub uid: u32,
    /// Its group
    #[arg(long)]
    pub gid: u32,
    /// A further group (repeatable)
    #[arg(long = "group", value_name = "GID")]
    pub groups: Vec<u32>,
    /// A capability to keep (repeatable)
    #[arg(long = "cap", value_name = "CAPABILITY")]
    pub capabilities: Vec<Capability>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

impl From<LaunchArgs> for Launch {
    fn from(args: LaunchArgs) -> Self {
        let LaunchArgs { cgroup, uid, gid, groups, capabilities, command } = args;
        Self { cgroup, uid, gid, groups, capabilities, command }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_shell_gets_a_completion_of_every_command() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "bonafide", &mut script);
            let script = String::from_utf8(script).unwrap();
            for verb in ["status", "flows", "whois", "policy", "token", "quarantine", "workload", "run"] {
                assert!(script.contains(verb), "{shell} does not know {verb}");
            }
        }
    }

    #[test]
    fn help_explains_the_exit_codes() {
        let help = Args::command().render_help().to_string();
        assert!(help.contains("Exit codes:\n  0  done"), "{help}");
        assert!(!help.contains("launch"), "launch is not for operators:\n{help}");
    }
}
