//! Where things are inside a node's directory. Pure paths; nothing is touched.

use std::path::{Path, PathBuf};

use super::spec::MachineCertificate;

/// The paths of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The layout inside this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }
    /// The node's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    /// Parent of the directories in which the daemons make their sockets.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }
    /// Parent of what the daemons keep.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }
    /// What the daemon of this name says: `ca`, `identityd` or `enforcer`.
    #[must_use]
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.dir.join("log").join(format!("{daemon}.log"))
    }
    /// The configuration of the daemon of this name.
    #[must_use]
    pub fn config(&self, daemon: &str) -> PathBuf {
        self.dir.join(format!("{daemon}.toml"))
    }
    /// The CA's ledger and keys.
    #[must_use]
    pub fn ca_state(&self) -> PathBuf {
        self.state().join("ca")
    }
    /// The digests that identityd keeps.
    #[must_use]
    pub fn identityd_state(&self) -> PathBuf {
        self.state().join("identityd")
    }
    /// What the enforcer keeps.
    #[must_use]
    pub fn enforcer_state(&self) -> PathBuf {
        self.state().join("enforcer")
    }
    /// The flow records, JSON lines.
    #[must_use]
    pub fn records(&self) -> PathBuf {
        self.enforcer_state().join("flows.jsonl")
    }
    /// The join token, until it was used.
    #[must_use]
    pub fn join_token(&self) -> PathBuf {
        self.ca_state().join("join.token")
    }
    /// The certificate by which it joins, its key and the authority's root, as they were when the node was laid out.
    #[must_use]
    pub fn join_certificate(&self) -> MachineCertificate {
        let at = |name: &str| self.ca_state().join(name);
        MachineCertificate { certificate: at("join.crt"), key: at("join.key"), root: at("join.root") }
    }
    /// Where the node role of the CA serves `Issuance`.
    #[must_use]
    pub fn ca_socket(&self) -> PathBuf {
        self.run().join("ca/ca.sock")
    }
    /// Where the root role of the CA serves `Admission`.
    #[must_use]
    pub fn authority_socket(&self) -> PathBuf {
        self.run().join("ca/authority.sock")
    }
    /// Where identityd serves `Attestation`.
    #[must_use]
    pub fn identityd_socket(&self) -> PathBuf {
        self.run().join("identityd/identityd.sock")
    }
    /// Where identityd serves the SPIFFE Workload API and Envoy's SDS to programs.
    #[must_use]
    pub fn workload_socket(&self) -> PathBuf {
        self.run().join("identityd/workload.sock")
    }
    /// Where the enforcer serves `Enforcement`.
    #[must_use]
    pub fn enforcer_socket(&self) -> PathBuf {
        self.run().join("enforcer/enforcer.sock")
    }
}
