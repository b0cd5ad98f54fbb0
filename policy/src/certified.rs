//! What a peer's certificate says about its program, held against this policy: the node that issued it judged by its
//! own policy, which may be older or wider.

use bonafide_proto::fingerprint::{Digest, Evidence, Script};
use bonafide_proto::name::{NodeName, WorkloadName};
use bonafide_proto::program::CertifiedProgram;
use bonafide_proto::record::NearMiss;

use crate::evidence::Value;
use crate::identify::{Compared, first_miss};
use crate::selector::Field;
use crate::workload::Workload;

/// A program as a verified certificate describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certified<'a> {
    /// What its certificate says of it.
    pub program: &'a CertifiedProgram,
    /// The node that issued the certificate.
    pub node: Option<&'a NodeName>,
}

impl Certified<'_> {
    /// What it says about a selector; `None` for those about which a certificate says nothing.
    fn seen(&self, field: Field) -> Option<Evidence<Value>> {
        let program = self.program;
        let script = program.script.as_ref();
        let inline = script.and_then(|script| match script {
            Script::Inline(code) => Some(code),
            Script::File(_) | Script::Stdin => None,
        });
        match field {
            Field::Exe => Some(Evidence::Known(Value::Text(program.program.clone()))),
            Field::Sha256 => Some(digest(Some(&program.exe))),
            Field::Script => Some(told(program.script_file().map(|file| Value::Text(file.path.clone())))),
            Field::ScriptSha256 => Some(digest(program.script_file().map(|file| &file.digest))),
            Field::InlineSha256 => Some(digest(inline)),
            Field::Libraries => Some(digest(program.libraries.as_ref())),
            Field::Image => Some(digest(program.image.as_ref())),
            Field::Uid => Some(Evidence::Known(Value::Number(program.uid))),
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
    now: i64,
) -> Result<(), NearMiss> {
    let Some(workload) = workload else {
        let expected = "a workload of this policy".to_owned();
        return Err(NearMiss { of: name.to_string(), field: "name".to_owned(), expected, seen: name.to_string() });
    };
    let demands = workload.selectors.demands.iter().filter_map(|(field, demand)| {
        let compared = Compared::with(*field, &workload.demand(demand, now), &certified.seen(*field)?);
        Some(compared.vouched(workload.trusts(certified.program.release, *field)))
    });
    let taints = Compared::with_taints(&workload.selectors.allow_taints, &certified.program.taints);
    let compared: Vec<Compared> = demands.chain([taints]).collect();
    first_miss(&compared, name).map_or(Ok(()), Err)
}
