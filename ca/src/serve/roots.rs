//! The steps from one root to the next, and how far they have come, on the admin socket.

use std::collections::BTreeSet;
use std::sync::Arc;

use bonafide_proto::name::NodeName;
use bonafide_proto::wire::authority as wire;
use rustls::pki_types::CertificateDer;
use tonic::Status;

use crate::authority::Authority;
use crate::rotation::issuing::InstallError;
use crate::rotation::next::NextRoot;
use crate::rotation::{RotationError, Shown, Step};
use crate::serve::blocking;
use crate::store::By;

/// Nodes that are named for one root.
const NAMED_MAX: usize = 64;

/// Makes a step.
pub(super) async fn rotate(
    authority: &Arc<Authority>,
    by: By,
    request: wire::RotateRootRequest,
) -> Result<wire::RootsShown, Status> {
    let step = step(request.step())?;
    let named = |name: &String| name.parse().map_err(|e| Status::invalid_argument(format!("the node name {e}")));
    let leave = request.leave_behind.iter().map(named).collect::<Result<BTreeSet<NodeName>, Status>>()?;
    let authority = authority.clone();
    blocking(move || {
        let made = authority.rotate(&by, step, &leave).map_err(|e| status(&e))?;
        shown(&authority, made)
    })
    .await
}

/// Makes the first step by a root that is offline.
pub(super) async fn prepare(
    authority: &Arc<Authority>,
    by: By,
    request: wire::PrepareRootRequest,
) -> Result<wire::RootsShown, Status> {
    let authority = authority.clone();
    let next = NextRoot { root: request.root.into(), issuing: request.issuing.into() };
    blocking(move || {
        let made = authority.prepare_offline(&by, &next).map_err(|e| status(&e))?;
        shown(&authority, made)
    })
    .await
}

/// Takes a later issuing certificate.
pub(super) async fn install(
    authority: &Arc<Authority>,
    by: By,
    request: wire::InstallIssuingRequest,
) -> Result<wire::RootsShown, Status> {
    let (authority, certificate) = (authority.clone(), CertificateDer::from(request.certificate));
    blocking(move || {
        let installed = authority.install_issuing(&by, &certificate).map_err(|e| match &e {
            InstallError::Issue(_) | InstallError::Store(_) => Status::internal(e.to_string()),
            _ => Status::failed_precondition(e.to_string()),
        })?;
        shown(&authority, installed)
    })
    .await
}

/// How far the roots have come.
pub(super) fn shown(authority: &Authority, changed: bool) -> Result<wire::RootsShown, Status> {
    let (roots, sequence, awaited) = authority.rotation().show().map_err(|e| status(&e))?;
    let awaited = awaited.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    Ok(wire::RootsShown { changed, sequence, roots: roots.into_iter().map(root).collect(), awaited })
}

fn root(shown: Shown) -> wire::RootShown {
    wire::RootShown {
        number: shown.number,
        stage: shown.stage.as_str().to_owned(),
        since: shown.since,
        sha256: shown.digest.0.to_vec(),
        not_after: shown.not_after,
        key_here: shown.key_here,
        issuing: shown.issuing.map(|[since, due, until]| wire::IssuingShown { since, due, until }),
        depend_until: shown.depend.values().copied().max().unwrap_or(0),
        depend: shown.depend.into_keys().take(NAMED_MAX).collect(),
    }
}

fn step(wire: wire::RotationStep) -> Result<Step, Status> {
    match wire {
        wire::RotationStep::Prepare => Ok(Step::Prepare),
        wire::RotationStep::Publish => Ok(Step::Publish),
        wire::RotationStep::Activate => Ok(Step::Activate),
        wire::RotationStep::Retire => Ok(Step::Retire),
        wire::RotationStep::Abandon => Ok(Step::Abandon),
        wire::RotationStep::Unspecified => Err(Status::invalid_argument("it names no step")),
    }
}

fn status(e: &RotationError) -> Status {
    match e {
        RotationError::Restored
        | RotationError::UnderWay(..)
        | RotationError::NotPrepared
        | RotationError::NotPublished
        | RotationError::NotActivated
        | RotationError::Offline
        | RotationError::Activated(_)
        | RotationError::NextRoot(_)
        | RotationError::NextKey(_)
        | RotationError::Awaited(_)
        | RotationError::Depended { .. }
        | RotationError::Policy(_) => Status::failed_precondition(e.to_string()),
        RotationError::Key(_) | RotationError::Issue(_) | RotationError::Store(_) => Status::internal(e.to_string()),
    }
}
