//! One runtime: what it is asked, and what it may answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bonafide_proto::container::Container;
use tokio::sync::Notify;

use super::channel::Line;
use super::circuit::{AskError, Circuit};
use super::config::{RuntimeConfig, RuntimeKind};
use super::containerd::Containerd;
use super::dial::Dial;
use super::docker::Docker;
use super::told::Told;
use crate::parse::container_id::{Candidate, Maker};

/// Is this process in that container?
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// The process.
    pub(crate) pid: u32,
    /// The container, as the process's cgroup names it.
    pub(crate) candidate: Arc<Candidate>,
}

/// What a runtime that answers says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is.
    Holds(Box<Container>),
    /// It is, but the container is none that can be named, and why.
    Nameless(String),
    /// It is not, and why.
    Not(String),
}

/// A runtime.
#[derive(Debug)]
pub(crate) struct Runtime {
    config: RuntimeConfig,
    name: String,
    dial: Dial,
    circuit: Circuit,
    /// Whether its socket was ever there.
    seen: AtomicBool,
    /// Whether it failed last.
    failing: AtomicBool,
    /// It confirmed a container.
    confirmed: Notify,
    api: Api,
}

#[derive(Debug)]
enum Api {
    Containerd(Containerd),
    Docker(Docker),
}

impl Runtime {
    /// The one that is described so. Nothing is connected yet.
    pub(crate) fn new(config: RuntimeConfig) -> Self {
        let dial = Dial::new(config.socket.clone(), config.user);
        let api = match config.kind {
            RuntimeKind::Containerd => Api::Containerd(Containerd::new(dial.clone(), &config)),
            RuntimeKind::Docker | RuntimeKind::Podman => Api::Docker(Docker::new(dial.clone(), config.name())),
        };
        let (seen, failing) = (AtomicBool::new(!config.usual), AtomicBool::new(false));
        let (name, circuit, confirmed) = (config.name(), Circuit::new(), Notify::new());
        Self { name, config, dial, circuit, seen, failing, confirmed, api }
    }

    /// How it is called in evidence and messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// As whom it runs: the containers it makes are that user's.
    pub(crate) fn user(&self) -> u32 {
        self.config.user
    }

    /// The namespaces in which its containers have names of all kinds.
    pub(crate) fn namespaces(&self) -> &[String] {
        &self.config.namespaces
    }

    /// Changes whenever a connection to it ended.
    pub(crate) fn generation(&self) -> u64 {
        self.dial.generation()
    }

    /// Whether it can be the one who made such a container.
    pub(crate) fn makes(&self, maker: &Maker) -> bool {
        match (maker, self.config.kind) {
            (Maker::Unknown, _)
            | (Maker::Docker, RuntimeKind::Docker)
            | (Maker::Podman, RuntimeKind::Podman)
            | (Maker::Containerd, RuntimeKind::Containerd) => true,
            (Maker::ContainerdIn(namespace), _) => self.config.namespaces.contains(namespace),
            (Maker::Docker | Maker::Podman | Maker::Containerd | Maker::Crio, _) => false,
        }
    }

    /// Asks.
    ///
    /// # Errors
    /// Whatever keeps it from answering; in bounded time.
    pub(crate) async fn ask(&self, question: &Question) -> Result<Answer, AskError> {
        if !self.seen.load(Ordering::Relaxed) {
            if !self.config.socket.exists() {
                return Err(AskError::NotHere);
            }
            self.seen.store(true, Ordering::Relaxed);
        }
        let line = match &self.api {
            Api::Containerd(containerd) => Some(containerd.line()),
            Api::Docker(_) => None,
        };
        let before = line.map(Line::answers);
        let answer = self
            .circuit
            .ask(&question.candidate.id, async {
                match &self.api {
                    Api::Containerd(containerd) => containerd.ask(question).await,
                    Api::Docker(docker) => docker.ask(question).await,
                }
            })
            .await;
        if let (Some(line), Some(before), Err(AskError::Silent)) = (line, before, &answer) {
            line.silent(before);
        }
        self.tell(answer.as_ref().err());
        if matches!(answer, Ok(Answer::Holds(_))) {
            self.confirmed.notify_one();
        }
        answer
    }

    /// Waits until it confirmed a container, since this was done before.
    pub(crate) async fn confirmed(&self) {
        self.confirmed.notified().await;
    }

    /// Hears of changes of its containers as long as it tells of any, over a connection of its own.
    ///
    /// # Errors
    /// Whatever ends it.
    pub(crate) async fn hear(&self, told: &Told) -> Result<Infallible, AskError> {
        match &self.api {
            Api::Containerd(containerd) => containerd.hear(told).await,
            Api::Docker(docker) => docker.hear(told).await,
        }
    }

    /// Once when it begins to fail, and once when it answers again.
    fn tell(&self, error: Option<&AskError>) {
        let socket = self.config.socket.display();
        match (error, self.failing.swap(error.is_some(), Ordering::Relaxed)) {
            (Some(error), false) => tracing::warn!(runtime = self.name, %socket, %error, "a container runtime fails"),
            (None, true) => tracing::info!(runtime = self.name, %socket, "the container runtime answers again"),
            _ => {}
        }
    }
}
