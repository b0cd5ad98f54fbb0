//! The policy by which programs are judged, now and later, wherever it comes from.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bonafide_policy::Policy;
use bonafide_proto::clock::SharedClock;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use tokio::sync::watch;

use crate::refuse::refuse;

/// A policy that parsed.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The policy.
    pub(crate) policy: Policy,
    /// The text it came from.
    pub(crate) text: String,
    /// Its number, if the authority published it; else 0.
    pub(crate) version: u64,
}

/// How often it is looked whether a digest retired.
const LOOK: Duration = Duration::from_millis(500);

/// Policies of which nothing changes with time for this daemon stay as they are.
fn at(state: State, now: i64) -> State {
    let State { loaded, error } = state;
    let timely = |loaded: Arc<Loaded>| {
        if !loaded.policy.has_retirements() {
            return loaded;
        }
        Arc::new(Loaded { policy: loaded.policy.clone().at(now), text: loaded.text.clone(), version: loaded.version })
    };
    State { loaded: loaded.map(timely), error }
}

/// What is known of policies.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    /// The last version that parsed.
    pub(crate) loaded: Option<Arc<Loaded>>,
    /// Why the newest version is not in force.
    pub(crate) error: Option<String>,
}

/// The policy in force, now and later.
#[derive(Debug, Clone)]
pub(crate) struct InForce {
    name: String,
    state: watch::Receiver<State>,
}

impl InForce {
    /// What is told here is in force; `name` is what people call it: the file's path, for example.
    pub(crate) fn new(name: String, state: watch::Receiver<State>) -> Self {
        Self { name, state }
    }

    /// The policy.
    ///
    /// # Errors
    /// `no-policy`, and why.
    pub(crate) fn get(&self) -> Result<Arc<Loaded>, AttestRefusal> {
        let state = self.state();
        match (state.loaded, state.error) {
            (Some(loaded), _) => Ok(loaded),
            (None, error) => refuse(AttestReason::NoPolicy, error.unwrap_or_else(|| "none was read yet".to_owned())),
        }
    }

    /// What is known now.
    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// The state now and at every change.
    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// The same at each time: digests retire. The second part keeps it so; run it.
    pub(crate) fn timely(&self, clock: &SharedClock) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (mut told, clock) = (self.state.clone(), Arc::clone(clock));
        let first = at(told.borrow_and_update().clone(), clock.unix());
        let (state, watched) = watch::channel(first);
        let keeping = async move {
            loop {
                let due = state.borrow().loaded.as_ref().is_some_and(|loaded| loaded.policy.has_retirements());
                tokio::select! {
                    changed = told.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(LOOK), if due => {
                        let next = state.borrow().loaded.as_ref().and_then(|loaded| loaded.policy.next_change());
                        if next.is_none_or(|next| clock.unix() < next) {
                            continue;
                        }
                    }
                }
                state.send_replace(at(told.borrow_and_update().clone(), clock.unix()));
            }
        };
        (Self { name: self.name.clone(), state: watched }, keeping)
    }

    /// What people call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}
