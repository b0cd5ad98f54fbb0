//! `bonafide revoke`, and `bonafide node evict`, `ban` and `unban`: what nobody in the mesh accepts any more.

use std::path::PathBuf;

use bonafide_proto::name::{NodeName, WorkloadName};
use bonafide_proto::revoked::Serial;
use bonafide_proto::wire::authority::revoke_request::What;
use bonafide_proto::wire::authority::{BanRequest, ListRevokedRequest, QuarantineResponse, RevokeRequest, RevokedOne};
use comfy_table::{Table, presets};

use crate::ask;
use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::printable::printable;
use crate::quarantine::{elsewhere, in_force, reason};
use crate::screen::Screen;
use crate::status::when;

/// What to take back.
#[derive(Debug, clap::Subcommand)]
#[command(
    after_help = "Where the authority runs. Every connected node is told at once: live connections end whose certificate, at either end, is
revoked, and new ones are refused. Who is away learns it before anything else when it comes back. The records say
node-revoked, workload-revoked or serial-revoked.

Examples:
  bonafide revoke node web1 --reason 'stolen'      # the same as `bonafide node evict web1`
  bonafide revoke workload shop/web                # nobody is shop/web any more, until this is lifted
  bonafide revoke serial 4a:0b:…:ff                # one certificate, as flow records name it (tls.peer_serial)
  bonafide revoke list"
)]
pub enum RevokeCommand {
    /// All that a node issued so far; it has to join anew with a new token. Lifted, it may renew what it has
    Node(RevokeArgs<NodeName>),
    /// A workload, on every node
    Workload(RevokeArgs<WorkloadName>),
    /// A single certificate of a program, until it expires
    Serial(RevokeArgs<Serial>),
    /// Lists what is revoked, and until when
    List {
        /// The authority's admin socket, if it is not a node's or in DIR
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
}

/// What to revoke, or to lift.
#[derive(Debug, clap::Args)]
pub struct RevokeArgs<T>
where
    T: Clone + Send + Sync + std::str::FromStr + 'static,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    /// Which
    #[arg(value_name = "NAME")]
    pub what: T,
    /// Lift it
    #[arg(long, conflicts_with = "reason")]
    pub lift: bool,
    /// Why, for whoever lists it: one line
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: Option<String>,
    /// The authority's admin socket, if it is not a node's or in DIR
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// A node to send away.
#[derive(Debug, clap::Args)]
pub struct AwayArgs {
    /// The node
    pub node: NodeName,
    /// Why, for whoever lists it: one line
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: Option<String>,
    /// The authority's admin socket, if it is not a node's or in DIR
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// A node that may come again.
#[derive(Debug, clap::Args)]
pub struct UnbanArgs {
    /// The node
    pub node: NodeName,
    /// The authority's admin socket, if it is not a node's or in DIR
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Asks the authority.
pub(crate) fn revoke(command: RevokeCommand, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let (what, named, lift, reason, socket) = match command {
        RevokeCommand::List { socket } => return list(socket, layout, screen),
        RevokeCommand::Node(RevokeArgs { what, lift, reason, socket }) => {
            (What::Node(what.to_string()), format!("what node {what} issued"), lift, reason, socket)
        }
        RevokeCommand::Workload(RevokeArgs { what, lift, reason, socket }) => {
            (What::Workload(what.to_string()), format!("workload {what}"), lift, reason, socket)
        }
        RevokeCommand::Serial(RevokeArgs { what, lift, reason, socket }) => {
            (What::Serial(what.bytes()), format!("certificate {what}"), lift, reason, socket)
        }
    };
    let socket = socket.unwrap_or_else(|| layout.authority_socket());
    let is_node = matches!(what, What::Node(_));
    let request = RevokeRequest { what: Some(what), lift, reason: reason.unwrap_or_default() };
    let answer = ask::block_on(async { ask::ask(&socket, ask::admission(&socket).revoke(request)).await })?;
    let answer = answer.map_err(|e| elsewhere(e, layout))?;
    let outcome = match (lift, answer.changed) {
        (false, true) => "is revoked",
        (false, false) => "was revoked before",
        (true, true) if is_node => "stays revoked, and the node may renew",
        (true, true) => "is revoked no longer",
        (true, false) => "was not revoked",
    };
    screen.line(&told(&format!("{named} {outcome}"), &answer))?;
    Ok(Exit::Done)
}

/// Sends a node away: it has to join anew.
pub(crate) fn evict(args: AwayArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let AwayArgs { node: what, reason, socket } = args;
    revoke(RevokeCommand::Node(RevokeArgs { what, lift: false, reason, socket }), layout, screen)
}

/// Sends a node away for good.
pub(crate) fn ban(args: AwayArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let AwayArgs { node, reason, socket } = args;
    let request = BanRequest { node: node.to_string(), lift: false, reason: reason.unwrap_or_default() };
    let answer = banned(request, socket, layout)?;
    let outcome = if answer.changed { "is banned" } else { "was banned before" };
    screen.line(&told(&format!("node {node} {outcome}"), &answer))?;
    Ok(Exit::Done)
}

/// Lets a node join again.
pub(crate) fn unban(args: UnbanArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let UnbanArgs { node, socket } = args;
    let request = BanRequest { node: node.to_string(), lift: true, reason: String::new() };
    let outcome = match banned(request, socket, layout)?.changed {
        true => "is banned no longer, and has to join with a new token",
        false => "was not banned",
    };
    screen.line(&format!("node {node} {outcome}"))?;
    Ok(Exit::Done)
}

fn banned(request: BanRequest, socket: Option<PathBuf>, layout: &Layout) -> Result<QuarantineResponse, Failure> {
    let socket = socket.unwrap_or_else(|| layout.authority_socket());
    let answer = ask::block_on(async { ask::ask(&socket, ask::admission(&socket).ban(request)).await })?;
    answer.map_err(|e| elsewhere(e, layout))
}

fn told(what: &str, answer: &QuarantineResponse) -> String {
    printable(&format!("{what}; {}", in_force(answer))).into_owned()
}

fn list(socket: Option<PathBuf>, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let socket = socket.unwrap_or_else(|| layout.authority_socket());
    let answer =
        ask::block_on(async { ask::ask(&socket, ask::admission(&socket).list_revoked(ListRevokedRequest {})).await })?;
    screen.line(&table(&answer.map_err(|e| elsewhere(e, layout))?.revoked))?;
    Ok(Exit::Done)
}

fn table(revoked: &[RevokedOne]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).force_no_tty();
    table.set_header(["KIND", "WHAT", "SINCE", "UNTIL", "REASON"]);
    for one in revoked {
        let through = if one.through == 0 { String::new() } else { format!(" up to number {}", one.through) };
        let until = if one.until == 0 { "lifted".to_owned() } else { when(one.until) };
        let row = [one.kind.clone(), format!("{}{through}", one.what), when(one.since), until, one.reason.clone()];
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
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Typed {
        #[command(subcommand)]
        command: RevokeCommand,
    }

    #[test]
    fn what_is_revoked_is_named_by_its_kind() {
        let typed = |args: &[&str]| Typed::try_parse_from([&["revoke"], args].concat()).map(|typed| typed.command);
        assert!(matches!(typed(&["node", "a", "--reason", "stolen"]), Ok(RevokeCommand::Node(args)) if !args.lift));
        assert!(matches!(typed(&["workload", "shop/web", "--lift"]), Ok(RevokeCommand::Workload(args)) if args.lift));
        let Ok(RevokeCommand::Serial(args)) = typed(&["serial", "4A:0B"]) else { panic!("no serial") };
        assert_eq!(args.what.as_str(), "4a0b");
        assert!(matches!(typed(&["list"]), Ok(RevokeCommand::List { .. })));
        for wrong in [&[][..], &["node"], &["node", "a/b"], &["serial", "xyz"], &["workload", "bonafide/x"]] {
            typed(wrong).unwrap_err();
        }
        typed(&["node", "a", "--lift", "--reason", "x"]).unwrap_err();
    }

    #[test]
    fn the_list_says_until_when() {
        let one = |kind: &str, through, until| RevokedOne {
            kind: kind.into(),
            what: "a".into(),
            through,
            until,
            since: 86_400,
            reason: "x\u{1b}".into(),
        };
        let text = table(&[one("node", 7, 172_800), one("workload", 0, 0)]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("a up to number 7") && lines[1].contains("1970-01-03T00:00:00Z"), "{text}");
        assert!(lines[2].contains("lifted") && lines[2].contains("x\\u{1b}"), "{text}");
    }
}
