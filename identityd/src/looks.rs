//! Looks at executions, shared: questions that wait for the same executions are all answered by the next look, which
//! begins after each of them was asked. So a burst of connections to one server costs a few looks.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bonafide_proto::fingerprint::Execution;

/// The looks under way. `T` is what one look finds.
#[derive(Debug)]
pub(crate) struct Looks<T> {
    under_way: Mutex<HashMap<Vec<Execution>, Last<T>>>,
    /// Counts questions and beginnings of looks, to tell which came first.
    moment: AtomicU64,
}

/// The last look, and when it began; locked while the next is under way.
type Last<T> = Arc<tokio::sync::Mutex<Option<(u64, T)>>>;

impl<T> Default for Looks<T> {
    fn default() -> Self {
        Self { under_way: Mutex::default(), moment: AtomicU64::new(0) }
    }
}

impl<T: Clone> Looks<T> {
    /// What a look finds that began after this was called: somebody else's, or this one.
    pub(crate) async fn share<F: Future<Output = T>>(&self, executions: &[Execution], look: impl FnOnce() -> F) -> T {
        let asked = self.moment();
        let last = self.last(executions);
        let mut held = last.lock().await;
        let found = match &*held {
            Some((began, found)) if *began > asked => found.clone(),
            _ => {
                let began = self.moment();
                let found = look().await;
                held.insert((began, found)).1.clone()
            }
        };
        drop(held);
        self.let_go(executions, &last);
        found
    }

    fn moment(&self) -> u64 {
        self.moment.fetch_add(1, Ordering::SeqCst)
    }

    fn last(&self, executions: &[Execution]) -> Last<T> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(under_way.entry(executions.to_vec()).or_default())
    }

    /// Forgets a look for which nobody waits. Who gives up waiting leaves it to the next who asks for the same.
    fn let_go(&self, executions: &[Execution], last: &Last<T>) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // One is here, one is in the map.
        if Arc::strong_count(last) <= 2 {
            under_way.remove(executions);
        }
        // What was given up by everybody who waited for it.
        if under_way.len() > STRAYS_MAX {
            under_way.retain(|_, last| Arc::strong_count(last) > 1);
        }
    }
}

/// Looks that may be left behind by those who gave up, before they are searched for.
const STRAYS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn who_waits_shares_the_next_look_and_nobody_an_earlier_one() {
        let looks = Arc::new(Looks::<usize>::default());
        let (count, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let ask = |pid| {
            let (looks, count, gate) = (Arc::clone(&looks), Arc::clone(&count), Arc::clone(&gate));
            tokio::spawn(async move {
                let look = || async {
                    let nth = count.fetch_add(1, Ordering::SeqCst);
                    gate.acquire().await.unwrap().forget();
                    nth
                };
                looks.share(&[Execution { pid, start_ticks: 1, image: 1 }], look).await
            })
        };
        let first = ask(1);
        while count.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let waiting: Vec<_> = (0..50).map(|_| ask(1)).collect();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(3);
        assert_eq!(first.await.unwrap(), 0, "it began before the others were asked");
        for one in waiting {
            assert_eq!(one.await.unwrap(), 1);
        }
        assert_eq!(ask(2).await.unwrap(), 2, "other executions are another look");
        assert!(looks.under_way.lock().unwrap().is_empty());
    }
}
