//! `bonafide token` and `bonafide node`: what an operator asks of the authority, on its own host.

use std::path::PathBuf;

use bonafide_proto::grant::Grant;
use bonafide_proto::name::NodeName;
use bonafide_proto::wire::authority::{
    self, ClearSuspicionRequest, CreateTokenRequest, GrantNodeRequest, ListNodesRequest, Node,
};
use comfy_table::{Table, presets};

use crate::ask::{self, NoAnswer};
use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::printable::printable;
use crate::quarantine::in_force;
use crate::revoke::{AwayArgs, UnbanArgs};
use crate::screen::{Screen, tell};
use crate::status::when;

/// Join tokens.
#[derive(Debug, clap::Subcommand)]
pub enum TokenCommand {
    /// Creates a token that admits one node, once
    #[command(
        after_help = "The token is printed on stdout, when it expires on stderr. It is a secret: whoever has it can join.
It also pins the authority's certificate, so the node knows whom it joins.

A node that `bonafide run` started without --authority has an authority of its own, which admits no other node:
this is refused there (exit code 3). deploy/authority.toml.example shows how to run an authority for several.

Example:
  bonafide token create --node b --workloads 'shop/web,shop/api-*' --ttl 120 > b.token"
    )]
    Create(CreateArgs),
}

/// What a join token should be good for.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// The only name under which the node may join [default: any]
    #[arg(long)]
    pub node: Option<NodeName>,
    /// The only machine that may join with it, by its SMBIOS system UUID (/sys/class/dmi/id/product_uuid) [default: any]
    #[arg(long, value_name = "UUID")]
    pub bios_uuid: Option<String>,
    /// What it may issue: workloads, or prefixes with `*`, separated by commas [default: what that name was granted
    /// before, else nothing]
    #[arg(long, value_name = "NAMES")]
    pub workloads: Option<Grant>,
    /// Seconds until it expires, 1 to 600
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub ttl: u32,
}

/// Nodes of the trust domain.
#[derive(Debug, clap::Subcommand)]
pub enum NodeCommand {
    /// Lists the nodes that the authority admitted, and whether each is connected to be told what every member must know
    List,
    /// Sends a node away at once: what it issued is revoked, and it has to join anew with a new token
    Evict(AwayArgs),
    /// Sends a node away for good: it is evicted, and joins no more under this name or as this machine, until `unban`
    Ban(AwayArgs),
    /// Lets a banned node join again, with a new token
    Unban(UnbanArgs),
    /// Says that a suspect node is what it should be
    #[command(
        after_help = "`bonafide node list` calls a node suspect when somebody showed certificates of it that it had replaced, so that
two have its keys, or when it came as another machine than the one that joined. Those that showed it were refused, and
what superseded keys issued is revoked; the node itself goes on.

Look at the machine first. If its keys may have been copied, `bonafide node evict` it and let it join anew with a new
token: a new admission makes it unsuspected by itself. Clear it if the cause is known, such as a state that was restored
from a backup. It is suspect again as soon as it happens again. Both are in the audit chain (`bonafide audit show`).

Example:
  bonafide node clear web1 --reason 'restored from backup, ticket 4711'"
    )]
    Clear(AwayArgs),
    /// Says which workloads a node may issue
    #[command(
        after_help = "Every node refuses a program whose certificate was issued by a node that was not granted that workload. A grant that
becomes wider counts when the node renews its certificates next. One that becomes smaller counts at once: what the node
issued is revoked, its connections end, and it renews.

Examples:
  bonafide node grant web1 --workloads 'shop/web,shop/api-*'
  bonafide node grant web1 --workloads ''     # nothing"
    )]
    Grant(GrantArgs),
}

/// What a node may issue.
#[derive(Debug, clap::Args)]
pub struct GrantArgs {
    /// The node
    pub node: NodeName,
    /// Workloads, or prefixes with `*`, separated by commas
    #[arg(long, value_name = "NAMES")]
    pub workloads: Grant,
    /// The authority's admin socket, if it is not a node's or in DIR
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Tells the authority what a node may issue.
pub(crate) fn grant(args: &GrantArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let socket = args.socket.clone().unwrap_or_else(|| layout.authority_socket());
    let request = GrantNodeRequest { node: args.node.to_string(), grant: Some(wired(&args.workloads)) };
    let answer = ask::block_on(async { ask::ask(&socket, ask::admission(&socket).grant_node(request)).await })??;
    let may = match args.workloads.is_empty() {
        true => "nothing".to_owned(),
        false => args.workloads.to_string(),
    };
    let since = match (answer.changed, &answer.revoked) {
        (false, _) => "as before".to_owned(),
        (true, None) => "from its next renewal on".to_owned(),
        (true, Some(revoked)) => format!("and what it issued before is revoked; {}", in_force(revoked)),
    };
    screen.line(&printable(&format!("node {} may issue {may}, {since}", args.node)))?;
    Ok(Exit::Done)
}

/// Tells the authority that a node is suspect no longer.
pub(crate) fn clear(args: AwayArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let AwayArgs { node, reason, socket } = args;
    let socket = socket.unwrap_or_else(|| layout.authority_socket());
    let request = ClearSuspicionRequest { node: node.to_string(), reason: reason.unwrap_or_default() };
    let answer = ask::block_on(async { ask::ask(&socket, ask::admission(&socket).clear_suspicion(request)).await })??;
    let said = match answer.was.as_str() {
        "" => format!("node {node} was not suspect"),
        was => format!("node {node} is suspect no longer; it was, since {was}"),
    };
    screen.line(&printable(&said))?;
    Ok(Exit::Done)
}

fn wired(grant: &Grant) -> authority::Grant {
    authority::Grant { workloads: grant.patterns().map(ToOwned::to_owned).collect() }
}

/// Asks the authority for a token.
pub(crate) fn create_token(args: &CreateArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let socket = layout.authority_socket();
    let node = args.node.as_ref().map(ToString::to_string).unwrap_or_default();
    let grant = args.workloads.as_ref().map(wired);
    let bios_uuid = args.bios_uuid.clone().unwrap_or_default();
    let request = CreateTokenRequest { node, ttl_seconds: args.ttl, grant, bios_uuid };
    let answer = ask::block_on(async { ask::ask(&socket, ask::admission(&socket).create_token(request)).await })?;
    let answer = answer.map_err(|e| match e {
        NoAnswer::Said(why) => Failure::Refused(format!("the authority made no token: {why}")),
        _ => e.into(),
    })?;
    screen.line(&printable(&answer.token))?;
    tell(&format!("good for one node, until {}", when(answer.expires)));
    Ok(Exit::Done)
}

/// Asks the authority for its nodes.
pub(crate) fn list_nodes(layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let socket = layout.authority_socket();
    let answer =
        ask::block_on(async { ask::ask(&socket, ask::admission(&socket).list_nodes(ListNodesRequest {})).await })??;
    screen.line(&table(&answer.nodes))?;
    Ok(Exit::Done)
}

fn state(node: &Node) -> String {
    match node.suspect.as_str() {
        "" => node.state.clone(),
        why => format!("{}, suspect: {why}", node.state),
    }
}

fn granted(node: &Node) -> String {
    match node.grant.as_ref().map_or(&[][..], |grant| &grant.workloads) {
        [] => "nothing".to_owned(),
        workloads => workloads.join(","),
    }
}

fn table(nodes: &[Node]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).force_no_tty();
    table.set_header([
        "NAME",
        "STATE",
        "JOINED",
        "LAST RENEWED",
        "LAST SEEN",
        "MEMBER UNTIL",
        "FOLLOWS",
        "MAY ISSUE",
        "MACHINE-ID",
        "BIOS-UUID",
    ]);
    for node in nodes {
        let row = [
            node.name.clone(),
            state(node),
            when(node.joined),
            when(node.last_renewed),
            when(node.last_seen),
            when(node.not_after),
            if node.following { "yes" } else { "no" }.to_owned(),
            granted(node),
            node.machine_id.clone(),
            node.bios_uuid.clone(),
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

    #[test]
    fn nodes_are_listed_one_a_line() {
        let node = Node {
            name: "a".into(),
            machine_id: "m\u{7}".into(),
            not_after: 86400,
            following: true,
            state: "member".into(),
            suspect: "a copy of its key".into(),
            ..Node::default()
        };
        let text = table(&[node]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("NAME  STATE"), "{text}");
        assert!(lines[1].contains("member, suspect: a copy of its key"), "{text}");
        assert!(lines[1].contains("1970-01-02T00:00:00Z  yes") && lines[1].contains("m\\u{7}"), "{text}");
    }
}
