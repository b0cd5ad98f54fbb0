//! gRPC over a unix socket: one connection that is made when needed, and answers bounded in size.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status};

use super::circuit::AskError;
use super::dial::{Connection, Dial};

/// The way to one server.
#[derive(Debug)]
pub(crate) struct Line {
    dial: Dial,
    channel: Mutex<Option<Channel>>,
    /// Counts questions that were answered.
    answers: AtomicU64,
}

impl Line {
    /// Nothing is connected yet.
    pub(crate) fn new(dial: Dial) -> Self {
        Self { dial, channel: Mutex::default(), answers: AtomicU64::new(0) }
    }

    /// How many questions were answered so far.
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// The channel: it connects when first used, and again whenever needed.
    pub(crate) fn channel(&self) -> Channel {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.get_or_insert_with(|| endpoint().connect_with_connector_lazy(Connector(self.dial.clone()))).clone()
    }

    /// A connection of its own, for what takes as long as the server lives.
    ///
    /// # Errors
    /// `Unreachable`.
    pub(crate) async fn apart(&self) -> Result<Channel, AskError> {
        let connected = endpoint().connect_with_connector(Connector(self.dial.clone())).await;
        connected.map_err(|e| AskError::Unreachable(std::io::Error::other(root(&e).to_string())))
    }

    /// What is broken is not used again. What one answer says breaks nothing: it may be what a container's own maker wrote.
    pub(crate) fn note<T>(&self, answer: &Result<T, AskError>) {
        match answer {
            Err(AskError::Unreachable(_)) => self.leave(),
            _ => drop(self.answers.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// A question was not answered in time that was asked after so many answers: if nobody was answered since, the
    /// connection is not used again.
    pub(crate) fn silent(&self, since: u64) {
        if self.answers() == since {
            self.leave();
        }
    }

    fn leave(&self) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The URI is only a placeholder: the connector dials the socket. containerd insists on an authority that is none.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost")
}

/// The answer; `None` if the thing asked about is not there.
pub(crate) fn answered<T>(answer: Result<Response<T>, Status>) -> Result<Option<T>, AskError> {
    match answer {
        Ok(response) => Ok(Some(response.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(failed(&status)),
    }
}

/// Why there is no answer.
pub(crate) fn failed(status: &Status) -> AskError {
    use std::error::Error as _;
    // Only what went wrong on the way has a source; what the server says has none.
    match status.source() {
        Some(source) => AskError::Unreachable(std::io::Error::other(root(source).to_string())),
        None if matches!(status.code(), Code::Internal | Code::Unknown | Code::OutOfRange) => {
            AskError::garbage(status.message())
        }
        None => AskError::failed(format!("{:?}: {}", status.code(), status.message())),
    }
}

fn root<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

#[derive(Debug, Clone)]
struct Connector(Dial);

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dial = self.0.clone();
        Box::pin(async move { dial.connect().await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_is_broken_or_silent_to_all_is_left() {
        let line = Line::new(Dial::new("/nowhere".into(), 0));
        let kept = || line.channel.lock().unwrap().is_some();
        let failed = |error| line.note::<()>(&Err(error));
        drop(line.channel());
        failed(AskError::garbage("a label that is no text"));
        failed(AskError::failed("Unknown: no"));
        line.note(&Ok(()));
        assert!(kept());
        // One question was not answered, others were.
        line.silent(line.answers() - 1);
        assert!(kept());
        line.silent(line.answers());
        assert!(!kept());
        drop(line.channel());
        failed(AskError::Unreachable(std::io::Error::other("broken")));
        assert!(!kept());
    }
}
