//! `bonafide policy`: everything about policies, from a file to what is in force everywhere.

mod apply;
pub(crate) mod check;
mod diff;
mod explain;
pub(crate) mod fmt;
mod learn;
pub(crate) mod publish;
mod readiness;
mod versions;

use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::screen::Screen;
use apply::ApplyArgs;
use check::CheckArgs;
use diff::DiffArgs;
use explain::ExplainArgs;
use fmt::FmtArgs;
use learn::LearnArgs;
pub use publish::{PublishArgs, PublishedArgs, StatusArgs};
use readiness::ReadinessArgs;
use versions::{ConfirmArgs, HistoryArgs, RollbackArgs};

/// Works with policies.
#[derive(Debug, clap::Subcommand)]
pub enum PolicyCommand {
    /// Checks policy files; prints every mistake with file, line and column
    #[command(
        after_help = "Runs the [[test]] tables of each file, too. Exits 2 if a file has a mistake or cannot be read, 3 if a test fails.
Warnings name rules that decide nothing or open too much, and what no rule uses; --deny-warnings makes them failures.
With --since or --seen also rules that decided nothing of what was seen.
Nothing is changed, no daemon is asked.

Examples:
  bonafide policy check /etc/bonafide/policy.toml
  bonafide policy check --since 30d /etc/bonafide/policy.toml
  bonafide policy check --format junit policy-examples/*.toml > report.xml"
    )]
    Check(CheckArgs),
    /// Says for each application whether it can be enforced, and what holds it back
    #[command(
        after_help = "An application is the value of its workloads' label `app`, or the part of their names before the first /. It is ready if
something was seen of it, and everything that was seen is allowed. Exits 3 if one is not.

Examples:
  bonafide policy readiness policy.toml --since 14d
  bonafide policy readiness policy.toml --since 14d --app shop --seen a.jsonl --seen b.jsonl"
    )]
    Readiness(ReadinessArgs),
    /// Writes policy files in one way: fields in order, one space, one empty line; comments stay
    #[command(
        after_help = "A file is replaced in one step, and only if it means the same and has the same comments afterwards. With --check it exits
3 if a file is written otherwise, and changes none.

Examples:
  bonafide policy fmt policy.toml
  bonafide policy fmt --check *.toml"
    )]
    Fmt(FmtArgs),
    /// Prints the JSON Schema of policies, for editors
    #[command(after_help = "Example:\n  bonafide policy schema > policy.schema.json")]
    Schema,
    /// Says which rule of a policy file decides a connection, and what would allow it
    #[command(
        after_help = "Exits 0 if it is allowed, 3 if it is denied, 2 if the file has a mistake. No daemon is asked.

Examples:
  bonafide policy explain policy.toml --from shop/web --to shop/db --port 5432
  bonafide policy explain policy.toml --from shop/web --to 192.0.2.1 --port 443"
    )]
    Explain(ExplainArgs),
    /// Proposes what a policy lacks for the flows that were seen
    #[command(
        after_help = "Reads flow records (or exported edges), and prints the [[workload]], [[group]] and [[rule]] tables that would let through
exactly what was let through then; what is left out is told on stderr, and why. Nothing is changed. Never proposed: any to
any, a peer that nobody identified, an interpreter without a script, what a guard or a denying rule is about.

Examples:
  bonafide policy learn policy.toml --since 7d >> policy.toml
  bonafide policy learn policy.toml --seen host-a.jsonl --seen host-b.jsonl"
    )]
    Learn(LearnArgs),
    /// Shows what a new policy would deny and let through of the flows that were seen
    #[command(
        after_help = "Programs are identified again by both policies. Exits 3 if something that was allowed would be denied.

Examples:
  bonafide policy diff new.toml --since 30d
  bonafide policy diff new.toml --old policy.toml --seen host-a.jsonl --seen host-b.jsonl --json"
    )]
    Diff(DiffArgs),
    /// Shows what a policy would change of the flows that were seen, then publishes it (where the authority runs)
    #[command(
        after_help = "Exits 3, and publishes nothing, if something that was allowed would be denied and --yes is not given. With
--confirm-within, the authority itself takes the version back in time, whatever became of this login.

Examples:
  bonafide policy apply policy.toml --seen host-a.jsonl --seen host-b.jsonl --author 'Ada, ticket 4711'
  bonafide policy apply policy.toml --confirm-within 5m"
    )]
    Apply(ApplyArgs),
    /// Makes a policy stay that was applied with --confirm-within (where the authority runs)
    #[command(
        after_help = "From a new login: whoever locked themselves out cannot make one. Exits 3 if this login is older."
    )]
    Confirm(ConfirmArgs),
    /// Publishes an earlier version again (where the authority runs)
    #[command(
        after_help = "The authority keeps the last one and twenty before it. It comes back under the next number.

Examples:
  bonafide policy rollback
  bonafide policy rollback --to 17"
    )]
    Rollback(RollbackArgs),
    /// Shows the versions that were published: when, by whom, what each changed (where the authority runs)
    #[command(after_help = "Examples:
  bonafide policy history
  bonafide policy history --diff 18")]
    History(HistoryArgs),
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

/// Does what was typed.
pub(crate) fn policy(command: PolicyCommand, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    match command {
        PolicyCommand::Check(args) => check::check(&args, layout, screen),
        PolicyCommand::Explain(args) => explain::explain(&args, screen),
        PolicyCommand::Schema => schema(screen),
        PolicyCommand::Fmt(args) => fmt::fmt(&args, screen),
        PolicyCommand::Learn(args) => learn::learn(&args, layout, screen),
        PolicyCommand::Diff(args) => diff::diff(&args, layout, screen),
        PolicyCommand::Readiness(args) => readiness::readiness(&args, layout, screen),
        PolicyCommand::Apply(args) => apply::apply(&args, layout, screen),
        PolicyCommand::Confirm(args) => versions::confirm(&args, layout, screen),
        PolicyCommand::Rollback(args) => versions::rollback(&args, layout, screen),
        PolicyCommand::History(args) => versions::history(&args, layout, screen),
        PolicyCommand::Publish(args) => publish::publish(&args, layout, screen),
        PolicyCommand::Published(args) => publish::published(&args, layout, screen),
        PolicyCommand::Status(args) => publish::status(&args, layout, screen),
    }
}

fn schema(screen: &mut Screen) -> Result<Exit, Failure> {
    bonafide_policy::schema().lines().try_for_each(|line| screen.line(line))?;
    Ok(Exit::Done)
}
