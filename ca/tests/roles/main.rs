//! The roles of the CA together, through their public API: in one process and over TLS on loopback.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

mod audited;
mod bench;
mod cloned;
mod grants;
mod issuing;
mod joining;
mod offline;
mod policies;
mod program;
mod quarantine;
mod renewing;
mod revoking;
mod rotating;
mod state;
mod strangers;
mod tokens;
mod travelling;
mod x509_svid;
mod x509pop;
