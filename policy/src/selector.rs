//! Selectors: demands on the evidence about a program, and which of them follow from others.

use std::collections::{BTreeMap, BTreeSet};

use bonafide_proto::fingerprint::Digest;
use bonafide_proto::name::NodeName;
use bonafide_proto::taint::Taints;

/// The evidence that a selector is about, in the order in which a person would look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Field {
    Exe,
    Sha256,
    Script,
    ScriptSha256,
    InlineSha256,
    Libraries,
    Image,
    ImageName,
    Container,
    Runtime,
    ContainerLabels,
    PodNamespace,
    Pod,
    ServiceAccount,
    PodLabels,
    Unit,
    Uid,
    Gid,
    Nodes,
}

/// The field that is no demand but a concession.
pub(crate) const ALLOW_TAINTS: &str = "allow_taints";

impl Field {
    /// All there are, in their order.
    pub(crate) const ALL: [Self; 19] = [
        Self::Exe,
        Self::Sha256,
        Self::Script,
        Self::ScriptSha256,
        Self::InlineSha256,
        Self::Libraries,
        Self::Image,
        Self::ImageName,
        Self::Container,
        Self::Runtime,
        Self::ContainerLabels,
        Self::PodNamespace,
        Self::Pod,
        Self::ServiceAccount,
        Self::PodLabels,
        Self::Unit,
        Self::Uid,
        Self::Gid,
        Self::Nodes,
    ];

    /// Those that say which program it is. The others say as whom, under which name or where it runs: names of
    /// containers, pods and images are given by whoever starts them, and the same name may be given to any code.
    pub(crate) const CODE: [Self; 8] = [
        Self::Exe,
        Self::Sha256,
        Self::Script,
        Self::ScriptSha256,
        Self::InlineSha256,
        Self::Libraries,
        Self::Image,
        Self::Unit,
    ];

    /// Those that a container's runtime tells.
    pub(crate) const OF_CONTAINERS: [Self; 9] = [
        Self::Image,
        Self::ImageName,
        Self::Container,
        Self::Runtime,
        Self::ContainerLabels,
        Self::PodNamespace,
        Self::Pod,
        Self::ServiceAccount,
        Self::PodLabels,
    ];

    /// Those that hold only for the host's own files, unless the workload says more: see [`Selectors::reach_beyond`].
    pub(crate) const PATHS: [Self; 2] = [Self::Exe, Self::Script];

    /// As policies write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exe => "exe",
            Self::Sha256 => "sha256",
            Self::Script => "script",
            Self::ScriptSha256 => "script_sha256",
            Self::InlineSha256 => "inline_sha256",
            Self::Libraries => "libraries",
            Self::Image => "image",
            Self::ImageName => "image_name",
            Self::Container => "container",
            Self::Runtime => "runtime",
            Self::ContainerLabels => "container_labels",
            Self::PodNamespace => "pod_namespace",
            Self::Pod => "pod",
            Self::ServiceAccount => "service_account",
            Self::PodLabels => "pod_labels",
            Self::Unit => "unit",
            Self::Uid => "uid",
            Self::Gid => "gid",
            Self::Nodes => "nodes",
        }
    }
}

/// What must be seen.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Demand {
    /// This text.
    Text(String),
    /// This number.
    Number(u32),
    /// One of these digests.
    Digests(BTreeSet<Digest>),
    /// One of these nodes.
    Nodes(BTreeSet<NodeName>),
    /// These labels, and perhaps more.
    Labels(BTreeMap<String, String>),
}

impl Demand {
    /// Whether whatever meets `narrow` meets this one too, both being about the same evidence.
    pub(crate) fn follows_from(&self, narrow: &Self) -> bool {
        match (self, narrow) {
            (Self::Digests(wide), Self::Digests(narrow)) => narrow.is_subset(wide),
            (Self::Nodes(wide), Self::Nodes(narrow)) => narrow.is_subset(wide),
            (Self::Labels(wide), Self::Labels(narrow)) => {
                wide.iter().all(|(key, value)| narrow.get(key) == Some(value))
            }
            (wide, narrow) => wide == narrow,
        }
    }
}

/// What earns a workload: every demand is met, and every taint is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Selectors {
    /// At least one of them is about code.
    pub(crate) demands: BTreeMap<Field, Demand>,
    /// The taints that its programs may have.
    pub(crate) allow_taints: Taints,
}

impl Selectors {
    /// Whether whatever earns this earns `wide` too.
    pub(crate) fn lies_within(&self, wide: &Self) -> bool {
        let follows = |(field, demand): (&Field, &Demand)| {
            self.demands.get(field).is_some_and(|narrow| demand.follows_from(narrow))
        };
        wide.demands.iter().all(follows)
            && self.allow_taints.is_subset(&wide.allow_taints)
            && !(self.names_a_container() && wide.is_of_the_host())
    }

    /// Whether a path may be one that some other root directory than the host's shows. Root of a container puts what it
    /// likes at any path there: a workload that says nothing of containers is a program of the host. What says more is
    /// its container, the unit that PID 1 runs it in, or the digest of that very file. Which runtime it is says nothing.
    pub(crate) fn reach_beyond(&self, path: Field) -> bool {
        let content = if path == Field::Script { Field::ScriptSha256 } else { Field::Sha256 };
        self.names_a_container() || [Field::Unit, content].iter().any(|field| self.demands.contains_key(field))
    }

    fn names_a_container(&self) -> bool {
        Field::OF_CONTAINERS.iter().any(|field| *field != Field::Runtime && self.demands.contains_key(field))
    }

    fn is_of_the_host(&self) -> bool {
        Field::PATHS.iter().any(|path| self.demands.contains_key(path) && !self.reach_beyond(*path))
    }
}
