//! What was seen: edges, from this node's history or others', or from files of flow records or of exported edges.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bonafide_proto::clock::{Clock as _, SystemClock};
use bonafide_proto::edge::{Edge, EdgeCount, Seen};
use bonafide_proto::record::{FlowRecord, RECORD_VERSION};
use bonafide_proto::wire::node::HistoryRequest;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::exit::Failure;
use crate::flows::{Line, Tail};
use crate::history;
use crate::node::Layout;
use crate::nodes::NodesArgs;
use crate::printable::printable;
use crate::screen::tell;

/// The most different edges that are held at once.
const EDGES_MAX: usize = 2_000_000;
/// The most lines of one file that are complained about one by one.
const COMPLAINTS_MAX: usize = 10;
/// How many rotated files of flow records there may be.
const ROTATED: u32 = 4;

/// Which flows are looked at.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SeenArgs {
    /// Edges as `bonafide history` exports them, or flow records; of several nodes, one file each (repeatable) [default: this
    /// node's history]
    #[arg(id = "seen", long = "seen", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub nodes: NodesArgs,
    /// Only flows since then: an age (90s, 30m, 12h, 7d) or a time (RFC 3339)
    #[arg(long, value_name = "AGE|TIME")]
    pub since: Option<Since>,
}

impl SeenArgs {
    /// Whether anything is asked for.
    pub(crate) fn names_any(&self) -> bool {
        !self.is_own() || self.since.is_some()
    }

    /// Whether this node's own history is meant.
    pub(crate) fn is_own(&self) -> bool {
        self.files.is_empty() && self.nodes.nodes.is_empty()
    }
}

/// A moment, unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since(i64);

impl Since {
    /// Unix seconds.
    pub(crate) fn unix(self) -> i64 {
        self.0
    }
}

impl std::fmt::Display for Since {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let moment = OffsetDateTime::from_unix_timestamp(self.0).ok().and_then(|moment| moment.format(&Rfc3339).ok());
        f.write_str(&moment.unwrap_or_else(|| self.0.to_string()))
    }
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(moment) = OffsetDateTime::parse(text, &Rfc3339) {
            return Ok(Self(moment.unix_timestamp()));
        }
        let moment = seconds(text).and_then(|seconds| SystemClock.unix().checked_sub(seconds));
        moment
            .map(Self)
            .ok_or_else(|| "neither an age like 90s, 30m, 12h or 7d, nor a time like 2027-01-31T18:00:00Z".to_owned())
    }
}

/// A span of time as people write it: `90s`, `30m`, `12h`, `7d`.
pub(crate) fn seconds(text: &str) -> Option<i64> {
    let number = text.strip_suffix(|c: char| c.is_ascii_alphabetic()).and_then(|number| number.parse::<i64>().ok())?;
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    number.checked_mul(unit).filter(|seconds| *seconds > 0)
}

/// Everything that was seen, flows alike counted together.
pub(crate) fn edges(args: &SeenArgs, layout: &Layout) -> Result<Vec<EdgeCount>, Failure> {
    let mut gathered = Gathered { since: args.since.map_or(i64::MIN, |since| since.0), edges: HashMap::new() };
    if args.is_own() {
        gathered.own(layout)?;
    }
    args.files.iter().try_for_each(|file| gathered.read(file))?;
    let since = args.since.map(|since| format!(" --since {since}")).unwrap_or_default();
    args.nodes.told(&since, |count| gathered.count(count))?;
    Ok(gathered.edges.into_iter().map(|(edge, seen)| EdgeCount { edge, seen }).collect())
}

/// The records, and those that were rotated away, oldest first.
pub(crate) fn own_records(newest: &Path) -> Vec<PathBuf> {
    let rotated = (1..=ROTATED).rev().map(|number| {
        let mut name = newest.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    });
    rotated.filter(|path| path.exists()).chain(std::iter::once(newest.to_owned())).collect()
}

struct Gathered {
    since: i64,
    edges: HashMap<Edge, Seen>,
}

impl Gathered {
    /// This node's history; or what its flow records still have, while the enforcer does not run.
    fn own(&mut self, layout: &Layout) -> Result<(), Failure> {
        let request = HistoryRequest { since: self.since.max(0), ..HistoryRequest::default() };
        if layout.enforcer_socket().exists() {
            let missing = history::told(layout, request, |count| self.count(count))?;
            missing.tell();
            return Ok(());
        }
        tell("the enforcer does not run: its flow records are read, which go back less far than its history");
        own_records(&layout.records()).iter().try_for_each(|file| self.read(file))
    }

    fn count(&mut self, count: EdgeCount) -> Result<(), Failure> {
        if count.seen.last < self.since {
            return Ok(());
        }
        self.edges.entry(count.edge).or_default().add(count.seen);
        if self.edges.len() > EDGES_MAX {
            let remedy = "look at fewer files, or at less time by --since";
            return Err(Failure::BadInput(format!(
                "more than {EDGES_MAX} different kinds of flows were seen; {remedy}"
            )));
        }
        Ok(())
    }

    fn read(&mut self, file: &Path) -> Result<(), Failure> {
        let unreadable = |e: std::io::Error| {
            let remedy = "name a file of flow records or edges by --seen, or the node's directory by --dir";
            Failure::BadInput(printable(&format!("{}: {e}; {remedy}", file.display())).into_owned())
        };
        let mut tail = Tail::new(file);
        tail.must_exist().map_err(unreadable)?;
        let mut bad = 0;
        loop {
            let lines = tail.read().map_err(unreadable)?;
            if lines.is_empty() {
                break;
            }
            for line in &lines {
                bad += usize::from(!self.take(file, line, bad)?);
            }
        }
        if let Some(line) = tail.rest() {
            // The last line may be being written at this moment.
            let _ = self.take(file, &line, COMPLAINTS_MAX)?;
        }
        if bad > COMPLAINTS_MAX {
            tell(&printable(&format!("{}: {bad} lines are neither flow records nor edges", file.display())));
        }
        Ok(())
    }

    /// Whether it was understood.
    fn take(&mut self, file: &Path, line: &Line, bad: usize) -> Result<bool, Failure> {
        let count = match understood(line) {
            Ok(count) => count,
            Err(why) => {
                if bad < COMPLAINTS_MAX {
                    tell(&printable(&format!("{}:{}: {why}; skipped", file.display(), line.number)));
                }
                return Ok(false);
            }
        };
        self.count(count).map(|()| true)
    }
}

fn understood(line: &Line) -> Result<EdgeCount, String> {
    let bytes = line.bytes.as_deref().ok_or("longer than any flow record")?;
    if bytes.starts_with(b"{\"v\":") {
        return crate::flows::record(line).and_then(|record| counted(&record));
    }
    serde_json::from_slice(bytes)
        .map_err(|e| format!("neither a flow record (version {RECORD_VERSION}) nor an edge: {e}"))
}

/// One flow as an edge.
pub(crate) fn counted(record: &FlowRecord) -> Result<EdgeCount, String> {
    let began = OffsetDateTime::parse(&record.started, &Rfc3339).map_err(|e| format!("started: {e}"))?;
    Ok(EdgeCount { edge: Edge::of(record), seen: Seen::of(record, began.unix_timestamp()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::table::tests::{allowed, refused};

    fn read(lines: &[String], since: Option<&str>) -> Vec<EdgeCount> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("flows.jsonl");
        std::fs::write(&file, lines.join("\n")).unwrap();
        let args = SeenArgs {
            files: vec![file],
            nodes: NodesArgs::default(),
            since: since.map(|since| since.parse().unwrap()),
        };
        edges(&args, &Layout::new(dir.path())).unwrap()
    }

    #[test]
    fn records_and_edges_add_up_and_other_lines_are_skipped() {
        let record = serde_json::to_string(&allowed()).unwrap();
        let edge = serde_json::to_string(&counted(&allowed()).unwrap()).unwrap();
        let other = serde_json::to_string(&refused()).unwrap();
        let mut edges = read(&[record.clone(), "{\"v\":1,".into(), edge, "x".into(), other, record], None);
        edges.sort_by_key(|count| count.seen.flows);
        assert_eq!(edges.iter().map(|count| count.seen.flows).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn older_flows_do_not_count() {
        let record = serde_json::to_string(&allowed()).unwrap();
        let began = counted(&allowed()).unwrap().seen.first;
        let at = |unix| OffsetDateTime::from_unix_timestamp(unix).unwrap().format(&Rfc3339).unwrap();
        assert_eq!(read(std::slice::from_ref(&record), Some(&at(began))).len(), 1);
        assert_eq!(read(&[record], Some(&at(began + 1))).len(), 0);
    }

    #[test]
    fn a_time_is_an_age_or_a_moment() {
        let now = SystemClock.unix();
        for (text, age) in [("90s", 90), ("30m", 1800), ("12h", 43_200), ("7d", 604_800)] {
            let Since(moment) = text.parse().unwrap();
            assert!((now - age..=now - age + 60).contains(&moment), "{text}");
        }
        assert_eq!("1970-01-02T00:00:00Z".parse(), Ok(Since(86_400)));
        for wrong in ["", "7", "d", "-7d", "7w", "0d", "9223372036854775807d", "7é"] {
            wrong.parse::<Since>().unwrap_err();
        }
    }

    #[test]
    fn rotated_records_are_read_first() {
        let dir = tempfile::tempdir().unwrap();
        let newest = dir.path().join("flows.jsonl");
        std::fs::write(dir.path().join("flows.jsonl.2"), "").unwrap();
        let names: Vec<_> = own_records(&newest).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["flows.jsonl.2", "flows.jsonl"]);
    }
}
