//! What runtimes answer: whatever it is, what is kept of it is bounded and printable, and no enforcer refuses it.

use std::collections::BTreeMap;

use bonafide_proto::container::{Container, Pod};
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::wire::node;
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::ID;
use crate::container::bounded;
use crate::container::circuit::AskError;
use crate::container::containerd::{self, described, in_pod, leading_to, pod_of};
use crate::container::docker::{self, Image, Inspected, System, decoded};
use crate::container::http::{BODY_MAX, LINE_MAX, Lines, asked};
use crate::container::image::{Config, Leads, METADATA, Manifest, Pinned, chain, metadata_image, stored};
use crate::container::wire::containers::{Any, Container as Record};
use crate::container::wire::cri;
use crate::container::wire::events::Envelope;

/// Every text in it is one that a person can be shown, and an enforcer takes it as it is.
fn sound(container: &Container) {
    let (pod, own) = (container.pod.as_ref(), [&container.name, &container.image_name].into_iter().flatten());
    let of_pod = pod.into_iter().flat_map(|p| [&p.namespace, &p.name, &p.uid].into_iter().chain(&p.service_account));
    for text in own.chain(of_pod) {
        assert!(!text.is_empty() && text.len() <= 1024 && !text.chars().any(char::is_control), "{text:?}");
    }
    labels(&container.labels);
    pod.inspect(|pod| labels(&pod.labels));
    assert!(container.manifests.is_sorted_by(|one, next| one < next), "{:?}", container.manifests);
    assert_eq!(Container::try_from(node::Container::from(container)).unwrap(), *container);
}

fn labels(labels: &BTreeMap<String, String>) {
    assert!(labels.len() <= 256 && labels.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() <= 32 << 10);
    for (key, value) in labels {
        assert!(!key.is_empty() && ![key, value].iter().any(|text| text.chars().any(char::is_control)), "{key:?}");
    }
}

/// A refusal is a line that can be shown.
fn short(refusal: &AskError) {
    let said = refusal.to_string();
    assert!(said.len() < 2000 && !said.chars().any(char::is_control), "{said:?}");
}

#[test]
fn names_and_labels() {
    let digest = format!("docker.io/library/nginx@sha256:{ID}");
    fuzz!(&[b"nginx:latest", digest.as_bytes(), b"a\nb", &[b'x'; 5000]], |bytes| {
        let said = String::from_utf8_lossy(bytes).into_owned();
        if let Some(text) = bounded::text(&said) {
            assert_eq!(text, said);
        }
        let labels = bounded::labels([(said.clone(), said.clone())].into());
        assert!(labels.iter().all(|(name, value)| *name == said && *value == said));
        let manifests = bounded::manifests([said.clone()]);
        assert!(manifests.iter().all(|digest| said.contains(&digest.to_string())));
    });
}

#[test]
fn docker() {
    let inspected = format!(
        r#"{{"Id":"{ID}","Name":"/web","Image":"sha256:{ID}","State":{{"Running":true,"Pid":4711}},"Config":{{"Image":"nginx:1","Labels":{{"app":"web","x":""}},"Env":["A=b"]}}}}"#
    );
    let image = format!(r#"{{"Id":"x","RepoDigests":["nginx@sha256:{ID}","a/b@sha256:{ID}","nginx@sha256:1"]}}"#);
    let seeds: &[&[u8]] = &[
        inspected.as_bytes(),
        image.as_bytes(),
        br#"{"DriverStatus":[["Backing","x"],["driver-type","io.containerd.snapshotter.v1"]]}"#,
        br#"{"DriverStatus":null,"RepoDigests":null}"#,
    ];
    fuzz!(seeds, |body| {
        match decoded::<Inspected>(body) {
            Err(refusal) => short(&refusal),
            Ok(inspected) => {
                let Some(image) = inspected.image() else { return };
                assert!(body.windows(7).any(|part| part == b"sha256:"), "an image of nothing");
                let container = inspected.container("docker", image, vec![image]);
                // Whoever asks goes by the ID that it asked about.
                sound(&Container { id: ID.to_owned(), ..container });
            }
        }
        if decoded::<System>(body).is_ok_and(|system| system.names_no_configs()) {
            assert!(String::from_utf8_lossy(body).contains("snapshotter"));
        }
        if let Ok(image) = decoded::<Image>(body) {
            let manifests = image.manifests();
            assert!(manifests.len() <= 64 && manifests.is_sorted_by(|one, next| one < next), "{manifests:?}");
        }
    });
}

/// However it comes in pieces, it is the same; and what is told is a name that was said.
#[test]
fn changes_of_docker() {
    let event = format!(
        r#"{{"status":"rename","id":"{ID}","Type":"container","Action":"rename","Actor":{{"ID":"{ID}","Attributes":{{"a":"b"}}}},"time":1}}"#
    );
    let (two, long) = (format!("{event}\n\n{event}\n"), [b"x".repeat(LINE_MAX + 1).as_slice(), b"\n"].concat());
    fuzz!(&[two.as_bytes(), event.as_bytes(), &long, b"\n"], |said| {
        let told = lines(std::iter::once(said));
        assert_eq!(told, lines(said.chunks(1 + said.len() / 7)));
        assert_eq!(told.contains(&Ok(None)), said.split_inclusive(|b| *b == b'\n').any(too_long));
        for id in told.into_iter().flatten().flatten() {
            assert!(id.len() <= said.len(), "{id}");
        }
    });
}

/// What is told in these pieces.
fn lines<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Result<Option<String>, ()>> {
    let (mut lines, mut all) = (Lines::default(), Vec::new());
    for piece in pieces {
        let added = lines.add(piece, |line| {
            all.push(docker::about(line).map_err(|refusal| short(&refusal)));
            Ok(())
        });
        added.unwrap();
    }
    all
}

fn too_long(line: &[u8]) -> bool {
    line.ends_with(b"\n") && line.len() - 1 > LINE_MAX
}

#[test]
fn changes_of_containerd() {
    let envelope = |topic: &str, value: &[u8]| {
        let event = crate::container::wire::events::Any { type_url: "x".to_owned(), value: value.to_vec() };
        Envelope { topic: topic.to_owned(), event: Some(event) }.encode_to_vec()
    };
    let seeds = [envelope("/containers/update", b"\x0a\x03abc"), envelope("/tasks/exit", b"\x0a\x03abc"), Vec::new()];
    fuzz!(&seeds.each_ref().map(|seed| seed.as_slice()), |bytes| {
        let Ok(envelope) = Envelope::decode(bytes) else { return };
        if let Some(id) = containerd::about(&envelope) {
            assert!(envelope.topic.starts_with("/containers/"));
            assert!(id.is_empty() || bytes.windows(id.len()).any(|part| part == id.as_bytes()), "{id}");
        }
    });
}

const LAYERS: [&str; 3] = [
    "sha256:1111111111111111111111111111111111111111111111111111111111111111",
    "sha256:2222222222222222222222222222222222222222222222222222222222222222",
    "sha256:3333333333333333333333333333333333333333333333333333333333333333",
];

#[test]
fn images() {
    let [one, two, three] = LAYERS;
    let index = format!(r#"{{"manifests":[{{"digest":"{one}"}},{{"digest":"{two}","platform":{{}}}}]}}"#);
    let manifest = format!(r#"{{"config":{{"digest":"{three}"}},"layers":[{{"digest":"{one}"}}]}}"#);
    let config = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{one}","{two}"]}}}}"#);
    let noted = format!(r#"{{"Version":"v1","Metadata":{{"ID":"a","ImageRef":"{one}"}}}}"#);
    let seeds = [index, manifest, config, noted];
    fuzz!(&seeds.each_ref().map(|seed| seed.as_bytes()), |content| {
        let name = Digest::of(content).to_string();
        // Under another name nothing of it is believed.
        short(&stored::<Manifest>(LAYERS[0], content).err().unwrap());
        match stored::<Manifest>(&name, content).map(Manifest::leads) {
            Err(refusal) => short(&refusal),
            Ok(Leads::ToConfig(config)) => assert!(config.len() <= content.len()),
            Ok(Leads::ToManifests(manifests)) => {
                assert!(manifests.len() <= 32 && manifests.concat().len() <= content.len(), "{manifests:?}");
            }
        }
        if let Some(layers) = stored::<Config>(&name, content).ok().and_then(|config| config.layers()) {
            assert!(layers.len() <= 71, "{layers}");
        }
        let note = Any { type_url: String::new(), value: content.to_vec() };
        let record = Record { extensions: [(METADATA.to_owned(), note)].into(), ..Record::default() };
        if let Some(image) = metadata_image(&record) {
            // What is not looked at need not be UTF-8.
            let text = String::from_utf8_lossy(content);
            assert!(said(&serde_json::from_str(&text).unwrap(), &image.to_string()), "{image}");
        }
    });
}

/// Whether it says so anywhere.
fn said(value: &serde_json::Value, text: &str) -> bool {
    match value {
        serde_json::Value::String(said) => said == text,
        serde_json::Value::Array(all) => all.iter().any(|value| said(value, text)),
        serde_json::Value::Object(all) => all.values().any(|value| said(value, text)),
        _ => false,
    }
}

/// Layers upon layers are other layers, whatever they are called.
#[test]
fn chains_of_layers() {
    let (three, many) = (LAYERS.join(" "), "x ".repeat(1030));
    fuzz!(&[three.as_bytes(), LAYERS[0].as_bytes(), b"", b"a", many.as_bytes()], |bytes| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let ids: Vec<String> = text.split(' ').map(str::to_owned).collect();
        assert_eq!(chain(&[]), None);
        let Some(whole) = chain(&ids) else {
            assert!(ids.len() > 1024 || ids.iter().any(|id| id.len() > 71));
            return;
        };
        let (above, below) = ids.split_last().unwrap();
        match chain(below) {
            None => assert_eq!((whole.as_str(), below), (above.as_str(), &[][..])),
            Some(below) => assert_eq!(whole, Digest::of(format!("{below} {above}").as_bytes()).to_string()),
        }
    });
}

fn record() -> Record {
    Record {
        id: ID.to_owned(),
        image: "docker.io/library/nginx:1".to_owned(),
        labels: [("io.cri-containerd.kind".to_owned(), "container".to_owned())].into(),
        ..Record::default()
    }
}

fn status() -> cri::PodSandboxStatus {
    cri::PodSandboxStatus {
        id: "s".to_owned(),
        metadata: Some(cri::PodSandboxMetadata {
            name: "web-1".to_owned(),
            uid: "6f9d".to_owned(),
            namespace: "default".to_owned(),
        }),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        annotations: [("account".to_owned(), "web".to_owned())].into(),
    }
}

fn in_cri() -> cri::Container {
    cri::Container {
        id: ID.to_owned(),
        pod_sandbox_id: "s".to_owned(),
        metadata: Some(cri::ContainerMetadata { name: "web".to_owned() }),
        image_ref: format!("nginx@sha256:{ID}"),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        image_id: format!("sha256:{ID}"),
    }
}

fn cri_image() -> cri::Image {
    cri::Image { id: format!("sha256:{ID}"), repo_digests: vec![format!("nginx@sha256:{ID}"), "nginx".to_owned()] }
}

#[test]
fn containerd() {
    let seeds =
        [record().encode_to_vec(), status().encode_to_vec(), in_cri().encode_to_vec(), cri_image().encode_to_vec()];
    fuzz!(&seeds.each_ref().map(|seed| seed.as_slice()), |message| {
        let config: Digest = ID.parse().unwrap();
        let image = cri::Image::decode(message).ok();
        let manifests = leading_to(&config, image.clone(), "nginx");
        assert!(manifests.is_empty() || image.is_some_and(|image| image.id == config.to_string()));
        let pod = match pod_of("s", cri::PodSandboxStatus::decode(message).ok(), Some("account")) {
            Ok(pod) => pod,
            Err(refusal) => {
                short(&refusal);
                let (name, uid) = ("p".to_owned(), "u".to_owned());
                Pod { namespace: "n".to_owned(), name, uid, service_account: None, labels: BTreeMap::new() }
            }
        };
        let of_pod = in_pod(cri::Container::decode(message).unwrap_or_default(), pod);
        let record = Record { id: ID.to_owned(), ..Record::decode(message).unwrap_or_default() };
        let pinned = || Pinned { config, manifests: manifests.clone() };
        sound(&described("containerd", record.clone(), pinned(), None));
        sound(&described("containerd", record, pinned(), Some(of_pod)));
    });
}

/// Reads one question, and answers it with these bytes and no more.
async fn answer(mut connection: DuplexStream, bytes: &[u8]) {
    let mut question = Vec::new();
    while !question.ends_with(b"\r\n\r\n") {
        question.push(connection.read_u8().await.unwrap());
    }
    // Whoever asks may have heard enough.
    let _ = connection.write_all(bytes).await;
}

fn over_http(bytes: &[u8]) -> Result<Option<bytes::Bytes>, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (here, there) = tokio::io::duplex(4096);
        tokio::join!(asked(here, "/info"), answer(there, bytes)).0
    })
}

/// No bytes keep it waiting once they have ended.
#[test]
fn http() {
    let long = [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec(), vec![b'x'; BODY_MAX + 1]].concat();
    assert!(matches!(over_http(&long), Err(AskError::Garbage(why)) if why.starts_with("more than")));
    let seeds: &[&[u8]] = &[
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n1;x=y\r\n \r\n0\r\nA: b\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 404 Not Found\r\n\r\n",
        b"HTTP/1.1 500 No\r\nContent-Length: 18446744073709551615\r\n\r\nx",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n",
        b"",
    ];
    fuzz!(seeds, |bytes| {
        match over_http(bytes) {
            Ok(None) => assert!(bytes.windows(3).any(|part| part == b"404")),
            Ok(Some(body)) => {
                assert!(bytes.windows(3).any(|part| part == b"200"));
                assert!(bytes.len() >= body.len() + b"HTTP/1.1 200\r\n\r\n".len() - 2, "{body:?}");
            }
            Err(refusal) => short(&refusal),
        }
    });
}
