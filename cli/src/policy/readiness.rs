//! `bonafide policy readiness`: how far each application is from being enforced, and what holds it back.

use std::path::PathBuf;

use bonafide_policy::Readiness;
use bonafide_proto::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};

use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::policy::check;
use crate::printable::{printable, printable_json};
use crate::screen::{Screen, Tone};
use crate::seen::{self, SeenArgs};
use crate::status::when;

/// How many kinds of flows are listed of each application.
const LISTED: usize = 10;

/// Which policy, on what.
#[derive(Debug, clap::Args)]
pub struct ReadinessArgs {
    /// Policy file
    pub file: PathBuf,
    /// Only this application (repeatable)
    #[arg(long = "app", value_name = "NAME")]
    pub applications: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub seen: SeenArgs,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Exit code 3 if one of them is not ready.
pub(crate) fn readiness(args: &ReadinessArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let wrong = |why: String| Failure::BadInput(why.lines().map(printable).collect::<Vec<_>>().join("\n"));
    let policy = check::parse(&args.file).map_err(wrong)?.at(SystemClock.unix());
    let mut all = policy.readiness(&seen::edges(&args.seen, layout)?);
    let known: Vec<String> = all.iter().map(|readiness| readiness.application.clone()).collect();
    if let Some(unknown) = args.applications.iter().find(|name| !known.contains(name)) {
        return Err(wrong(format!("the policy has no application {unknown}; it has {}", known.join(", "))));
    }
    all.retain(|readiness| args.applications.is_empty() || args.applications.contains(&readiness.application));
    if args.json {
        let all: Vec<Value> = all.iter().map(json).collect();
        screen.line(&printable_json(&json!({ "applications": all }).to_string()))?;
    } else {
        all.iter().try_for_each(|readiness| show(readiness, screen))?;
    }
    Ok(if all.iter().all(Readiness::is_ready) { Exit::Done } else { Exit::Refused })
}

fn show(readiness: &Readiness, screen: &mut Screen) -> Result<(), Failure> {
    let Readiness { application, allowed, held_back } = readiness;
    let verdict = match (readiness.is_ready(), readiness.last_held_back()) {
        (true, _) => screen.tint(Tone::Good, "ready"),
        (false, None) => "nothing was seen of it".to_owned(),
        (false, Some(last)) => screen.tint(Tone::Bad, &format!("not ready, the last time at {}", when(last))),
    };
    let percent = readiness.percent();
    screen.line(&format!("{}: {percent} % ({allowed} flows allowed), {verdict}", printable(application)))?;
    for held in held_back.iter().take(LISTED) {
        screen.line(&printable(&format!("  {}: {} ({} flows)", held.flows, held.why, held.seen.flows)))?;
    }
    if held_back.len() > LISTED {
        screen.line(&format!("  and {} more; --json has them all", held_back.len() - LISTED))?;
    }
    Ok(())
}

fn json(readiness: &Readiness) -> Value {
    let held = readiness.held_back.iter();
    let held: Vec<Value> =
        held.map(|held| json!({ "flows": held.flows, "why": held.why, "seen": held.seen })).collect();
    json!({
        "application": readiness.application, "ready": readiness.is_ready(), "percent": readiness.percent(),
        "allowed": readiness.allowed, "held_back": held,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::table::tests::allowed;
    use crate::screen::tests::Kept;

    const POLICY: &str = "mode = 'shadow'\nmesh = ['10.0.0.0/8']\n[[workload]]\nname = 'shop/web'\nexe = '/web'\n\
                          [[workload]]\nname = 'shop/db'\nexe = '/db'\n";
    const RULE: &str = "[[rule]]\nname = 'r'\nfrom = 'shop/web'\nto = 'shop/db'\naction = 'allow'\n";

    fn asked(policy: &str, apps: &[&str], json: bool) -> Result<(Exit, String), Failure> {
        let dir = tempfile::tempdir().unwrap();
        let (file, records) = (dir.path().join("p.toml"), dir.path().join("flows.jsonl"));
        std::fs::write(&file, policy).unwrap();
        let mut record = allowed();
        (record.source.program, record.destination.program) = (None, None);
        std::fs::write(&records, serde_json::to_string(&record).unwrap()).unwrap();
        let seen = SeenArgs { files: vec![records], ..SeenArgs::default() };
        let applications = apps.iter().map(|app| (*app).to_owned()).collect();
        let out = Kept::default();
        let args = ReadinessArgs { file, applications, seen, json };
        readiness(&args, &Layout::new(dir.path()), &mut Screen::on(out.clone())).map(|exit| (exit, out.text()))
    }

    #[test]
    fn an_application_is_ready_or_told_what_holds_it_back() {
        let ready = asked(&format!("{POLICY}{RULE}"), &[], false).unwrap();
        assert_eq!(ready, (Exit::Done, "shop: 100 % (1 flows allowed), ready\n".to_owned()));
        let (exit, said) = asked(POLICY, &["shop"], false).unwrap();
        assert_eq!(exit, Exit::Refused);
        assert!(said.starts_with("shop: 0 % (0 flows allowed), not ready, the last time at 2"), "{said}");
        assert!(
            said.contains("\n  shop/web to shop/db on ") && said.contains("denied: no rule allows it (1 flows)"),
            "{said}"
        );
        let (_, said) = asked(POLICY, &[], true).unwrap();
        let value: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(value["applications"][0]["held_back"][0]["seen"]["flows"], 1);
    }

    #[test]
    fn an_application_must_be_one_of_the_policy() {
        let refused = asked(POLICY, &["mail"], false).unwrap_err();
        assert_eq!((refused.exit(), refused.to_string().contains("it has shop")), (Exit::BadInput, true));
    }
}
