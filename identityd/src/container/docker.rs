//! Docker's API, which Podman speaks too. It says where a container's first process is: the process in question must
//! be in that one's container cgroups.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bonafide_proto::container::Container;
use bonafide_proto::fingerprint::Digest;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::bounded;
use super::circuit::AskError;
use super::dial::Dial;
use super::http::{self, Http, Line};
use super::runtime::{Answer, Question};
use super::told::Told;
use crate::parse::container_id::{Candidate, candidates};
use crate::sys::process::Process;

/// Waits for a container that is there, and about to run: its program may be faster than its runtime's books.
const STARTS: [Duration; 4] =
    [Duration::from_millis(10), Duration::from_millis(30), Duration::from_millis(90), Duration::from_millis(270)];

/// How Docker calls the store in which an image's ID is not the digest of its config.
const CONTAINERD_STORE: &str = "io.containerd.snapshotter.v1";

/// What it is to tell of, `{"type":["container"],"event":["rename","update","destroy","remove"]}`: the kernel tells of
/// processes. (Podman says `remove` where Docker says `destroy`.)
const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22rename%22%2C\
                      %22update%22%2C%22destroy%22%2C%22remove%22%5D%7D";

/// The largest `/proc/PID/cgroup` that is read, in bytes.
const CGROUP_MAX: u64 = 64 << 10;

/// A Docker, or a Podman.
#[derive(Debug)]
pub(crate) struct Docker {
    http: Http,
    runtime: String,
    /// What the server says of its images, which stays so until it is another; and which server that was.
    names_no_configs: Mutex<Option<(u64, bool)>>,
}

/// `GET /containers/ID/json`. Whatever else it says, environments among it, is not kept.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Inspected {
    id: String,
    #[serde(default)]
    name: String,
    image: String,
    state: State,
    config: Config,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    running: bool,
    pid: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    image: String,
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
}

/// A line of `GET /events`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    actor: Actor,
}

#[derive(Deserialize)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
}

/// `GET /info`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct System {
    #[serde(default)]
    driver_status: Option<Vec<Vec<String>>>,
}

/// `GET /images/ID/json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Image {
    #[serde(default)]
    repo_digests: Option<Vec<String>>,
}

impl Inspected {
    /// The digest of the image's config, where that is what it was started from.
    pub(crate) fn image(&self) -> Option<Digest> {
        self.image.strip_prefix("sha256:")?.parse().ok()
    }

    /// What is kept of it.
    pub(crate) fn container(self, runtime: &str, image: Digest, manifests: Vec<Digest>) -> Container {
        Container {
            runtime: runtime.to_owned(),
            id: self.id,
            name: bounded::text(self.name.trim_start_matches('/')),
            image,
            image_name: bounded::text(&self.config.image),
            manifests,
            labels: bounded::labels(self.config.labels.unwrap_or_default()),
            pod: None,
        }
    }
}

impl System {
    /// Whether an image's ID is another digest there than that of its config.
    pub(crate) fn names_no_configs(&self) -> bool {
        self.driver_status.iter().flatten().flatten().any(|value| value == CONTAINERD_STORE)
    }
}

impl Image {
    /// The manifests that lead to it.
    pub(crate) fn manifests(self) -> Vec<Digest> {
        bounded::manifests(self.repo_digests.unwrap_or_default())
    }
}

/// What a body says, if it is JSON of this kind.
pub(crate) fn decoded<T: DeserializeOwned>(body: &[u8]) -> Result<T, AskError> {
    serde_json::from_slice(body).map_err(|e| AskError::garbage(e.to_string()))
}

/// Of which container a line of `GET /events` is; `None` if it cannot be told.
///
/// # Errors
/// Another server would say that.
pub(crate) fn about(line: Line<'_>) -> Result<Option<String>, AskError> {
    match line {
        Line::Whole(line) => decoded(line).map(|event: Event| Some(event.actor.id)),
        Line::TooLong => Ok(None),
    }
}

impl Docker {
    /// Whoever answers there, under this name.
    pub(crate) fn new(dial: Dial, runtime: String) -> Self {
        Self { http: Http::new(dial), runtime, names_no_configs: Mutex::default() }
    }

    /// Asks.
    ///
    /// # Errors
    /// Whatever keeps it from answering. Time is the caller's to bound.
    pub(crate) async fn ask(&self, question: &Question) -> Result<Answer, AskError> {
        let candidate = &question.candidate;
        if !is_hexadecimal(&candidate.id) {
            return Ok(Answer::Not(format!("{} has no container of that name", self.runtime)));
        }
        let Some(inspected) = self.running(&candidate.id).await? else {
            return Ok(Answer::Not(format!("{} has no such container that runs", self.runtime)));
        };
        let (first, shared) = (inspected.state.pid, question.candidate.clone());
        let shares = tokio::task::spawn_blocking(move || shares_cgroups(first, &shared)).await;
        if !shares.map_err(|e| AskError::failed(e.to_string()))? {
            let why = format!("{} says that this container's cgroups are others", self.runtime);
            return Ok(Answer::Not(why));
        }
        self.container(inspected).await
    }

    /// Hears of changes from now on.
    ///
    /// # Errors
    /// Whatever ends it.
    pub(crate) async fn hear(&self, told: &Told) -> Result<Infallible, AskError> {
        let connection = self.http.fresh().await?;
        let heard = http::lines(connection, EVENTS, |line| {
            told.of(about(line)?);
            Ok(())
        });
        told.begins_now(heard).await
    }

    /// The container, once it runs; `None` if it is not there, or does not.
    async fn running(&self, id: &str) -> Result<Option<Inspected>, AskError> {
        let mut waits = STARTS.iter();
        loop {
            let Some(inspected) = self.get::<Inspected>(&format!("/containers/{id}/json")).await? else {
                return Ok(None);
            };
            if inspected.id != id {
                return Err(AskError::garbage(format!("asked about {id}, it tells about {}", inspected.id)));
            }
            if inspected.state.running && inspected.state.pid != 0 {
                return Ok(Some(inspected));
            }
            let Some(wait) = waits.next() else { return Ok(None) };
            tokio::time::sleep(*wait).await;
        }
    }

    async fn container(&self, inspected: Inspected) -> Result<Answer, AskError> {
        let Some(image) = inspected.image() else {
            return Ok(Answer::Nameless("its container was not started from an image".to_owned()));
        };
        if self.names_no_configs().await? {
            let why =
                format!("{} keeps images in containerd's store, and tells no digest of their configs", self.runtime);
            return Ok(Answer::Nameless(why));
        }
        let manifests = self.manifests(&inspected.image).await?;
        Ok(Answer::Holds(Box::new(inspected.container(&self.runtime, image, manifests))))
    }

    async fn names_no_configs(&self) -> Result<bool, AskError> {
        let generation = self.http.generation();
        let known = *self.names_no_configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, said)) = known.filter(|(of, _)| *of == generation) {
            return Ok(said);
        }
        let system: Option<System> = self.get("/info").await?;
        let said = system.is_some_and(|system| system.names_no_configs());
        *self.names_no_configs.lock().unwrap_or_else(PoisonError::into_inner) = Some((generation, said));
        Ok(said)
    }

    async fn manifests(&self, image: &str) -> Result<Vec<Digest>, AskError> {
        let image: Option<Image> = self.get(&format!("/images/{image}/json")).await?;
        Ok(image.map(Image::manifests).unwrap_or_default())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, AskError> {
        self.http.get(path).await?.map(|body| decoded(&body)).transpose()
    }
}

fn is_hexadecimal(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether the container's first process is in the same container cgroups: all of them, in every tree.
fn shares_cgroups(first: u32, candidate: &Candidate) -> bool {
    let Ok(process) = Process::pin(first) else { return false };
    let Ok(cgroup) = process.content("cgroup", CGROUP_MAX) else { return false };
    let Ok(of_first) = candidates(&cgroup, &[]) else { return false };
    let same = |other: &Candidate| {
        let holds = |a: &Candidate, b: &Candidate| a.seats.iter().all(|seat| b.seats.contains(seat));
        other.id == candidate.id && holds(other, candidate) && holds(candidate, other)
    };
    of_first.iter().any(same) && process.alive().is_ok()
}
