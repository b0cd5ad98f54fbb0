//! Which workloads a program may earn at all: those whose path or unit is its own. Where there are many workloads, only these
//! are looked at.

use std::collections::HashMap;

use bonafide_proto::fingerprint::{Evidence, Fingerprint};
use foldhash::quality::RandomState;

use crate::selector::{Demand, Field};
use crate::workload::Workload;

/// What a workload is found by: the first of these that it demands. Nothing vouches for any of them.
const KEYS: [Field; 3] = [Field::Exe, Field::Script, Field::Unit];
/// Where nothing has a program's paths or unit, so many workloads are compared for near misses.
const STRANGERS_MAX: usize = 4096;

/// Workloads by what they are found by, by position.
#[derive(Debug, Clone, Default)]
pub(crate) struct Candidates {
    by_key: [HashMap<String, Vec<u32>, RandomState>; 3],
    /// Those that demand none of it.
    others: Vec<u32>,
}

impl Candidates {
    pub(crate) fn of(workloads: &[Workload]) -> Self {
        let mut all = Self::default();
        for (position, workload) in (0..).zip(workloads) {
            let key = KEYS.iter().zip(&mut all.by_key).find_map(|(field, by_key)| {
                let Some(Demand::Text(text)) = workload.selectors.demands.get(field) else { return None };
                Some(by_key.entry(text.clone()).or_default())
            });
            key.unwrap_or(&mut all.others).push(position);
        }
        all
    }

    /// Every workload that this evidence might earn, in the order of the file; none if that may be any.
    pub(crate) fn among<'w>(&self, workloads: &'w [Workload], of: &Fingerprint) -> Option<Vec<&'w Workload>> {
        let script = of.script.map(|script| script.file().map(|file| file.path.as_str()));
        let unit = of.unit.map(|unit| Some(unit.name.as_str()));
        let seen = [Evidence::Known(Some(of.exe.path.as_str())), script, unit];
        let mut positions = self.others.clone();
        for (by_key, seen) in self.by_key.iter().zip(seen) {
            match seen {
                // Who could tell does not answer: whatever is found by it might be meant.
                Evidence::Unavailable(_) if !by_key.is_empty() => return None,
                Evidence::Known(Some(text)) => positions.extend(by_key.get(text).into_iter().flatten()),
                Evidence::Known(None) | Evidence::Absent(_) | Evidence::Unavailable(_) => {}
            }
        }
        positions.sort_unstable();
        Some(positions.into_iter().filter_map(|position| workloads.get(usize::try_from(position).ok()?)).collect())
    }

    /// Those that are compared to tell what is nearly right: all, or, of very many, those that might be
    /// earned, or else the first ones.
    pub(crate) fn near<'w>(&self, workloads: &'w [Workload], of: &Fingerprint) -> Vec<&'w Workload> {
        let might = self.among(workloads, of).unwrap_or_else(|| workloads.iter().collect());
        if workloads.len() <= STRANGERS_MAX {
            return workloads.iter().collect();
        }
        if might.is_empty() { workloads.iter().take(STRANGERS_MAX).collect() } else { might }
    }
}
