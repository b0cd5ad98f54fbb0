//! The policy by which programs are judged, now and later, wherever it comes from.

use std::sync::Arc;

use bonafide_policy::Policy;
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

    /// What people call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}
