//! `bonafide policy check`: reads policy files as identityd would, and names every mistake.

mod report;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use bonafide_policy::{CaseResult, ENTRIES_MAX, Lint, POLICY_MAX, Policy, PolicyErrors};
use bonafide_proto::clock::{Clock as _, SystemClock};
use bonafide_proto::edge::EdgeCount;

use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::printable::printable;
use crate::screen::{Screen, Tone, tell};
use crate::seen::{self, SeenArgs};

/// What to check.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Policy files
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub seen: SeenArgs,
    /// Warnings are failures, too
    #[arg(long)]
    pub deny_warnings: bool,
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
pub(crate) fn check(args: &CheckArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    // Only who asks for it has rules held against what was seen.
    let asked = args.seen.names_any();
    let edges = asked.then(|| seen::edges(&args.seen, layout)).transpose()?;
    let checked: Vec<Checked> = args.files.iter().map(|file| Checked::file(file, edges.as_deref())).collect();
    match args.format {
        Format::Text => checked.iter().try_for_each(|file| file.tell(screen))?,
        Format::Json => screen.line(&report::json(&checked))?,
        Format::Junit => screen.line(&report::junit(&checked))?,
    }
    let noticed = args.deny_warnings && checked.iter().any(|file| !file.lints().is_empty());
    Ok(match checked.iter().map(Checked::exit).collect::<Vec<_>>() {
        exits if exits.contains(&Exit::BadInput) => Exit::BadInput,
        exits if exits.contains(&Exit::Refused) || noticed => Exit::Refused,
        _ => Exit::Done,
    })
}

/// A policy that was understood, what it was read from, and what was tried and noticed.
struct Understood {
    policy: Policy,
    text: String,
    cases: Vec<CaseResult>,
    lints: Vec<Lint>,
}

/// A policy file, and what there is to say about it.
pub(crate) struct Checked {
    file: String,
    outcome: Outcome,
}

enum Outcome {
    Unreadable(String),
    Wrong(PolicyErrors),
    Right(Box<Understood>),
}

impl Checked {
    fn file(path: &Path, seen: Option<&[EdgeCount]>) -> Self {
        let file = path.display().to_string();
        let outcome = match text(path) {
            Err(why) => Outcome::Unreadable(why),
            Ok(text) => match Policy::parse(&file, &text) {
                Err(errors) => Outcome::Wrong(errors),
                Ok(policy) => {
                    let policy = policy.at(SystemClock.unix());
                    let (cases, mut lints) = (policy.try_cases(), policy.lint(&text));
                    lints.extend(seen.into_iter().flat_map(|edges| policy.never_hit(&text, edges)));
                    Outcome::Right(Box::new(Understood { policy, text, cases, lints }))
                }
            },
        };
        Self { file, outcome }
    }

    fn lints(&self) -> &[Lint] {
        match &self.outcome {
            Outcome::Right(understood) => &understood.lints,
            Outcome::Unreadable(_) | Outcome::Wrong(_) => &[],
        }
    }

    fn exit(&self) -> Exit {
        match &self.outcome {
            Outcome::Unreadable(_) | Outcome::Wrong(_) => Exit::BadInput,
            Outcome::Right(understood) if understood.cases.iter().any(|case| case.failure.is_some()) => Exit::Refused,
            Outcome::Right(..) => Exit::Done,
        }
    }

    fn tell(&self, screen: &mut Screen) -> Result<(), Failure> {
        match &self.outcome {
            Outcome::Unreadable(why) => tell(&printable(why)),
            Outcome::Wrong(errors) => errors.to_string().lines().for_each(|line| tell(&printable(line))),
            Outcome::Right(understood) => {
                let Understood { policy, text, cases, lints } = understood.as_ref();
                let at = |line| {
                    let (file, line) = bonafide_policy::line_in(&self.file, text, line);
                    format!("{file}:{line}")
                };
                screen.line(&summary(&self.file, policy, cases, screen))?;
                for (case, failure) in cases.iter().filter_map(|case| Some((case, case.failure.as_ref()?))) {
                    tell(&printable(&format!("{}: test \"{}\" fails: {failure}", at(case.line), case.name)));
                }
                for lint in lints {
                    let at = if lint.line > 0 { at(lint.line) } else { self.file.clone() };
                    let kind = lint.kind.as_str();
                    tell(&printable(&format!("{at}: warning: {} ({kind})", lint.message)));
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

/// The text of a policy file, put together with the files that it includes.
pub(crate) fn text(file: &Path) -> Result<String, String> {
    text_with(file, None)
}

/// The same, if one of the files had another text.
pub(crate) fn text_with(file: &Path, other: Option<(&Path, &str)>) -> Result<String, String> {
    let beside = file.parent().map(Path::to_owned).unwrap_or_default();
    let read = |file: &Path| match other {
        Some((changed, text)) if changed == file => Ok(text.to_owned()),
        _ => raw(file),
    };
    let included = |name: &str| read(&beside.join(name));
    bonafide_policy::assemble(&file.display().to_string(), &read(file)?, included, |name: &str| {
        names(&beside.join(name))
    })
    .map_err(|e| e.to_string())
}

/// The names in a directory. What is not UTF-8 in one is replaced, so that it is refused by name and not passed over.
fn names(directory: &Path) -> Result<Vec<String>, String> {
    let failed = |e: std::io::Error| format!("{}: cannot be read: {e}", directory.display());
    let entries = std::fs::read_dir(directory).map_err(failed)?.take(ENTRIES_MAX + 1);
    entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}

/// The text of a file as it is.
pub(crate) fn raw(file: &Path) -> Result<String, String> {
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
    fn included_files_are_read_beside_the_first_and_their_lines_are_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("teams")).unwrap();
        let (main, part) = (dir.path().join("main.toml"), dir.path().join("teams/a.toml"));
        std::fs::write(&main, "mode = \"enforce\"\ninclude = [\"teams/a.toml\"]\n").unwrap();
        std::fs::write(&part, "# ours\n[[workload]]\nname = \"a\"\nexe = 3\n").unwrap();
        let wrong = parse(&main).unwrap_err();
        assert!(wrong.starts_with("teams/a.toml:4:7: exe must be a string"), "{wrong}");
        std::fs::write(&part, "[[workload]]\nname = \"a\"\nexe = \"/a\"\n").unwrap();
        assert_eq!(parse(&main).unwrap().workloads().count(), 1);
        std::fs::remove_file(&part).unwrap();
        let gone = parse(&main).unwrap_err();
        assert!(
            gone.contains("main.toml:2:1: \"teams/a.toml\" is included, and ") && gone.contains("cannot be read"),
            "{gone}"
        );
    }

    #[test]
    fn good_files_are_summed_up_and_one_bad_file_is_exit_code_2() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good.toml"), dir.path().join("bad.toml"));
        std::fs::write(&good, "mode = \"observe\"\n").unwrap();
        std::fs::write(&bad, "mode = \"sleep\"\n").unwrap();
        let out = Kept::default();
        let check = |files: &[PathBuf], screen: &mut Screen| {
            check(
                &CheckArgs {
                    files: files.to_vec(),
                    seen: SeenArgs::default(),
                    deny_warnings: false,
                    format: Format::Text,
                },
                &Layout::new("."),
                screen,
            )
            .unwrap()
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
            let args = CheckArgs {
                files: files.iter().map(|file| (*file).clone()).collect(),
                seen: SeenArgs::default(),
                deny_warnings: false,
                format,
            };
            (check(&args, &Layout::new("."), &mut Screen::on(out.clone())).unwrap(), out.text())
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
