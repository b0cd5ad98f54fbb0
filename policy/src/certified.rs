//! What a peer's certificate says about its program, held against this policy: the node that issued it judged by its
//! own policy, which may be older or wider.

use bonafide_proto::fingerprint::{Digest, Evidence};
use bonafide_proto::name::{NodeName, WorkloadName};
use bonafide_proto::record::NearMiss;

use crate::evidence::Value;
use crate::identify::{Compared, first_miss};
use crate::selector::Field;
use crate::workload::Workload;

/// A program as a verified certificate describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certified<'a> {
    /// Digest of its executable.
    pub exe: &'a Digest,
    /// Digest of the script it interprets.
    pub script: Option<&'a Digest>,
    /// Composite digest of its libraries.
    pub libraries: Option<&'a Digest>,
    /// Digest of its container image's config.
    pub image: Option<&'a Digest>,
    /// The node that issued the certificate.
    pub node: Option<&'a NodeName>,
}

impl Certified<'_> {
    /// What it says about a selector; `None` for those about which a certificate says nothing.
    fn seen(&self, field: Field) -> Option<Evidence<Value>> {
        match field {
            Field::Sha256 => Some(digest(Some(self.exe))),
            Field::ScriptSha256 => Some(digest(self.script)),
            Field::Libraries => Some(digest(self.libraries)),
            Field::Image => Some(digest(self.image)),
            Field::Nodes => Some(told(self.node.cloned().map(Value::Node))),
            _ => None,
        }
    }
}

fn digest(digest: Option<&Digest>) -> Evidence<Value> {
    told(digest.map(|digest| Value::Digests(vec![*digest])))
}

fn told(value: Option<Value>) -> Evidence<Value> {
    value.map_or_else(|| Evidence::Absent("its certificate does not say".to_owned()), Evidence::Known)
}

/// See [`crate::Policy::accepts_certified`].
pub(crate) fn accept(
    name: &WorkloadName,
    workload: Option<&Workload>,
    certified: &Certified<'_>,
) -> Result<(), NearMiss> {
    let Some(workload) = workload else {
        let expected = "a workload of this policy".to_owned();
        return Err(NearMiss { of: name.to_string(), field: "name".to_owned(), expected, seen: name.to_string() });
    };
    let demands = workload.selectors.demands.iter();
    let compared: Vec<Compared> =
        demands.filter_map(|(field, demand)| Some(Compared::with(*field, demand, &certified.seen(*field)?))).collect();
    first_miss(&compared, name).map_or(Ok(()), Err)
}
