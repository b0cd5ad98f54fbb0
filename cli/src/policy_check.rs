//! `bonafide policy`, and of it `check`: reads policy files as identityd would, and names every mistake.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use bonafide_policy::{POLICY_MAX, Policy};

use crate::exit::{Exit, Failure};
use crate::policy_explain::ExplainArgs;
use crate::policy_publish::{PublishArgs, PublishedArgs, StatusArgs};
use crate::printable::printable;
use crate::screen::{Screen, Tone, tell};

/// Works with policies.
#[derive(Debug, clap::Subcommand)]
pub enum PolicyCommand {
    /// Checks policy files; prints every mistake with file, line and column
    #[command(after_help = "Exits 2 if a file has a mistake or cannot be read. Nothing is changed, no daemon is asked.

Examples:
  bonafide policy check /etc/bonafide/policy.toml
  bonafide policy check policy-examples/*.toml")]
    Check {
        /// Policy files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
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

/// Checks all files, whatever the first ones were like.
pub(crate) fn check(files: &[PathBuf], screen: &mut Screen) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    for file in files {
        match parse(file) {
            Ok(policy) => screen.line(&summary(file, &policy, screen))?,
            Err(mistakes) => {
                exit = Exit::BadInput;
                mistakes.lines().for_each(|line| tell(&printable(line)));
            }
        }
    }
    Ok(exit)
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

fn summary(file: &Path, policy: &Policy, screen: &Screen) -> String {
    let name = printable(&file.display().to_string()).into_owned();
    let ok = screen.tint(Tone::Good, "ok");
    format!(
        "{name}: {ok}; mode {}, {} workloads, {}",
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
        assert_eq!(check(std::slice::from_ref(&good), &mut Screen::on(out.clone())).unwrap(), Exit::Done);
        assert!(out.text().contains("good.toml: ok; mode observe, 0 workloads, sha256:"), "{}", out.text());
        assert_eq!(check(&[bad.clone(), good], &mut Screen::on(Kept::default())).unwrap(), Exit::BadInput);
        let mistakes = parse(&bad).unwrap_err();
        assert!(mistakes.contains("bad.toml:1:"), "{mistakes}");
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
