//! A pod as a kubelet starts it, by messages of the CRI with only the fields that are needed.

use std::collections::HashMap;
use std::path::PathBuf;

use bonafide_proto::endpoint;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use crate::node::PATIENCE;
use crate::runtimes::{done, runtimes};

pub(crate) struct Cri(tonic::client::Grpc<Channel>);

/// A pod with one container.
pub(crate) struct Pod {
    pub(crate) container: String,
    pub(crate) pid: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Namespaces {
    /// 2: the node's.
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Security {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

/// Of a pod the first two fields, of a container's security the second.
#[derive(Clone, PartialEq, prost::Message)]
struct LinuxPod {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security: Option<Security>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(map = "string, string", tag = "6")]
    labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "7")]
    annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPod>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RunPod {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Name {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Name>,
    #[prost(message, optional, tag = "2")]
    image: Option<Name>,
    #[prost(map = "string, string", tag = "9")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    of_pod: Option<PodConfig>,
}

/// Most questions are an ID, and so are most answers.
#[derive(Clone, PartialEq, prost::Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

fn map(entries: &[(&str, &str)]) -> HashMap<String, String> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

impl Cri {
    pub(crate) async fn connect(socket: PathBuf) -> Self {
        let mut grpc = tonic::client::Grpc::new(endpoint::channel(socket));
        tokio::time::timeout(PATIENCE, grpc.ready()).await.unwrap().unwrap();
        Self(grpc)
    }

    /// Runs a pod with the container `web`.
    pub(crate) async fn run(&mut self, name: &str, tag: &str, image: &str) -> Pod {
        let uid = format!("uid-{name}");
        let of_pod = [
            ("io.kubernetes.pod.name", name),
            ("io.kubernetes.pod.namespace", "shop"),
            ("io.kubernetes.pod.uid", uid.as_str()),
        ];
        let config = PodConfig {
            metadata: Some(Metadata { name: name.to_owned(), uid: uid.clone(), namespace: "shop".to_owned() }),
            labels: map(&[of_pod.as_slice(), &[("app", "web")]].concat()),
            annotations: map(&[("example.org/account", "shopkeeper")]),
            linux: Some(LinuxPod {
                cgroup_parent: format!("/{tag}/kubepods/besteffort/pod{uid}"),
                security: Some(Security { namespaces: Some(Namespaces { network: 2 }) }),
            }),
        };
        let pod: Id = self.ask("RunPodSandbox", RunPod { config: Some(config.clone()) }).await;
        let container = ContainerConfig {
            metadata: Some(Name { name: "web".to_owned() }),
            image: Some(Name { name: image.to_owned() }),
            labels: map(&[of_pod.as_slice(), &[("io.kubernetes.container.name", "web")]].concat()),
        };
        let create = CreateContainer { pod: pod.id, config: Some(container), of_pod: Some(config) };
        let container: Id = self.ask("CreateContainer", create).await;
        let _: Id = self.ask("StartContainer", container.clone()).await;
        Pod { pid: first_process(&container.id), container: container.id }
    }

    async fn ask<Q, A>(&mut self, method: &str, question: Q) -> A
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let path: PathAndQuery = format!("/runtime.v1.RuntimeService/{method}").parse().unwrap();
        self.0.ready().await.unwrap();
        let answer = self.0.unary(tonic::Request::new(question), path, ProstCodec::default()).await;
        answer.unwrap_or_else(|e| panic!("{method}: {e}")).into_inner()
    }
}

fn first_process(container: &str) -> u32 {
    let socket = runtimes().socket("containerd");
    let mut ctr = std::process::Command::new("ctr");
    let listed = done(ctr.arg("--address").arg(socket).args(["--namespace", "k8s.io", "task", "ps", container]));
    listed.lines().find_map(|line| line.split_whitespace().next()?.parse().ok()).expect("it runs")
}
