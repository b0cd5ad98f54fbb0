//! HTTP/1.1 over a unix socket: one kind of request, answers bounded in size. Time is the caller's to bound.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::circuit::{AT_ONCE, AskError};
use super::dial::Dial;

/// The largest answer, in bytes.
pub(crate) const BODY_MAX: usize = 1 << 20;
/// The largest head of an answer, in bytes.
const HEAD_MAX: usize = 64 << 10;
/// Connections that are kept for later: as many as there are questions at once.
const IDLE_MAX: usize = AT_ONCE;

type Sender = http1::SendRequest<Empty<Bytes>>;

/// A client.
#[derive(Debug)]
pub(crate) struct Http {
    dial: Dial,
    idle: Mutex<Vec<Sender>>,
}

impl Http {
    /// Of whoever answers there.
    pub(crate) fn new(dial: Dial) -> Self {
        Self { dial, idle: Mutex::default() }
    }

    /// The body at this path; `None` if it is not found.
    ///
    /// # Errors
    /// No connection, no HTTP, another status, or a body beyond the bound.
    pub(crate) async fn get(&self, path: &str) -> Result<Option<Bytes>, AskError> {
        if let Some(mut idle) = self.idle() {
            // The server may have closed it just now; a fresh one tells more.
            if let Ok(response) = idle.send_request(request(path)?).await {
                return self.read(idle, response).await;
            }
        }
        let mut fresh = self.fresh().await?;
        let response = fresh.send_request(request(path)?).await.map_err(spoken)?;
        self.read(fresh, response).await
    }

    fn idle(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        let ready = idle.iter().position(http1::SendRequest::is_ready)?;
        Some(idle.swap_remove(ready))
    }

    async fn fresh(&self) -> Result<Sender, AskError> {
        let connection = self.dial.connect().await?;
        greeted(connection).await
    }

    async fn read(&self, sender: Sender, response: Response<Incoming>) -> Result<Option<Bytes>, AskError> {
        let (status, body) = whole(response).await?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(sender);
        }
        meant(status, body)
    }
}

/// The answer of whoever is at the other end; what they say before they are asked is none.
#[cfg(test)]
pub(crate) async fn asked<S>(connection: S, path: &str) -> Result<Option<Bytes>, AskError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut sender = greeted(connection).await?;
    let (status, body) = whole(sender.send_request(request(path)?).await.map_err(spoken)?).await?;
    meant(status, body)
}

async fn greeted<S>(connection: S) -> Result<Sender, AskError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = http1::Builder::new().max_buf_size(HEAD_MAX).handshake(TokioIo::new(connection));
    let (sender, driver) = handshake.await.map_err(spoken)?;
    // It ends when the server closes the connection, or when the sender is dropped.
    tokio::spawn(driver);
    Ok(sender)
}

async fn whole(response: Response<Incoming>) -> Result<(StatusCode, Bytes), AskError> {
    let status = response.status();
    let body = Limited::new(response.into_body(), BODY_MAX).collect().await.map_err(|e| cut(e.as_ref()))?;
    Ok((status, body.to_bytes()))
}

fn meant(status: StatusCode, body: Bytes) -> Result<Option<Bytes>, AskError> {
    match status {
        StatusCode::OK => Ok(Some(body)),
        StatusCode::NOT_FOUND => Ok(None),
        other => Err(AskError::failed(other.as_str())),
    }
}

fn request(path: &str) -> Result<Request<Empty<Bytes>>, AskError> {
    let request = Request::get(path).header(hyper::header::HOST, "runtime").body(Empty::new());
    request.map_err(|e| AskError::failed(e.to_string()))
}

fn spoken(e: hyper::Error) -> AskError {
    if e.is_parse() { AskError::garbage(e.to_string()) } else { AskError::Unreachable(std::io::Error::other(e)) }
}

fn cut(e: &(dyn std::error::Error + Send + Sync + 'static)) -> AskError {
    if e.is::<LengthLimitError>() {
        return AskError::Garbage(format!("more than {BODY_MAX} bytes"));
    }
    AskError::garbage(e.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{UnixListener, UnixStream};
    use tokio::sync::Barrier;
    use tokio::task::JoinSet;

    use super::*;

    /// Answers nobody before so many ask at once.
    async fn serve(mut stream: UnixStream, together: Arc<Barrier>) {
        let mut question = [0; 4096];
        while stream.read(&mut question).await.is_ok_and(|read| read > 0) {
            together.wait().await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
        }
    }

    #[tokio::test]
    async fn many_questions_at_once_end_no_connection() {
        let dir = tempfile::tempdir().unwrap();
        let dial = Dial::new(dir.path().join("s"), 0);
        let server = UnixListener::bind(&dial.socket).unwrap();
        let serving = tokio::spawn(async move {
            let (mut serving, together) = (JoinSet::new(), Arc::new(Barrier::new(AT_ONCE)));
            while let Ok((stream, _)) = server.accept().await {
                serving.spawn(serve(stream, Arc::clone(&together)));
            }
        });
        let http = Arc::new(Http::new(dial.clone()));
        for _ in 0..3 {
            let mut asking = JoinSet::new();
            for _ in 0..AT_ONCE {
                let http = Arc::clone(&http);
                asking.spawn(async move { http.get("/x").await.unwrap() });
            }
            assert!(asking.join_all().await.iter().all(Option::is_some));
            assert_eq!(http.idle.lock().unwrap().len(), AT_ONCE);
        }
        assert_eq!(dial.generation(), 0);
        serving.abort();
    }
}
