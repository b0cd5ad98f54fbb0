//! `bonafide quarantine`: a digest that nobody may run as anybody any more, on every node of the mesh.

use std::path::PathBuf;

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::wire::authority::{ListQuarantineRequest, QuarantineRequest, QuarantineResponse, Quarantined};
use comfy_table::{Table, presets};

use crate::ask::{self, NoAnswer};
use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::printable::printable;
use crate::screen::Screen;
use crate::status::when;

/// Puts digests in quarantine, lifts it, or lists them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Where the authority runs; `bonafide run` without --authority has one of its own. One that was started by `bonafide-ca`
is asked by its --socket.

Every connected node is told at once, and counts as soon as it says that it has this in force; the others, named after
two seconds, are told when they come back. Ask again to see who has it. There, programs
with this digest are attested no longer, get no certificate, and their live connections end, idle ones too. A node that is cut off keeps what it was told, across restarts.

The digest is that of an executable, a script, code of a command line, one library, a set of libraries (as `bonafide
whois` shows it), or a container's image: of its config, or of its manifest where the runtime tells it. Nodes refuse
each other's programs by it, too, except by that of one library or of a manifest, which no certificate has. A digest
that no program has now matches nothing until one has it.

Examples:
  bonafide quarantine $(sha256sum /usr/sbin/nginx | cut -d' ' -f1) --reason CVE-2026-1234
  bonafide quarantine --list
  bonafide quarantine sha256:0f343b0931126a20f133d67c2b018a3b... --lift"
)]
pub struct QuarantineArgs {
    /// SHA-256 of an executable, a script, a library, a set of libraries or an image: 64 hex digits
    #[arg(required_unless_present = "list")]
    pub digest: Option<Digest>,
    /// Lift it
    #[arg(long, conflicts_with = "reason", requires = "digest")]
    pub lift: bool,
    /// Why, for whoever lists it: one line
    #[arg(long, value_name = "TEXT", requires = "digest", value_parser = reason)]
    pub reason: Option<String>,
    /// List what is in quarantine
    #[arg(long, conflicts_with_all = ["digest", "lift", "reason"])]
    pub list: bool,
    /// The authority's admin socket, if it is not a node's or in DIR
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// The longest reason, in bytes.
const REASON_MAX: usize = 256;

pub(crate) fn reason(text: &str) -> Result<String, String> {
    match text.len() <= REASON_MAX && !text.chars().any(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err(format!("a reason is one line of at most {REASON_MAX} bytes, without control characters")),
    }
}

/// Asks the authority.
pub(crate) fn quarantine(args: &QuarantineArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    match args.digest {
        Some(digest) => change(digest, args, layout, screen),
        None => list(args, layout, screen),
    }
}

fn socket(args: &QuarantineArgs, layout: &Layout) -> PathBuf {
    args.socket.clone().unwrap_or_else(|| layout.authority_socket())
}

fn change(digest: Digest, args: &QuarantineArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let socket = socket(args, layout);
    let reason = args.reason.clone().unwrap_or_default();
    let request = QuarantineRequest { sha256: digest.0.to_vec(), lift: args.lift, reason };
    let answer = ask::block_on(async { ask::ask(&socket, ask::admission(&socket).quarantine(request)).await })?;
    screen.line(&outcome(digest, args.lift, &answer.map_err(|e| elsewhere(e, layout))?))?;
    Ok(Exit::Done)
}

fn outcome(digest: Digest, lift: bool, answer: &QuarantineResponse) -> String {
    let what = match (lift, answer.changed) {
        (false, true) => "is in quarantine",
        (false, false) => "was in quarantine before",
        (true, true) => "is in quarantine no longer",
        (true, false) => "was not in quarantine",
    };
    printable(&format!("{digest} {what}; {}", in_force(answer))).into_owned()
}

/// Who has it in force, and who does not yet.
pub(crate) fn in_force(answer: &QuarantineResponse) -> String {
    let QuarantineResponse { told, nodes, untold, .. } = answer;
    let mut text = format!("in force on {told} of {nodes} nodes");
    if !untold.is_empty() {
        let unnamed = nodes.saturating_sub(*told).saturating_sub(u32::try_from(untold.len()).unwrap_or(u32::MAX));
        let more = if unnamed == 0 { String::new() } else { format!(" and {unnamed} more") };
        text += &format!(", on {}{more} as soon as they come back", untold.join(", "));
    }
    text
}

fn list(args: &QuarantineArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let socket = socket(args, layout);
    let request = ListQuarantineRequest {};
    let answer = ask::block_on(async { ask::ask(&socket, ask::admission(&socket).list_quarantine(request)).await })?;
    let answer = answer.map_err(|e| elsewhere(e, layout))?;
    screen.line(&table(&answer.quarantined)?)?;
    Ok(Exit::Done)
}

/// A node whose authority is on another host has no such socket.
pub(crate) fn elsewhere(e: NoAnswer, layout: &Layout) -> Failure {
    match e {
        NoAnswer::NoSocket(asked) if asked == layout.authority_socket() && layout.ca_socket().exists() => {
            Failure::Failed("this node's authority runs on another host; run this there".to_owned())
        }
        other => other.into(),
    }
}

fn table(quarantined: &[Quarantined]) -> Result<String, Failure> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).force_no_tty();
    table.set_header(["DIGEST", "SINCE", "REASON"]);
    for one in quarantined {
        let digest = Digest::try_from(one.sha256.as_slice());
        let digest = digest.map_err(|e| Failure::Failed(format!("the authority's answer: a digest {e}")))?;
        table.add_row([digest.to_string(), when(one.since), printable(&one.reason).into_owned()]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|l| l.trim_end().to_owned()).collect();
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Typed {
        #[command(flatten)]
        args: QuarantineArgs,
    }

    fn typed(args: &[&str]) -> Result<QuarantineArgs, clap::Error> {
        Typed::try_parse_from([&["quarantine"], args].concat()).map(|typed| typed.args)
    }

    #[test]
    fn a_digest_is_put_in_or_lifted_and_a_list_is_asked_for_alone() {
        let digest = Digest([7; 32]).to_string();
        assert_eq!(typed(&[&digest]).unwrap().digest, Some(Digest([7; 32])));
        assert_eq!(typed(&[&digest[7..], "--reason", "leaked"]).unwrap().reason.as_deref(), Some("leaked"));
        assert!(typed(&[&digest, "--lift"]).unwrap().lift);
        assert!(typed(&["--list"]).unwrap().list);
        for wrong in [
            &[] as &[&str],
            &["sha256:07"],
            &[&digest, "--list"],
            &["--lift"],
            &["--reason", "x", "--list"],
            &[&digest, "--lift", "--reason", "x"],
            &[&digest, "--reason", "two\nlines"],
        ] {
            typed(wrong).unwrap_err();
        }
    }

    #[test]
    fn the_answer_says_who_was_told() {
        let said = |lift, changed, told, untold: &[&str]| {
            let untold = untold.iter().map(ToString::to_string).collect();
            outcome(Digest([7; 32]), lift, &QuarantineResponse { changed, told, nodes: 3, untold })
        };
        assert!(said(false, true, 3, &[]).ends_with("07 is in quarantine; in force on 3 of 3 nodes"));
        let some = said(true, true, 1, &["b", "c\u{1b}"]);
        assert!(
            some.ends_with("no longer; in force on 1 of 3 nodes, on b, c\\u{1b} as soon as they come back"),
            "{some}"
        );
        assert!(said(false, false, 1, &["b"]).ends_with("1 of 3 nodes, on b and 1 more as soon as they come back"));
        assert!(said(true, false, 3, &[]).ends_with("07 was not in quarantine; in force on 3 of 3 nodes"));
    }

    #[test]
    fn the_list_shows_since_when_and_why() {
        let one = Quarantined { sha256: vec![7; 32], since: 86_400, reason: "stolen\u{1b}".into() };
        let text = table(std::slice::from_ref(&one)).unwrap();
        assert!(text.starts_with("DIGEST ") && text.contains("1970-01-02T00:00:00Z  stolen\\u{1b}"), "{text}");
        assert!(table(&[Quarantined { sha256: vec![7; 31], ..one }]).is_err());
    }
}
