//! Units: believed from what root made, not from what was delegated.

use std::process::Command;

use bonafide_proto::fingerprint::{Evidence, Unit};

use crate::cgroups::Cgroup;
use crate::node::Node;
use crate::runtimes::{done, unique};

const INVOCATION: &str = "0123456789abcdef0123456789abcdef";

async fn unit(node: &Node, pid: u32) -> Evidence<Unit> {
    node.process(pid).await.unwrap().fingerprint.unit
}

#[tokio::test]
async fn a_unit_is_known_with_its_invocation() {
    let (node, name) = (Node::start("runtime = []").await, format!("{}.service", unique()));
    let mut cgroup = Cgroup::make(&format!("/{}.slice/{name}/below", unique()));
    let pid = cgroup.sleeper();
    assert_eq!(unit(&node, pid).await, Evidence::Known(Unit { name: name.clone(), invocation: None }));

    let python = "import os, sys; os.setxattr(sys.argv[1], sys.argv[2], sys.argv[3].encode())";
    let note = |attribute: &str, value: &str| {
        let directory = cgroup.directory(2);
        done(Command::new("python3").args(["-c", python]).arg(directory).args([attribute, value]));
    };
    // Its owner may write the one, and only root the other.
    note("user.invocation_id", INVOCATION);
    assert_eq!(unit(&node, pid).await, Evidence::Known(Unit { name: name.clone(), invocation: None }));
    note("trusted.invocation_id", "not an ID");
    assert_eq!(unit(&node, pid).await, Evidence::Known(Unit { name: name.clone(), invocation: None }));
    note("trusted.invocation_id", INVOCATION);
    let expected = Unit { name, invocation: Some(INVOCATION.to_owned()) };
    assert_eq!(unit(&node, pid).await, Evidence::Known(expected));
}

#[tokio::test]
async fn a_unit_that_was_made_in_a_delegated_cgroup_is_not_believed() {
    let node = Node::start("runtime = []").await;
    let mut cgroup = Cgroup::make(&format!("/{}.slice/nginx.service", unique()));
    let pid = cgroup.sleeper();
    assert!(unit(&node, pid).await.known().is_some());
    cgroup.delegate(1, 65_534);
    let Evidence::Absent(why) = unit(&node, pid).await else { panic!("{:?}", unit(&node, pid).await) };
    assert!(why.ends_with("is not systemd's: user 65534 may fill it"), "{why}");
}

#[tokio::test]
async fn a_delegated_units_own_children_are_that_unit() {
    let (node, name) = (Node::start("runtime = []").await, format!("{}.service", unique()));
    let mut cgroup = Cgroup::make(&format!("/{}.slice/{name}/app.slice/nginx.service", unique()));
    cgroup.delegate(2, 65_534);
    let found = unit(&node, cgroup.sleeper()).await;
    assert_eq!(found.known().map(|unit| &unit.name), Some(&name));
}

#[tokio::test]
async fn a_unit_of_a_containers_own_systemd_is_not_one_of_the_hosts() {
    let node = Node::start("runtime = []").await;
    let mut cgroup = Cgroup::make(&format!("/{}/docker/{}/system.slice/nginx.service", unique(), "ab".repeat(32)));
    let found = unit(&node, cgroup.sleeper()).await;
    assert_eq!(found, Evidence::Absent("its cgroup was not made by systemd".to_owned()));
}
