//! Which container runtimes are asked.
//!
//! ```toml
//! [[runtime]]
//! kind = "containerd"                        # or "docker", "podman"
//! socket = "/run/containerd/containerd.sock"
//! namespaces = ["k8s.io", "default"]         # containerd only; this is the default
//! service_account = "example.org/account"    # containerd only; see below
//!
//! [[runtime]]
//! kind = "podman"
//! socket = "/run/user/1000/podman/podman.sock"
//! user = 1000                                # whose runtime it is, if not root's
//! ```
//!
//! Kubernetes does not tell runtimes the service account of a pod. Where something that pods' authors cannot overrule
//! (an admission webhook) writes it as an annotation or label of each pod, `service_account` is that one's key.
//!
//! **A runtime of a user is that user's word**, its image digests too: it is asked only about that user's processes,
//! and what it confirms is of the runtime `podman:1000`, never `podman`.

use std::path::PathBuf;

use serde::Deserialize;

/// The namespaces of containerd that are asked by default: the one of Kubernetes, and the one of `ctr` and nerdctl.
const NAMESPACES: [&str; 2] = ["k8s.io", "default"];

/// A container runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// What it speaks.
    pub kind: RuntimeKind,
    /// Where it answers. Absolute.
    pub socket: PathBuf,
    /// Namespaces in which its containers are, for containerd.
    pub namespaces: Vec<String>,
    /// The annotation or label of a pod that names its service account.
    pub service_account: Option<String>,
    /// As whom it runs; others are not believed.
    pub user: u32,
    /// Nobody named it: as long as its socket was never there, it is not missed.
    pub usual: bool,
}

/// Kinds of runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeKind {
    /// Over gRPC: its own services, and the CRI for pods.
    Containerd,
    /// Over HTTP.
    Docker,
    /// Over HTTP, as Docker.
    Podman,
}

impl RuntimeKind {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }
}

impl RuntimeConfig {
    fn new(kind: RuntimeKind, socket: PathBuf) -> Self {
        let namespaces = match kind {
            RuntimeKind::Containerd => NAMESPACES.map(str::to_owned).to_vec(),
            RuntimeKind::Docker | RuntimeKind::Podman => Vec::new(),
        };
        Self { kind, socket, namespaces, service_account: None, user: 0, usual: false }
    }

    /// The name under which it confirms containers: `docker`, or `podman:1000` for that user's.
    #[must_use]
    pub fn name(&self) -> String {
        match self.user {
            0 => self.kind.as_str().to_owned(),
            user => format!("{}:{user}", self.kind.as_str()),
        }
    }
}

/// The runtimes at the sockets where they usually are.
pub(crate) fn well_known() -> Vec<RuntimeConfig> {
    let usual = |kind, socket: &str| RuntimeConfig { usual: true, ..RuntimeConfig::new(kind, socket.into()) };
    vec![
        usual(RuntimeKind::Containerd, "/run/containerd/containerd.sock"),
        usual(RuntimeKind::Docker, "/run/docker.sock"),
        usual(RuntimeKind::Podman, "/run/podman/podman.sock"),
    ]
}

/// A `[[runtime]]` as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRuntime {
    kind: RuntimeKind,
    socket: PathBuf,
    namespaces: Option<Vec<String>>,
    service_account: Option<String>,
    #[serde(default)]
    user: u32,
}

/// What is wrong with a `[[runtime]]`.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) field: &'static str,
    pub(crate) value: String,
    pub(crate) expected: String,
}

fn wrong<T>(field: &'static str, value: impl Into<String>, expected: &str) -> Result<T, Wrong> {
    Err(Wrong { field, value: value.into(), expected: expected.to_owned() })
}

impl TryFrom<RawRuntime> for RuntimeConfig {
    type Error = Wrong;
    fn try_from(raw: RawRuntime) -> Result<Self, Wrong> {
        if !raw.socket.is_absolute() {
            return wrong("runtime.socket", raw.socket.display().to_string(), "is not an absolute path");
        }
        let mut runtime = Self::new(raw.kind, raw.socket);
        let is_containerd = raw.kind == RuntimeKind::Containerd;
        if let Some(namespaces) = raw.namespaces {
            if !is_containerd {
                return wrong("runtime.namespaces", namespaces.join(", "), "is for containerd only");
            }
            runtime.namespaces = namespaces.into_iter().map(namespace).collect::<Result<_, _>>()?;
        }
        if let Some(key) = raw.service_account {
            if !is_containerd || key.is_empty() {
                return wrong("runtime.service_account", key, "is for containerd only, and not empty");
            }
            runtime.service_account = Some(key);
        }
        if is_containerd && raw.user != 0 {
            let expected = "cannot be: containerd is root's; leave `user` out";
            return wrong("runtime.user", raw.user.to_string(), expected);
        }
        runtime.user = raw.user;
        Ok(runtime)
    }
}

fn namespace(name: String) -> Result<String, Wrong> {
    if name == "moby" || name == "plugins.moby" {
        return wrong("runtime.namespaces", name, "is Docker's own: name Docker's socket as a runtime instead");
    }
    let sound = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || name.len() > 76 || !name.bytes().all(sound) {
        return wrong("runtime.namespaces", name, "is not 1 to 76 of [A-Za-z0-9._-]");
    }
    Ok(name)
}
