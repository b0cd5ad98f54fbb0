//! Leaves, as the daemon asks for them.

use std::path::PathBuf;

use bonafide_proto::fingerprint::Fingerprint;
use bonafide_proto::name::WorkloadName;
use bonafide_proto::refusal::AttestRefusal;
use bonafide_proto::wire::node as wire;

use crate::bundle::Authority;

/// The way to a node's CA.
#[derive(Debug, Clone)]
pub struct Issuing(Authority);

impl Issuing {
    /// By this socket; inside a runtime.
    #[must_use]
    pub fn at(socket: PathBuf) -> Self {
        Self(Authority::follow(socket))
    }

    /// A leaf for the key of this request.
    ///
    /// # Errors
    /// The CA's own refusal, or that it does not answer.
    pub async fn leaf(
        &self,
        workload: &WorkloadName,
        fingerprint: &Fingerprint,
        csr: Vec<u8>,
    ) -> Result<wire::Svid, AttestRefusal> {
        self.0.issue(workload, fingerprint, csr).await
    }
}
