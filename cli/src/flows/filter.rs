//! Which flows are of interest.

use bonafide_proto::name::WorkloadName;
use bonafide_proto::record::{FlowRecord, Outcome};

/// A verdict to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Verdict {
    /// Let through by a rule.
    Allowed,
    /// Not let through.
    Refused,
    /// Not refused in this mode; enforce would refuse it.
    WouldRefuse,
    /// Not refused in this mode; the other end's program is not known.
    Undecided,
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allowed => Self::Allowed,
            Verdict::Refused => Self::Refused,
            Verdict::WouldRefuse => Self::WouldRefuse,
            Verdict::Undecided => Self::Undecided,
        }
    }
}

/// Flows that pass have one of the workloads at one end, and one of the verdicts. An empty list asks for nothing.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Workloads at either end.
    pub workloads: Vec<WorkloadName>,
    /// Verdicts.
    pub verdicts: Vec<Verdict>,
}

impl Filter {
    /// Whether the flow is of interest.
    #[must_use]
    pub fn passes(&self, record: &FlowRecord) -> bool {
        (self.workloads.is_empty() || self.workloads.iter().any(|wanted| is_end(record, wanted)))
            && (self.verdicts.is_empty() || self.verdicts.iter().any(|v| Outcome::from(*v) == record.verdict))
    }
}

/// Whether the flow is from or to the workload.
pub(super) fn is_end(record: &FlowRecord, workload: &WorkloadName) -> bool {
    [&record.source.workload, &record.destination.workload].into_iter().any(|end| end.as_ref() == Some(workload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::table::tests::{allowed, refused};

    #[test]
    fn either_end_and_any_of_the_verdicts_count() {
        let pass = |workloads: &[&str], verdicts: &[Verdict], record: &FlowRecord| {
            let workloads = workloads.iter().map(|w| w.parse().unwrap()).collect();
            Filter { workloads, verdicts: verdicts.to_vec() }.passes(record)
        };
        assert!(pass(&[], &[], &allowed()));
        assert!(pass(&["shop/web"], &[], &allowed()) && pass(&["shop/db"], &[], &allowed()));
        assert!(pass(&["x", "shop/db"], &[Verdict::Refused, Verdict::Allowed], &allowed()));
        assert!(!pass(&["shop"], &[], &allowed()));
        assert!(!pass(&["shop/db"], &[Verdict::Refused], &allowed()));
        assert!(pass(&[], &[Verdict::Refused], &refused()) && !pass(&["shop/web"], &[], &refused()));
    }
}
