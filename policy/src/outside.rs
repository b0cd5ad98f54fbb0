//! Outsides: named addresses that are not in the mesh and prove nothing.

use ipnet::IpNet;

use crate::fault::Faults;
use crate::names::{End, Names};
use crate::ports::Ports;
use crate::prefix::{self, PrefixMap};
use crate::table::Table;
use crate::workload::read_name;

/// The most `mesh` prefixes: each outside prefix is compared with each of them.
const MESH_MAX: usize = 1024;
/// The most prefixes of all outsides together.
const OUTSIDE_MAX: usize = 65_536;

/// Addresses that rules may name.
#[derive(Debug, Clone)]
pub(crate) struct Outside {
    /// What rules call it. Empty only while the file is known to be wrong.
    pub(crate) name: String,
    /// The ports dialled there.
    pub(crate) ports: Ports,
    /// Its shortest prefix has so many host bits: which of two is the narrower.
    pub(crate) size: u8,
    /// It is a whole address family, or both.
    pub(crate) is_everywhere: bool,
}

/// Every outside, with the map from addresses to them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outsides {
    /// In the order of the file.
    pub(crate) list: Vec<Outside>,
    /// Positions in `list` by address.
    pub(crate) by_address: PrefixMap,
}

/// Reads `mesh`; absent means that nothing but loopback is in the mesh.
pub(crate) fn read_mesh(policy: &Table<'_>, faults: &mut Faults<'_>) -> Vec<IpNet> {
    let texts = policy.texts("mesh", faults).unwrap_or_default();
    if texts.len() > MESH_MAX {
        faults.wrong(policy.place("mesh"), format!("mesh has more than {MESH_MAX} prefixes; merge neighbours"));
        return Vec::new();
    }
    texts.into_iter().filter_map(|text| prefix::parse(text, faults)).collect()
}

/// Reads every `[[outside]]`.
pub(crate) fn read<'t>(
    tables: &[Table<'t>],
    mesh: &[IpNet],
    names: &mut Names<'t>,
    faults: &mut Faults<'_>,
) -> Outsides {
    let mut outsides = Outsides::default();
    let mut prefixes = 0;
    for (position, table) in (0..).zip(tables) {
        let name = read_name(table, End::Outside(position), names, faults);
        let nets = read_prefixes(table, mesh, faults);
        prefixes += nets.len();
        if prefixes > OUTSIDE_MAX {
            let remedy = "merge neighbours";
            faults.wrong(table.at, format!("the outsides have more than {OUTSIDE_MAX} prefixes; {remedy}"));
            break;
        }
        let size = nets.iter().map(|net| net.max_prefix_len() - net.prefix_len()).max().unwrap_or_default();
        let is_everywhere = nets.iter().any(|net| net.prefix_len() == 0);
        for net in nets {
            outsides.by_address.insert(net, position);
        }
        let ports = Ports::read(table, faults);
        let name = name.map(|n| n.to_string()).unwrap_or_default();
        outsides.list.push(Outside { name, ports, size, is_everywhere });
    }
    outsides
}

fn read_prefixes(table: &Table<'_>, mesh: &[IpNet], faults: &mut Faults<'_>) -> Vec<IpNet> {
    let mut nets = Vec::new();
    for text in table.required_texts("prefixes", faults).unwrap_or_default() {
        let Some(net) = prefix::parse(text, faults) else { continue };
        match conflict(&net, mesh) {
            Some(problem) => faults.wrong(text.at, format!("the prefix \"{net}\" {problem}")),
            None => nets.push(net),
        }
    }
    nets
}

/// Why addresses of a prefix would not be outside.
///
/// A whole address family is no conflict: it means every address of it that is not in the mesh, and
/// writing the Internet with the mesh cut out would take dozens of prefixes that nobody could check.
fn conflict(net: &IpNet, mesh: &[IpNet]) -> Option<String> {
    if prefix::is_loopback(net) {
        return Some("is loopback, which always belongs to the mesh; remove it".to_owned());
    }
    let other = mesh.iter().find(|m| prefix::overlap(m, net))?;
    if net.prefix_len() == 0 && other.prefix_len() > 0 {
        return None;
    }
    let all = if net.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    let remedy = format!("leave that part out (\"{all}\" means every address outside the mesh)");
    Some(format!("overlaps \"{other}\", which is in the mesh; {remedy}"))
}
