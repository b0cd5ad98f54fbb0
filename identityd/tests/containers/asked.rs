//! An operator asks by what a container is called.

use bonafide_proto::refusal::AttestReason;

use crate::cri::Cri;
use crate::node::Node;
use crate::runtimes::{ONE, runtimes, unique};

#[tokio::test]
async fn a_containers_first_process_is_found_by_its_id_the_beginning_of_it_and_its_name() {
    let (node, name) = (Node::start(&runtimes().all()).await, unique());
    let (id, pid) = runtimes().start_docker(&["--name", &name]);
    node.known(pid).await;
    runtimes().docker(&["exec", "--detach", &name, "/bin/sleep", "999"]);
    for called in [id.as_str(), &id[..12], &name] {
        let found = node.called(called).await.unwrap();
        assert_eq!(found.executions.iter().map(|e| e.pid).collect::<Vec<_>>(), [pid], "{called}");
        assert_eq!(found.fingerprint.container.known().unwrap().id, id);
    }
    // Fewer digits are no ID.
    assert_eq!(node.called(&id[..11]).await.unwrap_err().reason, AttestReason::ProcessGone);
    runtimes().docker(&["kill", &id]);
    let gone = async || node.called(&name).await.is_err_and(|e| e.reason == AttestReason::ProcessGone);
    while !gone().await {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_container_of_containerd_is_found_by_the_name_that_is_its_id() {
    let (node, id) = (Node::start(&runtimes().all()).await, unique());
    let pid = runtimes().start_native(&id, ONE);
    node.known(pid).await;
    assert_eq!(node.called(&id).await.unwrap().executions[0].pid, pid);
}

#[tokio::test]
async fn a_name_that_several_pods_give_their_containers_is_nobodys() {
    let node = Node::start(&runtimes().all()).await;
    let mut cri = Cri::connect(runtimes().socket("containerd")).await;
    let one = cri.run(&unique(), runtimes().tag(), ONE).await;
    let two = cri.run(&unique(), runtimes().tag(), ONE).await;
    for pod in [&one, &two] {
        let name = node.known(pod.pid).await.name.unwrap();
        assert_eq!(name, "web");
        assert_eq!(node.called(&pod.container[..12]).await.unwrap().executions[0].pid, pod.pid);
    }
    let several = node.called("web").await.unwrap_err();
    assert_eq!(several.reason, AttestReason::BadRequest, "{several}");
    assert!(several.detail.contains("containers are called so"), "{several}");
}
