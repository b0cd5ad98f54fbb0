//! `bonafide why`: one flow, what was decided about it, by which rule, and what would change that.

use std::path::{Path, PathBuf};

use bonafide_policy::{Policy, Review};
use bonafide_proto::clock::{Clock as _, SystemClock};
use bonafide_proto::edge::EdgeCount;
use bonafide_proto::record::FlowRecord;

use crate::exit::{Exit, Failure};
use crate::flows::{FlowTable, Tail, record};
use crate::node::Layout;
use crate::policy::check;
use crate::printable::printable;
use crate::screen::{Screen, Tone};
use crate::seen;
use crate::whois::policy_in_force;

/// The least of an ID that is looked for.
const ID_MIN: usize = 6;
/// The most records that are shown.
const SHOWN_MAX: usize = 8;

/// Which flow.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Shows what was recorded at each end of the flow, and what the policy in force says of it now. Exits 3 if the policy denies
it, 2 if there is no such flow.

Examples:
  bonafide why 3f9a61c2
  bonafide why 3f9a61c2 --policy new.toml"
)]
pub struct WhyArgs {
    /// The flow's ID, as its record has it, or the beginning of it
    #[arg(value_name = "FLOW", value_parser = id)]
    pub id: String,
    /// Flow records; of several nodes, one file each (repeatable) [default: this node's]
    #[arg(long = "seen", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Ask this policy [default: the one in force on this node]
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

fn id(text: &str) -> Result<String, String> {
    let plain = text.len() >= ID_MIN && text.len() <= 32 && text.chars().all(|c| c.is_ascii_hexdigit());
    plain.then(|| text.to_ascii_lowercase()).ok_or_else(|| format!("an ID is {ID_MIN} to 32 hex digits"))
}

/// Finds the flow, shows it, and asks the policy.
pub(crate) fn why(args: &WhyArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let files = match args.files.as_slice() {
        [] => seen::own_records(&layout.records()),
        named => named.to_vec(),
    };
    let records = found(&args.id, &files)?;
    let mut table = FlowTable::new(screen.colour);
    for record in &records {
        screen.line(&table.rows(record))?;
        if let Some(remedy) = &record.remedy {
            screen.line("To allow this and nothing else, by the policy that was in force then:")?;
            remedy.lines().try_for_each(|line| screen.line(&printable(&format!("  {line}"))))?;
        }
    }
    let policy = match &args.policy {
        Some(file) => check::parse(file).map_err(|e| Failure::BadInput(printable(&e).into_owned()))?,
        None => policy_in_force(layout)?.1,
    };
    let edges: Vec<EdgeCount> = records.iter().filter_map(|record| seen::counted(record).ok()).collect();
    now(&policy.at(SystemClock.unix()), &edges, screen)
}

/// Both ends' records, if it is one flow.
fn found(id: &str, files: &[PathBuf]) -> Result<Vec<FlowRecord>, Failure> {
    let mut found: Vec<FlowRecord> = Vec::new();
    for file in files {
        search(id, file, &mut found)
            .map_err(|e| Failure::BadInput(printable(&format!("{}: {e}", file.display())).into_owned()))?;
    }
    let Some(first) = found.first() else {
        let older = "older records may have been rotated away; name another file by --seen";
        return Err(Failure::BadInput(format!("no flow has an ID that begins with {id}; {older}")));
    };
    if let Some(other) = found.iter().find(|record| record.id != first.id) {
        return Err(Failure::BadInput(
            printable(&format!("{id} is several flows: {}, {}", first.id, other.id)).into_owned(),
        ));
    }
    Ok(found)
}

fn search(id: &str, file: &Path, found: &mut Vec<FlowRecord>) -> std::io::Result<()> {
    let mut tail = Tail::new(file);
    tail.must_exist()?;
    loop {
        let mut lines = tail.read()?;
        let last = lines.is_empty();
        if last {
            lines.extend(tail.rest());
        }
        // Most lines are other flows': they are not parsed.
        let near = lines.iter().filter(|line| line.bytes.as_deref().is_some_and(|bytes| has(bytes, id.as_bytes())));
        let records = near.filter_map(|line| record(line).ok()).filter(|record| record.id.starts_with(id));
        found.extend(records.take(SHOWN_MAX.saturating_sub(found.len())));
        if last {
            return Ok(());
        }
    }
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// What the policy says of it now.
fn now(policy: &Policy, edges: &[EdgeCount], screen: &mut Screen) -> Result<Exit, Failure> {
    let mut reviews = policy.review(edges);
    reviews.dedup();
    for Review { allows, said, remedy } in &reviews {
        let said = screen.tint(if *allows { Tone::Good } else { Tone::Bad }, &printable(said));
        screen.line(&format!("Now, in mode {}: {said}", policy.mode().as_str()))?;
        if let Some(remedy) = remedy {
            screen.line("To allow this and nothing else:")?;
            remedy.to_string().lines().try_for_each(|line| screen.line(&printable(&format!("  {line}"))))?;
        }
    }
    Ok(if reviews.iter().all(|review| review.allows) { Exit::Done } else { Exit::Refused })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::table::tests::{allowed, refused};
    use crate::screen::tests::Kept;

    const POLICY: &str = "mode = 'enforce'\nmesh = ['10.0.0.0/8']\n[[workload]]\nname = 'shop/web'\nexe = '/web'\n\
                          [[workload]]\nname = 'shop/db'\nexe = '/db'\n";

    fn asked(id: &str) -> Result<(Exit, String), String> {
        let dir = tempfile::tempdir().unwrap();
        let (policy, records) = (dir.path().join("p.toml"), dir.path().join("flows.jsonl"));
        std::fs::write(&policy, POLICY).unwrap();
        let mut flow = FlowRecord { id: "abcdef01".into(), remedy: Some("[[rule]]\n".into()), ..allowed() };
        (flow.source.program, flow.destination.program) = (None, None);
        let other = FlowRecord { id: "abcdef02".into(), ..refused() };
        let lines = [flow, other].map(|record| serde_json::to_string(&record).unwrap());
        std::fs::write(&records, format!("not a record abcdef\n{}", lines.join("\n"))).unwrap();
        let args = WhyArgs { id: id.into(), files: vec![records], policy: Some(policy) };
        let out = Kept::default();
        let exit = why(&args, &Layout::new(dir.path()), &mut Screen::on(out.clone()));
        exit.map(|exit| (exit, out.text())).map_err(|e| e.to_string())
    }

    #[test]
    fn the_flow_is_shown_with_what_was_and_what_is_decided() {
        let (exit, said) = asked("abcdef01").unwrap();
        assert_eq!(exit, Exit::Refused);
        for part in [
            "by the policy that was in force then:\n  [[rule]]\n",
            "Now, in mode enforce: denied: no rule allows it",
            "  to = \"shop/db\"\n",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn an_id_must_be_of_one_flow() {
        assert!(asked("abcdef").unwrap_err().contains("is several flows: abcdef01, abcdef02"));
        assert!(asked("abcdef9").unwrap_err().contains("no flow has an ID that begins with abcdef9"));
        assert!(id("abcde").is_err() && id("x".repeat(8).as_str()).is_err() && id("ABCDEF").is_ok());
    }
}
