//! bonafide, what an operator types.
//!
//! [`main`] reads the arguments and calls one module per command. [`node`] lays out a node and is also what the
//! scenarios start nodes with.

pub mod args;
pub mod launch;
pub mod node;
mod nodes;

mod admission;
mod ask;
mod audit;
mod bundle;
mod exit;
mod flows;
mod history;
mod policy;
mod printable;
mod quarantine;
mod replace;
mod revoke;
mod run;
mod screen;
mod seen;
mod status;
mod svid;
mod whois;
mod why;
mod workload;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

pub use admission::{CreateArgs, GrantArgs, NodeCommand, TokenCommand};
pub use bundle::BundleCommand;
pub use exit::Exit;
pub use flows::{Filter, FlowTable, FlowsArgs, Line, Tail, Verdict, record};
pub use policy::{PolicyCommand, PublishArgs, PublishedArgs, StatusArgs};
pub use printable::{printable, printable_json};
pub use quarantine::QuarantineArgs;
pub use revoke::{AwayArgs, RevokeArgs, RevokeCommand, UnbanArgs};
pub use run::{BackendChoice, RunArgs};
pub use screen::ColourWhen;
pub use svid::{BundleArgs, JwtArgs, SvidCommand, SvidEndpoint, ValidateArgs, X509Args};
pub use whois::{Who, WhoisArgs};
pub use workload::{AddArgs, ApproveArgs, Pin, Selector, WorkloadCommand};

use args::{Args, Verb};
use exit::Failure;
use node::Layout;
use screen::{Screen, tell};

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    let mut screen = Screen::stdout(args.color);
    let exit = obey(args, &mut screen).and_then(|exit| Ok(screen.flush().map(|()| exit)?));
    match exit {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if failure.is_worth_telling() {
                tell(&format!("bonafide: {failure}"));
            }
            failure.exit().into()
        }
    }
}

fn obey(args: Args, screen: &mut Screen) -> Result<Exit, Failure> {
    let layout = Layout::new(&args.dir);
    match args.command {
        Verb::Status => status::status(&layout, screen),
        Verb::History(args) => history::history(&args, &layout, screen),
        Verb::Flows(flows) => flows::flows(&flows, &layout.records(), screen),
        Verb::Bundle(BundleCommand::Show) => bundle::show(&layout, screen),
        Verb::Svid(command) => svid::svid(command, &layout, screen),
        Verb::Why(args) => why::why(&args, &layout, screen),
        Verb::Whois(whois) => whois::whois(&whois, &layout, screen),
        Verb::Policy(command) => policy::policy(command, &layout, screen),
        Verb::Token(TokenCommand::Create(create)) => admission::create_token(&create, &layout, screen),
        Verb::Node(NodeCommand::Grant(args)) => admission::grant(&args, &layout, screen),
        Verb::Node(NodeCommand::Evict(args)) => revoke::evict(args, &layout, screen),
        Verb::Node(NodeCommand::Ban(args)) => revoke::ban(args, &layout, screen),
        Verb::Node(NodeCommand::Unban(args)) => revoke::unban(args, &layout, screen),
        Verb::Node(NodeCommand::Clear(args)) => admission::clear(args, &layout, screen),
        Verb::Revoke(command) => revoke::revoke(command, &layout, screen),
        Verb::Node(NodeCommand::List) => admission::list_nodes(&layout, screen),
        Verb::Quarantine(args) => quarantine::quarantine(&args, &layout, screen),
        Verb::Audit(command) => audit::audit(&command, &layout, screen),
        Verb::Workload(command) => workload::workload(&command, &layout, screen),
        Verb::Run(run) => run::run(&run, &args.dir, screen),
        Verb::Launch(launch) => match launch::launch(&launch.into()) {
            Ok(never) => match never {},
            Err(e) => Err(Failure::Failed(e.to_string())),
        },
        Verb::Completions { shell } => completions(shell, screen),
    }
}

fn completions(shell: clap_complete::Shell, screen: &mut Screen) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "bonafide", &mut script);
    screen.line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Exit::Done)
}
