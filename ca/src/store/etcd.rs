//! The engine on an etcd cluster, which any number of authorities share under one prefix.
//!
//! Its calls block like those of every engine; a runtime of its own does the talking, so that it may be asked from any
//! thread. Every read is of what a majority has (etcd's linearizable reads), and every call ends in time.

mod cluster;
mod dial;
mod place;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use bonafide_proto::clock::SharedClock;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tonic::Status;

use super::StoreError;
use super::engine::{Condition, Engine, Key, Page, Tree, Write};
use cluster::Cluster;
pub use place::{EtcdPlace, EtcdTls, PlaceError};
use wire::compare::{CompareResult, CompareTarget, TargetUnion};
use wire::request_op::Request as Op;

/// The words of etcd's API.
mod wire {
    #![allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, unreachable_pub, dead_code)]
    tonic::include_proto!("etcdserverpb");
}

/// Conditions and writes in one commit: etcd takes 128 of each where nobody told it otherwise.
const ROOM: usize = 100;
/// A call that lasts longer than its own limits has lost its runtime.
const LOST: Duration = Duration::from_secs(30);

/// An [`Engine`] on etcd.
#[derive(Debug)]
pub struct Etcd {
    place: PathBuf,
    prefix: Vec<u8>,
    cluster: Arc<Cluster>,
    watched: Mutex<BTreeMap<Key, watch::Receiver<u64>>>,
    /// Taken when this is dropped, by who must not wait for it.
    runtime: Option<Runtime>,
}

impl Etcd {
    /// The engine at this place; nothing is asked of it yet.
    ///
    /// # Errors
    /// [`StoreError::Io`] for TLS files that cannot be used.
    pub fn open(place: &EtcdPlace, clock: &SharedClock) -> Result<Self, StoreError> {
        let path = PathBuf::from(place.to_string());
        let failed = |why: String| StoreError::Io { path: path.clone(), why };
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("etcd").enable_all().build();
        let runtime = runtime.map_err(|e| failed(e.to_string()))?;
        let cluster = {
            // Lazy channels want to know their runtime.
            let _within = runtime.enter();
            Arc::new(Cluster::new(place, clock).map_err(failed)?)
        };
        let prefix = format!("/{}/", place.prefix()).into_bytes();
        Ok(Self { place: path, prefix, cluster, watched: Mutex::default(), runtime: Some(runtime) })
    }

    fn name(&self, tree: Tree, name: &[u8]) -> Vec<u8> {
        [&self.prefix, tree.name().as_bytes(), b"/", name].concat()
    }

    fn key(&self, key: &Key) -> Vec<u8> {
        self.name(key.tree, &key.name)
    }

    /// Waits for an answer on this thread, whatever it is otherwise used for.
    fn answer<T, F, A>(&self, ask: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Cluster>) -> A,
        A: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let (to, answer) = mpsc::sync_channel(1);
        let asking = ask(self.cluster.clone());
        let runtime = self.runtime.as_ref().ok_or_else(|| self.unavailable("the daemon is ending"))?;
        runtime.spawn(async move {
            // Whoever asked may have given up.
            let _ = to.send(asking.await);
        });
        match answer.recv_timeout(LOST) {
            Ok(answer) => answer.map_err(|status| self.failed(&status)),
            Err(_) => Err(self.unavailable("no answer in time")),
        }
    }

    fn failed(&self, status: &Status) -> StoreError {
        match status.code() {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => self.unavailable(status.message()),
            tonic::Code::ResourceExhausted if cluster::is_full(status) => StoreError::Io {
                path: self.place.clone(),
                why: "its space is used up; compact and defragment it, or raise its quota, then disarm its alarm"
                    .into(),
            },
            code => StoreError::Io { path: self.place.clone(), why: format!("{code:?}: {}", status.message()) },
        }
    }

    fn unasked(&self, asked: &str) -> StoreError {
        StoreError::Damaged {
            path: self.place.clone(),
            why: format!("it was asked for {asked}, and answers otherwise"),
        }
    }

    fn unavailable(&self, why: &str) -> StoreError {
        StoreError::Unavailable { path: self.place.clone(), why: why.to_owned() }
    }

    fn transaction(&self, conditions: &[Condition], writes: &[Write]) -> wire::TxnRequest {
        let compare = conditions.iter().map(|condition| {
            let (target, union) = match &condition.holds {
                None => (CompareTarget::Create, TargetUnion::CreateRevision(0)),
                Some(value) => (CompareTarget::Value, TargetUnion::Value(value.clone())),
            };
            wire::Compare {
                result: CompareResult::Equal.into(),
                target: target.into(),
                key: self.key(&condition.key),
                target_union: Some(union),
            }
        });
        let success = writes.iter().map(|write| {
            let request = match write {
                Write::Put(key, value) => Op::RequestPut(wire::PutRequest { key: self.key(key), value: value.clone() }),
                Write::Delete(key) => Op::RequestDeleteRange(wire::DeleteRangeRequest { key: self.key(key) }),
            };
            wire::RequestOp { request: Some(request) }
        });
        wire::TxnRequest { compare: compare.collect(), success: success.collect() }
    }

    /// What a commit creates, if it creates anything: by this it is known again.
    fn created(&self, conditions: &[Condition], writes: &[Write]) -> Option<(Vec<u8>, Vec<u8>)> {
        writes.iter().find_map(|write| match write {
            Write::Put(key, value) if conditions.iter().any(|c| c.key == *key && c.holds.is_none()) => {
                Some((self.key(key), value.clone()))
            }
            _ => None,
        })
    }
}

impl Engine for Etcd {
    fn place(&self) -> PathBuf {
        self.place.clone()
    }

    fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, StoreError> {
        self.glance(key, cluster::PATIENCE)
    }

    fn glance(&self, key: &Key, patience: Duration) -> Result<Option<Vec<u8>>, StoreError> {
        let key = self.key(key);
        let request = wire::RangeRequest { key: key.clone(), range_end: Vec::new(), limit: 1 };
        let answer = self.answer(|cluster| async move { cluster.range(request, patience).await })?;
        only(answer.kvs, &key).map_err(|Unasked| self.unasked("one value"))
    }

    fn page(&self, tree: Tree, after: Option<&[u8]>, most: usize) -> Result<Page, StoreError> {
        let whole = self.name(tree, b"");
        let key = match after {
            // The next possible name.
            Some(after) => [&self.name(tree, after), &b"\0"[..]].concat(),
            None => whole.clone(),
        };
        // What follows `/`: no name of the tree comes as late.
        let range_end = [whole.strip_suffix(b"/").unwrap_or(&whole), b"0"].concat();
        let limit = i64::try_from(most).unwrap_or(i64::MAX);
        let request = wire::RangeRequest { key: key.clone(), range_end: range_end.clone(), limit };
        let answer = self.answer(|cluster| async move { cluster.range(request, cluster::PATIENCE).await })?;
        if !is_page(&answer.kvs, &key, &range_end, most) {
            return Err(self.unasked("a page of names in their order"));
        }
        let named = |kv: wire::KeyValue| Some((kv.key.strip_prefix(whole.as_slice())?.to_vec(), kv.value));
        Ok(answer.kvs.into_iter().filter_map(named).collect())
    }

    fn commit(&self, conditions: &[Condition], writes: &[Write]) -> Result<bool, StoreError> {
        let request = self.transaction(conditions, writes);
        let created = self.created(conditions, writes);
        self.answer(|cluster| async move {
            let done = cluster.commit(request).await?;
            match created {
                // An earlier try of this very commit may have won, although its answer was lost.
                Some((key, value)) if !done.won && done.in_doubt => {
                    let request = wire::RangeRequest { key, range_end: Vec::new(), limit: 1 };
                    Ok(cluster.range(request, cluster::PATIENCE).await?.kvs.first().is_some_and(|kv| kv.value == value))
                }
                _ => Ok(done.won),
            }
        })
    }

    fn room(&self) -> usize {
        ROOM
    }

    fn watch(&self, key: &Key) -> watch::Receiver<u64> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(receiver) = watched.get(key) {
            return receiver.clone();
        }
        let (changes, receiver) = watch::channel(0);
        if let Some(runtime) = &self.runtime {
            runtime.spawn(self.cluster.clone().watch(self.key(key), changes));
        }
        watched.insert(key.clone(), receiver.clone());
        receiver
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// An answer to another question.
#[derive(Debug, PartialEq, Eq)]
struct Unasked;

/// The value under this key, if there is one.
fn only(kvs: Vec<wire::KeyValue>, key: &[u8]) -> Result<Option<Vec<u8>>, Unasked> {
    match <[wire::KeyValue; 1]>::try_from(kvs) {
        Ok([kv]) if kv.key == key => Ok(Some(kv.value)),
        Err(none) if none.is_empty() => Ok(None),
        _ => Err(Unasked),
    }
}

/// Whoever reads on begins after the last name: names out of their order would have it read for ever.
fn is_page(kvs: &[wire::KeyValue], from: &[u8], end: &[u8], most: usize) -> bool {
    let within = kvs.iter().all(|kv| kv.key.as_slice() >= from && kv.key.as_slice() < end);
    kvs.len() <= most && within && kvs.is_sorted_by(|one, next| one.key < next.key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kvs(keys: &[&str]) -> Vec<wire::KeyValue> {
        keys.iter().map(|key| wire::KeyValue { key: key.as_bytes().to_vec(), value: b"v".to_vec() }).collect()
    }

    #[test]
    fn a_value_of_another_key_is_no_answer() {
        assert_eq!(only(kvs(&[]), b"a"), Ok(None));
        assert_eq!(only(kvs(&["a"]), b"a"), Ok(Some(b"v".to_vec())));
        for wrong in [&["b"][..], &["a", "a"], &["a", "b"]] {
            assert_eq!(only(kvs(wrong), b"a"), Err(Unasked));
        }
    }

    #[test]
    fn a_page_is_ordered_within_what_was_asked_for_and_no_longer() {
        let is = |keys: &[&str]| is_page(&kvs(keys), b"b", b"d", 3);
        assert!(is(&[]) && is(&["b", "c", "c1"]));
        for wrong in [&["a"][..], &["d"], &["c", "b"], &["b", "b"], &["b", "b1", "b2", "c"]] {
            assert!(!is(wrong), "{wrong:?}");
        }
    }
}
