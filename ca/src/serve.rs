//! The doors: three gRPC services, each turning wire messages into types and answers back, and nothing else.

pub mod admission;
pub mod issuance;
pub mod membership;

/// The largest message any of them reads, in bytes.
const MESSAGE_MAX: usize = 64 * 1024;

/// Runs blocking work; a panic in it becomes a status, not a dead daemon.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, tonic::Status> + Send + 'static,
) -> Result<T, tonic::Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(tonic::Status::internal("the request could not be completed")),
    }
}
