//! Containers and pods, as their runtime confirms them.

use std::collections::BTreeMap;

use crate::fingerprint::Digest;

/// A container that its runtime confirmed to hold the process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Container {
    /// The runtime that confirmed it: `containerd`, `docker` or `podman`; or a user's own, with the uid: `podman:1000`.
    pub runtime: String,
    /// Its ID, as the runtime writes it: 1 to 128 of `[A-Za-z0-9_.-]`.
    pub id: String,
    /// Its name, where the runtime has one.
    pub name: Option<String>,
    /// Digest of the image's config: the one thing about an image that is pinned per container.
    pub image: Digest,
    /// The name the image was started by. A label for people: names move.
    pub image_name: Option<String>,
    /// Digests of manifests that the runtime knows to lead to this config; not pinned, for resolving policies only.
    pub manifests: Vec<Digest>,
    /// Labels; at most 256.
    pub labels: BTreeMap<String, String>,
    /// The pod it belongs to.
    pub pod: Option<Pod>,
}

impl Container {
    /// Whether it is known only to a runtime that a user runs, and not root: all of it is that user's word.
    #[must_use]
    pub fn is_of_user(&self) -> bool {
        self.runtime.contains(':')
    }
}

/// A Kubernetes pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Service account, where the runtime was told.
    pub service_account: Option<String>,
    /// Labels; at most 256.
    pub labels: BTreeMap<String, String>,
}
