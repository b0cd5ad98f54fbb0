//! `bonafide audit`: shows what the CA did, and checks that nobody changed the record of it.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use bonafide_proto::audit::{Broken, Chain, Head};
use bonafide_proto::endpoint;
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::wire::node::issuance_client::IssuanceClient;
use bonafide_proto::wire::{authority, node};

use crate::ask::{self, NoAnswer};
use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::screen::Screen;

/// The audit chains.
#[derive(Debug, clap::Subcommand)]
pub enum AuditCommand {
    /// Checks that no entry was changed, taken out or put in; names the first that does not fit
    #[command(
        after_help = "Checks the chain of this node's CA, and that of the authority where one runs here. The check is done by this
program, on the bytes that the daemons keep.

Whoever can write everything on the authority's host can also write a whole new chain. To notice that, keep what this
prints somewhere else, and hold the chain against it later by --seen.

Exits 3 if something does not fit.

Example:
  bonafide audit verify --seen 4711:sha256:0f343b0931126a20f133d67c2b018a3b..."
    )]
    Verify(VerifyArgs),
    /// Prints the entries, a line of JSON each
    #[command(
        after_help = "Each line but the first names the digest of the line before it (sha256sum, without the end of the line).

Example:
  bonafide audit show | jq 'select(.act == \"admission-refused\")'"
    )]
    Show(ShowArgs),
}

/// Which chains to check.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The admin socket of an authority; its chain alone is checked
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// An entry of the authority's chain that was there before, as it was printed
    #[arg(long, value_name = "NUMBER:DIGEST")]
    pub seen: Option<Seen>,
}

/// Which entries to print.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// The admin socket of an authority
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The chain of this node's CA, also where an authority runs
    #[arg(long, conflicts_with = "socket")]
    pub node: bool,
    /// The first entry's number
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub from: u64,
}

/// An entry that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen(u64, Digest);

impl FromStr for Seen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (number, digest) = text.split_once(':').ok_or("it is a number, ':' and a digest")?;
        let number = number.parse().map_err(|_| format!("{number:?} is not a number"))?;
        Ok(Self(number, digest.parse().map_err(|e| format!("the digest {e}"))?))
    }
}

/// Where a chain is.
enum Source {
    Authority(PathBuf),
    Node(PathBuf),
}

impl Source {
    fn name(&self) -> &'static str {
        match self {
            Self::Authority(_) => "authority",
            Self::Node(_) => "node",
        }
    }

    async fn page(&self, from: u64) -> Result<(Vec<u8>, Vec<Vec<u8>>), NoAnswer> {
        match self {
            Self::Authority(socket) => {
                let request = authority::ShowAuditRequest { from };
                let page = ask::ask(socket, ask::admission(socket).show_audit(request)).await?;
                Ok((page.head, page.entries))
            }
            Self::Node(socket) => {
                let request = node::ShowAuditRequest { from };
                let mut client = IssuanceClient::new(endpoint::channel(socket));
                let page = ask::ask(socket, client.show_audit(request)).await?;
                Ok((page.head, page.entries))
            }
        }
    }

    /// Every entry up to where the chain ended when the first was asked for.
    async fn each(
        &self,
        from: u64,
        mut take: impl FnMut(&Head, &[u8]) -> Result<(), Failure>,
    ) -> Result<Head, Failure> {
        let (head, mut entries) = self.page(from).await?;
        let head: Head = serde_json::from_slice(&head)
            .map_err(|e| Failure::Failed(format!("the {}'s answer: where the chain ends: {e}", self.name())))?;
        let mut next = from.max(head.first);
        while !entries.is_empty() && next <= head.sequence {
            for entry in &entries {
                if next <= head.sequence {
                    take(&head, entry)?;
                }
                next = next.saturating_add(1);
            }
            (_, entries) = self.page(next).await?;
        }
        Ok(head)
    }
}

/// Does what was asked.
pub(crate) fn audit(command: &AuditCommand, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    match command {
        AuditCommand::Verify(args) => verify(args, layout, screen),
        AuditCommand::Show(args) => show(args, layout, screen),
    }
}

fn show(args: &ShowArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let source = match (&args.socket, args.node) {
        (Some(socket), _) => Source::Authority(socket.clone()),
        (None, true) => Source::Node(layout.ca_socket()),
        (None, false) => one_of(sources(layout)?)?,
    };
    ask::block_on(source.each(args.from, |_, entry| Ok(screen.line(&String::from_utf8_lossy(entry))?)))??;
    Ok(Exit::Done)
}

fn verify(args: &VerifyArgs, layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let sources = match &args.socket {
        Some(socket) => vec![Source::Authority(socket.clone())],
        None => sources(layout)?,
    };
    for source in sources {
        let seen = args.seen.filter(|_| matches!(source, Source::Authority(_)));
        screen.line(&ask::block_on(check(&source, seen))??)?;
    }
    Ok(Exit::Done)
}

async fn check(source: &Source, seen: Option<Seen>) -> Result<String, Failure> {
    let broken = |e: Broken| Failure::Refused(format!("the {}'s audit chain does not fit: {e}", source.name()));
    let mut chain: Option<Chain> = None;
    let mut found = seen.is_none();
    let head = source
        .each(0, |head, bytes| {
            let entry = chain.get_or_insert_with(|| Chain::of(head)).take(bytes).map_err(broken)?;
            found |= seen == Some(Seen(entry.sequence, Digest::of(bytes)));
            Ok(())
        })
        .await?;
    chain.unwrap_or_else(|| Chain::of(&head)).end(&head).map_err(broken)?;
    match seen {
        Some(Seen(number, digest)) if !found && number >= head.first => {
            let why = format!("is not {digest}, which was seen: the chain was written anew");
            Err(broken(Broken { sequence: number, why }))
        }
        Some(Seen(number, _)) if !found => {
            Ok(format!("{}: entry {number}, which was seen, was dropped for its age; {}", source.name(), fits(&head)))
        }
        _ => Ok(format!("{}: {}", source.name(), fits(&head))),
    }
}

fn fits(head: &Head) -> String {
    let Head { sequence, digest, first, .. } = head;
    match sequence {
        0 => "no entry yet".to_owned(),
        _ => format!("entries {first} to {sequence} fit; the last one is {sequence}:{digest}"),
    }
}

/// The chains on this host.
fn sources(layout: &Layout) -> Result<Vec<Source>, Failure> {
    let (authority, node) = (layout.authority_socket(), layout.ca_socket());
    let here = |path: &Path| path.exists();
    let mut sources = Vec::new();
    if here(&authority) {
        sources.push(Source::Authority(authority));
    }
    if here(&node) {
        sources.push(Source::Node(node.clone()));
    }
    match sources.is_empty() {
        true => Err(NoAnswer::NoSocket(node).into()),
        false => Ok(sources),
    }
}

fn one_of(sources: Vec<Source>) -> Result<Source, Failure> {
    sources.into_iter().next().ok_or_else(|| Failure::Failed("no CA runs here".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_verify_prints_is_what_seen_takes() {
        let head = Head { sequence: 7, digest: Digest([7; 32]), ..Head::default() };
        let text = fits(&head);
        let printed = text.rsplit(' ').next().unwrap();
        assert_eq!(printed.parse(), Ok(Seen(7, Digest([7; 32]))), "{text}");
        for wrong in ["", "7", "x:sha256:00", "7:sha256:00"] {
            wrong.parse::<Seen>().unwrap_err();
        }
    }
}
