//! `bonafide history`: what was seen on this node, for weeks back, for people and for other programs.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use bonafide_proto::edge::{Actor, EdgeCount};
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::record::{End, Outcome};
use bonafide_proto::wire::node::{HistoryPage, HistoryRequest};

use crate::ask::{self, NoAnswer};
use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::nodes::NodesArgs;
use crate::printable::{printable, printable_json};
use crate::screen::{Screen, tell};
use crate::seen::Since;
use crate::status::when;

/// How long the next page may take.
const PAGE: Duration = Duration::from_secs(60);
/// How many edges are listed for people.
const LISTED: usize = 100;

/// Which part of the history, and how.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Flows alike are counted together, by the hour; 90 days are kept unless the enforcer's configuration says otherwise.
Exported as JSON lines it is what `policy learn`, `diff` and `apply` read by --seen; of several nodes, one file each, or --node there, too.

Examples:
  bonafide history --since 7d
  bonafide history --since 30d --format jsonl --output host-a.jsonl
  bonafide history --by-hour --format csv > history.csv
  bonafide history --node host-a --node root@host-b --since 7d"
)]
pub struct HistoryArgs {
    /// Only flows since then: an age (90s, 30m, 12h, 7d) or a time (RFC 3339)
    #[arg(long, value_name = "AGE|TIME")]
    pub since: Option<Since>,
    /// Only flows before then, likewise
    #[arg(long, value_name = "AGE|TIME")]
    pub until: Option<Since>,
    /// Each kind of flow once for each hour [default: once]
    #[arg(long)]
    pub by_hour: bool,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub nodes: NodesArgs,
    /// Into this file, which must not exist yet [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// How the history is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people; those with the most flows
    Text,
    /// One JSON object a line, with everything that is known
    Jsonl,
    /// RFC 4180, with a header
    Csv,
}

/// What the node could not count, or has lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Missing {
    left_out: u64,
    damaged: u32,
}

impl Missing {
    /// Says so, if something is.
    pub(crate) fn tell(self) {
        if self.left_out > 0 {
            tell(&format!(
                "{} flows were not counted since the enforcer's start: there was no room for them",
                self.left_out
            ));
        }
        if self.damaged > 0 {
            tell(&format!("{} days of the history were damaged and put aside; they are missing here", self.damaged));
        }
    }
}

/// Asks this node's enforcer for its history.
pub(crate) fn told(
    layout: &Layout,
    request: HistoryRequest,
    mut each: impl FnMut(EdgeCount) -> Result<(), Failure>,
) -> Result<Missing, Failure> {
    let socket = layout.enforcer_socket();
    ask::block_on(async {
        let mut pages = ask::ask(&socket, ask::enforcement(&socket).history(request)).await?;
        let mut missing = Missing::default();
        loop {
            let silent = || NoAnswer::Silent(socket.clone(), format!("no page for {} s", PAGE.as_secs()));
            let page = tokio::time::timeout(PAGE, pages.message()).await.map_err(|_| silent())?;
            let page = page.map_err(|e| NoAnswer::Said(printable(e.message()).into_owned()))?;
            let Some(HistoryPage { edges, left_out, damaged }) = page else { return Ok(missing) };
            missing = Missing { left_out, damaged };
            for edge in edges {
                each(
                    serde_json::from_slice(&edge)
                        .map_err(|e| Failure::Failed(format!("the enforcer's history: {e}")))?,
                )?;
            }
        }
    })?
}

/// From this node, or from those that are named.
fn gathered(
    args: &HistoryArgs,
    layout: &Layout,
    mut each: impl FnMut(EdgeCount) -> Result<(), Failure>,
) -> Result<Missing, Failure> {
    if args.nodes.nodes.is_empty() {
        let moment = |since: Option<Since>| since.map_or(0, Since::unix);
        let request = HistoryRequest { since: moment(args.since), until: moment(args.until), by_hour: args.by_hour };
        return told(layout, request, each);
    }
    let moments = [("since", args.since), ("until", args.until)];
    let moments = moments.iter().filter_map(|(name, moment)| Some(format!(" --{name} {}", (*moment)?)));
    let options = moments.chain(args.by_hour.then(|| " --by-hour".to_owned())).collect::<String>();
    // What they lack they say themselves.
    args.nodes.told(&options, &mut each).map(|()| Missing::default())
}

/// Shows or exports it.
pub(crate) fn history(args: &HistoryArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let missing = match (args.format, &args.output) {
        (Format::Text, None) => listed(args, layout, screen)?,
        (Format::Text, Some(_)) => {
            return Err(Failure::BadInput("--output wants --format jsonl or csv".to_owned()));
        }
        (_, None) => exported(args, layout, &mut Lines(screen))?,
        (_, Some(file)) => {
            let failed = |e: io::Error| Failure::BadInput(printable(&format!("{}: {e}", file.display())).into_owned());
            let mut out = BufWriter::new(File::create_new(file).map_err(failed)?);
            let missing = exported(args, layout, &mut out)?;
            out.into_inner()
                .map_err(io::IntoInnerError::into_error)
                .and_then(|file| file.sync_all())
                .map_err(failed)?;
            missing
        }
    };
    missing.tell();
    Ok(Exit::Done)
}

/// Standard output, by the line.
struct Lines<'s>(&'s mut Screen);

impl Write for Lines<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        self.0.line(text.strip_suffix('\n').unwrap_or(&text))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn exported(args: &HistoryArgs, layout: &Layout, out: &mut impl Write) -> Result<Missing, Failure> {
    if args.format == Format::Csv {
        out.write_all(format!("{}\n", HEADER.join(",")).as_bytes())?;
    }
    gathered(args, layout, |count| {
        let line = match args.format {
            Format::Csv => csv(&count),
            Format::Text | Format::Jsonl => {
                printable_json(&serde_json::to_string(&count).map_err(|e| Failure::Failed(e.to_string()))?).into_owned()
            }
        };
        Ok(out.write_all(format!("{line}\n").as_bytes())?)
    })
}

fn listed(args: &HistoryArgs, layout: &Layout, screen: &mut Screen) -> Result<Missing, Failure> {
    let mut counts = Vec::new();
    let missing = gathered(args, layout, |count| {
        counts.push(count);
        Ok(())
    })?;
    counts.sort_by_key(|count| std::cmp::Reverse(count.seen.flows));
    counts.iter().take(LISTED).try_for_each(|count| screen.line(&printable(&line(count))))?;
    if counts.len() > LISTED {
        screen.line(&format!("and {} more kinds of flows; --format jsonl has them all", counts.len() - LISTED))?;
    }
    Ok(missing)
}

fn line(EdgeCount { edge, seen }: &EdgeCount) -> String {
    let by = match (&edge.rule, edge.reason) {
        (Some(rule), _) => format!(" by \"{rule}\""),
        (None, Some(reason)) => format!(" ({reason})"),
        (None, None) => String::new(),
    };
    let (from, to, port, verdict) = (edge.from.label(), edge.to.label(), edge.port, verdict(edge.verdict));
    let (first, last) = (when(seen.first), when(seen.last));
    format!("{from} to {to} on {port}: {verdict}{by}, {} flows, {first} to {last}", seen.flows)
}

fn verdict(verdict: Outcome) -> &'static str {
    match verdict {
        Outcome::Allowed => "allowed",
        Outcome::Refused => "refused",
        Outcome::WouldRefuse => "would-refuse",
        Outcome::Undecided => "undecided",
    }
}

const HEADER: [&str; 24] = [
    "end",
    "mode",
    "verdict",
    "rule",
    "reason",
    "port",
    "protocol",
    "from",
    "from_program",
    "from_digest",
    "from_script",
    "from_unit",
    "from_node",
    "to",
    "to_program",
    "to_digest",
    "to_script",
    "to_unit",
    "to_node",
    "flows",
    "bytes_sent",
    "bytes_received",
    "first",
    "last",
];

fn csv(EdgeCount { edge, seen }: &EdgeCount) -> String {
    let actor = |actor: &Actor| {
        let name = actor.name().map(ToOwned::to_owned).or_else(|| actor.addr.map(|addr| addr.to_string()));
        let digest = actor.digest.as_ref().map(Digest::to_string);
        let node = actor.node.as_ref().map(ToString::to_string);
        let cells = [name, actor.program.clone(), digest, actor.script.clone(), actor.unit.clone(), node];
        cells.map(Option::unwrap_or_default)
    };
    let end = if edge.end == End::Source { "source" } else { "destination" };
    let reason = edge.reason.map(|reason| reason.to_string()).unwrap_or_default();
    let protocol = serde_json::to_value(edge.protocol).ok().and_then(|v| v.as_str().map(ToOwned::to_owned));
    let mut cells = vec![
        end.to_owned(),
        edge.mode.clone(),
        verdict(edge.verdict).to_owned(),
        edge.rule.clone().unwrap_or_default(),
        reason,
        edge.port.to_string(),
        protocol.unwrap_or_default(),
    ];
    cells.extend(actor(&edge.from));
    cells.extend(actor(&edge.to));
    cells.extend([seen.flows, seen.bytes_sent, seen.bytes_received].map(|n| n.to_string()));
    cells.extend([seen.first, seen.last].map(when));
    cells.iter().map(|text| cell(text)).collect::<Vec<_>>().join(",")
}

/// Quoted where RFC 4180 asks for it. What a spreadsheet would compute is made a text: names and paths come from others.
fn cell(text: &str) -> String {
    let text = printable(text);
    let text = if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text.into_owned() };
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::table::tests::{allowed, refused};
    use crate::seen::counted;

    #[test]
    fn every_row_has_a_cell_for_each_column() {
        for record in [allowed(), refused()] {
            let row = csv(&counted(&record).unwrap());
            assert!(!row.contains('"'), "{row}");
            assert_eq!(row.split(',').count(), HEADER.len(), "{row}");
        }
    }

    #[test]
    fn cells_are_quoted_and_compute_nothing() {
        for (text, expected) in [
            ("a b", "a b"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("=1+1", "'=1+1"),
            ("@x,", "\"'@x,\""),
            ("a\nb", "a\\u{a}b"),
        ] {
            assert_eq!(cell(text), expected);
        }
    }

    #[test]
    fn a_line_names_both_ends_and_the_verdict() {
        let said = line(&counted(&allowed()).unwrap());
        assert!(said.starts_with("shop/web to shop/db on ") && said.contains(": allowed by \""), "{said}");
        let said = line(&counted(&refused()).unwrap());
        assert!(said.contains("refused (no-workload), 1 flows"), "{said}");
    }
}
