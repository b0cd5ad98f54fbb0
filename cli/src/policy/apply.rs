//! `bonafide policy apply`: shows what a policy would change of what was seen, then publishes it; on trial, if that is wanted.

use std::path::PathBuf;

use bonafide_policy::Policy;
use bonafide_proto::clock::{Clock as _, SystemClock};
use bonafide_proto::wire::authority::PublishPolicyRequest;

use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::policy::diff;
use crate::policy::publish::{ask_published, author, order, publishable};
use crate::printable::printable;
use crate::screen::Screen;
use crate::seen::{self, SeenArgs};

/// What to apply, and how carefully.
#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// The policy
    pub file: PathBuf,
    /// Whose policy it is, for whoever looks: one line
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = author)]
    pub author: String,
    /// Unless `policy confirm` is run within this time (5s to 1d, like 5m), the version before comes back
    #[arg(long, value_name = "AGE", value_parser = within)]
    pub confirm_within: Option<u32>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print them")]
    pub seen: SeenArgs,
    /// Publish it although it denies what was allowed
    #[arg(long)]
    pub yes: bool,
    /// The authority's admin socket, if it is not a node's or in DIR
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

fn within(text: &str) -> Result<u32, String> {
    let seconds = seen::seconds(text).and_then(|seconds| u32::try_from(seconds).ok());
    let right = seconds.filter(|seconds| (5..=86_400).contains(seconds));
    right.ok_or_else(|| "write 5s to 1d, for example 5m".to_owned())
}

/// Exit code 3, and nothing is published, if something that was allowed would be denied and nobody said yes.
pub(crate) fn apply(args: &ApplyArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let (new, text) = publishable(&args.file)?;
    if compare(args, new, layout, screen)? == Exit::Refused && !args.yes {
        let why = "something that was allowed would be denied; --yes publishes it all the same";
        return Err(Failure::Refused(format!("nothing is published: {why}")));
    }
    let confirm_within = args.confirm_within.unwrap_or(0);
    let request = PublishPolicyRequest { text, author: args.author.clone(), confirm_within, ..Default::default() };
    let version = order(request, args.socket.as_ref(), layout, screen)?;
    if let Some(seconds) = args.confirm_within {
        screen.line(&format!(
            "on trial: unless it is confirmed within {seconds} s, the version before comes back. From a new login:\n  \
             bonafide policy confirm {version}"
        ))?;
    }
    Ok(Exit::Done)
}

/// The policy beside the one that was published last, on what was seen.
fn compare(args: &ApplyArgs, new: Policy, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let published = ask_published(args.socket.as_ref(), layout, true)?;
    if published.published.is_none() {
        screen.line("nothing was published before, so there is nothing to compare with")?;
        return Ok(Exit::Done);
    }
    if args.seen.is_own() && !layout.enforcer_socket().exists() && !layout.records().exists() {
        let named = "name files by --seen, or nodes by --node";
        let why = format!("what would change is not known: no node in {}; {named}", layout.dir().display());
        screen.line(&printable(&why))?;
        return Ok(Exit::Done);
    }
    let old = Policy::parse("the published policy", &published.text);
    let old = old.map_err(|e| Failure::Failed(printable(&e.to_string()).into_owned()))?;
    let now = SystemClock.unix();
    let diff = old.at(now).diff(&new.at(now), &seen::edges(&args.seen, layout)?);
    diff::show(&diff, false, screen)?;
    Ok(if diff.denied.is_empty() { Exit::Done } else { Exit::Refused })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_takes_five_seconds_to_a_day() {
        assert_eq!((within("5m"), within("5s"), within("1d")), (Ok(300), Ok(5), Ok(86_400)));
        for wrong in ["4s", "2d", "5", "m", "-5m", ""] {
            within(wrong).unwrap_err();
        }
    }
}
