//! Asking a daemon of this node, with a bound on how long it may take to answer.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bonafide_policy::POLICY_MAX;
use bonafide_proto::endpoint;
use bonafide_proto::wire::authority::admission_client::AdmissionClient;
use bonafide_proto::wire::node::attestation_client::AttestationClient;
use bonafide_proto::wire::node::enforcement_client::EnforcementClient;
use bonafide_proto::wire::node::issuance_client::IssuanceClient;
use bonafide_proto::wire::node::{AttestationStatus, EnforcementStatus, IssuanceStatus, StatusRequest};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::exit::Failure;
use crate::printable::printable;

/// How long a daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// A daemon that did not answer as it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("no socket at {0}")]
    NoSocket(PathBuf),
    #[error("no answer at {0}: {1}")]
    Silent(PathBuf, String),
    #[error("it said: {0}")]
    Said(String),
    /// The question names something that does not exist.
    #[error("{0}")]
    Unknown(String),
}

impl NoAnswer {
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::NoSocket(_) => "start the node (bonafide run), or name its directory by --dir",
            Self::Silent(..) => "see its log; only root is answered",
            Self::Said(_) => "see its log",
            Self::Unknown(_) => "see the policy for the names it has",
        }
    }
}

impl From<NoAnswer> for Failure {
    fn from(e: NoAnswer) -> Self {
        let remedy = e.remedy();
        match e {
            NoAnswer::Said(_) => Self::Failed(e.to_string()),
            NoAnswer::Unknown(_) => Self::BadInput(e.to_string()),
            _ => Self::Failed(format!("{e}; {remedy}")),
        }
    }
}

/// Runs one question to its end. The CLI has nothing else to do meanwhile.
pub(crate) fn block_on<T>(question: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(|e| Failure::Failed(format!("cannot start: {e}")))?.block_on(question))
}

/// One question to the daemon behind this socket.
pub(crate) async fn ask<T>(
    socket: &Path,
    question: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, NoAnswer> {
    if !socket.exists() {
        return Err(NoAnswer::NoSocket(socket.to_owned()));
    }
    match tokio::time::timeout(ANSWER, question).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(no_answer(socket, &status)),
        Err(_) => Err(NoAnswer::Silent(socket.to_owned(), format!("it took longer than {} s", ANSWER.as_secs()))),
    }
}

fn no_answer(socket: &Path, status: &Status) -> NoAnswer {
    let said = printable(&story(status)).into_owned();
    let broke = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal);
    match status.code() {
        _ if broke => NoAnswer::Silent(socket.to_owned(), said),
        Code::NotFound => NoAnswer::Unknown(said),
        _ => NoAnswer::Said(said),
    }
}

/// What the status says, and what it rests on down to the operating system's word.
fn story(status: &Status) -> String {
    let mut parts = vec![status.message().to_owned()];
    let mut cause = std::error::Error::source(status);
    while let Some(e) = cause {
        let text = e.to_string();
        if parts.last() != Some(&text) {
            parts.push(text);
        }
        cause = e.source();
    }
    parts.join(": ")
}

pub(crate) fn attestation(socket: &Path) -> AttestationClient<Channel> {
    // One answer carries the policy.
    AttestationClient::new(endpoint::channel(socket)).max_decoding_message_size(POLICY_MAX + (1 << 20))
}

pub(crate) fn enforcement(socket: &Path) -> EnforcementClient<Channel> {
    EnforcementClient::new(endpoint::channel(socket))
}

pub(crate) fn admission(socket: &Path) -> AdmissionClient<Channel> {
    AdmissionClient::new(endpoint::channel(socket))
}

pub(crate) async fn attestation_status(socket: &Path) -> Result<AttestationStatus, NoAnswer> {
    ask(socket, attestation(socket).status(StatusRequest {})).await
}

pub(crate) async fn issuance_status(socket: &Path) -> Result<IssuanceStatus, NoAnswer> {
    ask(socket, IssuanceClient::new(endpoint::channel(socket)).status(StatusRequest {})).await
}

pub(crate) async fn enforcement_status(socket: &Path) -> Result<EnforcementStatus, NoAnswer> {
    ask(socket, enforcement(socket).status(StatusRequest {})).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_name_that_the_policy_does_not_have_is_bad_input() {
        let exit = |status: Status| Failure::from(no_answer(Path::new("/s"), &status)).exit();
        assert_eq!(exit(Status::not_found("the policy /p has no workload no/such")), Exit::BadInput);
        assert_eq!(exit(Status::unavailable("gone")), Exit::Failed);
        assert_eq!(exit(Status::permission_denied("only root")), Exit::Failed);
    }
}
