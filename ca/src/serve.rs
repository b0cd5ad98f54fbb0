//! The doors: three gRPC services, each turning wire messages into types and answers back, and nothing else.

pub mod admission;
pub mod issuance;
pub mod membership;
mod policies;
mod roots;

use crate::store::{Store, StoreError};

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

/// Entries of an audit chain in one answer.
const AUDIT_PAGE: usize = 128;

/// Where the chain ends, and its entries from this number on, as they are kept.
fn audit_page(store: &Store, from: u64) -> Result<(Vec<u8>, Vec<Vec<u8>>), tonic::Status> {
    let failed = |e: StoreError| tonic::Status::internal(e.to_string());
    let head = store.audit_head().map_err(failed)?;
    let entries = store.audit_entries(from.max(head.first), AUDIT_PAGE).map_err(failed)?;
    let head = serde_json::to_vec(&head).map_err(|e| tonic::Status::internal(e.to_string()))?;
    Ok((head, entries))
}
