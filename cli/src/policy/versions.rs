//! `bonafide policy confirm`, `rollback` and `history`: the versions of the published policy.

use std::num::NonZero;
use std::path::PathBuf;

use bonafide_proto::signed_policy::TEXT_MAX;
use bonafide_proto::wire::authority::{
    ConfirmPolicyRequest, PolicyHistoryRequest, PolicyHistoryResponse, PolicyPublished, RollBackPolicyRequest,
};
use similar::TextDiff;

use crate::ask;
use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::policy::publish::{ask_published, facts, outcome, socket};
use crate::printable::printable;
use crate::screen::Screen;

/// The longest answer that is read, in bytes: one can carry a policy.
const ANSWER_MAX: usize = TEXT_MAX + (1 << 20);
/// Clock ticks of `/proc/PID/stat` in a second (proc(5): `sysconf(_SC_CLK_TCK)`, 100 on every Linux port).
const TICKS: i64 = 100;

/// Which version stays.
#[derive(Debug, clap::Args)]
pub struct ConfirmArgs {
    /// The version that was published last [default: whichever waits]
    pub version: Option<u64>,
    /// Confirm from this login, although it is older than the version
    #[arg(long)]
    pub from_here: bool,
    /// The authority's admin socket, if it is not a node's or in DIR
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Which version comes back.
#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    /// Its number [default: the last one with another text]
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    pub to: Option<u64>,
    /// The authority's admin socket, if it is not a node's or in DIR
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// What to show of the versions.
#[derive(Debug, clap::Args)]
pub struct HistoryArgs {
    /// What this version changed, line by line
    #[arg(long, value_name = "VERSION", conflicts_with = "text", value_parser = clap::value_parser!(u64).range(1..))]
    pub diff: Option<u64>,
    /// The text of this version, and nothing else
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    pub text: Option<u64>,
    /// The authority's admin socket, if it is not a node's or in DIR
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Who locked themselves out cannot log in anew, and so cannot confirm.
pub(crate) fn confirm(args: &ConfirmArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let published = ask_published(args.socket.as_ref(), layout, false)?.published.unwrap_or_default();
    let version = args.version.unwrap_or(published.version);
    if version == published.version && !args.from_here {
        newer(login_began(), published.created)?;
    }
    let socket = socket(args.socket.as_ref(), layout);
    let request = ConfirmPolicyRequest { version };
    let answer = ask::block_on(async { ask::ask(&socket, ask::admission(&socket).confirm_policy(request)).await })?;
    screen.line(&facts(&answer?)?)?;
    Ok(Exit::Done)
}

/// Both times in unix seconds.
fn newer(login: Option<i64>, version: i64) -> Result<(), Failure> {
    let why = match login {
        Some(began) if began > version => return Ok(()),
        Some(_) => "this login is older than the version, so it proves nothing about new connections",
        None => "when this login began cannot be told from here, so it proves nothing about new connections",
    };
    Err(Failure::Refused(format!("{why}; log in anew, or say --from-here")))
}

/// When the leader of this session started, unix seconds; none if that cannot be told, which it cannot of a leader
/// that is dead, or outside of this PID namespace.
fn login_began() -> Option<i64> {
    let leader = leader(&std::fs::read_to_string("/proc/self/stat").ok()?)?;
    let stat = std::fs::read_to_string(format!("/proc/{leader}/stat")).ok()?;
    let boot = std::fs::read_to_string("/proc/stat").ok()?;
    began(&stat, &boot)
}

/// From `/proc/self/stat` (field 6, session), where 0 is a process that has no number here: `pid_namespaces(7)`.
fn leader(stat: &str) -> Option<NonZero<u32>> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(3)?.parse().ok()
}

/// From `/proc/PID/stat` (field 22, starttime) and `/proc/stat` (`btime`). See proc(5).
fn began(stat: &str, boot: &str) -> Option<i64> {
    // The name may hold anything, parentheses too.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: i64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let boot: i64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    boot.checked_add(ticks / TICKS)
}

/// One command back to what was before.
pub(crate) fn rollback(args: &RollbackArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let socket = socket(args.socket.as_ref(), layout);
    let request = RollBackPolicyRequest { version: args.to.unwrap_or(0) };
    let answer = ask::block_on(async { ask::ask(&socket, ask::admission(&socket).roll_back_policy(request)).await })??;
    let published = answer.published.unwrap_or_default();
    screen.line(&outcome(&published, &answer.nodes))?;
    screen.line(&facts(&published)?)?;
    Ok(Exit::Done)
}

/// Every version that is kept, or what is asked of one.
pub(crate) fn history(args: &HistoryArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let asked = args.diff.or(args.text).unwrap_or(0);
    let known = ask_history(args, asked, layout)?;
    if known.versions.is_empty() {
        return Err(Failure::Refused("the authority has published no policy yet".to_owned()));
    }
    if args.text.is_some() {
        return shown(&known.text, screen);
    }
    let Some(version) = args.diff else {
        known.versions.iter().try_for_each(|version| Ok::<(), Failure>(screen.line(&facts(version)?)?))?;
        return Ok(Exit::Done);
    };
    let before = before(&known.versions, version);
    let old = match before {
        0 => String::new(),
        before => ask_history(args, before, layout)?.text,
    };
    shown(&unified(&old, before, &known.text, version), screen)
}

fn ask_history(args: &HistoryArgs, text_of: u64, layout: &Layout) -> Result<PolicyHistoryResponse, Failure> {
    let socket = socket(args.socket.as_ref(), layout);
    let answer = ask::block_on(async {
        let mut admission = ask::admission(&socket).max_decoding_message_size(ANSWER_MAX);
        ask::ask(&socket, admission.policy_history(PolicyHistoryRequest { text_of })).await
    })?;
    Ok(answer?)
}

/// The version that this one replaced; 0: none that is kept.
fn before(versions: &[PolicyPublished], version: u64) -> u64 {
    versions.iter().map(|v| v.version).find(|v| *v < version).unwrap_or(0)
}

fn unified(old: &str, before: u64, new: &str, version: u64) -> String {
    let names = (format!("version {before}"), format!("version {version}"));
    TextDiff::from_lines(old, new).unified_diff().header(&names.0, &names.1).to_string()
}

/// Policies are printable but for what TOML allows in comments and strings.
fn shown(text: &str, screen: &mut Screen) -> Result<Exit, Failure> {
    text.lines().try_for_each(|line| screen.line(&printable(line)))?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_began_with_its_leader() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1";
        assert_eq!(began(stat, "cpu 1\nbtime 1000\nprocesses 4\n"), Some(1123));
        for (stat, boot) in [("7 (a) S 1", "btime 1"), (stat, "cpu 1"), ("", "")] {
            assert_eq!(began(stat, boot), None);
        }
        assert!(login_began().is_none_or(|began| began > 0));
    }

    #[test]
    fn a_leader_of_another_pid_namespace_proves_nothing() {
        assert_eq!(leader("9 (a ) b) S 1 7 6 0 -1").map(NonZero::get), Some(6));
        for stat in ["9 (a) S 1 7 0 0 -1", "9 (a) S 1 7", "9 (a) S 1 7 -6 0", ""] {
            assert_eq!(leader(stat), None);
        }
        assert!(newer(Some(8), 7).is_ok());
        for login in [None, Some(6), Some(7)] {
            assert!(newer(login, 7).is_err());
        }
    }

    #[test]
    fn a_version_is_shown_beside_the_one_it_replaced() {
        let versions: Vec<_> = [9, 7, 4].map(|version| PolicyPublished { version, ..Default::default() }).into();
        assert_eq!([9, 7, 4].map(|version| before(&versions, version)), [7, 4, 0]);
        let text = unified("a\nb\n", 4, "a\nc\n", 7);
        assert_eq!(text, "--- version 4\n+++ version 7\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n");
    }
}
