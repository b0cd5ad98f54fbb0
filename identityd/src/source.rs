//! The seam: from a socket to the executions that hold it. The kernel's own records answer where they are, else `/proc`.

use std::future::Future;

use bonafide_proto::fingerprint::Execution;
use bonafide_proto::flow::FlowKey;
use bonafide_proto::kernel::ConnectRecord;
use bonafide_proto::refusal::AttestRefusal;

/// The most executions that may hold one socket: a few descriptors are open for each of them at once.
/// (A server that forks has hundreds: 256 workers and their parent by default in Apache's.)
pub(crate) const HOLDERS_MAX: usize = 512;

/// Why nobody looks at them.
pub(crate) fn too_many(holders: usize) -> String {
    format!("{holders} processes hold the socket, and more than {HOLDERS_MAX} are not looked at")
}

/// A socket that was asked about before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// What was asked.
    pub(crate) key: FlowKey,
    /// The record of its connection, where there is one.
    pub(crate) record: Option<ConnectRecord>,
}

/// Traces sockets to processes.
pub(crate) trait SocketSource: std::fmt::Debug + Send + Sync + 'static {
    /// What was found, so that it can be looked at again.
    type Held: Held;

    /// The name that appears as `source` in an attestation.
    fn name(&self) -> &'static str;

    /// Why it is not the strongest source there is; empty: it is.
    fn reason(&self) -> &str;

    /// Whether connections are written down as they are made: then one without a record is not told from a later one
    /// that has the same addresses.
    fn sees_connections(&self) -> bool;

    /// Every execution that holds the socket; of a connector, by the record of its connection where there is one.
    ///
    /// # Errors
    /// Any doubt, by name: a socket that is not the one asked about, no holder, a process that could not be looked into.
    fn holders(
        &self,
        key: FlowKey,
        record: Option<ConnectRecord>,
    ) -> impl Future<Output = Result<Self::Held, AttestRefusal>> + Send;

    /// Every execution that holds any of these sockets by now, whoever held them before; one search for all of them. A
    /// listener's may be connected by now: then the connection is meant. None if nobody holds any.
    ///
    /// # Errors
    /// As of [`SocketSource::holders`].
    fn holders_by_now(
        &self,
        sockets: &[Known],
    ) -> impl Future<Output = Result<Option<Self::Held>, AttestRefusal>> + Send;

    /// Every execution that holds the other end of a unix socket of this daemon, which has this cookie.
    ///
    /// # Errors
    /// Any doubt, by name: above all that somebody may hold it who was not seen.
    fn across(&self, cookie: u64) -> impl Future<Output = Result<Self::Held, AttestRefusal>> + Send;

    /// Whether the process that connected has ended, and left nobody who could have the socket from it.
    fn is_over(&self, record: &ConnectRecord) -> bool;

    /// Whether it is still so.
    ///
    /// # Errors
    /// `generation-gone` or `no-socket` if it is not.
    fn still_held(&self, held: &Self::Held) -> impl Future<Output = Result<(), AttestRefusal>> + Send;
}

/// An answer of a source.
pub(crate) trait Held: Send + Sync {
    /// The holders; never empty, each once.
    fn executions(&self) -> &[Execution];
}
