//! Which unlisted digest was seen when, and what became of it. Pure but for the store.

use std::collections::BTreeMap;
use std::path::Path;

use bonafide_policy::{Pending, Policy, Releases};
use bonafide_proto::fingerprint::{Digest, Release};
use bonafide_proto::name::WorkloadName;
use serde::{Deserialize, Serialize};

use crate::store::{Kind, Lasts, Store};

/// The most digests that are remembered. None is forgotten to make room for another: its time would begin anew.
const ENTRIES_MAX: usize = 16_384;
/// The longest path that is remembered, in bytes: only people read it.
const PATH_MAX: usize = 512;
const RELEASES: Kind = Kind {
    name: "releases",
    format: "1",
    most: ENTRIES_MAX,
    without: "new digests are new again",
    lasts: Lasts::ForEver,
};

/// A digest of a workload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) workload: WorkloadName,
    pub(super) field: String,
    pub(super) digest: Digest,
}

impl Key {
    pub(super) fn of(workload: &WorkloadName, field: &str, digest: Digest) -> Self {
        Self { workload: workload.clone(), field: field.to_owned(), digest }
    }
}

/// What is known of it. Times in unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// When it was seen first, and as the how manyth.
    pub(super) since: i64,
    number: u64,
    pub(super) path: String,
    /// When dpkg was found to have recorded it.
    packaged: Option<i64>,
    /// When a later one was.
    superseded: Option<i64>,
    /// When dpkg was asked last, and what it said; not kept.
    #[serde(skip)]
    asked: Option<(i64, String)>,
}

/// What speaks for a digest, and how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    Packaged { until: Option<i64> },
    InGrace { until: i64 },
    Refused(String),
}

/// All of them.
#[derive(Debug)]
pub(super) struct Book {
    entries: BTreeMap<Key, Entry>,
    store: Option<Store>,
}

impl Book {
    pub(super) fn open(state: Option<&Path>) -> Self {
        let Some(directory) = state else { return Self { entries: BTreeMap::new(), store: None } };
        let (store, entries) = Store::open(directory, &RELEASES, |key, value| {
            Some((serde_json::from_slice(key).ok()?, serde_json::from_slice(value).ok()?))
        });
        Self { entries: entries.into_iter().collect(), store }
    }

    /// It was seen now.
    ///
    /// # Errors
    /// There is no room for another one.
    pub(super) fn sees(&mut self, key: &Key, path: Option<&str>, now: i64) -> Result<(), String> {
        if self.entries.contains_key(key) {
            return Ok(());
        }
        if self.entries.len() >= ENTRIES_MAX {
            return Err(format!("{ENTRIES_MAX} new digests wait already; approve or remove what they are of"));
        }
        let path = path.unwrap_or_default();
        let end = (0..=path.len().min(PATH_MAX)).rev().find(|end| path.is_char_boundary(*end)).unwrap_or_default();
        let path = path.get(..end).unwrap_or_default().to_owned();
        tracing::info!(workload = %key.workload, field = key.field, digest = %key.digest, path, "a new digest");
        let number = self.entries.values().map(|entry| entry.number).max().unwrap_or_default().saturating_add(1);
        let entry = Entry { since: now, number, path, packaged: None, superseded: None, asked: None };
        self.put(key.clone(), entry);
        Ok(())
    }

    /// Whether dpkg is to be asked about it.
    pub(super) fn asks(&self, key: &Key, now: i64, again: i64) -> bool {
        self.entries.get(key).is_some_and(|entry| {
            let lately = entry.asked.as_ref().is_some_and(|(at, _)| (0..again).contains(&now.saturating_sub(*at)));
            entry.packaged.is_none() && !lately
        })
    }

    /// dpkg recorded it, and so no longer what it recorded before.
    pub(super) fn packaged(&mut self, key: &Key, now: i64) {
        let alike = |other: &Key| other.workload == key.workload && other.field == key.field && other != key;
        let before = self
            .entries
            .iter()
            .filter(|(other, entry)| alike(other) && entry.packaged.is_some() && entry.superseded.is_none());
        let before: Vec<(Key, Entry)> = before.map(|(other, entry)| (other.clone(), entry.clone())).collect();
        for (other, entry) in before {
            self.put(other, Entry { superseded: Some(now), ..entry });
        }
        if let Some(entry) = self.entries.get(key).cloned() {
            self.put(key.clone(), Entry { packaged: Some(now), superseded: None, ..entry });
        }
    }

    /// dpkg did not, and why.
    pub(super) fn unpackaged(&mut self, key: &Key, why: String, now: i64) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.asked = Some((now, why));
        }
    }

    /// What speaks for all digests of a program.
    ///
    /// # Errors
    /// Nothing speaks for one of them; in words.
    pub(super) fn judge(&self, pending: &Pending, now: i64) -> Result<Release, String> {
        let mut all = Release::Packaged;
        for (field, digest) in &pending.digests {
            let key = Key::of(&pending.workload, field, *digest);
            match self.standing(&key, &pending.releases, pending.listed, now) {
                Standing::Packaged { .. } => {}
                Standing::InGrace { .. } => all = Release::InGrace,
                Standing::Refused(why) => return Err(why),
            }
        }
        Ok(all)
    }

    /// What speaks for this digest; `listed` others are in the policy.
    pub(super) fn standing(&self, key: &Key, releases: &Releases, listed: u32, now: i64) -> Standing {
        let Some(entry) = self.entries.get(key) else { return Standing::Refused("it was never seen".to_owned()) };
        let standing = self.alone(key, entry, releases, now);
        if matches!(standing, Standing::Refused(_)) {
            return standing;
        }
        // Those that were there before it.
        let others = self.entries.range(first_of(key)..).take_while(|(other, _)| other.workload == key.workload);
        let before = others.filter(|(other, of)| {
            other.field == key.field
                && of.number < entry.number
                && !matches!(self.alone(other, of, releases, now), Standing::Refused(_))
        });
        let live = usize::try_from(listed).unwrap_or(usize::MAX).saturating_add(before.count());
        if live >= usize::try_from(releases.live).unwrap_or(usize::MAX) {
            let remedy = "approve one, or let old ones retire";
            return Standing::Refused(format!("{live} digests are live already, and no more may be; {remedy}"));
        }
        standing
    }

    /// The same, whatever others there are.
    fn alone(&self, key: &Key, entry: &Entry, releases: &Releases, now: i64) -> Standing {
        let seconds = |duration: std::time::Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        if releases.dpkg && entry.packaged.is_some() {
            let until = entry.superseded.map(|at| at.saturating_add(seconds(releases.retire)));
            if until.is_none_or(|until| now < until) {
                return Standing::Packaged { until };
            }
            let why = "dpkg recorded a later release, and this one has retired";
            return Standing::Refused(refusal(key, why));
        }
        let why = match releases.grace {
            Some(_) if self.store.is_none() => {
                "nobody could tell when its grace ends: identityd has no state directory".to_owned()
            }
            Some(grace) => {
                let until = entry.since.saturating_add(seconds(grace));
                if now < until {
                    return Standing::InGrace { until };
                }
                "its grace has passed".to_owned()
            }
            None => "nobody approved it yet".to_owned(),
        };
        let asked = entry.asked.as_ref().filter(|_| releases.dpkg).map(|(_, said)| format!(", and {said}"));
        Standing::Refused(refusal(key, &format!("{why}{}", asked.unwrap_or_default())))
    }

    /// Those of workloads that say what becomes of new digests, and do not list them.
    pub(super) fn all<'b>(
        &'b self,
        policy: &'b Policy,
    ) -> impl Iterator<Item = (&'b Key, &'b Entry, &'b Releases, u32)> {
        self.entries.iter().filter_map(move |(key, entry)| {
            let (releases, listed) = policy.releases(&key.workload)?;
            (!policy.lists(&key.workload, key.digest)).then_some((key, entry, releases, listed))
        })
    }

    fn put(&mut self, key: Key, entry: Entry) {
        if let (Some(store), Ok(k), Ok(v)) = (&self.store, serde_json::to_vec(&key), serde_json::to_vec(&entry)) {
            store.add(&k, &v);
        }
        self.entries.insert(key, entry);
    }
}

fn first_of(key: &Key) -> Key {
    Key { workload: key.workload.clone(), field: String::new(), digest: Digest([0; 32]) }
}

fn refusal(key: &Key, why: &str) -> String {
    format!("{why}; to accept it: bonafide workload approve {} --policy FILE", key.workload)
}
