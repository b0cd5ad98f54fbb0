//! `bonafide policy diff`: what another policy would change for what was seen.

use std::path::{Path, PathBuf};

use bonafide_policy::{Change, Policy, PolicyDiff};
use bonafide_proto::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};

use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::policy::check;
use crate::printable::{printable, printable_json};
use crate::screen::{Screen, Tone};
use crate::seen::{self, SeenArgs};
use crate::status::when;
use crate::whois::policy_in_force;

/// How many kinds of flows, and how many unused rules, are listed for people.
const LISTED: usize = 50;

/// Which policies, on what.
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// The new policy
    pub new: PathBuf,
    /// The policy to compare with [default: the one in force on this node]
    #[arg(long, value_name = "FILE")]
    pub old: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub seen: SeenArgs,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Exit code 3 if something that was allowed would be denied.
pub(crate) fn diff(args: &DiffArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let now = SystemClock.unix();
    let new = parsed(&args.new)?.at(now);
    let old = match &args.old {
        Some(file) => parsed(file)?,
        None => policy_in_force(layout)?.1,
    };
    let diff = old.at(now).diff(&new, &seen::edges(&args.seen, layout)?);
    show(&diff, args.json, screen)?;
    Ok(if diff.denied.is_empty() { Exit::Done } else { Exit::Refused })
}

fn parsed(file: &Path) -> Result<Policy, Failure> {
    let wrong = |why: String| Failure::BadInput(why.lines().map(printable).collect::<Vec<_>>().join("\n"));
    check::parse(file).map_err(wrong)
}

/// For people, or as one JSON object.
pub(crate) fn show(diff: &PolicyDiff, as_json: bool, screen: &mut Screen) -> Result<(), Failure> {
    if as_json {
        return Ok(screen.line(&printable_json(&json(diff).to_string()))?);
    }
    changes("newly denied", Tone::Bad, &diff.denied, screen)?;
    changes("newly allowed", Tone::Good, &diff.allowed, screen)?;
    if !diff.unused.is_empty() {
        screen.line(&format!("rules that decide nothing of what was seen: {}", diff.unused.len()))?;
        for name in diff.unused.iter().take(LISTED) {
            screen.line(&printable(&format!("  {name}")))?;
        }
    }
    let unknown = match diff.unknown {
        0 => String::new(),
        flows => format!("; {flows} flows cannot be judged: no record says which program was at one end"),
    };
    Ok(screen.line(&format!("unchanged: {} flows{unknown}", diff.unchanged))?)
}

fn changes(title: &str, tone: Tone, changes: &[Change], screen: &mut Screen) -> Result<(), Failure> {
    let flows = changes.iter().fold(0_u64, |all, change| all.saturating_add(change.seen.flows));
    let title = format!("{title}: {flows} flows of {} kinds", changes.len());
    let title = if changes.is_empty() { title } else { screen.tint(tone, &title) };
    screen.line(&title)?;
    for change in changes.iter().take(LISTED) {
        lines(change).iter().try_for_each(|line| screen.line(&printable(line)))?;
    }
    if changes.len() > LISTED {
        screen.line(&format!("  and {} more; --json has them all", changes.len() - LISTED))?;
    }
    Ok(())
}

fn lines(change: &Change) -> Vec<String> {
    let Change { from, to, port, was, becomes, remedy, owner, seen, .. } = change;
    let sample = seen.samples.last().map(|id| format!(", for example {id}")).unwrap_or_default();
    let mut lines = vec![
        format!("  {from} to {to} on {port}: {} flows, the last at {}{sample}", seen.flows, when(seen.last)),
        format!("    was {was}"),
        format!("    now {becomes}"),
    ];
    lines.extend(owner.iter().map(|owner| format!("    owner {owner}")));
    if let Some(remedy) = remedy {
        lines.push("    to allow it all the same:".to_owned());
        lines.extend(remedy.to_string().lines().map(|line| format!("      {line}")));
    }
    lines
}

fn json(diff: &PolicyDiff) -> Value {
    let change = |change: &Change| {
        json!({
            "from": change.from, "to": change.to, "port": change.port, "protocol": change.protocol,
            "owner": change.owner, "was": change.was, "now": change.becomes, "seen": change.seen,
            "remedy": change.remedy.as_ref().map(ToString::to_string),
        })
    };
    json!({
        "denied": diff.denied.iter().map(change).collect::<Vec<_>>(),
        "allowed": diff.allowed.iter().map(change).collect::<Vec<_>>(),
        "unused": diff.unused, "unchanged": diff.unchanged, "unknown": diff.unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::table::tests::allowed;
    use crate::screen::tests::Kept;

    const POLICY: &str = "mode = 'shadow'\nmesh = ['10.0.0.0/8']\n[[workload]]\nname = 'shop/web'\nexe = '/web'\n\
                          [[workload]]\nname = 'shop/db'\nexe = '/db'\n[[rule]]\nname = 'web to db'\nfrom = 'shop/web'\n\
                          to = 'shop/db'\naction = 'allow'\n";

    fn compared(new: &str, json: bool) -> (Exit, String) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, text: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let mut record = allowed();
        // Named by the certificate alone, so that the names in the policy hold.
        (record.source.program, record.destination.program) = (None, None);
        let records = at("flows.jsonl", &serde_json::to_string(&record).unwrap());
        let (new, old) = (at("new.toml", new), Some(at("old.toml", POLICY)));
        let args = DiffArgs { new, old, seen: SeenArgs { files: vec![records], ..SeenArgs::default() }, json };
        let out = Kept::default();
        (diff(&args, &Layout::new(dir.path()), &mut Screen::on(out.clone())).unwrap(), out.text())
    }

    #[test]
    fn what_would_be_denied_is_told_and_is_an_exit_code() {
        assert_eq!(
            compared(POLICY, false),
            (
                Exit::Done,
                "newly denied: 0 flows of 0 kinds\nnewly allowed: 0 flows of 0 kinds\nunchanged: 1 flows\n".into()
            )
        );
        let (exit, said) = compared(&POLICY.replace("'allow'", "'deny'"), false);
        assert_eq!(exit, Exit::Refused);
        for part in [
            "newly denied: 1 flows of 1 kinds",
            "shop/web to shop/db on ",
            "now denied by rule \"web to db\"",
            "      # before the rule",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn json_has_all_of_it() {
        let (exit, said) = compared(&POLICY.replace("'allow'", "'deny'"), true);
        let value: Value = serde_json::from_str(&said).unwrap();
        assert_eq!((exit, value["denied"][0]["from"].as_str()), (Exit::Refused, Some("shop/web")));
        assert_eq!(value["denied"][0]["seen"]["flows"], 1);
    }
}
