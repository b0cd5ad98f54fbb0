//! What `bonafide-bench` measures of this crate: parts of the daemon as they are, without its doors.

mod hearing;
mod issuing;
mod maps;

use std::fs::File;
use std::io;
use std::sync::Arc;

use bonafide_proto::clock::SharedClock;
use bonafide_proto::fingerprint::Digest;

use crate::hash::Digests;

pub use hearing::Hearing;
pub use issuing::Issuing;
pub use maps::Maps;

/// Digests of files, none known at first.
#[derive(Debug)]
pub struct Hashing(Digests);

impl Hashing {
    /// By this clock, a file that root alone can write lasts a minute after its last change.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn new(clock: SharedClock) -> io::Result<Self> {
        Ok(Self(Digests::new(1, clock, Arc::default())?))
    }

    /// The digest of an open file, on this user's account.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn digest(&self, file: &Arc<File>, user: u32) -> io::Result<Digest> {
        self.0.digest(file, user).await.map_err(io::Error::other)
    }
}
