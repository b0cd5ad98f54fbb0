//! `bonafide policy learn`: what a policy lacks for what was seen, ready to be added to it.

use std::path::PathBuf;

use bonafide_policy::{Learned, LeftOut, Lessons, Policy};
use bonafide_proto::clock::{Clock as _, SystemClock};

use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::policy::check;
use crate::printable::printable;
use crate::screen::{Screen, tell};
use crate::seen::{self, SeenArgs};
use crate::status::when;

/// How many kinds of flows that are left out are listed.
const LISTED: usize = 50;

/// Which policy, and from what.
#[derive(Debug, clap::Args)]
pub struct LearnArgs {
    /// Policy file: what it has already is not proposed
    pub file: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub seen: SeenArgs,
    /// Learn from refused flows, too
    #[arg(long)]
    pub refused: bool,
}

/// The proposal goes to standard output, all else to standard error.
pub(crate) fn learn(args: &LearnArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let file = args.file.display().to_string();
    let wrong = |why: String| Failure::BadInput(why.lines().map(printable).collect::<Vec<_>>().join("\n"));
    let text = check::text(&args.file).map_err(wrong)?;
    let edges = seen::edges(&args.seen, layout)?;
    let lessons = if args.refused { Lessons::Refused } else { Lessons::LetThrough };
    let learned = Policy::learn(&file, &text, SystemClock.unix(), &edges, lessons).map_err(|e| wrong(e.to_string()))?;
    if !learned.text.is_empty() {
        // Added to the file by >>, it begins a line of its own.
        screen.line("")?;
        learned.text.lines().try_for_each(|line| screen.line(line))?;
    }
    summary(&learned).iter().for_each(|line| tell(&printable(line)));
    Ok(Exit::Done)
}

fn summary(learned: &Learned) -> Vec<String> {
    let mut lines = vec![match (learned.workloads, learned.rules) {
        (0, 0) => "nothing is lacking for what was seen and may be proposed".to_owned(),
        (workloads, rules) => format!("proposed: {workloads} workloads, {rules} rules"),
    }];
    let left_out = &learned.left_out;
    if !left_out.is_empty() {
        lines.push(format!("left out: {} kinds of flows", left_out.len()));
    }
    lines.extend(left_out.iter().take(LISTED).map(one));
    if left_out.len() > LISTED {
        lines.push(format!("  and {} more", left_out.len() - LISTED));
    }
    lines
}

fn one(LeftOut { flows, why, seen }: &LeftOut) -> String {
    format!("  {flows}: {why} ({} flows, the last at {})", seen.flows, when(seen.last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::table::tests::{allowed, refused};
    use crate::screen::tests::Kept;

    fn ran(policy: &str, refused_too: bool) -> String {
        let dir = tempfile::tempdir().unwrap();
        let (file, records) = (dir.path().join("p.toml"), dir.path().join("flows.jsonl"));
        std::fs::write(&file, policy).unwrap();
        let lines = [allowed(), refused()].map(|record| serde_json::to_string(&record).unwrap());
        std::fs::write(&records, lines.join("\n")).unwrap();
        let args =
            LearnArgs { file, seen: SeenArgs { files: vec![records], ..SeenArgs::default() }, refused: refused_too };
        let out = Kept::default();
        assert_eq!(learn(&args, &Layout::new(dir.path()), &mut Screen::on(out.clone())).unwrap(), Exit::Done);
        out.text()
    }

    const POLICY: &str = "mode = 'shadow'\nmesh = ['10.0.0.0/8']\n[[workload]]\nname = 'shop/web'\nexe = '/web'\n\
                          [[workload]]\nname = 'shop/db'\nexe = '/db'\n";

    #[test]
    fn what_is_lacking_is_printed_once_and_then_nothing() {
        let said = ran(POLICY, false);
        assert!(said.contains("[[rule]]") && said.contains("to = \"shop/db\""), "{said}");
        assert_eq!(ran(&format!("{POLICY}{said}"), false), "");
    }

    #[test]
    fn a_policy_with_mistakes_learns_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        std::fs::write(&file, "mode = 'sleep'").unwrap();
        let args =
            LearnArgs { seen: SeenArgs { files: vec![file.clone()], ..SeenArgs::default() }, file, refused: false };
        let failure = learn(&args, &Layout::new(dir.path()), &mut Screen::on(Kept::default())).unwrap_err();
        assert_eq!(failure.exit(), Exit::BadInput);
    }
}
