//! What a policy makes of edges that were recorded: who was at both ends, in its words, and what it decides.
//!
//! The policy that was in force then may have called them otherwise: whoever proved a program is identified again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bonafide_proto::container::Container;
use bonafide_proto::edge::{Actor, EdgeCount};
use bonafide_proto::fingerprint::{Digest, Evidence, Fingerprint, HashedFile, Host, Script, Unit};
use bonafide_proto::name::WorkloadName;
use bonafide_proto::observed::Protocol;
use bonafide_proto::record::End;

use crate::decide::Subject;
use crate::fault::quoted;
use crate::identify::Identified;
use crate::policy::{Place, Policy};

/// Selectors about evidence that edges keep: where one of these fails, the name is not earned. Others may hold all the same.
const KEPT: [&str; 8] = ["exe", "sha256", "script", "script_sha256", "unit", "uid", "nodes", "allow_taints"];

/// One end of an edge in the words of a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// It earns this workload.
    Workload(WorkloadName),
    /// It proved nothing, and is outside the mesh.
    Address(IpAddr),
}

impl Who {
    /// As a decision takes it.
    #[must_use]
    pub fn subject(&self) -> Subject<'_> {
        match self {
            Self::Workload(name) => Subject::Workload(name),
            Self::Address(addr) => Subject::Outside(SocketAddr::new(*addr, 0)),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(name) => name.fmt(f),
            Self::Address(addr) => addr.fmt(f),
        }
    }
}

/// Why an end has no name in a policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Nameless {
    /// A program is known, and earns nothing.
    Program(String),
    /// Only an address in the mesh is known.
    Peer(String),
    /// The node at the other end recorded the same flows and knows.
    ToldByTheOtherEnd,
}

/// Who connected, and who listened.
pub(crate) type Ends = (Who, Who);

/// A policy, and what it needs to look at edges.
#[derive(Debug)]
pub(crate) struct Replay<'h> {
    policy: &'h Policy,
    earned: HashMap<&'h Actor, Result<WorkloadName, String>>,
    /// Who listens there, as the nodes there recorded it: several, if it changed.
    listeners: HashMap<(IpAddr, u16, Protocol), BTreeSet<Result<WorkloadName, String>>>,
    /// What sources recorded: from where, to where.
    dialled: HashSet<(IpAddr, IpAddr, u16, Protocol)>,
}

impl<'h> Replay<'h> {
    /// Looks through all edges for who listens where.
    pub(crate) fn of(policy: &'h Policy, edges: &'h [EdgeCount]) -> Self {
        let mut replay = Self { policy, earned: HashMap::new(), listeners: HashMap::new(), dialled: HashSet::new() };
        for EdgeCount { edge, seen } in edges {
            match edge.end {
                End::Destination if edge.to.program.is_some() => {
                    let who = replay.program(&edge.to);
                    // Loopback is another host's on each: there one node knows both ends.
                    for addr in seen.to_addrs.iter().filter(|addr| !addr.is_loopback()) {
                        let listeners = replay.listeners.entry((*addr, edge.port, edge.protocol)).or_default();
                        listeners.insert(who.clone());
                    }
                }
                End::Destination => {}
                End::Source => {
                    let pairs = seen.from_addrs.iter().flat_map(|from| seen.to_addrs.iter().map(move |to| (from, to)));
                    replay.dialled.extend(pairs.map(|(from, to)| (*from, *to, edge.port, edge.protocol)));
                }
            }
        }
        replay
    }

    /// Who was at both ends.
    pub(crate) fn ends(&mut self, edge: &'h EdgeCount) -> Result<Ends, Nameless> {
        Ok((self.from(edge)?, self.to(edge)?))
    }

    fn from(&mut self, EdgeCount { edge, seen }: &'h EdgeCount) -> Result<Who, Nameless> {
        if let Some(found) = self.named(&edge.from) {
            return found;
        }
        let addrs = addresses(&edge.from, &seen.from_addrs);
        let told = |addr: &IpAddr| {
            seen.to_addrs.iter().any(|to| self.dialled.contains(&(*addr, *to, edge.port, edge.protocol)))
        };
        if edge.end == End::Destination && addrs.iter().all(told) && !addrs.is_empty() {
            return Err(Nameless::ToldByTheOtherEnd);
        }
        self.outside(&addrs)
    }

    fn to(&mut self, EdgeCount { edge, seen }: &'h EdgeCount) -> Result<Who, Nameless> {
        if let Some(found) = self.named(&edge.to) {
            return found;
        }
        let addrs = addresses(&edge.to, &seen.to_addrs);
        let mut known =
            addrs.iter().filter_map(|addr| self.listeners.get(&(*addr, edge.port, edge.protocol))).flatten();
        let Some(listener) = known.next() else { return self.outside(&addrs) };
        if known.any(|other| other != listener) {
            let several = format!("several programs listened on port {} there", edge.port);
            return Err(Nameless::Peer(several));
        }
        listener.clone().map(Who::Workload).map_err(Nameless::Program)
    }

    /// None if nothing is known of it but addresses.
    fn named(&mut self, actor: &'h Actor) -> Option<Result<Who, Nameless>> {
        if actor.workload.is_none() && actor.program.is_none() {
            return None;
        }
        Some(self.program(actor).map(Who::Workload).map_err(Nameless::Program))
    }

    /// The workload that a program earns, or why it earns none.
    pub(crate) fn program(&mut self, actor: &'h Actor) -> Result<WorkloadName, String> {
        let policy = self.policy;
        self.earned.entry(actor).or_insert_with(|| earned(policy, actor)).clone()
    }

    /// Of several addresses outside the newest stands for all: they were in one `[[outside]]` when they were recorded.
    fn outside(&self, addrs: &[IpAddr]) -> Result<Who, Nameless> {
        let in_mesh = addrs.iter().find(|addr| self.policy.place(**addr) == Place::Mesh);
        match (in_mesh, addrs.last()) {
            (Some(addr), _) => Err(Nameless::Peer(format!("{addr} is in the mesh, and no record says which program"))),
            (None, Some(newest)) => Ok(Who::Address(*newest)),
            (None, None) => Err(Nameless::Peer("no address was recorded".to_owned())),
        }
    }
}

fn addresses(actor: &Actor, seen: &[IpAddr]) -> Vec<IpAddr> {
    match actor.addr {
        Some(addr) => vec![addr],
        None => seen.to_vec(),
    }
}

/// The workload that this policy sees in an actor; else why it sees none.
fn earned(policy: &Policy, actor: &Actor) -> Result<WorkloadName, String> {
    let fingerprint = fingerprint(actor);
    if let Some(recorded) = actor.workload.as_ref().filter(|recorded| policy.knows(recorded)) {
        let miss = fingerprint.as_ref().and_then(|fingerprint| policy.miss_of(recorded, fingerprint));
        if miss.is_none_or(|miss| !KEPT.contains(&miss.field.as_str()) || !is_kept(actor, &miss.field)) {
            return Ok(recorded.clone());
        }
    }
    let called = || match (&actor.workload, &actor.program) {
        (Some(workload), _) => workload.to_string(),
        (None, Some(program)) => quoted(program),
        (None, None) => "it".to_owned(),
    };
    match fingerprint.map(|fingerprint| policy.identify(&fingerprint)) {
        Some(Identified::Workload(name)) => Ok(name),
        Some(Identified::Nothing { near }) => {
            let near = near.first().map(|miss| format!("; nearest is {}, whose {} differs", miss.of, miss.field));
            Err(format!("{} earns no workload{}", called(), near.unwrap_or_default()))
        }
        Some(Identified::Ambiguous(names)) => Err(format!("{} fits {} workloads", called(), names.len())),
        Some(Identified::Unavailable { field, .. }) => Err(format!("{} cannot be told by {field}", called())),
        None => Err(format!("the policy has no workload {}", called())),
    }
}

/// Whether the actor says anything of what this selector is about.
fn is_kept(actor: &Actor, field: &str) -> bool {
    match field {
        "unit" => actor.unit.is_some(),
        "script" => actor.script.is_some(),
        "script_sha256" => actor.script_digest.is_some(),
        "uid" => actor.uid.is_some(),
        "nodes" => actor.node.is_some(),
        _ => true,
    }
}

/// What is left of the evidence; none if the program is not known.
fn fingerprint(actor: &Actor) -> Option<Fingerprint> {
    let exe = HashedFile { path: actor.program.clone()?, digest: actor.digest? };
    let unseen = || "edges do not keep it".to_owned();
    let host = Host {
        bios_uuid: Evidence::Absent(unseen()),
        machine_id: Evidence::Absent(unseen()),
        node: actor.node.clone(),
    };
    let script = match (&actor.script, actor.script_digest) {
        (Some(path), Some(digest)) => Evidence::Known(Script::File(HashedFile { path: path.clone(), digest })),
        (None, Some(digest)) => Evidence::Known(Script::Inline(digest)),
        _ => Evidence::Absent(unseen()),
    };
    let unit =
        actor.unit.clone().map_or(Evidence::Absent(unseen()), |name| Evidence::Known(Unit { name, invocation: None }));
    let mut fingerprint = Fingerprint {
        script,
        unit,
        taints: actor.taints.clone(),
        ..Fingerprint::of(exe, (actor.uid.unwrap_or(u32::MAX), u32::MAX), host)
    };
    if let Some(image) = actor.image {
        fingerprint.container = Evidence::Known(container_of(image));
    }
    Some(fingerprint)
}

fn container_of(image: Digest) -> Container {
    Container {
        runtime: String::new(),
        id: String::new(),
        name: None,
        image,
        image_name: None,
        manifests: Vec::new(),
        labels: BTreeMap::new(),
        pod: None,
    }
}
