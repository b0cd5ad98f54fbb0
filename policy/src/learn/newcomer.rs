//! Programs that were seen and earn no workload: a `[[workload]]` for each, known by what its files and its unit are.

use std::collections::{BTreeMap, BTreeSet};

use bonafide_proto::edge::{Actor, EdgeCount};
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::WorkloadName;

use super::write::text;
use crate::policy::Policy;
use crate::replay::Replay;
use crate::section;

/// The longest name that is made up, in bytes.
const NAME_MAX: usize = 64;
/// The most workloads that are proposed at once.
const PROPOSED_MAX: usize = 1000;
/// The most digests that are shown of one program.
const DIGESTS_SHOWN: usize = 4;

/// What is proposed.
#[derive(Debug, Default)]
pub(super) struct Newcomers {
    pub(super) text: String,
    pub(super) workloads: usize,
}

/// What a program is known by; its digests change with every release.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Program {
    exe: String,
    script: Option<String>,
    unit: Option<String>,
    image: Option<Digest>,
}

impl Program {
    /// Of an actor that proved a program and against which nothing speaks.
    fn of(actor: &Actor) -> Option<Self> {
        let inline = actor.script.is_none() && actor.script_digest.is_some();
        let clean = actor.taints.is_empty() && !inline && actor.digest.is_some();
        let exe = actor.program.clone().filter(|_| clean)?;
        Some(Self { exe, script: actor.script.clone(), unit: actor.unit.clone(), image: actor.image })
    }

    /// After its unit, its script or its executable.
    fn name(&self) -> String {
        let of = self.unit.as_ref().or(self.script.as_ref()).unwrap_or(&self.exe);
        let file = of.rsplit('/').next().unwrap_or(of);
        let stem = match file.rsplit_once('.') {
            Some((stem, "service" | "scope" | "py" | "sh" | "rb" | "js" | "pl" | "jar")) => stem,
            _ => file,
        };
        let known = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' };
        let name: String = stem.chars().map(known).take(NAME_MAX).collect();
        let name = name.trim_matches('.').to_owned();
        if name.parse::<WorkloadName>().is_ok() { name } else { "program".to_owned() }
    }

    fn table(&self, name: &str, digests: &BTreeSet<Digest>) -> String {
        let mut table = String::new();
        let more = digests.len().saturating_sub(DIGESTS_SHOWN);
        let shown = digests.iter().take(DIGESTS_SHOWN).map(Digest::to_string).collect::<Vec<_>>().join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        table.push_str(&format!("# seen as {shown}{more}; pin it by sha256, if releases are to be approved\n"));
        table.push_str(&format!("[[workload]]\nname = {}\nexe = {}\n", text(name), text(&self.exe)));
        let script = self.script.as_ref().map(|script| format!("script = {}\n", text(script)));
        let image = self.image.map(|image| format!("image = \"{image}\"\n"));
        let unit = self.unit.as_ref().map(|unit| format!("unit = {}\n", text(unit)));
        table.extend([script, image, unit].into_iter().flatten());
        table
    }
}

/// The workloads that this policy lacks for these edges; only such as the whole policy takes.
pub(super) fn propose(file: &str, policy_text: &str, policy: &Policy, edges: &[EdgeCount]) -> Newcomers {
    let mut programs: BTreeMap<Program, BTreeSet<Digest>> = BTreeMap::new();
    let mut replay = Replay::of(policy, edges);
    for actor in edges.iter().flat_map(|count| [&count.edge.from, &count.edge.to]) {
        let Some(program) = Program::of(actor).filter(|_| replay.program(actor).is_err()) else { continue };
        programs.entry(program).or_default().extend(actor.digest);
    }
    let mut taken: BTreeSet<String> = policy.names();
    let tables: Vec<String> = programs
        .iter()
        .take(PROPOSED_MAX)
        .map(|(program, digests)| program.table(&free_name(&program.name(), &mut taken), digests))
        .collect();
    let fits = |tables: &[String]| Policy::parse(file, &section::with(policy_text, &tables.join("\n"))).is_ok();
    // Mostly all fit; else each is tried beside those that do.
    let kept = if fits(&tables) {
        tables
    } else {
        tables.into_iter().fold(Vec::new(), |mut kept, table| {
            kept.push(table);
            if !fits(&kept) {
                kept.pop();
            }
            kept
        })
    };
    Newcomers { workloads: kept.len(), text: kept.join("\n") }
}

/// A name that nobody has.
fn free_name(wanted: &str, taken: &mut BTreeSet<String>) -> String {
    let numbered = (2..).map(|number: u32| format!("{wanted}-{number}"));
    let name =
        std::iter::once(wanted.to_owned()).chain(numbered).find(|name| !taken.contains(name)).unwrap_or_default();
    taken.insert(name.clone());
    name
}
