//! What changes about a container that runs is a lapse as soon as its runtime tells of it.

use std::time::{Duration, Instant};

use bonafide_proto::wire::node as wire;
use bonafide_proto::wire::node::lapse::Of;
use tonic::Streaming;

use crate::node::{Node, PATIENCE};
use crate::runtimes::{ONE, runtimes, unique};

/// What was confirmed is remembered so long: who is told of a change sooner was told by the runtime.
const REMEMBERED: Duration = Duration::from_secs(10);

/// The next lapse of an execution.
async fn lapse(lapses: &mut Streaming<wire::Lapse>) -> (u32, String) {
    loop {
        let lapse = tokio::time::timeout(PATIENCE, lapses.message()).await.expect("nothing lapses").unwrap().unwrap();
        if let Some(Of::Execution(execution)) = lapse.of {
            return (execution.pid, lapse.detail);
        }
    }
}

/// Whenever hearing begins everything is looked at; it does not begin so often while anything is remembered.
const CHANGES: u32 = 8;

/// Changes a container; whether all of it was told before anything could have been forgotten.
async fn changed(kind: &str, started: Instant, pid: u32, change: impl Fn(u32)) -> bool {
    let node = Node::start(&runtimes().config(kind)).await;
    let mut lapses = node.lapses().await;
    node.known(pid).await;
    let execution = node.process(pid).await.unwrap().executions[0];
    for time in 0..CHANGES {
        let attested = node.again(&[execution]).await.unwrap();
        assert!(attested.fingerprint.container.known().is_some());
        change(time);
        let (of, detail) = lapse(&mut lapses).await;
        assert_eq!(of, pid);
        assert!(detail.contains("has another name, labels or pod"), "{detail}");
    }
    started.elapsed() < REMEMBERED
}

/// On a busy machine all of this may take too long to show anything.
async fn is_told(kind: &str, start: impl Fn() -> (String, u32), change: impl Fn(&str, u32)) {
    let begun = Instant::now();
    while begun.elapsed() < 2 * PATIENCE {
        let started = Instant::now();
        let (id, pid) = start();
        if changed(kind, started, pid, |time| change(&id, time)).await {
            return;
        }
    }
    panic!("{kind} tells nothing");
}

#[tokio::test]
async fn a_container_that_docker_renames_lapses_as_soon_as_docker_tells() {
    let renamed = |id: &str, _: u32| drop(runtimes().docker(&["rename", id, &unique()]));
    is_told("docker", || runtimes().start_docker(&[]), renamed).await;
}

#[tokio::test]
async fn a_container_with_another_label_lapses_as_soon_as_containerd_tells() {
    let start = || {
        let id = unique();
        let pid = runtimes().start_native(&id, ONE);
        (id, pid)
    };
    let labelled = |id: &str, time: u32| drop(runtimes().ctr(&["container", "label", id, &format!("time={time}")]));
    is_told("containerd", start, labelled).await;
}

#[tokio::test]
async fn a_container_that_podman_renames_lapses_as_soon_as_podman_tells() {
    let renamed = |id: &str, _: u32| drop(runtimes().podman(&["rename", id, &unique()]));
    is_told("podman", || runtimes().start_podman(&unique()), renamed).await;
}
