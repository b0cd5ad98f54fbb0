//! `bonafide-bench`: measures what this project claims about its speed, on this machine, and says beside each figure what
//! is claimed. Whatever is compared is measured in turns, so that both sides see the same machine.

#![allow(clippy::print_stdout, reason = "figures are printed")]

mod attribution;
mod burden;
mod churn;
mod connect;
mod counted;
mod crowd;
mod day;
mod decide;
mod ends;
mod hash;
mod history;
mod issuance;
mod loss;
mod nodes;
mod report;
mod soak;
mod station;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use report::Report;

/// Measures what this project claims about its speed, on this machine.
#[derive(Debug, Parser)]
#[command(name = "bonafide-bench", after_help = EXIT_CODES)]
struct Arguments {
    /// What to measure; all of it by default.
    #[arg(value_enum)]
    what: Vec<What>,
    /// Fewer rounds and smaller files: enough to see whether something is broken.
    #[arg(long)]
    quick: bool,
    /// Measures with this number of nodes only, where there are nodes.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    nodes: Option<u16>,
    /// Writes the figures to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const EXIT_CODES: &str = "Exit codes: 0 if everything was measured, whatever the figures, 1 if not, 2 for wrong usage.";

/// A set of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Hashing a file, the first time and the second.
    Hash,
    /// Decisions beside few rules and many.
    Decide,
    /// The history of flows: counting, and looking back.
    History,
    /// Attribution of an accepted connection.
    Attribution,
    /// What the kernel programs add to a `connect()`.
    Connect,
    /// Processes that live for an instant.
    Churn,
    /// A day's worth of events.
    Soak,
    /// What ends live connections, at either end.
    Ends,
    /// Leaves, as identityd asks for them.
    Issuance,
    /// Many nodes of one authority: joining, revocations, policies, coming again.
    Nodes,
}

impl What {
    fn measure(self, quick: bool, nodes: Option<usize>, report: &mut Report) -> Result<(), String> {
        match self {
            Self::Hash => hash::measure(quick, report),
            Self::Decide => decide::measure(quick, report),
            Self::History => history::measure(quick, report),
            Self::Attribution => attribution::measure(quick, report),
            Self::Connect => connect::measure(quick, report),
            Self::Churn => churn::measure(quick, report),
            Self::Soak => soak::measure(quick, report),
            Self::Ends => ends::measure(quick, report),
            Self::Issuance => issuance::measure(quick, report),
            Self::Nodes => nodes::measure(quick, nodes, report),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if cfg!(debug_assertions) {
        println!("This is a debug build: its figures mean nothing. `make bench` measures a release build.");
    }
    let what = if arguments.what.is_empty() { What::value_variants() } else { &arguments.what };
    let mut report = Report::default();
    let measured =
        what.iter().try_for_each(|what| what.measure(arguments.quick, arguments.nodes.map(usize::from), &mut report));
    report.print();
    let written = arguments.json.map_or(Ok(()), |file| report.write(&file));
    match measured.and(written) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => complain(&why),
    }
}

#[allow(clippy::print_stderr, reason = "where complaints go")]
fn complain(why: &str) -> ExitCode {
    eprintln!("bonafide-bench: {why}");
    ExitCode::FAILURE
}
