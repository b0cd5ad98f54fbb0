//! `bonafide workload pending`: digests that policy does not list yet, as this node has seen them.

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::wire::node::{ListPendingRequest, PendingDigest};
use comfy_table::{Table, presets};

use crate::ask;
use crate::exit::{Exit, Failure};
use crate::node::Layout;
use crate::printable::printable;
use crate::screen::Screen;
use crate::status::when;

/// Lists them.
pub(crate) fn pending(layout: &Layout, screen: &mut Screen) -> Result<Exit, Failure> {
    let all = told(layout)?;
    if all.is_empty() {
        screen
            .line("No new digest of a workload whose policy says what becomes of new ones ([[workload]] releases).")?;
    } else {
        screen.line(&table(&all)?)?;
    }
    Ok(Exit::Done)
}

/// What identityd knows of them.
pub(super) fn told(layout: &Layout) -> Result<Vec<PendingDigest>, Failure> {
    let socket = layout.identityd_socket();
    let question = async { ask::ask(&socket, ask::attestation(&socket).list_pending(ListPendingRequest {})).await };
    Ok(ask::block_on(question)??.pending)
}

pub(super) fn digest(one: &PendingDigest) -> Result<Digest, Failure> {
    Digest::try_from(one.sha256.as_slice()).map_err(|e| Failure::Failed(format!("identityd's answer: a digest {e}")))
}

fn table(all: &[PendingDigest]) -> Result<String, Failure> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).force_no_tty();
    table.set_header(["WORKLOAD", "SELECTOR", "DIGEST", "STATE", "SINCE", "PATH"]);
    for one in all {
        let state = match one.until {
            0 => one.state.clone(),
            until => format!("{} until {}", one.state, when(until)),
        };
        let row = [one.workload.clone(), one.selector.clone(), digest(one)?.to_string(), state, when(one.since)];
        table.add_row(row.iter().chain([&one.path]).map(|cell| printable(cell).into_owned()));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_with_its_state_and_hostile_paths_are_harmless() {
        let one = PendingDigest {
            workload: "shop/api".into(),
            selector: "sha256".into(),
            sha256: vec![7; 32],
            path: "/a\u{1b}b".into(),
            since: 1_800_000_000,
            state: "in-grace".into(),
            until: 1_800_003_600,
        };
        let text = table(&[one.clone(), PendingDigest { state: "pending".into(), until: 0, ..one.clone() }]).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("in-grace until 2027-01-15") && !lines[1].contains('\u{1b}'), "{text}");
        assert!(lines[2].contains(&format!("{}  pending  ", Digest([7; 32]))), "{text}");
        assert!(table(&[PendingDigest { sha256: vec![7], ..one }]).is_err());
    }
}
