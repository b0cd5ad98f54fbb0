//! What container runtimes speak over gRPC, generated from `identityd/proto`.

#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    unreachable_pub,
    dead_code,
    reason = "generated"
)]

pub(crate) mod containers {
    tonic::include_proto!("containerd.services.containers.v1");
}
pub(crate) mod tasks {
    tonic::include_proto!("containerd.services.tasks.v1");
}
pub(crate) mod images {
    tonic::include_proto!("containerd.services.images.v1");
}
pub(crate) mod content {
    tonic::include_proto!("containerd.services.content.v1");
}
pub(crate) mod snapshots {
    tonic::include_proto!("containerd.services.snapshots.v1");
}
pub(crate) mod events {
    tonic::include_proto!("containerd.services.events.v1");
}
pub(crate) mod cri {
    tonic::include_proto!("runtime.v1");
}
