//! `bonafide policy`, and of it `check`: reads policy files as identityd would, and names every mistake.

mod report;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use bonafide_policy::{CaseResult, POLICY_MAX, Policy, PolicyErrors};
use bonafide_proto::clock::{Clock as _, SystemClock};

use crate::exit::{Exit, Failure};
use crate::policy_explain::ExplainArgs;
use crate::policy_publish::{PublishArgs, PublishedArgs, StatusArgs};
use crate::printable::printable;
use crate::screen::{Screen, Tone, tell};

/// Works with policies.
#[derive(Debug, clap::Subcommand)]
pub enum PolicyCommand {
    /// Checks policy files; prints every mistake with file, line and column
    #[command(
        after_help = "Runs the [[test]] tables of each file, too. Exits 2 if a file has a mistake or cannot be read, 3 if a test fails.
Nothing is changed, no daemon is asked.

Examples:
  bonafide policy check /etc/bonafide/policy.toml
  bonafide policy check --format junit policy-examples/*.toml > report.xml"
    )]
    Check(CheckArgs),
    /// Says which rule of a policy file decides a connection, and what would allow it
    #[command(
        after_help = "Exits 0 if it is allowed, 3 if it is denied, 2 if the file has a mistake. No daemon is asked.

Examples:
  bonafide policy explain policy.toml --from shop/web --to shop/db --port 5432
  bonafide policy explain policy.toml --from shop/web --to 192.0.2.1 --port 443"
    )]
    Explain(ExplainArgs),
    /// Publishes a policy to every node of the trust domain (where the authority runs)
    #[command(
        after_help = "The file is checked first, as by `policy check`. The authority signs it under the next version number and tells every
node. It is in force on those that take their policy from the authority (bonafide run --policy-from-authority); the
answer says on which, within two seconds, and why not on the others. A node that is away is told when it comes back.
No node takes an older version than it had, nor one that this authority's root did not have signed.

Exits 2 if the file has a mistake, 3 if nodes hold a later version than this authority ever published, as after a
restore from a backup: then --version names a higher one. Nothing is published in either case.

Examples:
  bonafide policy publish policy.toml --author 'Ada, ticket 4711'
  bonafide policy publish policy.toml --version 18 --dir /var/lib/bonafide"
    )]
    Publish(PublishArgs),
    /// Shows which policy was published last (where the authority runs)
    #[command(after_help = "Exits 3 if none was published.

Example:
  bonafide policy published --text > policy.toml")]
    Published(PublishedArgs),
    /// Shows which version each node has in force, and which were refused and why (where the authority runs)
    #[command(
        after_help = "Exits 1 if the last version is not in force on every node, 3 if none was published. Of several authorities that share
a store, each knows of the nodes that are connected to itself."
    )]
    Status(StatusArgs),
}

/// What to check.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Policy files
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// How to say it; in the last two, all of it goes to standard output
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// How the outcome is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// One JSON object
    Json,
    /// The XML that CI systems read
    Junit,
}

/// Checks all files, whatever the first ones were like. Mistakes weigh more than tests that fail.
pub(crate) fn check(args: &CheckArgs, screen: &mut Screen) -> Result<Exit, Failure> {
    let checked: Vec<Checked> = args.files.iter().map(|file| Checked::file(file)).collect();
    match args.format {
        Format::Text => checked.iter().try_for_each(|file| file.tell(screen))?,
        Format::Json => screen.line(&report::json(&checked))?,
        Format::Junit => screen.line(&report::junit(&checked))?,
    }
    Ok(match checked.iter().map(Checked::exit).collect::<Vec<_>>() {
        exits if exits.contains(&Exit::BadInput) => Exit::BadInput,
        exits if exits.contains(&Exit::Refused) => Exit::Refused,
        _ => Exit::Done,
    })
}

/// A policy file, and what there is to say about it.
pub(crate) struct Checked {
    file: String,
    outcome: Outcome,
}

enum Outcome {
    Unreadable(String),
    Wrong(PolicyErrors),
    Right(Box<Policy>, Vec<CaseResult>),
}

impl Checked {
    fn file(path: &Path) -> Self {
        let file = path.display().to_string();
        let outcome = match text(path).map(|text| Policy::parse(&file, &text)) {
            Err(why) => Outcome::Unreadable(why),
            Ok(Err(errors)) => Outcome::Wrong(errors),
            Ok(Ok(policy)) => {
                let policy = policy.at(SystemClock.unix());
                let cases = policy.try_cases();
                Outcome::Right(Box::new(policy), cases)
            }
        };
        Self { file, outcome }
    }

    fn exit(&self) -> Exit {
        match &self.outcome {
            Outcome::Unreadable(_) | Outcome::Wrong(_) => Exit::BadInput,
            Outcome::Right(_, cases) if cases.iter().any(|case| case.failure.is_some()) => Exit::Refused,
            Outcome::Right(..) => Exit::Done,
        }
    }

    fn tell(&self, screen: &mut Screen) -> Result<(), Failure> {
        match &self.outcome {
            Outcome::Unreadable(why) => tell(&printable(why)),
            Outcome::Wrong(errors) => errors.to_string().lines().for_each(|line| tell(&printable(line))),
            Outcome::Right(policy, cases) => {
                screen.line(&summary(&self.file, policy, cases, screen))?;
                for (case, failure) in cases.iter().filter_map(|case| Some((case, case.failure.as_ref()?))) {
                    tell(&printable(&format!("{}:{}: test \"{}\" fails: {failure}", self.file, case.line, case.name)));
                }
            }
        }
        Ok(())
    }
}

/// The policy in this file, or its mistakes, one a line.
pub(crate) fn parse(file: &Path) -> Result<Policy, String> {
    Policy::parse(&file.display().to_string(), &text(file)?).map_err(|e| e.to_string())
}

/// The text of a policy file.
pub(crate) fn text(file: &Path) -> Result<String, String> {
    let name = file.display().to_string();
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|f| f.take(POLICY_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|e| format!("{name}: cannot be read: {e}"))?;
    String::from_utf8(bytes).map_err(|e| format!("{name}: is not UTF-8 text: {e}"))
}

fn summary(file: &str, policy: &Policy, cases: &[CaseResult], screen: &Screen) -> String {
    let name = printable(file);
    let failed = cases.iter().filter(|case| case.failure.is_some()).count();
    let verdict = if failed == 0 { screen.tint(Tone::Good, "ok") } else { screen.tint(Tone::Bad, "tests fail") };
    let tests = match (cases.len(), failed) {
        (0, _) => String::new(),
        (all, 0) => format!("{all} tests hold, "),
        (all, failed) => format!("{failed} of {all} tests fail, "),
    };
    format!(
        "{name}: {verdict}; mode {}, {} workloads, {tests}{}",
        policy.mode().as_str(),
        policy.workloads().count(),
        policy.digest()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::screen::tests::Kept;

    #[test]
    fn good_files_are_summed_up_and_one_bad_file_is_exit_code_2() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good.toml"), dir.path().join("bad.toml"));
        std::fs::write(&good, "mode = \"observe\"\n").unwrap();
        std::fs::write(&bad, "mode = \"sleep\"\n").unwrap();
        let out = Kept::default();
        let check = |files: &[PathBuf], screen: &mut Screen| {
            check(&CheckArgs { files: files.to_vec(), format: Format::Text }, screen).unwrap()
        };
        assert_eq!(check(std::slice::from_ref(&good), &mut Screen::on(out.clone())), Exit::Done);
        assert!(out.text().contains("good.toml: ok; mode observe, 0 workloads, sha256:"), "{}", out.text());
        assert_eq!(check(&[bad.clone(), good], &mut Screen::on(Kept::default())), Exit::BadInput);
        let mistakes = parse(&bad).unwrap_err();
        assert!(mistakes.contains("bad.toml:1:"), "{mistakes}");
    }

    #[test]
    fn a_test_that_fails_is_exit_code_3_and_a_mistake_weighs_more() {
        let dir = tempfile::tempdir().unwrap();
        let (failing, bad) = (dir.path().join("failing.toml"), dir.path().join("bad.toml"));
        let test = |name: &str, expect: &str| {
            format!("[[test]]\nname = '{name}'\nfrom = 'a'\nto = '192.0.2.1'\nport = 80\nexpect = '{expect}'\n")
        };
        let text = format!(
            "mode = 'enforce'\n[[workload]]\nname = 'a'\nexe = '/a'\n{}{}",
            test("x", "deny"),
            test("<y>", "allow")
        );
        std::fs::write(&failing, text).unwrap();
        std::fs::write(&bad, "mode = 'sleep'\n").unwrap();
        let run = |files: &[&PathBuf], format| {
            let out = Kept::default();
            let args = CheckArgs { files: files.iter().map(|file| (*file).clone()).collect(), format };
            (check(&args, &mut Screen::on(out.clone())).unwrap(), out.text())
        };
        let (exit, said) = run(&[&failing], Format::Text);
        assert_eq!(exit, Exit::Refused);
        assert!(said.contains("tests fail; mode enforce, 1 workloads, 1 of 2 tests fail, sha256:"), "{said}");
        let (exit, said) = run(&[&failing, &bad], Format::Json);
        assert_eq!(exit, Exit::BadInput);
        let json: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(json["files"][0]["tests"][0]["holds"], true);
        assert_eq!(
            (&json["files"][0]["tests"][1]["holds"], &json["files"][0]["tests"][1]["line"]),
            (&false.into(), &11.into())
        );
        assert_eq!(
            (&json["files"][1]["errors"][0]["line"], &json["files"][1]["errors"][0]["column"]),
            (&1.into(), &8.into())
        );
        let (exit, said) = run(&[&failing, &bad], Format::Junit);
        assert_eq!(exit, Exit::BadInput);
        assert!(said.contains("tests=\"3\" failures=\"1\" errors=\"0\""), "{said}");
        assert!(said.contains("name=\"&lt;y&gt;\"") && said.contains("<error message="), "{said}");
    }

    #[test]
    fn what_is_no_text_or_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        assert!(parse(&path).unwrap_err().contains("cannot be read"));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(parse(&path).unwrap_err().contains("is not UTF-8"));
    }
}
