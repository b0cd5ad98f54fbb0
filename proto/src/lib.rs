//! The words of Bonafide: what two of its processes must agree on.
//!
//! Every type here is parsed once, at the door, into a form that cannot be wrong. Wire messages
//! (`wire`) never travel further than [`convert`].

pub mod audit;
pub mod clock;
pub mod container;
pub mod convert;
pub mod edge;
pub mod endpoint;
pub mod fetched;
pub mod fingerprint;
pub mod flow;
pub mod grant;
pub mod harden;
mod json;
pub mod jwt;
pub mod kernel;
pub mod name;
pub mod observed;
pub mod pem;
pub mod program;
pub mod record;
pub mod refusal;
pub mod revoked;
pub mod room;
pub mod signed_policy;
pub mod spiffe_bundle;
pub mod svid;
pub mod taint;
pub mod tls;
pub mod token;

/// Generated from `proto/*.proto`.
pub mod wire {
    #![allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, unreachable_pub)]
    /// The daemons of one host.
    pub mod node {
        tonic::include_proto!("bonafide.node.v1");
    }
    /// The SPIFFE Workload API, and Envoy's SDS, as others define them.
    pub mod workload_endpoint {
        include!(concat!(env!("OUT_DIR"), "/workload_endpoint.rs"));
        /// All of it, described for reflection.
        pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/workload_endpoint.bin"));
    }
    /// The authority and its nodes.
    pub mod authority {
        tonic::include_proto!("bonafide.authority.v1");
    }
    /// A signed policy.
    pub mod policy {
        tonic::include_proto!("bonafide.policy.v1");
    }
}
