//! `bonafide flows`: the flow records of a node, as a table or as JSON.

mod filter;
pub(crate) mod table;
mod tail;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::{FlowRecord, RECORD_VERSION};

pub use filter::{Filter, Verdict};
pub use table::FlowTable;
pub use tail::{Line, Tail};

use crate::exit::{Exit, Failure};
use crate::printable::{printable, printable_json};
use crate::screen::{Screen, tell};

/// Between two looks at a followed file.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How many earlier records `--follow` shows unless told.
const FOLLOW_LAST: usize = 10;

/// Shows flow records, one line each (more where a refusal has a story).
#[derive(Debug, clap::Args)]
#[command(after_help = "Times are UTC. A refused flow names its reason, and what came nearest to allowing it.
A line that is no flow record is reported on stderr and skipped.

Examples:
  bonafide flows --last 20
  bonafide flows --follow --verdict refused
  bonafide flows --workload shop/web --json | jq .nearest")]
pub struct FlowsArgs {
    /// The records to read [default: DIR/state/enforcer/flows.jsonl]
    pub file: Option<PathBuf>,
    /// Keep showing new flows, also after the file was rotated or truncated
    #[arg(short, long)]
    pub follow: bool,
    /// One JSON record a line
    #[arg(long)]
    pub json: bool,
    /// Only flows from or to this workload (repeatable)
    #[arg(short, long, value_name = "WORKLOAD")]
    pub workload: Vec<WorkloadName>,
    /// Only flows with this verdict (repeatable)
    #[arg(long, value_name = "VERDICT")]
    pub verdict: Vec<Verdict>,
    /// Only the last N of them; with --follow, how many to begin with [default: all; 10 with --follow]
    #[arg(short = 'n', long, value_name = "N")]
    pub last: Option<usize>,
}

/// Reads, filters, shows.
pub(crate) fn flows(args: &FlowsArgs, default_file: &Path, screen: &mut Screen) -> Result<Exit, Failure> {
    let path = args.file.as_deref().unwrap_or(default_file);
    let filter = Filter { workloads: args.workload.clone(), verdicts: args.verdict.clone() };
    let mut tail = Tail::new(path);
    if !args.follow {
        tail.must_exist().map_err(|e| unreadable(path, &e))?;
    }
    let mut view = View::new(args.json, screen);
    let mut newest = Newest::new(args.last.or(args.follow.then_some(FOLLOW_LAST)));
    let mut unseen = args.workload.clone();
    let mut meet = |record: &FlowRecord| unseen.retain(|name| !filter::is_end(record, name));
    while read_some(&mut tail, path, |record| {
        meet(&record);
        newest.take(record, &filter, &mut view)
    })? {}
    newest.show(&mut view)?;
    if !args.follow {
        if let Some(record) = tail.rest().and_then(|line| understood(path, &line)) {
            meet(&record);
            newest.unlimited().take(record, &filter, &mut view)?;
        }
        unseen.iter().for_each(|name| never_seen(path, name));
        return Ok(Exit::Done);
    }
    loop {
        while read_some(&mut tail, path, |record| view.show_if(&filter, &record))? {}
        view.flush()?;
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn never_seen(path: &Path, name: &WorkloadName) {
    let hint = "a name must be written as the policy writes it, and older records may have been rotated away";
    tell(&format!("{}: no flow from or to the workload {name}; {hint}", path.display()));
}

fn unreadable(path: &Path, e: &std::io::Error) -> Failure {
    Failure::BadInput(format!("{}: {e}; name a file of flow records, or the node's directory by --dir", path.display()))
}

/// One chunk of the file; false at its end.
fn read_some(
    tail: &mut Tail,
    path: &Path,
    mut each: impl FnMut(FlowRecord) -> Result<(), Failure>,
) -> Result<bool, Failure> {
    let lines = tail.read().map_err(|e| unreadable(path, &e))?;
    for record in lines.iter().filter_map(|line| understood(path, line)) {
        each(record)?;
    }
    Ok(!lines.is_empty())
}

/// The record on this line, or a word to the person.
fn understood(path: &Path, line: &Line) -> Option<FlowRecord> {
    record(line).map_err(|why| tell(&format!("{}:{}: {}", path.display(), line.number, printable(&why)))).ok()
}

/// Reads one line of a file of flow records.
///
/// # Errors
/// In words, why it is none that this version understands.
pub fn record(line: &Line) -> Result<FlowRecord, String> {
    let bytes = line.bytes.as_deref().ok_or("longer than any flow record; skipped")?;
    let record: FlowRecord = serde_json::from_slice(bytes).map_err(|e| format!("not a flow record: {e}"))?;
    if record.v != RECORD_VERSION {
        return Err(format!("version {} of the format; this program reads {RECORD_VERSION}", record.v));
    }
    Ok(record)
}

/// How records are put on the screen.
pub(crate) struct View<'a> {
    screen: &'a mut Screen,
    table: Option<FlowTable>,
}

impl<'a> View<'a> {
    pub(crate) fn new(json: bool, screen: &'a mut Screen) -> Self {
        let table = (!json).then(|| FlowTable::new(screen.colour));
        Self { screen, table }
    }

    pub(crate) fn show_if(&mut self, filter: &Filter, record: &FlowRecord) -> Result<(), Failure> {
        if filter.passes(record) { self.show(record) } else { Ok(()) }
    }

    fn show(&mut self, record: &FlowRecord) -> Result<(), Failure> {
        match &mut self.table {
            Some(table) => self.screen.line(&table.rows(record))?,
            None => {
                let json = serde_json::to_string(record).map_err(|e| Failure::Failed(e.to_string()))?;
                self.screen.line(&printable_json(&json))?;
            }
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.screen.flush()?)
    }
}

/// Holds records back while only the newest are wanted.
struct Newest {
    limit: Option<usize>,
    held: VecDeque<FlowRecord>,
}

impl Newest {
    fn new(limit: Option<usize>) -> Self {
        Self { limit, held: VecDeque::new() }
    }

    fn take(&mut self, record: FlowRecord, filter: &Filter, view: &mut View<'_>) -> Result<(), Failure> {
        if !filter.passes(&record) {
            return Ok(());
        }
        let Some(limit) = self.limit else { return view.show(&record) };
        self.held.push_back(record);
        if self.held.len() > limit {
            self.held.pop_front();
        }
        Ok(())
    }

    fn show(&mut self, view: &mut View<'_>) -> Result<(), Failure> {
        self.held.drain(..).try_for_each(|record| view.show(&record))?;
        view.flush()
    }

    fn unlimited(&mut self) -> &mut Self {
        self.limit = None;
        self
    }
}
