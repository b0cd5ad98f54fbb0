//! One day of the history: a store of its own, so that a day is forgotten by removing its directory.

use std::collections::HashMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

use bonafide_proto::edge::{Actor, Edge, EdgeCount, Seen};
use bonafide_proto::fingerprint::Digest;

/// Of the store, in bytes.
const CACHE: u64 = 16 << 20;
/// The most different edges of a day that are kept as they are; beyond, they are kept without what tells programs of one
/// workload apart.
pub(super) const EDGES_MAX: usize = 100_000;
/// How long the lock of a day that was closed is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest edge that is read back, in bytes.
const EDGE_MAX: usize = 64 << 10;

/// Sixteen bytes of the SHA-256 of an edge.
type Id = [u8; 16];

/// The open store of one day.
#[derive(Debug)]
pub(super) struct Day {
    db: sled::Db,
    /// Edges by ID.
    edges: sled::Tree,
    /// What was seen, by hour and ID.
    counts: sled::Tree,
    known: usize,
    edges_max: usize,
}

/// Why a day cannot be opened, in words.
#[derive(Debug)]
pub(super) enum NotOpened {
    /// Its files are not what was written.
    Damaged(String),
    /// The system does not give it; its files may be whole.
    Unavailable(String),
}

impl NotOpened {
    fn of(e: sled::Error) -> Self {
        match e {
            // The store says `Other` of files that it does not understand.
            sled::Error::Io(io) if io.kind() != io::ErrorKind::Other || is_locked(&io) => {
                Self::Unavailable(io.to_string())
            }
            other => Self::Damaged(other.to_string()),
        }
    }
}

fn is_locked(e: &io::Error) -> bool {
    e.to_string().contains("could not acquire lock")
}

impl Day {
    /// Opens it. One that was closed this moment keeps its lock until its own threads have ended.
    pub(super) fn open(path: &Path, edges_max: usize) -> Result<Self, NotOpened> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Self::try_open(path, edges_max) {
                Err(NotOpened::Unavailable(why)) if why.contains("acquire lock") && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                opened => return opened,
            }
        }
    }

    fn try_open(path: &Path, edges_max: usize) -> Result<Self, NotOpened> {
        // The store is known to panic over damaged files, besides saying so.
        let opened = std::panic::catch_unwind(AssertUnwindSafe(|| -> sled::Result<Self> {
            let db = sled::Config::new().path(path).cache_capacity(CACHE).flush_every_ms(None).open()?;
            let (edges, counts) = (db.open_tree("edges")?, db.open_tree("counts")?);
            let known = edges.len();
            Ok(Self { db, edges, counts, known, edges_max })
        }));
        match opened {
            Ok(Ok(day)) => Ok(day),
            Ok(Err(e)) => Err(NotOpened::of(e)),
            Err(_) => Err(NotOpened::Damaged("the store gave up over its files".to_owned())),
        }
    }

    /// Adds what was seen in an hour; false if there are too many edges for it.
    pub(super) fn add(&mut self, hour: i64, edge: &Edge, seen: &Seen) -> Result<bool, String> {
        let whole = encoded(edge)?;
        let text = if self.known < self.edges_max || self.has(&whole)? { whole } else { encoded(&coarse(edge))? };
        let id = id(&text);
        if !self.has(&text)? {
            if self.known >= 2 * self.edges_max {
                return Ok(false);
            }
            self.edges.insert(id, text).map_err(failed)?;
            self.known += 1;
        }
        let key = key(hour, id);
        let mut total = match self.counts.get(&key).map_err(failed)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| e.to_string())?,
            None => Seen::default(),
        };
        total.add(seen.clone());
        let bytes = serde_json::to_vec(&total).map_err(|e| e.to_string())?;
        self.counts.insert(key, bytes).map_err(failed)?;
        Ok(true)
    }

    fn has(&self, text: &[u8]) -> Result<bool, String> {
        self.edges.contains_key(id(text)).map_err(failed)
    }

    /// Makes durable what was added.
    pub(super) fn flush(&self) -> Result<(), String> {
        self.db.flush().map(drop).map_err(failed)
    }

    /// Bytes on disk.
    pub(super) fn size(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }

    /// Every edge in every hour from `since` on and before `until`.
    pub(super) fn each(
        &self,
        since: i64,
        until: i64,
        mut tell: impl FnMut(i64, EdgeCount) -> bool,
    ) -> Result<bool, String> {
        let mut edges: HashMap<Id, Edge> = HashMap::new();
        for entry in self.counts.range(key(since, [0; 16])..key(until, [0; 16])) {
            let (key, bytes) = entry.map_err(failed)?;
            let (hour, id) = unkey(&key).ok_or("a key is not one")?;
            let edge = match edges.get(&id) {
                Some(edge) => edge.clone(),
                None => edges.entry(id).or_insert(self.edge(id)?).clone(),
            };
            let seen = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
            if !tell(hour, EdgeCount { edge, seen }) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn edge(&self, id: Id) -> Result<Edge, String> {
        let bytes = self.edges.get(id).map_err(failed)?.filter(|bytes| bytes.len() <= EDGE_MAX);
        serde_json::from_slice(&bytes.ok_or("an edge is missing")?).map_err(|e| e.to_string())
    }
}

/// Who and where, without the digests and addresses that make for many.
fn coarse(edge: &Edge) -> Edge {
    let plain = |actor: &Actor| Actor {
        workload: actor.workload.clone(),
        outside: actor.outside.clone(),
        node: actor.node.clone(),
        ..Actor::default()
    };
    Edge { from: plain(&edge.from), to: plain(&edge.to), ..edge.clone() }
}

fn encoded(edge: &Edge) -> Result<Vec<u8>, String> {
    serde_json::to_vec(edge).map_err(|e| e.to_string())
}

fn id(text: &[u8]) -> Id {
    let Digest(digest) = Digest::of(text);
    let mut id = [0; 16];
    id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    id
}

/// In the order of time; hours before 1970 do not occur.
fn key(hour: i64, id: Id) -> Vec<u8> {
    let hour = u64::try_from(hour).unwrap_or(0);
    [&hour.to_be_bytes()[..], &id].concat()
}

fn unkey(key: &[u8]) -> Option<(i64, Id)> {
    let (hour, id) = key.split_first_chunk::<8>()?;
    Some((i64::try_from(u64::from_be_bytes(*hour)).ok()?, id.try_into().ok()?))
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(e: sled::Error) -> String {
    e.to_string()
}
