//! Flow records as a table of fixed columns, 120 wide, so that rows can be shown one by one as they come.

use std::fmt::Write as _;
use std::net::SocketAddr;

use bonafide_proto::observed::Protocol;
use bonafide_proto::record::{End, EndedBy, FlowRecord, NearMiss, Outcome, Party, Transport};
use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime, UtcOffset};

use crate::printable::printable;
use crate::screen::Tone;

/// Title, width with the gap to its right, alignment.
const COLUMNS: [(&str, u16, CellAlignment); 12] = [
    ("TIME UTC", 9, CellAlignment::Left),
    ("END", 4, CellAlignment::Left),
    ("VERDICT", 10, CellAlignment::Left),
    ("SOURCE", 21, CellAlignment::Left),
    ("DESTINATION", 21, CellAlignment::Left),
    ("PORT", 6, CellAlignment::Right),
    ("RULE OR REASON", 17, CellAlignment::Left),
    ("VIA", 6, CellAlignment::Left),
    ("SENT", 6, CellAlignment::Right),
    ("RCVD", 6, CellAlignment::Right),
    ("TOOK", 6, CellAlignment::Right),
    ("ENDED", 8, CellAlignment::Left),
];
/// Before what is said below a row.
const BELOW: &str = "         - ";

/// A table that is shown row by row.
#[derive(Debug)]
pub struct FlowTable {
    colour: bool,
    begun: bool,
    day: Option<Date>,
}

impl FlowTable {
    /// A table without rows.
    #[must_use]
    pub fn new(colour: bool) -> Self {
        Self { colour, begun: false, day: None }
    }

    /// All of these records.
    #[must_use]
    pub fn of<'a>(records: impl IntoIterator<Item = &'a FlowRecord>, colour: bool) -> String {
        let mut table = Self::new(colour);
        records.into_iter().fold(String::new(), |mut text, record| {
            let _ = writeln!(text, "{}", table.rows(record));
            text
        })
    }

    /// The lines for one record: the header before the first, the date whenever it changes, the row, and below it
    /// what a refusal has to say.
    #[must_use]
    pub fn rows(&mut self, record: &FlowRecord) -> String {
        let mut lines = Vec::new();
        let time = OffsetDateTime::parse(&record.started, &Rfc3339).ok().map(|t| t.to_offset(UtcOffset::UTC));
        let day = time.map(OffsetDateTime::date);
        if day != self.day {
            lines.extend(day.map(|d| format!("{d}")));
            self.day = day;
        }
        if !std::mem::replace(&mut self.begun, true) {
            lines.push(self.lay_out(COLUMNS.map(|(title, ..)| Cell::new(title)).into()));
        }
        lines.push(self.lay_out(cells(record, time).into()));
        lines.extend(story(record).iter().map(|s| format!("{BELOW}{}", printable(s))));
        lines.join("\n")
    }

    fn lay_out(&self, row: Vec<Cell>) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).add_row(row);
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        for (column, (_, width, alignment)) in table.column_iter_mut().zip(COLUMNS) {
            column.set_padding((0, 1)).set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
            column.set_cell_alignment(alignment);
        }
        let lines: Vec<String> = table.lines().map(|l| l.trim_end().to_owned()).collect();
        lines.join("\n")
    }
}

fn cells(record: &FlowRecord, time: Option<OffsetDateTime>) -> [Cell; COLUMNS.len()] {
    let clock = time.map_or_else(|| "?".to_owned(), |t| format!("{:02}:{:02}:{:02}", t.hour(), t.minute(), t.second()));
    let (verdict, tone) = match record.verdict {
        Outcome::Allowed => ("allowed", Tone::Good),
        Outcome::Refused => ("refused", Tone::Bad),
        Outcome::WouldRefuse => ("would refuse", Tone::Doubtful),
        Outcome::Undecided => ("undecided", Tone::Quiet),
    };
    let end = match record.end {
        End::Source => "src",
        End::Destination => "dst",
    };
    let via = match record.transport {
        Transport::Mtls => "mtls",
        Transport::Clear => "clear",
        Transport::SameHost => "host",
        Transport::Observed if record.protocol == Protocol::Udp => "udp",
        Transport::Observed => "seen",
        Transport::None => "-",
    };
    let ended = match record.ended_by {
        EndedBy::Refusal => "refusal",
        EndedBy::Closed => "closed",
        EndedBy::SourceReset => "source reset",
        EndedBy::DestinationReset => "dest. reset",
        EndedBy::Enforcer => "here",
        EndedBy::Peer => "peer",
    };
    [
        Cell::new(clock),
        Cell::new(end),
        Cell::new(verdict).fg(tone.colour()),
        Cell::new(who(&record.source)),
        Cell::new(who(&record.destination)),
        Cell::new(record.destination.addr.map_or_else(|| "?".to_owned(), |a| a.port().to_string())),
        Cell::new(why(record)),
        Cell::new(via),
        Cell::new(amount(record.bytes_sent)),
        Cell::new(amount(record.bytes_received)),
        Cell::new(took(record.duration_us)),
        Cell::new(ended),
    ]
}

/// Its name, and on a second line the program's and the address.
fn who(party: &Party) -> String {
    let path = party.script.as_deref().or(party.program.as_deref());
    let file = path.map(|p| p.rsplit('/').next().unwrap_or(p));
    let name = party.workload.as_ref().map(ToString::to_string).or_else(|| party.outside.clone());
    let ip = party.addr.map(|a| ip(&a));
    let (first, second) = match (name, path, ip) {
        (Some(name), _, ip) => {
            (name, [file.map(str::to_owned), ip].into_iter().flatten().collect::<Vec<_>>().join(" "))
        }
        (None, Some(path), ip) => (path.to_owned(), ip.unwrap_or_default()),
        (None, None, ip) => (ip.unwrap_or_else(|| "?".to_owned()), String::new()),
    };
    let both = [printable(&first), printable(&second)];
    both.join("\n").trim_end().to_owned()
}

fn ip(addr: &SocketAddr) -> String {
    addr.ip().to_string()
}

fn why(record: &FlowRecord) -> String {
    let reason = record.reason.map(|r| r.as_str().to_owned());
    let rule = record.rule.as_deref().map(|r| printable(r).into_owned());
    let parts: Vec<String> = [reason, rule].into_iter().flatten().collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(": ") }
}

/// What is said below the row: the reason in words, and what came nearest.
fn story(record: &FlowRecord) -> Vec<String> {
    let detail = record.detail.as_ref().filter(|_| record.reason.is_some());
    let nearest = record.nearest.as_ref().filter(|_| record.verdict != Outcome::Allowed);
    detail.map(|d| short_digests(d)).into_iter().chain(nearest.map(near)).collect()
}

fn near(miss: &NearMiss) -> String {
    let NearMiss { of, field, expected, seen } = miss;
    format!("nearest: {of}: {field} is {}, expected {}", short_digests(seen), short_digests(expected))
}

/// Digests by their first 12 digits; the whole of them is in the record.
fn short_digests(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("sha256:") {
        let hex = after.len() - after.trim_start_matches(|c: char| c.is_ascii_hexdigit()).len();
        let (digits, behind) = after.split_at(hex);
        let shown = digits.get(..12).filter(|_| hex == 64);
        let _ = match shown {
            Some(short) => write!(out, "{before}sha256:{short}…"),
            None => write!(out, "{before}sha256:{digits}"),
        };
        rest = behind;
    }
    out + rest
}

/// Bytes in at most five characters.
fn amount(bytes: u64) -> String {
    let mut value = bytes;
    let mut units = ["", "K", "M", "G", "T", "P", "E"].iter();
    let mut tenths = 0;
    let mut unit = units.next();
    while value >= 1000 {
        (tenths, value) = (value % 1000 / 100, value / 1000);
        unit = units.next();
    }
    let unit = unit.copied().unwrap_or_default();
    if value < 10 && !unit.is_empty() { format!("{value}.{tenths}{unit}") } else { format!("{value}{unit}") }
}

/// A time in at most five characters.
fn took(micros: u64) -> String {
    let (ms, s) = (micros / 1000, micros / 1_000_000);
    match s {
        0 if ms == 0 => format!("{micros}us"),
        0 => format!("{ms}ms"),
        1..10 => format!("{s}.{}s", ms % 1000 / 100),
        10..100 => format!("{s}s"),
        100..6000 => format!("{}m", s / 60),
        _ => format!("{}h", s / 3600),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use bonafide_proto::record::Reason;

    fn party(workload: Option<&str>, program: Option<&str>, addr: &str) -> Party {
        Party {
            addr: Some(addr.parse().unwrap()),
            workload: workload.map(|w| w.parse().unwrap()),
            program: program.map(str::to_owned),
            ..Party::default()
        }
    }

    pub(crate) fn allowed() -> FlowRecord {
        FlowRecord {
            v: 1,
            id: "0".repeat(32),
            end: End::Source,
            protocol: Protocol::Tcp,
            started: "2026-03-04T05:06:07.891Z".into(),
            ended: "2026-03-04T05:06:09.291Z".into(),
            duration_us: 1_400_000,
            mode: "enforce".into(),
            verdict: Outcome::Allowed,
            rule: Some("web to db".into()),
            reason: None,
            detail: None,
            nearest: None,
            remedy: None,
            tried: None,
            transport: Transport::Mtls,
            source: party(Some("shop/web"), Some("/usr/sbin/nginx"), "[fd77::1]:41000"),
            destination: party(Some("shop/db"), None, "[fd77::2]:5432"),
            original: None,
            tls: None,
            bytes_sent: 999,
            bytes_received: 1_234_567,
            ended_by: EndedBy::Closed,
        }
    }

    pub(crate) fn refused() -> FlowRecord {
        let digest = |c: &str| format!("sha256:{}", c.repeat(64));
        FlowRecord {
            verdict: Outcome::Refused,
            rule: None,
            reason: Some(Reason::NoWorkload),
            detail: Some("/usr/bin/curl earned no workload".into()),
            nearest: Some(NearMiss {
                of: "shop/probe".into(),
                field: "sha256".into(),
                expected: digest("a"),
                seen: digest("b"),
            }),
            transport: Transport::None,
            source: party(None, Some("/usr/bin/curl"), "10.77.0.1:41000"),
            destination: party(None, None, "10.77.0.2:80"),
            bytes_sent: 0,
            bytes_received: 0,
            duration_us: 900,
            ended_by: EndedBy::Refusal,
            ..allowed()
        }
    }

    #[test]
    fn the_table_reads_like_this() {
        let expected = "\
2026-03-04
TIME UTC END VERDICT   SOURCE               DESTINATION           PORT RULE OR REASON   VIA    SENT  RCVD  TOOK ENDED
05:06:07 src allowed   shop/web             shop/db               5432 web to db        mtls    999  1.2M  1.4s closed
                       nginx fd77::1        fd77::2
05:06:07 src refused   /usr/bin/curl        10.77.0.2               80 no-workload      -         0     0 900us refusal
                       10.77.0.1
         - /usr/bin/curl earned no workload
         - nearest: shop/probe: sha256 is sha256:bbbbbbbbbbbb…, expected sha256:aaaaaaaaaaaa…
";
        let table = FlowTable::of([&allowed(), &refused()], false);
        assert_eq!(table, expected, "\n{table}");
    }

    #[test]
    fn no_line_of_the_table_is_wider_than_120_columns() {
        let mut record = allowed();
        record.source.workload = Some(format!("shop/{}", "Q".repeat(200)).parse().unwrap());
        record.rule = Some("a rule with a name that says all there is to say about it".into());
        record.reason = Some(Reason::PolicyChanged);
        (record.bytes_sent, record.duration_us) = (u64::MAX, u64::MAX);
        let text = FlowTable::of([&record], false);
        assert!(text.lines().all(|l| l.chars().count() <= 120), "{text}");
        assert_eq!(text.matches('Q').count(), 200, "nothing is cut off\n{text}");
    }

    #[test]
    fn hostile_names_reach_the_terminal_spelled_out() {
        let mut record = refused();
        record.source.program = Some("/tmp/\u{1b}]0;x\u{7}".into());
        record.detail = Some("a\nb\u{9b}31m".into());
        let text = FlowTable::of([&record], false);
        assert!(!text.replace('\n', "").contains(char::is_control), "{text:?}");
        assert!(text.contains("- a\\u{a}b\\u{9b}31m"), "{text}");
    }

    #[test]
    fn colours_only_when_asked_for() {
        assert!(!FlowTable::of([&refused()], false).contains('\u{1b}'));
        assert!(FlowTable::of([&refused()], true).contains('\u{1b}'));
    }

    #[test]
    fn numbers_stay_short() {
        for (bytes, text) in
            [(0, "0"), (999, "999"), (1000, "1.0K"), (12_345, "12K"), (999_999, "999K"), (u64::MAX, "18E")]
        {
            assert_eq!(amount(bytes), text);
        }
        for (us, text) in [(0, "0us"), (1500, "1ms"), (9_950_000, "9.9s"), (61_000_000, "61s"), (7_200_000_000, "2h")] {
            assert_eq!(took(us), text);
        }
    }

    #[test]
    fn only_whole_digests_are_shortened() {
        assert_eq!(short_digests("x sha256:ab, y"), "x sha256:ab, y");
        let long = format!("is sha256:{}.", "0".repeat(64));
        assert_eq!(short_digests(&long), "is sha256:000000000000….");
    }
}
