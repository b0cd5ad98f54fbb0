//! containerd: its own services say which processes a container has, and what it was started from; its CRI says which
//! pod it belongs to.

use std::convert::Infallible;

use bonafide_proto::container::{Container, Pod};
use bonafide_proto::fingerprint::Digest;
use prost::Message as _;
use tonic::transport::Channel;

use super::bounded;
use super::channel::{Line, answered, failed};
use super::circuit::AskError;
use super::config::RuntimeConfig;
use super::dial::Dial;
use super::image::{Images, Pinned, metadata_image};
use super::runtime::{Answer, Question};
use super::told::Told;
use super::wire::containers::containers_client::ContainersClient;
use super::wire::containers::{Container as Record, GetContainerRequest};
use super::wire::cri::image_service_client::ImageServiceClient;
use super::wire::cri::runtime_service_client::RuntimeServiceClient;
use super::wire::cri::{self, ContainerFilter, ImageSpec, ImageStatusRequest, ListContainersRequest};
use super::wire::events::events_client::EventsClient;
use super::wire::events::{Envelope, OfContainer, SubscribeRequest};
use super::wire::tasks::ListPidsRequest;
use super::wire::tasks::tasks_client::TasksClient;
use crate::parse::container_id::Maker;

/// The label by which the CRI knows its own containers, and says what they are: `container` or `sandbox`.
const KIND: &str = "io.cri-containerd.kind";

/// The name that Kubernetes gives to a pod's sandbox.
const SANDBOX: &str = "POD";

/// What it is to tell of: the kernel tells of processes.
const TOPICS: [&str; 2] = ["/containers/update", "/containers/delete"];

/// The longest piece of news, in bytes.
const NEWS_MAX: usize = 1 << 20;

/// A containerd.
#[derive(Debug)]
pub(crate) struct Containerd {
    line: Line,
    images: Images,
    runtime: String,
    namespaces: Vec<String>,
    service_account: Option<String>,
}

/// A container as the CRI knows it.
pub(crate) struct OfPod {
    name: Option<String>,
    labels: std::collections::HashMap<String, String>,
    image_ref: String,
    image_id: String,
    pod: Pod,
}

impl Containerd {
    /// Whoever answers there.
    pub(crate) fn new(dial: Dial, config: &RuntimeConfig) -> Self {
        Self {
            line: Line::new(dial),
            images: Images::default(),
            runtime: config.name(),
            namespaces: config.namespaces.clone(),
            service_account: config.service_account.clone(),
        }
    }

    /// Asks, in each namespace where it could be.
    ///
    /// # Errors
    /// Whatever keeps it from answering. Time is the caller's to bound.
    pub(crate) async fn ask(&self, question: &Question) -> Result<Answer, AskError> {
        let channel = self.line.channel();
        let mut answer = Answer::Not("containerd has no such container".to_owned());
        for namespace in &self.namespaces {
            if matches!(&question.candidate.maker, Maker::ContainerdIn(only) if only != namespace) {
                continue;
            }
            let asked = self.ask_in(&channel, namespace, question).await;
            self.line.note(&asked);
            match asked? {
                None => {}
                Some(Answer::Not(why)) => answer = Answer::Not(why),
                Some(answer) => return Ok(answer),
            }
        }
        Ok(answer)
    }

    /// The way to it.
    pub(crate) fn line(&self) -> &Line {
        &self.line
    }

    /// Hears of changes from now on, in every namespace: who is watched is looked up by the container's ID.
    ///
    /// # Errors
    /// Whatever ends it.
    pub(crate) async fn hear(&self, told: &Told) -> Result<Infallible, AskError> {
        let channel = self.line.apart().await?;
        told.begins_now(heard(channel, told)).await
    }

    /// `None`: there is no such container in this namespace.
    async fn ask_in(
        &self,
        channel: &Channel,
        namespace: &str,
        question: &Question,
    ) -> Result<Option<Answer>, AskError> {
        let id = &question.candidate.id;
        let request = GetContainerRequest { id: id.clone() };
        let found = ContainersClient::new(channel.clone()).get(within(namespace, request)?).await;
        let Some(record) = answered(found)?.and_then(|found| found.container) else { return Ok(None) };
        if record.id != *id {
            return Err(AskError::garbage(format!("asked about {id}, it tells about {}", record.id)));
        }
        if !has_process(channel, namespace, question).await? {
            return Ok(Some(Answer::Not("containerd says that this process is not in the container".to_owned())));
        }
        self.container(channel, namespace, record).await.map(Some)
    }

    async fn container(&self, channel: &Channel, namespace: &str, record: Record) -> Result<Answer, AskError> {
        let of_pod = match record.labels.get(KIND).map(String::as_str) {
            Some("container") => Some(of_pod(channel, &record.id, self.service_account.as_deref()).await?),
            Some("sandbox") => Some(self.sandbox(channel, &record.id).await?),
            _ => None,
        };
        let Some(of_pod) = of_pod else { return self.native(channel, namespace, record).await };
        let told = metadata_image(&record).or_else(|| of_pod.image_id.parse().ok());
        let pinned = match told {
            Some(config) => Ok(Pinned { config, manifests: repo_digests(channel, &config, &of_pod.image_ref).await? }),
            // The sandbox's image is no image of the pod's.
            None => self.images.pinned(channel, namespace, &record).await?,
        };
        Ok(self.answer(record, pinned, Some(of_pod)))
    }

    async fn native(&self, channel: &Channel, namespace: &str, record: Record) -> Result<Answer, AskError> {
        let pinned = self.images.pinned(channel, namespace, &record).await?;
        Ok(self.answer(record, pinned, None))
    }

    fn answer(&self, record: Record, pinned: Result<Pinned, String>, of_pod: Option<OfPod>) -> Answer {
        match pinned {
            Ok(pinned) => Answer::Holds(Box::new(described(&self.runtime, record, pinned, of_pod))),
            Err(why) => Answer::Nameless(why),
        }
    }

    async fn sandbox(&self, channel: &Channel, id: &str) -> Result<OfPod, AskError> {
        let pod = pod(channel, id, self.service_account.as_deref()).await?;
        Ok(sandbox(pod))
    }
}

/// What is kept of a container.
pub(crate) fn described(runtime: &str, record: Record, pinned: Pinned, of_pod: Option<OfPod>) -> Container {
    let (name, labels, pod) = match of_pod {
        Some(OfPod { name, labels, pod, .. }) => (name, labels, Some(pod)),
        None => (None, record.labels, None),
    };
    Container {
        runtime: runtime.to_owned(),
        name,
        image: pinned.config,
        image_name: bounded::text(&record.image),
        manifests: pinned.manifests,
        labels: bounded::labels(labels),
        pod,
        id: record.id,
    }
}

/// It says that it listens only with the first news.
async fn heard(channel: Channel, told: &Told) -> Result<Infallible, AskError> {
    let filters = TOPICS.map(|topic| format!("topic=={topic:?}")).to_vec();
    let mut events = EventsClient::new(channel).max_decoding_message_size(NEWS_MAX);
    let subscribed = events.subscribe(SubscribeRequest { filters }).await;
    let mut news = subscribed.map_err(|status| failed(&status))?.into_inner();
    while let Some(envelope) = news.message().await.map_err(|status| failed(&status))? {
        told.of(about(&envelope));
    }
    Err(AskError::ended())
}

/// Of which container that is; `None` if it cannot be told.
pub(crate) fn about(envelope: &Envelope) -> Option<String> {
    let event = envelope.event.as_ref()?;
    let of = TOPICS.contains(&envelope.topic.as_str()).then(|| OfContainer::decode(event.value.as_slice()))?;
    of.ok().map(|of| of.id)
}

fn sandbox(pod: Pod) -> OfPod {
    let (image_ref, image_id) = (String::new(), String::new());
    OfPod { name: Some(SANDBOX.to_owned()), labels: Default::default(), image_ref, image_id, pod }
}

/// A request in one of containerd's namespaces.
pub(super) fn within<T>(namespace: &str, message: T) -> Result<tonic::Request<T>, AskError> {
    let mut request = tonic::Request::new(message);
    let namespace = namespace.parse().map_err(|_| AskError::failed("the namespace is none"))?;
    request.metadata_mut().insert("containerd-namespace", namespace);
    Ok(request)
}

async fn has_process(channel: &Channel, namespace: &str, question: &Question) -> Result<bool, AskError> {
    let request = ListPidsRequest { container_id: question.candidate.id.clone() };
    let listed = TasksClient::new(channel.clone()).list_pids(within(namespace, request)?).await;
    let processes = answered(listed)?.map(|listed| listed.processes).unwrap_or_default();
    Ok(processes.iter().any(|process| process.pid == question.pid))
}

async fn of_pod(channel: &Channel, id: &str, service_account: Option<&str>) -> Result<OfPod, AskError> {
    let filter = Some(ContainerFilter { id: id.to_owned() });
    let listed = RuntimeServiceClient::new(channel.clone()).list_containers(ListContainersRequest { filter }).await;
    let containers = answered(listed)?.map(|listed| listed.containers).unwrap_or_default();
    let Some(container) = containers.into_iter().find(|container| container.id == id) else {
        return Err(AskError::garbage(format!("its CRI does not know {id}, which is labelled as the CRI's own")));
    };
    let pod = pod(channel, &container.pod_sandbox_id, service_account).await?;
    Ok(in_pod(container, pod))
}

/// What the CRI says of a container in this pod.
pub(crate) fn in_pod(container: cri::Container, pod: Pod) -> OfPod {
    OfPod {
        name: container.metadata.and_then(|metadata| bounded::text(&metadata.name)),
        labels: container.labels,
        image_ref: container.image_ref,
        image_id: container.image_id,
        pod,
    }
}

async fn pod(channel: &Channel, sandbox: &str, service_account: Option<&str>) -> Result<Pod, AskError> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned() };
    let status = answered(RuntimeServiceClient::new(channel.clone()).pod_sandbox_status(request).await)?;
    pod_of(sandbox, status.and_then(|status| status.status), service_account)
}

/// What the CRI says of a pod. Where it does not say which one it is, there is none.
pub(crate) fn pod_of(
    sandbox: &str,
    status: Option<cri::PodSandboxStatus>,
    service_account: Option<&str>,
) -> Result<Pod, AskError> {
    let Some((metadata, status)) = status.and_then(|status| Some((status.metadata.clone()?, status))) else {
        return Err(AskError::garbage(format!("its CRI does not know the sandbox {sandbox}")));
    };
    let part = |what: &str, said: &str| {
        bounded::text(said).ok_or_else(|| AskError::garbage(format!("the {what} of the pod {sandbox} is {said:?}")))
    };
    let account = service_account.and_then(|key| status.annotations.get(key).or_else(|| status.labels.get(key)));
    Ok(Pod {
        namespace: part("namespace", &metadata.namespace)?,
        name: part("name", &metadata.name)?,
        uid: part("uid", &metadata.uid)?,
        service_account: account.and_then(|account| bounded::text(account)),
        labels: bounded::labels(status.labels),
    })
}

/// The manifests that lead to this config, as far as containerd knows; they may be of other names for the same image.
async fn repo_digests(channel: &Channel, config: &Digest, image_ref: &str) -> Result<Vec<Digest>, AskError> {
    let image = Some(ImageSpec { image: config.to_string() });
    let status = ImageServiceClient::new(channel.clone()).image_status(ImageStatusRequest { image }).await;
    Ok(leading_to(config, answered(status)?.and_then(|status| status.image), image_ref))
}

/// The manifests in what the CRI says of this config's image.
pub(crate) fn leading_to(config: &Digest, image: Option<cri::Image>, image_ref: &str) -> Vec<Digest> {
    let names = image.filter(|image| image.id == config.to_string()).map(|image| image.repo_digests);
    bounded::manifests(names.unwrap_or_default().into_iter().chain([image_ref.to_owned()]))
}
