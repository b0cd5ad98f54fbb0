//! The history: what counting flows takes, writing included, and how long a look back takes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_enforcer::history::{History, Limits, Span};
use bonafide_policy::Policy;
use bonafide_proto::clock::{Clock, SystemClock};
use bonafide_proto::edge::EdgeCount;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::observed::Protocol;
use bonafide_proto::record::{End, EndedBy, FlowRecord, Outcome, Party, RECORD_VERSION, Transport};
use rustix::time::{ClockId, clock_gettime};

use crate::report::{Claim, Report, median};

/// Different kinds of flows.
const KINDS: usize = 5000;
/// Flows for each second of a processor's time.
const COUNTED: f64 = 10_000.0;
/// Recorded flows, and the seconds in which two policies are compared on them.
const LOOK_BACK: (u64, f64) = (10_000_000, 10.0);

/// Measures counting, reading and comparing.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<(), String> {
    report.part("History");
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let records: Vec<FlowRecord> = (0..KINDS).map(record).collect();
    let flows = if quick { 20_000 } else { 200_000 };
    let rates: Result<Vec<f64>, String> = (0..if quick { 1 } else { 5 })
        .map(|round| count(&dir.path().join(round.to_string()), &records, flows))
        .collect();
    report.add(
        format!("flows of {KINDS} kinds, counted and written, for each second of processor time"),
        median(rates?),
        "flows/s",
        Claim::AtLeast(COUNTED),
    );
    look_back(&dir.path().join("0"), quick, report)
}

/// Flows for each second that this process computed.
fn count(dir: &Path, records: &[FlowRecord], flows: usize) -> Result<f64, String> {
    let history = open(dir)?;
    let began = computed();
    // As the store's own thread writes at that rate: twice a second, and here every kind of flow each time.
    for _ in 0..flows / KINDS {
        records.iter().for_each(|record| history.count(record));
        history.write();
    }
    history.stop();
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    Ok(flows as f64 / (computed() - began).as_secs_f64())
}

fn look_back(dir: &Path, quick: bool, report: &mut Report) -> Result<(), String> {
    let history = open(dir)?;
    let [old, new] = [5432, 5433].map(|port| Policy::parse("p", &policy(port)));
    let (old, new) = (old.map_err(|e| e.to_string())?, new.map_err(|e| e.to_string())?);
    let mut took = Vec::new();
    for _ in 0..if quick { 1 } else { 5 } {
        let began = Instant::now();
        let mut edges = Vec::new();
        let span = Span { since: 0, until: i64::MAX, by_hour: false };
        let read = history.read(span, |EdgeCount { edge, mut seen }| {
            seen.flows = LOOK_BACK.0 / KINDS as u64;
            edges.push(EdgeCount { edge, seen });
            true
        });
        read.map_err(|e| e.to_string())?;
        let diff = old.diff(&new, &edges);
        let denied: u64 = diff.denied.iter().map(|change| change.seen.flows).sum();
        if denied != LOOK_BACK.0 {
            return Err(format!("{denied} of {} flows would be denied", LOOK_BACK.0));
        }
        took.push(began.elapsed().as_secs_f64());
    }
    let what = format!("two policies on {} recorded flows of {KINDS} kinds, read from the store", LOOK_BACK.0);
    report.add(what, median(took), "s", Claim::AtMost(LOOK_BACK.1));
    Ok(())
}

fn open(dir: &Path) -> Result<Arc<History>, String> {
    History::open(dir.to_owned(), Limits::default(), Arc::new(SystemClock)).map_err(|e| e.to_string())
}

/// Processor time of all threads of this process.
fn computed() -> Duration {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

fn policy(port: u16) -> String {
    let mut text = "mode = \"enforce\"\n[[workload]]\nname = \"db\"\nexe = \"/db\"\n".to_owned();
    for n in 0..KINDS {
        text += &format!("[[workload]]\nname = \"w{n}\"\nexe = \"/w{n}\"\n");
    }
    let from: Vec<String> = (0..KINDS).map(|n| format!("\"w{n}\"")).collect();
    let from = from.join(",");
    text + &format!("[[rule]]\nname = \"r\"\nfrom = [{from}]\nto = \"db\"\nports = [{port}]\naction = \"allow\"\n")
}

fn record(n: usize) -> FlowRecord {
    let party = |name: String, addr: &str| Party {
        addr: addr.parse().ok(),
        workload: name.parse().ok(),
        program: Some(format!("/{name}")),
        digest: Some(Digest::of(name.as_bytes())),
        uid: Some(33),
        unit: Some(format!("{name}.service")),
        node: "host-a".parse().ok(),
        ..Party::default()
    };
    let now = SystemClock.unix();
    let now = time::OffsetDateTime::from_unix_timestamp(now).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let now = now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
    FlowRecord {
        v: RECORD_VERSION,
        id: format!("{n:032x}"),
        end: End::Source,
        protocol: Protocol::Tcp,
        started: now.clone(),
        ended: now,
        duration_us: 1000,
        mode: "enforce".to_owned(),
        verdict: Outcome::Allowed,
        rule: Some("r".to_owned()),
        tried: None,
        reason: None,
        detail: None,
        nearest: None,
        remedy: None,
        transport: Transport::Mtls,
        source: party(format!("w{n}"), "10.0.0.1:40000"),
        destination: party("db".to_owned(), "10.0.0.2:5432"),
        original: None,
        tls: None,
        bytes_sent: 100,
        bytes_received: 1000,
        ended_by: EndedBy::Closed,
    }
}
