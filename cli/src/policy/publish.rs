//! `bonafide policy publish`, `published` and `status`: the policy that the authority signs and tells to every node.

use std::path::{Path, PathBuf};

use bonafide_policy::Policy;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::signed_policy::{AUTHOR_MAX, TEXT_MAX};
use bonafide_proto::wire::authority::{
    PolicyAt, PolicyPublished, PublishPolicyRequest, PublishedPolicyRequest, PublishedPolicyResponse,
};
use comfy_table::{Table, presets};

use crate::ask::{self, NoAnswer};
use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::policy::check;
use crate::printable::printable;
use crate::screen::Screen;
use crate::status::when;

/// The longest answer that is read, in bytes: one can carry a policy.
const ANSWER_MAX: usize = TEXT_MAX + (1 << 20);

/// What to publish.
#[derive(Debug, clap::Args)]
pub struct PublishArgs {
    /// The policy
    pub file: PathBuf,
    /// Whose policy it is, for whoever looks: one line
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = author)]
    pub author: String,
    /// Its number, above all that nodes hold [default: the next]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub version: Option<u64>,
    /// The authority's admin socket, if it is not a node's or in DIR
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Which authority is asked.
#[derive(Debug, clap::Args)]
pub struct PublishedArgs {
    /// Print the policy itself, and nothing else
    #[arg(long)]
    pub text: bool,
    /// The authority's admin socket, if it is not a node's or in DIR
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Which authority is asked.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// The authority's admin socket, if it is not a node's or in DIR
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Checks what is written as an author.
pub(crate) fn author(text: &str) -> Result<String, String> {
    match text.len() <= AUTHOR_MAX && !text.chars().any(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err(format!("an author is one line of at most {AUTHOR_MAX} bytes, without control characters")),
    }
}

/// Publishes a policy that has no mistake.
pub(crate) fn publish(args: &PublishArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let (_, text) = publishable(&args.file)?;
    let (author, version) = (args.author.clone(), args.version.unwrap_or(0));
    let request = PublishPolicyRequest { text, author, version, ..Default::default() };
    order(request, args.socket.as_ref(), layout, screen)?;
    Ok(Exit::Done)
}

/// A policy file without a mistake, as it is and as it was understood.
pub(crate) fn publishable(file: &Path) -> Result<(Policy, String), Failure> {
    let shown = |why: String| Failure::BadInput(why.lines().map(printable).collect::<Vec<_>>().join("\n"));
    let text = check::text(file).map_err(shown)?;
    let name = file.display().to_string();
    let policy = Policy::parse(&name, &text).map_err(|e| shown(e.to_string()))?;
    if text.len() > TEXT_MAX {
        return Err(shown(format!("{name}: it is longer than {TEXT_MAX} bytes")));
    }
    Ok((policy, text))
}

/// Has a policy published, and says where it is in force; its number.
pub(crate) fn order(
    request: PublishPolicyRequest,
    named: Option<&PathBuf>,
    layout: &Layout,
    screen: &mut Screen,
) -> Result<u64, Failure> {
    let socket = socket(named, layout);
    let answer = ask::block_on(async { ask::ask(&socket, ask::admission(&socket).publish_policy(request)).await })?;
    let answer = answer.map_err(|e| match e {
        NoAnswer::Said(why) => Failure::Refused(format!("the authority published nothing: {why}")),
        _ => e.into(),
    })?;
    let published = answer.published.unwrap_or_default();
    screen.line(&outcome(&published, &answer.nodes))?;
    Ok(published.version)
}

/// Shows what was published last.
pub(crate) fn published(args: &PublishedArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let answer = ask_published(args.socket.as_ref(), layout, args.text)?;
    let Some(published) = answer.published else { return Err(nothing()) };
    match args.text {
        // TOML has none of these, and a screen would obey them.
        true if answer.text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) => {
            return Err(Failure::Failed("the published text has control characters, and is not shown".to_owned()));
        }
        true => screen.line(answer.text.strip_suffix('\n').unwrap_or(&answer.text))?,
        false => screen.line(&facts(&published)?)?,
    }
    Ok(Exit::Done)
}

/// Shows where what was published is in force.
pub(crate) fn status(args: &StatusArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let answer = ask_published(args.socket.as_ref(), layout, false)?;
    let Some(published) = answer.published else { return Err(nothing()) };
    screen.line(&facts(&published)?)?;
    screen.line(&table(&answer.nodes))?;
    let everywhere = answer.nodes.iter().all(|at| at.in_force == published.version);
    Ok(if everywhere { Exit::Done } else { Exit::Failed })
}

fn nothing() -> Failure {
    Failure::Refused("the authority has published no policy yet; bonafide policy publish FILE".to_owned())
}

/// Where the authority is asked.
pub(crate) fn socket(named: Option<&PathBuf>, layout: &Layout) -> PathBuf {
    named.cloned().unwrap_or_else(|| layout.authority_socket())
}

/// What was published last.
pub(crate) fn ask_published(
    named: Option<&PathBuf>,
    layout: &Layout,
    with_text: bool,
) -> Result<PublishedPolicyResponse, Failure> {
    let socket = socket(named, layout);
    let request = PublishedPolicyRequest { with_text };
    let answer = ask::block_on(async {
        let mut admission = ask::admission(&socket).max_decoding_message_size(ANSWER_MAX);
        ask::ask(&socket, admission.published_policy(request)).await
    })?;
    Ok(answer?)
}

/// One version in a line.
pub(crate) fn facts(published: &PolicyPublished) -> Result<String, Failure> {
    let digest = Digest::try_from(published.sha256.as_slice());
    let digest = digest.map_err(|e| Failure::Failed(format!("the authority's answer: a digest {e}")))?;
    let by = match published.author.as_str() {
        "" => String::new(),
        author => format!(" by {}", printable(author)),
    };
    let waits = match published.unconfirmed_until {
        0 => String::new(),
        until => format!("; not confirmed: at {} version {} comes back", when(until), published.back_to),
    };
    Ok(format!("version {}, published {}{by}, {digest}{waits}", published.version, when(published.created)))
}

/// Where a version is in force, and why not elsewhere.
pub(crate) fn outcome(published: &PolicyPublished, nodes: &[PolicyAt]) -> String {
    let version = published.version;
    let in_force = nodes.iter().filter(|at| at.in_force >= version).count();
    let mut text = format!("version {version} is published; in force on {in_force} of {} nodes", nodes.len());
    for at in nodes.iter().filter(|at| at.in_force < version) {
        text += &format!("\n  {}: {}", printable(&at.node), printable(&trouble(at, version)));
    }
    text
}

/// Why it is not in force there.
fn trouble(at: &PolicyAt, version: u64) -> String {
    match at {
        PolicyAt { following: false, .. } => {
            "not connected to this authority; it is told when it comes back".to_owned()
        }
        PolicyAt { refused, .. } if !refused.is_empty() => format!("refused: {refused}"),
        PolicyAt { in_force: 0, kept, .. } if *kept >= version => {
            "it has the policy, and judges by a file of its own (or not yet by this)".to_owned()
        }
        PolicyAt { in_force: 0, .. } => "nothing of the authority's is in force yet".to_owned(),
        PolicyAt { in_force, .. } => format!("version {in_force} is still in force"),
    }
}

fn table(nodes: &[PolicyAt]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).force_no_tty();
    table.set_header(["NODE", "FOLLOWS", "HAS", "IN FORCE", "REFUSED"]);
    let number = |version: u64| if version == 0 { "-".to_owned() } else { version.to_string() };
    for at in nodes {
        let row = [
            at.node.clone(),
            if at.following { "yes" } else { "no" }.to_owned(),
            number(at.kept),
            number(at.in_force),
            at.refused.clone(),
        ];
        table.add_row(row.map(|text| printable(&text).into_owned()));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|l| l.trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(node: &str, in_force: u64) -> PolicyAt {
        PolicyAt { node: node.into(), following: true, kept: 7, in_force, refused: String::new() }
    }

    #[test]
    fn the_answer_says_where_it_is_in_force_and_why_not() {
        let published = PolicyPublished { version: 7, ..PolicyPublished::default() };
        assert_eq!(outcome(&published, &[at("a", 7)]), "version 7 is published; in force on 1 of 1 nodes");
        let nodes = [
            at("a", 7),
            at("b", 6),
            at("c", 0),
            PolicyAt { following: false, ..at("d", 0) },
            PolicyAt { refused: "unreadable-policy:\u{1b}".into(), ..at("e", 6) },
        ];
        let said = outcome(&published, &nodes);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], "version 7 is published; in force on 1 of 5 nodes");
        assert_eq!(lines[1], "  b: version 6 is still in force");
        assert!(lines[2].contains("a file of its own") && lines[3].contains("when it comes back"), "{said}");
        assert_eq!(lines[4], "  e: refused: unreadable-policy:\\u{1b}");
    }

    #[test]
    fn the_table_has_a_line_for_each_node() {
        let text = table(&[at("a", 7), PolicyAt { kept: 0, ..at("b", 0) }]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1..], [vec!["a", "yes", "7", "7"], vec!["b", "yes", "-", "-"]]);
    }

    #[test]
    fn facts_name_the_author_if_there_is_one() {
        let mut published = PolicyPublished { version: 7, created: 86_400, sha256: vec![7; 32], ..Default::default() };
        assert!(facts(&published).unwrap().starts_with("version 7, published 1970-01-02T00:00:00Z, sha256:0707"));
        published.author = "Ada\u{1b}".into();
        assert!(facts(&published).unwrap().contains("Z by Ada\\u{1b}, sha256:"));
        published.sha256.pop();
        facts(&published).unwrap_err();
        assert!(author("two\nlines").is_err() && author(&"x".repeat(257)).is_err());
    }
}
