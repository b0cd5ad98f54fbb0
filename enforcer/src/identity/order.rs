//! An order for one certificate: whose it is, and how it is filled with a key that never leaves this process.

use std::sync::Arc;

use bonafide_proto::convert::Attestation;
use bonafide_proto::fingerprint::{Digest, Execution, Fingerprint, HashedFile, Script};
use bonafide_proto::name::{SpiffeId, WorkloadName};
use bonafide_proto::program::CertifiedProgram;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::taint::Taints;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::time::timeout;
use zeroize::Zeroize as _;

use super::ask::{Daemon, ORDER_PATIENCE, unavailable};
use super::{NodeTrust, TrustInForce};
use crate::tunnel::Leaf;

/// What one certificate stands for: executions that agree in all of this share it. It is all that a certificate says of a
/// program, for the other end may demand any of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    workload: WorkloadName,
    exe: HashedFile,
    script: Option<Script>,
    uid: u32,
    taints: Taints,
    libraries: Option<Digest>,
    image: Option<Digest>,
}

impl Subject {
    fn new(workload: WorkloadName, fingerprint: &Fingerprint) -> Self {
        Self {
            workload,
            exe: fingerprint.exe.clone(),
            script: fingerprint.script.known().cloned(),
            uid: fingerprint.uid,
            taints: fingerprint.taints.clone(),
            libraries: fingerprint.libraries.known().map(|libraries| libraries.digest),
            image: fingerprint.container.known().map(|container| container.image),
        }
    }

    /// Whether a certificate says this. A program may have changed between the look at it and the certificate, e.g.
    /// loaded another library: that certificate is true of it, and perhaps not of others.
    pub(super) fn is_told_by(&self, program: &CertifiedProgram) -> bool {
        self.exe.digest == program.exe
            && self.exe.path == program.program
            && self.script == program.script
            && self.uid == program.uid
            && self.taints == program.taints
            && self.libraries == program.libraries
            && self.image == program.image
    }
}

/// A certificate is wanted.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) subject: Subject,
    executions: Vec<Execution>,
}

impl Order {
    /// # Errors
    /// The program has earned no workload.
    pub(super) fn new(of: &Attestation) -> Result<Self, AttestRefusal> {
        let fingerprint = &of.fingerprint;
        let Some(workload) = of.workload.clone() else {
            let detail = format!("{} has earned no workload, so there is no name to certify", fingerprint.exe.path);
            return Err(AttestRefusal::new(AttestReason::NotEntitled, detail));
        };
        Ok(Self { subject: Subject::new(workload, fingerprint), executions: of.executions.clone() })
    }

    /// Makes a key, has it certified, and checks what came back against the trust in force.
    pub(super) async fn fill(
        &self,
        daemon: &Daemon,
        mut trust: TrustInForce,
    ) -> Result<(Leaf, Arc<NodeTrust>), AttestRefusal> {
        known(&mut trust).await?;
        let (key, csr) = new_key()?;
        let chain = daemon.svid(&self.executions, &self.subject.workload, csr).await?;
        let trust = known(&mut trust).await?;
        let wanted = SpiffeId::workload(trust.trust.bundle.trust_domain(), &self.subject.workload);
        let leaf = Leaf::new(chain, key, &wanted, &trust.trust).map_err(|e| {
            let detail = format!("the certificate issued for {} is not fit to be shown: {e}", self.subject.workload);
            AttestRefusal::new(AttestReason::CheckerRefused, detail)
        })?;
        Ok((leaf, trust))
    }
}

async fn known(trust: &mut TrustInForce) -> Result<Arc<NodeTrust>, AttestRefusal> {
    let known = timeout(ORDER_PATIENCE, trust.wait_for(Option::is_some)).await;
    match known {
        Ok(Ok(trust)) => trust.clone().ok_or_else(|| unavailable("there is no trust bundle")),
        _ => Err(unavailable("identityd has sent no trust bundle yet")),
    }
}

/// A fresh P-256 key, and a request that names nothing: the CA takes the names from the attestation.
fn new_key() -> Result<(PrivateKeyDer<'static>, Vec<u8>), AttestRefusal> {
    let failed = |e: rcgen::Error| unavailable(format!("no key could be made: {e}"));
    let mut pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&pair).map(|csr| csr.der().to_vec());
    let key = PrivatePkcs8KeyDer::from(pair.serialize_der());
    pair.zeroize();
    Ok((key.into(), csr.map_err(failed)?))
}

#[cfg(test)]
impl Subject {
    pub(super) fn of_uid(uid: u32) -> Self {
        let exe = HashedFile { path: "/x".to_owned(), digest: Digest::of(b"x") };
        let unknown = || bonafide_proto::fingerprint::Evidence::Absent(String::new());
        let host = bonafide_proto::fingerprint::Host { bios_uuid: unknown(), machine_id: unknown(), node: None };
        #[allow(clippy::unwrap_used, reason = "tests only")]
        Self::new("x".parse().unwrap(), &Fingerprint::of(exe, (uid, uid), host))
    }
}
