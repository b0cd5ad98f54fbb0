//! Names that look like a container's.

use crate::cgroups::Cgroup;
use crate::node::Node;
use crate::runtimes::{runtimes, unique};

#[tokio::test]
async fn a_cgroup_with_a_containers_name_is_not_that_container() {
    let node = Node::start(&runtimes().all()).await;
    let (id, _) = runtimes().start_docker(&[]);
    for path in [format!("/{}/docker-{id}.scope", unique()), format!("/{}/docker/{id}/x", unique())] {
        let mut forged = Cgroup::make(&path);
        assert_eq!(node.absent(forged.sleeper()).await, "docker says that this container's cgroups are others");
    }
    let mut invented = Cgroup::make(&format!("/{}/{}", unique(), "ab".repeat(32)));
    let why = node.absent(invented.sleeper()).await;
    assert!(why.contains("no such container"), "{why}");
}

#[tokio::test]
async fn a_containerd_says_who_is_not_in_its_container() {
    let (node, id) = (Node::start(&runtimes().all()).await, unique());
    runtimes().start_native(&id, crate::runtimes::ONE);
    let hexadecimal = "cd".repeat(32);
    runtimes().start_native(&hexadecimal, crate::runtimes::ONE);
    let mut forged = Cgroup::make(&format!("/{}/cri-containerd-{hexadecimal}.scope", unique()));
    let why = node.absent(forged.sleeper()).await;
    assert_eq!(why, "containerd says that this process is not in the container");
}

#[tokio::test]
async fn a_delegated_cgroup_is_not_even_asked_about() {
    // Nobody listens there: asking would fail.
    let socket = format!("/tmp/{}/no.sock", unique());
    let node = Node::start(&format!("[[runtime]]\nkind = \"docker\"\nsocket = \"{socket}\"\n")).await;
    let mut forged = Cgroup::make(&format!("/{}/docker/{}", unique(), "ab".repeat(32)));
    let pid = forged.sleeper();
    assert!(node.unavailable(pid).await.contains("the runtime docker cannot be asked"));
    forged.delegate(2, 65_534);
    assert!(node.absent(pid).await.contains("user 65534 may fill it"), "{}", node.absent(pid).await);
}
