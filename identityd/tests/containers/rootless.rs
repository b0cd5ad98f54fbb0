//! A runtime of a user. (Podman itself can make no cgroups for a user where version 1 has the controllers; what the
//! user says is what matters here.)

use std::process::{Child, Command};

use crate::cgroups::Cgroup;
use crate::node::{Node, until};
use crate::runtimes::unique;

const USER: u32 = 65_534;

const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/containers/user_runtime.py");

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_users_runtime_is_believed_about_that_users_processes_only_and_never_as_roots() {
    use std::os::unix::fs::PermissionsExt as _;
    let id = "ef".repeat(32);
    let mut cgroup = Cgroup::make(&format!("/{}.slice/libpod-{id}.scope", unique()));
    cgroup.delegate(1, USER);
    cgroup.delegate(2, USER);
    let (theirs, roots) = (cgroup.sleeper_as(USER), cgroup.sleeper());
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    // Python must be able to read it wherever the sources are.
    let script = dir.path().join("runtime.py");
    std::fs::copy(SERVER, &script).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let socket = dir.path().join("s");
    let mut server = Command::new("setpriv");
    // A python that is root's own is none for others.
    server.env("PATH", "/usr/bin:/bin");
    server.args([&format!("--reuid={USER}"), "--clear-groups", "--", "python3"]).arg(&script).arg(&socket);
    let _server = Server(server.args([&id, &theirs.to_string()]).spawn().unwrap());
    until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;

    let runtime = format!("[[runtime]]\nkind = \"podman\"\nsocket = \"{}\"\n", socket.display());
    let node = Node::start(&format!("{runtime}user = {USER}\n")).await;
    let found = node.known(theirs).await;
    assert_eq!(
        (found.runtime.as_str(), found.id.as_str(), found.name.as_deref()),
        ("podman:65534", &*id, Some("mine"))
    );
    assert!(found.is_of_user());
    let why = node.absent(roots).await;
    assert_eq!(why, "the runtime podman:65534 is asked only about its user's processes");

    // Root's runtimes do not make such cgroups, and do not run as that user.
    let as_roots = Node::start(&runtime).await;
    assert!(as_roots.absent(theirs).await.contains("user 65534 may fill it"));
    let mut of_root = Cgroup::make(&format!("/{}/libpod-{id}", unique()));
    let pid = of_root.sleeper();
    assert!(as_roots.unavailable(pid).await.contains("its server runs as user 65534, not 0"));
}
