//! What runtimes confirm.

use bonafide_policy::{Identified, Policy};
use bonafide_proto::fingerprint::{Fingerprint, Root};

use crate::cri::Cri;
use crate::node::Node;
use crate::runtimes::{ONE, runtimes, unique};

#[tokio::test]
async fn a_container_of_containerd_is_confirmed_with_the_digest_of_its_images_config() {
    let (node, id) = (Node::start(&runtimes().all()).await, unique());
    let pid = runtimes().start_native(&id, ONE);
    let found = node.known(pid).await;
    assert_eq!((found.runtime.as_str(), &found.id, found.name), ("containerd", &id, None));
    assert_eq!((found.image, found.image_name.as_deref()), (runtimes().one().config, Some(ONE)));
    assert_eq!(found.manifests, [runtimes().one().manifest]);
    assert_eq!(found.labels.get("made-by").map(String::as_str), Some("hand"));
    assert_eq!(found.pod, None);

    // Another program that was sent into it is in it too.
    runtimes().ctr(&["task", "exec", "--detach", "--exec-id", "more", &id, "/bin/sleep", "999"]);
    let listed = runtimes().ctr(&["task", "ps", &id]);
    let other = listed.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).find(|p| *p != pid);
    assert_eq!(node.known(other.unwrap()).await.id, id);
}

#[tokio::test]
async fn a_name_that_moved_since_says_nothing_about_a_containers_image() {
    let (id, name) = (unique(), format!("localhost/{}:1", unique()));
    runtimes().ctr(&["image", "tag", ONE, &name]);
    let pid = runtimes().start_native(&id, &name);
    let early = Node::start(&runtimes().all()).await;
    assert_eq!(early.known(pid).await.image, runtimes().one().config);

    runtimes().ctr(&["image", "tag", "--force", crate::runtimes::TWO, &name]);
    let late = Node::start(&runtimes().all()).await;
    assert!(late.absent(pid).await.contains("was moved"), "{}", late.absent(pid).await);
    // What was found out before that stays, and what is started now has the other image.
    assert_eq!(early.known(pid).await.image, runtimes().one().config);
    let pid = runtimes().start_native(&unique(), &name);
    assert_eq!(late.known(pid).await.image, runtimes().two().config);
}

#[tokio::test]
async fn a_pod_is_confirmed_with_its_namespace_name_uid_and_service_account() {
    let node = Node::start_as("kernel", &runtimes().all()).await;
    let (mut cri, name) = (Cri::connect(runtimes().socket("containerd")).await, unique());
    let pod = cri.run(&name, runtimes().tag(), ONE).await;
    let found = node.known(pod.pid).await;
    assert_eq!((found.runtime.as_str(), &found.id, found.name.as_deref()), ("containerd", &pod.container, Some("web")));
    assert_eq!((found.image, found.image_name.as_deref()), (runtimes().one().config, Some(ONE)));
    assert_eq!(found.labels.get("io.kubernetes.container.name").map(String::as_str), Some("web"));
    // The image's own labels are its maker's word, not the pod's.
    assert_eq!(found.labels.get("image"), None);
    let of_pod = found.pod.unwrap();
    assert_eq!((of_pod.namespace.as_str(), of_pod.name, of_pod.uid), ("shop", name.clone(), format!("uid-{name}")));
    assert_eq!(of_pod.service_account.as_deref(), Some("shopkeeper"));
    assert_eq!(of_pod.labels.get("app").map(String::as_str), Some("web"));
}

#[tokio::test]
async fn a_container_of_docker_is_confirmed() {
    let (node, name) = (Node::start_as("kernel", &runtimes().all()).await, unique());
    let (id, pid) = runtimes().start_docker(&["--name", &name, "--label", "tier=front"]);
    let found = node.known(pid).await;
    assert_eq!((found.runtime.as_str(), found.id, found.name), ("docker", id, Some(name)));
    assert_eq!((found.image, found.image_name.as_deref()), (runtimes().one().config, Some(ONE)));
    assert_eq!(found.labels.get("tier").map(String::as_str), Some("front"));
    assert_eq!(found.labels.get("image").map(String::as_str), Some(ONE));
}

/// Whether the evidence earns a workload that is known by its path, its uid and this.
fn earns(fingerprint: &Fingerprint, more: &str) -> bool {
    let workload = format!("name = \"w\"\nexe = {:?}\nuid = {}\n{more}", fingerprint.exe.path, fingerprint.uid);
    let policy = Policy::parse("p", &format!("mode = \"enforce\"\n[[workload]]\n{workload}\n")).unwrap();
    matches!(policy.identify(fingerprint), Identified::Workload(_))
}

#[tokio::test]
async fn a_program_of_a_container_is_none_of_the_host_s_at_its_path() {
    let (node, name) = (Node::start_as("kernel", &runtimes().all()).await, unique());
    let (_, pid) = runtimes().start_docker(&["--name", &name]);
    node.known(pid).await;
    let there = node.process(pid).await.unwrap().fingerprint;
    assert!(there.exe.path.starts_with('/') && matches!(there.root, Root::Other(_)), "{there:?}");
    assert!(!earns(&there, ""));
    assert!(earns(&there, &format!("container = \"{name}\"")));
    let here = node.process(std::process::id()).await.unwrap().fingerprint;
    assert_eq!(here.root, Root::Host);
    assert!(earns(&here, ""));
}

#[tokio::test]
async fn a_container_of_podman_is_confirmed() {
    let (node, name) = (Node::start(&runtimes().all()).await, unique());
    let (id, pid) = runtimes().start_podman(&name);
    let found = node.known(pid).await;
    assert_eq!((found.runtime.as_str(), found.id, found.name), ("podman", id, Some(name)));
    assert_eq!((found.image, found.image_name.as_deref()), (runtimes().one().config, Some(ONE)));
    assert_eq!(found.manifests, [runtimes().one().manifest]);
}

#[tokio::test]
async fn a_program_of_the_host_is_in_no_container() {
    let node = Node::start(&runtimes().all()).await;
    assert_eq!(node.absent(std::process::id()).await, "it is in no container");
}
