//! Few rules for many needs: needs alike in all but one end share a rule. No rule stands for anything that is no need.

use std::collections::{BTreeMap, BTreeSet};

use super::{Need, Needs};

/// Everybody in `from` needs to reach everybody in `to` on all of `ports`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Bundle {
    pub(super) from: BTreeSet<String>,
    pub(super) to: BTreeSet<String>,
    pub(super) ports: BTreeSet<u16>,
}

impl Bundle {
    /// Every need it stands for.
    pub(super) fn needs(&self) -> impl Iterator<Item = Need> + '_ {
        self.from.iter().flat_map(move |from| {
            self.to.iter().flat_map(move |to| {
                self.ports.iter().map(move |port| Need { from: from.clone(), to: to.clone(), port: *port })
            })
        })
    }
}

/// The fewest that were found: the least set cover by such bundles is NP-hard, so sources and destinations are each tried as
/// what is put together first.
pub(super) fn bundles(needs: &Needs) -> Vec<Bundle> {
    let mut ports: BTreeMap<(&str, &str), BTreeSet<u16>> = BTreeMap::new();
    for need in needs.keys() {
        ports.entry((&need.from, &need.to)).or_default().insert(need.port);
    }
    let single: Vec<Bundle> = ports
        .into_iter()
        .map(|((from, to), ports)| Bundle { from: [from.to_owned()].into(), to: [to.to_owned()].into(), ports })
        .collect();
    let sources_first = by_destination(by_source(single.clone()));
    let destinations_first = by_source(by_destination(single));
    if destinations_first.len() < sources_first.len() { destinations_first } else { sources_first }
}

/// Those with the same destinations and ports become one.
fn by_source(bundles: Vec<Bundle>) -> Vec<Bundle> {
    let mut alike: BTreeMap<(BTreeSet<String>, BTreeSet<u16>), BTreeSet<String>> = BTreeMap::new();
    for Bundle { from, to, ports } in bundles {
        alike.entry((to, ports)).or_default().extend(from);
    }
    alike.into_iter().map(|((to, ports), from)| Bundle { from, to, ports }).collect()
}

/// Those with the same sources and ports become one.
fn by_destination(bundles: Vec<Bundle>) -> Vec<Bundle> {
    let mut alike: BTreeMap<(BTreeSet<String>, BTreeSet<u16>), BTreeSet<String>> = BTreeMap::new();
    for Bundle { from, to, ports } in bundles {
        alike.entry((from, ports)).or_default().extend(to);
    }
    alike.into_iter().map(|((from, ports), to)| Bundle { from, to, ports }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::learn::Proof;

    fn needs(all: &BTreeSet<(u8, u8, u8)>) -> Needs {
        let need = |(from, to, port): &(u8, u8, u8)| Need {
            from: format!("f{from}"),
            to: format!("t{to}"),
            port: u16::from(*port) + 1,
        };
        all.iter().map(|triple| (need(triple), Proof::default())).collect()
    }

    #[test]
    fn what_differs_in_one_end_shares_a_rule() {
        let grid: BTreeSet<_> = (0..3).flat_map(|f| (0..4).flat_map(move |t| [(f, t, 1), (f, t, 2)])).collect();
        assert_eq!(bundles(&needs(&grid)).len(), 1);
        assert_eq!(bundles(&needs(&[(0, 0, 1), (1, 1, 1)].into())).len(), 2);
    }

    proptest! {
        #[test]
        fn rules_stand_for_every_need_once_and_for_nothing_else(all: BTreeSet<(u8, u8, u8)>) {
            let all = all.into_iter().map(|(f, t, p)| (f % 4, t % 4, p % 4)).collect();
            let needs = needs(&all);
            let covered: Vec<Need> = bundles(&needs).iter().flat_map(|b| b.needs().collect::<Vec<_>>()).collect();
            prop_assert_eq!(covered.len(), needs.len());
            prop_assert_eq!(covered.into_iter().collect::<BTreeSet<_>>(), needs.into_keys().collect());
        }
    }
}
