//! The pieces of a fingerprint at the door.

use std::collections::{BTreeMap, HashMap};

use super::{Malformed, bad, text};
use crate::container::{Container, Pod};
use crate::fingerprint::{Digest, Evidence, Libraries, Release, Root, Script, Unit};
use crate::taint::{Taint, Taints};
use crate::wire::node as wire;

/// The most labels of a container or pod.
const LABELS_MAX: usize = 256;
/// The most manifests of an image.
const MANIFESTS_MAX: usize = 64;

fn digest(bytes: &[u8]) -> Result<Digest, Malformed> {
    Digest::try_from(bytes).or_else(|e| bad(format!("a digest {e}")))
}

fn filled(value: String) -> Option<String> {
    (!value.is_empty()).then_some(value)
}

/// The taints named; each at most once.
pub(super) fn taints(names: &[String]) -> Result<Taints, Malformed> {
    let read =
        |name: &String| name.parse::<Taint>().or_else(|e| bad(format!("{:?} {e}", name.get(..64).unwrap_or(name))));
    names.iter().take(Taint::ALL.len() + 1).map(read).collect()
}

/// Empty: nothing speaks for them.
pub(super) fn release(name: &str) -> Result<Option<Release>, Malformed> {
    match name {
        "" => Ok(None),
        _ => name.parse().map(Some).or_else(|e| bad(format!("{:?} {e}", name.get(..64).unwrap_or(name)))),
    }
}

impl From<&Root> for wire::RootEvidence {
    fn from(root: &Root) -> Self {
        use wire::root_evidence::Of;
        Self {
            of: Some(match root {
                Root::Host => Of::Host(true),
                Root::Within(which) => Of::Within(which.clone()),
                Root::Other(why) => Of::Other(why.clone()),
            }),
        }
    }
}

impl TryFrom<Option<wire::RootEvidence>> for Root {
    type Error = Malformed;
    fn try_from(w: Option<wire::RootEvidence>) -> Result<Self, Malformed> {
        use wire::root_evidence::Of;
        Ok(match w.and_then(|w| w.of) {
            Some(Of::Host(true)) => Self::Host,
            Some(Of::Within(which)) => Self::Within(text("a root", which)?),
            Some(Of::Other(why)) => Self::Other(text("a root", why)?),
            Some(Of::Host(false)) | None => return bad("a fingerprint without root directory"),
        })
    }
}

impl From<&Evidence<Script>> for wire::ScriptEvidence {
    fn from(e: &Evidence<Script>) -> Self {
        use wire::script_evidence::Of;
        Self {
            of: Some(match e {
                Evidence::Known(Script::File(file)) => Of::File(file.into()),
                Evidence::Known(Script::Inline(digest)) => Of::Inline(digest.0.to_vec()),
                Evidence::Known(Script::Stdin) => Of::Stdin(true),
                Evidence::Absent(why) => Of::Absent(why.clone()),
                Evidence::Unavailable(why) => Of::Unavailable(why.clone()),
            }),
        }
    }
}

impl TryFrom<Option<wire::ScriptEvidence>> for Evidence<Script> {
    type Error = Malformed;
    fn try_from(w: Option<wire::ScriptEvidence>) -> Result<Self, Malformed> {
        use wire::script_evidence::Of;
        Ok(match w.and_then(|w| w.of) {
            Some(Of::File(file)) => Self::Known(Script::File(file.try_into()?)),
            Some(Of::Inline(bytes)) => Self::Known(Script::Inline(digest(&bytes)?)),
            Some(Of::Stdin(_)) => Self::Known(Script::Stdin),
            Some(Of::Absent(why)) => Self::Absent(text("evidence", why)?),
            Some(Of::Unavailable(why)) => Self::Unavailable(text("evidence", why)?),
            None => return bad("script evidence is missing"),
        })
    }
}

impl From<&Evidence<Libraries>> for wire::LibrariesEvidence {
    fn from(e: &Evidence<Libraries>) -> Self {
        use wire::libraries_evidence::{Known, Of};
        Self {
            of: Some(match e {
                Evidence::Known(l) => Of::Known(Known { sha256: l.digest.0.to_vec(), count: l.count }),
                Evidence::Absent(why) => Of::Absent(why.clone()),
                Evidence::Unavailable(why) => Of::Unavailable(why.clone()),
            }),
        }
    }
}

impl TryFrom<Option<wire::LibrariesEvidence>> for Evidence<Libraries> {
    type Error = Malformed;
    fn try_from(w: Option<wire::LibrariesEvidence>) -> Result<Self, Malformed> {
        use wire::libraries_evidence::Of;
        Ok(match w.and_then(|w| w.of) {
            Some(Of::Known(known)) => Self::Known(Libraries { digest: digest(&known.sha256)?, count: known.count }),
            Some(Of::Absent(why)) => Self::Absent(text("evidence", why)?),
            Some(Of::Unavailable(why)) => Self::Unavailable(text("evidence", why)?),
            None => return bad("library evidence is missing"),
        })
    }
}

impl From<&Evidence<Unit>> for wire::UnitEvidence {
    fn from(e: &Evidence<Unit>) -> Self {
        use wire::unit_evidence::{Known, Of};
        Self {
            of: Some(match e {
                Evidence::Known(unit) => Of::Known(Known {
                    name: unit.name.clone(),
                    invocation: unit.invocation.clone().unwrap_or_default(),
                }),
                Evidence::Absent(why) => Of::Absent(why.clone()),
                Evidence::Unavailable(why) => Of::Unavailable(why.clone()),
            }),
        }
    }
}

impl TryFrom<Option<wire::UnitEvidence>> for Evidence<Unit> {
    type Error = Malformed;
    fn try_from(w: Option<wire::UnitEvidence>) -> Result<Self, Malformed> {
        use wire::unit_evidence::Of;
        Ok(match w.and_then(|w| w.of) {
            Some(Of::Known(known)) => {
                let invocation = filled(text("invocation", known.invocation)?);
                Self::Known(Unit { name: text("unit", known.name)?, invocation })
            }
            Some(Of::Absent(why)) => Self::Absent(text("evidence", why)?),
            Some(Of::Unavailable(why)) => Self::Unavailable(text("evidence", why)?),
            None => return bad("unit evidence is missing"),
        })
    }
}

impl From<&Evidence<Container>> for wire::ContainerEvidence {
    fn from(e: &Evidence<Container>) -> Self {
        use wire::container_evidence::Of;
        Self {
            of: Some(match e {
                Evidence::Known(container) => Of::Known(container.into()),
                Evidence::Absent(why) => Of::Absent(why.clone()),
                Evidence::Unavailable(why) => Of::Unavailable(why.clone()),
            }),
        }
    }
}

impl TryFrom<Option<wire::ContainerEvidence>> for Evidence<Container> {
    type Error = Malformed;
    fn try_from(w: Option<wire::ContainerEvidence>) -> Result<Self, Malformed> {
        use wire::container_evidence::Of;
        Ok(match w.and_then(|w| w.of) {
            Some(Of::Known(container)) => Self::Known(container.try_into()?),
            Some(Of::Absent(why)) => Self::Absent(text("evidence", why)?),
            Some(Of::Unavailable(why)) => Self::Unavailable(text("evidence", why)?),
            None => return bad("container evidence is missing"),
        })
    }
}

impl From<&Container> for wire::Container {
    fn from(c: &Container) -> Self {
        Self {
            runtime: c.runtime.clone(),
            id: c.id.clone(),
            name: c.name.clone().unwrap_or_default(),
            image: c.image.0.to_vec(),
            image_name: c.image_name.clone().unwrap_or_default(),
            manifests: c.manifests.iter().map(|digest| digest.0.to_vec()).collect(),
            labels: c.labels.clone().into_iter().collect(),
            pod: c.pod.as_ref().map(|p| wire::Pod {
                namespace: p.namespace.clone(),
                name: p.name.clone(),
                uid: p.uid.clone(),
                service_account: p.service_account.clone().unwrap_or_default(),
                labels: p.labels.clone().into_iter().collect(),
            }),
        }
    }
}

impl TryFrom<wire::Container> for Container {
    type Error = Malformed;
    fn try_from(w: wire::Container) -> Result<Self, Malformed> {
        if w.manifests.len() > MANIFESTS_MAX {
            return bad(format!("more than {MANIFESTS_MAX} manifests"));
        }
        Ok(Self {
            runtime: text("runtime", w.runtime)?,
            id: text("container ID", w.id)?,
            name: filled(text("container name", w.name)?),
            image: digest(&w.image)?,
            image_name: filled(text("image name", w.image_name)?),
            manifests: w.manifests.iter().map(|bytes| digest(bytes)).collect::<Result<_, _>>()?,
            labels: labels(w.labels)?,
            pod: w.pod.map(TryInto::try_into).transpose()?,
        })
    }
}

impl TryFrom<wire::Pod> for Pod {
    type Error = Malformed;
    fn try_from(w: wire::Pod) -> Result<Self, Malformed> {
        Ok(Self {
            namespace: text("pod namespace", w.namespace)?,
            name: text("pod name", w.name)?,
            uid: text("pod uid", w.uid)?,
            service_account: filled(text("service account", w.service_account)?),
            labels: labels(w.labels)?,
        })
    }
}

fn labels(wire: HashMap<String, String>) -> Result<BTreeMap<String, String>, Malformed> {
    if wire.len() > LABELS_MAX {
        return bad(format!("more than {LABELS_MAX} labels"));
    }
    wire.into_iter().map(|(key, value)| Ok((text("label", key)?, text("label", value)?))).collect()
}
